"""Gaunt products: features as functions on the sphere, multiplied point by point (Luo et al. 2024, arXiv:2401.10216).

A pointwise product couples l1, l2 and l3 in fixed proportions, the Gaunt coefficients, and only where l1+l2+l3 is even;
weights belong to degrees, not to paths. Final classes name how functions are sampled: see gaunt_grid.py, gaunt_fourier.py.
"""

import math
from collections.abc import Iterable
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from equimol.o3 import Block, Layout, Table, gaunt_coefficient, lmax_of
from equimol.ops import Slots, gather, scatter_sum
from equimol.tensor_products.base import EdgeConvolution, ManyBodyProduct, TensorProduct, require_natural


class GauntProduct(TensorProduct):
    """z = mean over r of c_r [(a_r x)(b_r y)]_l3: pointwise product of two functions on the sphere.

    ``rank=None`` means rank 1. The same numbers as ClebschGordan of the same rank.
    """

    Sampling: ClassVar[type[nn.Module]]

    def __init__(
        self,
        in1: Layout,
        in2: Layout,
        out_degrees: int | Iterable[int],
        *,
        couplings: str = "all",
        sum_paths: bool = True,
        rank: int | None = None,
    ) -> None:
        super().__init__(in1, in2, out_degrees, couplings=couplings, sum_paths=sum_paths, rank=1 if rank is None else rank)
        require_natural(type(self).__name__, "in1", in1)
        require_natural(type(self).__name__, "in2", in2)
        self.sampling = make_sampling(self.Sampling, (lmax_of(in1), lmax_of(in2)), self.out_degrees)
        for name, layout in (("in1", in1), ("in2", in2), ("out", self.out)):
            self.register_buffer(f"_blocks_{name}", block_of_component([b.l for b in layout]), persistent=False)
        self.register_buffer("_components", natural_components(self.out_degrees), persistent=False)
        self._scales = Table(gaunt_scales(lmax_of(in1), lmax_of(in2), self.out_degrees)[:, None])

    def forward(
        self, x: Float[Tensor, "... dim1"], y: Float[Tensor, "... dim2"], weights: Float[Tensor, "... num_weights channels"]
    ) -> Float[Tensor, "... dim_out"]:
        self.check(x, y, weights)
        a, b, c = self.rank_factors(weights)  # [..., rank, blocks, channels]
        x = x.unflatten(-1, (1, -1, self.channels)) * a.index_select(-2, self._blocks_in1)
        y = y.unflatten(-1, (1, -1, self.channels2)) * b.index_select(-2, self._blocks_in2)
        z = self.sampling.analysis(self.sampling.synthesis(x) * self.sampling.synthesis(y))
        c = (c * self._scales(c)).index_select(-2, self._blocks_out)
        return (z.index_select(-2, self._components) * c).mean(-3).flatten(-2)


