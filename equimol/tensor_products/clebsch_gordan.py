"""The Clebsch-Gordan product: every coupling of two features, each with a weight of its own."""

from collections.abc import Iterable
from functools import reduce

import torch
from jaxtyping import Float
from torch import Tensor, nn

from equimol.o3 import Layout, Table, layout_dim, layout_slices, wigner_3j
from equimol.tensor_products.base import TensorProduct


class ClebschGordan(TensorProduct):
    """z_l3 = sum over paths of W_p t_p (x_l1 (x) y_l2)_l3, with t_p from ``coefficients()``.

    Paths that share a block of x (and of y, where it has channels) are one matrix product. Where y has one channel, as
    harmonics do, that matrix is y contracted with the coefficients: it is built once and serves all channels of x.
    """

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
        super().__init__(in1, in2, out_degrees, couplings=couplings, sum_paths=sum_paths, rank=rank)
        self._groups: dict[tuple[int, int | None], list[int]] = {}  # (block of x, block of y if it has channels) -> paths
        for number, path in enumerate(self.paths):
            self._groups.setdefault((path.i1, path.i2 if self.channels2 > 1 else None), []).append(number)
        self._tables = nn.ModuleList(Table(self._coupling_table(key, members)) for key, members in self._groups.items())

    def product(
        self, x: Float[Tensor, "... dim1"], y: Float[Tensor, "... dim2"], weights: Float[Tensor, "... num_weights channels"]
    ) -> Float[Tensor, "... dim_out"]:
        xs = [x[..., s].unflatten(-1, (-1, self.channels)) for s in layout_slices(self.in1)]
        ys = [y[..., s].unflatten(-1, (-1, self.channels2)) for s in layout_slices(self.in2)]
        factors = self.path_weights(weights).unsqueeze(-2).unbind(-3)  # per path [..., 1, channels]
        blocks: list[list[Tensor]] = [[] for _ in self.out]
        for make_table, ((i1, i2), members) in zip(self._tables, self._groups.items(), strict=True):
            table = make_table(x)
            coupled = self._couple(table, xs[i1], y) if i2 is None else self._couple_channels(table, xs[i1], ys[i2])
            parts = coupled.split([2 * self.paths[n].l3 + 1 for n in members], dim=-2)
            for n, part in zip(members, parts, strict=True):
                blocks[self.out_blocks[n]].append(part * factors[n])
        return torch.cat([reduce(torch.add, parts) for parts in blocks], dim=-2).flatten(-2)

    def flops(self) -> int:
        total = 0
        for (i1, i2), members in self._groups.items():
            rows = sum(2 * self.paths[n].l3 + 1 for n in members)
            size1 = 2 * self.in1[i1].l + 1
            if i2 is None:  # y with the table, the result with x
                total += 2 * rows * size1 * layout_dim(self.in2) + 2 * rows * size1 * self.channels
            else:  # x with y, the table with the result
                pairs = size1 * (2 * self.in2[i2].l + 1)
                total += (pairs + 2 * rows * pairs) * self.channels
            total += 2 * rows * self.channels  # weights and the sum of paths
        return total

    @staticmethod
    def _couple(table: Float[Tensor, "dim2 columns"], x: Float[Tensor, "... m1 channels"], y: Float[Tensor, "... dim2"]) -> Tensor:
        return (y @ table).unflatten(-1, (-1, x.shape[-2])) @ x

    @staticmethod
    def _couple_channels(
        table: Float[Tensor, "k pairs"], x: Float[Tensor, "... m1 channels"], y: Float[Tensor, "... m2 channels"]
    ) -> Float[Tensor, "... k channels"]:
        return table @ (x.unsqueeze(-2) * y.unsqueeze(-3)).flatten(-3, -2)

    def _coupling_table(self, key: tuple[int, int | None], members: list[int]) -> Tensor:
        """t_p wigner_3j of some paths: [y, (path m3) m1] if y has one channel, else [(path m3), m1 m2]."""
        t = self.coefficients()
        paths = [self.paths[n] for n in members]
        couplings = [t[p] * wigner_3j(p.l1, p.l2, p.l3) for p in paths]  # [m1, m2, m3] each
        if key[1] is not None:
            return torch.cat([c.flatten(0, 1).T for c in couplings])
        columns = []
        for path, coupling in zip(paths, couplings, strict=True):
            rows = coupling.new_zeros(sum(2 * b.l + 1 for b in self.in2), coupling.shape[2], coupling.shape[0])
            rows[layout_slices(self.in2)[path.i2]] = coupling.permute(1, 2, 0)
            columns.append(rows.flatten(1))
        return torch.cat(columns, dim=1)
