"""Edge convolutions with functions on the sphere: the feature of the sender times a filter around the direction of the edge.

A_i = sum over neighbours of x_j * F_ij, with the filter F_ij(r) = sum_l w_l(r_ij) sum_m Y_lm(r_ij) Y_lm(r), where * is the product of
sphere_product.py. Weights belong to the degrees of the filter; those of inputs and outputs are left to the linear layers around.
"""

from collections.abc import Callable, Iterable
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from equimol.o3 import Block, Layout, Path, Table, layout_slices, lmax_of, natural_layout, wigner_3j
from equimol.ops import CoupledSum, PathRows, Slots, coupled_sum, filtered_sum, gather
from equimol.ops.kernels import has_operator, is_traced
from equimol.tensor_products.base import EdgeConvolution, balance, require_natural, sphere_strength
from equimol.tensor_products.clebsch_gordan import ClebschGordan


class SphereConvolution(EdgeConvolution):
    """Sum over neighbours of products of functions on the sphere. Natural parity in.

    The same numbers as ``ClebschGordan`` of rank 1 with each edge's harmonics, its factors a and c one, then the sum. With
    ``rank=R`` there are R filters, and ``out`` has R times the channels, filter by filter.
    """

    couplings: ClassVar[str]
    make_grid: Callable[..., nn.Module]  # (lmaxes_in, lmax_out, band) -> synthesis, gradient, analysis, points

    def __init__(self, in_layout: Layout, lmax_edge: int, out_degrees: int | Iterable[int], rank: int | None = None) -> None:
        super().__init__(in_layout, lmax_edge, out_degrees, rank=1 if rank is None else rank)
        require_natural(type(self).__name__, "in_layout", in_layout)
        single = natural_layout(lmax_of(in_layout), 1)
        product = ClebschGordan(single, natural_layout(lmax_edge, 1), self.out_degrees, couplings=self.couplings, rank=1)
        self.num_weights = self.rank * (lmax_edge + 1)
        self.out = tuple(Block(b.l, b.parity, self.rank * self.channels) for b in product.out)
        lmaxes, lmax_out = (lmax_of(in_layout), lmax_edge), max(self.out_degrees)
        grid = self.make_grid(lmaxes, lmax_out, sum(lmaxes) + lmax_out)
        # Per edge and channel, moments are a product of all harmonics with all components, messages a few passes over the signals at all
        # points, in the cache: measured on a CPU they cost the same where the first number is about three times the second.
        signals = {"even": 1, "odd": 2, "all": 3}[self.couplings]
        moments_first = (lmaxes[0] + 1) ** 2 * (lmax_edge + 1) ** 2 <= 3 * signals * grid.points
        self.sum = SumOfMoments(product, lmax_edge, self.rank) if moments_first else SumOfMessages(product, lmaxes, grid)

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
        return self.sum(features, harmonics, senders, receivers, weights).flatten(1)


class SumOfMoments(nn.Module):
    """Sum first, couple then: moments M_lm,k = sum_j Y_lm(r_ij) w_l(r_ij) x_j,k, a convolution that has a kernel.

    Without one they are a matrix product over the neighbours of an atom. The coupling is a constant table on them. Edges never meet the
    grid; the cost per edge grows as (lmax+1)^4.
    """

    def __init__(self, product: ClebschGordan, lmax_edge: int, rank: int) -> None:
        super().__init__()
        self.table = Table(coupling_table(product, product.coefficients()))
        self.lmax_edge, size = lmax_edge, sum(2 * block.l + 1 for block in product.in1)
        pairs = (lmax_edge + 1) ** 2 * size
        paths = []
        for r in range(rank):
            for l in range(lmax_edge + 1):
                entries = tuple((k, m, m * size + k, 1.0) for m in range(2 * l + 1) for k in range(size))
                paths.append(PathRows(0, l * l, r * pairs + l * l * size, 1, entries))
        self._form = CoupledSum(paths, size, (lmax_edge + 1) ** 2, rank * pairs)

    def forward(
        self,
        features: Float[Tensor, "atoms size channels"],
        harmonics: Float[Tensor, "edges harmonics"],
        senders: Int[Tensor, " edges"],
        receivers: Int[Tensor, " edges"],
        weights: Float[Tensor, "edges rank degrees channels"],
    ) -> Float[Tensor, "atoms components rank*channels"]:
        atoms, size, channels = features.shape
        rank = weights.shape[1]
        if not is_traced() and has_operator("convolution", features):
            found = coupled_sum(self._form, features, harmonics, weights.flatten(1, 2), senders, receivers)
            moments = found.unflatten(1, (rank, -1)).transpose(1, 2).flatten(2)
            return torch.matmul(self.table(moments), moments)
        slots = Slots(receivers, atoms)
        neighbours = gather(features, slots.index(senders)).unsqueeze(2)  # [slots, size, 1, channels]
        angular = slots.fill(harmonics).unflatten(0, (atoms, slots.width))
        radial = slots.fill(weights).unsqueeze(1).unbind(3)  # per degree [slots, 1, rank, channels]
        moments = []
        for l, w in enumerate(radial):
            weighted = (neighbours * w).reshape(atoms, slots.width, size * rank * channels)
            moments.append(torch.bmm(angular[..., l * l : (l + 1) ** 2].mT, weighted))
        moments = torch.cat(moments, dim=1).view(atoms, harmonics.shape[1] * size, rank * channels)  # rows (lm, k)
        return torch.matmul(self.table(moments), moments)


