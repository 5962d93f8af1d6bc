"""Attention among the neighbours of one atom, for atoms with any numbers of them and nothing padded."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor


def slot_indices(senders: Int[Tensor, " edges"], receivers: Int[Tensor, " edges"], atoms: int, own: bool) -> dict[str, Tensor]:
    """Slots: the neighbours of every atom as consecutive rows, atoms with equal numbers of them together.

    A group of atoms with m slots each is then a view [atoms, m, ...] of all per-slot features.

    Args:
        receivers: ascending.
        own: begin with a slot of the atom itself; otherwise only an atom without neighbours has that one.

    Returns:
        For each slot its ``edge`` plus one (0: the atom itself), ``receiver`` and ``sender``; for each atom the ``first`` slot and its
        ``place`` among the atoms as their slots stand, which ``order`` lists; and ``groups`` [n, 2], how many atoms have how many slots.
    """
    counts = torch.bincount(receivers, minlength=atoms)
    extra = torch.ones_like(counts) if own else (counts == 0).long()
    sizes, order = torch.sort(counts + extra, stable=True)
    first = torch.empty_like(order)
    first[order] = torch.cumsum(sizes, 0) - sizes
    place = torch.arange(len(receivers), device=receivers.device) - (torch.cumsum(counts, 0) - counts)[receivers]
    slot = (first + extra)[receivers] + place
    receiver = torch.repeat_interleave(order, sizes)
    edge, sender = torch.zeros_like(receiver), receiver.clone()
    edge[slot] = torch.arange(1, len(receivers) + 1, device=receivers.device)
    sender[slot] = senders
    size, many = torch.unique_consecutive(sizes, return_counts=True)
    slots = {"edge": edge, "receiver": receiver, "sender": sender, "first": first}
    return slots | {"order": order, "place": torch.argsort(order), "groups": torch.stack([many, size], 1)}


def by_group(x: Float[Tensor, "slots ..."], groups: Sequence[Sequence[int]]) -> list[Tensor]:
    """Views [atoms, m, ...] of the rows of each group of atoms."""
    parts = x.split([many * size for many, size in groups])
    return [part.unflatten(0, (many, size)) for part, (many, size) in zip(parts, groups, strict=True)]


def legendre_products(harmonics: Sequence[Tensor], groups: Sequence[Sequence[int]]) -> list[Tensor]:
    """Y_l(j).Y_l(k) of each group, [atoms, degrees, m, m], from harmonics [slots, 2l+1] of each degree, divided by sqrt(2l+1).

    That is P_l of the cosine of the angle between two neighbours, and 0 for l > 0 where a slot has no direction.
    """
    parts = [by_group(y, groups) for y in harmonics]
    return [torch.stack([torch.matmul(y, y.mT) for y in of_group], dim=1) for of_group in zip(*parts, strict=True)]


def neighbor_attention(
    query: Float[Tensor, "slots width"],
    key: Float[Tensor, "slots width"],
    value: Float[Tensor, "slots width"],
    legendre: Sequence[Tensor | None],  # of each group [atoms, degrees, m, m]; None where there is but degree 0
    bias: Sequence[Tensor],  # of each group [atoms, m or 1, m]
    groups: Sequence[Sequence[int]],
    heads: int,
    parts: Sequence[int],
    scale: float,
) -> Float[Tensor, "slots width"]:
    """softmax over k of (scale * sum_l P_l(cos jk) q_j^(l).k_k^(l) + bias_jk), times v_k, among the slots of each atom; P_0 is one.

    The width of a head is cut into ``parts``, one per degree l. It equals attention of vectors repeated 2l+1 times and multiplied by the
    harmonics of their slot, at a fifth of the work. A bias of -inf leaves a neighbour out; one row of it serves all queries.
    """
    out = []
    for q, k, v, p, b in zip(*(by_group(x, groups) for x in (query, key, value)), legendre, bias, strict=True):
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))  # [atoms, heads, m, width of a head]
        logits = b.unsqueeze(1)
        for degree, (ql, kl) in enumerate(zip((q * scale).split(parts, -1), k.split(parts, -1), strict=True)):
            product = torch.matmul(ql, kl.mT)
            logits = torch.addcmul(logits, product, p[:, degree, None]) if degree else logits + product
        out.append(torch.matmul(torch.softmax(logits, -1), v).transpose(1, 2).flatten(2).flatten(0, 1))
    return torch.cat(out)


def own_attention(
    query: Float[Tensor, "atoms width"],
    key: Float[Tensor, "slots width"],
    value: Float[Tensor, "slots width"],
    bias: Sequence[Tensor],  # of each group [atoms, 1, m]
    groups: Sequence[Sequence[int]],
    heads: int,
    parts: Sequence[int],
    scale: float,
) -> Float[Tensor, "atoms width"]:
    """`neighbor_attention` for the queries of the atoms themselves, in the order of their slots. They have no direction: degree 0 alone."""
    out, start = [], 0
    for k, v, b in zip(by_group(key, groups), by_group(value, groups), bias, strict=True):
        q = query[start : start + len(k)].unflatten(-1, (1, heads, -1)).transpose(1, 2)[..., : parts[0]] * scale
        k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (k, v))
        logits = torch.matmul(q, k[..., : parts[0]].mT) + b.unsqueeze(1)
        out.append(torch.matmul(torch.softmax(logits, -1), v).flatten(1))
        start += len(k)
    return torch.cat(out)
