"""Features as scalar and vector fields on the sphere: even couplings by products of scalars, odd ones by cross products of vectors."""

import itertools
import math
from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from equimol.o3 import (
    Layout,
    Path,
    Table,
    bracket_coefficient,
    gauss_legendre_grid,
    lebedev_grid,
    spherical_harmonics,
    split_blocks,
    wigner_3j,
)
from equimol.tensor_products.base import TensorProduct, balance, sphere_strength
from equimol.tensor_products.row_blocks import in_row_blocks


class VectorSignal(TensorProduct):
    """z = mean over r of c_r [(a_r x) * (b_r y)]_l3 by signals on the sphere with values in the irreps 0 and 1 (Xie et al. 2026).

    ``rank=None`` means rank 1. Even couplings are those of two scalar signals, sum x_lm Y_lm: the Gaunt product. Odd ones are those of
    the cross product of two vector signals, sum x_lm V_lm, projected on vector signals; the strengths t_p are not those of the sphere.

    Of the vector harmonics of total degree l we take those of orbital degree l-1, V_l = grad(r^l Y_l) / sqrt(l(2l+1)). They reach every
    odd coupling, on a grid whose band is lower by three than that of Y_l. Two vectors need a single point, where all that happens is
    their cross product.

    It is another road to the bracket of ``BracketGrid``: the integral of V_l3 . (V_l1 x V_l2) is l1+l2+l3 times that of
    Y_l3 r.(grad Y_l1 x grad Y_l2), apart from a factor per degree. It takes fewer points and more signals at each: three for an input
    and three for the output, where gradients are two and their bracket is one. arXiv:2602.21466 has the general products.
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
        super().__init__(in1, in2, out_degrees, couplings=couplings, sum_paths=sum_paths, rank=1 if rank is None else rank)
        coefficients = self.coefficients()
        scales = {block: coefficients[path] / self.strength(path) for path, block in zip(self.paths, self.out_blocks, strict=True)}
        self.products = nn.ModuleList()
        for odd in (False, True):
            paths = [(p.i1, p.i2, n) for p, n in zip(self.paths, self.out_blocks, strict=True) if (p.l1 + p.l2 + p.l3) % 2 == odd]
            if paths:
                self.products.append(SignalProduct((in1, in2, self.out), paths, scales, odd))

    def product(
        self, x: Float[Tensor, "... dim1"], y: Float[Tensor, "... dim2"], weights: Float[Tensor, "... num_weights channels"]
    ) -> Float[Tensor, "... dim_out"]:
        return in_row_blocks(self._multiply, x, y, weights, self.rank * self.channels * max(multiply.values for multiply in self.products))

    def _multiply(self, x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
        a, b, c = self.rank_factors(weights)
        xs, ys = _weighted(x, self.in1, a), _weighted(y, self.in2, b)
        blocks: dict[int, Tensor] = {}
        for multiply in self.products:
            for n, block in multiply(xs, ys).items():
                blocks[n] = blocks[n] + block if n in blocks else block
        z = torch.cat([blocks[n] * factor.unsqueeze(-2) for n, factor in enumerate(c.unbind(-2))], dim=-2)
        return (z.squeeze(-3) if self.rank == 1 else z.mean(-3)).flatten(-2)

    def flops(self) -> int:
        weights = sum(2 * block.l + 1 for layout in (self.in1, self.in2, self.out) for block in layout)
        return self.channels * self.rank * (weights + sum(multiply.flops() for multiply in self.products))

    def strength(self, path: Path) -> float:
        """What the two kinds of signals give: within a block of ``out``, odd couplings differ by less than a factor 1.4 up to degree 8."""
        l1, l2, l3 = path[:3]
        return vector_strength(l1, l2, l3) if (l1 + l2 + l3) % 2 else sphere_strength(l1, l2, l3)


class SignalProduct(nn.Module):
    """Products of two features as scalar signals, or cross products as vector signals, at the points of a grid.

    The grid has one of each pair of antipodes. What is projected on a degree must then be the same at both, so signals of even and of
    odd l are kept apart, as are those of different parity.

    Args:
        layouts: of the two features and of the result.
        paths: the numbers of the three blocks of each coupling, all even or all odd.
        scales: what each block of the result is multiplied with.
        odd: vector signals, for odd couplings.
    """

    def __init__(
        self, layouts: tuple[Layout, Layout, Layout], paths: list[tuple[int, int, int]], scales: dict[int, float], odd: bool
    ) -> None:
        super().__init__()
        used = [sorted(set(numbers)) for numbers in zip(*paths, strict=True)]
        lmaxes = [max(layout[n].l for n in numbers) for layout, numbers in zip(layouts, used, strict=True)]
        points, weights = half_sphere(sum(lmaxes) - (3 if odd else 0))
        self.odd, self.points, self.values = odd, len(points), len(points) * (3 if odd else 1)
        signals = (vector_signals if odd else scalar_signals)(points, max(lmaxes))
        weights = weights.repeat(3)[:, None] / math.sqrt(2) if odd else weights[:, None]
        self.first, self.second = (
            Signals(layout, {n: signals[layout[n].l] for n in numbers}) for layout, numbers in zip(layouts[:2], used[:2], strict=True)
        )
        self.result = Signals(layouts[2], {n: signals[layouts[2][n].l] * weights * scales[n] for n in used[2]})
        #: pairs of groups with the group of their product, where it is wanted
        self.pairs = []
        for (parity1, odd1), (parity2, odd2) in itertools.product(self.first.groups, self.second.groups):
            group = parity1 * parity2, (odd1 + odd2 + odd) % 2
            if group in self.result.groups:
                self.pairs.append(((parity1, odd1), (parity2, odd2), group))

    def forward(self, x: Sequence[Tensor], y: Sequence[Tensor]) -> dict[int, Tensor]:
        """Blocks of the result, by number, of all blocks `[..., 2l+1, channels]` of the two features."""
        first, second = self.first.sample(x), self.second.sample(y)
        values: dict[tuple[int, int], Tensor] = {}
        for group1, group2, group in self.pairs:
            f, g = first[group1], second[group2]
            fg = _cross(f, g) if self.odd else f * g
            values[group] = values[group] + fg if group in values else fg
        return self.result.project(values)

    def flops(self) -> int:
        """For one pair of channels."""
        tables = sum(signals.flops() for signals in (self.first, self.second, self.result))
        sums = len(self.pairs) - len(self.result.groups)
        return tables + self.points * (9 * len(self.pairs) + 3 * sums if self.odd else len(self.pairs) + sums)


class Signals(nn.Module):
    """Blocks of a feature as signals on a grid, summed within groups of the same parity and the same l % 2.

    Args:
        layout: of the feature.
        tables: values of the signals of some blocks, by number, `[values, 2l+1]`.
    """

    def __init__(self, layout: Layout, tables: dict[int, Tensor]) -> None:
        super().__init__()
        self.groups: dict[tuple[int, int], list[int]] = {}
        for n in tables:
            self.groups.setdefault((layout[n].parity, layout[n].l % 2), []).append(n)
        self._sizes = {n: table.shape[1] for n, table in tables.items()}
        self._tables = nn.ModuleList(Table(torch.cat([tables[n] for n in members], dim=1)) for members in self.groups.values())

    def sample(self, blocks: Sequence[Tensor]) -> dict[tuple[int, int], Float[Tensor, "... values channels"]]:
        """Values of the signal of each group."""
        members = [torch.cat([blocks[n] for n in numbers], dim=-2) for numbers in self.groups.values()]
        return {group: torch.matmul(table(x), x) for group, table, x in zip(self.groups, self._tables, members, strict=True)}

    def project(self, values: dict[tuple[int, int], Float[Tensor, "... values channels"]]) -> dict[int, Tensor]:
        """The blocks whose signals these values are, if the tables contain the weights of the quadrature."""
        blocks: dict[int, Tensor] = {}
        for (group, numbers), table in zip(self.groups.items(), self._tables, strict=True):
            parts = torch.matmul(table(values[group]).mT, values[group]).split([self._sizes[n] for n in numbers], dim=-2)
            blocks.update(zip(numbers, parts, strict=True))
        return blocks

    def flops(self) -> int:
        """Of one transform, either way."""
        return sum(2 * table.exact.numel() for table in self._tables)


def vector_strength(l1: int, l2: int, l3: int) -> float:
    """Coefficient of wigner_3j in the cross product of `vector_signals`, over sqrt(2), as each component is a difference of two products.

    It is then as large as those of scalar signals.
    """
    norms = math.prod(math.sqrt(l * (2 * l + 1)) * (2 * l + 1) ** 0.125 for l in (l1, l2, l3))
    return (l1 + l2 + l3) * bracket_coefficient(l1, l2, l3) / norms / math.sqrt(2)


def half_sphere(band: int) -> tuple[Float[Tensor, "points 3"], Float[Tensor, "points"]]:
    """Unit vectors and weights that integrate even polynomials of degree <= band over the sphere; odd ones come out wrong."""
    if band < 2:
        return gauss_legendre_grid(0)  # one point: such polynomials are constant
    points, weights = lebedev_grid(band)
    kept = points @ points.new_tensor([1, math.sqrt(2), math.pi]) > 0  # one of each pair: no point of any rule lies on this plane
    return points[kept], 2 * weights[kept]


def scalar_signals(points: Float[Tensor, "points 3"], lmax: int) -> list[Float[Tensor, "points components"]]:
    """Per degree the harmonics times `balance`, which `sphere_strength` counts on."""
    harmonics = spherical_harmonics(points, lmax, "integral").split([2 * l + 1 for l in range(lmax + 1)], dim=-1)
    return [y * balance(l) for l, y in enumerate(harmonics)]


def vector_signals(points: Float[Tensor, "points 3"], lmax: int) -> list[Float[Tensor, "values components"]]:
    """Per degree V_l / (2l+1)^(1/8), x, y and z of all points one after the other; zero for degree 0."""
    harmonics = spherical_harmonics(points, lmax, "integral").split([2 * l + 1 for l in range(lmax + 1)], dim=-1)
    signals = [points.new_zeros(3 * len(points), 1)]
    for l in range(1, lmax + 1):
        coupling = math.sqrt(2 * l + 1) * wigner_3j(l - 1, 1, l)  # what makes V_l, of unit norm, of Y_(l-1) and a unit vector
        signals.append(torch.einsum("pk,kim->ipm", harmonics[l - 1], coupling).flatten(0, 1) / (2 * l + 1) ** 0.125)
    return signals


def _weighted(x: Tensor, layout: Layout, factors: Float[Tensor, "... rank blocks channels"]) -> list[Tensor]:
    """The blocks of a feature, each times its factors: [..., rank, 2l+1, channels]."""
    blocks = split_blocks(x.unsqueeze(-2), layout)
    return [block * factor.unsqueeze(-2) for block, factor in zip(blocks, factors.unbind(-2), strict=True)]


def _cross(f: Float[Tensor, "... values channels"], g: Float[Tensor, "... values channels"]) -> Float[Tensor, "... values channels"]:
    (f1, f2, f3), (g1, g2, g3) = f.chunk(3, dim=-2), g.chunk(3, dim=-2)
    rows = (f2, g3, f3, g2), (f3, g1, f1, g3), (f1, g2, f2, g1)
    return torch.cat([torch.addcmul(a * b, c, d, value=-1) for a, b, c, d in rows], dim=-2)
