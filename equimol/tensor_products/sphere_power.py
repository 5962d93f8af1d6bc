"""Many-body products on the sphere: one synthesis, products point by point, one analysis (Luo et al. 2024, arXiv:2401.10216)."""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from equimol.o3 import Layout, Table, TorusGrid, bracket_coefficient, format_irreps, gradient_scale, lmax_of
from equimol.ops import gather
from equimol.tensor_products.base import ManyBodyProduct, require_natural
from equimol.tensor_products.ring_powers import RingPowers
from equimol.tensor_products.sphere_product import Side


class GauntPower(ManyBodyProduct):
    """Sum over nu of w_nu(l3) [A(r)^nu]_l3: one synthesis, powers point by point, one analysis.

    Each power has unit mean square for Gaussian features of unit variance, and their sum for random unit-variance
    weights. Weights are ordered by power, then by degree.
    """

    make_grid: Callable[..., nn.Module]  # (lmaxes_in, lmax_out, band) -> synthesis, analysis, points

    def __init__(self, in_layout: Layout, out_degrees: int | Iterable[int], correlation: int, num_elements: int) -> None:
        super().__init__(in_layout, out_degrees, correlation, num_elements)
        require_natural(type(self).__name__, "in_layout", in_layout)
        lmax, lmax_out = lmax_of(in_layout), max(self.out_degrees)
        self.num_weights = correlation * len(self.out)
        self.grid = self.make_grid((lmax,) * correlation, lmax_out, correlation * lmax + lmax_out)
        scales = torch.stack([power_scales(lmax, nu, self.out_degrees) for nu in range(1, correlation + 1)])
        self._scales = Table(scales.flatten()[:, None] / math.sqrt(correlation))
        powers = [(nu, 0, 0) for nu in range(1, correlation + 1)]
        self._rings = None if isinstance(self.grid, TorusGrid) else RingPowers(in_layout, lmax_out, powers)

    def forward(
        self, x: Float[Tensor, "atoms dim"], weights: Float[Tensor, "elements num_weights channels"], species: Int[Tensor, " atoms"]
    ) -> Float[Tensor, "atoms dim_out"]:
        self.check(x, weights, species)
        x = x.unflatten(-1, (-1, self.channels))
        if self._rings is not None and self._rings.has_kernel(x):
            return weighted_sum(self._rings(x), weights * self._scales(weights), species, self.out_degrees)
        samples = self.grid.synthesis(x)
        powers = [samples]
        for _ in range(1, self.correlation):
            powers.append(powers[-1] * samples)
        z = self.grid.analysis(torch.stack(powers, dim=1))  # [atoms, nu, harmonics, channels]
        return weighted_sum(z, weights * self._scales(weights), species, self.out_degrees)


class CompletePower(ManyBodyProduct):
    """Sum of products of a function f, a pseudo-function g and their bracket {f, g}, one synthesis of each and one analysis of each sort.

    Blocks of natural parity in ``in_layout`` are f; those of the other parity are g, as a convolution with all couplings gives them;
    without any, the terms are powers of f. The terms are f^a g^b {f,g}^c with a + b + 2c <= correlation and b even, those of natural
    parity; a weight for each term, out degree, channel and element. Each term has unit mean square for Gaussian features of unit
    variance; less than that with a bracket, whose factors are taken as independent: f and {f, g} are not.
    """

    make_grid: Callable[..., nn.Module]  # (lmaxes_in, lmax_out, band) -> synthesis_and_gradient, analysis, points

    def __init__(self, in_layout: Layout, out_degrees: int | Iterable[int], correlation: int, num_elements: int) -> None:
        super().__init__(in_layout, out_degrees, correlation, num_elements)
        self._side = Side("in_layout", in_layout)
        natural, pseudo = (sorted(self._side.blocks[kind]) for kind in (1, -1))
        if not natural:
            raise ValueError(
                f"{type(self).__name__} needs blocks of natural parity, (-1)^l, in in_layout, such as 64x0e+64x1o+64x1e, "
                f"got {format_irreps(in_layout)}; exchange the parities of all blocks"
            )
        lmax, lmax_out = lmax_of(in_layout), max(self.out_degrees)
        self.grid = self.make_grid((lmax,) * correlation, lmax_out, correlation * lmax + lmax_out)
        #: exponents (a, b, c) of f, g and their bracket; terms with an even power of the bracket first, as they are analysed together
        self.terms = sorted(
            (
                (a, b, c)
                for a in range(correlation + 1)
                for b in range(0, correlation + 1, 2)
                for c in range(correlation + 1)
                if 0 < a + b + 2 * c <= correlation and (pseudo or b == c == 0)
            ),
            key=lambda term: (term[2] % 2, sum(term) + term[2], term),
        )
        self.num_weights = len(self.terms) * len(self.out)
        scales = torch.stack([_term_scales(natural, pseudo, term, self.out_degrees) for term in self.terms])
        self._scales = Table(scales.flatten()[:, None] / math.sqrt(len(self.terms)))
        self._rings = RingPowers(in_layout, lmax_out, self.terms)

    def forward(
        self, x: Float[Tensor, "atoms dim"], weights: Float[Tensor, "elements num_weights channels"], species: Int[Tensor, " atoms"]
    ) -> Float[Tensor, "atoms dim_out"]:
        self.check(x, weights, species)
        x = x.unflatten(-1, (-1, self.channels))
        if self._rings.has_kernel(x):
            return weighted_sum(self._rings(x), weights * self._scales(weights), species, self.out_degrees)
        if self._side.blocks[-1]:
            f, f1, f2 = self.grid.synthesis_and_gradient(self._side.function(x, 1)).unbind(-3)
            g, g1, g2 = self.grid.synthesis_and_gradient(self._side.function(x, -1)).unbind(-3)
            made = {(1, 0, 0): f, (0, 1, 0): g, (0, 0, 1): torch.addcmul(f1 * g2, f2, g1, value=-1)}
        else:
            made = {(1, 0, 0): self.grid.synthesis(self._side.function(x, 1))}

        def term(a: int, b: int, c: int) -> Tensor:
            if (a, b, c) not in made:
                one, rest = ((1, 0, 0), (a - 1, b, c)) if a else ((0, 1, 0), (a, b - 1, c)) if b else ((0, 0, 1), (a, b, c - 1))
                made[a, b, c] = made[one] * term(*rest)
            return made[a, b, c]

        even, odd = ([term(*t) for t in self.terms if t[2] % 2 == parity] for parity in (0, 1))
        z = self.grid.analysis(torch.stack(even, dim=1))
        if odd:
            z = torch.cat([z, self.grid.analysis_of_bracket(torch.stack(odd, dim=1))], dim=1)
        return weighted_sum(z, weights * self._scales(weights), species, self.out_degrees)


