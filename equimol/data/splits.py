"""Which frames train, validate and test a model."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np

from equimol.data.errors import DataError
from equimol.data.frame import Frame

SPLITS = ("train", "valid", "test")
SEVERAL = 10_000  # pairs of neighbours in the file that are compared
TRAJECTORY = 0.5  # share of neighbours in the file with the same atoms, from which on the frames count as trajectories


def split(
    frames: Sequence[Frame], how: str = "auto", fractions: tuple[float, float, float] = (0.8, 0.1, 0.1), seed: int = 0
) -> dict[str, list[int]]:
    """Indices of the train, valid and test frames, ascending; together they are all frames, none is left out.

    "blocks" cuts every run of frames with the same atoms into three contiguous pieces, in that order, because a random split would
    test on frames a time step away from training frames; the frames at the two cuts still are neighbours. "random" shuffles with
    the seed. "group:KEY" keeps frames with the same `info[KEY]` together. "auto" is blocks for trajectories, else random.
    """
    fractions = tuple(float(fraction) for fraction in fractions)
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ValueError(f"fractions must be three shares (train, valid, test) that sum to 1, got {fractions}; for example (0.8, 0.1, 0.1)")
    return {name: numbers.tolist() for name, numbers in split_numbers(frames, how, fractions, seed).items()}


def split_numbers(frames: Sequence[Frame], how: str, fractions: tuple[float, float, float], seed: int) -> dict[str, np.ndarray]:
    """As `split`, in arrays. Frames are read one at a time, and none for a random split."""
    if how == "auto":
        how, _ = choose_split(frames)
    if how == "blocks":
        place = _blocks(frames, fractions)
    elif how == "random":
        place = np.empty(len(frames), dtype=int)
        place[np.random.default_rng(seed).permutation(len(frames))] = _cut(len(frames), fractions)
    elif how.startswith("group:"):
        place = _groups(frames, how.removeprefix("group:"), fractions, seed)
    else:
        raise ValueError(f"split must be auto, blocks, random or group:KEY, got {how!r}; group:config_type keeps its types together")
    parts = {name: np.flatnonzero(place == index) for index, name in enumerate(SPLITS)}
    if fractions[0] > 0 and not len(parts["train"]):
        raise DataError(f"the split {how} of {len(frames)} frames leaves none to train on; give more frames, or another split")
    return parts


def choose_split(frames: Sequence[Frame]) -> tuple[str, str]:
    """What "auto" stands for with these frames, and why."""
    if is_trajectory(frames):
        return "blocks", "most frames hold the same atoms as the frame before, as in a trajectory"
    return "random", "the atoms change from frame to frame"


def is_trajectory(frames: Sequence[Frame]) -> bool:
    """Whether most frames hold the same atoms in the same order as the frame before; of many frames, some drawn at random are asked."""
    later = np.arange(1, len(frames))
    if len(later) > SEVERAL:
        later = np.random.default_rng(0).choice(later, SEVERAL, replace=False)
    same = [np.array_equal(frames[int(n) - 1].numbers, frames[int(n)].numbers) for n in later]
    return bool(same) and float(np.mean(same)) >= TRAJECTORY


def _cut(count: int, fractions: Sequence[float]) -> np.ndarray:
    """0, 1 or 2, the piece of each frame. The first piece gets a frame, and with three frames every piece that has a share does."""
    borders = np.rint(np.cumsum(fractions) * count).astype(int)
    borders[0] = max(borders[0], int(fractions[0] > 0))
    borders[1] = max(borders[1], borders[0])
    if count >= 3:
        borders[1] = max(borders[1], borders[0] + int(fractions[1] > 0))
        borders[1] = min(borders[1], count - int(fractions[2] > 0))
        borders[0] = min(borders[0], borders[1] - int(fractions[1] > 0))
    return np.searchsorted(borders[:2], np.arange(count), side="right")


def _blocks(frames: Sequence[Frame], fractions: Sequence[float]) -> np.ndarray:
    """Every run cut by itself; what rounding takes from one run is given back in the next, so that runs of a few frames count too."""
    runs = [sum(1 for _ in run) for _, run in groupby(frames, key=lambda frame: frame.numbers.tobytes())]
    if len(runs) == 1:
        return _cut(runs[0], fractions)
    place, owed = [], np.zeros(2)  # frames still due to train, and to train and valid together
    for count in runs:
        owed += np.cumsum(fractions)[:2] * count
        train = int(np.clip(np.rint(owed[0]), 0, count))
        both = int(np.clip(np.rint(owed[1]), train, count))
        owed -= [train, both]
        place += [0] * train + [1] * (both - train) + [2] * (count - both)
    return np.asarray(place, dtype=int)


def _groups(frames: Sequence[Frame], key: str, fractions: Sequence[float], seed: int) -> np.ndarray:
    """Groups in random order, each to the piece that lacks most of its share."""
    numbers: dict[Any, int] = {}  # of the groups, in the order in which they come
    group_of = np.zeros(len(frames), dtype=np.int64)
    for n, frame in enumerate(frames):
        if key not in frame.info:
            known = sorted({name for one in frames[:SEVERAL] for name in one.info})
            raise DataError(f"{frame.source}: has no {key!r} to group by; the frames have: {', '.join(known) or 'nothing'}")
        group_of[n] = numbers.setdefault(frame.info[key], len(numbers))
    sizes = np.bincount(group_of, minlength=len(numbers))
    missing, home = np.asarray(fractions) * len(frames), np.zeros(len(numbers), dtype=int)
    for group in np.random.default_rng(seed).permutation(len(numbers)):
        home[group] = piece = int(np.argmax(missing))
        missing[piece] -= sizes[group]
    return home[group_of] if len(frames) else np.zeros(0, dtype=int)
