"""torch-sim, i-PI and OpenMM, each where it is installed, give the numbers of ASE: the comparisons of benchmarks/simulators.py."""

import csv
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import molecule

from equimol.models import build_model, save

pytestmark = pytest.mark.filterwarnings("ignore")  # of other packages, about themselves
LIMITS = {"energy": 1e-9, "forces": 1e-8, "stress": 1e-9}  # eV/atom, eV/Å, eV/Å³


@pytest.fixture(scope="module")
def script():
    path = Path(__file__).parents[2] / "benchmarks" / "simulators.py"
    spec = importlib.util.spec_from_file_location("simulators", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def file(tmp_path):
    torch.manual_seed(0)
    settings = {"channels": 2, "lmax_edge": 1, "radial_width": 4, "readout_width": 4}
    return save(build_model("mace", elements=[1, 8], **settings).double(), tmp_path / "m.equimol")


@pytest.mark.parametrize("model", ["mace", "escaip", "dpa3", "nequip", "scale_shift_mace"])
@pytest.mark.parametrize(("engine", "package"), [("torch-sim", "torch_sim"), ("i-PI", "ipi"), ("OpenMM", "openmmml")])
def test_energies_forces_and_stress_are_those_of_ase(script, engine, package, model, tmp_path):
    pytest.importorskip(package, reason=f"{package} is not installed here")
    if engine == "OpenMM" and not _is_registered():
        pytest.skip("the entry point of equimol is not installed: pip install -e .")
    row = script.compare(engine, model, tmp_path)
    for name, limit in LIMITS.items():
        if row[name]:
            assert float(row[name]) <= limit, row
    assert row["energy"] and row["forces"] and (row["stress"] or row["reason"] == "this engine asks for no stress"), row


def _is_registered() -> bool:
    from importlib.metadata import entry_points

    return any(entry.name == "equimol" for entry in entry_points(group="openmmml.potentials"))


def test_the_published_table_holds(script):
    """All that ran agrees; what did not has its reason."""
    if not script.RESULTS.is_file():
        pytest.skip("there is no table; run benchmarks/simulators.py")
    with script.RESULTS.open() as table:
        rows = list(csv.DictReader(table))
    for row in rows:
        assert row["energy"] or row["reason"], row
        assert all(float(row[name]) <= limit for name, limit in LIMITS.items() if row[name]), row


def test_torchsim_takes_what_its_own_check_gives_it(tmp_path):
    interface = pytest.importorskip("torch_sim.models.interface", reason="torch-sim is not installed here")
    from equimol.interfaces.torchsim import EquiMolModel

    torch.manual_seed(0)
    settings = {"channels": 2, "lmax_edge": 1, "radial_width": 4, "readout_width": 4}
    model = EquiMolModel(build_model("mace", elements=[1, 6, 12, 14, 26], **settings).double())
    interface.validate_model_outputs(model, torch.device("cpu"), torch.float64)
    model.compute_stress = model.compute_forces = False
    import torch_sim

    state = torch_sim.io.atoms_to_state([molecule("C6H6")], torch.device("cpu"), torch.float64)
    assert set(model(state)) == {"energy"}


def test_a_driver_of_ipi_knows_a_molecule_without_a_cell(file, tmp_path):
    pytest.importorskip("ipi", reason="i-PI is not installed here")
    from equimol.interfaces.ipi import EquiMolDriver

    molecule("H2O").write(tmp_path / "start.xyz")
    driver = EquiMolDriver(str(tmp_path / "start.xyz"), str(file))
    energy, forces, virial, _ = driver(np.eye(3) * 100.0, molecule("H2O").positions / 0.529177)
    assert np.isfinite(energy) and np.abs(forces).max() > 0 and not np.any(virial)


def test_openmm_refuses_what_the_model_does_not_know(file):
    pytest.importorskip("openmmml", reason="openmmml is not installed here")
    from openmm import app

    from equimol.interfaces.openmm import EquiMolPotentialFactory

    topology = app.Topology()
    residue = topology.addResidue("all", topology.addChain())
    topology.addAtom("Cl", app.Element.getBySymbol("Cl"), residue)
    potential = EquiMolPotentialFactory().createImpl("equimol", model=str(file))
    with pytest.raises(ValueError, match="does not know Cl"):
        potential.addForces(topology, None, None, 0)
    topology.addAtom("M", None, residue)
    with pytest.raises(ValueError, match="every atom needs an element"):
        potential.addForces(topology, None, None, 0)
    with pytest.raises(ValueError, match="needs a model"):
        EquiMolPotentialFactory().createImpl("equimol")


@pytest.mark.parametrize(("name", "package"), [("torchsim", "torch_sim"), ("ipi", "ipi"), ("openmm", "openmmml")])
def test_without_the_package_the_remedy_is_named(name, package):
    if importlib.util.find_spec(package) is not None:
        pytest.skip(f"{package} is installed here")
    with pytest.raises(ImportError, match=rf"pip install 'equimol\[{name}\]'"):
        importlib.import_module(f"equimol.interfaces.{name}")
