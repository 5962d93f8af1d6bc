"""The door for users of e3nn: products of any two irreps in e3nn's own memory order, with e3nn's numbers."""

import difflib
import math
from collections.abc import Iterable
from itertools import accumulate, groupby, pairwise
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from equimol.o3 import Block, Layout, Path, Table, coupling_paths, format_irreps, layout_dim, lmax_of, parse_irreps, split_blocks
from equimol.tensor_products.base import TensorProduct, require_trailing

MODES = ("full", "elementwise", "uvu")


def from_irreps(
    irreps1: object,
    irreps2: object,
    irreps_out: object = None,
    *,
    mode: str,
    product: str = "clebsch_gordan",
    couplings: str = "all",
    **options: Any,
) -> "IrrepsProduct":
    """A product with the inputs, the output and the weights of e3nn.

    "full" stands for ``o3.FullTensorProduct``, "elementwise" for ``o3.ElementwiseTensorProduct``, both without weights; "uvu" for
    the ``o3.TensorProduct`` of NequIP: z_u = sum over v of w_uv (x_u (x) y_v) for every pair of blocks and every irrep that it
    reaches, these kept apart and sorted. Weights stand in the order of ``instructions``: blocks of irreps1, then of irreps2, then
    degrees. MACE sorts its instructions by ``out``, so its weights must be reordered.

    Each pair of blocks is a product of its own: grids, which gain by doing all degrees at once, are slower here than
    "clebsch_gordan". Theirs is the layout of equal channels that ``TENSOR_PRODUCTS`` take directly.

    Args:
        irreps1, irreps2: e3nn's notation, or an object that prints so, such as ``e3nn.o3.Irreps``.
        irreps_out: irreps to keep, in the same notation or a list of them; multiplicities do not matter. None keeps all.
        mode: "full", "elementwise" or "uvu".
        product: a name in ``TENSOR_PRODUCTS``: how couplings are computed, not what they give. One that lacks some of them raises.
        couplings: "even" or "odd" leaves out the other couplings, which e3nn has.
        **options: settings of the product's class.
    """
    from equimol.tensor_products import TENSOR_PRODUCTS  # the table lists classes that stand beside this function

    _require_known("mode", mode, MODES)
    _require_known("product", product, TENSOR_PRODUCTS)
    in1, in2 = parse_irreps(str(irreps1)), parse_irreps(str(irreps2))
    if mode != "uvu":
        in1, in2 = _merge_neighbours(in1), _merge_neighbours(in2)
    if mode == "elementwise":
        in1, in2 = _pair_channels(in1, in2)
    paths = coupling_paths(in1, in2, range(lmax_of(in1) + lmax_of(in2) + 1), couplings)
    if mode == "elementwise":
        paths = [p for p in paths if p.i1 == p.i2]
    return IrrepsProduct(in1, in2, _keep(paths, irreps_out), mode, product, TENSOR_PRODUCTS[product], {"couplings": couplings, **options})


class Instruction(NamedTuple):
    """One path between blocks: the block ``in1`` of the first irreps with ``in2`` of the second gives ``out`` of the result."""

    in1: int
    in2: int
    out: int
    weight_shape: tuple[int, ...]  # (mul1, mul2), or () without weights


