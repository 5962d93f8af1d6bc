"""Files to frames: the table of formats, and `read`, the one way into a data set."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from os import PathLike
from pathlib import Path

from equimol.data.ase_formats import DAMAGE, OPENERS, read_ase, read_ase_db, read_extxyz
from equimol.data.deepmd_formats import find_systems, read_lmdb, read_system
from equimol.data.errors import DataError
from equimol.data.frame import Frame
from equimol.data.labels import FIXED, LabelReport, Record, label_records, merge_reports

# suffix -> reader(path, name to show in messages), which yields one record after the other, in eV and Å
FORMATS: dict[str, Callable[[Path, str], Iterator[Record]]] = {
    ".xyz": read_extxyz,
    ".extxyz": read_extxyz,
    ".db": read_ase_db,
    ".traj": read_ase,
    ".lmdb": read_lmdb,
}  # every other name is offered to read_ase: OUTCAR, vasprun.xml, ...; folders are read as _read_folder says


@dataclass(frozen=True, eq=False)
class FrameSet(Sequence):
    """Frames in the order of their files, and the report of where their labels came from. Print the report: `print(frames.report)`."""

    frames: list[Frame]
    report: LabelReport

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index):
        return self.frames[index]


def read(
    paths: str | PathLike | Sequence[str | PathLike],
    keys: Mapping[str, str] | None = None,
    energy: str = "auto",
    preferred: Mapping[str, Sequence[str]] | None = None,
    fixed: str = "auto",
) -> FrameSet:
    """All labelled structures of one or several files or folders. Keys are detected; `keys={"energy": "my_energy"}` names others.

    `preferred` lists keys per property that go before the detected ones in the files that have them: those a model was trained on.
    `energy` is "auto", "energy" or "free_energy"; auto takes energy, but free_energy where the two differ and there are forces,
    because forces are the gradient of the free energy in codes with electronic smearing.
    `fixed` says which atoms are held in place, so that their forces are no labels: "auto" takes ASE's constraints (FixAtoms) or a
    column `fixed`, "tags" the tag 0, as OC20 has it, "none" no atom.
    """
    if fixed not in FIXED:
        raise DataError(f"fixed must be one of {', '.join(FIXED)}, got {fixed!r}")
    if energy not in ("auto", "energy", "free_energy"):
        raise DataError(f"energy must be auto, energy or free_energy, got {energy!r}; name another key with keys.energy=my_energy")
    paths = [paths] if isinstance(paths, (str, PathLike)) else list(paths)
    if not paths:
        raise DataError("no file to read; give at least one path")
    labelled = [label_records(_all_records(Path(path)), str(path), keys, energy, preferred, fixed) for path in paths]
    return FrameSet([frame for frames, _ in labelled for frame in frames], merge_reports([report for _, report in labelled]))


def read_records(path: Path) -> Iterator[Record]:
    """The records of one file or folder, one at a time, by the reader of its suffix (that below .xz, .gz or .bz2)."""
    if not path.exists():
        raise DataError(f"{path}: no such file; check the path")
    if path.is_dir():
        yield from _read_folder(path)
        return
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty; was the program that wrote it still running, or the disk full?")
    packed = path.suffix.lower() in OPENERS
    reader = FORMATS.get((Path(path.stem) if packed else path).suffix.lower(), read_ase)
    if not packed or reader is read_extxyz:
        yield from reader(path, str(path))
        return
    with _unpacked(path) as plain:
        yield from reader(plain, str(path))


def files_of(path: Path) -> list[Path]:
    """The file itself; of a folder all files at any depth, sorted. Links are followed, but no folder is visited twice."""
    if not path.is_dir():
        return [path]
    files, visited = [], set()
    for place, folders, names in os.walk(path, onerror=_refuse, followlinks=True):
        folders.sort()
        if (real := os.path.realpath(place)) in visited:
            folders.clear()
        else:
            files += [Path(place, name) for name in names]
        visited.add(real)
    return sorted(files)


def _refuse(error: OSError) -> None:
    raise DataError(f"{error.filename}: cannot be listed ({error.strerror}); permit it, or name the data in it one by one")


def _read_folder(path: Path) -> Iterator[Record]:
    """An LMDB, or the systems of DeePMD-kit at any depth. Other folders are refused: they may hold anything."""
    if path.suffix.lower() == ".lmdb" or (path / "data.mdb").is_file():
        return read_lmdb(path, str(path))
    systems = find_systems(files_of(path))
    if not systems:
        raise DataError(
            f"{path}: is a folder; name the files in it. Only DeePMD-kit's folders are read as a whole: systems, which have a type.raw, "
            "and LMDBs, which have a data.mdb"
        )
    return chain.from_iterable(map(read_system, systems))


def _all_records(path: Path) -> list[Record]:
    records = list(read_records(path))
    if not records:
        raise DataError(f"{path}: holds no structure; was the program that wrote it stopped early?")
    return records


@contextmanager
def _unpacked(path: Path) -> Iterator[Path]:
    """A decompressed copy that lives as long as the block: databases and trajectories are not read from a stream."""
    with tempfile.TemporaryDirectory(prefix="equimol-") as folder:
        plain = Path(folder) / path.stem
        try:
            with OPENERS[path.suffix.lower()](path, "rb") as packed, plain.open("wb") as copy:
                shutil.copyfileobj(packed, copy)
        except DAMAGE as error:
            raise DataError(f"{path}:0: the file is damaged or cut off, or the disk is full ({error}); copy it again") from error
        yield plain
