"""The neighbours of all atoms, atoms with equal numbers of them together: nothing padded, or as little as pays."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Groups = Sequence[Sequence[int | torch.SymInt]]  # [n, m]: n atoms with m slots each, one after the other; symbols while being traced


def slot_indices(
    senders: Int[Tensor, " edges"], receivers: Int[Tensor, " edges"], atoms: int, own: bool, group_cost: float = 0.0
) -> dict[str, Tensor]:
    """Slots: the neighbours of every atom as consecutive rows, atoms with equal numbers of them together.

    A group of atoms with m slots each is then a view [atoms, m, ...] of all per-slot features.

    Args:
        receivers: ascending.
        own: begin with a slot of the atom itself; otherwise only an atom without neighbours has that one.
        group_cost: as many empty slots as a group may cost are added to make it one with the next: none, or with ``inf`` all one group,
            of two slots or more.

    Returns:
        For each slot its ``edge`` plus one (0: the atom itself; the number of edges plus one: none), ``receiver`` and ``sender`` (of an
        empty slot the atom itself); for each atom the ``first`` slot and its ``place`` among the atoms as their slots stand, which
        ``order`` lists; and ``groups`` [n, 2], how many atoms have how many slots.
    """
    counts = torch.bincount(receivers, minlength=atoms)
    extra = torch.ones_like(counts) if own else (counts == 0).long()
    sizes, order = torch.sort(counts + extra, stable=True)
    size, which, many = torch.unique_consecutive(sizes, return_inverse=True, return_counts=True)
    sizes = sizes.new_tensor(_fewer(size.tolist(), many.tolist(), group_cost))[which]
    if group_cost == math.inf:
        sizes = sizes.clamp(min=2)  # compilers make another program of a size of one
    first = torch.empty_like(order)
    first[order] = torch.cumsum(sizes, 0) - sizes
    place = torch.arange(len(receivers), device=receivers.device) - (torch.cumsum(counts, 0) - counts)[receivers]
    slot = (first + extra)[receivers] + place
    receiver = torch.repeat_interleave(order, sizes)
    edge, sender = torch.full_like(receiver, len(receivers) + 1), receiver.clone()
    edge[first[extra > 0]] = 0
    edge[slot] = torch.arange(1, len(receivers) + 1, device=receivers.device)
    sender[slot] = senders
    size, many = torch.unique_consecutive(sizes, return_counts=True)
    slots = {"edge": edge, "receiver": receiver, "sender": sender, "first": first}
    return slots | {"order": order, "place": torch.argsort(order), "groups": torch.stack([many, size], 1)}


def slots_within(
    senders: Int[Tensor, " edges"], receivers: Int[Tensor, " edges"], taken: Bool[Tensor, " edges"], atoms: int, size: int, own: bool
) -> tuple[dict[str, Tensor], Int[Tensor, ""]]:
    """`slot_indices` as one group of ``size`` slots for each atom, by operations whose sizes are given, and the size that is needed.

    Of the edges those that are ``taken`` get a slot, as long as there are any; ``slot`` [edges] is atoms * size for the others.
    """
    one = taken.to(receivers.dtype)
    counts = torch.zeros(atoms, dtype=one.dtype, device=one.device).scatter_add(0, receivers, one)
    before = torch.cumsum(counts, 0) - counts
    rank = torch.cumsum(one, 0) - one - before[receivers] + int(own)
    nowhere = atoms * size
    slot = torch.where(taken & (rank < size), receivers * size + rank, nowhere)
    numbers = torch.arange(senders.shape[0], device=senders.device) + 1
    edge = numbers.new_zeros(nowhere + 1).scatter(0, slot, numbers)[:nowhere].reshape(atoms, size)
    empty = torch.cat([torch.full_like(edge[:, :1], not own), torch.ones_like(edge[:, 1:])], 1) > 0
    edge = torch.where((edge == 0) & empty, senders.shape[0] + 1, edge)
    mine = torch.arange(atoms, device=senders.device)
    sender = torch.cat([mine.unsqueeze(1).expand(atoms, size).flatten(), mine[:1]]).scatter(0, slot, senders)[:nowhere]
    found = {"edge": edge, "sender": sender, "order": mine, "place": mine.clone(), "slot": slot}
    return found, counts.max() + int(own)


def _fewer(sizes: list[int], many: list[int], group_cost: float) -> list[int]:
    """What each of the ascending sizes becomes: a larger one, as long as the empty slots this takes are not more than ``group_cost``."""
    becomes, start = [], 0
    for end in range(1, len(sizes) + 1):
        if end == len(sizes) or sum(many[start:end]) * (sizes[end] - sizes[end - 1]) > group_cost:
            becomes += [sizes[end - 1]] * (end - start)
            start = end
    return becomes


def by_group(x: Float[Tensor, "slots ..."], groups: Groups) -> list[Tensor]:
    """Views [atoms, m, ...] of the rows of each group of atoms."""
    if len(groups) == 1:
        return [x.unflatten(0, (groups[0][0], groups[0][1]))]  # the derivative of a split is a copy
    parts = x.split([many * size for many, size in groups])
    return [part.unflatten(0, (many, size)) for part, (many, size) in zip(parts, groups, strict=True)]


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Rows after one another, without a copy where there is but one part."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def blocks_of(groups: Sequence[Sequence[int]], rows: int) -> list[tuple[slice, list[list[int]]]]:
    """Cuts groups of [n atoms, m slots] into blocks of about so many slots: the atoms of each, and its groups."""
    blocks: list[tuple[slice, list[list[int]]]] = []
    start, end, part, left = 0, 0, [], rows
    for many, size in groups:
        while many:
            here = min(many, max(1, left // size)) if left >= size or not part else 0
            if here:
                part.append([here, size])
                many, end, left = many - here, end + here, left - here * size
            if many:
                blocks.append((slice(start, end), part))
                start, part, left = end, [], rows
    return [*blocks, (slice(start, end), part)] if part else blocks
