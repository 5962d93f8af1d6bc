"""What a run tells while it trains: rows of log.csv, a line per validation, a progress bar, and the best weights so far."""

import csv
import io
import math
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from tqdm import tqdm

from equimol.data.atomic import write_atomically
from equimol.training.checkpoint import write_checkpoint
from equimol.training.config import TrainConfig
from equimol.training.metrics import shown_errors, weighted_error
from equimol.training.processes import Processes


class RunLog(pl.Callback):
    """One row of log.csv per validation (or per as many steps, without validation set); best.ckpt whenever the error falls.

    Training losses of a row are means over the steps since the row before. `seconds` counts from the start of the
    run, set-up included, but not the time between an interruption and its resumption. A resumed run drops the rows after its
    checkpoint, because it will write them again. `step_seconds` is the mean time of a step without validation, `waiting` the share of
    it in which steps waited for data.
    """

    def __init__(
        self,
        folder: Path,
        config: TrainConfig,
        steps_per_epoch: float,
        validates: bool,
        setup_seconds: float,
        loader: Any,
        group: Processes,
        loggers: Sequence[Any] = (),
    ) -> None:
        self.path, self.best_path = folder / "log.csv", folder / "best.ckpt"
        self.total, self.every, self.accumulate = config.steps or 0, int(config.validate_every), config.accumulate
        self.steps_per_epoch, self.validates, self.loader, self.group = steps_per_epoch, validates, loader, group
        self.loggers = loggers
        self.seconds_before, self.started = setup_seconds, time.monotonic()
        self.best_error, self.best_step = math.inf, 0
        self.first_step = 0  # of this process: a resumed run starts later
        self.sums: dict[str, Tensor] = {}
        self.count = 0
        self.rows: list[dict[str, Any]] = []
        self.row_from, self.steps_until, self.waited, self.batches = 0.0, 0.0, 0.0, 0  # of the row in the making, in this process

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
        self.row_from = self.started
        self.sums = {name: value.to(pl_module.device) for name, value in self.sums.items()}
        self.rows = [row for row in read_rows(self.path) if float(row["step"]) <= trainer.global_step]

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        for name, term in pl_module.terms.items():
            self.sums[name] = self.sums[name] + term if name in self.sums else term
        self.count += 1
        self.batches += 1
        if not self.validates and (batch_idx + 1) % (self.accumulate * self.every) == 0:
            self._write_row(trainer, {})

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.steps_until = time.monotonic()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pl_module.check_finite()
        errors, step = pl_module.valid_errors.result(), trainer.global_step
        error = weighted_error(errors, pl_module.weights_at(step))
        if self.best_step < pl_module.later_from <= step:
            self.best_error = math.inf  # of other weights
        if error < self.best_error:
            self.best_error, self.best_step = error, step
            if self.group.first:
                write_checkpoint({"step": step, "error": error, "averaged": pl_module.averaged.state_dict()}, self.best_path)
        self._write_row(trainer, {"valid_loss": error, **{f"valid_{key}": value for key, value in errors.items()}})

    def _write_row(self, trainer: pl.Trainer, validation: dict[str, float]) -> None:
        means = self.group.sum(torch.stack(list(self.sums.values()))) / (self.count * self.group.count)
        losses = {name if name == "loss" else f"loss_{name}": float(mean) for name, mean in zip(self.sums, means, strict=True)}
        step, now = trainer.global_step, time.monotonic()
        row = {"step": step, "epoch": round(step / self.steps_per_epoch, 4), "seconds": round(self.seconds, 3)}
        stepping = max(1e-9, (self.steps_until if validation else now) - self.row_from)
        row |= {
            "step_seconds": round(stepping * self.accumulate / max(1, self.batches), 6),
            "waiting": round((self.loader.waited - self.waited) / stepping, 4),
        }
        row |= {"lr": trainer.optimizers[0].param_groups[0]["lr"], **losses, **validation}
        self.rows.append(row)
        self.sums, self.count, self.batches, self.waited = {}, 0, 0, self.loader.waited
        if self.group.first:
            write_rows(self.path, self.rows)
            for logger in self.loggers:
                logger.log_metrics({key: value for key, value in row.items() if key != "step"}, step)
            pace = (now - self.started) / max(1, step - self.first_step)
            tqdm.write(_line(row, self.total, pace * (self.total - step)))
        self.row_from = time.monotonic()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for logger in self.loggers:
            logger.finalize("success")


def make_loggers(wanted: Sequence[str] | str, folder: Path, run_id: str) -> list[Any]:
    """Where rows go besides log.csv: files of TensorBoard, where it is installed or asked for, and Weights & Biases on request."""
    if wanted == "auto":
        wanted = [name for name in ("tensorboard",) if find_spec(name)]
    for name in wanted:
        if not find_spec(name):
            raise ValueError(f"log_to={name} needs the package {name}: pip install {name}")
    made: list[Any] = []
    if "tensorboard" in wanted:
        from lightning.pytorch.loggers import TensorBoardLogger

        made.append(TensorBoardLogger(folder, name="", version="tensorboard"))
    if "wandb" in wanted:
        from lightning.pytorch.loggers import WandbLogger

        made.append(WandbLogger(name=folder.name, save_dir=folder, project="equimol", id=run_id, resume="allow"))
    return made


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
