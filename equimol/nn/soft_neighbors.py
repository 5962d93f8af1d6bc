"""The soft graph of nearest neighbours of EScAIP: an edge fades out as it becomes long, or as nearer atoms crowd it out on either side."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from equimol.ops.function import Function


class SoftNeighbors(NamedTuple):
    """Settings of the graph. Edges count with weight exp(-x^2 / (1 - x^2)) of their soft rank x < 1; see :meth:`ranks`."""

    cutoff: float = 6.0  # Å
    neighbors: int = 30  # about so many atoms are seen
    width: float = 0.2  # Å; nearer than pi times this, two atoms share their ranks
    softness: float = 0.1  # of the maximum over distance and the two ranks
    smooth: bool = True  # False: as published, ranks with a kink in their slope, counted among so many nearest atoms only
    spare: int = 20  # of the published form: atoms beyond ``neighbors`` that are counted

    @property
    def reach(self) -> float:
        """Å; an atom at this distance still counts in the rank of one at the cutoff."""
        return self.cutoff + math.pi * self.width

    def step(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """From 0 to 1 as one atom becomes clearly farther than another."""
        return smooth_step(x) if self.smooth else sine_step(x)

    def indices(
        self, distances: Float[Tensor, " edges"], receivers: Int[Tensor, " edges"], reverse: Int[Tensor, " edges"], atoms: int
    ) -> dict[str, Tensor]:
        """What :meth:`ranks` needs, and ``kept``: the edges with a weight, ascending. Not differentiable.

        Args:
            distances: Å, of all edges up to ``reach``.
            receivers: ascending.
            reverse: the edge that runs the other way.
            atoms: number of receivers.
        """
        edges = len(distances)
        counts = torch.bincount(receivers, minlength=atoms)
        order = torch.argsort(distances, stable=True)
        order = order[torch.argsort(receivers[order], stable=True)]  # by receiver, then distance
        place = torch.arange(edges, device=order.device) - (torch.cumsum(counts, 0) - counts)[receivers]
        nearest = torch.full((atoms, int(counts.max()) if edges else 0), edges, device=order.device)
        nearest[receivers, place] = order  # one row per atom, edges by distance; `edges` where there is none
        padded = torch.cat([distances, distances.new_full((1,), math.inf)])
        by_distance = padded[nearest]
        if self.smooth:
            last = by_distance[:, self.neighbors - 1 : self.neighbors]
            last = last if last.shape[1] else by_distance.new_full((atoms, 1), math.inf)
            limit = (last + math.pi * self.width).clamp(max=self.cutoff)  # beyond, so many atoms are nearer that the weight is zero
            wide = int((by_distance < limit + math.pi * self.width).sum(1).max()) if edges else 0
            narrow = int((by_distance < limit).sum(1).max()) if edges else 0
        else:
            wide = narrow = min(nearest.shape[1], self.neighbors + self.spare - 1)  # the atom itself is one of them
        ranked = torch.full((edges + 1,), -1, device=order.device)
        ranked[nearest[:, :narrow].flatten()] = torch.arange(atoms * narrow, device=order.device)
        here, there = ranked[:edges], ranked[reverse]
        kept = torch.nonzero((here >= 0) & (there >= 0) & (distances < self.cutoff)).flatten()
        found = {
            "nearest": nearest[:, :wide],
            "candidates": nearest[:, :narrow],
            "kept": kept,
            "ranks": torch.stack([here, there])[:, kept],
        }
        inside = self.ranks(distances, found) < 1
        return found | {"kept": kept[inside], "ranks": found["ranks"][:, inside]}

    def indices_within(
        self, distances: Float[Tensor, " edges"], receivers: Int[Tensor, " edges"], reverse: Int[Tensor, " edges"], atoms: int, size: int
    ) -> tuple[dict[str, Tensor], Bool[Tensor, " edges"], Int[Tensor, ""]]:
        """:meth:`indices` by operations whose sizes are given: ``size`` atoms around each, ``neighbors`` of them or more.

        Also which edges have a weight, as all of them are kept, and how many atoms would have been enough.
        """
        edges = distances.shape[0]
        ones = torch.ones_like(receivers)
        counts = ones.new_zeros(atoms).scatter_add(0, receivers, ones)
        order = torch.argsort(distances, stable=True)
        order = order[torch.argsort(receivers[order], stable=True)]
        everything = torch.arange(edges, device=order.device)
        place = torch.empty_like(order).scatter(0, order, everything - (torch.cumsum(counts, 0) - counts)[receivers])
        counted = place < (size if self.smooth else self.neighbors + self.spare - 1)
        at = torch.where(counted, receivers * size + place, atoms * size)  # in `nearest`
        nearest = at.new_full((atoms * size + 1,), edges).scatter(0, at, everything)[: atoms * size].reshape(atoms, size)
        if self.smooth:
            padded = torch.cat([distances, distances.new_full((1,), math.inf)])
            limit = (padded[nearest[:, self.neighbors - 1]] + math.pi * self.width).clamp(max=self.cutoff)
            seen = (distances < limit[receivers] + math.pi * self.width).to(ones.dtype)
            enough = counts.new_zeros(atoms).scatter_add(0, receivers, seen).max()
        else:
            enough = counts.max().clamp(max=self.neighbors + self.spare - 1)
        both = counted & counted[reverse] & (distances < self.cutoff)
        here = torch.where(both, at, 0)
        found = {
            "nearest": nearest,
            "candidates": nearest,
            "kept": everything,
            "ranks": torch.stack([here, torch.where(both, at[reverse], 0)]),
        }
        return found, both & (self.ranks(distances, found) < 1), enough.clamp(min=self.neighbors)

    def ranks(self, distances: Float[Tensor, " edges"], indices: dict[str, Tensor]) -> Float[Tensor, " kept"]:
        """A soft maximum of distance / cutoff and of the edge's ranks among the neighbours of its two atoms / ``neighbors``.

        softness * log sum exp(./softness) of the three; a rank is the sum over all atoms k of step((d - d_k) / width), the receiving
        atom itself among them.
        """
        padded = torch.cat([distances, distances.new_full((1,), 2 * self.reach + 100.0)])  # too far to count
        by_distance, candidates = padded[indices["nearest"]], padded[indices["candidates"]]
        nearer = self.step((candidates.unsqueeze(2) - by_distance.unsqueeze(1)) / self.width)
        ranks = nearer.sum(2) + self.step(candidates / self.width)
        here, there = ranks.flatten()[indices["ranks"]] / self.neighbors
        three = torch.stack([here, there, distances[indices["kept"]] / self.cutoff])
        return self.softness * torch.logsumexp(three / self.softness, dim=0)


def log_envelope(rank: Float[Tensor, " kept"]) -> Float[Tensor, " kept"]:
    """-x^2 / (1 - x^2): the logarithm of a weight that falls from 1 at x = 0 to 0 at x = 1 with all its derivatives; -inf beyond."""
    inside = rank < 1
    square = torch.where(inside, rank, 0.0).square()
    return torch.where(inside, -square / (1 - square), -math.inf)


def smooth_step(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """0 below -pi, 1 above pi, three continuous derivatives: the polynomial of degree 7."""
    return _Step.apply(x, 0)


class _Step(Function):
    """A derivative of the step, and as its own derivative the next: there are as many steps as pairs of neighbours."""

    @staticmethod
    def forward(x, order):
        t = (x / (2 * math.pi) + 0.5).clamp_(0, 1)
        coefficients = [-20.0, 70.0, -84.0, 35.0, 0.0, 0.0, 0.0, 0.0]  # of t^7 and so on
        for _ in range(order):
            degree = len(coefficients) - 1
            coefficients = [c * (degree - n) / (2 * math.pi) for n, c in enumerate(coefficients[:-1])]
        value = torch.full_like(t, coefficients[0]) if coefficients else torch.zeros_like(t)
        for coefficient in coefficients[1:]:
            value.mul_(t)
            if coefficient:
                value.add_(coefficient)
        return value if order < 4 else value.mul_((t > 0) & (t < 1))  # the fourth derivative jumps at the ends, those before are zero

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, ctx.order = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx, gradient):
        return gradient * _Step.apply(ctx.saved_tensors[0], ctx.order + 1), None


def sine_step(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """0 below -pi, 1 above pi, (1 + sin(x/2)) / 2 between: its second derivative jumps. As published."""
    return 0.5 + 0.5 * torch.where(x.abs() < math.pi, torch.sin(0.5 * x), torch.sign(x))


def reverse_edges(
    senders: Int[Tensor, " edges"], receivers: Int[Tensor, " edges"], shifts: Int[Tensor, "edges 3"], atoms: int
) -> Int[Tensor, " edges"]:
    """For each edge the one that runs the other way. Raises ValueError where there is none."""
    if not len(senders):
        return senders.clone()
    span = 2 * int(shifts.abs().max()) + 1
    if atoms**2 * span**3 >= 2**63:
        raise ValueError(f"{atoms} atoms with images up to {span // 2} cells away are too many to number their edges")

    def key(a: Tensor, b: Tensor, images: Tensor) -> Tensor:
        x, y, z = (images + span // 2).unbind(1)
        return (((a * atoms + b) * span + x) * span + y) * span + z

    keys, order = torch.sort(key(receivers, senders, shifts))
    wanted = key(senders, receivers, -shifts)
    found = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
    if not torch.equal(keys[found], wanted):
        raise ValueError("edges must come in pairs, one each way; pass those of AtomicGraph.build")
    return order[found]