class GauntConvolution(EdgeConvolution):
    """A_i(r) = sum over neighbours of x_j(r) F_ij(r), with the filter F_ij(r) = sum_l w_l(r_ij) sum_m Y_lm(r_ij) Y_lm(r).

    Weights belong to the degrees of the filter; those of inputs and outputs are left to the linear layers around.
    With ``rank=R`` there are R filters, and ``out`` has R times the channels, filter by filter.
    """

    Sampling: ClassVar[type[nn.Module]]

    def __init__(self, in_layout: Layout, lmax_edge: int, out_degrees: int | Iterable[int], rank: int | None = None) -> None:
        super().__init__(in_layout, lmax_edge, out_degrees, rank=1 if rank is None else rank)
        require_natural(type(self).__name__, "in_layout", in_layout)
        lmax = lmax_of(in_layout)
        self.num_weights = self.rank * (lmax_edge + 1)
        self.out = tuple(Block(l, (-1) ** l, self.rank * self.channels) for l in self.out_degrees)
        self.sampling = make_sampling(self.Sampling, (lmax, lmax_edge), self.out_degrees)
        size, edge_size, points = (lmax + 1) ** 2, (lmax_edge + 1) ** 2, self.sampling.points
        # Per edge and channel, moments are size * edge_size multiplications of a matrix product, messages a few passes over
        # all points through memory: measured on CPU they cost the same where one is about five times the other.
        self.sums_first = size * edge_size <= 5 * points
        harmonics = self.sampling.synthesis(torch.eye(size, dtype=torch.float64))  # Y_k at each point
        edge_harmonics = self.sampling.synthesis(torch.eye(edge_size, dtype=torch.float64))
        self._harmonics, self._edge_harmonics = Table(harmonics), Table(edge_harmonics)
        self._zonal = Table(zonal_table(edge_harmonics))
        self.register_buffer("_components", natural_components(self.out_degrees), persistent=False)
        scales = gaunt_scales(lmax, lmax_edge, self.out_degrees)[block_of_component(self.out_degrees)]
        self._scales = Table(scales[:, None])

    def forward(
        self,
        features: Float[Tensor, "atoms dim"],
        harmonics: Float[Tensor, "edges harmonics"],
        senders: Int[Tensor, " edges"],
        receivers: Int[Tensor, " edges"],
        weights: Float[Tensor, "edges num_weights channels"],
    ) -> Float[Tensor, "atoms dim_out"]:
        self.check(features, harmonics, senders, receivers, weights)
        features = features.unflatten(-1, (-1, self.channels))
        weights = weights.unflatten(1, (self.rank, self.lmax_edge + 1))
        sum_samples = self.samples_of_moments if self.sums_first else self.samples_of_messages
        samples = sum_samples(features, harmonics, senders, receivers, weights)
        z = self.sampling.analysis(samples.flatten(-2)).index_select(-2, self._components)
        return (z * self._scales(z)).flatten(-2)

    def samples_of_messages(
        self,
        features: Float[Tensor, "atoms size channels"],
        harmonics: Float[Tensor, "edges harmonics"],
        senders: Int[Tensor, " edges"],
        receivers: Int[Tensor, " edges"],
        weights: Float[Tensor, "edges rank degrees channels"],
    ) -> Float[Tensor, "atoms points rank channels"]:
        """A_i(r) as the definition has it: sample, multiply for each edge, sum."""
        zonal = (harmonics @ self._zonal(harmonics)).unflatten(-1, (self.sampling.points, -1))  # [edges, points, degrees]
        filters = (zonal @ weights.transpose(1, 2).flatten(2)).unflatten(-1, (self.rank, self.channels))
        samples = self.sampling.synthesis(features).unsqueeze(-2)
        return scatter_sum(gather(samples, senders) * filters, receivers, len(features))

    def samples_of_moments(
        self,
        features: Float[Tensor, "atoms size channels"],
        harmonics: Float[Tensor, "edges harmonics"],
        senders: Int[Tensor, " edges"],
        receivers: Int[Tensor, " edges"],
        weights: Float[Tensor, "edges rank degrees channels"],
    ) -> Float[Tensor, "atoms points rank channels"]:
        """The same A_i(r), as sum_lm,k Y_lm(r) Y_k(r) M_lm,k with the moments M_lm,k = sum_j Y_lm(r_ij) w_l(r_ij) x_j,k.

        Moments are a matrix product over the neighbours of an atom, so edges never meet the grid.
        """
        atoms, size, channels = features.shape
        slots = Slots(receivers, atoms)
        neighbours = gather(features, slots.index(senders)).unsqueeze(2)  # [slots, size, 1, channels]
        angular = slots.fill(harmonics).unflatten(0, (atoms, slots.width))
        radial = slots.fill(weights).unsqueeze(1).unbind(3)  # per degree [slots, 1, rank, channels]
        moments = []
        for l, w in enumerate(radial):
            weighted = (neighbours * w).reshape(atoms, slots.width, size * self.rank * channels)
            moments.append(torch.bmm(angular[..., l * l : (l + 1) ** 2].mT, weighted))
        moments = torch.cat(moments, dim=1).view(atoms, harmonics.shape[1] * size, self.rank * channels)  # rows (lm, k)
        products = (self._edge_harmonics(moments)[:, :, None] * self._harmonics(moments)[:, None, :]).flatten(1)
        return (products @ moments).unflatten(-1, (self.rank, channels))


