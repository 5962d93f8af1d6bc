"""Sums over neighbours of signals times a filter per edge, and their derivatives, for equimol/ops/filters.py.

    S = sum_e sum_(i, j, k, s) s sum_p sum_r sum_c f_s(e),i,p,c g_e,j,p,r,c h_r(e),k,p,r,c,    g_e,j,p,r,c = sum_l z_e,j,p,l w_e,l,r,c

at points p. f [atoms, signals1, points, channels], z [edges, signals2, points, degrees], w [edges, degrees, rank, channels],
h [atoms, signals3, points, rank, channels]. S is linear in each of the four; here are its derivatives by each. Filters are made again for
each edge, in registers. Edges are visited atom by atom: ``first`` says where those of an atom begin in ``order``, which names the edges.
Sums are owned by their atom.
"""

from collections.abc import Callable, Iterator

from torch import Tensor

from equimol.ops.signals import Term
from equimol.ops.vector_code import Code, Indices, Value


class _Writer:
    """What the four functions share."""

    def __init__(self, terms: tuple[Term, ...], signals: tuple[int, int, int], points: int, degrees: int, rank: int) -> None:
        self.terms, self.signals, self.points, self.degrees, self.rank = terms, signals, points, degrees, rank
        self.size_f, self.size_h = signals[0] * points, signals[2] * points * rank  # rows of channels of an atom

    def chunks(self, code: Code, channels: Value) -> Iterator[tuple[Value, Value]]:
        with code.loop(0, channels, code.lanes) as begin:
            yield begin, code.below(begin, channels)

    def f(self, code: Code, array: Value, start: Value, point: Value, channels: Value, mask: Value) -> list[Value]:
        """Of each signal at a point of an atom whose rows begin at ``start``."""
        return [code.load(array, start + (point + i * self.points) * channels, mask) for i in range(self.signals[0])]

    def h(self, code: Code, array: Value, start: Value, point: Value, channels: Value, mask: Value) -> list[list[Value]]:
        """Of each signal, by rank."""
        rows = [[(point + k * self.points) * self.rank + r for r in range(self.rank)] for k in range(self.signals[2])]
        return [[code.load(array, start + row * channels, mask) for row in of_signal] for of_signal in rows]

    def w(self, code: Code, array: Value, edge: Value, channels: Value, begin: Value, mask: Value) -> list[list[Value]]:
        """Of each degree, by rank."""
        first = edge * (self.degrees * self.rank)
        return [
            [code.load(array, (first + (l * self.rank + r)) * channels + begin, mask) for r in range(self.rank)]
            for l in range(self.degrees)
        ]

    def z(self, edge: Value, signal: int, point: Value, degree: int) -> Value:
        """Where it stands."""
        return (edge * (self.signals[1] * self.points) + (point + signal * self.points)) * self.degrees + degree

    def filters(self, code: Code, array: Value, edge: Value, point: Value, weights: list[list[Value]]) -> list[list[Value]]:
        """g of each signal, by rank."""
        found = []
        for j in range(self.signals[1]):
            zonal = [code.load(array, self.z(edge, j, point, l)) for l in range(self.degrees)]
            found.append([_total([z * w[r] for z, w in zip(zonal, weights, strict=True)]) for r in range(self.rank)])
        return found

    def products(self, role: int, one: list, other: list) -> list[list[Value]]:
        """Of each signal of a role, by rank: terms of the two others; f, which has no rank, is the same for all."""
        first, second = (n for n in range(3) if n != role)
        sums: dict[tuple[int, int], list[Value]] = {}
        for *term, sign in self.terms:
            for r in range(self.rank):
                factors = [x if n == 0 else x[r] for n, x in ((first, one[term[first]]), (second, other[term[second]]))]
                product = factors[0] * factors[1]
                sums.setdefault((term[role], r), []).append(product if sign > 0 else -product)
        return [[_total(sums[signal, r]) for r in range(self.rank)] for signal in range(self.signals[role])]


def by_sums(*description) -> Callable:
    """Derivative by h: the sum itself."""
    self = _Writer(*description)

    def write(
        code: Code, start: int, stop: int, channels: int, first: Indices, order: Indices, senders: Indices,
        f: Tensor, z: Tensor, w: Tensor, found: Tensor,
    ) -> None:  # fmt: skip
        sums, everywhere = code.local(self.size_h), code.everywhere()
        with code.loop(start, stop) as atom:
            for begin, mask in self.chunks(code, channels):
                _zero(code, sums, self.size_h)
                with code.loop(code.load(first, atom), code.load(first, atom + 1)) as at:
                    e = code.load(order, at)
                    source, weights = code.load(senders, e) * self.size_f * channels + begin, self.w(code, w, e, channels, begin, mask)
                    with code.loop(0, code.whole(self.points)) as point:
                        samples = self.f(code, f, source, point, channels, mask)
                        for k, of_signal in enumerate(self.products(2, samples, self.filters(code, z, e, point, weights))):
                            for r, value in enumerate(of_signal):
                                place = ((point + k * self.points) * self.rank + r) * code.lanes
                                code.store(code.load(sums, place, everywhere) + value, sums, place, everywhere)
                _copy(code, sums, self.size_h, found, atom, channels, begin, mask)

    return write


