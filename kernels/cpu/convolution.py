"""The Clebsch-Gordan convolution along edges and its derivatives, for equimol/ops/convolution.py: straight-line code from the couplings.

    S = sum_e sum_p sum_c w_epc sum_(m1, m2, m3) C_m1m2m3 x_s(e),a+m1,c y_e,b+m2 g_r(e),d+k m3,c

A path p states a, b, d, k (``features harmonics sums step``) and its entries (m1, m2, m3, C).
x [atoms, rows, channels], y [edges, harmonics], w [edges, paths, channels],
g [atoms, sums, channels]. S is linear in each of the four; here are its derivatives by each. Edges are visited atom by atom: ``first``
says where those of an atom begin in ``order``, which names the edges. Sums are owned by their atom.

Weights may also be those of a table, w_epc = sum_k b_ek T_r(e)+k,pc with k = 0..3, b [edges, 4], T [rows, paths, channels]: S is then
linear in b, and weights are made where they are needed.
"""

from collections.abc import Callable, Sequence

from torch import Tensor

from equimol.ops.convolution import PathRows
from equimol.ops.vector_code import Code, Indices, Value


class _Writer:
    """What the four functions share."""

    def __init__(self, paths: Sequence[PathRows], rows: int, harmonics: int, sums: int) -> None:
        self.paths, self.rows, self.harmonics, self.sums = paths, rows, harmonics, sums

    def chunks(self, code: Code, channels: Value):
        with code.loop(0, channels, code.lanes) as begin:
            yield begin, code.below(begin, channels)

    def zero(self, code: Code, array: Value, start: Value, numbers: Value) -> None:
        with code.loop(0, numbers, code.lanes) as begin:
            code.store(code.zeros(), array, start + begin, code.below(begin, numbers))

    def mixed(self, code: Code, y: Value, e: Value) -> list[dict[tuple[int, int], Value]]:
        """Of each path: sum_m2 C y by (m1, m3), numbers of an edge for all channels."""
        angular = [code.load(y, e * self.harmonics + m) for m in range(self.harmonics)]
        found = []
        for path in self.paths:
            sums: dict[tuple[int, int], Value] = {}
            for m1, m2, m3, coefficient in path.entries:
                term = angular[path.harmonics + m2] * coefficient
                sums[m1, m3] = sums[m1, m3] + term if (m1, m3) in sums else term
            found.append(sums)
        return found

    def contracted(
        self, sums: dict[tuple[int, int], Value], row: Callable[[int], Value], first: int, step: int, kept: int
    ) -> dict[int, Value]:
        """Sums over m1 of the rows first + step m1 times the numbers, by m3 (kept 1), or over m3 by m1 (kept 0)."""
        found: dict[int, Value] = {}
        for pair, number in sums.items():
            term = row(first + step * pair[1 - kept]) * number
            found[pair[kept]] = found[pair[kept]] + term if pair[kept] in found else term
        return found

    def loader(self, code: Code, array: Value, start: Value, channels: Value, begin: Value, mask: Value) -> Callable[[int], Value]:
        """Row after row of an array from a place on, each loaded once."""
        loaded: dict[int, Value] = {}

        def load(row: int) -> Value:
            if row not in loaded:
                loaded[row] = code.load(array, start + channels * row + begin, mask)
            return loaded[row]

        return load

    def given(self, code: Code, w: Value, channels: Value) -> Callable[[Value, Value, Value], Callable[[int], Value]]:
        """Weights of an edge, path by path, from an array of all."""
        return lambda e, begin, mask: self.loader(code, w, e * len(self.paths) * channels, channels, begin, mask)

    def tabulated(
        self, code: Code, rows: Value, b: Value, table: Value, channels: Value
    ) -> Callable[[Value, Value, Value], Callable[[int], Value]]:
        """The same from a table."""

        def of_edge(e: Value, begin: Value, mask: Value) -> Callable[[int], Value]:
            entries, blend, made = self.entries(code, e, rows, table, channels, begin, mask), self.blend(code, e, b), {}

            def weight(p: int) -> Value:
                if p not in made:
                    made[p] = sum((entries[k](p) * blend[k] for k in range(1, 4)), entries[0](p) * blend[0])
                return made[p]

            return weight

        return of_edge

    def entries(self, code: Code, e: Value, rows: Value, table: Value, channels: Value, begin: Value, mask: Value) -> list[Callable]:
        """Of the four rows of the table."""
        start = code.load(rows, e) * len(self.paths) * channels
        return [self.loader(code, table, start + channels * (k * len(self.paths)), channels, begin, mask) for k in range(4)]

    def blend(self, code: Code, e: Value, b: Value) -> list[Value]:
        return [code.load(b, e * 4 + k) for k in range(4)]

    def sum_up(
        self, code: Code, start: Value, stop: Value, channels: Value, first: Value, order: Value, senders: Value,
        x: Value, y: Value, weights: Callable, found: Value,
    ) -> None:  # fmt: skip
        """S by g, atom by atom."""
        with code.loop(start, stop) as atom:
            target = atom * self.sums * channels
            self.zero(code, found, target, channels * self.sums)
            with code.loop(code.load(first, atom), code.load(first, atom + 1)) as at:
                e = code.load(order, at)
                source = code.load(senders, e) * self.rows * channels
                mixed = self.mixed(code, y, e)
                for begin, mask in self.chunks(code, channels):
                    features = self.loader(code, x, source, channels, begin, mask)
                    weight = weights(e, begin, mask)
                    for p, (path, sums) in enumerate(zip(self.paths, mixed, strict=True)):
                        for m3, total in self.contracted(sums, features, path.features, 1, kept=1).items():
                            place = target + channels * (path.sums + m3 * path.step) + begin
                            code.store(code.load(found, place, mask) + weight(p) * total, found, place, mask)

    def send_back(
        self, code: Code, start: Value, stop: Value, channels: Value, first: Value, order: Value, receivers: Value,
        g: Value, y: Value, weights: Callable, found: Value,
    ) -> None:  # fmt: skip
        """S by x, atom by atom."""
        with code.loop(start, stop) as atom:
            target = atom * self.rows * channels
            self.zero(code, found, target, channels * self.rows)
            with code.loop(code.load(first, atom), code.load(first, atom + 1)) as at:
                e = code.load(order, at)
                source = code.load(receivers, e) * self.sums * channels
                mixed = self.mixed(code, y, e)
                for begin, mask in self.chunks(code, channels):
                    gradient = self.loader(code, g, source, channels, begin, mask)
                    weight = weights(e, begin, mask)
                    totals: dict[int, Value] = {}
                    for p, (path, sums) in enumerate(zip(self.paths, mixed, strict=True)):
                        for m1, total in self.contracted(sums, gradient, path.sums, path.step, kept=0).items():
                            term, row = weight(p) * total, path.features + m1
                            totals[row] = totals[row] + term if row in totals else term
                    for row, total in totals.items():
                        place = target + channels * row + begin
                        code.store(code.load(found, place, mask) + total, found, place, mask)


