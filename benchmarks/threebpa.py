"""How accurate is a potential after how many minutes? EquiMol and mace-torch on 3BPA, the same two cores, one after the other.

    python benchmarks/threebpa.py prepare DATA_FOLDER WORK          # 450 + 50 frames of a seeded shuffle, three test sets
    python benchmarks/threebpa.py equimol WORK --product clebsch_gordan --minutes 30
    python benchmarks/threebpa.py mace WORK --python PATH_OF_PEER_PYTHON --minutes 30
    python benchmarks/threebpa.py plot                              # benchmarks/results/threebpa.csv -> threebpa.svg
    python benchmarks/threebpa.py table                             # the last row of each code, as Markdown
    python benchmarks/threebpa.py equimol WORK --product complete_grid --rank 2 --minutes 20 --steps 7378 --csv RANKS.csv
    python benchmarks/threebpa.py table --csv RANKS.csv --epochs 20

The data are those of Kovacs et al. 2021 (github davkovacs/BOTNet-datasets, dataset_3BPA): train_300K and iso_atoms, and, cut from
train_mixedT by temperature and without the frames that train_300K also has, derived_test_{300,600,1200}K, each as .xyz.xz. The peer's
environment: python -m venv PEER && PEER/bin/pip install torch==2.13.0 mace-torch==0.3.16.

Each training is a process of its own with two threads, or --threads, or one where --steps fixes its length. Errors are those of
snapshots on the *derived* test sets (136 / 167 / 166 frames at 300 / 600 / 1200 K of the published mixed-temperature set), so they
estimate the published ones and are not them.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
TESTS = ("test_300", "test_600", "test_1200")
MACE_SETTINGS = """--model=MACE --hidden_irreps=64x0e+64x1o --r_max=5.0 --num_interactions=2 --correlation=3 --max_ell=3 --batch_size=5
    --ema --ema_decay=0.99 --amsgrad --lr=0.01 --energy_weight=27 --forces_weight=1000 --default_dtype=float32"""


def prepare(data: Path, work: Path) -> None:
    """Splits and plain extxyz files that every code reads."""
    import lzma
    from io import StringIO

    import ase.io
    import numpy as np

    def read(name: str) -> list:
        return ase.io.read(StringIO(lzma.open(data / name, "rt").read()), ":", format="extxyz")

    def write(name: str, frames: list) -> None:
        out = []
        for atoms in frames:
            copy = atoms.copy()
            copy.info = {"REF_energy": atoms.get_potential_energy()}
            copy.cell, copy.pbc = None, False
            copy.arrays["REF_forces"] = atoms.get_forces() if len(atoms) > 1 else np.zeros((1, 3))
            if len(atoms) == 1:
                copy.info["config_type"] = "IsolatedAtom"
            out.append(copy)
        ase.io.write(work / f"{name}.xyz", out, format="extxyz")

    work.mkdir(parents=True, exist_ok=True)
    frames = read("train_300K.xyz.xz")
    order = np.random.default_rng(0).permutation(len(frames))
    write("train", [frames[i] for i in order[:450]])
    write("valid", [frames[i] for i in order[450:]])
    write("atoms", read("iso_atoms.xyz.xz"))
    for name in TESTS:
        write(name, read(f"derived_{name}K.xyz.xz"))


def run_equimol(args: argparse.Namespace) -> None:
    """Trains through the command line, copying checkpoints while it runs; then measures each copy.

    With ``--steps`` the run ends at that step however long it takes, on one thread: a machine that does other things does not change
    what is learnt. Minutes are then those of the step on the quiet machine where ``--minutes`` alone gave the number of steps.
    """
    from equimol.training.checkpoint import read_checkpoint

    work, product, rank, preset = args.work, args.product, args.rank, args.preset
    label = f"equimol {product}" + ("" if preset == "small" else f" {preset}") + (f" rank {rank}" if rank else "")
    run = work / label.replace(" ", "_")
    extra = [*args.set, f"settings.rank={rank}"] if rank else args.set
    shutil.rmtree(run, ignore_errors=True)
    snapshots = run.with_name(run.name + "_snapshots")
    shutil.rmtree(snapshots, ignore_errors=True)
    snapshots.mkdir(parents=True)
    command = [sys.executable, "-m", "equimol", "train", str(work / "train.xyz")]
    command += [f"steps={args.steps}"] if args.steps else ["--time", f"{args.minutes * 60:.0f}s"]
    command += [f"valid={work / 'valid.xyz'}", "test=0", f"references={work / 'atoms.xyz'}", f"out={run}"]
    command += [f"preset={preset}", f"settings.product={product}", *extra]
    start, due, seen = time.time(), args.every, 0.0
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1" if args.steps else str(args.threads)})
    while process.poll() is None:
        time.sleep(1)
        last = run / "last.ckpt"
        if not last.exists() or last.stat().st_mtime == seen:
            continue
        seen = last.stat().st_mtime
        minutes = read_checkpoint(last)["global_step"] / args.steps * args.minutes if args.steps else (seen - start) / 60
        if minutes > due:
            shutil.copy2(last, snapshots / f"{minutes:.2f}.ckpt")
            due += args.every
    if process.returncode:
        raise SystemExit(f"training failed with exit code {process.returncode}")
    record_equimol(work, run, snapshots, label, args.minutes if args.steps else (time.time() - start) / 60, args.csv)


def record_equimol(work: Path, run: Path, snapshots: Path, label: str, minutes_taken: float, out: Path) -> None:
    """Errors of every snapshot and of the model that the run ended with."""
    from equimol.data import read
    from equimol.models import load
    from equimol.training.checkpoint import read_checkpoint
    from equimol.training.config import load_config
    from equimol.training.evaluate import evaluate

    model, config = load(run / "model.equimol"), load_config(run / "config.yaml")
    per_epoch = math.ceil(json.loads((run / "summary.json").read_text())["frames"]["train"] / config.batch)
    tests = {name: read(work / f"{name}.xyz").frames for name in TESTS}
    parameters = sum(p.numel() for p in model.parameters())
    rows = []
    for path in [*sorted(snapshots.glob("*.ckpt"), key=lambda p: float(p.stem)), None]:
        if path is None:
            model, steps = load(run / "model.equimol"), None
        else:
            checkpoint = read_checkpoint(path)
            averaged = {
                key.removeprefix("averaged."): value for key, value in checkpoint["state_dict"].items() if key.startswith("averaged.")
            }
            model.load_state_dict(averaged)
            steps = checkpoint["global_step"]
        for name, frames in tests.items():
            errors = evaluate(model, frames).errors
            row = {"code": label, "minutes": path.stem if path else f"{minutes_taken:.2f}"}
            row |= {"epoch": round((steps or config.steps) / per_epoch, 1), "parameters": parameters, "test": name}
            rows.append(row | {key: errors[key] for key in ("energy_rmse_mev", "forces_rmse_mev_per_angstrom")})
            print(rows[-1], flush=True)
    append(rows, out)


def run_mace(work: Path, python: Path, minutes: float, results: Path) -> None:
    """The command line that the comparison is defined by; stopped by the clock, then measured by its own code."""
    run = work / "mace"
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir()
    from equimol.data import read

    references = {int(f.numbers[0]): float(f.labels["energy"]) for f in read(work / "atoms.xyz").frames}
    command = [str(python.parent / "mace_run_train"), "--name=mace3bpa", "--device=cpu", "--seed=0"]
    command += [f"--train_file={work / 'train.xyz'}", f"--valid_file={work / 'valid.xyz'}", f"--E0s={references}"]
    command += ["--energy_key=REF_energy", "--forces_key=REF_forces", "--save_all_checkpoints", "--patience=2048"]
    command += MACE_SETTINGS.split()
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    process = subprocess.Popen([*command, "--max_num_epochs=1000"], cwd=run, env=environment)
    try:
        process.wait(minutes * 60 + 30)  # start-up is not counted
    except subprocess.TimeoutExpired:
        process.terminate()
        process.wait()
    subprocess.run([*command, "--max_num_epochs=1", "--restart_latest"], cwd=run, env=environment, check=True)
    out = run / "errors.csv"
    tests = [str(work / f"{name}.xyz") for name in TESTS]
    subprocess.run(
        [str(python), str(Path(__file__).parent / "peers" / "mace_threebpa.py"), str(run), str(out), *tests], env=environment, check=True
    )
    with open(out, newline="") as file:
        append(list(csv.DictReader(file)), results)


def append(rows: list[dict], out: Path) -> None:
    """Rows with what is needed to understand them later."""
    import torch

    from equimol.bench import append_rows, describe_surroundings

    append_rows(out, [row | describe_surroundings(torch.float32) for row in rows])


def plot(results: Path) -> None:
    """Force errors on the three test sets over minutes of training."""
    from matplotlib.figure import Figure

    with open(results, newline="") as file:
        rows = list(csv.DictReader(file))
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    for number, (axes, test) in enumerate(zip(figure.subplots(1, 3), TESTS, strict=True)):
        for code in dict.fromkeys(r["code"] for r in rows):
            points = sorted(
                (float(r["minutes"]), float(r["forces_rmse_mev_per_angstrom"])) for r in rows if r["code"] == code and r["test"] == test
            )
            axes.plot(*zip(*points, strict=True), "o-", ms=3, label=code, color="black" if code == "mace-torch" else None)
        axes.set(
            title=test.replace("test_", "") + " K",
            xlabel="minutes on two cores",
            yscale="log",
            ylabel="" if number else "force RMSE, meV/Å",
        )
        axes.grid(alpha=0.3, which="both")
    axes.legend(frameon=False)
    figure.savefig(results.with_suffix(".svg"))


def table(results: Path, epochs: float | None) -> None:
    """Errors of each code at the end of its training, or at the snapshot closest to a number of epochs, as a Markdown table."""
    with open(results, newline="") as file:
        rows = list(csv.DictReader(file))
    if epochs is not None:
        rows.sort(key=lambda r: -abs(float(r["epoch"]) - epochs))
    print("| | parameters | minutes | epochs | energy RMSE, meV (300 / 600 / 1200 K) | force RMSE, meV/Å (300 / 600 / 1200 K) |")
    print("|---|---|---|---|---|---|")
    for code in sorted({r["code"] for r in rows}):
        last = {r["test"]: r for r in rows if r["code"] == code}  # later rows replace earlier ones
        figures = [
            " / ".join(f"{float(last[test][key]):.1f}" for test in TESTS) for key in ("energy_rmse_mev", "forces_rmse_mev_per_angstrom")
        ]
        any_row = last[TESTS[0]]
        print(
            f"| {code} | {int(any_row['parameters']):,} | {float(any_row['minutes']):.1f} | {float(any_row['epoch']):.0f} "
            f"| {figures[0]} | {figures[1]} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("prepare")
    command.add_argument("data", type=Path)
    command.add_argument("work", type=Path)
    command = commands.add_parser("equimol")
    command.add_argument("work", type=Path)
    command.add_argument("--product", default="clebsch_gordan")
    command.add_argument("--rank", type=int, help="settings.rank, and part of the run's name")
    command.add_argument("--preset", default="small")
    command.add_argument("--minutes", type=float, default=30)
    command.add_argument("--steps", type=int, help="train so many steps, whose time on a quiet machine is --minutes")
    command.add_argument("--threads", type=int, default=2, help="of the training; with --steps it has one")
    command.add_argument("--every", type=float, default=3, help="minutes between snapshots")
    command.add_argument("--set", nargs="*", default=[], metavar="key=value", help="settings of the run, such as loss.energy=10")
    command = commands.add_parser("mace")
    command.add_argument("work", type=Path)
    command.add_argument("--python", type=Path, required=True)
    command.add_argument("--minutes", type=float, default=30)
    commands.add_parser("plot")
    command = commands.add_parser("table")
    command.add_argument("--epochs", type=float, help="of the snapshots to compare, instead of the end")
    for name in ("equimol", "mace", "plot", "table"):
        commands.choices[name].add_argument("--csv", type=Path, default=RESULTS / "threebpa.csv")
    args = parser.parse_args()
    match args.command:
        case "prepare":
            prepare(args.data, args.work)
        case "equimol":
            run_equimol(args)
        case "mace":
            run_mace(args.work, args.python, args.minutes, args.csv)
        case "plot":
            plot(args.csv)
        case "table":
            table(args.csv, args.epochs)


if __name__ == "__main__":
    main()
