"""The Clebsch-Gordan convolution along edges and its derivatives, for equimol/ops/convolution.py: straight-line code from the couplings.

    S = sum_e sum_p sum_c w_epc sum_(m1, m2, m3) C_m1m2m3 x_s(e),a+m1,c y_e,b+m2 g_r(e),d+k m3,c

A path p states a, b, d, k (``features harmonics sums step``) and its entries (m1, m2, m3, C).
x [atoms, rows, channels], y [edges, harmonics], w [edges, paths, channels],
g [atoms, sums, channels]. S is linear in each of the four; here are its derivatives by each. With ``directions``, some of "xyw", they are
summed over S with u_x in the place of x, u_y in the place of y, u_w in the place of w: what forces' derivatives are made of.

Weights may also be those of a table, w_epc = sum_k b_ek T_r(e)+k,pc with k = 0..3, b [edges, 4], T [rows, paths, channels]: S is then
linear in b, and weights are made where they are needed.

Edges are taken in blocks. What harmonics and coefficients make of an edge, numbers for all channels, is written down once for the block;
then a vector of channels after the other visits the edges of the block, so that the rows of their atom stay in the nearest cache.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

from equimol.ops.convolution import PathRows
from equimol.ops.vector_code import Code, Indices, Value

LONGEST_BLOCK = 32  # edges
NUMBERS = 4096  # of a block, in the nearest cache
ROWS = 16  # of sums that are kept in registers while a block is summed
Weights = Callable[[Value, Value, Value], Callable[[int], Value]]  # of an edge, begin and mask of a vector of channels: those of a path


class _Writer:
    """What all functions share."""

    def __init__(self, paths: Sequence[PathRows], rows: int, harmonics: int, sums: int, directions: str = "") -> None:
        self.paths, self.rows, self.harmonics, self.sums = paths, rows, harmonics, sums
        #: what stands in the places of x, y and w, in each term of the sum over directions
        self.terms = [tuple("u" + a if a == moved else a for a in "xyw") for moved in directions] or [("x", "y", "w")]
        places = [(p, m1, m3) for p, path in enumerate(paths) for m1, m3 in dict.fromkeys((m1, m3) for m1, _, m3, _ in path.entries)]
        self.number = {place: n for n, place in enumerate(places)}  # of an edge: sum_m2 C y, by path, m1 and m3
        self.block = max(1, min(LONGEST_BLOCK, NUMBERS // len(places)))

    def chunks(self, code: Code, channels: Value):
        with code.loop(0, channels, code.lanes) as begin:
            yield begin, code.below(begin, channels)

    def zero(self, code: Code, array: Value, start: Value, numbers: Value) -> None:
        with code.loop(0, numbers, code.lanes) as begin:
            code.store(code.zeros(), array, start + begin, code.below(begin, numbers))

    @contextmanager
    def blocks(
        self, code: Code, start: Value, stop: Value, order: Value | None, harmonics: dict[str, Value]
    ) -> Iterator[tuple[Value, Callable[[Value], Value], Callable[[Value, str], Callable[[int, int, int], Value]]]]:
        """How many edges there are, which is the n-th, and its numbers, those of y or u_y."""
        local = {name: code.local(-(-self.block * len(self.number) // code.lanes)) for name in harmonics}
        with code.loop(start, stop, self.block) as at:
            count = code.least(stop - at, code.whole(self.block))

            def edge(n: Value) -> Value:
                return code.load(order, at + n) if order is not None else at + n

            with code.loop(0, count) as n:
                for name, y in harmonics.items():
                    angular = [code.load(y, edge(n) * self.harmonics + m) for m in range(self.harmonics)]
                    for p, path in enumerate(self.paths):
                        sums: dict[tuple[int, int], Value] = {}
                        for m1, m2, m3, coefficient in path.entries:
                            term = angular[path.harmonics + m2] * coefficient
                            sums[m1, m3] = sums[m1, m3] + term if (m1, m3) in sums else term
                        for (m1, m3), total in sums.items():
                            code.store(total, local[name], n * len(self.number) + self.number[p, m1, m3])

            def numbers(n: Value, name: str) -> Callable[[int, int, int], Value]:
                return lambda p, m1, m3: code.load(local[name], n * len(self.number) + self.number[p, m1, m3])

            yield count, edge, numbers

    def contracted(
        self, p: int, numbers: Callable[[int, int, int], Value], row: Callable[[int], Value], kept: int, found: dict[int, Value]
    ) -> None:
        """Adds sums over m1 of the rows of features times numbers, by m3 (kept 1), or over m3 of the rows of sums by m1 (kept 0)."""
        path = self.paths[p]
        for m1, m3 in dict.fromkeys((m1, m3) for m1, _, m3, _ in path.entries):
            term = row(path.features + m1 if kept else path.sums + m3 * path.step) * numbers(p, m1, m3)
            m = m3 if kept else m1
            found[m] = found[m] + term if m in found else term

    def loader(self, code: Code, array: Value, start: Value, channels: Value, begin: Value, mask: Value) -> Callable[[int], Value]:
        """Row after row of an array from a place on, each loaded once."""
        loaded: dict[int, Value] = {}

        def load(row: int) -> Value:
            if row not in loaded:
                loaded[row] = code.load(array, start + channels * row + begin, mask)
            return loaded[row]

        return load

    def given(self, code: Code, w: Value, channels: Value) -> Weights:
        """Weights of an edge, path by path, from an array of all."""
        return lambda e, begin, mask: self.loader(code, w, e * len(self.paths) * channels, channels, begin, mask)

    def tabulated(self, code: Code, rows: Value, b: Value, table: Value, channels: Value) -> Weights:
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

    def grouped(self) -> list[list[int]]:
        """Paths whose rows of sums fit into the registers together."""
        groups: list[list[int]] = []
        size = ROWS + 1
        for p, path in enumerate(self.paths):
            rows = 1 + max(m3 for _, _, m3, _ in path.entries)
            if size + rows > ROWS:
                groups.append([])
                size = 0
            groups[-1].append(p)
            size += rows
        return groups

    def sum_up(
        self, code: Code, start: Value, stop: Value, channels: Value, first: Value, order: Value, senders: Value,
        features: dict[str, Value], harmonics: dict[str, Value], weights: dict[str, Weights], found: Value,
    ) -> None:  # fmt: skip
        """S by g, atom by atom."""
        with code.loop(start, stop) as atom:
            target = atom * self.sums * channels
            self.zero(code, found, target, channels * self.sums)
            edges = code.load(first, atom), code.load(first, atom + 1)
            with self.blocks(code, *edges, order, harmonics) as (count, edge, numbers):
                for begin, mask in self.chunks(code, channels):
                    for group in self.grouped():
                        places = [self.paths[p].sums + m3 * self.paths[p].step for p in group for _, _, m3, _ in self.paths[p].entries]
                        at = {row: target + channels * row + begin for row in dict.fromkeys(places)}
                        kept = {row: code.variable(code.load(found, place, mask)) for row, place in at.items()}
                        with code.loop(0, count) as n:
                            e = edge(n)
                            source = code.load(senders, e) * self.rows * channels
                            x = {name: self.loader(code, array, source, channels, begin, mask) for name, array in features.items()}
                            w = {name: of_edge(e, begin, mask) for name, of_edge in weights.items()}
                            for p in group:
                                for name in w:
                                    totals: dict[int, Value] = {}
                                    for of_x, of_y, of_w in self.terms:
                                        if of_w == name:
                                            self.contracted(p, numbers(n, of_y), x[of_x], 1, totals)
                                    for m3, total in totals.items():
                                        kept[self.paths[p].sums + m3 * self.paths[p].step].add(w[name](p) * total)
                        for row, place in at.items():
                            code.store(kept[row].get(), found, place, mask)

    def send_back(
        self, code: Code, start: Value, stop: Value, channels: Value, first: Value, order: Value, senders: Value, receivers: Value,
        g: Value, harmonics: dict[str, Value], weights: dict[str, Weights], found: Value,
    ) -> None:  # fmt: skip
        """S by x, added to what is there: a range of senders after the other, the edges of each as they come."""
        with code.loop(start, stop) as part:
            edges = code.load(first, part), code.load(first, part + 1)
            with self.blocks(code, *edges, order, harmonics) as (count, edge, numbers):
                for begin, mask in self.chunks(code, channels):
                    with code.loop(0, count) as n:
                        e = edge(n)
                        target, source = (
                            code.load(index, e) * rows * channels for index, rows in ((senders, self.rows), (receivers, self.sums))
                        )
                        gradient = self.loader(code, g, source, channels, begin, mask)
                        w = {name: of_edge(e, begin, mask) for name, of_edge in weights.items()}
                        sums: dict[int, Value] = {}
                        for p, path in enumerate(self.paths):
                            for of_y, of_w in dict.fromkeys((of_y, of_w) for of_x, of_y, of_w in self.terms if of_x == "x"):
                                totals: dict[int, Value] = {}
                                self.contracted(p, numbers(n, of_y), gradient, 0, totals)
                                for m1, total in totals.items():
                                    term, row = w[of_w](p) * total, path.features + m1
                                    sums[row] = sums[row] + term if row in sums else term
                        for row, total in sums.items():
                            place = target + channels * row + begin
                            code.store(code.load(found, place, mask) + total, found, place, mask)

    @contextmanager
    def summed(
        self, code: Code, start: Value, stop: Value, channels: Value, results: list[tuple[Value, int]]
    ) -> Iterator[tuple[Value, Value, Value, Callable[[int, Value], None]]]:
        """Each edge and vector of channels, and how something is added to one of the numbers of the edge, sums over channels.

        ``results`` are arrays [edges, numbers], whose numbers are counted on from one to the next.
        """
        numbers = sum(count for _, count in results)
        block = max(1, NUMBERS // (code.lanes * numbers))
        sums, all_lanes = code.local(block * numbers), code.everywhere()
        with code.loop(start, stop, block) as at:
            count = code.least(stop - at, code.whole(block))
            with code.loop(0, count * numbers) as n:
                code.store(code.zeros(), sums, n * code.lanes, all_lanes)
            for begin, mask in self.chunks(code, channels):
                with code.loop(0, count) as n:
                    totals: dict[int, Value] = {}

                    def add(number: int, term: Value, totals: dict[int, Value] = totals) -> None:
                        totals[number] = totals[number] + term if number in totals else term

                    yield at + n, begin, mask, add
                    for number, total in totals.items():
                        place = (n * numbers + number) * code.lanes
                        code.store(code.load(sums, place, all_lanes) + total, sums, place, all_lanes)
            with code.loop(0, count) as n:
                number = 0
                for found, size in results:
                    for m in range(size):
                        vector = code.load(sums, (n * numbers + number) * code.lanes, all_lanes)
                        code.store(code.sum(vector), found, (at + n) * size + m)
                        number += 1

    def named(self, letter: str, moved: Value, array: Value, terms: list[tuple[str, str, str]]) -> dict[str, Value]:
        """The arrays of a letter that terms need: its own, or the direction."""
        needed = {name for term in terms for name in term}
        return {name: value for name, value in ((letter, array), ("u" + letter, moved)) if name in needed}


def by_sums(*description) -> Callable:
    """Derivative by g: the convolution itself."""
    self = _Writer(*description)

    def write(
        code: Code, start: int, stop: int, channels: int, first: Indices, order: Indices, senders: Indices,
        x: Tensor, y: Tensor, w: Tensor, ux: Tensor, uy: Tensor, uw: Tensor, found: Tensor,
    ) -> None:  # fmt: skip
        features, harmonics, of_paths = (self.named(*given, self.terms) for given in (("x", ux, x), ("y", uy, y), ("w", uw, w)))
        weights = {name: self.given(code, array, channels) for name, array in of_paths.items()}
        self.sum_up(code, start, stop, channels, first, order, senders, features, harmonics, weights, found)

    return write


def by_features(*description) -> Callable:
    """Derivative by x, added; ``first`` and ``order`` are of the edges that leave each range of atoms."""
    self = _Writer(*description)

    def write(
        code: Code, start: int, stop: int, channels: int, first: Indices, order: Indices, senders: Indices, receivers: Indices,
        y: Tensor, w: Tensor, g: Tensor, uy: Tensor, uw: Tensor, found: Tensor,
    ) -> None:  # fmt: skip
        terms = [term for term in self.terms if term[0] == "x"]
        harmonics, of_paths = (self.named(*given, terms) for given in (("y", uy, y), ("w", uw, w)))
        weights = {name: self.given(code, array, channels) for name, array in of_paths.items()}
        self.send_back(code, start, stop, channels, first, order, senders, receivers, g, harmonics, weights, found)

    return write


def by_weights(*description) -> Callable:
    """Derivative by w, edge by edge."""
    self = _Writer(*description)

    def write(
        code: Code, start: int, stop: int, channels: int, senders: Indices, receivers: Indices,
        x: Tensor, y: Tensor, g: Tensor, ux: Tensor, uy: Tensor, found: Tensor,
    ) -> None:  # fmt: skip
        terms = [term for term in self.terms if term[2] == "w"]
        features, harmonics = (self.named(*given, terms) for given in (("x", ux, x), ("y", uy, y)))
        with self.blocks(code, start, stop, None, harmonics) as (count, edge, numbers):
            for begin, mask in self.chunks(code, channels):
                with code.loop(0, count) as n:
                    e = edge(n)
                    source, target = code.load(senders, e) * self.rows * channels, code.load(receivers, e) * self.sums * channels
                    rows = {name: self.loader(code, array, source, channels, begin, mask) for name, array in features.items()}
                    gradient = self.loader(code, g, target, channels, begin, mask)
                    for p, path in enumerate(self.paths):
                        inner: dict[int, Value] = {}
                        for of_x, of_y, _ in terms:
                            self.contracted(p, numbers(n, of_y), rows[of_x], 1, inner)
                        total = None
                        for m3, part in inner.items():
                            term = part * gradient(path.sums + m3 * path.step)
                            total = term if total is None else total + term
                        code.store(total, found, (e * len(self.paths) + p) * channels + begin, mask)

    return write


def by_harmonics(*description) -> Callable:
    """Derivative by y, edge by edge."""
    self = _Writer(*description)

    def write(
        code: Code, start: int, stop: int, channels: int, senders: Indices, receivers: Indices,
        x: Tensor, w: Tensor, g: Tensor, ux: Tensor, uw: Tensor, found: Tensor,
    ) -> None:  # fmt: skip
        terms = [term for term in self.terms if term[1] == "y"]
        features, of_paths = (self.named(*given, terms) for given in (("x", ux, x), ("w", uw, w)))
        with self.summed(code, start, stop, channels, [(found, self.harmonics)]) as (e, begin, mask, add):
            source, target = code.load(senders, e) * self.rows * channels, code.load(receivers, e) * self.sums * channels
            rows = {name: self.loader(code, array, source, channels, begin, mask) for name, array in features.items()}
            weights = {name: self.given(code, array, channels)(e, begin, mask) for name, array in of_paths.items()}
            gradient = self.loader(code, g, target, channels, begin, mask)
            for p, path in enumerate(self.paths):
                weighted, products, sums = {}, {}, {}
                for m1, m2, m3, coefficient in path.entries:
                    if m1 not in weighted:
                        weighted[m1] = _total(weights[of_w](p) * rows[of_x](path.features + m1) for of_x, _, of_w in terms)
                    if (m1, m3) not in products:
                        products[m1, m3] = weighted[m1] * gradient(path.sums + m3 * path.step)
                    term = products[m1, m3] * coefficient
                    sums[m2] = sums[m2] + term if m2 in sums else term
                for m2, total in sums.items():
                    add(path.harmonics + m2, total)

    return write


def _total(values: Iterator[Value]) -> Value:
    first, *others = values
    return sum(others, first)


def tabulated_by_sums(*description) -> Callable:
    """`by_sums` with weights of a table."""
    self = _Writer(*description)

    def write(
        code: Code, start: int, stop: int, channels: int, first: Indices, order: Indices, senders: Indices,
        rows: Indices, table: Tensor, x: Tensor, y: Tensor, b: Tensor, found: Tensor,
    ) -> None:  # fmt: skip
        weights = {"w": self.tabulated(code, rows, b, table, channels)}
        self.sum_up(code, start, stop, channels, first, order, senders, {"x": x}, {"y": y}, weights, found)

    return write


def tabulated_by_features(*description) -> Callable:
    """`by_features` with weights of a table."""
    self = _Writer(*description)

    def write(
        code: Code, start: int, stop: int, channels: int, first: Indices, order: Indices, senders: Indices, receivers: Indices,
        rows: Indices, table: Tensor, g: Tensor, y: Tensor, b: Tensor, found: Tensor,
    ) -> None:  # fmt: skip
        weights = {"w": self.tabulated(code, rows, b, table, channels)}
        self.send_back(code, start, stop, channels, first, order, senders, receivers, g, {"y": y}, weights, found)

    return write


def tabulated_by_edges(*description) -> Callable:
    """Derivatives by y and by b in one pass, edge by edge."""
    self = _Writer(*description)

    def write(
        code: Code, start: int, stop: int, channels: int, senders: Indices, receivers: Indices,
        rows: Indices, table: Tensor, x: Tensor, y: Tensor, b: Tensor, g: Tensor, by_y: Tensor, by_b: Tensor,
    ) -> None:  # fmt: skip
        with self.summed(code, start, stop, channels, [(by_y, self.harmonics), (by_b, 4)]) as (e, begin, mask, add):
            source, target = code.load(senders, e) * self.rows * channels, code.load(receivers, e) * self.sums * channels
            angular = [code.load(y, e * self.harmonics + m) for m in range(self.harmonics)]
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
                    add(path.harmonics + m2, weight(p) * total)
                    term = total * angular[path.harmonics + m2]
                    by_weight = term if by_weight is None else by_weight + term
                for k in range(4):
                    add(self.harmonics + k, entries[k](p) * by_weight)

    return write
