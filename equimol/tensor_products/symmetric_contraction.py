"""MACE's symmetric contraction: every equivariant polynomial of a feature, up to a given order."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from equimol.o3 import Layout, lmax_of, wigner_3j
from equimol.o3.tables import Table
from equimol.ops import dense, gather
from equimol.tensor_products.base import ManyBodyProduct


class SymmetricContraction(ManyBodyProduct):
    """B = sum over nu of W_nu . U_nu A^nu: all symmetric couplings of 1..correlation copies of A (Batatia et al. 2022, eq. 10).

    The basis U is minimal: each independent equivariant polynomial once, of unit variance for a Gaussian A. It is
    evaluated as *one* matrix product per element and channel: B_o = sum_i A_i sum_m D_(m,o,i) M_m, where M are the monomials of
    order below ``correlation`` and D = U W; each monomial of B stands in exactly one place of D.

    Args:
        in_layout: natural parity, degrees 0..lmax, equal channels.
        out_degrees: l3 kept, or the largest of them; natural parity.
        correlation: largest order nu.
        num_elements: number of weight sets.
    """

    def __init__(self, in_layout: Layout, out_degrees: int | Iterable[int], correlation: int, num_elements: int) -> None:
        super().__init__(in_layout, out_degrees, correlation, num_elements)
        lmax, size = lmax_of(in_layout), (lmax_of(in_layout) + 1) ** 2
        self._size, self._components = size, sum(2 * l + 1 for l in self.out_degrees)
        factors = _factor_monomials(size, correlation - 1)
        self._orders = len(factors)
        for order, (parent, last) in enumerate(factors):
            self.register_buffer(f"parent_{order}", parent, persistent=False)
            self.register_buffer(f"last_{order}", last, persistent=False)
        self._monomials = 1 + sum(len(last) for _, last in factors)
        self._basis = nn.ModuleList()
        rows, component, self._num_paths = [], 0, []
        for l in self.out_degrees:
            placed = [
                _rows_of(symmetric_basis(lmax, nu, l), nu, size, component, self._monomials)
                for nu in range(1, correlation + 1)
                if len(symmetric_basis(lmax, nu, l))
            ]
            paths = sum(values.shape[1] for _, values in placed)
            self._basis.append(Table(torch.block_diag(*[values for _, values in placed]).T / math.sqrt(paths)))
            rows += [row for row, _ in placed]
            self._num_paths.append(paths)
            component += 2 * l + 1
        self.num_weights = sum(self._num_paths)
        self.register_buffer("rows", torch.cat(rows), persistent=False)
        self._frozen: dict[int, Tensor] | None = None  # D by element, once weights no longer change

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
        order = torch.argsort(species, stable=True)
        counts = torch.bincount(species, minlength=self.num_elements).tolist()
        sorted_x = gather(x, order).view(len(x), self._size, self.channels)
        parts = []
        for element, part in enumerate(sorted_x.split(counts)):
            if len(part):
                parts.append(self._contract(dense(part.permute(1, 2, 0)), self._coefficients(weights, element)))
        if not parts:
            return x.new_zeros(0, self._components * self.channels)
        return gather(torch.cat(parts), torch.argsort(order)).flatten(1)

    def _coefficients(
        self, weights: Float[Tensor, "elements num_weights channels"], element: int
    ) -> Float[Tensor, "channels rows monomials"]:
        """D = U W for one element."""
        if self._frozen is not None:
            if element not in self._frozen:
                self._frozen[element] = self._compute_coefficients(weights[element]).detach()
            return self._frozen[element]
        return self._compute_coefficients(weights[element])

    def _compute_coefficients(self, weights: Float[Tensor, "num_weights channels"]) -> Float[Tensor, "channels rows monomials"]:
        parts = weights.T.split(self._num_paths, 1)
        entries = torch.cat([w @ basis(w) for w, basis in zip(parts, self._basis, strict=True)], 1)  # [channels, rows]
        dense = weights.new_zeros(self.channels, self._components * self._size * self._monomials).index_copy(1, self.rows, entries)
        return dense.unflatten(1, (self._components * self._size, self._monomials))

    def _contract(self, a: Float[Tensor, "size channels atoms"], d: Tensor) -> Float[Tensor, "atoms components channels"]:
        """One element: monomials of A by recursion, one matrix product, one contraction with A."""
        monomials, last = [torch.ones_like(a[:1])], torch.ones_like(a[:1])
        for order in range(self._orders):
            last = gather(last, getattr(self, f"parent_{order}")) * gather(a, getattr(self, f"last_{order}"))
            monomials.append(last)
        m = torch.cat(monomials).transpose(0, 1)  # [channels, monomials, atoms]
        inner = torch.bmm(d, m).unflatten(1, (self._components, self._size))
        return dense((inner * dense(a.transpose(0, 1))[:, None]).sum(2)).permute(2, 1, 0)


@functools.cache
def _monomial_tuples(size: int, order: int) -> tuple[tuple[int, ...], ...]:
    """Sorted index tuples of the commutative monomials of one order."""
    return tuple(itertools.combinations_with_replacement(range(size), order))


def _factor_monomials(size: int, orders: int) -> list[tuple[Tensor, Tensor]]:
    """For each order 1..orders: which monomial of the order below, and which component, multiply to give each one."""
    result = []
    for order in range(1, orders + 1):
        below = {t: n for n, t in enumerate(_monomial_tuples(size, order - 1))}
        tuples = _monomial_tuples(size, order)
        result.append((torch.tensor([below[t[:-1]] for t in tuples]), torch.tensor([t[-1] for t in tuples])))
    return result


def _rows_of(basis: Tensor, order: int, size: int, first_component: int, monomials: int) -> tuple[Tensor, Tensor]:
    """Where the basis polynomials of one order stand in D, and with which values.

    A monomial a_i a_j a_k (i <= j <= k) is written (a_i a_j) a_k: row (component, k, number of a_i a_j).

    Returns:
        row numbers [rows] and values [rows, paths].
    """
    below = {t: n for n, t in enumerate(_monomial_tuples(size, order - 1))}
    start = sum(len(_monomial_tuples(size, o)) for o in range(order - 1))
    tuples = _monomial_tuples(size, order)
    prefix, last = torch.tensor([start + below[t[:-1]] for t in tuples]), torch.tensor([t[-1] for t in tuples])
    m, monomial = torch.nonzero((basis != 0).any(0), as_tuple=True)
    return ((first_component + m) * size + last[monomial]) * monomials + prefix[monomial], basis[:, m, monomial].T


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
