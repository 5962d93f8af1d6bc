"""DPA3: the laws of a potential, published sizes, smoothness."""

import numpy as np
import pytest
import torch

from equimol.data.graph import AtomicGraph
from equimol.models.dpa3 import DPA3, PRESETS, DPA3Config
from equimol.testing import assert_is_potential


def model_of(**settings):
    torch.manual_seed(0)
    return DPA3(DPA3Config(elements=(1, 6, 8), **{**PRESETS["tiny"], **settings})).double().eval()


@pytest.mark.parametrize(
    "settings",
    [{}, {"sequential": True}, {"threshold": 3.0, "update": "average"}, {"angles": False}, {"compress": 0, "bonds_from": "envelope"}],
)
def test_it_is_a_potential(settings):
    assert_is_potential(model_of(**settings))


@pytest.mark.parametrize(
    ("preset", "elements", "parameters"), [("L24", 118, 4_810_561), ("3.1-3M", 118, 3_268_689), ("3.2-5M", 118, 4_816_561)]
)
def test_published_sizes(preset, elements, parameters):
    with torch.device("meta"):
        model = DPA3(DPA3Config(elements=tuple(range(1, elements + 1)), **PRESETS[preset]))
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize("cutoff", ["angle_cutoff", "cutoff"])
def test_energies_and_forces_vanish_with_a_bond_at_the_cutoff(cutoff):
    """The energy of an atom that comes in grows with the third power of what it is inside by: two continuous derivatives."""
    model = model_of()
    end = getattr(model.config, cutoff)

    def energy(distance):
        graph = AtomicGraph.build([[0.0, 0, 0], [1.1, 0.3, 0], [distance, 0, 0]], [8, 1, 6], None, False, model.cutoff)
        return float(model(graph)["energy"])

    inside = np.array([0.02, 0.01])
    # what a polynomial of the bond lengths alone would give: three points outside the envelope's end, continued inwards
    outside = [energy(end + x) for x in (0.0, 0.01, 0.02, 0.03, 0.04)]
    smooth = np.polynomial.polynomial.Polynomial.fit([0.0, 0.01, 0.02, 0.03, 0.04], outside, 4)
    differences = np.abs([energy(end - x) - smooth(-x) for x in inside])
    assert differences[1] < differences[0] / 6 or differences[0] < 1e-12


def test_bad_settings_say_the_rule():
    for settings, message in (
        ({"cutoff": 3.0, "angle_cutoff": 4.0}, "cutoffs must be 0 < cutoff_start < cutoff"),
        ({"threshold": 2.0}, r"threshold must be above 2\.4 where smooth, got 2\.0"),
        ({"data_sets": 2, "data_set": 2}, "data_set must be one of the 2 data sets, from 0, got 2"),
        ({"layers": 0}, "layers must be positive, got 0"),
        ({"angle_width": 8, "compress": 3}, "compress must be 0 or a divisor of angle_width / 2 = 4, got 3"),
        ({"bond_width": 4, "angle_width": 16}, "angles would see 16 features of atoms and 16 of bonds, which are fewer"),
    ):
        with pytest.raises(ValueError, match=message):
            DPA3Config(elements=(1,), **{**PRESETS["tiny"], **settings})


def test_a_structure_must_say_its_data_set():
    model = model_of(data_sets=3)
    graph = AtomicGraph.build([[0.0, 0, 0], [1.1, 0, 0]], [8, 1], None, False, model.cutoff, data_set=3)
    with pytest.raises(ValueError, match=r"data_set must be a whole number from 0 to 2, got \[3\.0\]"):
        model(graph)
    energies = [float(model(AtomicGraph.build(graph.positions, graph.numbers, None, False, 6.0, data_set=n))["energy"]) for n in range(3)]
    assert len(set(energies)) == 3
