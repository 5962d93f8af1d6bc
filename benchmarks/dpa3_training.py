"""How accurate is DPA3 after so many minutes, trained by EquiMol and by deepmd-kit? The same liquid water, size, batch and core.

    python benchmarks/dpa3_training.py prepare DATA_FOLDER WORK         # DATA_FOLDER has deepmd_water
    python benchmarks/dpa3_training.py train WORK --peer-python PEER/bin/python --minutes 30
    python benchmarks/dpa3_training.py table

Both read the same systems of 192 atoms: the 320 training frames, a tenth of them to validate, and as a test the 80 frames of data_3, which
nobody trains on. There are energies and forces, no virials. They train side by side, a core each, one frame a step: EquiMol through its
command line with its defaults, deepmd-kit by `dp --pt train` with the settings of its example for water with dynamic selection; how many
steps, over which its learning rate falls, is found from timed steps. Size: our `nano`, in both. deepmd-kit keeps its last weights and
needs no validation frames, which it is not given. Both are judged by the same lines.
The peer's environment is that of benchmarks/dpa3.py.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from dpa3 import one_thread, peer_sizes, read_water, write_system

RESULTS = Path(__file__).parent / "results" / "dpa3_training.csv"
PRESET = "nano"
VALID = 32  # frames


def prepare(data: Path, work: Path) -> None:
    """train, valid and test as systems."""
    frames = read_water(data, "train_data_0-2")
    order = np.random.default_rng(0).permutation(len(frames))
    parts = {"valid": [frames[i] for i in order[:VALID]], "train": [frames[i] for i in order[VALID:]]}
    parts["test"] = read_water(data, "valid_data_3")
    for name, part in parts.items():
        shutil.rmtree(work / name, ignore_errors=True)
        write_system(work / name, part)
        print(name, len(part), "frames")


def train(work: Path, peer: Path | None, minutes: float, settings: list[str]) -> None:
    """Both codes at once, each on a core of its own; then their errors on the test set."""
    from equimol.bench import append_rows, describe_surroundings
    from equimol.data import read as read_frames
    from equimol.models import load
    from equimol.training.config import load_config
    from equimol.training.evaluate import evaluate

    run = work / f"equimol_{time.strftime('%H%M%S')}"
    command = [sys.executable, "-m", "equimol", "train", str(work / "train"), "--time", f"{minutes * 60:.0f}s", "model=dpa3"]
    command += [f"preset={PRESET}", f"valid={work / 'valid'}", "test=0", f"out={run}", *settings]
    script = str(Path(__file__).parent / "peers" / "deepmd_dpa3_train.py")
    theirs = [str(peer), "-W", "ignore", script]
    cores, environment = sorted(os.sched_getaffinity(0)), one_thread()
    processes = {"equimol": subprocess.Popen(["taskset", "-c", str(cores[0]), *command], env=environment)}
    if peer:
        pinned = ["taskset", "-c", str(cores[-1]), *theirs, "train", str(work), str(minutes), peer_sizes(PRESET)]
        processes["deepmd-kit"] = subprocess.Popen(pinned, env=environment)
    taken = {}
    while len(taken) < len(processes):
        time.sleep(1)
        for code, process in processes.items():
            if code in taken:
                continue
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                taken[code] = (usage.ru_utime + usage.ru_stime) / 60
                if status:
                    for other in processes.values():
                        other.kill()
                    raise SystemExit(f"{code} failed with exit code {os.waitstatus_to_exitcode(status)}")
    model = load(run / "model.equimol")
    frames = read_frames(work / "test").frames
    predictions = evaluate(model, frames).predictions
    steps = load_config(run / "config.yaml").steps
    found = {"equimol": {"steps": steps, "parameters": sum(p.numel() for p in model.parameters())}}
    found["equimol"] |= errors(predictions["energy_pred"], predictions["forces_pred"], work)
    if peer:
        subprocess.run([*theirs, "predict", str(work)], env=environment, check=True)
        with np.load(work / "deepmd" / "predictions.npz") as arrays:
            found["deepmd-kit"] = json.loads((work / "deepmd" / "found.json").read_text())
            found["deepmd-kit"] |= errors(arrays["energy"], arrays["forces"], work)
    described = describe_surroundings(torch.float32) | {"threads": 1}
    rows = [{"code": code, "minutes": minutes, "cpu_minutes": round(taken[code], 1)} | row | described for code, row in found.items()]
    print(*rows, sep="\n")
    append_rows(RESULTS, rows)


def errors(energies: np.ndarray, forces: np.ndarray, work: Path) -> dict[str, float]:
    """Of predictions for the test system, in its order."""
    labels = work / "test" / "set.000"
    of_energy, of_forces = energies.ravel() - np.load(labels / "energy.npy"), forces.ravel() - np.load(labels / "force.npy").ravel()
    atoms = len((work / "test" / "type.raw").read_text().split())
    return {
        "energy_rmse_mev_per_atom": 1e3 * float(np.sqrt(np.mean((of_energy / atoms) ** 2))),
        "forces_rmse_mev_per_angstrom": 1e3 * float(np.sqrt(np.mean(of_forces**2))),
    }


def table() -> None:
    """The last row of each code and length, as Markdown."""
    with open(RESULTS, newline="") as file:
        last = {(row["minutes"], row["code"]): row for row in csv.DictReader(file)}
    print(
        "| minutes | code | CPU minutes | steps | parameters | energy RMSE, meV/atom | force RMSE, meV/Å |\n|---|---|---|---|---|---|---|"
    )
    for (minutes, code), row in last.items():
        figures = [f"{float(row[k]):.2f}" for k in row if "_rmse_" in k]
        print(f"| {minutes} | {code} | {row['cpu_minutes']} | {row['steps']} | {row['parameters']} | {' | '.join(figures)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("prepare")
    command.add_argument("data", type=Path)
    command.add_argument("work", type=Path)
    command = commands.add_parser("train")
    command.add_argument("work", type=Path)
    command.add_argument("--peer-python", type=Path, help="of an environment with deepmd-kit==3.2.0")
    command.add_argument("--minutes", type=float, default=30)
    command.add_argument("--settings", nargs="*", default=[], metavar="KEY=VALUE", help="of ours, over its defaults")
    commands.add_parser("table")
    args = parser.parse_args()
    match args.command:
        case "prepare":
            prepare(args.data, args.work)
        case "train":
            train(args.work, args.peer_python, args.minutes, args.settings)
        case "table":
            table()


if __name__ == "__main__":
    main()
