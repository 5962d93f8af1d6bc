"""EScAIP of the paper: stress that is predicted, a constant per structure, files."""

import numpy as np
import pytest
import torch

from equimol.data.graph import AtomicGraph
from equimol.models.composition import shifted
from equimol.models.escaip_v1 import EScAIPV1, EScAIPV1Config, EScAIPV1Direct
from equimol.testing import assert_batch_is_one_by_one, example_structures

SMALL = {"width": 32, "layers": 2, "heads": 2, "radial_basis": 40, "radial_width": 16, "element_width": 8, "order_width": 8}


def model_of(kind, **settings):
    torch.manual_seed(0)
    return kind(EScAIPV1Config(elements=(1, 6, 8), cutoff=6.0, **{**SMALL, **settings})).double().eval()


def test_stress_is_predicted_where_there_is_a_volume():
    model = model_of(EScAIPV1Direct, stress=True)
    structures = example_structures(model.elements)
    assert_batch_is_one_by_one(model, structures)
    for structure in structures:
        stress = model(AtomicGraph.build(**structure, cutoff=model.cutoff))["stress"]
        periodic = np.linalg.det(structure["cell"]) != 0 and any(structure["pbc"])
        assert bool(stress.isfinite().all()) == periodic
        if periodic:
            torch.testing.assert_close(stress, stress.mT)


def test_a_shift_scales_all_that_is_predicted():
    model = model_of(EScAIPV1Direct, stress=True)
    outer = shifted(model, dict.fromkeys(model.elements, -2.0), 3.0)
    assert outer.outputs == ("energy", "forces", "energies", "stress")
    assert shifted(model_of(EScAIPV1Direct), dict.fromkeys(model.elements, -2.0)).outputs == ("energy", "forces", "energies")
    for structure in example_structures(model.elements):
        graph = AtomicGraph.build(**structure, cutoff=model.cutoff)
        plain, scaled = model(graph), outer(graph)
        torch.testing.assert_close(scaled["energy"], 3 * plain["energy"] - 2 * len(graph.numbers))
        for name in ("forces", "stress"):
            torch.testing.assert_close(scaled[name], 3 * plain[name], equal_nan=True)


def test_derivatives_give_stress_and_need_no_head_for_it():
    with pytest.raises(ValueError, match="stress must be False where forces are derivatives"):
        model_of(EScAIPV1, stress=True)


@pytest.mark.parametrize("energy", ["mean", "sum"])
def test_the_offset_is_one_per_structure(energy):
    with_offset, without = (model_of(EScAIPV1, energy=energy, offset=offset) for offset in (-1.5, 0.0))
    for structure in example_structures(without.elements):
        graph = AtomicGraph.build(**structure, cutoff=without.cutoff)
        torch.testing.assert_close(with_offset(graph)["energy"], without(graph)["energy"] - 1.5)
        torch.testing.assert_close(with_offset(graph)["forces"], without(graph)["forces"])
