"""Products of two functions on the sphere: pointwise, by the surface Poisson bracket, or both from one synthesis.

The pointwise product (Luo et al. 2024, arXiv:2401.10216) holds the couplings with l1+l2+l3 even; the bracket r.(grad A x grad B)
(Bochkarev et al. 2026, arXiv:2605.15073) those with an odd sum, the cross product among them. Final classes: gaunt_grid.py,
gaunt_fourier.py, bracket_grid.py, complete_grid.py.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from functools import reduce

import torch
from jaxtyping import Float
from torch import Tensor, nn

from equimol.o3 import Block, Layout, SphereGrid, Table, TorusGrid, format_irreps, lmax_of, mirrored_rings
from equimol.ops import Term
from equimol.tensor_products.base import TensorProduct, balance, sphere_strength
from equimol.tensor_products.row_blocks import in_row_blocks
from equimol.tensor_products.signal_tables import RingSignal, RingTables, SignalTables, ranked, ranked_by_tables, spread


class SphereProduct(TensorProduct):
    """z = mean over r of c_r [(a_r x) * (b_r y)]_l3, where * multiplies functions on the sphere.

    ``rank=None`` means rank 1. The same numbers as ClebschGordan of the same rank. In each layout an irrep may appear once; degrees
    need not be contiguous. Blocks of natural parity, (-1)^l, together are one function on the sphere, the others are a second one,
    a pseudo-function: even couplings of two functions of a kind give a function, odd ones a pseudo-function, and so on.
    """

    make_grid: Callable[..., nn.Module]  # (lmaxes_in, lmax_out, band) -> synthesis, gradient, analysis, points, flops

    def __init__(
        self,
        in1: Layout,
        in2: Layout,
        out_degrees: int | Iterable[int],
        *,
        couplings: str = "all",
        sum_paths: bool = True,
        rank: int | None = None,
        **grid: str,
    ) -> None:
        super().__init__(in1, in2, out_degrees, couplings=couplings, sum_paths=sum_paths, rank=1 if rank is None else rank)
        self._sides = [Side(name, layout) for name, layout in (("in1", in1), ("in2", in2))]
        lmaxes, lmax_out = (lmax_of(in1), lmax_of(in2)), max(self.out_degrees)
        self.grid = self.make_grid(lmaxes, lmax_out, sum(lmaxes) + lmax_out, **grid)
        #: (kind of in1, kind of in2) -> which of even (0) and odd (1) couplings some path needs
        self.products: dict[tuple[int, int], set[int]] = {}
        for p in self.paths:
            self.products.setdefault((kind_of(in1[p.i1]), kind_of(in2[p.i2])), set()).add((p.l1 + p.l2 + p.l3) % 2)
        coefficients = self.coefficients()
        scales = {}  # what normalises a block of out, for its even and its odd paths alike
        for path, block in zip(self.paths, self.out_blocks, strict=True):
            scales[block] = coefficients[path] / sphere_strength(path.l1, path.l2, path.l3)
        scales = [balance(b.l) * scales[n] for n, b in enumerate(self.out)]
        balances = [[balance(b.l) for b in layout] for layout in (in1, in2)]
        self._dense = dense_tables(self) if isinstance(self.grid, SphereGrid) else None
        self._rings = ring_tables(self) if not isinstance(self.grid, TorusGrid) and grid.get("algorithm", "auto") == "auto" else None
        self._factors = nn.ModuleList(Table(torch.tensor(f, dtype=torch.float64)[:, None]) for f in (*balances, scales))

    def product(
        self, x: Float[Tensor, "... dim1"], y: Float[Tensor, "... dim2"], weights: Float[Tensor, "... num_weights channels"]
    ) -> Float[Tensor, "... dim_out"]:
        if self._rings is not None and self._rings.has_kernel(x):
            return ranked_by_tables(self._rings, x, y, self._spread(weights))
        if self._dense is not None:
            return ranked_by_tables(self._dense, x, y, self._spread(weights))
        return in_row_blocks(
            lambda *row: ranked(self._on_grid, *row[:2], self._spread(row[2])), x, y, weights, self.grid.points * self.channels * self.rank
        )

    def flops(self) -> int:
        total = sum(2 * b.l + 1 for layout in (self.in1, self.in2, self.out) for b in layout)  # the weights
        if self._dense is not None:
            return self.channels * self.rank * (total + self._dense.flops())
        sizes = [(lmax_of(layout) + 1) ** 2 for layout in (self.in1, self.in2)]
        for parities in self.products.values():
            signals = (0 in parities) + 2 * (1 in parities)
            total += sum(self.grid.flops(size, signals, 0) for size in sizes) + self.grid.flops(0, 0, len(parities))
            total += self.grid.points * ((0 in parities) + 3 * (1 in parities))
        return self.channels * self.rank * total

    def pointwise(self, x: Tensor, y: Tensor) -> Tensor:
        """Coefficients [..., rank, harmonics, channels] of the product of two functions."""
        return self.grid.analysis(self.grid.synthesis(x) * self.grid.synthesis(y))

    def bracket(self, x: Tensor, y: Tensor) -> Tensor:
        """Coefficients of the bracket of two functions."""
        return self.grid.analysis_of_bracket(_cross(self.grid.gradient(x).unbind(-3), self.grid.gradient(y).unbind(-3)))

    def both(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Product and bracket from one synthesis of each function."""
        f, *gradient1 = self.grid.synthesis_and_gradient(x).unbind(-3)
        g, *gradient2 = self.grid.synthesis_and_gradient(y).unbind(-3)
        return self.grid.analysis(f * g), self.grid.analysis_of_bracket(_cross(gradient1, gradient2))

    def _spread(self, weights: Tensor) -> list[Float[Tensor, "... rank components channels"]]:
        factors = zip(self.rank_factors(weights), self._factors, (self.in1, self.in2, self.out), strict=True)
        return [spread(f * table(f), layout) for f, table, layout in factors]

    def _on_grid(self, x: Tensor, y: Tensor) -> Tensor:
        degrees: dict[int, list[tuple[Tensor, ...]]] = {1: [], -1: []}  # per kind, the coefficients of every degree, term by term
        for (kind1, kind2), parities in self.products.items():
            f, g = self._sides[0].function(x, kind1), self._sides[1].function(y, kind2)
            terms = self.both(f, g) if parities == {0, 1} else (self.pointwise(f, g),) if parities == {0} else (self.bracket(f, g),)
            for odd, z in zip(sorted(parities), terms, strict=True):
                degrees[kind1 * kind2 * (-1) ** odd].append(z.split([2 * l + 1 for l in range(self.grid.lmax_out + 1)], dim=-2))
        blocks = [reduce(torch.add, (by_degree[block.l] for by_degree in degrees[kind_of(block)])) for block in self.out]
        return torch.cat(blocks, dim=-2)


