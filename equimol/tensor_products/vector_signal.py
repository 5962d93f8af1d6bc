"""Features as scalar and vector fields on the sphere: even couplings by products of scalars, odd ones by cross products of vectors."""

import itertools
import math
from collections.abc import Iterable
from functools import reduce

import torch
from jaxtyping import Float
from torch import Tensor, nn

from equimol.o3 import (
    Layout,
    Path,
    bracket_coefficient,
    gauss_legendre_grid,
    lebedev_grid,
    spherical_harmonics,
    wigner_3j,
)
from equimol.tensor_products.base import TensorProduct, balance, sphere_strength
from equimol.tensor_products.signal_tables import SignalTables, ranked_by_tables, spread


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
                self.products.append(signal_tables((in1, in2, self.out), paths, scales, odd))

    def product(
        self, x: Float[Tensor, "... dim1"], y: Float[Tensor, "... dim2"], weights: Float[Tensor, "... num_weights channels"]
    ) -> Float[Tensor, "... dim_out"]:
        factors = [spread(f, layout) for f, layout in zip(self.rank_factors(weights), (self.in1, self.in2, self.out), strict=True)]
        return reduce(torch.add, (ranked_by_tables(multiply, x, y, factors) for multiply in self.products))

    def flops(self) -> int:
        weights = sum(2 * block.l + 1 for layout in (self.in1, self.in2, self.out) for block in layout)
        return self.channels * self.rank * (weights + sum(multiply.flops() for multiply in self.products))

    def strength(self, path: Path) -> float:
        """What the two kinds of signals give: within a block of ``out``, odd couplings differ by less than a factor 1.4 up to degree 8."""
        l1, l2, l3 = path[:3]
        return vector_strength(l1, l2, l3) if (l1 + l2 + l3) % 2 else sphere_strength(l1, l2, l3)


def signal_tables(
    layouts: tuple[Layout, Layout, Layout], paths: list[tuple[int, int, int]], scales: dict[int, float], odd: bool
) -> SignalTables:
    """Products of two features as scalar signals, or cross products as vector signals, at the points of a grid.

    The grid has one of each pair of antipodes. What is projected on a degree must then be the same at both, so signals of even and of
    odd l are kept apart, as are those of different parity.

    Args:
        layouts: of the two features and of the result.
        paths: the numbers of the three blocks of each coupling, all even or all odd.
        scales: what each block of the result is multiplied with.
        odd: vector signals, for odd couplings.
    """
    used = [sorted(set(numbers)) for numbers in zip(*paths, strict=True)]
    lmaxes = [max(layout[n].l for n in numbers) for layout, numbers in zip(layouts, used, strict=True)]
    points, weights = half_sphere(sum(lmaxes) - (3 if odd else 0))
    values = vector_signals(points, max(lmaxes)) if odd else scalar_signals(points, max(lmaxes))
    components = 3 if odd else 1
    if odd:
        weights = weights / math.sqrt(2)
    kinds = [[(layout[n].parity, layout[n].l % 2) for n in numbers] for layout, numbers in zip(layouts, used, strict=True)]
    groups = [list(dict.fromkeys(kind)) for kind in kinds]
    tables = []
    for role, (layout, numbers) in enumerate(zip(layouts, used, strict=True)):
        starts = list(itertools.accumulate((2 * block.l + 1 for block in layout), initial=0))
        table = torch.zeros(len(groups[role]), components, len(points), starts[-1], dtype=torch.float64)
        for n, kind in zip(numbers, kinds[role], strict=True):
            signal = values[layout[n].l].unflatten(0, (components, -1))
            if role == 2:
                signal = signal * weights[:, None] * scales[n]
            table[groups[role].index(kind), ..., starts[n] : starts[n + 1]] = signal
        tables.append(table.flatten(0, 1))
    terms = []
    for (g1, (parity1, odd1)), (g2, (parity2, odd2)) in itertools.product(*(enumerate(names) for names in groups[:2])):
        group = parity1 * parity2, (odd1 + odd2 + odd) % 2
        if group in groups[2]:
            g3 = groups[2].index(group)
            terms += [(components * g1 + i, components * g2 + j, components * g3 + k, sign) for i, j, k, sign in (CROSS if odd else DOT)]
    return SignalTables(tables, terms)


DOT = ((0, 0, 0, 1),)
CROSS = ((1, 2, 0, 1), (2, 0, 1, 1), (0, 1, 2, 1), (2, 1, 0, -1), (0, 2, 1, -1), (1, 0, 2, -1))


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
