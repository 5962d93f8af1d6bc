"""`coupled_sum` with weights that are looked up in a table, by blocks of edges: nothing of the size edges x weights reaches the memory."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from equimol.ops.convolution import CoupledSum, edges_of, require_within
from equimol.ops.function import Function, wanted_inputs
from equimol.ops.kernels import run

BLOCK_NUMBERS = 2**20  # weights of a block for each thread


class EdgeBlock(NamedTuple):
    """Consecutive edges, those of all neighbours of consecutive atoms."""

    edges: slice
    atoms: slice
    senders: Int[Tensor, " edges"]
    receivers: Int[Tensor, " edges"]
    by_receiver: tuple[Tensor, Tensor]  # where the edges of each of the atoms begin in their order, and that order
    by_sender: tuple[Tensor, Tensor]  # the same for the edges that leave each atom of the graph


def edge_blocks(senders: Int[Tensor, " edges"], receivers: Int[Tensor, " edges"], atoms: int, columns: int) -> list[EdgeBlock]:
    """Blocks of about so many edges that ``columns`` numbers for each fill `BLOCK_NUMBERS`. One graph's serve all layers of a model."""
    require_within(atoms, senders=senders, receivers=receivers)
    if bool((receivers[1:] < receivers[:-1]).any()):
        raise ValueError("receivers must be ascending, got some that are not; sort the edges by receiver")
    first, _ = edges_of(receivers, atoms)
    rows = max(1, BLOCK_NUMBERS * torch.get_num_threads() // columns)
    ends = torch.searchsorted(first, torch.arange(rows, len(receivers) + rows, rows, device=first.device), right=True) - 1
    bounds = sorted({0, *ends.tolist(), atoms})
    found = []
    for start, stop in zip(bounds, bounds[1:], strict=False):
        begin, end = int(first[start]), int(first[stop])
        mine = senders[begin:end].contiguous(), receivers[begin:end].contiguous()
        order = torch.arange(end - begin, device=first.device)
        of_atoms = first[start : stop + 1] - begin, order
        found.append(EdgeBlock(slice(begin, end), slice(start, stop), *mine, of_atoms, edges_of(mine[0], atoms)))
    return found


def tabulated_sum(
    form: CoupledSum,
    features: Float[Tensor, "atoms rows channels"],
    harmonics: Float[Tensor, "edges size"],
    table: Float[Tensor, "knots columns"],
    rows: Int[Tensor, "edges taps"],
    taps: Float[Tensor, "edges taps"],
    blocks: list[EdgeBlock],
) -> Float[Tensor, "atoms sums channels"]:
    """coupled_sum with weights sum_k taps_k table[rows_k] of an edge, a path's channels after another's. There must be a kernel.

    Once differentiable, in features, harmonics and taps; weights are looked up again for it.
    """
    channels = features.shape[2]
    if table.shape[1] != len(form.paths) * channels:
        raise ValueError(f"table must have {len(form.paths)} paths x {channels} channels for columns, got {table.shape[1]}")
    return _TabulatedSum.apply(form, features, harmonics, table, rows, taps, blocks)


class _TabulatedSum(Function):
    @staticmethod
    def forward(form, features, harmonics, table, rows, taps, blocks):
        x, y, channels = features.contiguous(), harmonics.contiguous(), features.shape[2]
        found = x.new_empty(len(x), form.sums, channels)
        kernel = form.kernel("by_sums", x)
        for block in blocks:
            weights = _look_up(table, rows[block.edges], taps[block.edges])
            atoms = block.atoms.stop - block.atoms.start
            run(kernel, atoms, channels, *block.by_receiver, block.senders, x, y[block.edges], weights, found[block.atoms])
        return found

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.form, features, harmonics, table, rows, taps, ctx.blocks = inputs
        ctx.save_for_backward(features, harmonics, table, rows, taps)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        features, harmonics, table, rows, taps = ctx.saved_tensors
        form, x, y, g, channels = ctx.form, features.contiguous(), harmonics.contiguous(), gradient.contiguous(), features.shape[2]
        of_y, of_taps = torch.empty_like(y), torch.empty_like(taps)
        of_x, part = (torch.zeros_like(x), torch.empty_like(x)) if wanted_inputs(ctx)[1] else (None, None)
        for block in ctx.blocks:
            at, here = block.edges, (channels, block.senders, block.receivers)
            with torch.enable_grad():
                tap = taps[at].detach().requires_grad_()
                looked_up = _look_up(table, rows[at], tap)
            weights, edges = looked_up.detach(), at.stop - at.start
            if of_x is not None:
                run(form.kernel("by_features", x), len(x), channels, *block.by_sender, block.receivers, g, y[at], weights, part)
                of_x += part
            run(form.kernel("by_harmonics", x), edges, *here, x, g, weights, of_y[at])
            slope = torch.empty_like(weights)
            run(form.kernel("by_weights", x), edges, *here, x, y[at], g, slope)
            (of_taps[at],) = torch.autograd.grad(looked_up, tap, slope)
        return None, of_x, of_y, None, None, of_taps, None


def _look_up(table: Tensor, rows: Tensor, taps: Tensor) -> Tensor:
    return torch.nn.functional.embedding_bag(rows, table, per_sample_weights=taps, mode="sum")
