"""The ASE calculator gives the numbers of the model, at the right time, and refuses what has no answer."""

import time

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import CalculationFailed, PropertyNotImplementedError

from equimol.data.graph import AtomicGraph
from equimol.interfaces.ase import EquiMolCalculator
from equimol.models import LennardJones, LennardJonesConfig, build_model, save


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_model("mace", preset="tiny", elements=[1, 6, 8], references={1: -13.6, 6: -1029.5, 8: -2042.3}).double().eval()


@pytest.fixture
def calculator(model):
    return EquiMolCalculator(model)


@pytest.fixture
def crystal():
    atoms = bulk("C", "diamond", a=3.6) * (2, 1, 1)
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.02 * np.arange(9).reshape(3, 3) / 9), scale_atoms=True)
    atoms.rattle(0.1, seed=1)
    return atoms


@pytest.fixture
def ethanol():
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.05, seed=2)
    return atoms


class Charged(LennardJones):
    """Adds the total charge to the energy, and counts its calls."""

    inputs = ("charge", "spin")
    calls = 0

    def forward(self, graph):
        self.calls += 1
        out = super().forward(graph)
        return {**out, "energy": out["energy"] + torch.nan_to_num(graph.charge)}


@pytest.fixture
def counting():
    return EquiMolCalculator(Charged(LennardJonesConfig(elements=(1, 6, 8), cutoff=5.0, sigma=1.5)))


def reference(model, atoms):
    return model(AtomicGraph.build(atoms.positions, atoms.numbers, atoms.cell.array, atoms.pbc, model.cutoff))


@pytest.mark.parametrize("skin", [0.0, 0.5])
def test_results_are_those_of_the_model(model, crystal, ethanol, skin):
    for atoms in (crystal, ethanol):
        atoms.calc = EquiMolCalculator(model, skin=skin)
        expected = reference(model, atoms)
        assert atoms.get_potential_energy() == pytest.approx(expected["energy"].item(), abs=1e-10)
        assert atoms.get_potential_energy(force_consistent=True) == atoms.get_potential_energy()
        assert isinstance(atoms.get_potential_energy(), float)
        np.testing.assert_allclose(atoms.get_forces(), expected["forces"].numpy(), atol=1e-11)
        np.testing.assert_allclose(atoms.get_potential_energies(), expected["energies"].numpy(), atol=1e-10)
        assert atoms.get_potential_energies().sum() == pytest.approx(atoms.get_potential_energy(), abs=1e-9)
        assert atoms.get_forces().dtype == np.float64


def test_a_file_works_as_well_as_a_model(model, crystal, tmp_path):
    crystal.calc = EquiMolCalculator(save(model, tmp_path / "m.equimol"))
    assert crystal.get_potential_energy() == pytest.approx(reference(model, crystal)["energy"].item(), abs=1e-10)
    assert EquiMolCalculator(str(tmp_path / "m.equimol"), dtype="float32").model.dtype == torch.float32


def test_the_model_given_is_left_alone(model):
    model.train()
    calculator = EquiMolCalculator(model, dtype="float32")
    assert model.training and model.dtype == torch.float64
    assert all(p.requires_grad for p in model.parameters())
    assert calculator.model.dtype == torch.float32 and not calculator.model.training
    model.eval()


def test_stress_is_the_derivative_of_the_energy_in_voigt_order(calculator, crystal):
    crystal.calc = calculator
    stress = crystal.get_stress()
    assert np.abs(stress[3:]).min() > 1e-5  # a sheared cell: a wrong order would show
    cell, step = crystal.cell.array.copy(), 1e-5
    for voigt, (i, j) in enumerate([(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)]):
        energies = []
        for sign in (1, -1):
            strain = np.eye(3)
            strain[i, j] += sign * step / 2
            strain[j, i] += sign * step / 2
            strained = crystal.copy()
            strained.set_cell(cell @ strain, scale_atoms=True)
            strained.calc = calculator
            energies.append(strained.get_potential_energy())
        slope = (energies[0] - energies[1]) / (2 * step) / crystal.get_volume()
        assert stress[voigt] == pytest.approx(slope, abs=2e-7)


