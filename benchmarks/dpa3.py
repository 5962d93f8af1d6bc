"""What does DPA3 L3 cost for liquid water, next to deepmd-kit's, on one core: time, memory kept for derivatives, and the first force?

    python benchmarks/dpa3.py measure DATA_FOLDER --peer-python PEER/bin/python   # DATA_FOLDER has deepmd_water; to results/dpa3.csv
    python benchmarks/dpa3.py table

Both have the published form (`smooth=False`; `smooth=True` beside it) and random weights of the same shapes, float32 and one thread; they
run in processes of their own and take turns. Calls include the neighbour list. A training step is energy and forces with their graph, a
squared loss of both, and its gradient; no optimiser. "Saved for autograd" are distinct pieces of memory that a call of energy and forces
keeps for its derivative, weights and constants apart. The first force comes from a model file in a process that has nothing but torch.
Memory that is freed stays with the process, in both, instead of being cleared anew for each large array; that spares deepmd-kit the more.

deepmd-kit as published sees all neighbours ("dynamic selection"): eager, as its trainer has it, and as TorchScript, as its Python interface
has it for energy and forces. It compiles with a fixed number of neighbours ("static selection", 120 and 30) alone: the compiled model and
the loss of its `--pt-expt` trainer. Compilation, up to the end of the first step and with an empty cache, is a row of its own.
The peer's environment: torch==2.13.0, deepmd-kit==3.2.0, mpich, e3nn>=0.5.9, with libdeepmd_op_pt.so, built for torch 2.11, renamed away.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results" / "dpa3.csv"
ENERGY, STEP, COMPILATION, SAVED, FIRST, IMPORT = (
    "energy and forces",
    "training step",
    "compilation",
    "saved for autograd",
    "first force",
    "import of torch",
)
UNITS = {ENERGY: "s", STEP: "s", COMPILATION: "s", SAVED: "MB per atom and layer", FIRST: "s", IMPORT: "s"}
MEASURED = (ENERGY, STEP, FIRST)  # the others with them
OURS, PEER = "equimol", "deepmd-kit"
CONTENDERS = {  # code, form, path
    ENERGY: [(OURS, "published", "eager"), (OURS, "smooth", "eager"), (PEER, "published", "eager"), (PEER, "published", "TorchScript")],
    STEP: [
        (OURS, "published", "eager"),
        (OURS, "smooth", "eager"),
        (PEER, "published", "eager"),
        (PEER, "static", "compiled"),
    ],
}
ELEMENTS = (8, 1)  # in the order of deepmd-kit's types
FRESH_PROCESSES = 3


def read_water(data: Path, part: str) -> list:
    """Frames of deepmd_water: train_data_0-2 or valid_data_3."""
    import lzma
    from io import StringIO

    import ase.io

    return ase.io.read(StringIO(lzma.open(data / "deepmd_water" / f"{part}.xyz.xz", "rt").read()), ":", format="extxyz")


def write_system(folder: Path, frames: list) -> Path:
    """Frames of the same atoms as a system of deepmd-kit."""
    numbers = frames[0].numbers
    if any(not np.array_equal(frame.numbers, numbers) for frame in frames):
        raise ValueError("a system holds frames of the same atoms in the same order")
    place = folder / "set.000"
    place.mkdir(parents=True, exist_ok=True)
    (folder / "type.raw").write_text("".join(f"{ELEMENTS.index(z)}\n" for z in numbers))
    (folder / "type_map.raw").write_text("O\nH\n")
    np.save(place / "coord.npy", np.stack([frame.positions.ravel() for frame in frames]))
    np.save(place / "box.npy", np.stack([frame.cell[:].ravel() for frame in frames]))
    np.save(place / "energy.npy", np.array([frame.get_potential_energy() for frame in frames]))
    np.save(place / "force.npy", np.stack([frame.get_forces().ravel() for frame in frames]))
    return folder


def peer_sizes(preset: str) -> str:
    """Widths of a preset in deepmd-kit's words, as JSON."""
    from equimol.models.dpa3 import PRESETS, DPA3Config

    config = DPA3Config(elements=ELEMENTS, **PRESETS[preset])
    widths = {"n_dim": config.width, "e_dim": config.bond_width, "a_dim": config.angle_width, "nlayers": config.layers}
    return json.dumps({"repflow": widths, "neuron": config.readout})


