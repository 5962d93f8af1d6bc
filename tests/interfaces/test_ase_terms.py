"""Second derivatives, committees and dispersion, for ASE."""

import numpy as np
import pytest
import torch
from ase.build import bulk, molecule

from equimol.interfaces.ase import EquiMolCalculator
from equimol.interfaces.ase_committee import CommitteeCalculator
from equimol.interfaces.ase_d3 import WithD3
from equimol.models import build_model


def small(seed, name="mace", **more):
    torch.manual_seed(seed)
    return build_model(name, elements=[1, 6, 8], references={1: -13.6, 6: -1029.5, 8: -2042.3}, **more).double().eval()


@pytest.fixture
def ethanol():
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.05, seed=2)
    return atoms


@pytest.mark.parametrize("name", ["mace", "nequip", "dpa3", "escaip"])
def test_the_hessian_is_the_slope_of_forces(name, ethanol):
    atoms = ethanol[[0, 1, 2, 3]] if name == "escaip" else ethanol
    atoms.calc = calculator = EquiMolCalculator(small(0, name))
    hessian, step = calculator.get_hessian(atoms), 1e-4
    assert hessian.shape == (3 * len(atoms), 3 * len(atoms))
    np.testing.assert_allclose(hessian, hessian.T, atol=1e-8)
    for atom, axis in ((0, 1), (3, 2)):
        forces = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions[atom, axis] += sign * step
            moved.calc = calculator
            forces.append(moved.get_forces())
        np.testing.assert_allclose(hessian[3 * atom + axis], (forces[1] - forces[0]).ravel() / (2 * step), atol=2e-5)


def test_a_hessian_in_single_precision_is_refused(ethanol):
    with pytest.raises(ValueError, match="a Hessian needs a model in float64"):
        EquiMolCalculator(small(0), dtype="float32").get_hessian(ethanol)
    with pytest.raises(ValueError, match="those of this model are not"):
        EquiMolCalculator(build_model("escaip_direct", elements=[1, 6, 8])).get_hessian(ethanol)


def test_a_committee_has_mean_and_spread(ethanol):
    models = [small(seed) for seed in range(3)]
    crystal = bulk("C", "diamond", a=3.6)
    for atoms in (ethanol, crystal):
        each = []
        for model in models:
            atoms.calc = EquiMolCalculator(model)
            each.append((atoms.get_potential_energy(), atoms.get_forces()))
        atoms.calc = CommitteeCalculator(models)
        energies, forces = (np.array(x) for x in zip(*each, strict=True))
        assert atoms.get_potential_energy() == pytest.approx(energies.mean())
        np.testing.assert_allclose(atoms.get_forces(), forces.mean(0), atol=1e-10)
        assert atoms.calc.results["energy_spread"] == pytest.approx(energies.std(ddof=1))
        np.testing.assert_allclose(atoms.calc.results["forces_spread"], forces.std(0, ddof=1), atol=1e-10)
        assert ("stress_spread" in atoms.calc.results) == bool(atoms.pbc.any())
    moved = ethanol.copy()
    moved.calc = ethanol.calc
    moved.positions[0] += 0.1
    assert moved.get_potential_energy() != pytest.approx(ethanol.get_potential_energy(), abs=1e-9)


def test_a_committee_of_one_is_refused():
    with pytest.raises(ValueError, match="a committee needs two models or more"):
        CommitteeCalculator([small(0)])
    with pytest.raises(ValueError, match="a committee needs two models or more"):
        CommitteeCalculator("model.equimol")


def test_dispersion_is_added(ethanol):
    dftd3 = pytest.importorskip("dftd3.ase", reason="no simple-dftd3 here: pip install 'equimol[d3]'")
    crystal = bulk("C", "diamond", a=3.6)
    crystal.rattle(0.1, seed=1)
    for atoms in (ethanol, crystal):
        parts = []
        for calculator in (EquiMolCalculator(small(0)), dftd3.DFTD3(method="PBE", damping="d3bj")):
            atoms.calc = calculator
            parts.append((atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress() if atoms.pbc.any() else 0))
        atoms.calc = WithD3(EquiMolCalculator(small(0)), "PBE")
        assert atoms.get_potential_energy() == pytest.approx(parts[0][0] + parts[1][0], abs=1e-9)
        assert atoms.get_potential_energy(force_consistent=True) == atoms.get_potential_energy()
        np.testing.assert_allclose(atoms.get_forces(), parts[0][1] + parts[1][1], atol=1e-9)
        if atoms.pbc.any():
            np.testing.assert_allclose(atoms.get_stress(), parts[0][2] + parts[1][2], atol=1e-10)


def test_without_the_package_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "dftd3.ase", None)
    with pytest.raises(ImportError, match=r"pip install 'equimol\[d3\]'"):
        WithD3(EquiMolCalculator(small(0)), "PBE")
