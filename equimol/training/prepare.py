"""From the settings to graphs: reading, splitting, and which data set a frame belongs to."""

import functools
import hashlib
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ase.data import chemical_symbols
from tqdm import tqdm

from equimol.data.errors import DataError
from equimol.data.formats import files_of, read
from equimol.data.frame import Frame
from equimol.data.graph import AtomicGraph
from equimol.data.packed import SUFFIX, PackedSet
from equimol.data.selection import GraphsOf, Selection, chosen, joined, sample
from equimol.data.splits import SPLITS, choose_split, split_numbers
from equimol.data.statistics import FrameSums, average_neighbors, is_isolated_atom
from equimol.models import is_by_data_set
from equimol.training.config import TrainConfig

SAMPLE = 2000  # frames of a packed set, for what needs their neighbours


@dataclass
class TrainingData:
    """Frames and graphs of each split, and what was found in the files. Those of a packed set are read when they are asked for."""

    frames: dict[str, Sequence[Frame]]  # train, valid, test
    isolated: list[Frame]  # single atoms, of the file `references` where there is one: they give reference energies, no training
    label_keys: dict[str, list[str]]
    summary: str  # the printed text: labels, splits
    checksum: str = ""  # of the files, so that a resumed run notices that they changed
    skipped: list[str] = field(default_factory=list)  # bad records that were left out, on request
    data_sets: list[str] = field(default_factory=list)  # of a model for several levels of theory, in the order of its encoding
    places: dict[str, dict[str, range]] = field(default_factory=dict)  # split -> data set -> numbers of its frames
    sums: dict[str, FrameSums] = field(default_factory=dict)  # of the training frames of each data set, "" where there is only one
    graphs: dict[str, Sequence[AtomicGraph]] = field(default_factory=dict)

    @property
    def all_sums(self) -> FrameSums:
        """Of all training frames."""
        return functools.reduce(operator.add, self.sums.values())

    @property
    def elements(self) -> list[int]:
        """Of the training frames, ascending."""
        return self.all_sums.elements

    def parts(self, sampling: Mapping[str, float | int]) -> list[tuple[Sequence[int], float | int]]:
        """Numbers of the training frames of each data set, and its share of the steps; nothing where all frames count alike."""
        return [(self.of_set("train", name), share) for name, share in sampling.items()]

    def of_set(self, part: str, name: str) -> range:
        """Numbers of the frames of one data set in a split."""
        return self.places[part].get(name, range(0))

    def subset(self, part: str, name: str) -> Sequence[Frame]:
        """The frames of one data set in a split."""
        return chosen(self.frames[part], self.of_set(part, name))


def read_data(config: TrainConfig) -> TrainingData:
    """Everything that is read from files. The graphs follow when the cutoff is known."""
    names = data_set_names(config)
    given = {name: replace(config, **_of_set(config, name)) for name in config.data} if isinstance(config.data, dict) else {"": config}
    parts = {name: _read_set(one) for name, one in given.items()}
    for name in parts if names else ():
        part, number = parts[name], float(names.index(name))
        part.frames = {split: _with_data_set(frames, number) for split, frames in part.frames.items()}
        part.isolated = list(_with_data_set(part.isolated, number))
    keys: dict[str, list[str]] = {}
    for part in parts.values():
        for label, found in part.label_keys.items():
            keys[label] = list(dict.fromkeys([*keys.get(label, []), *found]))
    data = TrainingData(
        frames={split: joined([part.frames[split] for part in parts.values()]) for split in SPLITS},
        isolated=[frame for part in parts.values() for frame in part.isolated],
        label_keys=keys,
        summary="\n".join(f"{name}: {part.summary}" if name else part.summary for name, part in parts.items()),
        checksum=_checksum(config),
        skipped=[fault for part in parts.values() for fault in part.skipped],
        data_sets=names,
        sums={name: _sums(part.frames["train"]) for name, part in parts.items()},
    )
    for split in SPLITS:
        ends = np.cumsum([0, *(len(part.frames[split]) for part in parts.values())]).tolist()
        data.places[split] = {name: range(*ends[n : n + 2]) for n, name in enumerate(parts)}
    _check_elements(data)
    return data


def _with_data_set(frames: Sequence[Frame], number: float) -> Sequence[Frame]:
    if isinstance(frames, Selection):
        return frames.labelled(data_set=number)
    return [replace(frame, info={**frame.info, "data_set": number}) for frame in frames]