def test_stress_of_a_compressed_crystal_is_negative(crystal):
    argon = bulk("Ar", "fcc", a=4.8)  # equilibrium is near 5.3
    argon.calc = EquiMolCalculator(LennardJones(LennardJonesConfig()))
    assert (argon.get_stress()[:3] < 0).all()


@pytest.mark.parametrize(
    "change",
    [{"pbc": False}, {"pbc": False, "cell": [20, 20, 20]}, {"pbc": (True, False, False), "cell": [20, 0, 0]}],
    ids=["molecule", "box without periodicity", "chain without volume"],
)
def test_there_is_no_stress_without_volume_and_periodic_direction(calculator, ethanol, change):
    for name, value in change.items():
        setattr(ethanol, name, value)
    ethanol.calc = calculator
    assert np.isfinite(ethanol.get_potential_energy())
    with pytest.raises(PropertyNotImplementedError):
        ethanol.get_stress()


def test_a_slab_with_vacuum_in_the_cell_has_a_stress(calculator, ethanol):
    ethanol.set_cell([6, 7, 30])
    ethanol.pbc = (True, True, False)
    ethanol.calc = calculator
    assert np.isfinite(ethanol.get_stress()).all()


def test_nothing_is_computed_twice(counting, crystal):
    crystal.calc = counting
    crystal.get_potential_energy(), crystal.get_forces(), crystal.get_stress(), crystal.get_potential_energies()
    assert counting.model.calls == 1
    crystal.positions[0, 0] += 0.01
    crystal.get_forces(), crystal.get_potential_energy()
    assert counting.model.calls == 2
    crystal.set_initial_charges(np.ones(len(crystal)))  # which no model reads
    crystal.get_forces()
    assert counting.model.calls == 2


@pytest.mark.parametrize("key", ["charge", "total_charge"])
def test_a_new_charge_in_info_is_noticed(counting, ethanol, key):
    ethanol.calc = counting
    neutral = ethanol.get_potential_energy()
    ethanol.info[key] = 2
    assert ethanol.get_potential_energy() == pytest.approx(neutral + 2)
    ethanol.info[key] = 1
    assert ethanol.get_potential_energy() == pytest.approx(neutral + 1)
    del ethanol.info[key]
    assert ethanol.get_potential_energy() == pytest.approx(neutral)
    ethanol.info["comment"] = "says nothing about the energy"
    ethanol.get_potential_energy()
    assert counting.model.calls == 4


def test_a_new_spin_in_info_is_noticed(counting, ethanol):
    ethanol.calc = counting
    ethanol.get_potential_energy()
    ethanol.info["spin"] = 3
    ethanol.get_potential_energy()
    assert counting.model.calls == 2


def test_a_charge_that_is_no_number_is_refused(calculator, ethanol):
    ethanol.info["charge"] = "plus"
    ethanol.calc = calculator
    with pytest.raises(ValueError, match=r"info\['charge'\] must be a number, got 'plus'"):
        ethanol.get_potential_energy()


def test_a_list_with_skin_gives_what_a_fresh_list_gives(model, crystal):
    rng = np.random.default_rng(0)
    calculator = EquiMolCalculator(model, skin=0.5)
    lists = set()
    for _ in range(30):
        crystal.positions += 0.04 * rng.standard_normal(crystal.positions.shape)
        crystal.calc = calculator
        crystal.get_forces()
        lists.add(id(calculator._neighbors.wide))
        expected = reference(model, crystal)
        np.testing.assert_allclose(crystal.get_forces(), expected["forces"].numpy(), atol=1e-10)
        assert crystal.get_potential_energy() == pytest.approx(expected["energy"].item(), abs=1e-9)
    assert 1 < len(lists) < 25


def test_edges_are_those_of_a_fresh_list(model, crystal):
    calculator = EquiMolCalculator(model, skin=1.0)
    calculator.calculate(crystal)
    crystal.rattle(0.05, seed=5)
    fresh = AtomicGraph.build(crystal.positions, crystal.numbers, crystal.cell.array, crystal.pbc, model.cutoff)
    reused = calculator._graph(crystal)
    edges = [sorted(zip(g.receivers.tolist(), g.senders.tolist(), map(tuple, g.shifts.tolist()), strict=True)) for g in (fresh, reused)]
    assert edges[0] == edges[1]
    assert (reused.receivers.diff() >= 0).all()


