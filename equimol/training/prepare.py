"""From the settings to graphs: reading, splitting, reference energies, and the statistics a model is built with."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import atomic_numbers, chemical_symbols

from equimol.data.errors import DataError
from equimol.data.formats import files_of, read
from equimol.data.frame import Frame
from equimol.data.graph import AtomicGraph
from equimol.data.splits import choose_split, split
from equimol.data.statistics import average_neighbors, force_rms, is_isolated_atom, reference_energies, residual_energies
from equimol.training.config import TrainConfig


@dataclass
class TrainingData:
    """Frames and graphs of each split, and what was found in the files."""

    frames: dict[str, list[Frame]]  # train, valid, test
    isolated: list[Frame]  # single atoms, of the file `references` where there is one: they give reference energies, no training
    label_keys: dict[str, list[str]]
    summary: str  # the printed text: labels, splits
    checksum: str  # of the files, so that a resumed run notices that they changed
    graphs: dict[str, list[AtomicGraph]] = field(default_factory=dict)

    @property
    def elements(self) -> list[int]:
        """Of the training frames, ascending."""
        return sorted({int(z) for frame in self.frames["train"] for z in np.unique(frame.numbers)})


def read_data(config: TrainConfig) -> TrainingData:
    """Everything that is read from files. The graphs follow when the cutoff is known."""
    found = read(config.data, config.keys or None, config.energy_key, fixed=config.fixed)
    isolated = [frame for frame in found.frames if is_isolated_atom(frame)]
    frames, notes = _split_frames(config, [frame for frame in found.frames if not is_isolated_atom(frame)])
    if not frames["train"]:
        raise DataError(
            f"{_names(config.data)}: the training set is empty: {len(found.frames)} frames, {len(isolated)} of them isolated atoms,"
            f" {len(frames['valid'])} to validate, {len(frames['test'])} to test; give more data or smaller valid and test"
        )
    sizes = ", ".join(f"{len(of_split)} {name}" for name, of_split in frames.items())
    sizes += f"; {len(isolated)} isolated atoms" if isolated else ""
    if isinstance(config.references, str) and config.references != "auto":
        energy_alone = {name: key for name, key in config.keys.items() if name == "energy"}  # atoms need no forces
        given = read(config.references, energy_alone or None, config.energy_key)
        isolated, notes = given.frames, [*notes, f"references: {given.report}"]
    summary = "\n".join([str(found.report), *notes, f"frames: {sizes}"])
    label_keys = {name: list(keys) for name, keys in found.report.used.items() if keys}
    data = TrainingData(frames, isolated, label_keys, summary, _checksum(config))
    _check_elements(data)
    return data


def build_graphs(data: TrainingData, cutoff: float) -> None:
    """One graph per frame, built once for all epochs."""
    data.graphs = {name: [frame.graph(cutoff) for frame in of_split] for name, of_split in data.frames.items()}


def find_references(config: TrainConfig, data: TrainingData) -> tuple[dict[int, float], str]:
    """Energy of each element in eV, and how it was found."""
    given, training = config.references, data.frames["train"]
    if isinstance(given, dict):
        energies = {_atomic_number(key): float(energy) for key, energy in given.items()}
        missing = [chemical_symbols[z] for z in data.elements if z not in energies]
        if missing:
            lacking = ", ".join(missing)
            raise ValueError(f"references must name every element of the data, {lacking} missing; add them in eV or use references=auto")
        return {z: energies[z] for z in data.elements}, "given"
    if not any(frame.labels.get("energy") is not None for frame in training):
        return dict.fromkeys(data.elements, 0.0), "none: the training set has no energies"
    energies, method = reference_energies(training, data.isolated or None)
    return {int(z): float(energies[z]) for z in data.elements}, method


def find_scale_and_shift(config: TrainConfig, data: TrainingData, references: dict[int, float]) -> tuple[float, float]:
    """Typical size of the energies a model predicts, eV, and the mean per atom of what the references leave."""
    rest = residual_energies(data.frames["train"], references)
    scale, shift = config.scale, config.shift
    if scale == "auto":
        has_forces = any(frame.labels.get("forces") is not None for frame in data.frames["train"])
        scale = float(force_rms(data.frames["train"])) if has_forces else float(rest.std()) if len(rest) else 1.0
        scale = scale if np.isfinite(scale) and scale > 1e-6 else 1.0
    return scale, (float(rest.mean()) if len(rest) else 0.0) if shift == "auto" else shift


def find_average_neighbors(data: TrainingData) -> float:
    """Mean number of neighbours within the cutoff in the training set, at least one."""
    return max(1.0, float(average_neighbors(data.graphs["train"])))


def _split_frames(config: TrainConfig, frames: list[Frame]) -> tuple[dict[str, list[Frame]], list[str]]:
    """valid and test are shares of the data, or files of their own; with what a user should know of it."""
    shares, parts, notes = {}, {}, []
    for name in ("valid", "test"):
        wanted = getattr(config, name)
        if isinstance(wanted, (str, list)):
            found = read(wanted, config.keys or None, config.energy_key, fixed=config.fixed)
            shares[name], parts[name] = 0.0, [frame for frame in found.frames if not is_isolated_atom(frame)]
            notes.append(f"{name}: {found.report}")
        else:
            shares[name] = wanted / len(frames) if wanted >= 1 and frames else wanted
    if sum(shares.values()) >= 1:
        asked = " and ".join(f"{name}={getattr(config, name):g}" for name in shares if name not in parts)
        raise DataError(f"{_names(config.data)}: {asked} would leave none of {len(frames)} frames to train on; give smaller shares")
    fractions = (1 - shares["valid"] - shares["test"], shares["valid"], shares["test"])
    if frames:
        if config.split == "auto" and len(parts) < 2:
            notes.append("split: {}, because {} (split=... decides otherwise)".format(*choose_split(frames)))
        chosen = split(frames, how=config.split, fractions=fractions, seed=config.seed)
        parts = {name: [frames[k] for k in chosen[name]] for name in ("train", "valid", "test") if name not in parts} | parts
    return {name: parts.get(name, []) for name in ("train", "valid", "test")}, notes


def _check_elements(data: TrainingData) -> None:
    known = set(data.elements)
    for name in ("valid", "test"):
        for frame in data.frames[name]:
            missing = sorted({int(z) for z in frame.numbers} - known)
            if missing:
                raise DataError(
                    f"{frame.source}: {chemical_symbols[missing[0]]} is in the {name} set but in no training frame;"
                    " use split=random, or add such frames to the training"
                )


def data_files(config: TrainConfig) -> list[Path]:
    """All files that a run goes on with, also those in folders; reference energies are numbers in config.yaml once it has begun."""
    named: list[Any] = [config.data, config.valid, config.test]
    paths = [Path(path) for item in named for path in (item if isinstance(item, list) else [item]) if isinstance(path, str)]
    return [file for path in paths for file in files_of(path) if file.name != "lock.mdb"]  # who reads an LMDB, not what is in it


def _checksum(config: TrainConfig) -> str:
    digest = hashlib.sha256()
    for path in data_files(config):
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _atomic_number(key: int | str) -> int:
    number = atomic_numbers.get(key, key) if isinstance(key, str) else key
    if not isinstance(number, int) or not 0 < number < len(chemical_symbols):
        raise ValueError(f"references must be {{element: eV}} with symbols or atomic numbers, got the element {key!r}")
    return number


def _names(data: str | Sequence[str]) -> str:
    return data if isinstance(data, str) else ", ".join(data)
