"""How accurate is EScAIP after so many minutes, trained by EquiMol and as fairchem-core has it? The same data, size, batch and core.

    python benchmarks/escaip_training.py prepare DATA_FOLDER WORK       # DATA_FOLDER has spice, ethanol_botnet and oc20_relax
    python benchmarks/escaip_training.py train SET WORK --peer-python PEER/bin/python --minutes 30
    python benchmarks/escaip_training.py table

SET is ethanol (BOTNet's: 900 + 100 frames, its test set), spice (frames of the SPICE test subsets, a tenth of the molecules held out as a
whole) or oc20 (24 relaxations, whole systems held out, of elements that occur in others; forces of free atoms). Both codes train side by
side, a core each: EquiMol through its command line with its defaults and `compile=true` (compilation is within its minutes), or for as many
steps as take so long on a quiet machine, so that a busy one does not matter; the peer's conservative model, for which it switches its own
compilation off, and whose own trainer is for clusters, by the loop in peers/fairchem_escaip_train.py with the settings that its
configurations publish, for so many minutes of processor time. The processor time of both is in the table. Size: our `nano`, in both.
"""

from __future__ import annotations

import argparse
import csv
import json
import lzma
import os
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path

import ase.io
import numpy as np
import torch

RESULTS = Path(__file__).parent / "results" / "escaip_training.csv"
CODES = ["equimol", "fairchem-core"]
SETS = ("ethanol", "spice", "oc20")
HELD_OUT_SYSTEMS = 5


def read(path: Path) -> list:
    return ase.io.read(StringIO(lzma.open(path, "rt").read()), ":", format="extxyz")


