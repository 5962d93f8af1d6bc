"""Files that ASE understands, structure by structure: extxyz (also .xz, .gz, .bz2), ASE databases, and everything else ASE reads."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from equimol.data.errors import DataError
from equimol.data.labels import Record

if TYPE_CHECKING:
    import ase

OPENERS: dict[str, Callable] = {".xz": lzma.open, ".gz": gzip.open, ".bz2": bz2.open}
DAMAGE = (OSError, EOFError, lzma.LZMAError, zlib.error, UnicodeDecodeError)  # what a cut or altered file raises while it is read


def read_extxyz(path: Path, name: str) -> Iterator[Record | DataError]:
    """Structures of an extended XYZ file. Cut into frames here, so that an error names its frame: ASE reads all or nothing."""
    for index, text in enumerate(_frame_texts(path, name)):
        try:
            record: Record | DataError = _record(_parse_frame(text, f"{name}:{index}"), f"{name}:{index}")
        except DataError as error:
            record = error
        yield record


def read_ase_db(path: Path, name: str) -> Iterator[Record]:
    """Structures of an ASE database, with the key-value pairs and data of each row, which `ase.io.read` leaves out."""
    import ase.db

    def rows() -> Iterator[Record]:
        with ase.db.connect(path, serial=True) as database:
            for index, row in enumerate(database.select()):
                yield record_of_row(row, f"{name}:{index}")

    return _guarded(rows(), name)


def record_of_row(row: "ase.db.row.AtomsRow", source: str) -> Record:
    """A row of an ASE database, with its key-value pairs and data."""
    # A pair called charge hides behind the row's own charge, the sum of initial charges: take what was stored.
    pairs = {key: vars(row).get(key, value) for key, value in row.key_value_pairs.items()}
    return _record(row.toatoms(), source, {**row.get("data", {}), **pairs})


def read_ase(path: Path, name: str) -> Iterator[Record | DataError]:
    """Structures of any file whose format ASE recognises by name or content."""
    import ase.io
    from ase.io.formats import UnknownFileTypeError, filetype

    try:
        kind = filetype(str(path), guess=False)
    except (UnknownFileTypeError, *DAMAGE) as error:
        raise DataError(f"{name}: neither EquiMol nor ASE knows the format ({error}); convert it to extxyz (.xyz)") from error
    if kind == "extxyz":  # known by its content: a name without a suffix
        return read_extxyz(path, name)
    images = ase.io.iread(str(path), index=":", do_not_split_by_at_sign=True)
    return _guarded((_record(atoms, f"{name}:{index}") for index, atoms in enumerate(images)), name)


def _guarded(records: Iterator[Record], name: str) -> Iterator[Record]:
    """The same records; whatever a foreign parser raises becomes one message with file and frame."""
    index = 0
    while True:
        try:
            record = next(records)
        except StopIteration:
            return
        except DataError:
            raise
        except Exception as error:  # parsers raise anything: assertions, struct, sqlite3 and XML errors
            raise DataError(
                f"{name}:{index}: cannot be read ({type(error).__name__}: {error}); the file is damaged or unfinished: {_rescue(index)}"
            ) from error
        yield record
        index += 1


def _frame_texts(path: Path, name: str) -> Iterator[str]:
    index = 0
    try:
        with OPENERS.get(path.suffix.lower(), open)(path, "rt", encoding="utf-8") as lines:
            for text in _split_frames(lines, name):
                yield text
                index += 1
    except DAMAGE as error:
        raise DataError(f"{name}:{index}: the file is damaged or cut off ({error}); {_rescue(index)}") from error


def _split_frames(lines: Iterator[str], name: str) -> Iterator[str]:
    """One text per structure: the count, the comment, a line per atom, and the VEC lines some codes append."""
    index, number, header = 0, 1, next(lines, "")
    while header:
        if header.isspace():  # ASE would silently stop here
            header, number = next(lines, ""), number + 1
            continue
        try:
            atoms = int(header)
        except ValueError:
            raise DataError(
                f"{name}:{index}: line {number} must hold the number of atoms, got {header.strip()[:40]!r}; "
                "the frame before has another number of atoms than it says, or this is no xyz file"
            ) from None
        frame = [header, *islice(lines, atoms + 1)]
        if len(frame) < atoms + 2:
            raise DataError(
                f"{name}:{index}: the file is cut off: {atoms} atoms announced in line {number}, {max(len(frame) - 2, 0)} there; "
                f"{_rescue(index)}"
            )
        header = next(lines, "")
        while header.lstrip().startswith("VEC"):
            frame.append(header)
            header = next(lines, "")
        yield "".join(frame)
        index, number = index + 1, number + len(frame)


def _rescue(index: int) -> str:
    return f"copy it again, or keep only the {index} frames before" if index else "copy it again"


def _parse_frame(text: str, source: str) -> "ase.Atoms":
    from ase.io.extxyz import read_xyz

    try:
        return next(read_xyz(io.StringIO(text), 0))
    except Exception as error:  # a parser of foreign text: any of its errors is a fault of the text
        if "3x3" in str(error):
            raise DataError(
                f"{source}: stress or virial must be nine numbers (xx xy xz yx yy yz zx zy zz), not six; write the full matrix: "
                "programs disagree on the order of six"
            ) from error
        raise DataError(
            f"{source}: no valid extxyz ({type(error).__name__}: {error}); look for missing columns, or a cut or edited line"
        ) from error


def _record(atoms: "ase.Atoms", source: str, more: dict[str, Any] | None = None) -> Record:
    """Everything the structure carries. Results come last and win: ASE moves energy, forces and stress there from info and arrays.

    Atoms that ASE's constraints hold in place are the column `fixed`, unless the file has one.
    """
    from ase.constraints import FixAtoms, FixCartesian

    arrays = {key: value for key, value in atoms.arrays.items() if key not in ("numbers", "positions")}
    results = dict(atoms.calc.results) if atoms.calc is not None else {}
    stress = results.get("stress")
    if np.shape(stress) == (6,):
        results["stress"] = np.asarray(stress)[[0, 5, 4, 5, 1, 3, 4, 3, 2]].reshape(3, 3)  # ASE's order: xx yy zz yz xz xy
    held = np.zeros(len(atoms), dtype=bool)
    for constraint in atoms.constraints:
        if isinstance(constraint, FixAtoms) or (isinstance(constraint, FixCartesian) and constraint.mask.all()):
            held[constraint.index] = True
    columns = {"fixed": held, **arrays} if held.any() else arrays
    values = {key: value for key, value in {**(more or {}), **atoms.info, **columns, **results}.items() if value is not None}
    numbers, positions = atoms.numbers.astype(np.int64), atoms.positions.astype(np.float64)
    if not np.isfinite(positions).all():
        raise DataError(f"{source}: positions hold NaN or infinity; remove the frame")
    return Record(numbers, positions, np.array(atoms.cell, dtype=np.float64), np.array(atoms.pbc, dtype=bool), values, source)