def load_graph(system: Path, frame: int, cutoff: float) -> Any:
    from equimol.data.graph import AtomicGraph

    numbers = np.array(ELEMENTS)[np.loadtxt(system / "type.raw", dtype=int)]
    positions, cell = (np.load(system / "set.000" / f"{name}.npy")[frame].reshape(-1, 3) for name in ("coord", "box"))
    return AtomicGraph.build(positions, numbers, cell, True, cutoff)


def worker(system: Path, preset: str, form: str) -> None:
    """Answers lines "QUANTITY;CALLS" with seconds of each call, or with megabytes."""
    import torch

    from equimol.models import build_model

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model: Any = build_model("dpa3", preset, elements=ELEMENTS, zbl=False, smooth=form == "smooth")
    for line in sys.stdin:
        quantity, calls = line.strip().split(";")
        model = model.freeze() if quantity in (ENERGY, SAVED) else model.train()  # as calculator and trainer do; a process has one mode
        found = []
        for _ in range(int(calls)):
            begin = time.perf_counter()
            if quantity == SAVED:
                graph = load_graph(system, 0, model.cutoff)
                found.append(megabytes_saved(partial(model, graph), model) / len(graph.numbers))
                continue
            result = model(load_graph(system, 0, model.cutoff))
            if quantity != ENERGY:
                (result["energy"].square().sum() + result["forces"].square().sum()).backward()
                model.zero_grad()
            found.append(time.perf_counter() - begin)
        print(*found, flush=True)


def megabytes_saved(call, model) -> float:
    """Of distinct pieces of memory that autograd keeps during a call, those of the model apart."""
    import torch

    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage  # held, so that no later one takes its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        call()
    own = {value.untyped_storage().data_ptr() for value in model.state_dict().values()}
    return sum(storage.nbytes() for place, storage in kept.items() if place not in own) / 1e6


def first_force(file: Path, system: Path) -> None:
    """Prints the seconds of importing torch, and those from then to the first forces of a model in a file."""
    begin = time.perf_counter()
    import torch

    torch.set_num_threads(1)
    imported = time.perf_counter()
    from equimol.models import load

    model = load(file).freeze()
    model(load_graph(system, 0, model.cutoff))["forces"].sum().item()
    print(imported - begin, time.perf_counter() - imported)


class Process:
    """A worker that answers one question at a time."""

    def __init__(self, *command: str, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)

    def ask(self, quantity: str, calls: int) -> list[float]:
        self.process.stdin.write(f"{quantity};{calls}\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            try:
                if found := [float(word) for word in line.split()]:
                    return found
            except ValueError:
                continue  # what it prints while it loads
        raise SystemExit("a worker stopped; run it by hand to see why")

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


def one_thread() -> dict[str, str]:
    """The environment of both codes: one thread, no processes that load data, and freed memory stays with the process."""
    threads = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "DP_INTRA_OP_PARALLELISM_THREADS", "DP_INTER_OP_PARALLELISM_THREADS")
    memory = {"MALLOC_MMAP_THRESHOLD_": str(2**33), "MALLOC_TRIM_THRESHOLD_": str(2**34)}  # bytes; of glibc
    return {**os.environ, **dict.fromkeys(threads, "1"), "NUM_WORKERS": "0", **memory}


