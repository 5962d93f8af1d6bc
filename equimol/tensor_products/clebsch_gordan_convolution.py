"""The Clebsch-Gordan edge convolution of NequIP and MACE, arranged so that the coupling happens once per atom."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate, groupby

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from equimol.o3 import Block, Layout, coupling_paths, natural_layout, split_blocks, wigner_3j
from equimol.o3.tables import Table
from equimol.ops import CoupledSum, PathRows, Slots, TabulatedSum, coupled_sum, coupled_sum_by_blocks, gather, tabulated_sum
from equimol.ops.kernels import has_operator, is_traced
from equimol.tensor_products.base import EdgeConvolution


class ClebschGordanConvolution(EdgeConvolution):
    """Sum over neighbours of (feature of the sender) x (harmonics of the edge), a radial weight for each path.

    A_i,p = sum_j w_p(r_ij) (x_j (x) Y(r_ij))_p: Batatia et al. 2022, eq. 8. Paths stay apart: the block of degree l3 in
    ``out`` has ``channels`` times the number of paths into l3, path by path, for the linear layer that follows to mix.
    Compiled where there is a kernel (kernels/cpu/convolution.py). As PyTorch's operations the coupling, which is linear, is applied after
    the sum: sum_j Y_j (w_j x_j)^T is a matrix product per atom, and the Clebsch-Gordan coefficients then act on atoms instead of edges.

    Args:
        in_layout: blocks of equal channels.
        lmax_edge: degrees 0..lmax_edge of the harmonics.
        out_degrees: l3 kept, or the largest of them.
        couplings: "even" keeps l1+l2+l3 even (natural parity from natural parity), "all" also the pseudotensors.
    """

    def __init__(self, in_layout: Layout, lmax_edge: int, out_degrees: int | Iterable[int], *, couplings: str = "even") -> None:
        super().__init__(in_layout, lmax_edge, out_degrees)
        paths = coupling_paths(in_layout, natural_layout(lmax_edge, 1), self.out_degrees, couplings)
        self.paths = tuple(sorted(paths, key=lambda p: (p.l2, p.i1, p.l3)))  # weights in this order
        self.num_weights = len(self.paths)
        kinds = sorted({(p.l3, -p.p3) for p in self.paths})  # even parity first
        self._columns = {kind: [n for n, p in enumerate(self.paths) if (p.l3, -p.p3) == kind] for kind in kinds}
        self.out = tuple(Block(l, -minus, self.channels * len(columns)) for (l, minus), columns in self._columns.items())
        self._form, self._tabulated = (kind(*self._list_rows()) for kind in (CoupledSum, TabulatedSum))
        self._tables = nn.ModuleList()
        self._groups = []  # paths that share l2 and the block of x: one matrix product over neighbours each
        for (l2, i1), group in groupby(self.paths, key=lambda p: (p.l2, p.i1)):
            members = list(group)
            self._groups.append((l2, i1, members))
            self._tables.append(Table(_coupling_matrix(members)))

    def forward(
        self,
        features: Float[Tensor, "atoms dim"],
        harmonics: Float[Tensor, "edges harmonics"],
        senders: Int[Tensor, " edges"],
        receivers: Int[Tensor, " edges"],
        weights: Float[Tensor, "edges num_weights channels"],
    ) -> Float[Tensor, "atoms dim_out"]:
        self.check(features, harmonics, senders, receivers, weights)
        atoms, channels = features.shape[0], self.channels
        if is_traced() or has_operator("convolution", features, self._form.obstacle):
            rows, sum_up = features.unflatten(-1, (-1, channels)), coupled_sum_by_blocks if is_traced() else coupled_sum
            return sum_up(self._form, rows, harmonics, weights, senders, receivers).flatten(1)
        slots = Slots(receivers, atoms)
        neighbours = split_blocks(gather(features, slots.index(senders)), self.in_layout)  # [slots, 2*l1+1, channels] each
        angular = slots.fill(harmonics).unflatten(0, (atoms, slots.width)).split([2 * l + 1 for l in range(self.lmax_edge + 1)], -1)
        radial = slots.fill(weights).split([len(members) for _, _, members in self._groups], 1)
        coupled: list[Tensor] = []  # one [atoms, 2*l3+1, channels] per path
        for (l2, i1, members), w, table in zip(self._groups, radial, self._tables, strict=True):
            weighted = w.unsqueeze(2) * neighbours[i1].unsqueeze(1)  # [slots, paths, 2*l1+1, channels]
            columns = len(members) * (2 * self.in_layout[i1].l + 1)
            moments = torch.bmm(angular[l2].mT, weighted.reshape(atoms, slots.width, columns * channels))
            together = torch.matmul(table(moments), moments.view(atoms, (2 * l2 + 1) * columns, channels))
            coupled += together.split([2 * p.l3 + 1 for p in members], 1)
        return torch.cat([torch.cat([coupled[n] for n in columns], -1).flatten(1) for columns in self._columns.values()], -1)

    def by_table(
        self,
        features: Float[Tensor, "atoms dim"],
        harmonics: Float[Tensor, "edges harmonics"],
        senders: Int[Tensor, " edges"],
        receivers: Int[Tensor, " edges"],
        table: Float[Tensor, "knots columns"],
        first_rows: Int[Tensor, " edges"],
        blend: Float[Tensor, "edges 4"],
    ) -> Float[Tensor, "atoms dim_out"]:
        """The same with weights that are made of four rows of a constant table where they are needed. There must be a kernel."""
        rows, table = features.unflatten(-1, (-1, self.channels)), table.unflatten(1, (self.num_weights, self.channels))
        return tabulated_sum(self._tabulated, rows, harmonics, table, first_rows, blend, senders, receivers).flatten(1)

    def _list_rows(self) -> tuple[tuple[PathRows, ...], int, int, int]:
        """Where the rows of channels of each path are, and how many rows of features, harmonics and sums there are."""
        first = list(accumulate((2 * block.l + 1 for block in self.in_layout), initial=0))
        sums, places = 0, {}
        for (l3, _), columns in self._columns.items():
            places |= {n: (sums + column, len(columns)) for column, n in enumerate(columns)}
            sums += (2 * l3 + 1) * len(columns)
        rows = []
        for n, p in enumerate(self.paths):
            coefficients = (2 * p.l3 + 1) ** 0.5 * wigner_3j(p.l1, p.l2, p.l3)
            entries = tuple((*place, float(coefficients[tuple(place)])) for place in torch.nonzero(coefficients.abs() > 1e-12).tolist())
            rows.append(PathRows(first[p.i1], p.l2**2, *places[n], entries))
        return tuple(rows), first[-1], (self.lmax_edge + 1) ** 2, sums


def _coupling_matrix(paths: list) -> Float[Tensor, "rows columns"]:
    """Rows (path, m3), columns (m2, path, m1): component-normalised Clebsch-Gordan coefficients, zero between paths."""
    l1, l2 = paths[0].l1, paths[0].l2
    rows = []
    for n, p in enumerate(paths):
        block = torch.zeros(2 * p.l3 + 1, 2 * l2 + 1, len(paths), 2 * l1 + 1, dtype=torch.float64)
        block[:, :, n] = (2 * p.l3 + 1) ** 0.5 * wigner_3j(l1, l2, p.l3).permute(2, 1, 0)
        rows.append(block.flatten(1))
    return torch.cat(rows)
