"""EScAIP: the laws of a potential, smoothness, published sizes."""

import ase
import numpy as np
import pytest
import torch
from ase.md.langevin import Langevin
from ase.units import fs, kB

from equimol.data.graph import AtomicGraph
from equimol.interfaces.ase import EquiMolCalculator
from equimol.models import build_model
from equimol.models.escaip import PRESETS, EScAIP, EScAIPConfig, EScAIPDirect
from equimol.models.escaip_v1 import EScAIPV1, EScAIPV1Config, EScAIPV1Direct
from equimol.testing import assert_batch_is_one_by_one, assert_is_potential, assert_moves_with_its_atoms, example_structures


def model_of(kind, **settings):
    torch.manual_seed(0)
    return kind(EScAIPConfig(elements=(1, 6, 8), **{**PRESETS["tiny"], **settings})).double().eval()


@pytest.mark.parametrize("smooth", [True, False])
def test_it_is_a_potential(smooth):
    assert_is_potential(model_of(EScAIP, smooth=smooth))


def test_direct_forces_turn_with_the_atoms():
    model = model_of(EScAIPDirect)
    structures = example_structures(model.elements)
    for structure in structures:
        assert_moves_with_its_atoms(model, structure)
    assert_batch_is_one_by_one(model, structures)


def test_published_direct_forces_do_not():
    model = model_of(EScAIPDirect, smooth=False)
    structure = example_structures(model.elements)[0]
    assert_batch_is_one_by_one(model, [structure, structure])
    with pytest.raises(AssertionError, match="forces under rotation"):
        assert_moves_with_its_atoms(model, structure)


def largest_jump(model, steps: int) -> float:
    """eV; of the energy along a path of an atom through a cluster, beyond what its slope explains."""
    rng = np.random.default_rng(0)
    cluster = rng.uniform(size=(14, 3)) * 6.0
    start, end = np.array([-3.0, 1, 2]), np.array([0.5, 2, 2.5])
    numbers = np.array([8, *[1, 6] * 7])
    width = np.linalg.norm(end - start) / steps
    energies, slopes = [], []
    for t in np.linspace(0, 1, steps + 1):
        positions = np.concatenate([[start + t * (end - start)], cluster])
        result = model(AtomicGraph.build(positions, numbers, None, False, model.cutoff))
        energies.append(float(result["energy"]))
        slopes.append(-float(result["forces"][0].numpy() @ (end - start)) / np.linalg.norm(end - start))
    slopes = np.array(slopes)
    return float(np.abs(np.diff(energies) - width * (slopes[1:] + slopes[:-1]) / 2).max())


def test_the_smooth_form_has_no_jumps_where_the_published_one_jumps():
    """The trapezoid's error falls with the cube of the step; a jump does not."""
    jumps = {smooth: [largest_jump(model_of(EScAIP, smooth=smooth, neighbors=6), steps) for steps in (20, 80)] for smooth in (True, False)}
    assert jumps[True][1] < jumps[True][0] / 10
    assert jumps[False][1] > jumps[False][0] / 4


def test_a_frozen_model_looks_distances_up_and_says_the_same():
    """16 knots to the width of a Gaussian: as precise as float32."""
    model = model_of(EScAIP, radial_basis=100).float()
    structures = [AtomicGraph.build(**structure, cutoff=model.cutoff) for structure in example_structures(model.elements)]
    plain = [model(graph) for graph in structures]
    exact = [model.double()(graph) for graph in structures]
    model.float().freeze()
    assert all(layer.attention.attributes.table is not None for layer in model.backbone.layers)
    looked_up = [model(graph) for graph in structures]
    assert any(not torch.equal(found["energies"], before["energies"]) for found, before in zip(looked_up, plain, strict=True))
    for found, before, expected in zip(looked_up, plain, exact, strict=True):
        for name in ("energies", "forces"):
            rounding = float((before[name] - expected[name]).abs().max())
            assert float((found[name] - before[name]).abs().max()) < 3 * rounding + 1e-6


def test_blocks_do_not_change_the_result(monkeypatch):
    model = model_of(EScAIP)
    structures = [AtomicGraph.build(**structure, cutoff=model.cutoff) for structure in example_structures(model.elements)]
    whole = [model(graph) for graph in structures]
    monkeypatch.setattr("equimol.models.escaip.BLOCK_NUMBERS", 3 * 32)
    for graph, expected in zip(structures, whole, strict=True):
        for name in ("energies", "forces"):
            torch.testing.assert_close(model(graph)[name], expected[name], rtol=0, atol=1e-10)