class IrrepsProduct(nn.Module):
    """Product of two features in e3nn's memory order, made by :func:`from_irreps`.

    Channels are outermost within a block, `[channels, 2l+1]`, not innermost as everywhere else in this library.
    """

    def __init__(
        self, in1: Layout, in2: Layout, paths: list[Path], mode: str, product: str, kind: type[TensorProduct], options: dict[str, Any]
    ) -> None:
        super().__init__()
        self._in1, self._in2, self.mode, self.product = in1, in2, mode, product
        out = [_out_block(in1[p.i1], in2[p.i2], p, mode) for p in paths]
        self._order = list(range(len(paths)))  # the path of each block of the output
        if mode != "elementwise":
            self._order.sort(key=lambda n: (out[n].l, out[n].parity))  # e3nn sorts these, odd before even
        sorted_out = tuple(out[n] for n in self._order)
        shapes = [(in1[p.i1].channels, in2[p.i2].channels) if mode == "uvu" else () for p in paths]
        #: in the order of the weights
        self.instructions = tuple(Instruction(p.i1, p.i2, self._order.index(n), shapes[n]) for n, p in enumerate(paths))
        self._blocks: list[tuple[int, int]] = []  # for each pair, its blocks of the inputs
        self._shares: list[int] = []  # and the number of its weights
        self._pairs = nn.ModuleList()
        for (i1, i2), members in groupby(paths, key=lambda p: (p.i1, p.i2)):
            degrees = [p.l3 for p in members]
            first, second = in1[i1], in2[i2]
            elements = second.channels if mode == "uvu" else 1
            if mode != "elementwise":
                second = second._replace(channels=1)  # every channel of it meets every channel of the first: they are a batch
            # rank=None: one path per block of out has nothing to mix
            self._pairs.append(_Pair(kind((first,), (second,), degrees, rank=None, **options), elements))
            self._blocks.append((i1, i2))
            self._shares.append(len(degrees) * first.channels * elements)
        self.irreps_in1, self.irreps_in2, self.irreps_out = (format_irreps(layout) for layout in (in1, in2, sorted_out))
        self.weight_numel = sum(self._shares) if mode == "uvu" else 0

    def forward(
        self,
        x: Float[Tensor, "... dim1"],
        y: Float[Tensor, "... dim2"],
        weights: Float[Tensor, "... weight_numel"] | None = None,
    ) -> Float[Tensor, "... dim_out"]:
        """The product. Leading dimensions broadcast; weights without any are shared by the batch."""
        self._check(x, y, weights)
        xs = [part.mT.flatten(-2) for part in _split_e3nn(x, self._in1)]  # channels innermost, as our products want it
        ys = _split_e3nn(y, self._in2)
        shares = [None] * len(self._pairs) if weights is None else weights.split(self._shares, dim=-1)
        parts: list[Tensor] = []  # one per path, `[..., channels, 2l+1]` flattened
        for pair, (i1, i2), share in zip(self._pairs, self._blocks, shares, strict=True):
            parts += self._couple(pair, xs[i1], ys[i2], share)
        return torch.cat([parts[n] for n in self._order], dim=-1)

    def _couple(
        self,
        pair: "_Pair",
        x: Float[Tensor, "... dim1"],
        y: Float[Tensor, "... mul2 components"],
        weights: Float[Tensor, "... share"] | None,
    ) -> list[Tensor]:
        mul2 = y.shape[-2]
        if weights is not None:
            weights = weights.unflatten(-1, (-1, pair.product.channels, mul2)).movedim(-1, -3)  # [..., v, path, u]
        if self.mode == "elementwise" or mul2 == 1:  # no axis v: a matrix of rows, for which products are fastest
            parts = pair(x, y.mT.flatten(-2), weights if weights is None else weights.squeeze(-3))
            return [z.mT.flatten(-2) for z in parts]
        parts = pair(x.unsqueeze(-2), y, weights)  # [..., v, 2*l3+1, u] each
        if self.mode == "full":
            return [z.movedim(-1, -3).flatten(-3) for z in parts]
        return [z.sum(-3).mT.flatten(-2) for z in parts]

    def _check(self, x: Tensor, y: Tensor, weights: Tensor | None) -> None:
        require_trailing("x", x, (layout_dim(self._in1),), f"a feature of irreps {self.irreps_in1}")
        require_trailing("y", y, (layout_dim(self._in2),), f"a feature of irreps {self.irreps_in2}")
        if self.mode != "uvu" and weights is not None:
            raise ValueError(f"mode {self.mode!r} has no weights, got {tuple(weights.shape)}; leave them out or use mode='uvu'")
        if self.mode == "uvu":
            if weights is None:
                raise ValueError(f"mode 'uvu' needs weights [..., {self.weight_numel}], got None; pass ones for a plain product")
            require_trailing("weights", weights, (self.weight_numel,), "mul1 * mul2 weights for each of `instructions`")


