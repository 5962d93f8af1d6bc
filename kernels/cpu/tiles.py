"""Tiles of an activation, SiLU with a tail, and their first and second derivatives, for equimol/ops/tiles.py.

A tile i has rows j and columns k of numbers c, the first M of which are messages:

    u_jkc = x_jkc + first_jc + second_kc,    y_jkc = u_jkc sigmoid(u_jkc) below the threshold of the tail
    summed_jc = v_j sum_k w_k y_jkc    (c < M)        rest_jkc = y_jkc    (c >= M)

Arrays: x [n, j, k, c], a matrix product, overwritten by derivatives; first [n, j, c], second [n, k, c], v [n, j], w [n, k], summed
[n, j, M], rest [n, j, k, c - M]. The tiles start <= i < stop are worked on, so that threads can share them; sums are owned by their tile.
A vector of numbers c is taken through all columns, so that what belongs to its row stays in registers. Tail, smooth or not, as in
equimol/ops/silut.py: of its threshold the value, the slope and the rate at which that falls.
"""

from typing import NamedTuple

from torch import Tensor

from equimol.ops.vector_code import Code, Value


def _parts(code: Code, start: Value | int, stop: Value):
    """Loops over c by vectors: where each begins, and which of its lanes count."""
    with code.loop(start, stop, code.lanes) as begin:
        yield begin, code.below(begin, stop)


class Tail(NamedTuple):
    """What stands for SiLU beyond the threshold."""

    threshold: Value
    value: Value
    slope: Value
    rate: Value
    smooth: Value

    def activate(self, code: Code, u: Value) -> tuple[Value, Value, Value]:
        """Value and two derivatives."""
        sigmoid = code.sigmoid(u)
        value = u * sigmoid
        slope = sigmoid + value * (1.0 - sigmoid)
        found = [code.variable(x) for x in (value, slope, (1.0 - sigmoid) * (slope + sigmoid - value * sigmoid))]
        beyond = code.exceeding(u, self.threshold)
        with code.when(code.any(beyond)):
            past = u - self.threshold
            decay = code.exp(-(past * self.rate))
            soft = (1.0 - decay) * (self.slope / self.rate) + self.value, decay * self.slope, -(decay * (self.slope * self.rate))
            t = 1.0 - 2.0 * code.splat(code.constant(1.0)) / (code.exp(past * (2.0 * self.slope)) + 1.0)
            u = 1.0 - t * t
            hard = t + self.value, u * self.slope, -(t * u * (2.0 * self.slope * self.slope))
            for variable, smooth, published in zip(found, soft, hard, strict=True):
                variable.set(code.select(beyond, code.select(self.smooth.above(0), smooth, published), variable.get()))
        return tuple(variable.get() for variable in found)


def forward(
    code: Code, start: int, stop: int, rows: int, columns: int, numbers: int, messages: int,
    threshold: float, tail_value: float, tail_slope: float, tail_rate: float, smooth: int,
    x: Tensor, first: Tensor, second: Tensor, v: Tensor, w: Tensor, summed: Tensor, rest: Tensor,
) -> None:  # fmt: skip
    """Puts messages into ``summed`` and the others into ``rest``."""
    tail = Tail(threshold, tail_value, tail_slope, tail_rate, smooth)
    with code.loop(start, stop) as i, code.loop(0, rows) as row:
        j = i * rows + row

        def activated(k, begin, mask, mine):
            u = code.load(x, (j * columns + k) * numbers + begin, mask) + mine
            return tail.activate(code, u + code.load(second, (i * columns + k) * numbers + begin, mask))[0]

        for begin, mask in _parts(code, 0, messages):
            mine, total = code.load(first, j * numbers + begin, mask), code.variable(code.zeros())
            with code.loop(0, columns) as k:
                total.add(code.load(w, i * columns + k) * activated(k, begin, mask, mine))
            code.store(code.load(v, j) * total.get(), summed, j * messages + begin, mask)
        for begin, mask in _parts(code, messages, numbers):
            mine = code.load(first, j * numbers + begin, mask)
            with code.loop(0, columns) as k:
                place = (j * columns + k) * (numbers - messages) + begin - messages
                code.store(activated(k, begin, mask, mine), rest, place, mask)


