"""Which frames make up which step: a pure function of (seed, step), so that a run continues exactly where it stopped."""

import math
import signal
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Sampler


class StepSampler(Sampler[list[int]]):
    """Batches of frame numbers for the steps start..total of a run.

    Every epoch is a fresh seeded permutation whose last, smaller batch is kept. The length is `total` also where the sampler
    starts in the middle: the trainer counts the steps of the whole run.

    With `parts`, pairs of frame numbers and how often they shall be drawn, an epoch is as many frames, of each part in that
    proportion: every frame of a part comes once before one comes again.
    """

    def __init__(
        self, size: int, batch: int, seed: int, total: int, start: int = 0, parts: Sequence[tuple[Sequence[int], float | int]] = ()
    ):
        if size < 1 or batch < 1:
            raise ValueError(f"a training set and its batches need at least one frame, got {size} frames in batches of {batch}")
        self.size, self.batch, self.seed, self.total, self.start = size, batch, seed, total, start
        whole = sum(share for _, share in parts)
        self.parts = [(np.asarray(frames), max(1, round(size * share / whole))) for frames, share in parts]
        if parts:
            self.size = sum(number for _, number in self.parts)

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.size / self.batch)

    def epoch_order(self, epoch: int) -> np.ndarray:
        """The frames of one epoch in their order, from nothing but the seed and the number of the epoch."""
        order = np.random.default_rng([self.seed, epoch]).permutation(self.size)
        if not self.parts:
            return order
        return np.concatenate([self._drawn(*part, n, epoch) for n, part in enumerate(self.parts)])[order]

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
        order, of_epoch = None, -1
        for step in range(self.start, self.total):
            epoch, place = divmod(step, self.steps_per_epoch)
            if epoch != of_epoch:
                order, of_epoch = self.epoch_order(epoch), epoch
            yield order[place * self.batch : (place + 1) * self.batch].tolist()


def train_loader(graphs: Sequence[Any], sampler: StepSampler, workers: int = 0) -> Any:
    """Batched graphs in the order of the sampler. Workers change who assembles a batch, never which one comes next."""
    import torch
    from torch_geometric.loader import DataLoader

    # without a generator of its own the loader would draw from the global one, and a resumed run would differ
    own = torch.Generator()
    return DataLoader(graphs, batch_sampler=sampler, num_workers=workers, generator=own, worker_init_fn=_leave_signals_to_the_run)


def _leave_signals_to_the_run(worker: int) -> None:
    """Ctrl-C, and the end of a batch job, reach every process; the run saves first, and needs its workers until then.

    They end when the run tells them, or when they find it gone.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def ordered_loader(graphs: Sequence[Any], batch: int) -> Any:
    """Batched graphs, each once and in order: for validation and evaluation."""
    import torch
    from torch_geometric.loader import DataLoader

    return DataLoader(graphs, batch_size=batch, generator=torch.Generator())
