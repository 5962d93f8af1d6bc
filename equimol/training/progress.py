"""What a run tells while it trains: rows of log.csv, a line per validation, a progress bar, and the best weights so far."""

import csv
import io
import math
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from torch import Tensor
from tqdm import tqdm

from equimol.data.atomic import write_atomically
from equimol.training.checkpoint import write_checkpoint
from equimol.training.metrics import shown_errors, weighted_error


class RunLog(pl.Callback):
    """One row of log.csv per validation (or per as many steps, without validation set); best.ckpt whenever the error falls.

    Training losses of a row are means over the steps since the row before. `seconds` counts from the start of the
    run, set-up included, but not the time between an interruption and its resumption. A resumed run drops the rows after its
    checkpoint, because it will write them again.
    """

    def __init__(self, folder: Path, total: int, every: int, steps_per_epoch: int, validates: bool, setup_seconds: float) -> None:
        self.path, self.best_path = folder / "log.csv", folder / "best.ckpt"
        self.total, self.every, self.steps_per_epoch, self.validates = total, every, steps_per_epoch, validates
        self.seconds_before, self.started = setup_seconds, time.monotonic()
        self.best_error, self.best_step = math.inf, 0
        self.first_step = 0  # of this process: a resumed run starts later
        self.sums: dict[str, Tensor] = {}
        self.count = 0
        self.rows: list[dict[str, Any]] = []

    @property
    def seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.started

    def state_dict(self) -> dict[str, Any]:
        return {
            "seconds": self.seconds,
            "best_error": self.best_error,
            "best_step": self.best_step,
            "sums": dict(self.sums),
            "count": self.count,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seconds_before, self.count = state["seconds"], state["count"]
        self.best_error, self.best_step = state["best_error"], state["best_step"]
        self.sums = dict(state["sums"])

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.started, self.first_step = time.monotonic(), trainer.global_step
        self.sums = {name: value.to(pl_module.device) for name, value in self.sums.items()}
        self.rows = [row for row in read_rows(self.path) if float(row["step"]) <= trainer.global_step]

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        for name, term in pl_module.terms.items():
            self.sums[name] = self.sums[name] + term if name in self.sums else term
        self.count += 1
        if not self.validates and trainer.global_step % self.every == 0:
            self._write_row(trainer, {})

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pl_module.check_finite()
        errors = pl_module.valid_errors.result()
        error = weighted_error(errors, pl_module.weights)
        if error < self.best_error:
            self.best_error, self.best_step = error, trainer.global_step
            write_checkpoint({"step": self.best_step, "error": error, "averaged": pl_module.averaged.state_dict()}, self.best_path)
        self._write_row(trainer, {"valid_loss": error, **{f"valid_{key}": value for key, value in errors.items()}})

    def _write_row(self, trainer: pl.Trainer, validation: dict[str, float]) -> None:
        losses = {name if name == "loss" else f"loss_{name}": float(total) / self.count for name, total in self.sums.items()}
        step = trainer.global_step
        row = {"step": step, "epoch": round(step / self.steps_per_epoch, 4), "seconds": round(self.seconds, 3)}
        row |= {"lr": trainer.optimizers[0].param_groups[0]["lr"], **losses, **validation}
        self.rows.append(row)
        self.sums, self.count = {}, 0
        write_rows(self.path, self.rows)
        pace = (time.monotonic() - self.started) / max(1, step - self.first_step)
        tqdm.write(_line(row, self.total, pace * (self.total - step)))


def _line(row: dict[str, Any], total: int, left: float) -> str:
    """One row for the eye: minutes, minutes left, mean loss, and the root mean squares of validation."""
    minutes = f"{row['seconds'] / 60:.1f} min" + (f", {math.ceil(left / 60)} min left" if left > 0 else "")
    parts = [f"step {row['step']}/{total}", f"epoch {row['epoch']:.1f}", minutes, f"loss {row['loss']:.4g}"]
    figures = {key.removeprefix("valid_"): value for key, value in row.items() if key.startswith("valid_")}
    parts += [f"{title} {value:.1f} {unit}" for title, unit, value in shown_errors(figures)]
    return "   ".join(parts)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The complete rows of a CSV file, none where there is no file."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return [row for row in csv.DictReader(file) if None not in row.values()]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """All rows, in one replacement of the file: a reader never meets half a line. They are few (one per validation)."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue())


class ProgressBar(pl.Callback):
    """Steps done, steps per second, time left and the current loss, on a terminal; elsewhere the lines of RunLog suffice."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.bar: Any = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        start = trainer.global_step
        self.bar = tqdm(total=self.total, initial=start, unit="step", desc="training", disable=None, mininterval=0.5, leave=False)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.bar.update(1):  # true when it is time to draw
            self.bar.set_postfix_str(f"loss {float(pl_module.terms['loss']):.3g}", refresh=False)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.bar.close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if self.bar is not None:
            self.bar.close()
