"""One DPA3 for three levels of theory beside three models of the same total cost, and what fine-tuning forgets.

    python benchmarks/data_sets.py prepare DATA_FOLDER WORK      # DATA_FOLDER has spice, 3bpa and rmd17
    python benchmarks/data_sets.py together WORK --minutes 30    # one model for that long; on another core three, a third of it each
    python benchmarks/data_sets.py forgetting WORK --minutes 5   # the separate spice model goes on with rmd17, in three ways
    python benchmarks/data_sets.py table

spice (molecules and dimers, wB97M-D3(BJ)/def2-TZVPPD; a tenth of the molecules held out), 3bpa (300 K, wB97X/6-31G(d)) and rmd17 (aspirin,
ethanol and toluene, PBE/def2-SVP). Preset nano, one thread, defaults otherwise. Forgetting is the rise of the force error on spice:
energies of another level of theory have another zero, forces hardly differ.
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
import numpy as np
import torch

RESULTS = Path(__file__).parent / "results" / "data_sets.csv"
SETS = ("spice", "3bpa", "rmd17")
FINE_TUNING = {
    "plain": [],
    "frozen": ["freeze=[element, bond, angle, layers.0, layers.1]"],
    "replay": ["sampling={spice: 1, rmd17: 3}"],
}


def prepare(data: Path, work: Path) -> None:
    """train, valid and test of each set as extxyz."""
    rng = np.random.default_rng(0)

    def frames_of(*names: str) -> list:
        found = []
        for name in names:
            with lzma.open(data / name, "rt") as file:
                found += ase.io.read(StringIO(file.read()), ":", format="extxyz")
        return found

    spice = frames_of(*(f"spice/spice_test_{name}.xyz.xz" for name in ("pubchem", "dipeptides", "des370k_monomers", "des370k_dimers")))
    molecules = rng.permutation(np.array(sorted({frame.info["smiles"] for frame in spice}), dtype=object))
    held_out = {
        name: set(molecules[part * len(molecules) // 10 : (part + 1) * len(molecules) // 10]) for part, name in enumerate(("valid", "test"))
    }
    bpa = frames_of("3bpa/train_300K.xyz.xz")
    order = rng.permutation(len(bpa))
    names = ("aspirin", "ethanol", "toluene")
    sets = {
        "spice": {part: [f for f in spice if f.info["smiles"] in inside] for part, inside in held_out.items()},
        "3bpa": {"valid": [bpa[n] for n in order[:50]], "test": frames_of("3bpa/derived_test_300K.xyz.xz")},
        "rmd17": {
            part: frames_of(*(f"rmd17/{name}_test_01.xyz.xz" for name in names))[start::20] for start, part in enumerate(("valid", "test"))
        },
    }
    sets["spice"]["train"] = [f for f in spice if not any(f.info["smiles"] in inside for inside in held_out.values())]
    sets["3bpa"]["train"] = [bpa[n] for n in order[50:]]
    sets["rmd17"]["train"] = [frame for name in names for frame in frames_of(f"rmd17/{name}_train_01.xyz.xz")[:150]]
    for name, parts in sets.items():
        (work / name).mkdir(parents=True, exist_ok=True)
        for part, frames in parts.items():
            plain = []
            for atoms in frames:
                copy = ase.Atoms(atoms.numbers, atoms.positions)
                copy.info["REF_energy"], copy.arrays["REF_forces"] = atoms.get_potential_energy(), atoms.get_forces()
                plain.append(copy)
            ase.io.write(work / name / f"{part}.xyz", plain, format="extxyz")
        print(name, {part: len(frames) for part, frames in parts.items()})


def command(work: Path, out: str, sets: tuple[str, ...], minutes: float, *more: str) -> list[str]:
    """One training; of a single set without an encoding."""
    words = [sys.executable, "-m", "equimol", "train", "--time", f"{minutes * 60:.0f}s", "model=dpa3", "preset=nano", "zbl=false", "test=0"]
    for key, part in (("data", "train"), ("valid", "valid")):
        words += [f"{key}.{name}={work / name / part}.xyz" for name in sets] if len(sets) > 1 else [f"{key}={work / sets[0] / part}.xyz"]
    return [*words, f"out={work / out}", *more]


def together(work: Path, minutes: float) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    first, *_, last = sorted(os.sched_getaffinity(0)) * 2
    joint = command(work, "together", SETS, minutes, f"sampling={{{', '.join(f'{name}: 1' for name in SETS)}}}")
    process = subprocess.Popen(["taskset", "-c", str(first), *joint], env=environment)
    for name in SETS:
        subprocess.run(["taskset", "-c", str(last), *command(work, f"alone_{name}", (name,), minutes / 3)], env=environment, check=True)
    if process.wait():
        raise SystemExit("the training of the joint model failed")
    for name in SETS:
        record(work, f"together, {minutes:g} minutes", work / "together", name, name)
        record(work, f"alone, {minutes / 3:g} minutes", work / f"alone_{name}", name)


def forgetting(work: Path, minutes: float) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    start = f"start={work / 'alone_spice' / 'model.equimol'}"
    for name in ("spice", "rmd17"):
        record(work, "before fine-tuning", work / "alone_spice", name)
    for kind, more in FINE_TUNING.items():
        sets = ("spice", "rmd17") if kind == "replay" else ("rmd17",)
        references = [] if kind == "replay" else ["references=fit"]
        subprocess.run(command(work, f"tuned_{kind}", sets, minutes, start, *references, *more), env=environment, check=True)
        for name in ("spice", "rmd17"):
            record(work, f"fine-tuned, {kind}, {minutes:g} minutes", work / f"tuned_{kind}", name, name if kind == "replay" else None)


def record(work: Path, how: str, run: Path, name: str, data_set: str | None = None) -> None:
    """Errors on a test set, of elements that the model knows."""
    from equimol.bench import append_rows, describe_surroundings
    from equimol.data import read
    from equimol.models import for_data_set, load
    from equimol.training.evaluate import evaluate

    model = load(run / "model.equimol")
    model = for_data_set(model, data_set) if data_set else model
    frames = [frame for frame in read(work / name / "test.xyz").frames if set(frame.numbers) <= set(model.elements)]
    errors = evaluate(model, frames).errors
    keys = ("energy_mae_mev_per_atom", "forces_mae_mev_per_angstrom", "forces_rmse_mev_per_angstrom")
    row = {"model": how, "set": name, "frames": len(frames)} | {key: errors[key] for key in keys}
    print(row)
    append_rows(RESULTS, [row | describe_surroundings(torch.float32) | {"threads": 1}])


def table() -> None:
    """The last row of each model and set, as Markdown."""
    with open(RESULTS, newline="") as file:
        last = {(row["model"], row["set"]): row for row in csv.DictReader(file)}
    print("| model | test set | energy MAE, meV/atom | force MAE, meV/Å | force RMSE, meV/Å |\n|---|---|---|---|---|")
    for (model, name), row in last.items():
        print(f"| {model} | {name} | {' | '.join(f'{float(row[key]):.1f}' for key in row if '_mae_' in key or '_rmse_' in key)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("prepare")
    command.add_argument("data", type=Path)
    command.add_argument("work", type=Path)
    for name, minutes in (("together", 30), ("forgetting", 5)):
        command = commands.add_parser(name)
        command.add_argument("work", type=Path)
        command.add_argument("--minutes", type=float, default=minutes)
    commands.add_parser("table")
    args = parser.parse_args()
    match args.command:
        case "prepare":
            prepare(args.data, args.work)
        case "together":
            together(args.work, args.minutes)
        case "forgetting":
            forgetting(args.work, args.minutes)
        case "table":
            table()


if __name__ == "__main__":
    main()
