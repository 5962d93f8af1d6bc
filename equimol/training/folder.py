"""The folder of a run: one run at a time writes it, and another run's is not written over."""

import contextlib
import dataclasses
import fcntl
from collections.abc import Iterator
from pathlib import Path

from equimol.training.config import TrainConfig, config_from, load_config

LOCK = ".lock"


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Nobody else trains into the folder as long as the block lasts; ValueError where somebody does.

    The system lets go of the lock when the process ends, however it ends; the file that stays behind means nothing. Processes that
    assemble batches do not hold it, as they would a lock by `flock`: they may outlive a killed run by some seconds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOCK, "a") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(
                f"{folder} is being written by another run ({error.strerror}); wait until it ends, or choose another folder with out=..."
            ) from None
        yield


def stored_run(folder: Path, config: TrainConfig) -> TrainConfig | None:
    """The settings of the run that is to be continued; None where a new one begins. Another run in the folder is an error."""
    exists = (folder / "config.yaml").exists()
    if not config.resume:
        if exists:
            if (folder / "report.html").exists():
                raise ValueError(f"{folder} holds another run, which is finished; choose another folder with out=...")
            raise ValueError(
                f"{folder} holds another run; continue it with: equimol train --resume {folder}, or choose another folder with out=..."
            )
        return None
    if not exists:
        if config.resume == "auto":
            return None
        raise ValueError(f"there is no run to resume in {folder} (no config.yaml); start it without resume, or check out=...")
    stored = load_config(folder / "config.yaml")
    for name in _changed(config, stored):
        raise ValueError(
            f"a run is resumed with its own settings: {name} was {getattr(stored, name)!r} and is now {getattr(config, name)!r};"
            " leave it out, or start another run with out=..."
        )
    here = {"out": config.out, "workers": config.workers, "device": config.device, "checkpoint_every": config.checkpoint_every}
    moved = {name: given for name in ("data", "valid", "test") if isinstance(given := getattr(config, name), (str, list))}
    return dataclasses.replace(stored, **here, **moved)


def _changed(given: TrainConfig, stored: TrainConfig) -> Iterator[str]:
    """Names of the settings that were stated, differ from those of the run, and matter."""
    default = dataclasses.replace(config_from({"model": given.model}), model=TrainConfig.model)
    free = {"resume", "out", "workers", "device", "checkpoint_every"} | {"data", "valid", "test", "references"}  # files: by checksum
    for field in dataclasses.fields(TrainConfig):
        stated, before = getattr(given, field.name), getattr(stored, field.name)
        if field.name in free or stated == getattr(default, field.name):
            continue
        if isinstance(stated, dict):
            same = all(before.get(key) == value for key, value in stated.items() if value != "auto")
        else:
            same = stated in ("auto", before)
        if not same:
            yield field.name
