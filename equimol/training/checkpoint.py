"""Checkpoints: written whole or not at all, loaded without pickle, after every so many steps, every minute and at Ctrl-C."""

import io
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from equimol.data.atomic import write_atomically
from equimol.training.errors import TrainingInterrupted
from equimol.training.processes import ALONE, Processes

SECONDS_BETWEEN = 60.0
STEPS_BETWEEN = 20  # of several processes, after which they ask each other whether to save or to stop
STOPPING = (signal.SIGINT, signal.SIGTERM)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's way to the disk, through a temporary name; reading accepts tensors and plain values only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        write_checkpoint(checkpoint, path)

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        return read_checkpoint(path)


def write_checkpoint(content: dict[str, Any], path: str | Path) -> None:
    """Serialised in memory first: torch's own writer reports a full disk without saying so."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomically(path, buffer.getvalue())


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Tensors on the CPU and plain values. A file that holds anything else, or is damaged, raises."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # torch has no one class for what can be wrong with a file
        reason = next(iter(str(error).splitlines()), "it is empty")
        raise ValueError(f"{path} is not a complete checkpoint ({reason}); delete it to start the run from the beginning") from error


class Checkpoints(pl.Callback):
    """Saves the whole state between two steps: never in the middle of one, so that a resumed run repeats none by half.

    Saving happens when the next step begins, because by then a validation that was due has been done and logged.
    The first SIGINT or SIGTERM saves after the step in progress, of several processes after 20 steps at most, and raises
    TrainingInterrupted; a second one acts as usual. A step is `accumulate` batches.
    """

    def __init__(self, path: str | Path, every: int, accumulate: int = 1, group: Processes = ALONE) -> None:
        self.path, self.every, self.accumulate, self.group = Path(path), every, accumulate, group
        self.saved_at_step = -1
        self.saved_at_time = 0.0
        self.received: int | None = None
        self.previous: dict[int, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.saved_at_step, self.saved_at_time = trainer.global_step, time.monotonic()
        if threading.current_thread() is threading.main_thread():
            for number in STOPPING:
                self.previous[number] = signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self._restore_signals()

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx % self.accumulate:
            return  # in the middle of a step
        step = trainer.global_step
        received, late = self._asked(step)
        if step > self.saved_at_step and (step % self.every == 0 or received or late):
            self._save(trainer)
        if received:
            name = signal.Signals(received).name
            raise TrainingInterrupted(f"stopped by {name} after step {step}; continue with: equimol train --resume {self.path.parent}")

    def _asked(self, step: int) -> tuple[int | None, bool]:
        """The signal that came, and whether the last checkpoint is old. Several processes agree on that, now and then."""
        late = time.monotonic() - self.saved_at_time > SECONDS_BETWEEN
        if self.group.count == 1:
            return self.received, late
        if step % STEPS_BETWEEN:
            return None, False
        own = [*(self.received == number for number in STOPPING), late and self.group.first]
        *stopped, late = self.group.sum(torch.tensor(own, dtype=torch.int32)).bool().tolist()
        return next((int(number) for number, came in zip(STOPPING, stopped, strict=True) if came), None), late

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._save(trainer)
        self._restore_signals()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._restore_signals()

    def _save(self, trainer: pl.Trainer) -> None:
        trainer.lightning_module.check_finite()
        trainer.save_checkpoint(self.path)
        self.saved_at_step, self.saved_at_time = trainer.global_step, time.monotonic()

    def _restore_signals(self) -> None:
        while self.previous:
            number, handler = self.previous.popitem()
            signal.signal(number, handler)
