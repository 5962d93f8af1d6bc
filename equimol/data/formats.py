"""Files to frames: the table of formats, and `read`, the one way into a data set."""

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from os import PathLike
from pathlib import Path

from equimol.data.ase_formats import DAMAGE, OPENERS, read_ase, read_ase_db, read_extxyz
from equimol.data.deepmd_formats import find_systems, read_system
from equimol.data.errors import DataError
from equimol.data.frame import Frame
from equimol.data.hdf5_formats import Hdf5File
from equimol.data.labels import FIXED, LabelReport, Record, label_records, merge_reports
from equimol.data.lmdb_formats import open_lmdb
from equimol.data.mptrj_formats import read_json
from equimol.data.npz_formats import NpzFile
from equimol.data.oc20_formats import read_s2ef, reference_file
from equimol.data.packed import SUFFIX, PackFile
from equimol.data.record_file import RecordFile, in_order


@dataclass(frozen=True)
class Format:
    """How the files of one suffix are read: record after record by `read`, or in any order where there is `open`.

    Both take the path, and the name to show in messages. A reader yields a DataError in place of a record that cannot be read, and
    goes on; it raises one where the rest of the file is lost.
    """

    read: Callable[[Path, str], Iterator[Record | DataError]] | None = None
    open: Callable[[Path, str], RecordFile] | None = None
    unpacks: bool = False  # reads .xz, .gz and .bz2 by itself, as a stream

    def records(self, path: Path, name: str) -> Iterator[Record | DataError]:
        """Record after record."""
        if self.open is not None:
            return in_order(self.open, path, name)
        assert self.read is not None
        return self.read(path, name)


EXTXYZ, LMDB, HDF5 = Format(read=read_extxyz, unpacks=True), Format(open=open_lmdb), Format(open=Hdf5File)
ANY = Format(read=read_ase)  # every name that is not in the table: OUTCAR, vasprun.xml, ...; folders are read as _read_folder says
FORMATS: dict[str, Format] = {
    ".xyz": EXTXYZ,
    ".extxyz": EXTXYZ,
    ".db": Format(read=read_ase_db),
    ".traj": ANY,
    ".lmdb": LMDB,  # DeePMD-kit's, OC20's legacy one, and ASE's
    ".aselmdb": LMDB,
    ".hdf5": HDF5,  # SPICE, ANI, modelforge
    ".h5": HDF5,
    ".npz": Format(open=NpzFile),  # MD17, MD22, rMD17
    ".json": Format(read=read_json, unpacks=True),  # MPtrj
    SUFFIX: Format(open=PackFile),  # of `equimol data pack`
}


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
    units: Mapping[str, str] | None = None,
    skip_bad: bool = False,
) -> FrameSet:
    """All labelled structures of one or several files or folders. Keys are detected; `keys={"energy": "my_energy"}` names others.

    `preferred` lists keys per property that go before the detected ones in the files that have them: those a model was trained on.
    `energy` is "auto", "energy" or "free_energy"; auto takes energy, but free_energy where the two differ and there are forces,
    because forces are the gradient of the free energy in codes with electronic smearing.
    `fixed` says which atoms are held in place, so that their forces are no labels: "auto" takes ASE's constraints (FixAtoms) or a
    column `fixed`, "tags" the tag 0, as OC20 has it, "none" no atom.
    `units` says what the files are in, as in {"energy": "kcal/mol", "stress": "-kbar"}, where that is not what their format states.
    `skip_bad` leaves out records that cannot be read or used; the report counts and lists them. Otherwise the first is an error.
    """
    if fixed not in FIXED:
        raise DataError(f"fixed must be one of {', '.join(FIXED)}, got {fixed!r}")
    if energy not in ("auto", "energy", "free_energy"):
        raise DataError(f"energy must be auto, energy or free_energy, got {energy!r}; name another key with keys.energy=my_energy")
    paths = [paths] if isinstance(paths, (str, PathLike)) else list(paths)
    if not paths:
        raise DataError("no file to read; give at least one path")
    labelled = []
    for path in paths:
        skipped: list[DataError] | None = [] if skip_bad else None
        records = _all_records(Path(path), skipped)
        labelled.append(label_records(records, str(path), keys, energy, preferred, fixed, units, skipped))
    return FrameSet([frame for frames, _ in labelled for frame in frames], merge_reports([report for _, report in labelled]))


