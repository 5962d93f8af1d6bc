"""Errors are the same however the frames are batched, and come in the units that their names say."""

import math

import pytest
import torch
from torch_geometric.data import Batch

from equimol.data.graph import AtomicGraph
from equimol.training.metrics import ErrorSums, error_table, weighted_error


def graphs(generator: torch.Generator) -> list[AtomicGraph]:
    made = []
    for atoms in (2, 5, 3):
        positions = torch.rand(atoms, 3, generator=generator, dtype=torch.float64)
        labels = {"energy": float(atoms), "forces": torch.randn(atoms, 3, generator=generator)}
        made.append(AtomicGraph.build(positions, [1] * atoms, None, False, 1.0, labels))
    return made


def predict(graph: AtomicGraph) -> dict[str, torch.Tensor]:
    return {"energy": 1.1 * graph.energy, "forces": 2 * graph.forces, "stress": torch.full((graph.num_systems, 3, 3), math.nan)}


def test_batches_of_any_size_give_the_same_errors(generator):
    single, together = ErrorSums(), ErrorSums()
    all_graphs = graphs(generator)
    for graph in all_graphs:
        single.update(predict(graph), graph)
    batch = Batch.from_data_list(all_graphs)
    together.update(predict(batch), batch)
    assert single.result() == pytest.approx(together.result(), rel=1e-12)


def test_figures_are_what_their_names_say(generator):
    sums = ErrorSums()
    for graph in graphs(generator):
        sums.update(predict(graph), graph)
    errors = sums.result()
    assert errors["energy_mae_mev_per_atom"] == pytest.approx(100.0)
    assert errors["energy_rmse_mev"] == pytest.approx(100 * math.sqrt((4 + 25 + 9) / 3))
    forces = torch.cat([graph.forces for graph in graphs(torch.Generator().manual_seed(0))])
    assert errors["forces_rmse_mev_per_angstrom"] == pytest.approx(1000 * float(forces.square().mean().sqrt()))
    assert errors["forces_cosine"] == pytest.approx(1.0)
    assert not any(key.startswith("stress") for key in errors)


def test_atoms_without_a_force_do_not_count_in_the_cosine(generator):
    (graph, *_) = graphs(generator)
    prediction = predict(graph) | {"forces": 2 * graph.forces + 1.0}
    graph.forces[0], prediction["forces"][1] = 0.0, graph.forces[1]
    sums = ErrorSums()
    sums.update(prediction, graph)
    assert sums.result()["forces_cosine"] == pytest.approx(1.0)
    graph.forces[:] = 0.0
    still = ErrorSums()
    still.update(prediction, graph)
    assert "forces_cosine" not in still.result() and still.result()["forces_mae_mev_per_angstrom"] > 0


def test_structures_count_as_right_with_an_energy_and_every_free_force_within_the_thresholds(generator):
    def share(energy: float, force: float, held: bool = False, labelled: bool = True) -> float | None:
        (_, graph, _) = graphs(generator)
        prediction = {"energy": graph.energy + energy, "forces": graph.forces.clone()}
        prediction["forces"][3, 1] -= force
        graph.forces_present[3] = not held
        graph.energy_present[:] = labelled
        sums = ErrorSums()
        sums.update(prediction, graph)
        return sums.result().get("within_threshold_percent")

    assert share(0.019, 0.029) == 100 and share(-0.021, 0.0) == 0 and share(0.0, 0.031) == 0
    assert share(0.0, 1.0, held=True) == 100 and share(0.0, 0.0, labelled=False) is None
    batch = Batch.from_data_list(graphs(generator))
    sums = ErrorSums()
    sums.update({"energy": batch.energy + torch.tensor([0.0, 0.5, 0.0]), "forces": batch.forces}, batch)
    assert sums.result()["within_threshold_percent"] == pytest.approx(200 / 3)
    assert "within threshold" in error_table({"test": sums.result()}) and "66.67" in error_table({"test": sums.result()})


def test_the_weighted_error_is_the_loss_of_the_same_errors(generator):
    from equimol.training.loss import loss_terms

    batch = Batch.from_data_list(graphs(generator))
    sums, weights = ErrorSums(), {"energy": 3.0, "forces": 10.0, "stress": 0.0}
    sums.update(predict(batch), batch)
    terms = loss_terms(predict(batch), batch, ["energy", "forces"])
    assert weighted_error(sums.result(), weights) == pytest.approx(3 * float(terms["energy"]) + 10 * float(terms["forces"]))


def test_without_labels_there_is_no_weighted_error():
    assert math.isnan(weighted_error({}, {"energy": 1.0}))


def test_the_table_has_a_line_per_split_and_units_in_its_head():
    table = error_table({"train": {"energy_mae_mev_per_atom": 1.234, "forces_cosine": 0.99}, "test": {"energy_mae_mev_per_atom": 20.0}})
    head, units, _, train, test = table.splitlines()
    assert "energy MAE" in head and "meV/atom" in units
    assert train.split() == ["train", "1.23", "0.9900"] and test.split() == ["test", "20.00", "-"]
