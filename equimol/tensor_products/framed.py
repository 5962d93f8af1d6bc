"""Convolutions that mix components in the frame of each edge, as one compiled sum over neighbours."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from equimol.o3 import Layout, Table, split_blocks
from equimol.o3.frames import PolarFrames
from equimol.ops import Entry, FramedSum, Rows, framed_sum
from equimol.ops.frames import PADDING


class FramedConvolution(nn.Module):
    """Turns features of the senders, mixes them by a table of entries, turns them back and sums: what a kernel does in one go.

    Directions that are near the poles are turned by a right angle first (see `PolarFrames`): here all features are, once for each atom,
    so that an edge takes those it needs, and adds to the sums of its kind.

    Args:
        frames: of the edges.
        in_layout, out: blocks of equal channels, or in ``out`` multiples of these.
        targets: where in ``out``, in rows of ``channels``.
        combinations, entries: of weights, and of the components that they mix: see `FramedSum`. Those of no weight are left out.
        num_weights: of an edge and channel.
    """

    def __init__(
        self,
        frames: PolarFrames,
        in_layout: Layout,
        out: Layout,
        targets: Sequence[Rows],
        combinations: Sequence[Sequence[tuple[int, float]]],
        entries: Sequence[Entry],
        num_weights: int,
    ) -> None:
        super().__init__()
        self.in_layout, self.out, self.channels = in_layout, out, in_layout[0].channels
        sources, rows = [], 0
        for block in in_layout:
            sources.append(Rows(block.l, rows, 1))
            rows += 2 * block.l + 1
        sizes = rows, sum(block.dim for block in out) // self.channels, num_weights
        self.form = FramedSum(frames.lmax, max(frames.rows) // 2, sources, targets, combinations, entries, sizes)
        elements = frames.tilt_elements()
        self._table = Table(torch.nn.functional.pad(elements, (0, -elements.shape[1] % PADDING)))

    def forward(
        self,
        frames: PolarFrames,
        features: Float[Tensor, "atoms dim"],
        directions: Float[Tensor, "edges 3"],
        senders: Int[Tensor, " edges"],
        receivers: Int[Tensor, " edges"],
        weights: Float[Tensor, "edges num_weights channels"],
    ) -> Float[Tensor, "atoms dim_out"]:
        tilts, turns, polar = frames.angles(directions)
        atoms, moved = len(features), polar * len(features)
        turned = [frames.turn_right(b.l, x).flatten(1) for b, x in zip(self.in_layout, split_blocks(features, self.in_layout), strict=True)]
        rows = torch.cat([features, torch.cat(turned, -1)]).unflatten(1, (-1, self.channels))
        sums = framed_sum(self.form, rows, tilts, turns, weights, senders + moved, receivers + moved, self._table(features)).flatten(1)
        blocks = zip(self.out, split_blocks(sums[atoms:], self.out), strict=True)
        return sums[:atoms] + torch.cat([frames.turn_right(b.l, z, back=True).flatten(1) for b, z in blocks], -1)
