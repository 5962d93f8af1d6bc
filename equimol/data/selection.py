"""Frames that are read when they are asked for: what a list of frames is to a small set, for sets that do not fit into memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from equimol.data.errors import DataError
from equimol.data.frame import Frame
from equimol.data.graph import AtomicGraph
from equimol.data.packed import PackedSet


class Selection(Sequence):
    """Frames of one or several sets, chosen by number; only the numbers are in memory. A slice of it is a selection again.

    `infos` holds, for each set, what is to be added to the info of its frames.
    """

    def __init__(self, sets: Sequence[Any], numbers: np.ndarray | None = None, infos: Sequence[Mapping[str, Any]] | None = None) -> None:
        self.sets, self.infos = list(sets), [{} for _ in sets] if infos is None else list(infos)
        self.ends = np.cumsum([len(frames) for frames in sets])
        self.numbers = np.arange(self.ends[-1] if len(sets) else 0) if numbers is None else np.asarray(numbers, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        number = int(self.numbers[index])
        which = int(np.searchsorted(self.ends, number, side="right"))
        frame = self.sets[which][number - (int(self.ends[which - 1]) if which else 0)]
        return replace(frame, info={**frame.info, **self.infos[which]}) if self.infos[which] else frame

    def take(self, places: Any) -> Selection:
        """Those at these places, in this order."""
        return Selection(self.sets, self.numbers[np.asarray(places, dtype=np.int64)], self.infos)

    def labelled(self, **info: Any) -> Selection:
        """The same frames with more info."""
        return Selection(self.sets, self.numbers, [{**known, **info} for known in self.infos])

    @property
    def atoms(self) -> np.ndarray:
        """How many atoms each frame has."""
        return np.concatenate([_atoms(frames) for frames in self.sets])[self.numbers] if self.sets else np.zeros(0, dtype=np.int64)


class GraphsOf(Sequence):
    """The graphs of frames, each built when it is asked for."""

    def __init__(self, frames: Sequence[Frame], cutoff: float | int) -> None:
        self.frames, self.cutoff = frames, cutoff

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index) -> GraphsOf | AtomicGraph:
        if isinstance(index, slice):
            return GraphsOf(self.frames[index], self.cutoff)
        return self.frames[index].graph(self.cutoff)

    @property
    def edges(self) -> np.ndarray:
        """How many edges each graph has, from neighbour lists of this very cutoff in packed files; DataError where there are none."""
        frames = self.frames
        sets = frames.sets if isinstance(frames, Selection) else [frames]
        for one in sets:
            if not isinstance(one, PackedSet) or one.metadata["cutoff"] != self.cutoff:
                name = one.name if isinstance(one, PackedSet) else "a set"
                raise DataError(
                    f"{name}: has no neighbour lists within {self.cutoff:g} Å whose edges could be counted; "
                    f"pack it with --cutoff {self.cutoff:g}, or count atoms: batch={{atoms: 500}}"
                )
        edges = np.concatenate([one.edges for one in sets if isinstance(one, PackedSet)])
        return edges[frames.numbers] if isinstance(frames, Selection) else edges


def atoms_of(frames: Any) -> np.ndarray:
    """How many atoms each frame has, without reading those of a selection."""
    return frames.atoms if isinstance(frames, Selection) else _atoms(frames)


def joined(parts: Sequence[Sequence[Frame]]) -> Sequence[Frame]:
    """One after the other: a list of lists of frames, else a selection."""
    if not any(isinstance(part, Selection) for part in parts):
        return [frame for part in parts for frame in part]
    wholes = [part if isinstance(part, Selection) else Selection([part]) for part in parts]
    starts = np.cumsum([0, *(whole.ends[-1] if len(whole.ends) else 0 for whole in wholes)])
    numbers = np.concatenate([whole.numbers + start for whole, start in zip(wholes, starts, strict=False)])
    return Selection([one for whole in wholes for one in whole.sets], numbers, [info for whole in wholes for info in whole.infos])


def chosen(frames: Sequence[Frame], places: Any) -> Sequence[Frame]:
    """The frames at these places: a list of a list, a selection of a selection."""
    return frames.take(places) if isinstance(frames, Selection) else [frames[int(n)] for n in places]


def sample(frames: Sequence[Frame], count: int, seed: int = 0) -> Sequence[Frame]:
    """That many frames of a selection, drawn with the seed and in their order; of a list, which is in memory, all."""
    if not isinstance(frames, Selection) or len(frames) <= count:
        return frames
    return frames.take(np.sort(np.random.default_rng(seed).choice(len(frames), count, replace=False)))


def _atoms(frames: Any) -> np.ndarray:
    if isinstance(frames, PackedSet):
        return frames.atoms.astype(np.int64)
    return np.fromiter((len(frame.numbers) for frame in frames), dtype=np.int64, count=len(frames))
