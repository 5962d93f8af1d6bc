"""MACE as mace-torch has it: the laws of a potential, tables for inference, heads. Its numbers are in tests/convert/test_mace.py."""

import copy

import pytest
import torch

from equimol.data.graph import AtomicGraph
from equimol.models import build_model, core, for_data_set, scale_shift_mace_edges
from equimol.models.scale_shift_mace import PRESETS, ScaleShiftMACE, ScaleShiftMACEConfig
from equimol.testing import assert_is_potential, example_structures


def model_of(**settings):
    torch.manual_seed(0)
    return ScaleShiftMACE(ScaleShiftMACEConfig(elements=(1, 6, 8), **{**PRESETS["tiny"], "cutoff": 4.0, **settings})).double().eval()


@pytest.mark.parametrize(
    "settings",
    [
        {"first_layer": "plain", "lmax_hidden": 2},
        {"first_layer": "density", "other_layers": "density_residual", "distance_transform": "soft", "lmax_hidden": 0},
        {"radial": "chebyshev", "distance_transform": "agnesi", "repulsion": True},
        {"radial": "gaussian", "envelope_on": "weights", "layers": 3, "correlation": (3, 1, 2), "readouts": "last"},
        {
            "first_layer": "nonlinear",
            "other_layers": "nonlinear",
            "envelope_on": "weights",
            "message_channels": 4,
            "last_readout": "biased",
        },
    ],
)
def test_it_is_a_potential(settings):
    assert_is_potential(model_of(**settings))


@pytest.mark.parametrize("kernels", ["auto", "off"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"first_layer": "density", "other_layers": "density_residual", "lmax_hidden": 2, "distance_transform": "agnesi"},
        {"first_layer": "nonlinear", "other_layers": "nonlinear", "envelope_on": "weights", "message_channels": 8},
        {"first_layer": "density", "other_layers": "nonlinear", "message_channels": (16, 8), "lmax_message": 0},
    ],
)
def test_frozen_it_is_as_exact_as_float32(settings, kernels, monkeypatch):
    monkeypatch.setenv("EQUIMOL_KERNELS", kernels)
    torch.manual_seed(0)
    model = build_model("scale_shift_mace", elements=[1, 6, 8], channels=16, average_neighbors=4.0, **settings)
    frozen, exact = copy.deepcopy(model).freeze(), copy.deepcopy(model).double()
    for structure in example_structures(exact.elements):
        graph = AtomicGraph.build(**structure, cutoff=exact.cutoff)
        ours, theirs = frozen(graph), exact(graph)
        assert frozen(graph)["energy"].equal(ours["energy"])
        for name in ("energies", "forces"):
            assert (ours[name] - theirs[name]).abs().max() < 2e-5 * (1 + theirs[name].detach().abs().max()), name


def test_tables_of_pairs_stay_few(monkeypatch):
    model = model_of(distance_transform="agnesi", channels=2).float()
    frozen, few = copy.deepcopy(model).freeze(), copy.deepcopy(model).freeze()
    graphs = [
        AtomicGraph.build([[0.0, 0, 0], [1.0, 0, 0]], numbers, None, False, model.cutoff) for numbers in ([1, 6], [8, 8], [6, 8], [1, 6])
    ]
    wanted = [frozen(graph)["forces"] for graph in graphs]
    assert frozen.edges._tables.keys() == {(0, 1), (2, 2), (1, 2)}
    monkeypatch.setattr(scale_shift_mace_edges, "KEPT", 0)
    for graph, forces in zip(graphs, wanted, strict=True):
        assert few(graph)["forces"].equal(forces) and len(few.edges._tables) == 1
    monkeypatch.setattr(scale_shift_mace_edges, "PAIRS", 0)  # networks
    few.edges._tables.clear()
    assert torch.allclose(few(graphs[0])["forces"], wanted[0], atol=1e-5) and not few.edges._tables


def test_in_float64_it_is_exact_though_frozen():
    exact = model_of(first_layer="density_residual")
    frozen = copy.deepcopy(exact).freeze()
    graph = AtomicGraph.build(**example_structures(exact.elements)[0], cutoff=exact.cutoff)
    torch.testing.assert_close(frozen(graph)["forces"], exact(graph)["forces"].detach(), atol=1e-12, rtol=1e-11)


@pytest.mark.parametrize(
    "settings",
    [{"repulsion": True}, {"envelope_on": "weights", "first_layer": "density"}, {"first_layer": "nonlinear", "other_layers": "nonlinear"}],
)
def test_edges_beyond_the_cutoff_count_nothing(settings):
    model = model_of(cutoff=2.0, **settings)
    structure = example_structures(model.elements)[0]
    near, far = (model(AtomicGraph.build(**structure, cutoff=model.cutoff + skin)) for skin in (0.0, 2.0))
    torch.testing.assert_close(near["forces"], far["forces"], atol=1e-12, rtol=1e-12)


