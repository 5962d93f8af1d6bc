"""How much memory and time does a set of a million structures take, from making it to training on it?

    python benchmarks/million_frames.py [--frames 1000000] [--steps 300] [--workers 1] [--quick]

Small molecules of C, H and O, 4 to 12 atoms shaken around a grid, with labels that need not be right to be read, are written as extxyz,
packed with neighbour lists, and trained on (mace, nano, two structures a step and then 500 atoms a step); 1,000 structures validate and
1,000 test. Each phase runs in a process of its own. Rows: phase, seconds, and the peak of memory of the process and of the largest of its
workers, MB: `anonymous` is what it holds itself, `resident` counts pages of the file as well, which the system takes back when it needs
them. `reads_per_second` are structures in random order, seconds of the processor; `waiting` is the share of the time of the steps that they
waited for data. Appends to benchmarks/results/million_frames.csv.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from equimol.bench import append_rows, describe_surroundings
from equimol.data import PackedSet
from equimol.data.pack import pack

RESULTS = Path(__file__).parent / "results" / "million_frames.csv"
CUTOFF = 4.0  # Å
REFERENCES = {1: -13.6, 6: -1029.5, 8: -2042.0}  # eV


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="3,000 structures, 10 steps")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--phase", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.frames, options.steps = min(options.frames, 3000), 10
    torch.set_num_threads(1)
    if options.phase:
        name, folder = options.phase
        print(json.dumps(PHASES[name](Path(folder), options.frames, options.steps, options.workers)))
        return
    with tempfile.TemporaryDirectory(prefix="equimol-", dir=options.out.parent) as folder:
        rows = [measure(name, folder, options) for name in PHASES]
    append_rows(options.out, rows)


def measure(name: str, folder: str, options: argparse.Namespace) -> dict:
    """One phase in a process of its own, watched."""
    given = [f"--frames={options.frames}", f"--steps={options.steps}", f"--workers={options.workers}"]
    begin = time.monotonic()
    process = subprocess.Popen([sys.executable, __file__, *given, "--phase", name, folder], stdout=subprocess.PIPE, text=True)
    peaks: dict[int, dict[str, int]] = {}
    ended = threading.Event()
    watcher = threading.Thread(target=_watch, args=(process.pid, peaks, ended))
    watcher.start()
    output, _ = process.communicate()
    ended.set()
    watcher.join()
    if process.returncode:
        raise RuntimeError(f"{name} failed")
    row = {"phase": name, "frames": options.frames, "seconds": round(time.monotonic() - begin, 1)}
    workers = [peak for pid, peak in peaks.items() if pid != process.pid]
    for kind in ("anonymous", "resident"):
        row[f"{kind}_main_mb"] = peaks[process.pid][kind] // 1024
        row[f"{kind}_worker_mb"] = max((peak[kind] for peak in workers), default=0) // 1024
    found = {"reads_per_second": "", "waiting": "", "ms_per_step": "", "workers": "", "file_mb": ""}
    row |= found | json.loads(output.splitlines()[-1]) | describe_surroundings(torch.float32)
    print({key: row[key] for key in list(row)[:12]}, flush=True)
    return row


def _watch(main: int, peaks: dict[int, dict[str, int]], ended: threading.Event) -> None:
    """Largest memory, kB, of a process and all that descend from it, looked at ten times a second."""
    while not ended.wait(0.1):
        for pid in (main, *_descendants(main)):
            try:
                lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
                now = {"anonymous": int(lines["RssAnon"].split()[0]), "resident": int(lines["VmRSS"].split()[0])}
            except (OSError, KeyError):
                continue  # it has just ended
            before = peaks.setdefault(pid, now)
            peaks[pid] = {kind: max(before[kind], now[kind]) for kind in now}


def _descendants(pid: int) -> list[int]:
    try:
        children = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return children + [one for child in children for one in _descendants(child)]


# --- phases, each in a process of its own ----------------------------------------------------------------------------------------


def write(folder: Path, frames: int, steps: int, workers: int) -> dict:
    with (folder / "set.xyz").open("w") as file:
        file.writelines(structures(frames))
    return {"file_mb": (folder / "set.xyz").stat().st_size // 10**6}


def structures(count: int) -> Iterator[str]:
    """In extxyz. Energies follow from the composition but for a little, forces are small."""
    rng = np.random.default_rng(0)
    grid = 1.5 * np.stack(np.meshgrid(*(np.arange(3.0),) * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    symbols = {1: "H", 6: "C", 8: "O"}
    for _ in range(count):
        atoms = int(rng.integers(4, 13))
        numbers = rng.choice([1, 6, 8], atoms)
        positions, forces = grid[:atoms] + 0.1 * rng.normal(size=(atoms, 3)), rng.normal(size=(atoms, 3))
        energy = sum(REFERENCES[int(z)] for z in numbers) + 0.05 * atoms * rng.normal()
        lines = [f'{atoms}\nProperties=species:S:1:pos:R:3:forces:R:3 energy={energy:.8f} pbc="F F F"\n']
        lines += [
            "{} {:.8f} {:.8f} {:.8f} {:.8f} {:.8f} {:.8f}\n".format(symbols[int(z)], *r, *f)
            for z, r, f in zip(numbers, positions, forces, strict=True)
        ]
        yield "".join(lines)


def pack_all(folder: Path, frames: int, steps: int, workers: int) -> dict:
    pack(folder / "set.xyz", folder / "set.eqpack", cutoff=CUTOFF)
    (folder / "set.xyz").unlink()
    return {"file_mb": (folder / "set.eqpack").stat().st_size // 10**6}


def read_at_random(folder: Path, frames: int, steps: int, workers: int) -> dict:
    packed = PackedSet(folder / "set.eqpack")
    assert len(packed) == frames
    numbers = np.random.default_rng(0).permutation(frames)[:100_000].tolist()
    begin = time.process_time()
    atoms = sum(len(packed[n].numbers) for n in numbers)
    seconds = time.process_time() - begin
    assert atoms == packed.atoms[numbers].sum()
    return {"reads_per_second": round(len(numbers) / seconds)}


def train(folder: Path, frames: int, steps: int, workers: int) -> dict:
    return _train(folder, steps, workers, "batch=2")


def train_by_atoms(folder: Path, frames: int, steps: int, workers: int) -> dict:
    return _train(folder, steps, workers, "batch={atoms: 500}")


def _train(folder: Path, steps: int, workers: int, batch: str) -> dict:
    from equimol.training.config import load_config
    from equimol.training.fit import fit

    held = [f"{name}={1000 if steps > 100 else 20}" for name in ("valid", "test")]
    given = [f"data={folder / 'set.eqpack'}", f"out={folder / batch[:8]}", "preset=nano", f"cutoff={CUTOFF}", "zbl=false", *held, batch]
    sys.stdout.flush()
    run = fit(load_config(None, [*given, f"steps={steps}", f"validate_every={steps}", f"workers={workers}", "device=cpu"]))
    with open(run / "log.csv", newline="") as file:
        row = list(csv.DictReader(file))[-1]
    stored = load_config(run / "config.yaml").references
    assert all(abs(stored[z] - energy) < 0.1 for z, energy in REFERENCES.items()), stored
    return {"waiting": float(row["waiting"]), "ms_per_step": round(1000 * float(row["step_seconds"]), 1), "workers": workers}


PHASES = {"write extxyz": write, "pack": pack_all, "read": read_at_random, "train, 2": train, "train, 500 atoms": train_by_atoms}

if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
