"""What fifty frames of a molecule teach: rMD17's aspirin, ethanol and toluene, by examples/few_frames.yaml.

    python benchmarks/rmd17.py train DATA_FOLDER WORK aspirin --minutes 60     # one thread; to results/rmd17.csv
    python benchmarks/rmd17.py table

DATA_FOLDER holds MOLECULE_train_01.xyz.xz and MOLECULE_test_01.xyz.xz of rMD17 (Christensen and von Lilienfeld 2020) with energies in eV:
the first 50 frames of the one are trained on, the 1,000 of the other tested. Published: MACE (Batatia et al. 2022, Table 2), 50 frames.
"""

from __future__ import annotations

import argparse
import csv
import lzma
import os
import subprocess
import sys
from io import StringIO
from pathlib import Path

import ase.io
import torch

RESULTS = Path(__file__).parent / "results" / "rmd17.csv"
RECIPE = Path(__file__).parents[1] / "examples" / "few_frames.yaml"
PUBLISHED = {"aspirin": 43.9, "ethanol": 32.6, "toluene": 12.1}  # force MAE of MACE, meV/Å
FRAMES = 50


def train(data: Path, work: Path, molecule: str, minutes: float, more: list[str]) -> None:
    from equimol.bench import append_rows, describe_surroundings
    from equimol.data import read
    from equimol.models import load
    from equimol.training.evaluate import evaluate

    work.mkdir(parents=True, exist_ok=True)
    for part, frames in (("train", slice(FRAMES)), ("test", slice(None))):
        with lzma.open(data / f"{molecule}_{part}_01.xyz.xz", "rt") as file:
            found = ase.io.read(StringIO(file.read()), frames, format="extxyz")
        ase.io.write(work / f"{molecule}_{part}.xyz", found, format="extxyz")
    run = work / molecule
    command = [sys.executable, "-m", "equimol", "train", "--config", str(RECIPE), "--time", f"{minutes * 60:.0f}s", f"out={run}", *more]
    subprocess.run([*command, f"data={work / molecule}_train.xyz"], env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)
    model = load(run / "model.equimol")
    errors = evaluate(model, read(work / f"{molecule}_test.xyz").frames).errors
    keys = ("energy_mae_mev_per_atom", "forces_mae_mev_per_angstrom", "forces_rmse_mev_per_angstrom")
    row = {"molecule": molecule, "minutes": minutes, "settings": " ".join(more)} | {key: errors[key] for key in keys}
    print(row)
    append_rows(RESULTS, [row | describe_surroundings(torch.float32) | {"threads": 1}])


def table() -> None:
    """The last row of each molecule, as Markdown."""
    with open(RESULTS, newline="") as file:
        last = {row["molecule"]: row for row in csv.DictReader(file)}
    print("| | energy MAE, meV/atom | force MAE, meV/Å | MACE, published |\n|---|---|---|---|")
    for molecule, row in last.items():
        found = f"{float(row['energy_mae_mev_per_atom']):.1f} | {float(row['forces_mae_mev_per_angstrom']):.1f}"
        print(f"| {molecule} | {found} | {PUBLISHED[molecule]} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("train")
    command.add_argument("data", type=Path)
    command.add_argument("work", type=Path)
    command.add_argument("molecule", choices=sorted(PUBLISHED))
    command.add_argument("--minutes", type=float, default=60)
    command.add_argument("--set", nargs="*", default=[], metavar="key=value", help="settings of the run, such as preset=medium")
    commands.add_parser("table")
    args = parser.parse_args()
    if args.command == "train":
        train(args.data, args.work, args.molecule, args.minutes, args.set)
    else:
        table()


if __name__ == "__main__":
    main()
