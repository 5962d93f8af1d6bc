"""What goes into the wheel. That it installs and runs in a bare environment is checked by `make wheel-test`."""

import importlib.metadata
import lzma
import os
import subprocess
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOP_LEVEL = {"pyproject.toml", "README.md", "LICENSE", "Makefile", "equimol", "kernels", "tests", "benchmarks", "examples"}


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    build = pytest.importorskip("hatchling.build", reason="hatchling is not installed; pip install -e '.[dev]'")
    folder = tmp_path_factory.mktemp("wheel")
    here = os.getcwd()
    os.chdir(ROOT)  # a build backend works in the project's folder (PEP 517)
    try:
        name = build.build_wheel(str(folder))
    finally:
        os.chdir(here)
    return zipfile.ZipFile(folder / name)


def test_the_wheel_carries_code_kernels_and_demo_data(wheel):
    names = set(wheel.namelist())
    on_disk = {path.relative_to(ROOT).as_posix() for path in (ROOT / "equimol").rglob("*.py")}
    assert on_disk <= names
    assert {"equimol/_kernels/README.md", "equimol/demo_data/ethanolamine_gfn2.xyz.xz"} <= names


def test_the_wheel_carries_nothing_else_at_the_top(wheel):
    assert {name.partition("/")[0].partition("-")[0] for name in wheel.namelist()} == {"equimol"}


def test_the_wheel_declares_the_command_and_the_licence(wheel):
    entry_points = next(name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert "equimol = equimol.cli:main" in wheel.read(entry_points).decode()
    assert any(name.endswith("LICENSE") for name in wheel.namelist())


def test_the_installed_version_is_the_one_in_pyproject(project):
    assert importlib.metadata.version("equimol") == project["version"]


def test_dependencies_have_no_upper_bounds(project):
    # mace-torch pins e3nn 0.4.4 and others pin other versions: EquiMol must install next to all of them
    assert not [requirement for requirement in project["dependencies"] if any(sign in requirement for sign in ("<", "==", "~="))]


def test_demo_data_are_small_and_complete():
    path = ROOT / "equimol" / "demo_data" / "ethanolamine_gfn2.xyz.xz"
    assert path.stat().st_size < 2_000_000
    assert lzma.decompress(path.read_bytes()).decode().count("Properties=species:S:1:pos:R:3") == 404
    assert (path.parent / "README.md").exists()


def test_the_top_level_of_the_checkout_holds_only_what_is_agreed():
    answer = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=False)
    tracked = answer.stdout.splitlines()
    if not tracked:
        pytest.skip("not a git checkout with tracked files")
    assert {name.partition("/")[0] for name in tracked if not name.startswith(".")} <= TOP_LEVEL
