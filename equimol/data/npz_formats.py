"""Archives of NumPy with one molecule in many conformations: sGDML's (MD17, MD22) and rMD17's, in kcal/mol and Å unless they say otherwise.

sGDML: z [N], R [M, N, 3], E [M] or [M, 1], F [M, N, 3], maybe `e_unit`, `r_unit`, and `lattice` with vectors as columns (sgdml.org).
rMD17: nuclear_charges, coords, energies, forces. Nothing is unpickled.
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from equimol.data.errors import DataError
from equimol.data.labels import Record
from equimol.data.record_file import RecordFile

SPELLINGS = (
    {"numbers": "z", "positions": "R", "energy": "E", "forces": "F"},
    {"numbers": "nuclear_charges", "positions": "coords", "energy": "energies", "forces": "forces"},
)
UNITS = {"energy": "kcal/mol", "length": "Å"}  # of both, where the file states none


class NpzFile(RecordFile):
    """Conformations of the molecule, all of them in memory."""

    def __init__(self, path: Path, name: str) -> None:
        self.name = name
        try:
            # Opened here, because np.load leaves a file open that it cannot read.
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
                there = set(archive.files)
                names = next((one for one in SPELLINGS if {one["numbers"], one["positions"]} <= there), None)
                if names is None:
                    raise DataError(
                        f"{name}: no archive as sGDML or rMD17 write it (z, R, E, F, or nuclear_charges, coords, energies, forces); "
                        f"it holds {', '.join(sorted(there)) or 'nothing'}; convert it to extxyz (.xyz)"
                    )
                arrays = {ours: archive[theirs] for ours, theirs in names.items() if theirs in there}
                stated = {key: str(archive[key]) for key in ("e_unit", "r_unit") if key in there}
                lattice = archive["lattice"] if "lattice" in there else None
        except DataError:
            raise
        except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(f"{name}: no complete archive of arrays of numbers ({error}); copy or write it again") from error
        self.arrays = {key: _numbers(array, names[key], name) for key, array in arrays.items()}
        positions = self.arrays["positions"]
        if positions.ndim != 3 or positions.shape[1:] != (self.arrays["numbers"].size, 3):
            wanted = f"[conformations, {self.arrays['numbers'].size}, 3] for as many {names['numbers']}"
            raise DataError(f"{name}: {names['positions']} must be {wanted}, got {positions.shape}; write it again")
        count, atoms = positions.shape[:2]
        for key, shape in (("energy", (count,)), ("forces", (count, atoms, 3))):
            if key in self.arrays:
                if self.arrays[key].size != np.prod(shape):
                    raise DataError(f"{name}: {names[key]} must be {shape}, got {self.arrays[key].shape}; write it again")
                self.arrays[key] = self.arrays[key].reshape(shape)
        numbers = self.arrays["numbers"].reshape(-1)
        if numbers.dtype.kind not in "iu":
            raise DataError(f"{name}: {names['numbers']} must be whole numbers, got {numbers.dtype}; write it again")
        self.numbers = numbers.astype(np.int64)
        self.cell = np.zeros((3, 3)) if lattice is None else np.array(lattice, dtype=np.float64).T
        energy, length = stated.get("e_unit", UNITS["energy"]), stated.get("r_unit", UNITS["length"])
        self.units = {"energy": energy, "length": length, "forces": f"{energy}/{length}"}

    def close(self) -> None:
        self.arrays = {}

    def __len__(self) -> int:
        return len(self.arrays["positions"])

    def __getitem__(self, index: int) -> Record:
        source = f"{self.name}:{index}"
        positions = self.arrays["positions"][index].astype(np.float64)
        if not np.isfinite(positions).all():
            raise DataError(f"{source}: positions hold NaN or infinity; remove the frame")
        values = {key: np.asarray(self.arrays[key][index], dtype=np.float64) for key in ("energy", "forces") if key in self.arrays}
        return Record(self.numbers, positions, self.cell, np.full(3, bool(self.cell.any())), values, source, self.units)


def _numbers(array: np.ndarray, key: str, name: str) -> np.ndarray:
    if array.dtype.kind not in "fiu":
        raise DataError(f"{name}: {key} must be numbers, got {array.dtype}; write it again")
    return array
