"""Small labelled data sets: copper and aluminium with ASE's effective medium theory, whose labels cost nothing."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest


def _emt_frames(count: int, seed: int = 0, periodic: bool = False) -> list:
    """Rattled clusters of four atoms, or cells of a crystal, with energy, forces and (for crystals) stress."""
    from ase import Atoms
    from ase.build import bulk
    from ase.calculators.emt import EMT
    from ase.calculators.singlepoint import SinglePointCalculator

    rng = np.random.default_rng(seed)
    frames = []
    for _ in range(count):
        if periodic:
            atoms = bulk("Cu", cubic=True)
            atoms.numbers[0] = 13
            atoms.set_cell(atoms.cell @ (np.eye(3) + 0.03 * rng.normal(size=(3, 3))), scale_atoms=True)
        else:
            atoms = Atoms("Cu3Al", positions=1.8 * np.array([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) / 1.4)
        atoms.positions += 0.1 * rng.normal(size=atoms.positions.shape)
        atoms.calc = EMT()
        labels = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
        if periodic:
            labels["stress"] = atoms.get_stress(voigt=False)
        atoms.calc = SinglePointCalculator(atoms, **labels)
        frames.append(atoms)
    return frames


def _write_frames(path: Path, frames: list) -> Path:
    from ase.io import write

    write(path, frames, format="extxyz")
    return path


@pytest.fixture(scope="session")
def emt_frames() -> Callable[..., list]:
    return _emt_frames


@pytest.fixture(scope="session")
def write_frames() -> Callable[[Path, list], Path]:
    return _write_frames


@pytest.fixture(scope="session")
def clusters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 24 clusters."""
    return _write_frames(tmp_path_factory.mktemp("data") / "clusters.xyz", _emt_frames(24))


@pytest.fixture(scope="session")
def crystals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 6 crystals and 6 clusters: only the crystals have a stress."""
    return _write_frames(tmp_path_factory.mktemp("data") / "crystals.xyz", _emt_frames(6, periodic=True) + _emt_frames(6))


@pytest.fixture
def no_report() -> Iterator[None]:
    """Leaves the page of the report empty: drawing it takes longer than the runs of these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("equimol.training.report.write_report", lambda folder: (folder / "report.html").write_text(""))
        yield


@pytest.fixture
def quick(clusters: Path, tmp_path: Path, no_report: None) -> list[str]:
    """Overrides for a run of seconds."""
    return [f"data={clusters}", "preset=tiny", "batch=4", "split=random", f"out={tmp_path / 'run'}", "settings.channels=4", "cutoff=4.0"]