def list_signals(product: SphereProduct) -> tuple[tuple[list[tuple[int, int]], ...], list[Term]]:
    """Per role (in1, in2, out) the signals: a kind, and 0, 1, 2 for the value and the gradients of an input, 0, 1 for even, odd out.

    And which are multiplied.
    """
    signals: tuple[list[tuple[int, int]], ...] = ([], [], [])
    terms: list[Term] = []
    for (kind1, kind2), parities in product.products.items():
        for odd, first, second, sign in ((0, 0, 0, 1), (1, 1, 2, 1), (1, 2, 1, -1)):
            if odd in parities:
                term = (kind1, first), (kind2, second), (kind1 * kind2 * (-1) ** odd, odd)
                for known, signal in zip(signals, term, strict=True):
                    if signal not in known:
                        known.append(signal)
                terms.append((*(known.index(signal) for known, signal in zip(signals, term, strict=True)), sign))
    return signals, terms


def ring_tables(product: SphereProduct) -> RingTables:
    """A product on rings: every signal of each feature by sums along meridians and along rings."""
    signals, terms = list_signals(product)
    layouts, lmaxes = (product.in1, product.in2, product.out), (lmax_of(product.in1), lmax_of(product.in2))
    lmax_out = max(product.out_degrees)
    rings = mirrored_rings(max(lmaxes), lmax_out, sum(lmaxes) + lmax_out)
    roles = []
    for role, (known, layout) in enumerate(zip(signals, layouts, strict=True)):
        starts = list(itertools.accumulate((2 * block.l + 1 for block in layout), initial=0))
        of_kind = {kind: {b.l: start for start, b in zip(starts, layout, strict=False) if kind_of(b) == kind} for kind in (1, -1)}
        functions = rings.analyses if role == 2 else rings.signals
        roles.append(
            [RingSignal(functions[n], of_kind[kind], along=role < 2 and n == 2, mirrored=role < 2 and n == 1) for kind, n in known]
        )
    return RingTables(roles, terms, [sum(2 * block.l + 1 for block in layout) for layout in layouts], rings)