@pytest.mark.parametrize("change", ["cell", "pbc", "numbers", "positions", "size"])
def test_the_list_is_made_anew_when_it_must_be(model, crystal, change):
    crystal.calc = calculator = EquiMolCalculator(model)
    crystal.get_forces()
    first = calculator._neighbors
    if change == "cell":
        crystal.set_cell(crystal.cell * 1.001)
    elif change == "pbc":
        crystal.pbc = (True, True, False)
    elif change == "numbers":
        crystal.numbers[0] = 8
    elif change == "positions":
        crystal.positions[0, 0] += 0.26
    else:
        del crystal[0]
    np.testing.assert_allclose(crystal.get_forces(), reference(model, crystal)["forces"].numpy(), atol=1e-10)
    assert calculator._neighbors is not first


def test_atoms_that_are_wrapped_keep_their_energy(calculator, crystal):
    crystal.calc = calculator
    before = crystal.get_potential_energy()
    crystal.positions += 5.0
    crystal.wrap()
    assert crystal.get_potential_energy() == pytest.approx(before, abs=1e-9)


def test_an_unknown_element_is_named_with_the_known_ones(calculator):
    atoms = molecule("CH3Cl")
    atoms.calc = calculator
    with pytest.raises(ValueError, match=r"does not know Cl; it knows H, C, O"):
        atoms.get_potential_energy()


@pytest.mark.parametrize("cell", [np.zeros((3, 3)), np.diag([5.0, 5.0, 0.0]), [[5, 0, 0], [10, 0, 0], [0, 0, 5]]])
def test_periodic_directions_need_a_cell(calculator, ethanol, cell):
    ethanol.set_cell(cell)
    ethanol.pbc = True
    ethanol.calc = calculator
    with pytest.raises(ValueError, match=r"periodic directions .* set atoms\.cell"):
        ethanol.get_potential_energy()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_positions_must_be_finite(calculator, ethanol, value):
    ethanol.calc = calculator
    ethanol.get_forces()
    ethanol.positions[3, 1] = value
    with pytest.raises(ValueError, match=r"positions must be finite, got .* for atom 3"):
        ethanol.get_forces()


def test_no_atoms_are_refused(calculator):
    atoms = Atoms()
    atoms.calc = calculator
    with pytest.raises(ValueError, match="at least one atom"):
        atoms.get_potential_energy()


def test_a_model_that_gives_nan_does_not_go_unnoticed():
    argon = Atoms("Ar2", positions=np.zeros((2, 3)))
    argon.calc = EquiMolCalculator(LennardJones(LennardJonesConfig()))
    with pytest.raises((CalculationFailed, ValueError)):
        argon.get_forces()
    assert "forces" not in argon.calc.results


def test_wrong_arguments_are_refused(model):
    with pytest.raises(ValueError, match="skin must be zero or more"):
        EquiMolCalculator(model, skin=-1.0)
    with pytest.raises(TypeError, match=r"Potential|model_or_path"):
        EquiMolCalculator(3.0)


def test_a_single_atom_has_no_forces(calculator):
    atoms = Atoms("O")
    atoms.calc = calculator
    assert np.abs(atoms.get_forces()).max() == 0


@pytest.mark.slow
def test_the_calculator_adds_little_time_to_the_model():
    argon = bulk("Ar", "fcc", a=5.3, cubic=True) * (4, 4, 3)  # 192 atoms
    argon.rattle(0.05, seed=0)
    argon.calc = calculator = EquiMolCalculator(LennardJones(LennardJonesConfig(cutoff=6.0)))
    graph = calculator._graph(argon)

    def through_ase():
        argon.positions[0, 0] += 1e-6
        argon.get_forces()

    def alone():
        calculator.model(graph)

    for call in (through_ase, alone):
        call()
    times = {through_ase: [], alone: []}
    for _ in range(200):
        for call, values in times.items():
            start = time.thread_time()  # of this thread alone, and the least of it: other programs disturb little
            call()
            values.append(time.thread_time() - start)
    assert min(times[through_ase]) - min(times[alone]) < 1e-3  # about 0.5 ms
