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

SECONDS_BETWEEN = 60.0


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
    The first SIGINT or SIGTERM saves after the step in progress and raises TrainingInterrupted; a second one acts as usual.
    """

    def __init__(self, path: str | Path, every: int) -> None:
        self.path, self.every = Path(path), every
        self.saved_at_step = -1
        self.saved_at_time = 0.0
        self.received: int | None = None
        self.previous: dict[int, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.saved_at_step, self.saved_at_time = trainer.global_step, time.monotonic()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.previous[number] = signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self._restore_signals()

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        new = step > self.saved_at_step
        if new and (step % self.every == 0 or self.received or time.monotonic() - self.saved_at_time > SECONDS_BETWEEN):
            self._save(trainer)
        if self.received:
            name = signal.Signals(self.received).name
            raise TrainingInterrupted(f"stopped by {name} after step {step}; continue with: equimol train --resume {self.path.parent}")

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
