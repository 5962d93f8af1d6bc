"""MACE's symmetric contraction: every equivariant polynomial of a feature, up to a given order."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from equimol.o3 import Layout, layout_dim, lmax_of, wigner_3j
from equimol.o3.tables import Table
from equimol.ops import dense, gather, has_polynomials, polynomials
from equimol.ops.kernels import is_traced
from equimol.tensor_products.base import ManyBodyProduct, require_natural


class SymmetricContraction(ManyBodyProduct):
    """B = sum over nu of W_nu . U_nu A^nu: all symmetric couplings of 1..correlation copies of A (Batatia et al. 2022, eq. 10).

    The basis U is minimal: each independent equivariant polynomial once, of unit variance for a Gaussian A. Where there is a kernel,
    B is a polynomial with coefficients D = U W, straight-line code from those that are not zero. Elsewhere it is two matrix products
    per element and channel: B_o = sum_i A_i sum_m D_(o,i),m M_m, where M are the monomials of order below ``correlation``, and each
    monomial of B stands in exactly one place of D. Parity decides which i can meet which m, so even and odd monomials are two
    products of half the rows each.

    Args:
        in_layout: natural parity, degrees 0..lmax, equal channels.
        out_degrees: l3 kept, or the largest of them; natural parity.
        correlation: largest order nu.
        num_elements: number of weight sets.
    """

    def __init__(self, in_layout: Layout, out_degrees: int | Iterable[int], correlation: int, num_elements: int) -> None:
        super().__init__(in_layout, out_degrees, correlation, num_elements)
        require_natural(type(self).__name__, "in_layout", in_layout)
        lmax = lmax_of(in_layout)
        self._monomials = _Monomials(lmax, correlation - 1)
        self._shapes = []  # of D for even and for odd monomials: [rows, monomials]
        for parity in (0, 1):
            rows = sum((2 * l + 1) * len(self._monomials.components[(parity + l) % 2]) for l in self.out_degrees)
            self._shapes.append((rows, self._monomials.counts[parity]))
        self._basis, self._num_paths, places, terms = nn.ModuleList(), [], [], []
        for number, l in enumerate(self.out_degrees):
            bases = [(nu, symmetric_basis(lmax, nu, l)) for nu in range(1, correlation + 1)]
            placed = [self._places_of(basis, nu, number) for nu, basis in bases if len(basis)]
            self._num_paths.append(sum(values.shape[1] for _, values in placed))
            # each order gives unit variance by itself: divided by all paths together, the few low orders, which matter most, would fade
            self._basis.append(Table(torch.block_diag(*[values / math.sqrt(values.shape[1]) for _, values in placed]).T))
            places += [place for place, _ in placed]
            first = sum(2 * smaller + 1 for smaller in self.out_degrees[:number])
            terms += [term for nu, basis in bases if len(basis) for term in _terms(basis, lmax, nu, first)]
        self._terms = tuple(terms)
        self.num_weights = sum(self._num_paths)
        self.register_buffer("_places", torch.cat(places), persistent=False)
        self._frozen: dict[tuple[int, bool], Tensor] | None = None  # D by element, with zeros or without, once weights no longer change

    def freeze(self) -> None:
        """Keep D of each element from its first use on: the weights given must not change any more. Moving the module forgets it."""
        self._frozen = {}

    def _apply(self, fn, recurse=True):
        self._frozen = None if self._frozen is None else {}
        return super()._apply(fn, recurse)

    def forward(
        self, x: Float[Tensor, "atoms dim"], weights: Float[Tensor, "elements num_weights channels"], species: Int[Tensor, " atoms"]
    ) -> Float[Tensor, "atoms dim_out"]:
        self.check(x, weights, species)
        if has_polynomials(x):
            present, kinds = torch.unique(species, return_inverse=True)
            terms = self._kept(weights, present.tolist(), with_zeros=False)
            if not terms:
                return x.new_zeros(0, layout_dim(self.out))
            return polynomials(self._terms, x.unflatten(1, (-1, self.channels)), torch.stack(terms), kinds).flatten(1)
        if is_traced():  # how many atoms there are of each element is no size of a program: all as each, of which one counts
            everything = dense(x.unflatten(1, (-1, self.channels)).permute(1, 2, 0))
            each = self._coefficients(weights, list(range(self.num_elements)), with_zeros=True)
            parts = [(species == element)[:, None, None] * self._contract(everything, d) for element, d in enumerate(each)]
            return sum(parts[1:], parts[0]).flatten(1)
        order = torch.argsort(species, stable=True)
        counts = torch.bincount(species, minlength=self.num_elements).tolist()
        present = [element for element, count in enumerate(counts) if count]
        if not present:
            return x.new_zeros(0, layout_dim(self.out))
        by_element = gather(x, order).unflatten(1, (-1, self.channels)).split([counts[element] for element in present])
        coefficients = self._kept(weights, present, with_zeros=True)
        parts = [self._contract(dense(part.permute(1, 2, 0)), d) for part, d in zip(by_element, coefficients, strict=True)]
        return gather(torch.cat(parts), torch.argsort(order)).flatten(1)

    def _kept(self, weights: Tensor, elements: list[int], with_zeros: bool) -> list[Tensor]:
        """D of some elements as `_coefficients` gives it, from what is kept where weights do not change."""
        if self._frozen is None:
            return self._coefficients(weights, elements, with_zeros)
        missing = [element for element in elements if (element, with_zeros) not in self._frozen]
        if missing:
            new = self._coefficients(weights.detach(), missing, with_zeros)
            self._frozen |= {(element, with_zeros): d for element, d in zip(missing, new, strict=True)}
        return [self._frozen[element, with_zeros] for element in elements]

    def _coefficients(self, weights: Tensor, elements: list[int], with_zeros: bool) -> list[Tensor]:
        """D of some elements: [channels, places], even monomials first, both flattened; or without zeros [terms, channels]."""
        if not elements:
            return []
        chosen = (
            gather(weights, torch.tensor(elements, device=weights.device)).transpose(1, 2).flatten(0, 1)
        )  # [elements * channels, paths]
        parts = chosen.split(self._num_paths, 1)
        entries = torch.cat([part @ basis(part) for part, basis in zip(parts, self._basis, strict=True)], 1)
        if not with_zeros:
            return [d.T.contiguous() for d in entries.split(self.channels)]
        empty = entries.new_zeros(len(entries), sum(rows * columns for rows, columns in self._shapes))
        return list(empty.index_copy(1, self._places, entries).split(self.channels))

    def _contract(
        self, a: Float[Tensor, "size channels atoms"], coefficients: Float[Tensor, "channels places"]
    ) -> Float[Tensor, "atoms components channels"]:
        """One element: monomials of A, their products with D, and a last contraction with A."""
        halves = coefficients.split([rows * columns for rows, columns in self._shapes], 1)
        last = [
            dense(gather(a, index).transpose(0, 1)).unsqueeze(1) for index in self._monomials.component_indices()
        ]  # [channels, 1, i, atoms]
        out = [0] * len(self.out_degrees)
        for parity, (half, shape, monomials) in enumerate(zip(halves, self._shapes, self._monomials(a), strict=True)):
            inner = torch.bmm(half.unflatten(1, shape), monomials.transpose(0, 1))  # [channels, rows, atoms]
            sizes = [last[(parity + l) % 2].shape[2] for l in self.out_degrees]
            rows = inner.split([(2 * l + 1) * size for l, size in zip(self.out_degrees, sizes, strict=True)], 1)
            for number, (l, size, part) in enumerate(zip(self.out_degrees, sizes, rows, strict=True)):
                out[number] = out[number] + (part.unflatten(1, (2 * l + 1, size)) * last[(parity + l) % 2]).sum(2)
        return dense(torch.cat(out, 1)).permute(2, 1, 0)

    def _places_of(self, basis: Float[Tensor, "paths components monomials"], order: int, number: int) -> tuple[Tensor, Tensor]:
        """Where the polynomials of one order and out degree stand in the flattened D, and their values there: [places], [places, paths].

        The monomial a_i a_j a_k (i <= j <= k) is written (a_i a_j) a_k: the row of component and k, the column of a_i a_j.
        """
        tuples = _monomial_tuples((lmax_of(self.in_layout) + 1) ** 2, order)
        m, column = _nonzero(basis)
        places = []
        for component, monomial in zip(m.tolist(), column.tolist(), strict=True):
            *prefix, last = tuples[monomial]
            parity, place = self._monomials.place[tuple(prefix)]
            sizes = [len(self._monomials.components[(parity + l) % 2]) for l in self.out_degrees]
            before = sum((2 * l + 1) * size for l, size in zip(self.out_degrees[:number], sizes, strict=False))
            row = before + component * sizes[number] + self._monomials.rank[last]
            places.append(parity * self._shapes[0][0] * self._shapes[0][1] + row * self._shapes[parity][1] + place)
        return torch.tensor(places, dtype=torch.long), basis[:, m, column].T


def _nonzero(basis: Float[Tensor, "paths components monomials"]) -> tuple[Tensor, ...]:
    """Components and monomials that occur together in a polynomial."""
    return torch.nonzero((basis != 0).any(0), as_tuple=True)


def _terms(basis: Float[Tensor, "paths components monomials"], lmax: int, order: int, first: int) -> list[tuple[int, tuple[int, ...]]]:
    """The same as (component, factors of the monomial); components count from ``first``."""
    tuples = _monomial_tuples((lmax + 1) ** 2, order)
    return [(first + m, tuples[column]) for m, column in zip(*(index.tolist() for index in _nonzero(basis)), strict=True)]


class _Monomials(nn.Module):
    """Commutative monomials of orders 0..orders of the components of a feature, even ones and odd ones apart.

    Within a parity they stand by order, then sorted; ``place`` tells where, ``rank`` where a component stands among those of its parity.
    """

    def __init__(self, lmax: int, orders: int) -> None:
        super().__init__()
        size = (lmax + 1) ** 2
        self.orders = orders
        self.components = [[i for i in range(size) if math.isqrt(i) % 2 == parity] for parity in (0, 1)]
        self.rank = {i: rank for members in self.components for rank, i in enumerate(members)}
        for parity, members in enumerate(self.components):
            self.register_buffer(f"components_{parity}", torch.tensor(members, dtype=torch.long), persistent=False)
        self.counts, self.place = [0, 0], {}
        self._even = []  # how many of each order are even
        below: dict[tuple[int, ...], int] = {}
        for order in range(orders + 1):
            tuples = sorted(_monomial_tuples(size, order), key=lambda t: sum(math.isqrt(i) for i in t) % 2)  # stable: even ones first
            parities = [sum(math.isqrt(i) for i in t) % 2 for t in tuples]
            for chosen, parity in zip(tuples, parities, strict=True):
                self.place[chosen] = (parity, self.counts[parity])
                self.counts[parity] += 1
            self._even.append(parities.count(0))
            if order:
                self.register_buffer(f"parent_{order}", torch.tensor([below[t[:-1]] for t in tuples]), persistent=False)
                self.register_buffer(f"last_{order}", torch.tensor([t[-1] for t in tuples]), persistent=False)
            below = {t: n for n, t in enumerate(tuples)}

    def component_indices(self) -> list[Int[Tensor, " components"]]:
        """Components of even and of odd degree."""
        return [self.components_0, self.components_1]

    def forward(self, a: Float[Tensor, "size channels atoms"]) -> list[Float[Tensor, "_ channels atoms"]]:
        """Even monomials and odd monomials, each order from the one below by one multiplication."""
        last = torch.ones_like(a[:1])
        halves: list[list[Tensor]] = [[last], []]
        for order in range(1, self.orders + 1):
            last = gather(last, getattr(self, f"parent_{order}")) * gather(a, getattr(self, f"last_{order}"))
            even = self._even[order]
            for half, part in zip(halves, last.split([even, len(last) - even]), strict=True):
                half.append(part)
        return [torch.cat(half) if half else a[:0] for half in halves]


@functools.cache
def _monomial_tuples(size: int, order: int) -> tuple[tuple[int, ...], ...]:
    """Sorted index tuples of the commutative monomials of one order."""
    return tuple(itertools.combinations_with_replacement(range(size), order))


@functools.cache
def symmetric_basis(lmax: int, order: int, l_out: int) -> Float[Tensor, "paths components monomials"]:
    """Independent equivariant polynomials of one order in a feature with degrees 0..lmax, natural parity.

    Monomials stand in the order of ``itertools.combinations_with_replacement(range((lmax+1)**2), order)``. Each polynomial has
    mean square 1 per component for Gaussian input; those of one set of degrees are orthogonal, those of different sets need not be.
    """
    size = (lmax + 1) ** 2
    number = {t: n for n, t in enumerate(_monomial_tuples(size, order))}
    found = []
    for degrees in itertools.combinations_with_replacement(range(lmax + 1), order):
        if (sum(degrees) + l_out) % 2 == 0:
            couplings = _couple(degrees, l_out)
            if couplings:
                found.append(_independent(couplings, degrees, number))
    return torch.cat(found) if found else torch.zeros(0, 2 * l_out + 1, len(number), dtype=torch.float64)


def _couple(degrees: tuple[int, ...], l_out: int) -> list[Tensor]:
    """All ways to couple l_1, l_2, ... one after the other to l_out: [2*l_out+1, 2*l_1+1, 2*l_2+1, ...] each."""
    partial = [(degrees[0], torch.eye(2 * degrees[0] + 1, dtype=torch.float64))]
    for l in degrees[1:]:
        partial = [
            (joint, torch.einsum("a...,abc->c...b", tensor, wigner_3j(l_left, l, joint)))
            for l_left, tensor in partial
            for joint in range(abs(l_left - l), l_left + l + 1)
        ]
    return [tensor for l, tensor in partial if l == l_out]


def _independent(couplings: list[Tensor], degrees: tuple[int, ...], number: dict[tuple[int, ...], int]) -> Tensor:
    """Collects commuting monomials and keeps an orthonormal set of what is left."""
    components = [range(l * l, (l + 1) ** 2) for l in degrees]
    tuples = [tuple(sorted(t)) for t in itertools.product(*components)]
    distinct = sorted(set(tuples))
    place = {t: n for n, t in enumerate(distinct)}
    columns = torch.tensor([place[t] for t in tuples])
    polynomials = torch.stack([t.flatten(1) for t in couplings])  # [couplings, 2*l_out+1, tuples]
    collected = polynomials.new_zeros(*polynomials.shape[:2], len(distinct)).index_add_(2, columns, polynomials)
    gram = torch.einsum("smx,xy,tmy->st", collected, _gaussian_moments(distinct), collected) / collected.shape[1]
    eigenvalues, vectors = torch.linalg.eigh(gram)
    keep = eigenvalues > 1e-9 * max(1.0, float(eigenvalues.max()))
    orthonormal = torch.einsum("st,smx->tmx", vectors[:, keep] / eigenvalues[keep].sqrt(), collected)
    orthonormal[orthonormal.abs() < 1e-12] = 0.0
    result = orthonormal.new_zeros(*orthonormal.shape[:2], len(number))
    result[:, :, torch.tensor([number[t] for t in distinct])] = orthonormal
    return result


def _gaussian_moments(monomials: list[tuple[int, ...]]) -> Float[Tensor, "n n"]:
    """E[a b] for each two monomials of independent standard normal variables."""
    variables = sorted({i for t in monomials for i in t})
    powers = torch.tensor([[t.count(v) for v in variables] for t in monomials])
    together = powers[:, None] + powers[None]
    double_factorial = [1.0, 0.0]
    while len(double_factorial) <= int(together.max()):
        double_factorial.append(double_factorial[-2] * (len(double_factorial) - 1))
    return torch.tensor(double_factorial, dtype=torch.float64)[together].prod(-1)