def slope(
    code: Code, start: int, stop: int, rows: int, columns: int, numbers: int, messages: int,
    threshold: float, tail_value: float, tail_slope: float, tail_rate: float, smooth: int,
    x: Tensor, first: Tensor, second: Tensor, v: Tensor, w: Tensor, of_summed: Tensor, of_rest: Tensor,
    of_first: Tensor, of_second: Tensor, of_v: Tensor, of_w: Tensor,
) -> None:  # fmt: skip
    """Derivatives of the scalar product of results and ``of_summed``, ``of_rest``; that by x goes into x.

    Adds to of_w, and where there are several rows to of_second: with one it is the same as x.
    """
    several, tail = rows.above(1), Tail(threshold, tail_value, tail_slope, tail_rate, smooth)
    with code.loop(start, stop) as i, code.loop(0, rows) as row:
        j = i * rows + row
        toward_v = code.variable(code.zeros())
        for begin, mask in _parts(code, 0, messages):
            mine, given = code.load(first, j * numbers + begin, mask), code.load(of_summed, j * messages + begin, mask)
            sum_first = code.variable(code.zeros())
            with code.loop(0, columns) as k:
                place, other, here = (j * columns + k) * numbers + begin, (i * columns + k) * numbers + begin, i * columns + k
                weight = code.load(w, here)
                u = code.load(x, place, mask) + mine + code.load(second, other, mask)
                value, slope, _ = tail.activate(code, u)
                product = value * given
                toward_v.add(weight * product)
                through = slope * given * (weight * code.load(v, j))
                sum_first.add(through)
                code.store(through, x, place, mask)
                with code.when(several):
                    code.store(code.load(of_second, other, mask) + through, of_second, other, mask)
                code.store(code.load(of_w, here) + code.sum(product) * code.load(v, j), of_w, here)
            code.store(sum_first.get(), of_first, j * numbers + begin, mask)
        code.store(code.sum(toward_v.get()), of_v, j)
        for begin, mask in _parts(code, messages, numbers):
            mine, sum_first = code.load(first, j * numbers + begin, mask), code.variable(code.zeros())
            with code.loop(0, columns) as k:
                place, other = (j * columns + k) * numbers + begin, (i * columns + k) * numbers + begin
                u = code.load(x, place, mask) + mine + code.load(second, other, mask)
                _, slope, _ = tail.activate(code, u)
                through = slope * code.load(of_rest, (j * columns + k) * (numbers - messages) + begin - messages, mask)
                sum_first.add(through)
                code.store(through, x, place, mask)
                with code.when(several):
                    code.store(code.load(of_second, other, mask) + through, of_second, other, mask)
            code.store(sum_first.get(), of_first, j * numbers + begin, mask)


def bend(
    code: Code, start: int, stop: int, rows: int, columns: int, numbers: int, messages: int,
    threshold: float, tail_value: float, tail_slope: float, tail_rate: float, smooth: int,
    x: Tensor, q: Tensor, first: Tensor, second: Tensor, to_first: Tensor, to_second: Tensor,
    v: Tensor, w: Tensor, to_v: Tensor, to_w: Tensor, of_summed: Tensor, of_rest: Tensor,
    of_first: Tensor, of_second: Tensor, of_v: Tensor, of_w: Tensor, of_of_summed: Tensor, of_of_rest: Tensor,
) -> None:  # fmt: skip
    """Derivatives of `slope` in a direction: q of x, ``to_first`` of first, and so on. That by x goes into x, and `slope` into q.

    Adds as `slope` does.
    """
    several, tail = rows.above(1), Tail(threshold, tail_value, tail_slope, tail_rate, smooth)
    with code.loop(start, stop) as i, code.loop(0, rows) as row:
        j = i * rows + row
        toward_v = code.variable(code.zeros())

        def expanded(k, begin, mask, mine, to_mine):
            """Value, slope and bend of the activation, the direction, and where they stand."""
            place, other = (j * columns + k) * numbers + begin, (i * columns + k) * numbers + begin
            u = code.load(x, place, mask) + mine + code.load(second, other, mask)
            step = code.load(q, place, mask) + to_mine + code.load(to_second, other, mask)
            return *tail.activate(code, u), step, place, other

        for begin, mask in _parts(code, 0, messages):
            mine, to_mine = (code.load(array, j * numbers + begin, mask) for array in (first, to_first))
            given = code.load(of_summed, j * messages + begin, mask)
            sum_first, sum_given = code.variable(code.zeros()), code.variable(code.zeros())
            with code.loop(0, columns) as k:
                value, slope, bend, step, place, other = expanded(k, begin, mask, mine, to_mine)
                here = i * columns + k
                weight, to_weight = code.load(w, here), code.load(to_w, here)
                both, t = weight * code.load(v, j), code.load(to_v, j) * weight + code.load(v, j) * to_weight
                turned = step * slope
                product, turn = value * given, turned * given
                toward_v.add(turn * weight + product * to_weight)
                toward_w = code.sum(turn * code.load(v, j) + product * code.load(to_v, j))
                code.store(code.load(of_w, here) + toward_w, of_w, here)
                through = (bend * step * both + slope * t) * given
                sum_first.add(through)
                sum_given.add(both * turned + t * value)
                with code.when(several):
                    code.store(code.load(of_second, other, mask) + through, of_second, other, mask)
                code.store(through, x, place, mask)
                code.store(slope * both * given, q, place, mask)
            code.store(sum_first.get(), of_first, j * numbers + begin, mask)
            code.store(sum_given.get(), of_of_summed, j * messages + begin, mask)
        code.store(code.sum(toward_v.get()), of_v, j)
        for begin, mask in _parts(code, messages, numbers):
            mine, to_mine = (code.load(array, j * numbers + begin, mask) for array in (first, to_first))
            sum_first = code.variable(code.zeros())
            with code.loop(0, columns) as k:
                _, slope, bend, step, place, other = expanded(k, begin, mask, mine, to_mine)
                at = (j * columns + k) * (numbers - messages) + begin - messages
                given = code.load(of_rest, at, mask)
                through = bend * step * given
                sum_first.add(through)
                code.store(step * slope, of_of_rest, at, mask)
                with code.when(several):
                    code.store(code.load(of_second, other, mask) + through, of_second, other, mask)
                code.store(through, x, place, mask)
                code.store(slope * given, q, place, mask)
            code.store(sum_first.get(), of_first, j * numbers + begin, mask)