def dense_tables(product: SphereProduct) -> SignalTables:
    """A product on a dense grid: every signal of each feature by one table."""
    signals, terms = list_signals(product)
    layouts, grid = (product.in1, product.in2, product.out), product.grid
    units = [torch.eye((lmax_of(layout) + 1) ** 2, dtype=torch.float64) for layout in layouts[:2]]
    points = torch.eye(grid.points, dtype=torch.float64)
    samples = [*map(grid.synthesis_and_gradient, units), torch.stack([grid.analysis(points).T, grid.analysis_of_bracket(points).T])]
    tables = [
        torch.stack([_of_kind(sample[which], kind, layout) for kind, which in known])
        for known, sample, layout in zip(signals, samples, layouts, strict=True)
    ]
    return SignalTables(tables, terms)


class Side:
    """Which rows of a feature are its function and which its pseudo-function."""

    def __init__(self, name: str, layout: Layout) -> None:
        if len({(b.l, b.parity) for b in layout}) != len(layout):
            raise ValueError(
                f"{name} must have each irrep once, as functions on the sphere do, got {format_irreps(layout)}; merge equal irreps"
            )
        self.sizes = [2 * b.l + 1 for b in layout]
        self.blocks = {kind: {b.l: n for n, b in enumerate(layout) if kind_of(b) == kind} for kind in (1, -1)}

    def function(self, x: Float[Tensor, "... components channels"], kind: int) -> Float[Tensor, "... harmonics channels"]:
        """Coefficients of degrees 0 to the largest one of this kind, zero where the layout has none."""
        members = self.blocks[kind]
        if list(members.items()) == [(n, n) for n in range(len(self.sizes))]:
            return x
        parts = x.split(self.sizes, dim=-2)
        rows = [parts[members[l]] if l in members else x.new_zeros(*x.shape[:-2], 2 * l + 1, x.shape[-1]) for l in range(max(members) + 1)]
        return torch.cat(rows, dim=-2)


def _cross(f: Sequence[Tensor], g: Sequence[Tensor]) -> Tensor:
    """f_1 g_2 - f_2 g_1"""
    return torch.addcmul(f[0] * g[1], f[1], g[0], value=-1)


def kind_of(block: Block) -> int:
    """1 for natural parity, -1 for the other."""
    return block.parity * (-1) ** block.l


def _of_kind(table: Float[Tensor, "points harmonics"], kind: int, layout: Layout) -> Float[Tensor, "points components"]:
    """The columns of a layout's components, zero where a block is of the other kind."""
    return torch.cat([table[:, b.l**2 : (b.l + 1) ** 2] * (kind_of(b) == kind) for b in layout], dim=1)
