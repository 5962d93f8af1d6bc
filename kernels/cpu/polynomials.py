"""Polynomials of the components of a feature, and their slope, for equimol/ops/polynomials.py: straight-line code from the terms.

    P_ao,c = sum over terms t = (o, i j ...) of D_s(a),t,c x_ai,c x_aj,c ...

x [atoms, size, channels], D [elements, terms, channels], P [atoms, polynomials, channels]. All atoms are visited for a vector of channels
before the next, so that the coefficients of these channels stay in the nearest cache.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor

from equimol.ops.polynomials import Terms, count_polynomials
from equimol.ops.vector_code import Code, Indices, Value


class _Writer:
    """What value and slope share."""

    def __init__(self, terms: Terms, size: int) -> None:
        self.terms, self.size, self.polynomials = terms, size, count_polynomials(terms)
        #: (term, polynomial) of each product of components, products with the same beginning together
        self.members: dict[tuple[int, ...], list[tuple[int, int]]] = {}
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


def _product(values: dict[tuple[int, ...], Value], factors: tuple[int, ...]) -> Value:
    """Of some components, from the products that are there already."""
    if factors not in values:
        values[factors] = _product(values, factors[:-1]) * values[factors[-1:]]
    return values[factors]


def _add(sums: dict, key, term: Value) -> None:
    sums[key] = sums[key] + term if key in sums else term


def value(*description) -> Callable:
    """P."""
    self = _Writer(*description)

    def write(
        code: Code, start: int, stop: int, channels: int, species: Indices, x: Tensor, d: Tensor, found: Tensor,
    ) -> None:  # fmt: skip
        with self.atoms(code, start, stop, channels) as (atom, begin, mask):
            coefficients = code.load(species, atom) * len(self.terms) * channels + begin
            row = atom * self.size * channels + begin
            products = {(i,): code.load(x, row + channels * i, mask) for i in range(self.size)}
            sums: dict[int, Value] = {}
            for factors, members in self.members.items():
                product = _product(products, factors)
                for t, o in members:
                    _add(sums, o, code.load(d, coefficients + channels * t, mask) * product)
            for o in range(self.polynomials):
                code.store(sums.get(o, code.zeros()), found, (atom * self.polynomials + o) * channels + begin, mask)

    return write


def slope(*description) -> Callable:
    """sum_o g_o dP_o / dx. What comes in at a product of components goes on to the last of them, and to the product of the others."""
    self = _Writer(*description)

    def write(
        code: Code, start: int, stop: int, channels: int, species: Indices, x: Tensor, d: Tensor, g: Tensor, found: Tensor,
    ) -> None:  # fmt: skip
        with self.atoms(code, start, stop, channels) as (atom, begin, mask):
            coefficients = code.load(species, atom) * len(self.terms) * channels + begin
            row = atom * self.size * channels + begin
            gradient = [code.load(g, (atom * self.polynomials + o) * channels + begin, mask) for o in range(self.polynomials)]
            products = {(i,): code.load(x, row + channels * i, mask) for i in range(self.size)}
            incoming: dict[tuple[int, ...], Value] = {}
            beginnings = {factors[:n] for factors in self.members for n in range(1, len(factors) + 1)}
            for factors in sorted(beginnings, key=lambda f: (-len(f), f)):  # the longest first: they add to the shorter ones
                for t, o in self.members.get(factors, ()):
                    _add(incoming, factors, code.load(d, coefficients + channels * t, mask) * gradient[o])
                if len(factors) > 1:
                    _add(incoming, factors[-1:], incoming[factors] * _product(products, factors[:-1]))
                    _add(incoming, factors[:-1], incoming[factors] * products[factors[-1:]])
            for i in range(self.size):
                code.store(incoming.get((i,), code.zeros()), found, row + channels * i, mask)

    return write
