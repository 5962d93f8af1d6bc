"""Linear layers over channels: per degree, per element, a small perceptron for scalars, and PyTorch's by a faster product.

Weights of the first three are drawn with variance 1 and divided by sqrt(channels in) when they are used, as in e3nn: the variance of
features is kept, and one learning rate moves the weights of narrow and wide layers by the same share.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from equimol.o3 import Layout, format_irreps, split_blocks
from equimol.ops import gather
from equimol.ops.kernels import is_traced
from equimol.ops.linear import linear


def _paired(in_layout: Layout, out_layout: Layout) -> list[tuple[int, int]]:
    """Blocks of equal degree and parity; an output block may have no input."""
    kinds = {(b.l, b.parity): n for n, b in enumerate(in_layout)}
    if len(kinds) != len(in_layout):
        raise ValueError(f"each degree and parity may appear once, got {format_irreps(in_layout)}; merge equal irreps")
    return [(kinds[b.l, b.parity], n) for n, b in enumerate(out_layout) if (b.l, b.parity) in kinds]


def _mixed(x: Float[Tensor, "... n"], matrix: Float[Tensor, "n out"]) -> Float[Tensor, "... out"]:
    """x @ matrix as one product: of a block with gaps between its atoms PyTorch would make as many small ones, many times slower."""
    return (x.reshape(-1, x.shape[-1]) @ matrix).unflatten(0, x.shape[:-1])


class DegreeLinear(nn.Module):
    """Mixes channels, one matrix per degree: [..., dim_in] -> [..., dim_out]. No bias: it would point somewhere.

    Output blocks that the input cannot reach are zero.
    """

    def __init__(self, in_layout: Layout, out_layout: Layout) -> None:
        super().__init__()
        self.in_layout, self.out_layout = in_layout, out_layout
        self._pairs = {o: i for i, o in _paired(in_layout, out_layout)}  # output block: input block
        self.weights = nn.ParameterList(torch.randn(in_layout[i].channels, out_layout[o].channels) for o, i in self._pairs.items())

    def forward(self, x: Float[Tensor, "... dim_in"]) -> Float[Tensor, "... dim_out"]:
        parts, weights, out = split_blocks(x, self.in_layout), iter(self.weights), []
        for n, block in enumerate(self.out_layout):
            if n in self._pairs:
                i = self._pairs[n]
                out.append(_mixed(parts[i], next(weights) / self.in_layout[i].channels ** 0.5).flatten(-2))
            else:
                out.append(x.new_zeros(*x.shape[:-1], block.dim))
        return out[0] if len(out) == 1 else torch.cat(out, -1)


class ElementLinear(nn.Module):
    """Mixes channels, one matrix per degree *and element*: [atoms, dim_in], [atoms] -> [atoms, dim_out]."""

    def __init__(self, in_layout: Layout, out_layout: Layout, num_elements: int) -> None:
        super().__init__()
        self.in_layout, self.out_layout, self.num_elements = in_layout, out_layout, num_elements
        self._pairs = {o: i for i, o in _paired(in_layout, out_layout)}  # output block: input block
        self.weights = nn.ParameterList(
            torch.randn(num_elements, in_layout[i].channels, out_layout[o].channels) for o, i in self._pairs.items()
        )

    def forward(self, x: Float[Tensor, "atoms dim_in"], species: Int[Tensor, " atoms"]) -> Float[Tensor, "atoms dim_out"]:
        if is_traced():  # how many atoms there are of each element is no size of a program: a matrix for each atom
            parts, weights = split_blocks(x, self.in_layout), (gather(w, species) / w.shape[1] ** 0.5 for w in self.weights)
            pairs = ((block, self._pairs.get(n)) for n, block in enumerate(self.out_layout))
            out = [x.new_zeros(x.shape[0], b.dim) if i is None else torch.bmm(parts[i], next(weights)).flatten(1) for b, i in pairs]
            return torch.cat(out, -1)
        order = torch.argsort(species, stable=True)
        counts = torch.bincount(species, minlength=self.num_elements).tolist()
        parts, weights, out = split_blocks(gather(x, order), self.in_layout), iter(self.weights), []
        for n, block in enumerate(self.out_layout):
            if n in self._pairs:
                i = self._pairs[n]
                matrices = (next(weights) / self.in_layout[i].channels ** 0.5).unbind(0)
                products = [_mixed(part, matrix) for part, matrix in zip(parts[i].split(counts), matrices, strict=True) if len(part)]
                out.append(torch.cat(products).flatten(-2) if products else x.new_zeros(0, block.dim))
            else:
                out.append(x.new_zeros(len(x), block.dim))
        return gather(out[0] if len(out) == 1 else torch.cat(out, -1), torch.argsort(order))


class ScalarMLP(nn.Module):
    """Perceptron for invariants without biases: zero in, zero out, which keeps an envelope's zeros.

    Hidden activations are silu, scaled to keep the variance of a standard normal input.
    """

    SILU_GAIN = 1.6765324703310909  # 1 / sqrt(E[silu(z)^2]), z standard normal

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.weights = nn.ParameterList(torch.randn(a, b) for a, b in zip(widths, widths[1:], strict=False))

    def forward(self, x: Float[Tensor, "rows width_in"]) -> Float[Tensor, "rows width_out"]:
        for n, weight in enumerate(self.weights):
            x = linear(x, (weight / len(weight) ** 0.5).T)
            if n + 1 < len(self.weights):
                x = nn.functional.silu(x) * self.SILU_GAIN
        return x


class Linear(nn.Linear):
    """``torch.nn.Linear``, by `equimol.ops.linear`."""

    def forward(self, x: Float[Tensor, "... n"]) -> Float[Tensor, "... out"]:
        if x.ndim == 2:
            return linear(x, self.weight, self.bias)
        return linear(x.flatten(0, -2), self.weight, self.bias).unflatten(0, x.shape[:-1])