def prepare(data: Path, work: Path) -> None:
    """train, valid and test of each set as extxyz, and energies of the elements by least squares on the training frames."""
    rng = np.random.default_rng(0)

    def shuffled(frames: list) -> list:
        return [frames[i] for i in rng.permutation(len(frames))]

    def by_key(frames: list, key: str, share: float) -> tuple[list, list]:
        """Frames whose key is kept, and those whose key is held out."""
        names = list(dict.fromkeys(f.info[key] for f in frames))
        out = set(rng.permutation(np.array(names, dtype=object))[: max(1, round(share * len(names)))])
        return [f for f in frames if f.info[key] not in out], [f for f in frames if f.info[key] in out]

    ethanol = shuffled(read(data / "ethanol_botnet" / "train.xyz.xz"))
    sets = {"ethanol": (ethanol[100:], ethanol[:100], read(data / "ethanol_botnet" / "test_MD.xyz.xz"))}
    spice = []
    for name in ("pubchem", "dipeptides", "des370k_monomers", "des370k_dimers"):
        spice += read(data / "spice" / f"spice_test_{name}.xyz.xz")
    rest, test = by_key(spice, "smiles", 0.1)
    sets["spice"] = (*(shuffled(part) for part in by_key(rest, "smiles", 0.1)), test)
    oc20 = [f for f in read(data / "oc20_relax" / "oc20_relax24.extxyz.xz") if np.abs(f.get_forces()).max() < 50]
    systems = {f.info["sid"]: set(f.numbers.tolist()) for f in oc20}
    out: set = set()
    for sid in rng.permutation(np.array(list(systems), dtype=object)):
        others = set().union(*(elements for other, elements in systems.items() if other not in out | {sid}))
        if len(out) < HELD_OUT_SYSTEMS and systems[sid] <= others:  # nothing can be learnt about an element from other systems
            out.add(sid)
    rest, test = shuffled([f for f in oc20 if f.info["sid"] not in out]), [f for f in oc20 if f.info["sid"] in out]
    sets["oc20"] = (rest[len(rest) // 20 :], rest[: len(rest) // 20], test)
    for name, parts in sets.items():
        folder = work / name
        folder.mkdir(parents=True, exist_ok=True)
        for part, frames in zip(("train", "valid", "test"), parts, strict=True):
            plain = []
            for atoms in frames:
                copy = ase.Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
                if name != "oc20":
                    copy.cell, copy.pbc = None, False
                copy.info["REF_energy"] = atoms.get_potential_energy()
                copy.arrays["REF_forces"] = atoms.get_forces()
                copy.arrays["fixed"] = np.array(atoms.get_tags() == 0 if name == "oc20" else np.zeros(len(atoms)), dtype=bool)
                plain.append(copy)
            ase.io.write(folder / f"{part}.xyz", plain, format="extxyz")
        elements = sorted({int(z) for frames in parts for f in frames for z in f.numbers})
        counts = np.array([[np.sum(f.numbers == z) for z in elements] for f in parts[0]], dtype=float)
        energies = np.array([f.get_potential_energy() for f in parts[0]])
        ridge = np.linalg.solve(counts.T @ counts + 1e-3 * np.eye(len(elements)), counts.T @ energies)
        (folder / "references.json").write_text(json.dumps(dict(zip(map(str, elements), ridge.tolist(), strict=True))))
        print(name, [len(part) for part in parts], "frames;", len(elements), "elements")


def train(name: str, work: Path, peer: Path | None, minutes: float, steps: int | None, settings: list[str], codes: list[str]) -> None:
    """Both codes at once, or one of them, each on a core of its own; then their errors on the test set."""
    from equimol.bench import append_rows, describe_surroundings

    folder = work / name
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    references = json.loads((folder / "references.json").read_text())
    run = folder / f"equimol_{time.strftime('%H%M%S')}"
    command = [sys.executable, "-m", "equimol", "train", str(folder / "train.xyz"), "--time", f"{minutes * 60:.0f}s", "model=escaip"]
    command += [f"valid={folder / 'valid.xyz'}", "test=0", "preset=nano", "zbl=false", "batch=5", "compile=true", f"out={run}"]
    command += [f"steps={steps}"] if steps else []
    command += settings
    command += ["references={" + ", ".join(f"{z}: {e}" for z, e in references.items()) + "}"]
    cores = sorted(os.sched_getaffinity(0))
    processes = {}
    if "equimol" in codes:
        processes["equimol"] = subprocess.Popen(["taskset", "-c", str(cores[0]), *command], env=environment)
    if "fairchem-core" in codes:
        script = Path(__file__).parent / "peers" / "fairchem_escaip_train.py"
        arguments = [str(folder), str(minutes), str(folder / "fairchem.json")]
        pinned = ["taskset", "-c", str(cores[-1]), str(peer), "-W", "ignore", str(script), *arguments]
        processes["fairchem-core"] = subprocess.Popen(pinned, env=environment)
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
    rows = []
    if "equimol" in codes:
        rows.append({"code": "equimol"} | our_errors(run, folder))
    if "fairchem-core" in codes:
        rows.append({"code": "fairchem-core"} | json.loads((folder / "fairchem.json").read_text()))
    described = describe_surroundings(torch.float32) | {"threads": 1}
    rows = [{"set": name, "cpu_minutes": round(taken[row["code"]], 1)} | row | described for row in rows]
    print(*rows, sep="\n")
    append_rows(RESULTS, rows)


def our_errors(run: Path, folder: Path) -> dict:
    """Of the model of a run on the test set."""
    from equimol.data import read as read_frames
    from equimol.models import load
    from equimol.training.config import load_config
    from equimol.training.evaluate import evaluate

    model = load(run / "model.equimol")
    frames = read_frames(folder / "test.xyz").frames
    errors = evaluate(model, frames).errors
    keys = ("energy_mae_mev_per_atom", "forces_mae_mev_per_angstrom", "forces_rmse_mev_per_angstrom")
    steps = load_config(run / "config.yaml").steps
    return {"steps": steps, "parameters": sum(p.numel() for p in model.parameters())} | {key: errors[key] for key in keys}


def table() -> None:
    """The last row of each set and code, as Markdown."""
    with open(RESULTS, newline="") as file:
        last = {(row["set"], row["code"]): row for row in csv.DictReader(file)}
    print(
        "| set | code | CPU minutes | steps | energy MAE, meV/atom | force MAE, meV/Å | force RMSE, meV/Å |\n|---|---|---|---|---|---|---|"
    )
    for (name, code), row in last.items():
        figures = [f"{float(row[k]):.1f}" for k in row if "_mae_" in k or "_rmse_" in k]
        print(f"| {name} | {code} | {row['cpu_minutes']} | {row['steps']} | {' | '.join(figures)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("prepare")
    command.add_argument("data", type=Path)
    command.add_argument("work", type=Path)
    command = commands.add_parser("train")
    command.add_argument("set", choices=SETS)
    command.add_argument("work", type=Path)
    command.add_argument("--peer-python", type=Path, help="of an environment with fairchem-core==2.24.0")
    command.add_argument("--minutes", type=float, default=30)
    command.add_argument("--steps", type=int, help="of ours, instead of minutes")
    command.add_argument("--settings", nargs="*", default=[], metavar="KEY=VALUE", help="of ours, over its defaults")
    command.add_argument("--codes", nargs="+", choices=CODES, default=CODES, help="leave one out, and nothing should run beside the other")
    commands.add_parser("table")
    args = parser.parse_args()
    match args.command:
        case "prepare":
            prepare(args.data, args.work)
        case "train":
            train(args.set, args.work, args.peer_python, args.minutes, args.steps, args.settings, args.codes)
        case "table":
            table()


if __name__ == "__main__":
    main()
