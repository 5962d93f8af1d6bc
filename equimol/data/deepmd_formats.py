"""Data of DeePMD-kit, in eV and Å: systems, which are folders of npy files with one or with mixed compositions, and its LMDB.

Its virial is the sum of r ⊗ F, minus the derivative of the energy by the strain: -virial/volume is our stress. Nothing is unpickled.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import atomic_numbers

from equimol.data.errors import DataError
from equimol.data.labels import Record
from equimol.data.neighbors import has_volume

PADDING = -1  # the type of the empty places with which mixed systems fill up small structures

LABELS = ("energy", "force", "virial", "charge_spin")  # what else a frame may state; charge_spin is the charge and the multiplicity

# LMDB key -> file name in a system, where the two differ
SPELLINGS = {"atom_types": "atype", "coords": "coord", "cells": "box", "energies": "energy", "forces": "force", "virials": "virial"}


def find_systems(files: Sequence[Path]) -> list[Path]:
    """The systems among the files of a folder, sorted: the folders with a type.raw. Sets of frames beside them are an error."""
    systems = {file.parent for file in files if file.name == "type.raw"}
    for file in files if systems else ():
        if file.match("set.*/coord.npy") and file.parent.parent not in systems:
            raise DataError(f"{file}: belongs to no system, {file.parent.parent} has no type.raw; write that, or move the frames elsewhere")
    return sorted(systems)


def read_system(folder: Path) -> Iterator[Record]:
    """Frames of a system, set after set. The arrays stay on disk; a system is periodic unless it has a file nopbc."""
    types = _read_types(folder / "type.raw")
    type_map = _read_type_map(folder / "type_map.raw")
    periodic = not (folder / "nopbc").exists()
    sets = sorted(place for place in folder.glob("set.*") if place.is_dir())
    if not sets:
        raise DataError(f"{folder}: a system without frames, it has no folder set.*; convert raw text with DeePMD-kit's raw_to_set.sh")
    mixed = [place for place in sets if (place / "real_atom_types.npy").exists()]
    for place in sets:
        if mixed and place not in mixed:
            raise DataError(f"{place}: has no real_atom_types.npy, though {mixed[0].name} has one; all sets of a system need it, or none")
        yield from _read_set(place, types, type_map, periodic, bool(mixed))


def record_of_entry(packed: bytes, type_map: list[str], source: str) -> Record:
    """A frame of DeePMD-kit's LMDB. One without cells is a molecule."""
    return _unpack_frame(_unpack(packed, source), type_map, source)


def _read_set(folder: Path, types: np.ndarray, type_map: list[str], periodic: bool, mixed: bool) -> Iterator[Record]:
    """Frames of one set. In a mixed one each frame has types of its own, and the system's say only how many."""
    atoms = len(types)
    coord = _load(folder / "coord.npy", 3 * atoms)
    if periodic and not (folder / "box.npy").exists():
        raise DataError(f"{folder / 'box.npy'}: no such file; add it, or the empty file {folder.parent / 'nopbc'} if these are molecules")
    box = _load(folder / "box.npy", 9, len(coord)) if periodic else None
    real = _load(folder / "real_atom_types.npy", atoms, len(coord)) if mixed else None
    stated = [key for key in LABELS if (folder / f"{key}.npy").exists()]
    labels = {key: _load(folder / f"{key}.npy", _width(key, atoms), len(coord)) for key in stated}
    for index in range(len(coord)):
        cell = None if box is None else box[index]
        values = {key: array[index] for key, array in labels.items()}
        yield _record(types if real is None else real[index], type_map, coord[index], cell, values, f"{folder}:{index}")


