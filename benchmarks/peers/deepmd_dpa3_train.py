"""Trains deepmd-kit's DPA3 by its own command for some minutes of processor time, for benchmarks/dpa3_training.py.

Runs in an environment of its own.

    PEER/bin/python deepmd_dpa3_train.py train FOLDER MINUTES SIZES     # FOLDER has the system train; SIZES: widths as JSON
    PEER/bin/python deepmd_dpa3_train.py predict FOLDER                 # the system test, by the trained model

Short trainings tell what a start and a step cost; they are within the minutes, like everything but predictions.
"""

import contextlib
import json
import sys
import time
from pathlib import Path

import numpy as np
from deepmd.infer import DeepPot
from deepmd.main import main as dp
from deepmd.pt.model.model import get_model
from deepmd_dpa3_calls import model_settings, training_settings

TIMED = 10  # steps
RESERVE = 0.02  # of the time


def train(folder: Path, minutes: float, sizes: dict) -> None:
    out = folder / "deepmd"
    out.mkdir(exist_ok=True)
    model = model_settings(sizes)

    def seconds(steps: int) -> float:
        """Of processor time, of a training of so many steps."""
        begin = time.process_time()
        (out / "input.json").write_text(json.dumps(training_settings(model, str(folder / "train"), steps)))
        dp(["--pt", "train", "input.json", "--skip-neighbor-stat"])  # statistics of neighbours, which a dynamic selection does not use
        return time.process_time() - begin

    with contextlib.chdir(out):
        seconds(1)  # the first in a process is slower
        short, long = seconds(1), seconds(1 + TIMED)
        step = (long - short) / TIMED
        start = max(0.0, short - step)
        left = minutes * 60 * (1 - RESERVE) - time.process_time() - start  # of all that the process has taken, imports too
        steps = max(1, int(left / step))
        print(f"deepmd-kit: {steps} steps of {step:.3f} s after {start:.1f} s", flush=True)
        seconds(steps)
    found = {"steps": steps, "parameters": sum(p.numel() for p in get_model(model).parameters())}
    (out / "found.json").write_text(json.dumps(found))


def predict(folder: Path) -> None:
    """Energies [frames] and forces [frames, atoms, 3] of the system test."""
    types = np.loadtxt(folder / "test" / "type.raw", dtype=int)
    coord, box = (np.load(folder / "test" / "set.000" / f"{name}.npy") for name in ("coord", "box"))
    energies, forces, _ = DeepPot(str(folder / "deepmd" / "model.ckpt.pt")).eval(coord, box, types)
    np.savez(folder / "deepmd" / "predictions.npz", energy=energies.ravel(), forces=forces)


if __name__ == "__main__":
    if sys.argv[1] == "train":
        train(Path(sys.argv[2]).resolve(), float(sys.argv[3]), json.loads(sys.argv[4]))
    else:
        predict(Path(sys.argv[2]).resolve())
