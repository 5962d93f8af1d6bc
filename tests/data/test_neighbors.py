"""The neighbour list against its plain reference and against ASE, for every mix of periodic and open directions."""

from itertools import product

import numpy as np
import pytest

from equimol.data.neighbors import Edges, has_volume, neighbor_list, reference_neighbor_list

MIXES = list(product([False, True], repeat=3))
SKEWED = np.array([[4.1, 0.0, 0.3], [0.7, 3.6, 0.0], [-0.4, 0.5, 5.2]])


def scattered(atoms: int, seed: int = 0) -> np.ndarray:
    """Atoms in and around the cell: nothing has wrapped them."""
    return np.random.default_rng(seed).uniform(-3.0, 7.0, (atoms, 3))


def as_set(edges: Edges) -> set[tuple[int, ...]]:
    return set(map(tuple, np.column_stack([edges.senders, edges.receivers, edges.shifts]).tolist()))


@pytest.mark.parametrize("pbc", MIXES)
@pytest.mark.parametrize("cutoff", [2.5, 6.0])
def test_edges_are_those_of_the_plain_reference(pbc, cutoff):
    positions, pbc = scattered(9), np.array(pbc)
    fast, plain = neighbor_list(positions, SKEWED, pbc, cutoff), reference_neighbor_list(positions, SKEWED, pbc, cutoff)
    assert as_set(fast) == as_set(plain)
    assert len(fast.senders) == len(plain.senders) == len(as_set(fast))


@pytest.mark.parametrize("pbc", MIXES)
def test_edges_are_those_of_ase(pbc):
    import ase.neighborlist

    positions, pbc = scattered(12, seed=1), np.array(pbc)
    receivers, senders, shifts = ase.neighborlist.primitive_neighbor_list("ijS", pbc, SKEWED, positions, 4.0)
    theirs = Edges(senders.astype(np.int64), receivers.astype(np.int64), shifts.astype(np.int64))
    assert as_set(neighbor_list(positions, SKEWED, pbc, 4.0)) == as_set(theirs)


@pytest.mark.parametrize("pbc", MIXES[:-1])
def test_what_the_cell_holds_along_open_directions_does_not_matter(pbc):
    positions, pbc = scattered(8), np.array(pbc)
    flat = np.where(pbc[:, None], SKEWED, 0.0)
    expected = as_set(reference_neighbor_list(positions, SKEWED, pbc, 4.0))
    assert as_set(neighbor_list(positions, flat, pbc, 4.0)) == expected
    parallel = np.where(pbc[:, None], SKEWED, [1.0, 0.0, 0.0])
    assert as_set(neighbor_list(positions, parallel, pbc, 4.0)) == expected


def test_one_atom_sees_its_own_images_but_not_itself():
    edges = neighbor_list(np.zeros((1, 3)), 3.0 * np.eye(3), np.ones(3, dtype=bool), 5.0)
    assert len(edges.senders) == 6 + 12  # images at 3 and 4.24 Å; the corner at 5.196 Å is too far
    assert not (edges.shifts == 0).all(axis=1).any()


def test_a_small_cell_gives_several_images_of_a_pair():
    positions = np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    edges = neighbor_list(positions, np.diag([2.0, 50.0, 50.0]), np.array([True, False, False]), 3.5)
    pair = (edges.receivers == 0) & (edges.senders == 1)
    assert sorted(edges.shifts[pair, 0].tolist()) == [-2, -1, 0, 1]


def test_displacement_is_sender_plus_shift_minus_receiver():
    positions, pbc = scattered(10), np.ones(3, dtype=bool)
    edges = neighbor_list(positions, SKEWED, pbc, 3.0)
    displacements = positions[edges.senders] + edges.shifts @ SKEWED - positions[edges.receivers]
    assert (np.linalg.norm(displacements, axis=1) < 3.0).all()


def test_edges_are_sorted_by_receiver_and_come_in_both_directions():
    edges = neighbor_list(scattered(10), SKEWED, np.ones(3, dtype=bool), 4.0)
    assert (np.diff(edges.receivers) >= 0).all()
    assert as_set(edges) == as_set(Edges(edges.receivers, edges.senders, -edges.shifts))


def test_the_order_of_edges_repeats():
    positions, pbc = scattered(300), np.array([True, True, False])
    first, second = (neighbor_list(positions, 2 * SKEWED, pbc, 4.0) for _ in range(2))
    assert all((a == b).all() for a, b in zip(first, second, strict=True))


def test_atoms_out_of_reach_have_no_edges():
    edges = neighbor_list(np.array([[0.0, 0.0, 0.0], [9.0, 0.0, 0.0]]), np.zeros((3, 3)), np.zeros(3, dtype=bool), 5.0)
    assert edges.senders.shape == (0,) and edges.shifts.shape == (0, 3) and edges.shifts.dtype == np.int64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cutoff": 0.0}, "cutoff must be a positive length"),
        ({"cutoff": float("nan")}, "cutoff must be a positive length"),
        ({"positions": np.array([[0.0, 0.0, 0.0], [np.nan, 0.0, 0.0]])}, "atom 1 is at"),
        ({"cell": np.full((3, 3), np.inf)}, "cell must be finite"),
        ({"cell": np.zeros((3, 3))}, r"pbc is true along \[0, 1, 2\] but the cell vector there is zero"),
        ({"cell": np.ones((3, 3))}, "must be independent"),
    ],
)
def test_meaningless_geometry_is_refused(change, message):
    arguments = {"positions": np.zeros((2, 3)), "cell": np.eye(3), "pbc": np.ones(3, dtype=bool), "cutoff": 1.0}
    with pytest.raises(ValueError, match=message):
        neighbor_list(**(arguments | change))


def test_a_volume_needs_three_vectors_and_a_periodic_direction():
    assert has_volume(np.eye(3), np.array([True, False, False]))
    assert not has_volume(np.eye(3), np.zeros(3, dtype=bool))
    assert not has_volume(np.diag([1.0, 1.0, 0.0]), np.array([True, True, False]))
