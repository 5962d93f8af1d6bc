"""Importing EquiMol is quick, changes nothing outside itself, and keeps the arrows between the rooms."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "equimol"
ROOT = PACKAGE.parent

STATE_BEFORE_AND_AFTER = """
import json, logging, pkgutil, warnings, importlib
# These may set what they like:
import ase.io, e3nn.o3, lightning, matplotlib, numpy, scipy.integrate, torch, torch_geometric.loader, vesin, yaml

def state():
    return {
        "default dtype": str(torch.get_default_dtype()),
        "warning filters": [str(entry) for entry in warnings.filters],
        "root logger": [logging.root.level, len(logging.root.handlers)],
        "torch random state": torch.get_rng_state().sum().item(),
        "numpy random state": int(numpy.random.get_state()[1].sum()),
        "numpy print options": str(numpy.get_printoptions()),
        "threads": torch.get_num_threads(),
        "float32 matmul precision": torch.get_float32_matmul_precision(),
        "matplotlib backend": matplotlib.get_backend(auto_select=False),
        "grad enabled": torch.is_grad_enabled(),
    }

before = state()
import equimol
names = [module.name for module in pkgutil.walk_packages(equimol.__path__, "equimol.")]
for name in names:
    if not name.endswith("__main__"):
        try:
            importlib.import_module(name)
        except ImportError as error:  # a simulator's, which needs that simulator
            if "get it with: pip install" not in str(error) and "get them with: pip install" not in str(error):
                raise
print(json.dumps({"names": names, "before": before, "after": state()}))
"""

BUILD_A_MODEL = """
import sys
import equimol
after_import = set(sys.modules)
model = equimol.build_model("mace", preset="tiny", elements=[1, 8])
import json
print(json.dumps({"import": sorted(after_import), "build": sorted(sys.modules)}))
"""


def in_fresh_python(code: str) -> dict:
    answer = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout.strip().splitlines()[-1])


def top_names(modules: list[str]) -> set[str]:
    return {name.partition(".")[0] for name in modules}


@pytest.fixture(scope="module")
def loaded():
    return in_fresh_python(BUILD_A_MODEL)


def test_import_equimol_loads_nothing_heavy(loaded):
    assert not top_names(loaded["import"]) & {"torch", "ase", "e3nn", "lightning", "matplotlib", "torch_geometric"}


def test_building_a_model_needs_neither_e3nn_nor_the_training_tools(loaded):
    assert not top_names(loaded["build"]) & {"e3nn", "lightning", "matplotlib", "tblite"}


def test_importing_every_module_changes_no_global_state():
    answer = in_fresh_python(STATE_BEFORE_AND_AFTER)
    assert "equimol.o3" in answer["names"]
    assert answer["before"] == answer["after"]


def test_no_file_of_the_package_imports_the_package_root():
    submodules = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    offenders = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import) and any(alias.name == "equimol" for alias in node.names):
                offenders.append(f"{path.relative_to(ROOT)}:{node.lineno}")
            if isinstance(node, ast.ImportFrom) and node.module == "equimol" and {alias.name for alias in node.names} - submodules:
                offenders.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not offenders


def test_the_arrows_between_the_rooms_hold():
    lint = Path(sys.executable).with_name("lint-imports")
    if not lint.exists():
        pytest.skip("import-linter is not installed; pip install -e '.[dev]'")
    answer = subprocess.run([str(lint), "--no-cache"], capture_output=True, text=True, check=False, cwd=ROOT)
    assert answer.returncode == 0, answer.stdout + answer.stderr
