"""Which frames make up which step: a pure function of (seed, step), so that a run continues exactly where it stopped."""

import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import count, islice
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from equimol.data.selection import GraphsOf, atoms_of

Batch = int | Mapping[str, int]  # frames, or {"atoms": most of them in a batch}, or {"edges": ...}


class StepSampler(Sampler[list[int]]):
    """Batches of frame numbers for the steps start..total of a run.

    Every epoch is a fresh seeded permutation, cut into batches from its beginning; its last, smaller batch is kept. The length is
    `total` also where the sampler starts in the middle: the trainer counts the steps of the whole run.

    `batch` is a number of frames or, with the size of each frame (its atoms or edges), the largest sum of sizes; a frame that is larger
    by itself makes a batch of its own.

    With `parts`, pairs of frame numbers and how often they shall be drawn, an epoch is as many frames, of each part in that
    proportion: every frame of a part comes once before one comes again.

    Each of several processes takes one of as many consecutive batches. Where an epoch ends before each has one, it gives ~n for a
    frame n whose labels shall not count (`graphs_of_run` knows it).
    """

    def __init__(
        self,
        size: int,
        batch: int,
        seed: int,
        total: int,
        start: int = 0,
        parts: Sequence[tuple[Sequence[int], float | int]] = (),
        sizes: np.ndarray | None = None,
        rank: int = 0,
        processes: int = 1,
    ):
        if size < 1 or batch < 1:
            raise ValueError(f"a training set and its batches need at least one frame, got {size} frames in batches of {batch}")
        self.size, self.batch, self.seed, self.total, self.start = size, batch, seed, total, start
        self.sizes, self.rank, self.processes = sizes, rank, processes
        whole = sum(share for _, share in parts)
        self.parts = [(np.asarray(frames), max(1, round(size * share / whole))) for frames, share in parts]
        if parts:
            self.size = sum(number for _, number in self.parts)

    @property
    def steps_per_epoch(self) -> int:
        """Of the first epoch; where sizes vary, others may have some more or fewer."""
        return self._steps(-(-self.size // self.batch) if self.sizes is None else len(self._ends(self.epoch_order(0))))

    def steps_of(self, epochs: int) -> int:
        """Steps of that many epochs."""
        if self.sizes is None:
            return epochs * self.steps_per_epoch
        return sum(self._steps(len(self._ends(self.epoch_order(epoch)))) for epoch in range(epochs))

    def epoch_order(self, epoch: int) -> np.ndarray:
        """The frames of one epoch in their order, from nothing but the seed and the number of the epoch."""
        order = np.random.default_rng([self.seed, epoch]).permutation(self.size)
        if not self.parts:
            return order
        return np.concatenate([self._drawn(*part, n, epoch) for n, part in enumerate(self.parts)])[order]

    def _ends(self, order: np.ndarray) -> np.ndarray:
        """Where each batch of an epoch ends."""
        if self.sizes is None:
            return np.minimum(np.arange(self.batch, len(order) + self.batch, self.batch), len(order))
        return _ends(self.sizes[order], self.batch)

    def _steps(self, batches: int) -> int:
        return -(-batches // self.processes)

    def _drawn(self, frames: np.ndarray, number: int, part: int, epoch: int) -> np.ndarray:
        """The next `number` of permutation after permutation of the frames of a part."""
        places = np.arange(epoch * number, (epoch + 1) * number)
        rounds, places = np.divmod(places, len(frames))
        drawn = [
            np.random.default_rng([self.seed, n, part]).permutation(frames)[places[rounds == n]] for n in range(rounds[0], rounds[-1] + 1)
        ]
        return np.concatenate(drawn)

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[list[int]]:
        return islice(self._from(self.start), self.total - self.start)

    def _from(self, step: int) -> Iterator[list[int]]:
        """This process's batches from a step on, without end."""
        first = 0
        if self.sizes is None:  # all epochs are as long; else they are counted from the beginning, which takes milliseconds each
            first, step = divmod(step, self.steps_per_epoch)
        for epoch in count(first):
            order = self.epoch_order(epoch)
            ends = self._ends(order)
            steps = self._steps(len(ends))
            if step >= steps:
                step -= steps
                continue
            batches = np.split(order, ends[:-1])
            for place in range(step, steps):
                mine = place * self.processes + self.rank
                yield batches[mine].tolist() if mine < len(batches) else [~int(batches[0][0])]
            step = 0


def _ends(sizes: np.ndarray, budget: int) -> np.ndarray:
    """Where batches end that are filled one after the other, each until the next frame would exceed the budget."""
    sums = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    ends, place = [], 0
    while place < len(sizes):
        place = max(place + 1, int(np.searchsorted(sums, sums[place] + budget, side="right")) - 1)
        ends.append(place)
    return np.asarray(ends, dtype=np.int64)


def cut(batch: Batch, graphs: Sequence[Any]) -> tuple[int, np.ndarray | None]:
    """Frames per batch and nothing, or the budget and what each graph takes of it: the arguments of a StepSampler."""
    if isinstance(batch, int):
        return batch, None
    kind, budget = next(iter(batch.items()))
    return budget, _sizes(kind, graphs)


def typical_frames(batch: Batch, graphs: Sequence[Any]) -> int:
    """How many frames a batch holds, on average where it has a budget."""
    size, sizes = cut(batch, graphs)
    return size if sizes is None else max(1, round(size / float(sizes.mean())))


def told(batch: Batch, graphs: Sequence[Any]) -> str:
    """A batch in words, with the frames that are larger than its budget."""
    size, sizes = cut(batch, graphs)
    if sizes is None:
        return f"{size} frames"
    kind, larger = next(iter(batch)), sizes > size
    text = f"at most {size} {kind} (about {typical_frames(batch, graphs)} frames)"
    if larger.any():
        text += f"; {larger.sum()} of {len(sizes)} frames are larger, up to {sizes.max()} {kind}: each makes a batch of its own"
    return text


def _sizes(kind: str, graphs: Sequence[Any]) -> np.ndarray:
    if isinstance(graphs, GraphsOf):
        return atoms_of(graphs.frames) if kind == "atoms" else graphs.edges
    return np.asarray([graph.num_nodes if kind == "atoms" else len(graph.senders) for graph in graphs], dtype=np.int64)


class GraphsOfRun(Sequence):
    """Graphs by number; ~n gives graph n without labels, for a process that has nothing else to do in a step."""

    def __init__(self, graphs: Sequence[Any]) -> None:
        self.graphs = graphs

    def __len__(self) -> int:
        return len(self.graphs)

    def __getitem__(self, number: int) -> Any:
        return self.graphs[number] if number >= 0 else self.graphs[~number].without_labels()


def train_loader(graphs: Sequence[Any], sampler: StepSampler, workers: int = 0) -> Any:
    """Batched graphs in the order of the sampler; `waited` says how long they were waited for, s.

    Workers change who assembles a batch, never which one comes next.
    """
    return _loader(graphs, sampler, workers)


def _leave_signals_to_the_run(worker: int) -> None:
    """Ctrl-C, and the end of a batch job, reach every process; the run saves first, and needs its workers until then.

    They end when the run tells them, or when they find it gone.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def ordered_loader(graphs: Sequence[Any], batch: Batch, workers: int = 0, rank: int = 0, processes: int = 1) -> Any:
    """Batched graphs, each once and in order: for validation and evaluation. Of several processes each takes every n-th batch.

    A process without any takes one whose labels do not count, so that none waits for it in vain.
    """
    size, sizes = cut(batch, graphs)
    ends = np.arange(size, len(graphs), size) if sizes is None else _ends(sizes, size)[:-1]
    batches = [part.tolist() for part in np.split(np.arange(len(graphs)), ends)][rank::processes] or [[~0]]
    return _loader(graphs, batches, workers)


def _loader(graphs: Sequence[Any], batches: Any, workers: int) -> Any:
    import torch
    from torch_geometric.loader import DataLoader

    class Loader(DataLoader):
        waited = 0.0

        def __iter__(self) -> Iterator[Any]:
            batches = super().__iter__()
            while True:
                begin = time.perf_counter()
                batch = next(batches, None)
                self.waited += time.perf_counter() - begin
                if batch is None:
                    return
                yield batch

    # without a generator of its own the loader would draw from the global one, and a resumed run would differ
    own = torch.Generator()
    return Loader(GraphsOfRun(graphs), batch_sampler=batches, num_workers=workers, generator=own, worker_init_fn=_leave_signals_to_the_run)


def spare_workers(graphs: Sequence[Any], processes: int = 1) -> int:
    """As many processes as assemble batches quickly enough: none where the graphs are in memory, else one or two if there are cores."""
    cores = (os.cpu_count() or 1) // processes
    return min(2, max(1, cores - 1)) if isinstance(graphs, GraphsOf) else 0