@pytest.mark.parametrize(("preset", "conservative", "direct"), [("83M", 71.0, 88.6), ("146M", 122.0, 155.7), ("317M", 262.6, 332.9)])
def test_published_sizes(preset, conservative, direct):
    config = EScAIPConfig(elements=tuple(range(1, 101)), **PRESETS[preset], smooth=False)
    with torch.device("meta"):
        for kind, millions in ((EScAIP, conservative), (EScAIPDirect, direct)):
            assert sum(p.numel() for p in kind(config).parameters()) / 1e6 == pytest.approx(millions, abs=0.06)


@pytest.mark.parametrize(("preset", "direct"), [("83M", 83.3), ("146M", 146.2), ("317M", 311.8)])
def test_published_sizes_of_the_paper(preset, direct):
    heads, layers = {"83M": (8, 10), "146M": (12, 8), "317M": (16, 10)}[preset]
    config = EScAIPV1Config(elements=tuple(range(1, 101)), width=64 * heads, layers=layers, heads=heads)
    with torch.device("meta"):
        assert sum(p.numel() for p in EScAIPV1Direct(config).parameters()) / 1e6 == pytest.approx(direct, abs=0.1)


@pytest.mark.parametrize("energy", ["mean", "sum"])
def test_the_papers_form_conserves_energy_between_changes_of_neighbours(energy):
    torch.manual_seed(0)
    small = {"width": 32, "layers": 2, "heads": 2, "radial_basis": 40, "radial_width": 16, "element_width": 8, "order_width": 8}
    model = EScAIPV1(EScAIPV1Config(elements=(1, 6, 8), cutoff=6.0, energy=energy, **small)).double().eval()
    from equimol.testing import assert_forces_are_slopes

    structures = example_structures(model.elements)
    for structure in structures[:2]:
        assert_moves_with_its_atoms(model, structure)
        assert_forces_are_slopes(model, structure)
    assert_batch_is_one_by_one(model, structures)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"legendre": (3, 3)}, "legendre must sum to width / heads = 16"),
        ({"heads": 3}, "legendre must sum to width / heads"),
        ({"stochastic_depth": 1.0}, r"stochastic_depth must be in \[0, 1\)"),
        ({"cutoff": 0.0}, "cutoff must be positive"),
    ],
)
def test_settings_out_of_range_raise(settings, message):
    with pytest.raises(ValueError, match=message):
        EScAIPConfig(elements=(1,), **{**PRESETS["tiny"], **settings})


def test_stochastic_depth_drops_updates_in_training_alone():
    model = model_of(EScAIP, stochastic_depth=0.5)
    structure = example_structures(model.elements)[0]
    graph = AtomicGraph.build(**structure, cutoff=model.cutoff)
    torch.testing.assert_close(model(graph)["energy"], model(graph)["energy"], rtol=0, atol=0)
    model.train()
    energies = {round(float(model(graph)["energy"].detach()), 9) for _ in range(6)}
    assert len(energies) > 1


@pytest.mark.slow
def test_ten_thousand_steps_of_dynamics_while_neighbors_come_and_go():
    """No size is too large or too small, and nothing is compiled: there is nothing to compile again."""
    torch.manual_seed(0)
    model = build_model("escaip", elements=[1, 6, 8], neighbors=6, scale=0.02)
    atoms = ase.Atoms(
        numbers=[1, 6, 8] * 4, positions=np.indices((2, 2, 3)).reshape(3, -1).T * 2.2, cell=np.diag([6.0, 6.0, 9.0]), pbc=True
    )
    atoms.calc = EquiMolCalculator(model)
    speeds = np.sqrt(kB * 3000 / atoms.get_masses())[:, None] * np.random.default_rng(0).normal(size=(12, 3))
    atoms.set_velocities(speeds)
    dynamics = Langevin(atoms, 1.0 * fs, temperature_K=3000, friction=0.05 / fs, fixcm=False, rng=np.random.default_rng(1))
    numbers: set[int] = set()
    compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for _ in dynamics.irun(10_000):
        numbers.add(len(atoms.calc._neighbors.graph(atoms.positions).senders))
        assert np.isfinite(atoms.get_forces()).all()
    assert len(numbers) > 20
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiled


@pytest.mark.parametrize("kind", [EScAIP, EScAIPDirect])
def test_recomputed_layers_learn_the_same(kind):
    """Stochastic depth included: what is drawn is drawn once."""
    model = model_of(kind, stochastic_depth=0.3).train()
    graph = AtomicGraph.build(**example_structures(model.elements)[0], cutoff=model.cutoff)
    gradients = []
    for recompute in (False, True):
        model.recompute = recompute
        model.zero_grad()
        torch.manual_seed(1)
        result = model(graph)
        (result["energy"].square().sum() + result["forces"].square().sum()).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert gradients[0].abs().max() > 1e-3
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)
