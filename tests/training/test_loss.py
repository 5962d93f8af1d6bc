"""The loss is the mean over the labels that are there, and nothing else reaches the gradient."""

import numpy as np
import pytest
import torch
from torch_geometric.data import Batch

from equimol.data.frame import Frame
from equimol.data.graph import AtomicGraph
from equimol.data.statistics import FrameSums
from equimol.training.loss import loss_terms, resolve_weights


def frame(atoms: int = 2, energy: float | None = None, forces: bool = False, stress: bool = False) -> Frame:
    positions = np.arange(3.0 * atoms).reshape(atoms, 3)
    labels = {"energy": np.array(energy)} if energy is not None else {}
    labels |= {"forces": np.ones((atoms, 3))} if forces else {}
    labels |= {"stress": np.eye(3)} if stress else {}
    return Frame(np.ones(atoms, dtype=np.int64), positions, 10.0 * np.eye(3) * stress, np.full(3, stress), labels)


def batch(*frames: Frame) -> AtomicGraph:
    return Batch.from_data_list([one.graph(3.0) for one in frames])


def zeros(graph: AtomicGraph) -> dict[str, torch.Tensor]:
    systems, atoms = graph.num_systems, graph.num_nodes
    shapes = {"energy": (systems,), "forces": (atoms, 3), "stress": (systems, 3, 3)}
    return {name: torch.zeros(shape, dtype=torch.float64, requires_grad=True) for name, shape in shapes.items()}


def test_energy_errors_count_per_atom_and_forces_per_component():
    graph = batch(frame(2, energy=4.0, forces=True), frame(4, energy=4.0))
    terms = loss_terms(zeros(graph), graph, ["energy", "forces"])
    assert terms["energy"].item() == pytest.approx((2.0**2 + 1.0**2) / 2)
    assert terms["forces"].item() == pytest.approx(1.0)  # of the two atoms that have forces


def test_missing_labels_give_neither_loss_nor_gradient():
    graph = batch(frame(2, energy=4.0), frame(3), frame(2, stress=True))
    prediction = zeros(graph)
    terms = loss_terms(prediction, graph, ["energy", "forces", "stress"])
    assert terms["forces"].item() == 0 and terms["stress"].item() == pytest.approx(1 / 3)
    sum(terms.values()).backward()
    assert torch.equal(prediction["energy"].grad != 0, torch.tensor([True, False, False]))
    assert all(torch.isfinite(value.grad).all() for value in prediction.values())


def test_huber_is_quadratic_for_small_errors_and_linear_for_large_ones():
    graph = batch(frame(1, energy=0.001), frame(1, energy=1.0))
    single = [batch(frame(1, energy=0.001)), batch(frame(1, energy=1.0))]
    small, large = (loss_terms(zeros(one), one, ["energy"], "huber")["energy"].item() for one in single)
    assert small == pytest.approx(1e-6)
    assert large == pytest.approx(2 * 0.01 * 1.0 - 0.01**2)
    assert loss_terms(zeros(graph), graph, ["energy"], "huber")["energy"].item() == pytest.approx((small + large) / 2)


def test_mae_takes_the_lengths_of_errors_of_forces():
    graph = batch(frame(2, energy=4.0, forces=True), frame(4, energy=-4.0))
    prediction = zeros(graph)
    terms = loss_terms(prediction, graph, ["energy", "forces"], "mae")
    assert terms["energy"].item() == pytest.approx((2.0 + 1.0) / 2)
    assert terms["forces"].item() == pytest.approx(3**0.5)  # each component is one
    sum(terms.values()).backward()
    assert torch.isfinite(prediction["forces"].grad).all()  # also where the error is zero


def test_stress_is_on_by_itself_where_there_are_labels():
    weights = {"energy": 1.0, "forces": 10.0, "stress": "auto"}
    assert resolve_weights(weights, FrameSums.of([frame(2, energy=1.0, forces=True)])) == {"energy": 1.0, "forces": 10.0, "stress": 0.0}
    with_stress = resolve_weights(weights, FrameSums.of([frame(4, energy=1.0, stress=True)]))
    assert with_stress == {"energy": 1.0, "forces": 0.0, "stress": pytest.approx((1000 / 4) ** 2)}


def test_nothing_to_train_on_is_an_error_that_says_how_to_name_keys():
    with pytest.raises(ValueError, match=r"nothing to train on.*keys\.energy"):
        resolve_weights({"energy": 1.0, "forces": 10.0}, FrameSums.of([frame(2)]))
