"""Features as matrices: one matrix product holds every coupling, even ones in the anticommutator, odd ones in the commutator."""

import math
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from equimol.o3 import Layout, Path, Table, lmax_of, split_blocks, wigner_3j, wigner_6j
from equimol.tensor_products.base import TensorProduct
from equimol.tensor_products.row_blocks import in_row_blocks
from equimol.tensor_products.sphere_product import kind_of


class MatrixProduct(TensorProduct):
    """z = mean over r of c_r [(a_r x) * (b_r y)]_l3, where * multiplies the matrices X = sum_lm x_lm T^l_m of two features.

    ``rank=None`` means rank 1. Strengths t_p are not those of the sphere, and have signs.

    T^l_m = wigner_3j(j, l, j)[:, m, :] are the tensor operators of a spin j (the "fuzzy sphere"; j = 1 gives the 3x3 matrices of
    TensorNet). Those of l = 0..2j are a basis of all matrices, so that nothing is sampled, and multiply with 6j symbols:
    <T^l1 T^l2, T^l3> = (-1)^(l1+l2) {l1 l2 l3; j j j} wigner_3j(l1, l2, l3). T^l is symmetric for even l and antisymmetric for odd l,
    hence XY + YX holds the even couplings and XY - YX the odd ones. Some 6j symbols vanish by accident: j is the smallest integer
    at which none does that is needed.

    Others nearly vanish: of the strengths of L x L -> L within one block of the output, the largest is 1.0, 1.7, 3.2 and 3.6 times the
    smallest for L = 1 to 4, but 15, 23, 52 and 52 times for L = 5 to 8. Its place is at low degrees, with matrices of 3x3 (L = 2) or
    5x5 (L = 4).
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
        self.spin = _smallest_spin(self.paths, max(lmax_of(layout) for layout in (in1, in2, self.out)))
        self.size = 2 * self.spin + 1
        both_kinds = [len({kind_of(block) for block in layout}) == 2 for layout in (in1, in2)]
        self._sign = math.prod(kind_of(layout[0]) for layout, both in zip((in1, in2), both_kinds, strict=True) if not both)
        # An input of both kinds puts even and odd couplings into the same blocks of out: those not asked for are then subtracted.
        self._swapped = {"all": 0, "even": 1, "odd": -1}[couplings] if any(both_kinds) else 0
        self._embeddings = nn.ModuleList(Table(self._embedding(layout, both)) for layout, both in zip((in1, in2), both_kinds, strict=True))
        coefficients = self.coefficients()
        scales = {block: coefficients[path] / self.strength(path) for path, block in zip(self.paths, self.out_blocks, strict=True)}
        terms = 4 if self._swapped else 2  # matrix products that a coupling appears in
        self._members: dict[int, list[int]] = {}  # kind -> blocks of out
        for n, block in enumerate(self.out):
            self._members.setdefault(kind_of(block), []).append(n)
        self._projections = nn.ModuleList(
            Table(torch.cat([self._operators(self.out[n].l) * (scales[n] / terms) for n in blocks])) for blocks in self._members.values()
        )

    def product(
        self, x: Float[Tensor, "... dim1"], y: Float[Tensor, "... dim2"], weights: Float[Tensor, "... num_weights channels"]
    ) -> Float[Tensor, "... dim_out"]:
        return in_row_blocks(self._multiply, x, y, weights, self.rank * self.channels * self.size**2)

    def _multiply(self, x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
        a, b, c = self.rank_factors(weights)
        first, first_mirrored = self._matrices(0, x, a)
        second, second_mirrored = self._matrices(1, y, b)
        # X = N + P, its blocks of natural parity and the others; mirrored N - P. The sum of these two matrices has twice what is natural,
        # the anticommutators {N,N} and {P,P} and the commutators [N,P] and [P,N]; their difference has the rest.
        there, back = _matmul(first, second), _matmul(second_mirrored, first_mirrored)
        if self._swapped:
            there = torch.add(there, _matmul(second, first), alpha=self._swapped)
            back = torch.add(back, _matmul(first_mirrored, second_mirrored), alpha=self._swapped)
        blocks: dict[int, Tensor] = {}
        for (kind, members), projection in zip(self._members.items(), self._projections, strict=True):
            matrices = torch.add(there, back, alpha=kind * self._sign).flatten(-3, -2)
            parts = torch.matmul(projection(matrices), matrices).split([2 * self.out[n].l + 1 for n in members], dim=-2)
            blocks.update(zip(members, parts, strict=True))
        z = torch.cat([blocks[n] * factor.unsqueeze(-2) for n, factor in enumerate(c.unbind(-2))], dim=-2)
        return (z.squeeze(-3) if self.rank == 1 else z.mean(-3)).flatten(-2)

    def flops(self) -> int:
        n, components = self.size, [sum(2 * b.l + 1 for b in layout) for layout in (self.in1, self.in2, self.out)]
        embeddings = sum(2 * table.exact.numel() for table in self._embeddings)
        products = (4 if self._swapped else 2) * (2 * n - 1) * n**2
        sums = (len(self._members) + (2 if self._swapped else 0)) * n**2
        return self.channels * self.rank * (sum(components) + embeddings + products + sums + 2 * n**2 * components[2])

    def strength(self, path: Path) -> float:
        """The 6j symbol with its sign, times the balance of each degree."""
        symbol = wigner_6j(path.l1, path.l2, path.l3, self.spin, self.spin, self.spin)
        return (-1) ** (path.l1 + path.l2) * symbol * math.prod(_balance(l) for l in (path.l1, path.l2, path.l3))

    def _matrices(self, side: int, x: Tensor, factors: Float[Tensor, "... rank blocks channels"]) -> tuple[Tensor, Tensor]:
        """X, and X with the blocks that lack natural parity negated: [..., rank, n, n, channels] each."""
        blocks = zip(split_blocks(x.unsqueeze(-2), (self.in1, self.in2)[side]), factors.unbind(-2), strict=True)
        weighted = torch.cat([block * factor.unsqueeze(-2) for block, factor in blocks], dim=-2)
        matrices = torch.matmul(self._embeddings[side](x), weighted).unflatten(-2, (-1, self.size, self.size))
        return matrices.select(-4, 0), matrices.select(-4, -1)

    def _embedding(self, layout: Layout, mirrored: bool) -> Float[Tensor, "entries components"]:
        """Of X, and of its mirror image below it if that differs by more than the sign kept in ``_sign``."""
        tables = [torch.cat([self._operators(block.l) for block in layout]).T]
        if mirrored:
            tables.append(torch.cat([kind_of(block) * self._operators(block.l) for block in layout]).T)
        return torch.cat(tables)

    def _operators(self, l: int) -> Float[Tensor, "components entries"]:
        """T^l_m, balanced."""
        return _balance(l) * wigner_3j(self.spin, l, self.spin).transpose(0, 1).flatten(1)

    def extra_repr(self) -> str:
        return f"matrices={self.size}x{self.size}"


def _matmul(x: Float[Tensor, "... n n channels"], y: Float[Tensor, "... n n channels"]) -> Float[Tensor, "... n n channels"]:
    """The matrix product, channel by channel, as n outer products: batched products of matrices so small are several times slower."""
    first, *columns = x.unsqueeze(-2).unbind(-3)
    start, *rows = y.unsqueeze(-4).unbind(-3)
    z = first * start
    for column, row in zip(columns, rows, strict=True):
        z = torch.addcmul(z, column, row)
    return z


def _smallest_spin(paths: Iterable[Path], lmax: int) -> int:
    degrees = {(p.l1, p.l2, p.l3) for p in paths}
    spin = (lmax + 1) // 2
    while any(wigner_6j(*triple, spin, spin, spin) == 0 for triple in degrees):
        spin += 1
    return spin


def _balance(l: int) -> float:
    """What T^l is multiplied with: uniform strengths for small degrees, where 6j symbols are close to the sphere's 3j symbols."""
    return (2 * l + 1) ** 0.25
