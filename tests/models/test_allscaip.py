"""AllScAIP: what it keeps of the laws of a potential, and what it does not."""

import pytest
import torch

from equimol.data.graph import AtomicGraph
from equimol.models.allscaip import PRESETS, AllScAIP, AllScAIPConfig, AllScAIPDirect
from equimol.testing import assert_batch_is_one_by_one, assert_forces_are_slopes, assert_moves_with_its_atoms, example_structures


def model_of(kind, **settings):
    torch.manual_seed(0)
    return kind(AllScAIPConfig(elements=(1, 6, 8), **{**PRESETS["tiny"], **settings})).double().eval()


def structures(model) -> list[dict]:
    return [{**structure, "charge": 1, "spin": 2} for structure in example_structures(model.elements)]


@pytest.mark.parametrize("all_to_all", [True, False])
def test_forces_are_slopes_and_a_batch_is_one_by_one(all_to_all):
    model = model_of(AllScAIP, all_to_all=all_to_all)
    for structure in structures(model):
        assert_forces_are_slopes(model, structure)
    assert_batch_is_one_by_one(model, structures(model))


def test_predicted_forces_of_a_batch_are_one_by_one():
    model = model_of(AllScAIPDirect)
    assert_batch_is_one_by_one(model, structures(model))


def test_the_energy_is_not_invariant_under_rotation():
    model = model_of(AllScAIP)
    with pytest.raises(AssertionError, match="rotation"):
        assert_moves_with_its_atoms(model, structures(model)[0])


def test_charge_and_spin_count_and_must_be_stated():
    model = model_of(AllScAIP)
    structure = example_structures(model.elements)[0]

    def energy(**inputs):
        return float(model(AtomicGraph.build(**structure, **inputs, cutoff=model.cutoff))["energy"])

    assert len({energy(charge=c, spin=s) for c, s in ((0, 1), (1, 1), (0, 3))}) == 3
    with pytest.raises(ValueError, match="charge must be a whole number -100..100 for every structure, got nan"):
        energy(spin=1)
    with pytest.raises(ValueError, match="spin must be a whole number 0..100 for every structure, got 1.5"):
        energy(charge=0, spin=1.5)


def test_an_atom_alone_has_an_energy():
    model = model_of(AllScAIP)
    result = model(AtomicGraph.build([[0.0, 0, 0]], [6], None, False, model.cutoff, charge=0, spin=3))
    assert result["energy"].isfinite().all()
    assert float(result["forces"].abs().max()) == 0
