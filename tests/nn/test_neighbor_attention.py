"""Attention without padding against the plain form, one atom at a time."""

import math

import torch

from equimol.nn.groups import by_group, slot_indices
from equimol.nn.neighbor_attention import legendre_polynomials, legendre_products, neighbor_attention, own_attention
from equimol.o3 import spherical_harmonics

SENDERS = torch.tensor([1, 2, 3, 0, 0, 3, 0, 2])
RECEIVERS = torch.tensor([0, 0, 0, 1, 2, 2, 3, 3])
ATOMS, HEADS, PARTS = 5, 2, (3, 2, 1)


def case(random):
    slots = slot_indices(SENDERS, RECEIVERS, ATOMS, own=True)
    size = len(slots["edge"])
    directions = random(len(SENDERS), 3)
    harmonics = spherical_harmonics(directions, 2).split([1, 3, 5], 1)
    harmonics = [y / math.sqrt(y.shape[1]) for y in harmonics]
    own = [torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 3, dtype=torch.float64), torch.zeros(1, 5, dtype=torch.float64)]
    harmonics = [torch.cat([o, y])[slots["edge"]] for o, y in zip(own, harmonics, strict=True)]
    features = [random(size, 12) for _ in range(3)]
    envelope = -random(size).square()
    envelope[2] = -math.inf
    return slots, slots["groups"].tolist(), harmonics, features, envelope


def test_it_is_attention_of_vectors_times_harmonics(random):
    slots, groups, harmonics, (q, k, v), envelope = case(random)
    bias = [part.unsqueeze(1) for part in by_group(envelope, groups)]
    found = neighbor_attention(torch.cat([q, k, v], 1), legendre_products(harmonics[1:], groups), bias, groups, HEADS, PARTS, 0.3)
    for atom in range(ATOMS):
        mine = slots["receiver"] == atom
        for head in range(HEADS):
            columns = slice(6 * head, 6 * head + 6)
            expanded = []
            for x in (q[mine, columns], k[mine, columns]):
                parts = [a[:, :, None] * y[mine][:, None] for a, y in zip(x.split(PARTS, 1), harmonics, strict=True)]
                expanded.append(torch.cat([part.flatten(1) for part in parts], 1))
            logits = 0.3 * expanded[0] @ expanded[1].T + envelope[mine]
            torch.testing.assert_close(found[mine, columns], torch.softmax(logits, -1) @ v[mine, columns])


def test_the_atoms_own_rows_alone_are_the_same(random):
    slots, groups, harmonics, (q, k, v), envelope = case(random)
    bias = [part.unsqueeze(1) for part in by_group(envelope, groups)]
    full = neighbor_attention(torch.cat([q, k, v], 1), legendre_products(harmonics[1:], groups), bias, groups, HEADS, PARTS, 0.3)
    first = slots["first"][slots["order"]]
    torch.testing.assert_close(own_attention(q[first], torch.cat([k, v], 1), bias, groups, HEADS, PARTS, 0.3), full[first])


def test_polynomials_of_cosines_are_products_of_harmonics(random):
    directions = torch.nn.functional.normalize(random(2, 5, 3), dim=-1)
    found = legendre_polynomials(directions @ directions.mT, 9)
    y = spherical_harmonics(directions.flatten(0, 1), 9).unflatten(0, (2, 5)).split([2 * l + 1 for l in range(10)], -1)
    expected = torch.stack([part @ part.mT / part.shape[-1] for part in y[1:]], 1)
    torch.testing.assert_close(found, expected)
    assert legendre_polynomials(directions @ directions.mT, 0).shape == (2, 0, 5, 5)
