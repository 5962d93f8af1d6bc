"""Data of the Open Catalyst Project: pickled records of its LMDBs, and raw folders of extxyz files with their reference energies.

The pickles hold graphs of PyTorch Geometric; they are read without running anything in them. Energies of the raw files are total DFT
energies, as `energy`; with the text file beside them also `adsorption_energy`, the total minus the reference of the text file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from equimol.data.ase_formats import OPENERS, read_extxyz
from equimol.data.errors import DataError
from equimol.data.inert import Inert, loads
from equimol.data.labels import Record

GRAPH = "torch_geometric.data"  # where the classes of a record come from
NAMES = {"y": "energy", "force": "forces", "y_init": "energy"}  # of the records -> ours, where those are not there
LINE = re.compile(r"(random\d+),frame(\d+),([-+]?\d+\.?\d*(?:[eE][-+]?\d+)?)\s*")


def record_of_pickle(packed: bytes, source: str) -> Record:
    """A structure from a pickled graph: pos, atomic_numbers, cell, tags, fixed, and y or energy, force or forces."""
    table = _attributes(_unpickle(packed, source), source)
    lacking = [key for key in ("pos", "atomic_numbers") if key not in table]
    if lacking:
        raise DataError(f"{source}: has no {' and no '.join(lacking)}, only {', '.join(table) or 'nothing'}; write the record again")
    arrays = {key: _array(value, key, source) for key, value in table.items() if isinstance(value, (torch.Tensor, np.ndarray, np.generic))}
    numbers = _whole(arrays["atomic_numbers"], "atomic_numbers", source).reshape(-1)
    positions = arrays["pos"].astype(np.float64)
    if positions.shape != (len(numbers), 3) or not np.isfinite(positions).all():
        wanted = f"{len(numbers)} times three finite numbers, as there are atomic_numbers"
        raise DataError(f"{source}: pos must be {wanted}, got shape {positions.shape}; remove or write the record again")
    cell = arrays.get("cell", np.zeros((3, 3))).astype(np.float64)
    if cell.size != 9:
        raise DataError(f"{source}: cell must be nine numbers, got shape {cell.shape}; write the record again")
    periodic = np.full(3, bool(cell.any()))  # the slabs of OC20 are periodic along all vectors
    pbc = _whole(arrays["pbc"], "pbc", source).reshape(-1).astype(bool) if "pbc" in arrays else periodic
    values: dict[str, Any] = {key: value for key, value in table.items() if isinstance(value, (str, int, float))}
    for key, array in arrays.items():
        if key in ("tags", "fixed"):
            values[key] = _whole(array, key, source).reshape(-1)
        elif array.size == 1:
            values[key] = array.reshape(()).item()
        elif key not in ("pos", "atomic_numbers", "cell", "pbc", "edge_index", "cell_offsets", "distances"):
            values[key] = array
    for theirs, ours in NAMES.items():
        if theirs in values:
            values.setdefault(ours, values.pop(theirs))
    return Record(numbers, positions, cell.reshape(3, 3), pbc, values, source)


def read_count(packed: bytes, name: str) -> int:
    """The number of records, as the entry `length` of an LMDB states it."""
    count = _unpickle(packed, f"{name}, entry length")
    if type(count) is not int or count < 0:
        raise DataError(f"{name}: length must be the number of records, got {str(count)[:40]}; write the file again")
    return count


def reference_file(path: Path) -> Path | None:
    """The text file with reference energies that belongs to an extxyz file of OC20: the same name with .txt, and OC20's lines in it."""
    bare = path.with_suffix("") if path.suffix.lower() in OPENERS else path
    if bare.suffix.lower() != ".extxyz":
        return None
    for candidate in (bare.with_suffix(".txt"), *(bare.with_suffix(f".txt{packing}") for packing in OPENERS)):
        if candidate.is_file():
            with _text(candidate) as lines:
                if LINE.fullmatch(lines.readline()):
                    return candidate
    return None


def read_s2ef(path: Path, name: str, references: Path) -> Iterator[Record | DataError]:
    """Structures of an extxyz file with what its text file says of each: system, frame, reference energy."""
    with _text(references) as lines:
        index = -1
        for index, record in enumerate(read_extxyz(path, name)):
            found = LINE.fullmatch(lines.readline())
            if not found:
                raise DataError(
                    f"{references}: line {index + 1} must be random<sid>,frame<fid>,<energy> for frame {index} of {name}; copy it again"
                )
            if isinstance(record, DataError):
                yield record
                continue
            reference = float(found[3])
            values = {"sid": found[1], "fid": int(found[2]), **record.values, "reference_energy": reference}
            if "energy" in values:
                values["adsorption_energy"] = float(values["energy"]) - reference
            yield replace(record, values=values)
        if lines.readline().strip():
            raise DataError(f"{name}: ends after {index + 1} frames, {references} goes on; copy both again")


def _text(path: Path) -> Any:
    return OPENERS.get(path.suffix.lower(), open)(path, "rt", encoding="utf-8")


def _unpickle(packed: bytes, source: str) -> Any:
    try:
        return loads(packed)
    except Exception as error:  # a parser of foreign bytes: any of its errors is a fault of the file
        raise DataError(f"{source}: no complete pickle of numbers ({type(error).__name__}: {error}); copy or write it again") from error


def _attributes(graph: Any, source: str) -> dict[str, Any]:
    """What the graph holds; of PyTorch Geometric 2 it lies one level deeper than of 1."""
    kind = graph.class_name if isinstance(graph, Inert) else type(graph).__name__
    if not isinstance(graph, Inert) or not kind.startswith(GRAPH):
        raise DataError(f"{source}: must be a graph of {GRAPH}, got {kind}; nothing of it was run; do not trust this file")
    store = vars(graph).get("_store")
    held = vars(store).get("_mapping") if isinstance(store, Inert) else vars(graph)
    if not isinstance(held, dict):
        raise DataError(f"{source}: holds a graph without its numbers; write the record again")
    foreign = [
        f"{key} ({value.class_name})"
        for key, value in held.items()
        if isinstance(value, Inert) and not value.class_name.startswith("torch")
    ]
    if foreign:
        raise DataError(f"{source}: holds what is no number: {', '.join(foreign)}; nothing of it was run; do not trust this file")
    return {str(key): value for key, value in held.items() if not str(key).startswith("_") and value is not None}


def _array(value: Any, key: str, source: str) -> np.ndarray:
    array = value.detach().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise DataError(f"{source}: {key} must be numbers, got {array.dtype}; write the record again")
    return array


def _whole(array: np.ndarray, key: str, source: str) -> np.ndarray:
    """Integers; OC20 stores them as floats."""
    whole = np.rint(array).astype(np.int64) if np.isfinite(array).all() else np.zeros(0)
    if whole.shape != array.shape or (whole != array).any():
        raise DataError(f"{source}: {key} must be whole numbers, got {array.reshape(-1)[:4].tolist()}...; write the record again")
    return whole