def _sums(frames: Sequence[Frame]) -> FrameSums:
    return FrameSums.of(frames, "looking at the training set" if isinstance(frames, Selection) else "")


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
    found = _found(config, config.data)
    frames, notes, skipped = _split_frames(config, found.frames)
    if not len(frames["train"]):
        raise DataError(
            f"{_names(config.data)}: the training set is empty: {len(found.frames) + len(found.isolated)} frames, {len(found.isolated)} of "
            f"them isolated atoms, {len(frames['valid'])} to validate, {len(frames['test'])} to test; "
            "give more data or smaller valid and test"
        )
    sizes = ", ".join(f"{len(of_split)} {name}" for name, of_split in frames.items())
    isolated, skipped = found.isolated, [*found.skipped, *skipped]
    sizes += f"; {len(isolated)} isolated atoms" if isolated else ""
    if isinstance(config.references, str) and config.references not in ("auto", "fit"):
        energy_alone = {name: key for name, key in config.keys.items() if name == "energy"}  # atoms need no forces
        given = read(config.references, energy_alone or None, config.energy_key, units=_energy_unit(config.units))
        isolated, notes = given.frames, [*notes, f"references: {given.report}"]
    summary = "\n".join([found.report, *notes, f"frames: {sizes}"])
    return TrainingData(frames, isolated, found.label_keys, summary, skipped=skipped)


class _Found(NamedTuple):
    """What some files hold."""

    frames: Sequence[Frame]  # without isolated atoms
    isolated: list[Frame]
    label_keys: dict[str, list[str]]
    report: str
    skipped: Sequence[str]


def _found(config: TrainConfig, files: str | Sequence[str]) -> _Found:
    """Frames in memory; those of packed files, where all are packed, stay in the files."""
    paths = [Path(path) for path in ([files] if isinstance(files, str) else files)]
    if paths and all(path.suffix == SUFFIX for path in paths):
        return _packed(config, paths)
    found = read(paths, config.keys or None, config.energy_key, fixed=config.fixed, units=config.units, skip_bad=config.skip_bad)
    isolated = [frame for frame in found.frames if is_isolated_atom(frame)]
    frames = [frame for frame in found.frames if not is_isolated_atom(frame)]
    label_keys = {name: list(keys) for name, keys in found.report.used.items() if keys}
    report = str(replace(found.report, skipped=()))
    if found.report.skipped:
        report += f"\n  {len(found.report.skipped)} bad records skipped"
    return _Found(frames, isolated, label_keys, report, found.report.skipped)


def _packed(config: TrainConfig, paths: Sequence[Path]) -> _Found:
    packs = [PackedSet(path) for path in paths]
    reports, label_keys = [], {}
    for pack in packs:
        _same_questions(config, pack)
        for name, keys in pack.metadata.get("label_keys", {}).items():
            label_keys[name] = list(dict.fromkeys([*label_keys.get(name, []), *keys]))
        cutoff = pack.metadata["cutoff"]
        told = f"neighbours within {cutoff:g} Å" if cutoff else "no neighbour lists: they are found anew at every reading"
        reports.append(f"{pack.name}: {len(pack)} packed frames, {told}, of these\n{pack.metadata.get('report', 'unknown files')}")
    frames, skipped = Selection(packs), []
    reports.append(
        "reference energies, weights and the scale of forces follow from a pass over all training frames, mean neighbours and closest "
        f"approaches from {SAMPLE} of them, drawn with a seed"
    )
    if config.skip_bad:
        frames, skipped = _readable(frames)
        reports += [f"{len(skipped)} damaged frames skipped"] * bool(skipped)
    lone = np.flatnonzero(frames.atoms == 1)
    isolated = [n for n in lone.tolist() if is_isolated_atom(frames[n])]
    rest = frames.take(np.setdiff1d(np.arange(len(frames)), isolated, assume_unique=True)) if isolated else frames
    return _Found(rest, list(frames.take(isolated)), label_keys, "\n".join(reports), skipped)


def _same_questions(config: TrainConfig, pack: PackedSet) -> None:
    """Which values are labels was decided when the file was packed."""
    asked = {"keys": {}, "energy_key": "auto", "fixed": "auto", "units": {}, **pack.metadata.get("asked", {})}
    neutral = TrainConfig()
    for name, then in asked.items():
        now = getattr(config, name)
        if now not in (getattr(neutral, name), then):
            raise DataError(
                f"{pack.name}: {name} was decided when the file was packed, with {then!r}, and is now {now!r}; leave it out, or pack again"
            )