def by_sums(*description) -> Callable:
    """Derivative by g: the convolution itself."""
    self = _Writer(*description)

    def write(
        code: Code, start: int, stop: int, channels: int, first: Indices, order: Indices, senders: Indices,
        x: Tensor, y: Tensor, w: Tensor, found: Tensor,
    ) -> None:  # fmt: skip
        self.sum_up(code, start, stop, channels, first, order, senders, x, y, self.given(code, w, channels), found)

    return write


def by_features(*description) -> Callable:
    """Derivative by x; ``first`` and ``order`` are those of the edges that leave an atom."""
    self = _Writer(*description)

    def write(
        code: Code, start: int, stop: int, channels: int, first: Indices, order: Indices, receivers: Indices,
        g: Tensor, y: Tensor, w: Tensor, found: Tensor,
    ) -> None:  # fmt: skip
        self.send_back(code, start, stop, channels, first, order, receivers, g, y, self.given(code, w, channels), found)

    return write


def by_weights(*description) -> Callable:
    """Derivative by w, edge by edge."""
    self = _Writer(*description)

    def write(
        code: Code, start: int, stop: int, channels: int, senders: Indices, receivers: Indices,
        x: Tensor, y: Tensor, g: Tensor, found: Tensor,
    ) -> None:  # fmt: skip
        with code.loop(start, stop) as e:
            source, target = code.load(senders, e) * self.rows * channels, code.load(receivers, e) * self.sums * channels
            mixed = self.mixed(code, y, e)
            for begin, mask in self.chunks(code, channels):
                features = self.loader(code, x, source, channels, begin, mask)
                gradient = self.loader(code, g, target, channels, begin, mask)
                for p, (path, sums) in enumerate(zip(self.paths, mixed, strict=True)):
                    total = None
                    for m3, inner in self.contracted(sums, features, path.features, 1, kept=1).items():
                        term = inner * gradient(path.sums + m3 * path.step)
                        total = term if total is None else total + term
                    code.store(total, found, (e * len(self.paths) + p) * channels + begin, mask)

    return write


