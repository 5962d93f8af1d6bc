"""How much memory and time does a set of a million structures take, from making it to training on it?

    python benchmarks/million_frames.py [--frames 1000000] [--steps 300] [--workers 1] [--quick]

Small molecules of C, H and O, 4 to 12 atoms shaken around a grid, with labels that need not be right to be read, are written into a packed
file, one after the other, and trained on (mace, nano, two structures a step and then 500 atoms a step; neighbours are found when a
structure is read); 1,000 structures validate and 1,000 test. A tenth of them is written as extxyz and packed from there, with neighbour
lists. Each phase runs in a process of its own. Rows: phase, seconds, those of the processor, and the peak of memory of the process and of
the largest of its workers, MB: `anonymous` is what it holds itself, `resident` counts pages of the file as well, which the system takes
back when it needs them. `reads_per_second` are structures in random order, seconds of the processor; `waiting` is the share of the time
of the steps that they waited for data.
Appends to benchmarks/results/million_frames.csv.
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
from ase.data import chemical_symbols

from equimol.bench import append_rows, describe_surroundings
from equimol.data import Frame, PackedSet
from equimol.data.atomic import replacing
from equimol.data.pack import pack
from equimol.data.packed import PackWriter

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
        found = PHASES[name](Path(folder), options.frames, options.steps, options.workers)
        print(json.dumps(found | {"processor_seconds": round(sum(os.times()[:4]), 1)}))  # also that of workers that have ended
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
    found = {
        "processor_seconds": "",
        "reads_per_second": "",
        "waiting": "",
        "ms_per_step": "",
        "loading_ms": "",
        "workers": "",
        "file_mb": "",
    }
    row |= found | json.loads(output.splitlines()[-1]) | describe_surroundings(torch.float32)
    print({key: row[key] for key in list(row)[:13]}, flush=True)
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
    with replacing(folder / "set.eqpack") as file:
        writer = PackWriter(file)
        for frame in structures(frames):
            writer.add(frame)
        writer.finish({"report": "written by a benchmark"})
    return {"file_mb": (folder / "set.eqpack").stat().st_size // 10**6}


def structures(count: int) -> Iterator[Frame]:
    """Energies follow from the composition but for a little, forces are random; the same ones every time."""
    rng = np.random.default_rng(0)
    grid = 1.5 * np.stack(np.meshgrid(*(np.arange(3.0),) * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    energies = np.array([REFERENCES.get(z, 0.0) for z in range(9)])
    none, open_directions = np.zeros((3, 3)), np.zeros(3, dtype=bool)
    for start in range(0, count, 1000):
        sizes, elements = rng.integers(4, 13, 1000), rng.choice([1, 6, 8], (1000, 12))
        shaken, forces = grid[:12] + 0.1 * rng.normal(size=(1000, 12, 3)), rng.normal(size=(1000, 12, 3))
        for n, atoms in enumerate(sizes[: count - start].tolist()):
            numbers = elements[n, :atoms]
            labels = {"energy": np.asarray(energies[numbers].sum() + 0.05 * forces[n, 0, 0] * atoms), "forces": forces[n, :atoms]}
            yield Frame(numbers, shaken[n, :atoms], none, open_directions, labels)


def load_and_search(folder: Path, frames: int, steps: int, workers: int) -> dict:
    return _loading(folder / "set.eqpack")


def load_with_neighbours(folder: Path, frames: int, steps: int, workers: int) -> dict:
    return {"frames": frames // 10, **_loading(folder / "tenth.eqpack")}


def _loading(path: Path) -> dict:
    """Processor time of assembling a batch of 500 atoms beside that of training on it: what a worker has to keep up with."""
    from equimol.data.selection import GraphsOf, Selection
    from equimol.training.batches import StepSampler, cut, train_loader
    from equimol.training.config import load_config
    from equimol.training.fit import make_model
    from equimol.training.module import TrainingModule, make_optimizer

    config = load_config(None, ["batch={atoms: 500}", f"cutoff={CUTOFF}", "zbl=false"])
    graphs = GraphsOf(Selection([PackedSet(path)]), CUTOFF)
    size, sizes = cut(config.batch, graphs)
    model = make_model(config, "nano", [1, 6, 8], REFERENCES, 1.0, 0.0, 8.0)
    module = TrainingModule(model, {"energy": 1.0, "forces": 10.0}, config, 100).train()
    optimizer, batches = make_optimizer(model, config), iter(train_loader(graphs, StepSampler(len(graphs), size, 0, 25, sizes=sizes)))
    spent = []
    for _ in range(25):
        times = [time.process_time()]
        graph = next(batches)
        times.append(time.process_time())
        loss = module.training_step(graph)
        optimizer.zero_grad()
        loss.backward()
        module.configure_gradient_clipping(optimizer)
        optimizer.step()
        times.append(time.process_time())
        spent.append(np.diff(times))
    load, step = 1000 * np.median(spent[5:], axis=0)
    return {"loading_ms": round(float(load), 1), "ms_per_step": round(float(step), 1)}


def pack_extxyz(folder: Path, frames: int, steps: int, workers: int) -> dict:
    few = frames // 10
    with (folder / "set.xyz").open("w") as file:
        for frame in structures(few):
            file.write(
                f'{len(frame.numbers)}\nProperties=species:S:1:pos:R:3:forces:R:3 energy={float(frame.labels["energy"]):.8f} pbc="F F F"\n'
            )
            for z, r, f in zip(frame.numbers.tolist(), frame.positions, frame.labels["forces"], strict=True):
                file.write("{} {:.8f} {:.8f} {:.8f} {:.8f} {:.8f} {:.8f}\n".format(chemical_symbols[z], *r, *f))
    pack(folder / "set.xyz", folder / "tenth.eqpack", cutoff=CUTOFF)
    assert len(PackedSet(folder / "tenth.eqpack")) == few
    return {"frames": few, "file_mb": (folder / "tenth.eqpack").stat().st_size // 10**6}


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
    given = [
        f"data={folder / 'set.eqpack'}",
        f"out={folder / batch[:8]}",
        "preset=nano",
        f"cutoff={CUTOFF}",
        "zbl=false",
        "split=random",
        *held,
        batch,
    ]
    sys.stdout.flush()
    run = fit(load_config(None, [*given, f"steps={steps}", f"validate_every={steps}", f"workers={workers}", "device=cpu"]))
    with open(run / "log.csv", newline="") as file:
        row = list(csv.DictReader(file))[-1]
    stored = load_config(run / "config.yaml").references
    assert all(abs(stored[z] - energy) < 0.1 for z, energy in REFERENCES.items()), stored
    return {"waiting": float(row["waiting"]), "ms_per_step": round(1000 * float(row["step_seconds"]), 1), "workers": workers}


PHASES = {
    "write": write,
    "read": read_at_random,
    "train, 2": train,
    "train, 500 atoms": train_by_atoms,
    "pack extxyz": pack_extxyz,
    "load, 500 atoms": load_and_search,
    "load, 500 atoms, neighbours": load_with_neighbours,
}

if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