def _readable(frames: Selection) -> tuple[Selection, list[str]]:
    """Without the frames that cannot be read, and what is wrong with those."""
    good, skipped = np.ones(len(frames), dtype=bool), []
    for n in tqdm(range(len(frames)), desc="looking for damage", disable=None, leave=False):
        try:
            frames[n]
        except DataError as error:
            good[n] = False
            skipped.append(str(error))
    return frames.take(np.flatnonzero(good)), skipped


def _energy_unit(units: Mapping[str, str]) -> dict[str, str]:
    return {name: unit for name, unit in units.items() if name == "energy"}


def build_graphs(data: TrainingData, cutoff: float, skip_bad: bool = False) -> None:
    """One graph per frame, built once for all epochs; of a packed set, whenever it is asked for. `skip_bad` leaves out what makes none."""
    for name, frames in data.frames.items():
        if isinstance(frames, Selection):
            data.graphs[name] = GraphsOf(frames, cutoff)
        elif not skip_bad:
            data.graphs[name] = [frame.graph(cutoff) for frame in frames]
        else:
            _build_good_graphs(data, name, cutoff)
    if not len(data.graphs["train"]):
        raise DataError(f"no training frame makes a graph, the first because of: {data.skipped[0]}")


def _build_good_graphs(data: TrainingData, name: str, cutoff: float) -> None:
    good, graphs = [], []
    for n, frame in enumerate(data.frames[name]):
        try:
            graphs.append(frame.graph(cutoff))
            good.append(n)
        except DataError as error:
            data.skipped.append(str(error))
    if len(good) < len(data.frames[name]):
        places = np.searchsorted(good, [0, *(part.stop for part in data.places[name].values())]).tolist()
        data.places[name] = {one: range(*places[n : n + 2]) for n, one in enumerate(data.places[name])}
        data.frames[name] = chosen(data.frames[name], good)
    data.graphs[name] = graphs


def sampled_graphs(data: TrainingData) -> Sequence[AtomicGraph]:
    """Graphs of training frames for mean neighbours and closest approaches: all that are in memory, or some drawn from a packed set."""
    graphs = data.graphs["train"]
    return GraphsOf(sample(graphs.frames, SAMPLE), graphs.cutoff) if isinstance(graphs, GraphsOf) else graphs


def find_average_neighbors(data: TrainingData) -> float:
    """Mean number of neighbours within the cutoff in the training set, at least one."""
    return max(1.0, float(average_neighbors(sampled_graphs(data))))


def _split_frames(config: TrainConfig, frames: Sequence[Frame]) -> tuple[dict[str, Sequence[Frame]], list[str], list[str]]:
    """valid and test are shares of the data, or files of their own; with what a user should know of it, and what was skipped."""
    shares, parts, notes, skipped = {}, {}, [], []
    for name in ("valid", "test"):
        wanted = getattr(config, name)
        if isinstance(wanted, (str, list)):
            found = _found(config, wanted)
            shares[name], parts[name] = 0.0, found.frames
            notes.append(f"{name}: {found.report}")
            skipped += found.skipped
        else:
            shares[name] = wanted / len(frames) if wanted >= 1 and len(frames) else wanted
    if sum(shares.values()) >= 1:
        asked = " and ".join(f"{name}={getattr(config, name):g}" for name in shares if name not in parts)
        raise DataError(f"{_names(config.data)}: {asked} would leave none of {len(frames)} frames to train on; give smaller shares")
    fractions = (1 - shares["valid"] - shares["test"], shares["valid"], shares["test"])
    if len(frames):
        if config.split == "auto" and len(parts) < 2:
            notes.append("split: {}, because {} (split=... decides otherwise)".format(*choose_split(frames)))
        places = split_numbers(frames, config.split, fractions, config.seed)
        parts = {name: chosen(frames, places[name]) for name in SPLITS if name not in parts} | parts
    return {name: parts.get(name, []) for name in SPLITS}, notes, skipped


def _check_elements(data: TrainingData) -> None:
    known = data.all_sums.seen
    for name in ("valid", "test"):
        for frame in data.frames[name]:
            if not known[frame.numbers].all():
                missing = sorted({int(z) for z in frame.numbers[~known[frame.numbers]]})
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
    """Of all bytes; of packed files, which may be very large, of their size and their own checksums."""
    digest = hashlib.sha256()
    for path in data_files(config):
        with open(path, "rb") as file:
            if path.suffix == SUFFIX:
                digest.update(f"{path.stat().st_size} {PackedSet(path).checksum}".encode())
            else:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _names(data: str | Sequence[str]) -> str:
    return data if isinstance(data, str) else ", ".join(data)