def test_nonlinear_layers_tell_senders_from_receivers():
    model = model_of(first_layer="nonlinear", layers=1, cutoff=2.0)
    distances, species = torch.tensor([1.0, 1.0], dtype=torch.float64), torch.tensor([0, 2])
    weights = model.edges(distances, species, species.flip(0))[0].weights
    assert (weights[0] - weights[1]).abs().max() > 1e-6
    frozen = copy.deepcopy(model).float().freeze()
    structure = {"positions": [[0.0, 0, 0], [1.0, 0, 0]], "numbers": [1, 8], "cell": None, "pbc": False, "cutoff": model.cutoff}
    frozen(AtomicGraph.build(**structure))
    assert frozen.edges._tables.keys() == {(0, 2), (2, 0)}


def test_forces_train_every_weight_of_nonlinear_layers():
    model = model_of(first_layer="nonlinear", other_layers="nonlinear", envelope_on="weights", last_readout="biased", spins=(0, 2)).train()
    graph = AtomicGraph.build(**example_structures(model.elements)[0], cutoff=model.cutoff, spin=1)
    for layer in model.layers:
        layer.divisor.data[1] = 0.5  # which begins at zero, where densities do nothing
    model(graph)["forces"].square().sum().backward()
    blind = {"readouts.0.last_bias", "readouts.1.last_bias"}  # a constant energy has no force
    for name, parameter in model.named_parameters():
        assert name in blind or (parameter.grad is not None and bool(parameter.grad.abs().max() > 0)), name


def test_charge_and_spin_are_felt_by_energies_and_forces():
    model = model_of(charges=(-1, 2), spins=(0, 3), embedding_readout=True)
    structure = example_structures(model.elements)[0]

    def results(**given):
        return model(AtomicGraph.build(**structure, cutoff=model.cutoff, **given))

    assert model.inputs == ("charge", "spin")
    neutral, charged, triplet = results(charge=0, spin=1), results(charge=1, spin=1), results(charge=0, spin=3)
    for other in (charged, triplet):
        assert (neutral["forces"] - other["forces"]).abs().max() > 1e-4
        assert abs(float(neutral["energy"] - other["energy"])) > 1e-4
    with pytest.raises(ValueError, match=r"spin must be a whole number from 0 to 3, got \[4\.0\]"):
        results(charge=0, spin=4)


def test_each_head_has_readouts_a_scale_and_references_of_its_own():
    torch.manual_seed(0)
    references = {"first": {1: -13.0, 8: -2040.0}, "second": {1: 0.0, 8: 0.0}}
    model = build_model("scale_shift_mace", elements=[1, 8], data_sets=2, references=references, zbl=False).double().eval()
    core(model).scale[1] = 3.0
    structure = {"positions": [[0.0, 0, 0], [1.0, 0, 0]], "numbers": [8, 1], "cell": None, "pbc": False, "cutoff": model.cutoff}
    energies = [float(model(AtomicGraph.build(**structure, data_set=n))["energy"]) for n in (0, 1)]
    assert abs(energies[0] + 2053) > 0.01 and abs(energies[0] + 2053 - energies[1]) > 0.01
    chosen = for_data_set(model, "second")
    assert float(chosen(AtomicGraph.build(**structure))["energy"]) == pytest.approx(energies[1], abs=1e-12)
    core(model).scale[1] = 6.0
    assert float(model(AtomicGraph.build(**structure, data_set=1))["energy"]) == pytest.approx(2 * energies[1], abs=1e-10)
    with pytest.raises(ValueError, match=r"data_set must be a whole number from 0 to 1, got \[2\.0\]"):
        model(AtomicGraph.build(**structure, data_set=2))


def test_bad_settings_say_the_rule():
    for settings, message in (
        ({"first_layer": "linear"}, "first_layer must be one of plain, residual, density, density_residual, nonlinear, got 'linear'"),
        ({"distance_transform": "Agnesi"}, "distance_transform must be one of none, agnesi, soft, got 'Agnesi'"),
        ({"correlation": (2, 2, 2)}, r"correlation must be at least 1, one for all or for each of 2 layers, got \(2, 2, 2\)"),
        ({"lmax_hidden": 4}, r"lmax_hidden must be between 0 and lmax_edge \(2\), got 4"),
        ({"data_sets": 2, "data_set": 2}, "data_set must be one of the 2 data sets, from 0, got 2"),
        ({"channels": 0}, "channels must be positive, got 0"),
        ({"message_channels": (8,)}, r"message_channels must be positive, one for all or for each of 2 layers, got \(8,\)"),
        ({"lmax_message": 2}, r"lmax_message must be between 0 and lmax_hidden \(1\), got 2"),
        ({"spins": (3, 1)}, r"spins must be the smallest and the largest, got \(3, 1\)"),
        ({"embedding_readout": True}, "embedding_readout needs charges or spins"),
        ({"last_readout": "linear"}, "last_readout must be one of perceptron, biased, got 'linear'"),
    ):
        with pytest.raises(ValueError, match=message):
            ScaleShiftMACEConfig(elements=(1,), **{**PRESETS["tiny"], **settings})