class _Pair(nn.Module):
    """The paths between two blocks, each with e3nn's factor in front of its wigner_3j."""

    def __init__(self, product: TensorProduct, elements: int) -> None:
        super().__init__()
        self.product = product
        # e3nn's irrep_normalization "component" and path_normalization "element", in units of the product's own factor
        factors = [math.sqrt((2 * path.l3 + 1) / elements) / t for path, t in product.coefficients().items()]
        self._factors = Table(torch.tensor(factors, dtype=torch.float64)[:, None])

    def forward(
        self,
        x: Float[Tensor, "... dim1"],
        y: Float[Tensor, "... dim2"],
        weights: Float[Tensor, "... paths channels"] | None,
    ) -> list[Float[Tensor, "... components channels"]]:
        """One block per path, ascending in degree."""
        factors = self._factors(x if weights is None else weights)
        per_path = factors.expand(-1, self.product.channels) if weights is None else weights * factors
        # With weights per degree those of in1 and in2 come first and stay ones; those of out are the paths', one path each.
        ones = self.product.num_weights - len(factors)
        if ones:
            per_path = torch.cat([per_path.new_ones(*per_path.shape[:-2], ones, per_path.shape[-1]), per_path], dim=-2)
        return split_blocks(self.product(x, y, per_path), self.product.out)


def _split_e3nn(x: Float[Tensor, "... dim"], layout: Layout) -> list[Float[Tensor, "... channels components"]]:
    """The blocks of a feature in e3nn's order, as views. One split, as in `split_blocks`."""
    parts = x.split([block.dim for block in layout], dim=-1)
    return [part.unflatten(-1, (block.channels, 2 * block.l + 1)) for part, block in zip(parts, layout, strict=True)]


def _out_block(first: Block, second: Block, path: Path, mode: str) -> Block:
    return Block(path.l3, path.p3, first.channels * second.channels if mode == "full" else first.channels)


def _keep(paths: list[Path], irreps_out: object) -> list[Path]:
    """The paths into an irrep of ``irreps_out``, or all."""
    text = "+".join(str(irrep) for irrep in irreps_out) if isinstance(irreps_out, list) else str(irreps_out)
    wanted = {(p.l3, p.p3) for p in paths} if irreps_out is None else {(block.l, block.parity) for block in parse_irreps(text)}
    kept = [p for p in paths if (p.l3, p.p3) in wanted]
    if not kept:
        reached = "+".join(Block(l, parity, 1).irrep for l, parity in sorted({(p.l3, p.p3) for p in paths}))
        raise ValueError(f"irreps_out must contain an irrep that the couplings reach, got {text}; reached are: {reached or 'none'}")
    return kept


def _merge_neighbours(layout: Layout) -> Layout:
    """Equal irreps that follow each other become one block, which changes nothing in memory."""
    groups = groupby(layout, key=lambda block: (block.l, block.parity))
    return tuple(Block(l, parity, sum(block.channels for block in group)) for (l, parity), group in groups)


def _pair_channels(in1: Layout, in2: Layout) -> tuple[Layout, Layout]:
    """Both layouts with their blocks cut, so that the n-th ones have equal channels."""
    ends1, ends2 = (list(accumulate(block.channels for block in layout)) for layout in (in1, in2))
    if ends1[-1] != ends2[-1]:
        raise ValueError(
            f"mode 'elementwise' pairs the channels of both inputs, got {ends1[-1]} in {format_irreps(in1)} and "
            f"{ends2[-1]} in {format_irreps(in2)}; use mode='full', which takes any"
        )
    cuts = sorted({0, *ends1, *ends2})

    def cut(layout: Layout, ends: list[int]) -> Layout:
        number = 0
        pieces = []
        for start, end in pairwise(cuts):
            number += start == ends[number]
            pieces.append(layout[number]._replace(channels=end - start))
        return tuple(pieces)

    return cut(in1, ends1), cut(in2, ends2)


def _require_known(what: str, word: str, words: Iterable[str]) -> None:
    known = list(words)
    if word not in known:
        near = difflib.get_close_matches(str(word), known, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{what} must be one of {', '.join(known)}, got {word!r}{hint}")