class SumOfMessages(nn.Module):
    """Multiply on the grid for each edge, sum the values there, analyse the sums: the definition, O(lmax^3) per edge."""

    def __init__(self, product: ClebschGordan, lmaxes: tuple[int, int], grid: nn.Module) -> None:
        super().__init__()
        self.grid, self.out = grid, product.out
        parities = {(p.l1 + p.l2 + p.l3) % 2 for p in product.paths}
        self.even, self.odd = 0 in parities, 1 in parities
        sizes = [(l + 1) ** 2 for l in lmaxes]
        balances = [torch.tensor([balance(l) for l in degree_of_component(lmax)], dtype=torch.float64) for lmax in lmaxes]
        self.balance = Table(balances[0][:, None])
        unit = torch.eye(sizes[1], dtype=torch.float64) * balances[1]
        filters, self.terms = [], []
        if self.even:
            filters.append(grid.synthesis(unit)[None])
            self.terms.append((0, 0, 0, 1))
        if self.odd:
            filters.append(grid.gradient(unit))
            first, result = int(self.even), int(self.even)
            self.terms += [(first, first + 1, result, 1), (first + 1, first, result, -1)]
        self.zonal = Table(torch.stack([_zonal_table(s) for s in torch.cat(filters)], dim=1))  # [harmonics, signals, points, degrees]
        coefficients = product.coefficients()
        norms = {product.out_blocks[n]: coefficients[p] / sphere_strength(p.l1, p.l2, p.l3) for n, p in enumerate(product.paths)}
        scales = [norms[n] * balance(b.l) for n, b in enumerate(product.out) for _ in range(2 * b.l + 1)]
        self.scales = Table(torch.tensor(scales, dtype=torch.float64)[:, None])

    def forward(
        self,
        features: Float[Tensor, "atoms size channels"],
        harmonics: Float[Tensor, "edges harmonics"],
        senders: Int[Tensor, " edges"],
        receivers: Int[Tensor, " edges"],
        weights: Float[Tensor, "edges rank degrees channels"],
    ) -> Float[Tensor, "atoms components rank*channels"]:
        features = features * self.balance(features)
        if self.even and self.odd:
            samples = self.grid.synthesis_and_gradient(features)
        else:
            samples = self.grid.synthesis(features).unsqueeze(1) if self.even else self.grid.gradient(features)
        summed = filtered_sum(samples, harmonics, weights.transpose(1, 2), senders, receivers, self.zonal(harmonics), tuple(self.terms))
        summed = summed.flatten(-2).unbind(1)
        parts: dict[int, tuple[Tensor, ...]] = {}  # by parity of the couplings, coefficients of each degree
        if self.even:
            parts[0] = self._degrees(self.grid.analysis(summed[0]))
        if self.odd:
            parts[1] = self._degrees(self.grid.analysis_of_bracket(summed[-1]))
        z = torch.cat([parts[0 if b.parity == (-1) ** b.l else 1][b.l] for b in self.out], dim=-2)  # natural inputs: parity tells
        return z * self.scales(z)

    def _degrees(self, z: Tensor) -> tuple[Tensor, ...]:
        return z.split([2 * l + 1 for l in range(self.grid.lmax_out + 1)], dim=-2)


def coupling_table(product: ClebschGordan, coefficients: dict[Path, float]) -> Float[Tensor, "components pairs"]:
    """t_p wigner_3j of all paths as one matrix: rows are components of ``out``, columns pairs (component of in2, component of in1)."""
    slices1, slices2, rows = layout_slices(product.in1), layout_slices(product.in2), layout_slices(product.out)
    sizes = [sum(2 * b.l + 1 for b in layout) for layout in (product.out, product.in2, product.in1)]
    table = torch.zeros(*sizes, dtype=torch.float64)
    for (path, t), block in zip(coefficients.items(), product.out_blocks, strict=True):
        table[rows[block], slices2[path.i2], slices1[path.i1]] = t * wigner_3j(path.l1, path.l2, path.l3).permute(2, 1, 0)
    return table.flatten(1)


def degree_of_component(lmax: int) -> list[int]:
    """0, 1, 1, 1, 2, ...: the degree of each component of a natural feature."""
    return [l for l in range(lmax + 1) for _ in range(2 * l + 1)]


def _zonal_table(signal: Float[Tensor, "points size"]) -> Float[Tensor, "size points degrees"]:
    """Maps Y(r_ij) to a signal of its zonal functions sum_m Y_lm(r_ij) Y_lm(r), one per degree, at each point."""
    lmax = int(signal.shape[1] ** 0.5) - 1
    degrees = torch.nn.functional.one_hot(torch.tensor(degree_of_component(lmax))).to(signal)  # [size, degrees]
    return signal.T[:, :, None] * degrees[:, None, :]
