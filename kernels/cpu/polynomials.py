"""Polynomials of the components of a feature and their derivatives, for equimol/ops/polynomials.py: straight-line code from the terms.

    P_ao,c = sum over terms t = (o, i j ...) of D_s(a),t,c M_t,    M_t = x_ai,c x_aj,c ...

x [atoms, size, channels], D [elements, terms, channels], P [atoms, polynomials, channels]; the derivatives are of S = sum g P, and of
v . dS/dx, for given g and v. All atoms are visited for a vector of channels before the next, so that the coefficients of these channels
stay in the nearest cache.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor

from equimol.ops.polynomials import Terms, count_polynomials
from equimol.ops.vector_code import Code, Indices, Value

Factors = tuple[int, ...]


class _Writer:
    """What all of them share."""

    def __init__(self, terms: Terms, size: int) -> None:
        self.terms, self.size, self.polynomials = terms, size, count_polynomials(terms)
        #: (term, polynomial) of each product of components, products with the same beginning together
        self.members: dict[Factors, list[tuple[int, int]]] = {}
        for factors in sorted({factors for _, factors in terms}):
            self.members[factors] = []
        for t, (o, factors) in enumerate(terms):
            self.members[factors].append((t, o))

    @contextmanager
    def atoms(self, code: Code, start: Value, stop: Value, channels: Value) -> Iterator[tuple[Value, Value, Value]]:
        with code.loop(0, channels, code.lanes) as begin:
            mask = code.below(begin, channels)
            with code.loop(start, stop) as atom:
                yield atom, begin, mask

    def coefficients(self, code: Code, atom: Value, begin: Value, mask: Value, channels: Value, species: Value, d: Value) -> Callable:
        start = code.load(species, atom) * len(self.terms) * channels + begin
        return lambda t: code.load(d, start + channels * t, mask)

    def rows(self, code: Code, array: Value, count: int, atom: Value, begin: Value, mask: Value, channels: Value) -> list[Value]:
        return [code.load(array, (atom * count + i) * channels + begin, mask) for i in range(count)]

    def keep(
        self, code: Code, sums: dict[int, Value], found: Value, count: int, atom: Value, begin: Value, mask: Value, channels: Value
    ) -> None:
        for i in range(count):
            code.store(sums.get(i, code.zeros()), found, (atom * count + i) * channels + begin, mask)


class _Products:
    """Products of components, each made once from a shorter one; and with v, their derivatives in its direction."""

    def __init__(self, x: list[Value], v: list[Value] | None = None) -> None:
        self.values = {(i,): value for i, value in enumerate(x)}
        self.changes = {(i,): value for i, value in enumerate(v or ())}

    def value(self, factors: Factors) -> Value:
        if factors not in self.values:
            self.values[factors] = self.value(factors[:-1]) * self.values[factors[-1:]]
        return self.values[factors]

    def change(self, factors: Factors) -> Value:
        if factors not in self.changes:
            *_, last = factors
            first = self.change(factors[:-1]) * self.values[last,]
            self.changes[factors] = first + self.value(factors[:-1]) * self.changes[last,]
        return self.changes[factors]


def _add(sums: dict, key, term: Value) -> None:
    sums[key] = sums[key] + term if key in sums else term


def _longest_first(members: dict[Factors, list]) -> list[Factors]:
    """Products and their beginnings: what comes in at one goes on to shorter ones."""
    return sorted({factors[:n] for factors in members for n in range(1, len(factors) + 1)}, key=lambda f: (-len(f), f))


def value(*description) -> Callable:
    """P, the derivative by g."""
    self = _Writer(*description)

    def write(
        code: Code, start: int, stop: int, channels: int, species: Indices, x: Tensor, d: Tensor, found: Tensor,
    ) -> None:  # fmt: skip
        with self.atoms(code, start, stop, channels) as (atom, begin, mask):
            coefficient = self.coefficients(code, atom, begin, mask, channels, species, d)
            products, sums = _Products(self.rows(code, x, self.size, atom, begin, mask, channels)), {}
            for factors, members in self.members.items():
                product = products.value(factors)
                for t, o in members:
                    _add(sums, o, coefficient(t) * product)
            self.keep(code, sums, found, self.polynomials, atom, begin, mask, channels)

    return write


def value_along(*description) -> Callable:
    """sum_i v_i dP / dx_i."""
    self = _Writer(*description)

    def write(
        code: Code, start: int, stop: int, channels: int, species: Indices, x: Tensor, d: Tensor, v: Tensor, found: Tensor,
    ) -> None:  # fmt: skip
        with self.atoms(code, start, stop, channels) as (atom, begin, mask):
            coefficient = self.coefficients(code, atom, begin, mask, channels, species, d)
            products = _Products(*(self.rows(code, array, self.size, atom, begin, mask, channels) for array in (x, v)))
            sums: dict[int, Value] = {}
            for factors, members in self.members.items():
                change = products.change(factors)
                for t, o in members:
                    _add(sums, o, coefficient(t) * change)
            self.keep(code, sums, found, self.polynomials, atom, begin, mask, channels)

    return write


def slope(*description) -> Callable:
    """dS / dx. What comes in at a product of components goes on to the last of them, and to the product of the others."""
    self = _Writer(*description)

    def write(
        code: Code, start: int, stop: int, channels: int, species: Indices, x: Tensor, d: Tensor, g: Tensor, found: Tensor,
    ) -> None:  # fmt: skip
        with self.atoms(code, start, stop, channels) as (atom, begin, mask):
            coefficient = self.coefficients(code, atom, begin, mask, channels, species, d)
            gradient = self.rows(code, g, self.polynomials, atom, begin, mask, channels)
            products = _Products(self.rows(code, x, self.size, atom, begin, mask, channels))
            incoming: dict[Factors, Value] = {}
            for factors in _longest_first(self.members):
                for t, o in self.members.get(factors, ()):
                    _add(incoming, factors, coefficient(t) * gradient[o])
                if len(factors) > 1:
                    _add(incoming, factors[-1:], incoming[factors] * products.value(factors[:-1]))
                    _add(incoming, factors[:-1], incoming[factors] * products.value(factors[-1:]))
            self.keep(code, {i: incoming[i,] for i in range(self.size) if (i,) in incoming}, found, self.size, atom, begin, mask, channels)

    return write


def slope_along(*description) -> Callable:
    """d(v . dS/dx) / dx: how what comes in at each product changes along v."""
    self = _Writer(*description)

    def write(
        code: Code, start: int, stop: int, channels: int, species: Indices, x: Tensor, d: Tensor, g: Tensor, v: Tensor, found: Tensor,
    ) -> None:  # fmt: skip
        with self.atoms(code, start, stop, channels) as (atom, begin, mask):
            coefficient = self.coefficients(code, atom, begin, mask, channels, species, d)
            gradient = self.rows(code, g, self.polynomials, atom, begin, mask, channels)
            products = _Products(*(self.rows(code, array, self.size, atom, begin, mask, channels) for array in (x, v)))
            incoming: dict[Factors, Value] = {}
            changes: dict[Factors, Value] = {}
            for factors in _longest_first(self.members):
                for t, o in self.members.get(factors, ()):
                    _add(incoming, factors, coefficient(t) * gradient[o])
                if len(factors) > 1:
                    for end, rest in ((factors[-1:], factors[:-1]), (factors[:-1], factors[-1:])):
                        _add(incoming, end, incoming[factors] * products.value(rest))
                        _add(changes, end, incoming[factors] * products.change(rest))
                        if factors in changes:
                            _add(changes, end, changes[factors] * products.value(rest))
            self.keep(code, {i: changes[i,] for i in range(self.size) if (i,) in changes}, found, self.size, atom, begin, mask, channels)

    return write


def coefficients(*description) -> Callable:
    """dS / dD: parts are of vectors of channels; ``first`` says where the atoms of an element begin in ``order``, which names them."""
    self = _Writer(*description)

    def write(
        code: Code, start: int, stop: int, channels: int, elements: int, first: Indices, order: Indices,
        x: Tensor, g: Tensor, found: Tensor,
    ) -> None:  # fmt: skip
        with _sums_of_elements(self, code, start, stop, channels, elements, first, order, found) as (atom, begin, mask, add):
            gradient = self.rows(code, g, self.polynomials, atom, begin, mask, channels)
            products = _Products(self.rows(code, x, self.size, atom, begin, mask, channels))
            for factors, members in self.members.items():
                for t, o in members:
                    add(t, products.value(factors) * gradient[o])

    return write


def coefficients_along(*description) -> Callable:
    """d(v . dS/dx) / dD."""
    self = _Writer(*description)

    def write(
        code: Code, start: int, stop: int, channels: int, elements: int, first: Indices, order: Indices,
        x: Tensor, g: Tensor, v: Tensor, found: Tensor,
    ) -> None:  # fmt: skip
        with _sums_of_elements(self, code, start, stop, channels, elements, first, order, found) as (atom, begin, mask, add):
            gradient = self.rows(code, g, self.polynomials, atom, begin, mask, channels)
            products = _Products(*(self.rows(code, array, self.size, atom, begin, mask, channels) for array in (x, v)))
            for factors, members in self.members.items():
                for t, o in members:
                    add(t, products.change(factors) * gradient[o])

    return write


@contextmanager
def _sums_of_elements(
    self: _Writer, code: Code, start: Value, stop: Value, channels: Value, elements: Value, first: Value, order: Value, found: Value
) -> Iterator[tuple[Value, Value, Value, Callable[[int, Value], None]]]:
    """Each atom of each element, and how something of it is added to a term."""
    with code.loop(start, stop) as chunk:
        begin = chunk * code.lanes
        mask = code.below(begin, channels)
        with code.loop(0, elements) as element:
            row = element * len(self.terms) * channels + begin
            with code.loop(0, code.whole(len(self.terms))) as t:
                code.store(code.zeros(), found, row + t * channels, mask)
            with code.loop(code.load(first, element), code.load(first, element + 1)) as at:

                def add(t: int, term: Value) -> None:
                    place = row + channels * t
                    code.store(code.load(found, place, mask) + term, found, place, mask)

                yield code.load(order, at), begin, mask, add