def read_records(path: Path, skipped: list[DataError] | None = None) -> Iterator[Record]:
    """The records of one file or folder, one at a time: no more of it is in memory than its format demands.

    A bad record is an error, or goes into the list `skipped`; where the rest of a file is lost, that is one entry, which says so.
    """
    try:
        for item in _items(path):
            if isinstance(item, Record):
                yield item
            elif skipped is None:
                raise item
            else:
                skipped.append(item)
    except DataError as error:
        if skipped is None or not _is_partial(error):
            raise
        skipped.append(DataError(f"{error} (whatever follows in this file is lost)"))


def open_records(path: Path) -> RecordFile:
    """Records of a file in any order, in a `with` block; DataError where its format must be read from the start."""
    if not path.exists():
        raise DataError(f"{path}: no such file; check the path")
    form = LMDB if path.is_dir() and _is_lmdb(path) else FORMATS.get(path.suffix.lower(), ANY)
    if form.open is None:
        able = ", ".join(suffix for suffix, one in FORMATS.items() if one.open is not None)
        raise DataError(f"{path}: is read from the start only; in any order: {able}; `equimol data pack` makes such a file")
    return form.open(path, str(path))


def _is_partial(error: DataError) -> bool:
    """Whether an error is about one record, "file:number: ...": the records before it are good."""
    return re.match(r".*?:\d+(?: \([^)]*\))?: ", str(error)) is not None


def _items(path: Path) -> Iterator[Record | DataError]:
    """Records, or what is wrong with them, by the reader of the file's suffix (that below .xz, .gz or .bz2)."""
    if not path.exists():
        raise DataError(f"{path}: no such file; check the path")
    if path.is_dir():
        yield from _read_folder(path)
        return
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty; was the program that wrote it still running, or the disk full?")
    packed = path.suffix.lower() in OPENERS
    form = FORMATS.get((Path(path.stem) if packed else path).suffix.lower(), ANY)
    if references := reference_file(path):
        yield from read_s2ef(path, str(path), references)
    elif not packed or form.unpacks:
        yield from form.records(path, str(path))
    else:
        with _unpacked(path) as plain:
            yield from form.records(plain, str(path))


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


def _is_lmdb(path: Path) -> bool:
    return path.suffix.lower() in (".lmdb", ".aselmdb") or (path / "data.mdb").is_file()


def _read_folder(path: Path) -> Iterator[Record | DataError]:
    """An LMDB, the systems of DeePMD-kit, or OC20's files, at any depth. Other folders are refused: they may hold anything."""
    if _is_lmdb(path):
        return LMDB.records(path, str(path))
    files = files_of(path)
    systems = find_systems(files)
    if systems:
        return chain.from_iterable(map(read_system, systems))
    parts = [file for file in files if file.suffix.lower() in (".lmdb", ".aselmdb") or reference_file(file)]
    if not parts:
        raise DataError(
            f"{path}: is a folder; name the files in it. As a whole are read: DeePMD-kit's systems, which have a type.raw; LMDBs, "
            "alone or several in a folder; and OC20's folders, where each .extxyz has a .txt with its reference energies"
        )
    lone = [file for file in files if _is_extxyz(file) and not reference_file(file)]
    if lone:
        raise DataError(
            f"{lone[0]}: has no .txt with its reference energies, as the files beside it; copy it, or name the files one by one"
        )
    return chain.from_iterable(map(_items, parts))


def _is_extxyz(path: Path) -> bool:
    return ".extxyz" in [suffix.lower() for suffix in path.suffixes[-2:]]


def _all_records(path: Path, skipped: list[DataError] | None = None) -> list[Record]:
    records = list(read_records(path, skipped))
    if skipped and not records:
        raise skipped[0]
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
