"""HDF5 files of SPICE, ANI-1, ANI-1x, ANI-2x and of modelforge (QM9): groups of conformations of one molecule, or of one size.

| set        | structures                                   | energy, eV after reading            | forces                      |
|------------|----------------------------------------------|-------------------------------------|-----------------------------|
| SPICE      | conformations [M, N, 3] bohr                 | dft_total_energy, hartree           | -dft_total_gradient         |
| ANI-1x     | coordinates [M, N, 3] Å, atomic_numbers [N]  | wb97x_dz.energy, hartree            | wb97x_dz.forces, hartree/Å  |
| ANI-1, -2x | coordinates [M, N, 3] Å, species             | energies, hartree                   | forces, hartree/Å           |
| modelforge | positions [M, N, 3], atomic_numbers [N, 1]   | internal_energy_at_0K               | none in QM9                 |

Units are those that the file states (attributes `units` or `u`), else those of the table. The charge of SPICE's molecules is that of
their SMILES. Other energies keep their own key, so that `keys.energy=formation_energy` takes that one.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ase.data import atomic_numbers as NUMBERS

from equimol.data.errors import DataError
from equimol.data.labels import Record
from equimol.data.record_file import RecordFile


class Layout(NamedTuple):
    """How one family of files names and measures things."""

    positions: str
    numbers: str
    labels: dict[str, str]  # energy, forces -> data set
    units: dict[str, str]  # where the file states none
    forces_sign: str = ""  # "-" where the file has gradients


LAYOUTS = {
    "SPICE": Layout(
        "conformations",
        "atomic_numbers",
        {"energy": "dft_total_energy", "forces": "dft_total_gradient"},
        {"length": "bohr", "energy": "hartree", "forces": "hartree/bohr"},
        "-",
    ),
    "ANI-1x": Layout(
        "coordinates",
        "atomic_numbers",
        {"energy": "wb97x_dz.energy", "forces": "wb97x_dz.forces"},
        {"length": "Å", "energy": "hartree", "forces": "hartree/Å"},
    ),
    "ANI": Layout(
        "coordinates", "species", {"energy": "energies", "forces": "forces"}, {"length": "Å", "energy": "hartree", "forces": "hartree/Å"}
    ),
    "modelforge": Layout("positions", "atomic_numbers", {"energy": "internal_energy_at_0K"}, {"length": "nm", "energy": "kJ/mol"}),
}
TEXTS = ("smiles", "subset", "smiles_b3lyp", "inchi_b3lyp", "tag")  # one word per molecule, into the frame's info
ENERGY = re.compile(r".*energy.*|energies", re.IGNORECASE)  # other data sets with a number per conformation that may be asked for
CHARGE = re.compile(r"(\+\d+|-\d+|\++|-+)(?::\d+)?\]")  # at the end of an atom in brackets


class Hdf5File(RecordFile):
    """Conformations of all molecules, group after group in the order of the file. The group last used stays in memory."""

    def __init__(self, path: Path, name: str) -> None:
        try:
            import h5py
        except ImportError:
            raise DataError(f"{name}: HDF5 files are read with h5py, which is not installed; pip install 'equimol[hdf5]'") from None
        self.name = name
        try:
            self.file = h5py.File(path, "r")
        except OSError as error:
            raise DataError(f"{name}: cannot be read as HDF5 ({error}); the file is damaged or cut off: copy it again") from error
        try:
            self.groups = list(_groups(self.file))
            if not self.groups:
                known = ", ".join(sorted({layout.positions for layout in LAYOUTS.values()}))
                raise DataError(f"{name}: no group has structures as SPICE, ANI or modelforge name them ({known}); convert it to extxyz")
            sizes = [_size(group) for group in self.groups]
        except (OSError, RuntimeError, KeyError) as error:
            self.file.close()
            raise DataError(f"{name}: cannot be read as HDF5 ({error}); the file is damaged: copy it again") from error
        except BaseException:
            self.file.close()
            raise
        self.ends = list(accumulate(sizes))
        self.held: tuple[int, dict[str, Any]] = (-1, {})

    def close(self) -> None:
        self.file.close()

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, index: int) -> Record:
        source = f"{self.name}:{index}"
        place = bisect_right(self.ends, index)
        if self.held[0] != place:
            self.held = (place, _read_group(self.groups[place], f"{source} (group {self.groups[place].name})"))
        return _record(self.held[1], index - (self.ends[place - 1] if place else 0), source)


def _groups(node: Any) -> Iterator[Any]:
    """Groups with structures, at any depth."""
    if any(layout.positions in node for layout in LAYOUTS.values()) or _looks_damaged(node):
        yield node
        return
    for child in node.values():
        if hasattr(child, "values"):
            yield from _groups(child)


def _looks_damaged(node: Any) -> bool:
    """Numbers of atoms or energies without positions: half a molecule, which must be told and not passed over."""
    return any(key in node for layout in LAYOUTS.values() for key in (layout.numbers, *layout.labels.values()))


def _size(group: Any) -> int:
    """How many conformations; a damaged group counts as one, so that it is met."""
    for layout in LAYOUTS.values():
        data = group.get(layout.positions)
        if data is not None and getattr(data, "ndim", 0) == 3:
            return data.shape[0]
    return 1


def _layout(group: Any, source: str) -> Layout:
    if "positions" in group:
        return LAYOUTS["modelforge"]
    if "conformations" in group or "dft_total_energy" in group:
        return LAYOUTS["SPICE"]
    if "species" in group:
        return LAYOUTS["ANI"]
    if "coordinates" in group:
        return LAYOUTS["ANI-1x"]
    raise DataError(f"{source}: has no structures, only {', '.join(group)}; copy or write the file again")


def _read_group(group: Any, source: str) -> dict[str, Any]:
    """Arrays of all its conformations, checked: positions [M, N, 3], numbers [M or 1, N], values per conformation, info, units."""
    layout = _layout(group, source)
    positions = _numbers(group, layout.positions, source)
    if positions.ndim != 3 or positions.shape[2] != 3:
        raise DataError(f"{source}: {layout.positions} must be [conformations, atoms, 3], got {positions.shape}; write it again")
    count, atoms = positions.shape[:2]
    numbers = _atomic_numbers(group, layout.numbers, count, atoms, source)
    units = dict(layout.units)
    if stated := _unit(group[layout.positions]):
        units["length"] = stated
    labels: dict[str, np.ndarray] = {}
    for label, key in layout.labels.items():
        if key not in group:
            continue
        shape = (count,) if label == "energy" else (count, atoms, 3)
        values = _numbers(group, key, source)
        if values.size != np.prod(shape) or len(values) != count:
            raise DataError(f"{source}: {key} must be {shape} for as many {layout.positions}, got {values.shape}; write it again")
        labels[label] = values.reshape(shape)
        if stated := _unit(group[key]):
            units[label] = stated
    units["forces"] = layout.forces_sign + units.get("forces", f"{units['energy']}/{units['length']}")
    for key, data in group.items():
        scalar = getattr(data, "shape", None) in ((count,), (count, 1)) and getattr(data, "dtype", np.dtype("O")).kind in "fiu"
        if key not in layout.labels.values() and scalar and ENERGY.fullmatch(key) and _unit(data) in ("", units["energy"]):
            labels[key] = _numbers(group, key, source).reshape(count)
        elif key not in layout.labels.values() and key.endswith(".forces") and getattr(data, "shape", None) == positions.shape:
            labels[key] = _numbers(group, key, source)
    texts = {key: text for key in TEXTS if key in group and (text := _word(group[key]))}
    info = {**texts, "molecule": str(group.name).rpartition("/")[2]}
    if "smiles" in texts and layout is LAYOUTS["SPICE"]:
        info["charge"] = charge_of(texts["smiles"])
    return {"positions": positions, "numbers": numbers, "labels": labels, "info": info, "units": units, "nan": layout is LAYOUTS["ANI-1x"]}


def _record(group: Mapping[str, Any], index: int, source: str) -> Record:
    positions = group["positions"][index].astype(np.float64)
    if not np.isfinite(positions).all():
        raise DataError(f"{source}: positions hold NaN or infinity; remove the frame")
    values: dict[str, Any] = dict(group["info"])
    for key, array in group["labels"].items():
        value = np.asarray(array[index], dtype=np.float64)
        if not (group["nan"] and np.isnan(value).all()):  # ANI-1x says so where a method was not run
            values[key] = value
    numbers = group["numbers"][index if len(group["numbers"]) > 1 else 0]
    return Record(numbers, positions, np.zeros((3, 3)), np.zeros(3, dtype=bool), values, source, group["units"])


def charge_of(smiles: str) -> int:
    """The total charge that a SMILES states, e: the sum over atoms in brackets, such as [NH3+], [O-:3] or [Ca+2:1].

    >>> charge_of("[H:3][C:1]#[C:2][H:4].[Na+:5]")
    1
    """
    total = 0
    for sign in CHARGE.findall(smiles):
        size = int(sign[1:]) if sign[1:].isdigit() else len(sign)
        total += size if sign[0] == "+" else -size
    return total


def _atomic_numbers(group: Any, key: str, count: int, atoms: int, source: str) -> np.ndarray:
    """[1 or conformations, atoms]; symbols are looked up."""
    found = _read(group, key, source)
    if found.dtype.kind in "SOU":
        symbols = [one.decode() if isinstance(one, bytes) else str(one) for one in found.reshape(-1)]
        unknown = [symbol for symbol in symbols if symbol not in NUMBERS]
        if unknown:
            raise DataError(f"{source}: {key} must be elements, got {unknown[0]!r}; write it again")
        found = np.array([NUMBERS[symbol] for symbol in symbols]).reshape(found.shape)
    if found.dtype.kind not in "iu" or found.size not in (atoms, count * atoms):
        raise DataError(f"{source}: {key} must be [{atoms}] atomic numbers, got {found.dtype} of shape {found.shape}; write it again")
    return found.astype(np.int64).reshape(-1, atoms)


def _numbers(group: Any, key: str, source: str) -> np.ndarray:
    values = _read(group, key, source)
    if values.dtype.kind not in "fiu":
        raise DataError(f"{source}: {key} must be numbers, got {values.dtype}; write it again")
    return values


def _read(group: Any, key: str, source: str) -> np.ndarray:
    if key not in group:
        raise DataError(f"{source}: has no {key}, only {', '.join(group)}; copy or write the file again")
    try:
        return np.asarray(group[key][()])
    except (OSError, RuntimeError, TypeError) as error:
        raise DataError(f"{source}: {key} cannot be read ({error}); the file is damaged: copy it again") from error


def _unit(data: Any) -> str:
    """The unit that a data set states, in our spelling; empty where it states none."""
    unit = data.attrs.get("units", data.attrs.get("u", ""))
    return (unit.decode() if isinstance(unit, bytes) else str(unit)).replace(" ", "")


def _word(data: Any) -> str:
    value = np.asarray(data[()]).reshape(-1)
    word = value[0] if len(value) == 1 else b"".join(value.tolist()) if value.dtype.kind == "S" else ""
    return word.decode() if isinstance(word, bytes) else str(word)
