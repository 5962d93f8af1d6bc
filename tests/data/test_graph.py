"""AtomicGraph: what it holds, how it batches, and what it refuses."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch_geometric.data import Batch
from torch_geometric.loader import DataLoader

from equimol.data.graph import AtomicGraph
from equimol.data.properties import INPUTS, PROPERTIES

WATER = {"positions": [[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]], "numbers": [8, 1, 1], "cell": None, "pbc": False}
SALT = {"positions": [[0.0, 0.0, 0.0], [2.8, 0.0, 0.1]], "numbers": [11, 17], "cell": np.diag([5.6, 4.0, 4.1]), "pbc": True}
ATOM = {"positions": [[1.0, 2.0, 3.0]], "numbers": [18], "cell": np.zeros((3, 3)), "pbc": [False] * 3}


def water(**more) -> AtomicGraph:
    return AtomicGraph.build(**WATER, cutoff=4.0, **more)


def salt(**more) -> AtomicGraph:
    return AtomicGraph.build(**SALT, cutoff=4.5, **more)


def test_geometry_and_labels_are_float64_and_shaped_per_system_and_per_atom():
    graph = salt(labels={"energy": -3.0, "forces": np.ones((2, 3)), "stress": np.eye(3)}, charge=1, spin=2)
    assert graph.positions.dtype == graph.cell.dtype == graph.energy.dtype == torch.float64
    assert graph.cell.shape == graph.stress.shape == (1, 3, 3)
    assert graph.energy.shape == graph.charge.shape == graph.energy_present.shape == (1,)
    assert graph.forces.shape == (2, 3) and graph.pbc.shape == (1, 3)
    assert (graph.charge.item(), graph.spin.item(), graph.num_nodes, graph.num_systems) == (1.0, 2.0, 2, 1)


def test_what_nobody_stated_is_nan_and_marked_absent():
    graph = water(labels={"energy": -14.0})
    assert graph.energy_present.item() and not graph.forces_present.any() and not graph.stress_present.item()
    assert graph.forces.isnan().all() and graph.stress.isnan().all() and graph.charge.isnan().all()


def test_displacements_point_from_receiver_to_sender():
    graph = water()
    edge = int(((graph.receivers == 0) & (graph.senders == 1)).nonzero())
    torch.testing.assert_close(graph.displacements()[edge], torch.tensor([0.96, 0.0, 0.0], dtype=torch.float64))


@pytest.mark.parametrize("systems", [1, 2])
def test_displacements_are_differentiable_in_positions_and_cell(systems):
    graph = Batch.from_data_list([salt() for _ in range(systems)])
    graph.positions.requires_grad_()
    graph.cell.requires_grad_()
    graph.displacements().square().sum().backward()
    assert graph.positions.grad.isfinite().all() and (graph.cell.grad.abs().amax(dim=(1, 2)) > 0).all()


def test_gradients_flow_into_the_tensors_the_graph_was_built_from():
    positions = torch.tensor(SALT["positions"], dtype=torch.float64, requires_grad=True)
    cell = torch.tensor(SALT["cell"], requires_grad=True)
    AtomicGraph.build(positions, SALT["numbers"], cell, True, 4.5).displacements().square().sum().backward()
    assert positions.grad is not None and cell.grad is not None


def test_moving_the_atoms_of_an_array_in_place_leaves_the_graph_alone():
    positions = np.array(WATER["positions"])
    graph = AtomicGraph.build(positions, WATER["numbers"], None, False, 4.0)
    positions += 1.0
    assert graph.positions[0].tolist() == [0.0, 0.0, 0.0]


def test_a_batch_counts_atoms_on_and_knows_its_systems():
    graphs = [water(), AtomicGraph.build(**ATOM, cutoff=4.0), salt()]
    batch = Batch.from_data_list(graphs)
    assert isinstance(batch, AtomicGraph)
    assert batch.system.tolist() == [0, 0, 0, 1, 2, 2] and batch.num_systems == 3 and batch.num_nodes == 6
    assert (batch.receivers.diff() >= 0).all()
    assert (batch.system[batch.senders] == batch.system[batch.receivers]).all()
    torch.testing.assert_close(batch.displacements(), torch.cat([graph.displacements() for graph in graphs]))


def test_a_single_graph_and_a_batch_of_one_are_one_system():
    assert water().system.tolist() == Batch.from_data_list([water()]).system.tolist() == [0, 0, 0]


@pytest.mark.parametrize("labelled_first", [True, False])
def test_a_batch_of_labelled_and_unlabelled_graphs_keeps_every_label(labelled_first):
    labelled, bare = salt(labels={"energy": -3.0, "stress": np.eye(3)}, charge=1), water()
    batch = Batch.from_data_list([labelled, bare] if labelled_first else [bare, labelled])
    with_label = 0 if labelled_first else 1
    for name in (*PROPERTIES, *INPUTS):
        assert name in batch
    assert batch.energy_present.tolist() == batch.stress_present.tolist() == [labelled_first, not labelled_first]
    assert batch.energy[with_label] == -3.0 and batch.energy[1 - with_label].isnan()
    assert batch.charge[with_label] == 1 and batch.charge[1 - with_label].isnan()


def test_a_batch_gives_its_graphs_back():
    graphs = [water(labels={"energy": -14.0}), salt()]
    for graph, back in zip(graphs, Batch.from_data_list(graphs).to_data_list(), strict=True):
        assert type(back) is AtomicGraph and set(back.keys()) == set(graph.keys())
        for key, value in graph:
            torch.testing.assert_close(back[key], value, equal_nan=True)


@pytest.mark.parametrize("workers", [0, 1])
def test_the_loader_of_pyg_batches_graphs(workers):
    graphs = [water(labels={"energy": float(i)}) if i % 2 else salt() for i in range(6)]
    batches = list(DataLoader(graphs, batch_size=4, num_workers=workers))
    assert [batch.num_systems for batch in batches] == [4, 2]
    assert batches[0].system.tolist() == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]
    assert batches[0].energy_present.tolist() == [False, True, False, True]


def test_a_graph_survives_copying_and_pickling():
    graph = salt(labels={"energy": -3.0})
    for other in (copy.copy(graph), copy.deepcopy(graph), pickle.loads(pickle.dumps(graph))):
        assert other.system.tolist() == [0, 0] and other.energy.item() == -3.0
        torch.testing.assert_close(other.displacements(), graph.displacements())


def test_a_graph_moves_to_another_device_whole():
    graph = salt().to("meta")
    assert all(value.device.type == "meta" for _, value in graph if isinstance(value, torch.Tensor))
    assert graph.system.device.type == graph.displacements().device.type == "meta"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positions": np.zeros((3, 7))}, r"positions must be \[atoms, 3\], got \(3, 7\)"),
        ({"positions": np.zeros((2, 3, 3))}, "pass one structure per graph"),
        ({"positions": np.zeros((0, 3)), "numbers": []}, "a structure must have atoms"),
        ({"positions": [[np.nan, 0, 0], [0, 0, 1], [0, 1, 0]]}, "positions must be finite"),
        ({"numbers": [8, 1]}, r"numbers must be \[3\] for as many positions, got \[2\]"),
        ({"numbers": [8, 1, 0]}, "atomic numbers 1 to 118"),
        ({"cell": np.eye(2)}, r"cell must be \[3, 3\]"),
        ({"pbc": [True, False]}, "pbc must be one bool or three"),
        ({"pbc": True}, "the cell vector there is zero"),
        ({"cutoff": -1.0}, "cutoff must be a positive length"),
        ({"labels": {"forces": np.zeros((2, 3))}}, r"forces of 3 atoms must be \[3, 3\] in eV/Å, got \[2, 3\]"),
        ({"labels": {"energy": float("nan")}}, "energy must be finite"),
        ({"labels": {"stress": np.eye(3)}}, "a stress needs a cell with a volume"),
        ({"labels": {"enrgy": 1.0}}, "unknown label 'enrgy'"),
        ({"temperature": 300.0}, "unknown input 'temperature'"),
    ],
)
def test_what_is_no_structure_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        AtomicGraph.build(**({**WATER, "cutoff": 4.0} | change))


def test_building_a_small_graph_is_quick_enough_for_molecular_dynamics():
    from time import perf_counter

    positions = np.random.default_rng(0).uniform(0, 7, (27, 3))
    times = []
    for _ in range(20):
        start = perf_counter()
        AtomicGraph.build(positions, np.full(27, 6), None, False, 5.0)
        times.append(perf_counter() - start)
    assert min(times) < 5e-3  # 0.3 ms on one quiet core, without run-time type checks