def by_harmonics(*description) -> Callable:
    """Derivative by y, edge by edge."""
    self = _Writer(*description)

    def write(
        code: Code, start: int, stop: int, channels: int, senders: Indices, receivers: Indices,
        x: Tensor, g: Tensor, w: Tensor, found: Tensor,
    ) -> None:  # fmt: skip
        with code.loop(start, stop) as e:
            source, target = code.load(senders, e) * self.rows * channels, code.load(receivers, e) * self.sums * channels
            totals = [code.variable(code.zeros()) for _ in range(self.harmonics)]
            for begin, mask in self.chunks(code, channels):
                features = self.loader(code, x, source, channels, begin, mask)
                gradient = self.loader(code, g, target, channels, begin, mask)
                weight = self.loader(code, w, e * len(self.paths) * channels, channels, begin, mask)
                for p, path in enumerate(self.paths):
                    weighted, products, sums = {}, {}, {}
                    for m1, m2, m3, coefficient in path.entries:
                        if m1 not in weighted:
                            weighted[m1] = weight(p) * features(path.features + m1)
                        if (m1, m3) not in products:
                            products[m1, m3] = weighted[m1] * gradient(path.sums + m3 * path.step)
                        term = products[m1, m3] * coefficient
                        sums[m2] = sums[m2] + term if m2 in sums else term
                    for m2, total in sums.items():
                        totals[path.harmonics + m2].add(total)
            for m, total in enumerate(totals):
                code.store(code.sum(total.get()), found, e * self.harmonics + m)

    return write


def tabulated_by_sums(*description) -> Callable:
    """`by_sums` with weights of a table."""
    self = _Writer(*description)

    def write(
        code: Code, start: int, stop: int, channels: int, first: Indices, order: Indices, senders: Indices,
        rows: Indices, table: Tensor, x: Tensor, y: Tensor, b: Tensor, found: Tensor,
    ) -> None:  # fmt: skip
        weights = self.tabulated(code, rows, b, table, channels)
        self.sum_up(code, start, stop, channels, first, order, senders, x, y, weights, found)

    return write


def tabulated_by_features(*description) -> Callable:
    """`by_features` with weights of a table."""
    self = _Writer(*description)

    def write(
        code: Code, start: int, stop: int, channels: int, first: Indices, order: Indices, receivers: Indices,
        rows: Indices, table: Tensor, g: Tensor, y: Tensor, b: Tensor, found: Tensor,
    ) -> None:  # fmt: skip
        weights = self.tabulated(code, rows, b, table, channels)
        self.send_back(code, start, stop, channels, first, order, receivers, g, y, weights, found)

    return write


def tabulated_by_edges(*description) -> Callable:
    """Derivatives by y and by b in one pass, edge by edge."""
    self = _Writer(*description)

    def write(
        code: Code, start: int, stop: int, channels: int, senders: Indices, receivers: Indices,
        rows: Indices, table: Tensor, x: Tensor, y: Tensor, b: Tensor, g: Tensor, by_y: Tensor, by_b: Tensor,
    ) -> None:  # fmt: skip
        with code.loop(start, stop) as e:
            source, target = code.load(senders, e) * self.rows * channels, code.load(receivers, e) * self.sums * channels
            angular = [code.load(y, e * self.harmonics + m) for m in range(self.harmonics)]
            of_y = [code.variable(code.zeros()) for _ in range(self.harmonics)]
            of_b = [code.variable(code.zeros()) for _ in range(4)]
            for begin, mask in self.chunks(code, channels):
                features = self.loader(code, x, source, channels, begin, mask)
                gradient = self.loader(code, g, target, channels, begin, mask)
                entries = self.entries(code, e, rows, table, channels, begin, mask)
                weight = self.tabulated(code, rows, b, table, channels)(e, begin, mask)
                for p, path in enumerate(self.paths):
                    products: dict[tuple[int, int], Value] = {}
                    sums: dict[int, Value] = {}  # sum_(m1, m3) C x g, by m2
                    for m1, m2, m3, coefficient in path.entries:
                        if (m1, m3) not in products:
                            products[m1, m3] = features(path.features + m1) * gradient(path.sums + m3 * path.step)
                        term = products[m1, m3] * coefficient
                        sums[m2] = sums[m2] + term if m2 in sums else term
                    by_weight = None
                    for m2, total in sums.items():
                        of_y[path.harmonics + m2].add(weight(p) * total)
                        term = total * angular[path.harmonics + m2]
                        by_weight = term if by_weight is None else by_weight + term
                    for k in range(4):
                        of_b[k].add(entries[k](p) * by_weight)
            for totals, found in ((of_y, by_y), (of_b, by_b)):
                for m, total in enumerate(totals):
                    code.store(code.sum(total.get()), found, e * len(totals) + m)

    return write
