"""What do the same weights of MACE cost here and in mace-torch, on one core: energy and forces, and a training step with its memory.

    python benchmarks/mace.py --molecules 3BPA.xyz --water WATER.xyz --peer-python PEER/bin/python     # appends to results/mace.csv

The peer writes its model, we read it by `equimol.convert.mace`; energies and forces are compared before anything is timed. Both run in
processes of their own, one for each mode, and take turns; float32, one thread. Neighbours are found before the clock starts. A training
step is energy and forces with their graph, a squared loss of both, and its gradient; no optimiser. Molecules are a batch of nine
(243 atoms of 3BPA), water is one box. Peak memory is that of the process; memory for steps is what it needs beyond
what it took to read the model. The peer's environment: pip install mace-torch==0.3.16.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "mace.csv"
PEER = Path(__file__).parent / "peers" / "mace_steps.py"
SIZES = ("64x0e+64x1o", "128x0e+128x1o+128x2e")
MODES = ("energy and forces", "training step")
MOLECULES = 9


def worker(path: str) -> None:
    """Answers lines "FRAMES.xyz;COUNT;MODE;CALLS" as benchmarks/peers/mace_steps.py does."""
    import ase.io
    import torch
    from torch_geometric.data import Batch

    from equimol.convert.mace import read_mace
    from equimol.data.graph import AtomicGraph

    torch.set_num_threads(1)
    model = read_mace(path)
    before = _peak()
    print("ready", flush=True)
    for line in sys.stdin:
        frames, count, mode, calls = line.strip().split(";")
        structures = ase.io.read(frames, f":{count}", format="extxyz")
        graph = Batch.from_data_list([AtomicGraph.build(a.positions, a.numbers, a.cell[:], a.pbc, model.cutoff) for a in structures])
        training = mode == "training step"
        model = model.train() if training else model.freeze()  # as trainer and calculator do; a process has one mode
        if mode == "values":
            result = model(graph)
            print(*result["energy"].tolist(), *result["forces"].flatten().tolist(), flush=True)
            continue
        seconds = []
        for _ in range(int(calls)):
            begin = time.perf_counter()
            result = model(graph)
            if training:
                (result["energy"].square().sum() + result["forces"].square().sum()).backward()
                model.zero_grad()
            seconds.append(time.perf_counter() - begin)
        print(*seconds, before, _peak(), flush=True)


def _peak() -> int:
    """Memory in bytes that this process has had at most."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class Process:
    """A worker that answers one question at a time."""

    def __init__(self, *command: str) -> None:
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.next_line("ready")

    def next_line(self, start: str = "") -> list[str]:
        for line in self.process.stdout:
            words = line.split()
            if words and (words[0] == start if start else _is_number(words[0])):
                return words  # other lines are what it prints while it loads
        raise SystemExit("a worker stopped; run it by hand to see why")

    def ask(self, *question: str | int) -> list[float]:
        self.process.stdin.write(";".join(map(str, question)) + "\n")
        self.process.stdin.flush()
        return [float(word) for word in self.next_line()]


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def main() -> None:
    if sys.argv[1:2] == ["worker"]:
        return worker(sys.argv[2])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--molecules", type=Path, help="frames of H, C, N and O, extended XYZ")
    parser.add_argument("--water", type=Path, help="a periodic box")
    parser.add_argument("--box", type=Path, help="the same, to be repeated five times along its first vector")
    parser.add_argument("--peer-python", required=True, help="of an environment with mace-torch")
    parser.add_argument("--sizes", nargs="+", default=SIZES)
    parser.add_argument("--modes", nargs="+", default=MODES, choices=MODES)
    parser.add_argument("--rounds", type=int, default=5, help="the first one warms up and is not counted")
    parser.add_argument("--calls", type=int, default=3, help="of each in a round")
    args = parser.parse_args()
    from equimol.bench import append_rows

    systems = {"molecules": (args.molecules, MOLECULES), "water": (args.water, 1)}
    with tempfile.TemporaryDirectory() as folder:
        if args.box:
            import ase.io

            systems["box"] = Path(folder) / "box.xyz", 1
            ase.io.write(systems["box"][0], ase.io.read(args.box, "0").repeat((5, 1, 1)), format="extxyz")
        for size in args.sizes:
            for name, (frames, count) in systems.items():
                for mode in args.modes if frames else ():
                    append_rows(RESULTS, compare(args, Path(folder) / f"{size}.model", size, name, (frames, count), mode))


def compare(args: argparse.Namespace, path: Path, size: str, name: str, frames: tuple[Path, int], mode: str) -> list[dict]:
    """Rows of both codes."""
    import numpy as np
    import torch

    from equimol.bench import describe_surroundings

    codes = {"mace-torch": Process(args.peer_python, "-W", "ignore", str(PEER), size, str(path))}
    codes["equimol"] = Process(sys.executable, __file__, "worker", str(path))
    if mode == MODES[0]:
        values = {code: np.array(process.ask(*frames, "values", 1)) for code, process in codes.items()}
        error = np.abs(values["equimol"] - values["mace-torch"]).max() / np.abs(values["mace-torch"]).max()
        if not error < 1e-5:
            raise SystemExit(f"energies and forces must agree in single precision before they are timed, got a difference of {error:.1e}")
    seconds: dict[str, list[float]] = {code: [] for code in codes}
    memory = {}
    for round_ in range(args.rounds):
        for code, process in codes.items():
            *times, before, peak = process.ask(*frames, mode, args.calls)
            memory[code] = peak, peak - before
            seconds[code] += times if round_ else []
    for process in codes.values():
        process.process.kill()
    rows, peer = [], statistics.median(seconds["mace-torch"])
    for code, times in seconds.items():
        low, median, high = statistics.quantiles(times, n=4)
        row = {"code": code, "size": size, "structure": name, "mode": mode, "ms": round(1e3 * median, 2)}
        row |= {"quartiles_ms": f"{1e3 * low:.2f}-{1e3 * high:.2f}", "times_faster_than_peer": round(peer / median, 2)}
        for name_of, place in (("peak_memory", 0), ("memory_for_steps", 1)):
            row[f"{name_of}_gb"] = round(memory[code][place] / 1e9, 3)
            row[f"{name_of}_part_of_peer"] = round(memory[code][place] / max(1, memory["mace-torch"][place]), 3)
        print(row, flush=True)
        rows.append(row | describe_surroundings(torch.float32) | {"threads": 1})
    return rows


if __name__ == "__main__":
    main()