class GauntPower(ManyBodyProduct):
    """Sum over nu of w_nu(l3) [A(r)^nu]_l3: one synthesis, powers point by point, one analysis.

    Each power has unit mean square for Gaussian features of unit variance, and their sum for random unit-variance
    weights. Weights are ordered by power, then by degree.
    """

    Sampling: ClassVar[type[nn.Module]]

    def __init__(self, in_layout: Layout, out_degrees: int | Iterable[int], correlation: int, num_elements: int) -> None:
        super().__init__(in_layout, out_degrees, correlation, num_elements)
        lmax = lmax_of(in_layout)
        self.num_weights = correlation * len(self.out)
        self.sampling = make_sampling(self.Sampling, (lmax,) * correlation, self.out_degrees)
        self.register_buffer("_components", natural_components(self.out_degrees), persistent=False)
        self.register_buffer("_blocks_out", block_of_component(self.out_degrees), persistent=False)
        scales = torch.stack([power_scales(lmax, nu, self.out_degrees) for nu in range(1, correlation + 1)])
        self._scales = Table(scales.flatten()[:, None] / math.sqrt(correlation))

    def forward(
        self, x: Float[Tensor, "atoms dim"], weights: Float[Tensor, "elements num_weights channels"], species: Int[Tensor, " atoms"]
    ) -> Float[Tensor, "atoms dim_out"]:
        self.check(x, weights, species)
        samples = self.sampling.synthesis(x.unflatten(-1, (-1, self.channels)))
        powers = [samples]
        for _ in range(1, self.correlation):
            powers.append(powers[-1] * samples)
        z = self.sampling.analysis(torch.stack(powers, dim=1)).index_select(-2, self._components)  # [atoms, nu, size, channels]
        w = (weights * self._scales(weights)).unflatten(1, (self.correlation, -1)).index_select(2, self._blocks_out)
        return (z * gather(w, species)).sum(1).flatten(1)


def make_sampling(kind: type[nn.Module], lmaxes: tuple[int, ...], out_degrees: tuple[int, ...]) -> nn.Module:
    """Just fine enough that the projection of the product on each out degree is exact."""
    lmax_out = max(out_degrees)
    return kind(lmaxes, lmax_out, sum(lmaxes) + lmax_out)


def natural_components(degrees: tuple[int, ...]) -> Int[Tensor, " size"]:
    """Where the components of these degrees stand among all components of degrees 0, 1, 2, ..."""
    return torch.tensor([m for l in degrees for m in range(l * l, (l + 1) ** 2)])


def block_of_component(degrees: Iterable[int]) -> Int[Tensor, " size"]:
    """For each component of a feature, the number of its block."""
    return torch.tensor([n for n, l in enumerate(degrees) for _ in range(2 * l + 1)])


def zonal_table(harmonics: Float[Tensor, "points size"]) -> Float[Tensor, "size columns"]:
    """Maps Y(r_ij) to its zonal functions sum_m Y_lm(r_ij) Y_lm(r) of each degree at each point."""
    lmax = math.isqrt(harmonics.shape[1]) - 1
    degrees = torch.nn.functional.one_hot(block_of_component(range(lmax + 1))).to(harmonics)  # [size, degrees]
    return (harmonics.T[:, :, None] * degrees[:, None, :]).flatten(1)


def gaunt_scales(lmax1: int, lmax2: int, out_degrees: tuple[int, ...]) -> Float[Tensor, " degrees"]:
    """Per out degree, what makes the product of two unit-variance features a unit-variance feature."""
    scales = []
    for l3 in out_degrees:
        power = sum(gaunt_coefficient(l1, l2, l3) ** 2 for l1 in range(lmax1 + 1) for l2 in range(lmax2 + 1))
        scales.append(math.sqrt((2 * l3 + 1) / power))
    return torch.tensor(scales, dtype=torch.float64)


def power_scales(lmax: int, nu: int, out_degrees: tuple[int, ...]) -> Float[Tensor, " degrees"]:
    """Per out degree, what makes the nu-th power of a Gaussian unit-variance feature of unit mean square.

    With the covariance K(t) = sum_l (2l+1)/(4 pi) P_l(t) of the function at two points of cosine t, Isserlis' theorem gives
    E[A^nu A'^nu] = sum_k binom(nu, k)^2 k! ((nu-k-1)!!)^2 K(1)^(nu-k) K(t)^k over even nu-k; its degree l3 is the mean square.
    """
    t, quadrature = np.polynomial.legendre.leggauss((nu * lmax + max(out_degrees)) // 2 + 1)
    legendre = np.polynomial.legendre.legvander(t, max(lmax, *out_degrees))
    covariance = legendre[:, : lmax + 1] @ (2 * np.arange(lmax + 1) + 1) / (4 * math.pi)
    variance = (lmax + 1) ** 2 / (4 * math.pi)
    moment = np.zeros_like(t)
    for k in range(nu % 2, nu + 1, 2):
        pairings = math.prod(range(nu - k - 1, 0, -2))  # of the copies within one point
        moment += math.comb(nu, k) ** 2 * math.factorial(k) * pairings**2 * variance ** (nu - k) * covariance**k
    squares = [2 * math.pi * quadrature @ (legendre[:, l] * moment) for l in out_degrees]
    scales = [1 / math.sqrt(s) if l <= nu * lmax else 0.0 for l, s in zip(out_degrees, squares, strict=True)]
    return torch.tensor(scales, dtype=torch.float64)