def measure(data: Path, peer: Path | None, preset: str, quantities: list[str], rounds: int, compile: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        frames = read_water(data, "valid_data_3")[:2]
        system = write_system(Path(folder) / "system", frames)
        environment = one_thread()
        for quantity in quantities:
            if quantity == FIRST:
                found = time_first_force(system, preset, environment)
            else:
                contenders = [who for who in CONTENDERS[quantity] if (peer or who[0] == OURS) and (compile or who[2] != "compiled")]
                processes = {who: start(*who, system, preset, peer, environment) for who in contenders}
                found = time_calls(quantity, processes, rounds, layers=json.loads(peer_sizes(preset))["repflow"]["nlayers"])
            report(found, preset, len(frames[0]))


def start(code: str, form: str, path: str, system: Path, preset: str, peer: Path | None, environment: dict[str, str]) -> Process:
    environment = environment | {"TORCHINDUCTOR_CACHE_DIR": str(system.parent / f"cache_{code}_{form}")}
    if code == OURS:
        return Process(sys.executable, __file__, "worker", str(system), preset, form, environment=environment)
    script = Path(__file__).parent / "peers" / "deepmd_dpa3_calls.py"
    return Process(str(peer), "-W", "ignore", str(script), str(system), peer_sizes(preset), path, environment=environment)


def time_calls(quantity: str, processes: dict[tuple, Process], rounds: int, layers: int) -> dict[tuple, float]:
    """Medians of calls that take turns, with what belongs to them: (quantity, code, form, path) -> value."""
    found: dict[tuple, float] = {}
    times: dict[tuple, list[float]] = {who: [] for who in processes}
    for who, process in processes.items():
        if who[2] == "compiled":
            found[COMPILATION, *who] = process.ask(COMPILATION, 1)[0]
            print(*who, f"compiled in {found[COMPILATION, *who]:.1f} s", flush=True)
    for round_ in range(rounds):
        for who, process in processes.items():
            seconds = process.ask(quantity, 2)
            times[who] += seconds if round_ else []
    for who, process in processes.items():
        found[quantity, *who] = statistics.median(times[who])
        if quantity == ENERGY and who[2] == "eager":
            found[SAVED, *who] = process.ask(SAVED, 1)[0] / layers
        process.stop()
    return found


def time_first_force(system: Path, preset: str, environment: dict[str, str]) -> dict[tuple, float]:
    """Medians of fresh processes."""
    from equimol.models import build_model, save

    found = {}
    for form in ("published", "smooth"):
        model = build_model("dpa3", preset, elements=ELEMENTS, zbl=False, smooth=form == "smooth")
        command = [sys.executable, __file__, "first", str(save(model, system.parent / f"{form}.equimol")), str(system)]
        answers = [subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True) for _ in range(FRESH_PROCESSES)]
        seconds = [[float(word) for word in answer.stdout.split()] for answer in answers]
        found[IMPORT, OURS, form, "eager"], found[FIRST, OURS, form, "eager"] = map(statistics.median, zip(*seconds, strict=True))
    return found


def report(found: dict[tuple, float], preset: str, atoms: int) -> None:
    """Prints and appends rows."""
    import torch

    from equimol.bench import append_rows, describe_surroundings

    rows = []
    for (quantity, code, form, path), value in found.items():
        eager = found.get((quantity, PEER, "published", "eager"))
        row = {"preset": preset, "atoms": atoms, "quantity": quantity, "code": code, "form": form, "path": path}
        row |= {"value": round(value, 4), "unit": UNITS[quantity], "peer_eager_over_this": round(eager / value, 2) if eager else ""}
        print(row, flush=True)
        rows.append(row | describe_surroundings(torch.float32) | {"threads": 1})
    append_rows(RESULTS, rows)


def table() -> None:
    """The last row of each quantity, code, form and path, as Markdown."""
    with open(RESULTS, newline="") as file:
        last = {tuple(row[key] for key in ("preset", "quantity", "code", "form", "path")): row for row in csv.DictReader(file)}
    print("| preset | | code | form | | value | deepmd-kit eager / this | deepmd-kit's best / this |\n|---|---|---|---|---|---|---|---|")
    for key, row in last.items():
        peers = [float(other["value"]) for there, other in last.items() if there[:3] == (*key[:2], PEER)]
        best = f"{min(peers) / float(row['value']):.2f}" if peers else ""
        print(f"| {' | '.join(key)} | {float(row['value']):.3g} {row['unit']} | {row['peer_eager_over_this']} | {best} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("measure")
    command.add_argument("data", type=Path)
    command.add_argument("--peer-python", type=Path, help="of an environment with deepmd-kit")
    command.add_argument("--preset", default="L3")
    command.add_argument("--quantities", nargs="+", default=MEASURED, choices=MEASURED)
    command.add_argument("--rounds", type=int, default=4, help="of two calls each; the first one warms up and is not counted")
    command.add_argument("--no-compile", action="store_true", help="leave out the compiled programs, which take minutes to begin with")
    commands.add_parser("table")
    command = commands.add_parser("worker", help="what measure starts")
    command.add_argument("system", type=Path)
    command.add_argument("preset")
    command.add_argument("form")
    command = commands.add_parser("first", help="what measure starts")
    command.add_argument("file", type=Path)
    command.add_argument("system", type=Path)
    args = parser.parse_args()
    match args.command:
        case "measure":
            measure(args.data, args.peer_python, args.preset, args.quantities, args.rounds, not args.no_compile)
        case "table":
            table()
        case "worker":
            worker(args.system, args.preset, args.form)
        case "first":
            first_force(args.file, args.system)


if __name__ == "__main__":
    main()
