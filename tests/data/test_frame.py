"""Frames become graphs, or say which frame of which file cannot."""

import numpy as np
import pytest

from equimol.data.errors import DataError
from equimol.data.frame import Frame


def frame(positions, **more) -> Frame:
    positions = np.array(positions, dtype=float)
    numbers = np.ones(len(positions), dtype=np.int64)
    cell, pbc = more.pop("cell", np.zeros((3, 3))), more.pop("pbc", np.zeros(3, dtype=bool))
    return Frame(numbers, positions, cell, pbc, source="some.xyz:7", **more)


def test_the_graph_carries_labels_and_inputs():
    labels = {"energy": np.array(-1.5), "forces": np.zeros((2, 3))}
    graph = frame([[0, 0, 0], [0, 0, 0.74]], labels=labels, info={"charge": -1.0, "config_type": "dimer"}).graph(5)
    assert graph.energy.item() == -1.5 and graph.charge.item() == -1.0 and graph.spin.isnan().item()
    assert graph.forces_present.all() and not graph.stress_present.item()


def test_overlapping_atoms_are_refused_with_file_frame_and_atoms():
    with pytest.raises(DataError, match=r"some\.xyz:7: atoms 0 and 1 are 0\.050 Å apart.*remove the frame"):
        frame([[0, 0, 0], [0, 0, 0.05]]).graph(5.0)


def test_overlap_is_seen_through_the_periodic_boundary():
    with pytest.raises(DataError, match=r"some\.xyz:7: atoms"):
        frame([[0, 0, 0], [0, 0, 3.95]], cell=4.0 * np.eye(3), pbc=np.ones(3, dtype=bool)).graph(3.0)


def test_a_frame_that_is_no_graph_names_itself():
    with pytest.raises(DataError, match=r"some\.xyz:7: pbc is true"):
        frame([[0, 0, 0]], pbc=np.ones(3, dtype=bool)).graph(3.0)


def test_an_isolated_atom_is_a_graph_without_edges():
    assert len(frame([[0, 0, 0]]).graph(5.0).senders) == 0
