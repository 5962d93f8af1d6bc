"""The ragged neighbourhoods of a graph as a rectangle: one row of slots per receiver."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from equimol.ops.function import Function
from equimol.ops.scatter import gather, scatter_sum


class Slots:
    """A place for each edge in a rectangle [atoms, width], where ``width`` is the largest number of neighbours.

    Sums over neighbours become matrix products on it. Slots without an edge hold zeros: whoever multiplies must make
    sure that at least one factor was filled by :meth:`fill`.

    Args:
        receivers: [edges], in any order; a stable order within each atom is kept.
        atoms: number of receivers, those without an edge included.
    """

    def __init__(self, receivers: Int[Tensor, " edges"], atoms: int) -> None:
        counts = torch.bincount(receivers, minlength=atoms)
        if len(counts) > atoms:
            raise ValueError(f"receivers must be below the number of atoms ({atoms}), got {int(receivers.max())}")
        self.atoms, self.width = atoms, int(counts.max()) if atoms and len(receivers) else 0
        order = torch.argsort(receivers, stable=True)
        place = torch.arange(len(receivers), device=receivers.device)
        rank = torch.empty_like(order).scatter_(0, order, place) - (torch.cumsum(counts, 0) - counts)[receivers]
        self.of_edge = receivers * self.width + rank  # [edges]

    def index(self, values: Int[Tensor, " edges"]) -> Int[Tensor, " slots"]:
        """An integer per edge, laid out by slot; 0 where there is no edge. Not differentiable."""
        return values.new_zeros(self.atoms * self.width).index_copy(0, self.of_edge, values)

    def fill(self, values: Float[Tensor, "edges ..."]) -> Float[Tensor, "slots ..."]:
        """A row per edge, laid out by slot; zero where there is no edge."""
        return _Fill.apply(values, self.of_edge, self.atoms * self.width)


class _Fill(Function):
    """Its derivative picks the slots of the edges, whose derivative fills again: any order, no sums."""

    @staticmethod
    def forward(values: Tensor, of_edge: Tensor, size: int) -> Tensor:
        return scatter_sum(values, of_edge, size)  # one edge per slot: a sum of one term

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(inputs[1])
        ctx.size = inputs[2]

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        return _Pick.apply(grad, ctx.saved_tensors[0], ctx.size), None, None


class _Pick(Function):
    @staticmethod
    def forward(values: Tensor, of_edge: Tensor, size: int) -> Tensor:
        return gather(values, of_edge)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(inputs[1])
        ctx.size = inputs[2]

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        return _Fill.apply(grad, ctx.saved_tensors[0], ctx.size), None, None
