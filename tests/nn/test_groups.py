"""Slots, groups and blocks of neighbours."""

import math

import pytest
import torch

from equimol.nn.groups import blocks_of, slot_indices

SENDERS = torch.tensor([1, 2, 3, 0, 0, 3, 0, 2])
RECEIVERS = torch.tensor([0, 0, 0, 1, 2, 2, 3, 3])
ATOMS = 5


def test_slots_hold_each_atom_and_its_neighbours():
    slots = slot_indices(SENDERS, RECEIVERS, ATOMS, own=True)
    assert slots["groups"].tolist() == [[1, 1], [1, 2], [2, 3], [1, 4]]
    for atom in range(ATOMS):
        mine = slots["receiver"] == atom
        assert slots["sender"][mine].tolist() == [atom, *SENDERS[atom == RECEIVERS].tolist()]
        assert int(slots["first"][atom]) == int(torch.nonzero(mine)[0])
        assert slots["order"][slots["place"][atom]] == atom
    edges = slots["edge"][slots["edge"] > 0] - 1
    torch.testing.assert_close(torch.sort(edges).values, torch.arange(len(SENDERS)))
    torch.testing.assert_close(slots["receiver"][slots["edge"] > 0], RECEIVERS[edges])


def test_without_own_slots_only_a_lone_atom_has_one():
    slots = slot_indices(SENDERS, RECEIVERS, ATOMS, own=False)
    assert slots["groups"].tolist() == [[2, 1], [2, 2], [1, 3]]
    assert slots["sender"][slots["receiver"] == 4].tolist() == [4]
    assert slots["edge"][slots["receiver"] == 4].tolist() == [0]


@pytest.mark.parametrize(
    ("cost", "groups"),
    [(0.0, [[1, 1], [1, 2], [2, 3], [1, 4]]), (1.0, [[2, 2], [2, 3], [1, 4]]), (3.0, [[4, 3], [1, 4]]), (math.inf, [[5, 4]])],
)
def test_groups_merge_as_long_as_few_slots_stay_empty(cost, groups):
    slots = slot_indices(SENDERS, RECEIVERS, ATOMS, own=True, group_cost=cost)
    assert slots["groups"].tolist() == groups
    empty = slots["edge"] == len(SENDERS) + 1
    assert torch.equal(slots["sender"][empty], slots["receiver"][empty])
    for atom in range(ATOMS):
        mine = (slots["receiver"] == atom) & ~empty
        assert slots["sender"][mine].tolist() == [atom, *SENDERS[atom == RECEIVERS].tolist()]
        assert int(slots["edge"][slots["first"][atom]]) == 0


@pytest.mark.parametrize("rows", [1, 5, 7, 100])
def test_blocks_cut_groups_between_atoms(rows):
    groups = [[3, 2], [2, 5], [4, 6]]
    blocks = blocks_of(groups, rows)
    assert [part.start for part, _ in blocks] == [0, *(part.stop for part, _ in blocks[:-1])]
    sizes = [size for _, part in blocks for many, size in part for _ in range(many)]
    assert sizes == [2, 2, 2, 5, 5, 6, 6, 6, 6]
    for atoms, part in blocks:
        assert atoms.stop - atoms.start == sum(many for many, _ in part)
        assert sum(many * size for many, size in part) <= max(rows, 6)