def by_samples(*description) -> Callable:
    """Derivative by f; ``first`` and ``order`` are those of the edges that leave an atom."""
    self = _Writer(*description)

    def write(
        code: Code, start: int, stop: int, channels: int, first: Indices, order: Indices, receivers: Indices,
        h: Tensor, z: Tensor, w: Tensor, found: Tensor,
    ) -> None:  # fmt: skip
        sums, everywhere = code.local(self.size_f), code.everywhere()
        with code.loop(start, stop) as atom:
            for begin, mask in self.chunks(code, channels):
                _zero(code, sums, self.size_f)
                with code.loop(code.load(first, atom), code.load(first, atom + 1)) as at:
                    e = code.load(order, at)
                    target, weights = code.load(receivers, e) * self.size_h * channels + begin, self.w(code, w, e, channels, begin, mask)
                    with code.loop(0, code.whole(self.points)) as point:
                        gradients = self.h(code, h, target, point, channels, mask)
                        for i, of_signal in enumerate(self.products(0, self.filters(code, z, e, point, weights), gradients)):
                            place = (point + i * self.points) * code.lanes
                            code.store(code.load(sums, place, everywhere) + _total(of_signal), sums, place, everywhere)
                _copy(code, sums, self.size_f, found, atom, channels, begin, mask)

    return write


def by_weights(*description) -> Callable:
    """Derivative by w, edge by edge."""
    self = _Writer(*description)

    def write(
        code: Code, start: int, stop: int, channels: int, senders: Indices, receivers: Indices,
        f: Tensor, z: Tensor, h: Tensor, found: Tensor,
    ) -> None:  # fmt: skip
        sums = [[code.variable(code.zeros()) for _ in range(self.rank)] for _ in range(self.degrees)]
        with code.loop(start, stop) as e:
            for begin, mask in self.chunks(code, channels):
                source = code.load(senders, e) * self.size_f * channels + begin
                target = code.load(receivers, e) * self.size_h * channels + begin
                for total in (total for of_degree in sums for total in of_degree):
                    total.set(code.zeros())
                with code.loop(0, code.whole(self.points)) as point:
                    samples, gradients = self.f(code, f, source, point, channels, mask), self.h(code, h, target, point, channels, mask)
                    for j, of_signal in enumerate(self.products(1, samples, gradients)):
                        for l in range(self.degrees):
                            zonal = code.load(z, self.z(e, j, point, l))
                            for total, value in zip(sums[l], of_signal, strict=True):
                                total.add(zonal * value)
                for l in range(self.degrees):
                    for r in range(self.rank):
                        place = (e * (self.degrees * self.rank) + (l * self.rank + r)) * channels + begin
                        code.store(sums[l][r].get(), found, place, mask)

    return write


def by_zonal(*description) -> Callable:
    """Derivative by z, edge by edge."""
    self = _Writer(*description)

    def write(
        code: Code, start: int, stop: int, channels: int, senders: Indices, receivers: Indices,
        f: Tensor, w: Tensor, h: Tensor, found: Tensor,
    ) -> None:  # fmt: skip
        sums = [[code.variable(code.zeros()) for _ in range(self.degrees)] for _ in range(self.signals[1])]
        with code.loop(start, stop) as e, code.loop(0, code.whole(self.points)) as point:
            for total in (total for of_signal in sums for total in of_signal):
                total.set(code.zeros())
            for begin, mask in self.chunks(code, channels):
                source = code.load(senders, e) * self.size_f * channels + begin
                target = code.load(receivers, e) * self.size_h * channels + begin
                samples, gradients = self.f(code, f, source, point, channels, mask), self.h(code, h, target, point, channels, mask)
                weights = self.w(code, w, e, channels, begin, mask)
                for of_signal, totals in zip(self.products(1, samples, gradients), sums, strict=True):
                    for of_degree, total in zip(weights, totals, strict=True):
                        total.add(_total([value * weight for value, weight in zip(of_signal, of_degree, strict=True)]))
            for j, totals in enumerate(sums):
                for l, total in enumerate(totals):
                    code.store(code.sum(total.get()), found, self.z(e, j, point, l))

    return write


def _total(values: list[Value]) -> Value:
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total


def _zero(code: Code, array: Value, vectors: int) -> None:
    with code.loop(0, code.whole(vectors)) as n:
        code.store(code.zeros(), array, n * code.lanes, code.everywhere())


def _copy(code: Code, array: Value, rows: int, found: Value, atom: Value, channels: Value, begin: Value, mask: Value) -> None:
    """Rows of an atom, from an array of its own to their place."""
    with code.loop(0, code.whole(rows)) as n:
        value = code.load(array, n * code.lanes, code.everywhere())
        code.store(value, found, (atom * rows + n) * channels + begin, mask)
