"""Sums of features mixed in the frames of edges, and their derivatives, for equimol/ops/frames.py: straight-line code from the mixing.

    S = sum_e sum over entries of sign (sum_k factor_k w_e,k,c) A_e,source,c B_e,target,c
    A_e = T(b_e) Z(a_e) x_s(e),    B_e = T(b_e) Z(a_e) g_r(e)

summed over channels c. x [atoms, rows, channels], w [edges, weights, channels], g [atoms, sums, channels]; T and Z are linear in ``tilts``
and ``turns`` [edges, 2 lmax + 1], sines lmax..1 and cosines 0..lmax of multiples of b and a. S is linear in each of these, those of A
and of B being different ones. Here are its derivatives by what belongs to g, and by w; those by what belongs to x are the same with
roles exchanged.

The elements of T are made for each edge, once for all channels, from ``table`` [2 lmax + 1, elements]; components of A and B stay in the
nearest cache. Edges are visited atom by atom: ``first`` says where those of an atom begin in ``order``. Sums are owned by their atom.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate

from torch import Tensor

from equimol.ops.frames import PADDING, Entry, Rows, tilt_places
from equimol.ops.vector_code import Code, Indices, Value


class _Side:
    """Blocks that are turned into the frame or out of it, and where the components that occur stand in an array of vectors."""

    def __init__(self, blocks: Sequence[Rows], orders: Sequence[tuple[int, int]]) -> None:
        self.blocks = blocks
        self.most = [max((abs(m) for n, m in orders if n == block), default=-1) for block in range(len(blocks))]
        ends = list(accumulate((2 * most + 1 if most >= 0 else 0 for most in self.most), initial=0))
        self.first, self.vectors, self.occurring = ends[:-1], ends[-1], set(orders)

    def place(self, block: int, order: int) -> int:
        return self.first[block] + self.most[block] + order


class _Writer:
    """What the three functions share."""

    def __init__(
        self,
        lmax: int,
        orders: int,
        sources: Sequence[Rows],
        targets: Sequence[Rows],
        combinations: Sequence[Sequence[tuple[int, float]]],
        entries: Sequence[Entry],
        sizes: Sequence[int],
    ) -> None:
        self.lmax, self.angles, self.combinations = lmax, 2 * lmax + 1, combinations
        self.rows, self.sums, self.weights = sizes
        self.halves = [min(l, orders) for l in range(lmax + 1)]
        self.places, self.elements = tilt_places(lmax, orders)
        self.padded = -(-self.elements // PADDING) * PADDING
        self.source = _Side(sources, [(e.source, e.source_order) for e in entries])
        self.target = _Side(targets, [(e.target, e.target_order) for e in entries])
        # Components of one |m| at a time: few enough for registers.
        self.by_order: dict[int, dict[int, list[Entry]]] = {}
        for entry in entries:
            self.by_order.setdefault(abs(entry.source_order), {}).setdefault(entry.combination, []).append(entry)

    def chunks(self, code: Code, channels: Value) -> Iterator[tuple[Value, Value]]:
        with code.loop(0, channels, code.lanes) as begin:
            yield begin, code.below(begin, channels)

    def tilt(self, code: Code, tilts: Value, e: Value, table: Value, made: Value) -> None:
        """The elements of T of an edge."""
        factors = [code.splat(code.load(tilts, e * self.angles + k)) for k in range(self.angles)]
        with code.loop(0, code.whole(self.padded), code.lanes) as n:
            code.store(
                _total(code.load(table, n + k * self.padded, code.everywhere()) * f for k, f in enumerate(factors)),
                made,
                n,
                code.everywhere(),
            )

    def turn(self, code: Code, turns: Value, e: Value) -> list[tuple[Value, Value | None]]:
        """Cosine and sine of each multiple."""
        middle = e * self.angles + self.lmax
        return [(code.load(turns, middle + m), code.load(turns, middle - m) if m else None) for m in range(self.lmax + 1)]

    def turned(self, code: Code, turn: list, block: Rows, array: Value, start: Value, channels: Value, mask: Value) -> dict[int, Value]:
        """Z times the components of a block, by order."""
        l, first, step = block
        x = {c: code.load(array, start + channels * (first + (c + l) * step), mask) for c in range(-l, l + 1)}
        found = {0: x[0] * turn[0][0]}
        for m in range(1, l + 1):
            cosine, sine = turn[m]
            found[m], found[-m] = x[m] * cosine + x[-m] * sine, x[-m] * cosine - x[m] * sine
        return found

    def halves_of(self, side: _Side, block: int) -> list[tuple[int, int, int, int, int]]:
        """Of rows below 0 and of others: the first row, how many, the first column, how many, and where their elements begin."""
        l, most = side.blocks[block].l, side.most[block]
        below, above = self.places[l]
        return [(-most, most, -l, l, below + (self.halves[l] - most) * l), (0, most + 1, 0, l + 1, above)]

    def align(
        self, code: Code, side: _Side, made: Value, turn: list, array: Value, start: Value, channels: Value, mask: Value, found: Value
    ) -> None:
        """T Z times the components of all blocks that occur."""
        for block, rows in enumerate(side.blocks):
            if side.most[block] < 0:
                continue
            x = self.turned(code, turn, rows, array, start, channels, mask)
            for first, count, column, columns, at in self.halves_of(side, block):
                if not count or not columns:
                    continue
                with code.loop(0, code.whole(count)) as row:
                    place = row * columns + at
                    value = _total(x[column + c] * code.load(made, place + c) for c in range(columns))
                    code.store(value, found, (row + side.place(block, first)) * code.lanes, code.everywhere())

    def straighten(self, code: Code, block: int, made: Value, mixed: Value, found: Value) -> None:
        """T^T times the components of a target, in their order."""
        l = self.target.blocks[block].l
        for first, count, column, columns, at in self.halves_of(self.target, block):
            rows = [r for r in range(count) if (block, first + r) in self.target.occurring]
            z = {r: self.component(code, mixed, self.target.place(block, first + r)) for r in rows}
            if not columns:
                continue
            with code.loop(0, code.whole(columns)) as c:
                value = _total((z[r] * code.load(made, c + (at + r * columns)) for r in rows), code.zeros())
                code.store(value, found, (c + (column + l)) * code.lanes, code.everywhere())

    def component(self, code: Code, array: Value, place: int) -> Value:
        return code.load(array, code.whole(place * code.lanes), code.everywhere())

    def weight(self, code: Code, w: Value, e: Value, channels: Value, begin: Value, mask: Value) -> Callable[[int], Value]:
        """Combinations of the weights of an edge."""
        loaded: dict[int, Value] = {}

        def load(k: int) -> Value:
            if k not in loaded:
                loaded[k] = code.load(w, (e * self.weights + k) * channels + begin, mask)
            return loaded[k]

        return lambda combination: _total(load(k) * factor for k, factor in self.combinations[combination])

    def mix(self, code: Code, weight: Callable[[int], Value], aligned: Value, mixed: Value) -> None:
        """What becomes of the components of the sources, at those of the targets."""
        for of_order in self.by_order.values():
            x: dict[int, Value] = {}
            z: dict[int, Value] = {}
            for combination, members in of_order.items():
                factor = weight(combination)
                for _, source, source_order, target, target_order, sign in members:
                    here, there = self.source.place(source, source_order), self.target.place(target, target_order)
                    if here not in x:
                        x[here] = self.component(code, aligned, here)
                    term = factor * x[here]
                    if there in z:
                        z[there] = z[there] + term if sign > 0 else z[there] - term
                    else:
                        z[there] = term if sign > 0 else -term
            for place, value in z.items():
                code.store(value, mixed, code.whole(place * code.lanes), code.everywhere())


def _total(terms, nothing: Value | None = None) -> Value:
    total = None
    for term in terms:
        total = term if total is None else total + term
    return nothing if total is None else total


def by_sums(*description) -> Callable:
    """Derivative by g: the sum itself."""
    self = _Writer(*description)

    def write(
        code: Code, start: int, stop: int, channels: int, first: Indices, order: Indices, senders: Indices, table: Tensor,
        x: Tensor, tilts: Tensor, turns: Tensor, w: Tensor, tilts_out: Tensor, turns_out: Tensor, found: Tensor,
    ) -> None:  # fmt: skip
        into, out = (code.local(self.padded // code.lanes) for _ in range(2))
        aligned, mixed, straight = (code.local(n) for n in (self.source.vectors, self.target.vectors, self.angles))
        with code.loop(start, stop) as atom:
            sums, numbers = atom * self.sums * channels, channels * self.sums
            with code.loop(0, numbers, code.lanes) as n:
                code.store(code.zeros(), found, sums + n, code.below(n, numbers))
            with code.loop(code.load(first, atom), code.load(first, atom + 1)) as at:
                e = code.load(order, at)
                source = code.load(senders, e) * self.rows * channels
                self.tilt(code, tilts, e, table, into)
                self.tilt(code, tilts_out, e, table, out)
                turn, turn_out = self.turn(code, turns, e), self.turn(code, turns_out, e)
                for begin, mask in self.chunks(code, channels):
                    self.align(code, self.source, into, turn, x, source + begin, channels, mask, aligned)
                    self.mix(code, self.weight(code, w, e, channels, begin, mask), aligned, mixed)
                    for block, (l, first_row, step) in enumerate(self.target.blocks):
                        if self.target.most[block] < 0:
                            continue
                        self.straighten(code, block, out, mixed, straight)
                        y = {c: self.component(code, straight, c + l) for c in range(-l, l + 1)}
                        for c in range(-l, l + 1):
                            cosine, sine = turn_out[abs(c)]
                            value = y[c] * cosine
                            if c:
                                value = value - y[-c] * sine if c > 0 else value + y[-c] * sine
                            place = sums + channels * (first_row + (c + l) * step) + begin
                            code.store(code.load(found, place, mask) + value, found, place, mask)

    return write


def by_angles(*description) -> Callable:
    """Derivatives by the tilts and turns that belong to g, edge by edge."""
    self = _Writer(*description)

    def write(
        code: Code, start: int, stop: int, channels: int, senders: Indices, receivers: Indices, table: Tensor,
        x: Tensor, tilts: Tensor, turns: Tensor, w: Tensor, tilts_out: Tensor, turns_out: Tensor, g: Tensor,
        of_tilts: Tensor, of_turns: Tensor,
    ) -> None:  # fmt: skip
        into, out, totals = (code.local(self.padded // code.lanes) for _ in range(3))
        aligned, mixed, straight = (code.local(n) for n in (self.source.vectors, self.target.vectors, self.angles))
        products = code.local(self.elements)  # of components of z and of Z g, for each element of T
        of_turn = [code.variable(code.zeros()) for _ in range(self.angles)]
        everywhere = code.everywhere()
        with code.loop(0, code.whole(self.padded), code.lanes) as n:
            code.store(code.zeros(), totals, n, everywhere)
        with code.loop(0, code.whole(self.target.vectors)) as n:  # some components are never made
            code.store(code.zeros(), mixed, n * code.lanes, everywhere)
        with code.loop(start, stop) as e:
            source, target = code.load(senders, e) * self.rows * channels, code.load(receivers, e) * self.sums * channels
            self.tilt(code, tilts, e, table, into)
            self.tilt(code, tilts_out, e, table, out)
            turn, turn_out = self.turn(code, turns, e), self.turn(code, turns_out, e)
            for total in of_turn:
                total.set(code.zeros())
            with code.loop(0, code.whole(self.elements)) as n:
                code.store(code.zeros(), products, n * code.lanes, everywhere)
            for begin, mask in self.chunks(code, channels):
                self.align(code, self.source, into, turn, x, source + begin, channels, mask, aligned)
                self.mix(code, self.weight(code, w, e, channels, begin, mask), aligned, mixed)
                for block, rows in enumerate(self.target.blocks):
                    if self.target.most[block] < 0:
                        continue
                    l, first_row, step = rows
                    turned = self.turned(code, turn_out, rows, g, target + begin, channels, mask)
                    for first, count, column, columns, at in self.halves_of(self.target, block):
                        if not count or not columns:
                            continue
                        with code.loop(0, code.whole(count)) as row:
                            z = code.load(mixed, (row + self.target.place(block, first)) * code.lanes, everywhere)
                            for c in range(columns):
                                place = (row * columns + (at + c)) * code.lanes
                                code.store(code.load(products, place, everywhere) + z * turned[column + c], products, place, everywhere)
                    self.straighten(code, block, out, mixed, straight)
                    y = {c: self.component(code, straight, c + l) for c in range(-l, l + 1)}
                    raw = {c: code.load(g, target + channels * (first_row + (c + l) * step) + begin, mask) for c in y}
                    of_turn[self.lmax].add(y[0] * raw[0])
                    for m in range(1, l + 1):
                        of_turn[self.lmax + m].add(y[m] * raw[m] + y[-m] * raw[-m])
                        of_turn[self.lmax - m].add(y[m] * raw[-m] - y[-m] * raw[m])
            with code.loop(0, code.whole(self.elements)) as n:
                code.store(code.sum(code.load(products, n * code.lanes, everywhere)), totals, n)
            for k in range(self.angles):
                by_angle = code.variable(code.zeros())
                with code.loop(0, code.whole(self.padded), code.lanes) as n:
                    by_angle.add(code.load(totals, n, everywhere) * code.load(table, n + k * self.padded, everywhere))
                code.store(code.sum(by_angle.get()), of_tilts, e * self.angles + k)
                code.store(code.sum(of_turn[k].get()), of_turns, e * self.angles + k)

    return write


def by_weights(*description) -> Callable:
    """Derivative by w, edge by edge."""
    self = _Writer(*description)

    def write(
        code: Code, start: int, stop: int, channels: int, senders: Indices, receivers: Indices, table: Tensor,
        x: Tensor, tilts: Tensor, turns: Tensor, tilts_out: Tensor, turns_out: Tensor, g: Tensor, found: Tensor,
    ) -> None:  # fmt: skip
        into, out = (code.local(self.padded // code.lanes) for _ in range(2))
        aligned, gradient = (code.local(side.vectors) for side in (self.source, self.target))
        with code.loop(start, stop) as e:
            source, target = code.load(senders, e) * self.rows * channels, code.load(receivers, e) * self.sums * channels
            self.tilt(code, tilts, e, table, into)
            self.tilt(code, tilts_out, e, table, out)
            turn, turn_out = self.turn(code, turns, e), self.turn(code, turns_out, e)
            for begin, mask in self.chunks(code, channels):
                self.align(code, self.source, into, turn, x, source + begin, channels, mask, aligned)
                self.align(code, self.target, out, turn_out, g, target + begin, channels, mask, gradient)
                sums: dict[int, Value] = {}
                for of_order in self.by_order.values():
                    loaded: dict[tuple[int, int], Value] = {}

                    def component(array: Value, number: int, place: int, loaded: dict = loaded) -> Value:
                        if (number, place) not in loaded:
                            loaded[number, place] = self.component(code, array, place)
                        return loaded[number, place]

                    for combination, members in of_order.items():
                        total = None
                        for _, s, s_order, t, t_order, sign in members:
                            here, there = self.source.place(s, s_order), self.target.place(t, t_order)
                            term = component(aligned, 0, here) * component(gradient, 1, there)
                            term = term if sign > 0 else -term
                            total = term if total is None else total + term
                        for k, factor in self.combinations[combination]:
                            sums[k] = sums[k] + total * factor if k in sums else total * factor
                for k in range(self.weights):
                    code.store(sums.get(k, code.zeros()), found, (e * self.weights + k) * channels + begin, mask)

    return write
