"""From the settings to graphs: reading, splitting, and which data set a frame belongs to."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import chemical_symbols

from equimol.data.errors import DataError
from equimol.data.formats import files_of, read
from equimol.data.frame import Frame
from equimol.data.graph import AtomicGraph
from equimol.data.splits import choose_split, split
from equimol.data.statistics import average_neighbors, is_isolated_atom
from equimol.models import is_by_data_set
from equimol.training.config import TrainConfig


@dataclass
class TrainingData:
    """Frames and graphs of each split, and what was found in the files."""

    frames: dict[str, list[Frame]]  # train, valid, test
    isolated: list[Frame]  # single atoms, of the file `references` where there is one: they give reference energies, no training
    label_keys: dict[str, list[str]]
    summary: str  # the printed text: labels, splits
    checksum: str  # of the files, so that a resumed run notices that they changed
    data_sets: list[str] = field(default_factory=list)  # of a model for several levels of theory, in the order of its encoding
    graphs: dict[str, list[AtomicGraph]] = field(default_factory=dict)

    @property
    def elements(self) -> list[int]:
        """Of the training frames, ascending."""
        return sorted({int(z) for frame in self.frames["train"] for z in np.unique(frame.numbers)})

    def parts(self, sampling: Mapping[str, float | int]) -> list[tuple[list[int], float | int]]:
        """Numbers of the training frames of each data set, and its share of the steps; nothing where all frames count alike."""
        return [(self.of_set("train", name), share) for name, share in sampling.items()]

    def of_set(self, part: str, name: str) -> list[int]:
        """Numbers of the frames of one data set in a split."""
        number = self.data_sets.index(name)
        return [n for n, frame in enumerate(self.frames[part]) if frame.info["data_set"] == number]


def read_data(config: TrainConfig) -> TrainingData:
    """Everything that is read from files. The graphs follow when the cutoff is known."""
    names = data_set_names(config)
    given = {name: replace(config, **_of_set(config, name)) for name in config.data} if isinstance(config.data, dict) else {"": config}
    parts = {name: _read_set(one) for name, one in given.items()}
    for name in parts if names else ():
        for frame in (*parts[name].isolated, *(frame for frames in parts[name].frames.values() for frame in frames)):
            frame.info["data_set"] = float(names.index(name))
    whole = {split: [frame for part in parts.values() for frame in part.frames[split]] for split in ("train", "valid", "test")}
    isolated = [frame for part in parts.values() for frame in part.isolated]
    keys: dict[str, list[str]] = {}
    for part in parts.values():
        for label, found in part.label_keys.items():
            keys[label] = list(dict.fromkeys([*keys.get(label, []), *found]))
    summary = "\n".join(f"{name}: {part.summary}" if name else part.summary for name, part in parts.items())
    data = TrainingData(whole, isolated, keys, summary, _checksum(config), names)
    _check_elements(data)
    return data


def data_set_names(config: TrainConfig) -> list[str]:
    """Those that the model tells apart: first those of `start` or of the run that goes on, which are in references. Empty: only one."""
    if not isinstance(config.data, dict):
        return []
    before = list(config.references) if references_by_set(config) else []
    return list(dict.fromkeys([*before, *config.data]))


def references_by_set(config: TrainConfig) -> bool:
    """Whether reference energies are given for each data set, or where to find them."""
    given = config.references
    return is_by_data_set(given) or (isinstance(given, dict) and isinstance(config.data, dict) and bool(given.keys() & config.data.keys()))


def _of_set(config: TrainConfig, name: str) -> dict[str, Any]:
    """What is stated for one data set."""
    shares = {key: given.get(name, 0.0) if isinstance(given := getattr(config, key), dict) else given for key in ("valid", "test")}
    shares = {key: float(share) if isinstance(share, int) else share for key, share in shares.items()}
    references = config.references.get(name, "auto") if references_by_set(config) else config.references
    return {"data": config.data[name], "sampling": {}, "references": references, **shares}


def _read_set(config: TrainConfig) -> TrainingData:
    """One data set, of one level of theory."""
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
    if isinstance(config.references, str) and config.references not in ("auto", "fit"):
        energy_alone = {name: key for name, key in config.keys.items() if name == "energy"}  # atoms need no forces
        given = read(config.references, energy_alone or None, config.energy_key)
        isolated, notes = given.frames, [*notes, f"references: {given.report}"]
    summary = "\n".join([str(found.report), *notes, f"frames: {sizes}"])
    label_keys = {name: list(keys) for name, keys in found.report.used.items() if keys}
    return TrainingData(frames, isolated, label_keys, summary, "")


def build_graphs(data: TrainingData, cutoff: float) -> None:
    """One graph per frame, built once for all epochs."""
    data.graphs = {name: [frame.graph(cutoff) for frame in of_split] for name, of_split in data.frames.items()}


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
    given = (config.data, config.valid, config.test)
    named: list[Any] = [files for item in given for files in (item.values() if isinstance(item, dict) else [item])]
    paths = [Path(path) for item in named for path in (item if isinstance(item, list) else [item]) if isinstance(path, str)]
    return [file for path in paths for file in files_of(path) if file.name != "lock.mdb"]  # who reads an LMDB, not what is in it


def _checksum(config: TrainConfig) -> str:
    digest = hashlib.sha256()
    for path in data_files(config):
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _names(data: str | Sequence[str]) -> str:
    return data if isinstance(data, str) else ", ".join(data)
