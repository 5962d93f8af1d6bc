"""JSON of MPtrj, {material: {frame: {structure, energies, force, stress, ...}}}, frame by frame: the whole file is 12 GB.

Stress is as VASP prints it, in kbar and positive under compression (CHGNet's own reader multiplies by -0.1 to get GPa). The energy is
`uncorrected_total_energy`, of which the forces are the gradient; `keys.energy=corrected_total_energy` takes the other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import atomic_numbers

from equimol.data.ase_formats import DAMAGE, OPENERS, read_ase
from equimol.data.errors import DataError
from equimol.data.labels import Record

UNITS = {"stress": "-kbar"}
NAMES = {"uncorrected_total_energy": "energy", "force": "forces"}
CHUNK = 1 << 20  # characters


def read_json(path: Path, name: str) -> Iterator[Record | DataError]:
    """Structures of MPtrj; any other JSON is offered to ASE."""
    try:
        with _text(path) as file:
            head = file.read(CHUNK)
    except DAMAGE as error:
        raise DataError(f"{name}:0: the file is damaged or cut off ({error}); copy it again") from error
    if re.match(r'\s*\{\s*"[^"]*"\s*:\s*\{\s*"[^"]*"\s*:\s*\{', head) and '"structure"' in head:
        yield from _read_mptrj(path, name)
    elif path.suffix.lower() in OPENERS:
        raise DataError(f"{name}: no JSON of MPtrj; if ASE wrote it, unpack it first: {path.stem}")
    else:
        yield from read_ase(path, name)


def _read_mptrj(path: Path, name: str) -> Iterator[Record | DataError]:
    index = 0
    try:
        with _text(path) as file:
            for material, frame, table in _entries(file):
                source = f"{name}:{index}"
                try:
                    record: Record | DataError = _record(table, material, frame, source)
                except DataError as error:
                    record = error
                except (KeyError, TypeError, ValueError, IndexError) as error:
                    record = DataError(f"{source}: {frame} is no frame of MPtrj ({type(error).__name__}: {error}); remove it")
                yield record
                index += 1
    except (*DAMAGE, json.JSONDecodeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{name}:{index}: the JSON is damaged or cut off ({error}); copy it again") from error


def _text(path: Path) -> Any:
    return OPENERS.get(path.suffix.lower(), open)(path, "rt", encoding="utf-8")


def _entries(file: Any) -> Iterator[tuple[str, str, Any]]:
    """(material, frame, content) of a dictionary of dictionaries, with no more than a few frames in memory."""
    text = _Text(file)
    text.skip("{")
    while text.peek() != "}":
        material = text.value()
        text.skip(":")
        text.skip("{")
        while text.peek() != "}":
            frame = text.value()
            text.skip(":")
            yield material, frame, text.value()
            if text.peek() == ",":
                text.skip(",")
        text.skip("}")
        if text.peek() == ",":
            text.skip(",")
    text.skip("}")


class _Text:
    """JSON that is read as far as it is asked for."""

    def __init__(self, file: Any) -> None:
        self.file, self.buffer, self.place, self.decoder = file, "", 0, json.JSONDecoder()

    def peek(self) -> str:
        """The next character that is no space."""
        while True:
            while self.place < len(self.buffer) and self.buffer[self.place].isspace():
                self.place += 1
            if self.place < len(self.buffer):
                return self.buffer[self.place]
            if not self._more():
                raise ValueError("it ends too early")

    def skip(self, character: str) -> None:
        if self.peek() != character:
            raise ValueError(f"{character!r} expected, got {self.buffer[self.place : self.place + 20]!r}")
        self.place += 1

    def value(self) -> Any:
        """The next string, number, list or dictionary."""
        self.peek()
        while True:
            try:
                found, end = self.decoder.raw_decode(self.buffer, self.place)
            except json.JSONDecodeError:
                if not self._more():
                    raise
            else:
                if end < len(self.buffer) or not self._more():  # a number may go on
                    self.place = end
                    return found

    def _more(self) -> bool:
        """Whether there was more to read; what lies behind is let go, and a long value doubles what is read at once."""
        more = self.file.read(max(CHUNK, len(self.buffer) - self.place))
        self.buffer, self.place = self.buffer[self.place :] + more, 0
        return bool(more)


def _record(table: dict[str, Any], material: str, frame: str, source: str) -> Record:
    structure = table["structure"]
    sites = structure["sites"]
    symbols = [site["species"][0]["element"] for site in sites]
    numbers = np.array([atomic_numbers[symbol] for symbol in symbols], dtype=np.int64)
    cell = np.array(structure["lattice"]["matrix"], dtype=np.float64).reshape(3, 3)
    if all("xyz" in site for site in sites):
        positions = np.array([site["xyz"] for site in sites], dtype=np.float64)
    else:
        positions = np.array([site["abc"] for site in sites], dtype=np.float64) @ cell
    if positions.shape != (len(numbers), 3) or not np.isfinite(positions).all():
        raise DataError(f"{source}: sites must have three finite coordinates each; remove the frame")
    values: dict[str, Any] = {"mp_id": material, "frame": frame}
    for key, value in table.items():
        if key not in ("structure", "magmom") and value is not None:
            values[NAMES.get(key, key)] = np.array(value, dtype=np.float64) if isinstance(value, list) else value
    return Record(numbers, positions, cell, np.full(3, True), values, source, UNITS)