def weighted_sum(
    z: Float[Tensor, "atoms terms harmonics channels"],
    weights: Float[Tensor, "elements num_weights channels"],
    species: Int[Tensor, " atoms"],
    degrees: tuple[int, ...],
) -> Float[Tensor, "atoms dim_out"]:
    """Sum of terms, each degree of each with the weight of the atom's element."""
    lmax = math.isqrt(z.shape[2]) - 1
    parts = z.split([2 * l + 1 for l in range(lmax + 1)], dim=2)
    per_degree = gather(weights, species).unflatten(1, (z.shape[1], len(degrees))).unsqueeze(3).unbind(2)  # [atoms, terms, 1, channels]
    return torch.cat([(parts[l] * w).sum(1) for l, w in zip(degrees, per_degree, strict=True)], dim=1).flatten(1)


def power_scales(lmax: int, nu: int, out_degrees: tuple[int, ...]) -> Float[Tensor, " degrees"]:
    """Per out degree, what makes the nu-th power of a Gaussian unit-variance feature of unit mean square."""
    return _term_scales(range(lmax + 1), (), (nu, 0, 0), out_degrees)


def _term_scales(natural: Sequence[int], pseudo: Sequence[int], term: tuple[int, int, int], out_degrees: tuple[int, ...]) -> Tensor:
    """The same of f^a g^b {f,g}^c, the three taken as independent: the degrees of f and of g have unit variance.

    Covariances of independent factors at two points of cosine t multiply; the projection on P_l3 is the mean square.
    """
    degree = term[0] * max(natural) + term[1] * max(pseudo, default=0) + term[2] * (max(natural) + max(pseudo, default=0))
    t, quadrature = np.polynomial.legendre.leggauss((degree + max(out_degrees)) // 2 + 1)
    legendre = np.polynomial.legendre.legvander(t, max(degree, *out_degrees))

    def covariance(variances: dict[int, float], power: int) -> np.ndarray:
        weights = np.array([variances.get(l, 0.0) * (2 * l + 1) / (4 * math.pi) for l in range(legendre.shape[1])])
        return _power_covariance(legendre @ weights, weights.sum(), power)

    brackets: dict[int, float] = {}
    for l1, l2 in itertools.product(natural, pseudo):
        for l3 in range(abs(l1 - l2), l1 + l2 + 1):
            strength = bracket_coefficient(l1, l2, l3)
            if strength:
                brackets[l3] = brackets.get(l3, 0.0) + (strength * gradient_scale(l1) * gradient_scale(l2)) ** 2 / (2 * l3 + 1)
    moment = (
        covariance(dict.fromkeys(natural, 1.0), term[0]) * covariance(dict.fromkeys(pseudo, 1.0), term[1]) * covariance(brackets, term[2])
    )
    squares = [2 * math.pi * quadrature @ (legendre[:, l] * moment) for l in out_degrees]
    return torch.tensor([1 / math.sqrt(s) if s > 1e-12 else 0.0 for s in squares], dtype=torch.float64)


def _power_covariance(covariance: np.ndarray, variance: float, nu: int) -> np.ndarray:
    """E[A^nu A'^nu] of a Gaussian function, by Isserlis' theorem, where E[A A'] = K and E[A^2] = K(1).

    sum_k binom(nu, k)^2 k! ((nu-k-1)!!)^2 K(1)^(nu-k) K^k over even nu-k.
    """
    moment = np.zeros_like(covariance)
    for k in range(nu % 2, nu + 1, 2):
        pairings = math.prod(range(nu - k - 1, 0, -2))  # of the copies within one point
        moment += math.comb(nu, k) ** 2 * math.factorial(k) * pairings**2 * variance ** (nu - k) * covariance**k
    return moment