def _load(path: Path, width: int, frames: int | None = None) -> np.ndarray:
    """Numbers of a npy file as [frames, width], still on disk."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; every set of a system needs it") from None
    except Exception as error:  # a parser of foreign bytes: any of its errors is a fault of the file
        raise DataError(f"{path}: no complete npy array of numbers ({error}); copy or write it again") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
        raise DataError(f"{path}: must be a npy array of numbers, got {getattr(array, 'dtype', 'an archive of arrays')}; write it again")
    count = len(array) if array.ndim else -1
    if frames not in (None, count) or array.size != count * width:
        expected = "frames" if frames is None else f"{frames} frames as in coord.npy"
        raise DataError(f"{path}: must be [{expected}, {width} numbers], got shape {array.shape}; compare it with type.raw and coord.npy")
    return array.reshape(count, width)


def _width(key: str, atoms: int) -> int:
    """How many numbers a frame has of one kind."""
    return {"energy": 1, "virial": 9, "box": 9, "charge_spin": 2}.get(key, 3 * atoms)


def _record(
    types: np.ndarray, type_map: list[str], coord: np.ndarray, box: np.ndarray | None, labels: Mapping[str, np.ndarray], source: str
) -> Record:
    """One frame without its padding, from arrays that may be flat; box None is a molecule."""
    there = types != PADDING
    numbers = _elements(types[there], type_map, source)
    positions = np.array(coord, dtype=np.float64).reshape(-1, 3)[there]
    cell = np.zeros((3, 3)) if box is None else np.array(box, dtype=np.float64).reshape(3, 3)
    pbc = np.full(3, box is not None)
    if not np.isfinite(positions).all():
        raise DataError(f"{source}: coord holds NaN or infinity; remove the frame")
    if box is not None and not (np.isfinite(cell).all() and has_volume(cell, pbc)):
        raise DataError(f"{source}: box must span a volume, got {cell.tolist()}; correct it (systems of molecules have a file nopbc)")
    values: dict[str, Any] = {key: np.array(array, dtype=np.float64).reshape(-1) for key, array in labels.items()}
    if "energy" in values:
        values["energy"] = values["energy"][0]
    if "force" in values:
        values["force"] = values["force"].reshape(-1, 3)[there]
    if "charge_spin" in values:
        values["charge"], values["spin"] = values.pop("charge_spin")
    return Record(numbers, positions, cell, pbc, values, source)


def _elements(types: np.ndarray, type_map: list[str], source: str) -> np.ndarray:
    """Atomic numbers of types."""
    if types.dtype.kind not in "iu" or not len(types):
        raise DataError(f"{source}: must hold atoms, each with a whole number as its type, got {len(types)} of {types.dtype}; correct it")
    numbers = np.zeros(len(types), dtype=np.int64)
    for kind in map(int, np.unique(types)):
        if not 0 <= kind < len(type_map):
            raise DataError(f"{source}: type {kind} is not in the type_map {' '.join(type_map)}; add its element, type 0 comes first")
        if not atomic_numbers.get(type_map[kind]):
            raise DataError(f"{source}: type {kind} is {type_map[kind]!r} in the type_map, which is no element; put its symbol there")
        numbers[types == kind] = atomic_numbers[type_map[kind]]
    return numbers


def _read_types(path: Path) -> np.ndarray:
    words = _words(path)
    if not words or not all(re.fullmatch(r"-?\d{1,9}", word) for word in words):
        raise DataError(f"{path}: must hold one whole number for each atom, got {' '.join(words)[:40]!r}; correct it")
    return np.array(words, dtype=np.int64)


def _read_type_map(path: Path) -> list[str]:
    """Element symbols, that of type 0 first."""
    if not path.exists():
        raise DataError(f"{path}: no such file, so the elements are unknown; write it with one element symbol per line, type 0 first")
    return _words(path)


def _words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as text ({error}); copy it again") from error


def read_metadata(packed: bytes, path: Path, name: str) -> tuple[int, str, list[str]]:
    """Number of frames, layout of their keys, and element symbols, from the entry __metadata__ of an LMDB."""
    metadata = _unpack(packed, f"{name}, entry __metadata__")
    count, layout, type_map = metadata.get("nframes"), metadata.get("frame_idx_fmt", "012d"), metadata.get("type_map")
    if type(count) is not int or count < 0 or not re.fullmatch(r"0?\d{0,2}d", str(layout)):
        raise DataError(f"{name}: no LMDB of DeePMD-kit: __metadata__ says nframes={count!r}, frame_idx_fmt={layout!r}; write it again")
    if not type_map:
        type_map = _read_type_map((path if path.is_dir() else path.parent) / "type_map.raw")
    if not isinstance(type_map, list) or not all(isinstance(symbol, str) for symbol in type_map):
        raise DataError(f"{name}: type_map in __metadata__ must be element symbols, got {str(type_map)[:60]}; write it again")
    return count, layout, type_map


def _unpack(packed: bytes, source: str) -> dict[str, Any]:
    """The msgpack table of an entry, under the names that the files of a system have."""
    import msgpack

    try:
        table: dict[str, Any] = {_text(key): value for key, value in msgpack.unpackb(packed).items()}
    except Exception as error:  # a parser of foreign bytes: any of its errors is a fault of the file
        raise DataError(f"{source}: no msgpack table as DeePMD-kit writes it ({error}); copy or write it again") from error
    return {SPELLINGS.get(key, key): value for key, value in table.items()}


def _unpack_frame(table: Mapping[str, Any], type_map: list[str], source: str) -> Record:
    lacking = [key for key in ("atype", "coord") if table.get(key) is None]
    if lacking:
        there = ", ".join(key for key, value in table.items() if value is not None)
        raise DataError(f"{source}: has no {' and no '.join(lacking)}, only {there or 'nothing'}; write the frame again")
    filled_in = [key for key in LABELS if f"find_{key}" in table and not _array(table, f"find_{key}", source).any()]  # with zeros
    arrays = {key: _array(table, key, source) for key in ("atype", "coord", "box", *LABELS) if table.get(key) is not None}
    types = arrays.pop("atype").reshape(-1)
    for key, array in arrays.items():
        if array.size != (width := _width(key, len(types))):
            raise DataError(f"{source}: {key} of {len(types)} atoms must be {width} numbers, got shape {array.shape}; correct it")
    coord, box = arrays.pop("coord"), arrays.pop("box", None)
    labels = {key: array for key, array in arrays.items() if key not in filled_in}
    return _record(types, type_map, coord, box if box is not None and box.any() else None, labels, source)


def _array(table: Mapping[str, Any], key: str, source: str) -> np.ndarray:
    """Numbers, packed as {type, shape, data} or plain."""
    value = table[key]
    try:
        if isinstance(value, dict):
            parts = {_text(name): part for name, part in value.items()}
            array = np.frombuffer(parts["data"], np.dtype(_text(parts["type"]))).reshape(parts.get("shape", -1))
        else:
            array = np.asarray(value)
        if array.dtype.kind not in "fiu":
            raise ValueError(f"of type {array.dtype}")
    except Exception as error:  # the file says what is built here: any error is a fault of the file
        raise DataError(f"{source}: {key} is no array of numbers ({error}); write the frame again") from error
    return array


def _text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value
