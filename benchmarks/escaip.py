"""What does EScAIP H512 L10 cost per atom, next to fairchem-core's, on one core: energy and forces, and a training step with its memory.

    python benchmarks/escaip.py --peer-python PEER/bin/python          # appends to results/escaip.csv

Both have the published form (`smooth=False`), random weights of the same shapes, float32 and one thread; they run in processes of their
own and take turns. A training step is energy and forces with their graph, a squared loss of both, and its gradient; no optimiser. Peak
memory is that of the process after the step. "Recomputed" keeps the features between layers alone, which the peer has no way to. The
peer's environment: pip install fairchem-core==2.24.0.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import ase.build
import numpy as np

RESULTS = Path(__file__).parent / "results" / "escaip.csv"
MODES = ("energy and forces", "training step", "training step, recomputed")


def structure(name: str) -> ase.Atoms:
    """A molecule in a large box, or a crystal, rattled."""
    if name == "Cu32":
        atoms = ase.build.bulk("Cu", cubic=True) * (2, 2, 2)
    else:
        atoms = ase.build.molecule(name)
        atoms.set_cell([30.0, 30.0, 30.0])
        atoms.center()
    atoms.pbc = True
    atoms.positions += np.random.default_rng(0).normal(size=atoms.positions.shape) * 0.03
    return atoms


def worker() -> None:
    """Answers lines "STRUCTURE;MODE;CALLS" with seconds of each call and, last, the peak memory in bytes."""
    import torch

    from equimol.data.graph import AtomicGraph
    from equimol.models.escaip import PRESETS, EScAIP, EScAIPConfig

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = EScAIP(EScAIPConfig(elements=tuple(range(1, 100)), **PRESETS["83M"], smooth=False))
    for line in sys.stdin:
        name, mode, calls = line.strip().split(";")
        atoms = structure(name)
        training, model.recompute = mode != MODES[0], mode == MODES[2]
        model = model.train() if training else model.freeze()  # as trainer and calculator do; a process has one mode
        seconds = []
        for _ in range(int(calls)):
            begin = time.perf_counter()
            result = model(AtomicGraph.build(atoms.positions, atoms.numbers, atoms.cell[:], True, model.cutoff))
            if training:
                (result["energy"].square().sum() + result["forces"].square().sum()).backward()
                model.zero_grad()
            seconds.append(time.perf_counter() - begin)
        print(*seconds, 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, flush=True)


class Process:
    """A worker that answers one question at a time."""

    def __init__(self, *command: str) -> None:
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, name: str, mode: str, calls: int) -> list[float]:
        self.process.stdin.write(f"{name};{mode};{calls}\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            try:
                return [float(word) for word in line.split()]
            except ValueError:
                continue  # what it prints while it loads
        raise SystemExit("a worker stopped; run it by hand to see why")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", nargs="?", choices=("worker",))
    parser.add_argument("--peer-python", help="of an environment with fairchem-core")
    parser.add_argument("--structures", nargs="+", default=["C60", "Cu32", "CH3CH2OH", "H2O"])
    parser.add_argument("--modes", nargs="+", default=MODES, choices=MODES)
    parser.add_argument("--rounds", type=int, default=4, help="the first one warms up and is not counted")
    args = parser.parse_args()
    if args.command == "worker":
        return worker()
    import torch

    from equimol.bench import append_rows, describe_surroundings

    rows = []
    for name in args.structures:
        for mode in args.modes:
            codes = {"equimol": Process(sys.executable, __file__, "worker")}
            if args.peer_python:
                peer = Path(__file__).parent / "peers" / "fairchem_escaip_calls.py"
                codes["fairchem-core"] = Process(args.peer_python, "-W", "ignore", str(peer))
            seconds: dict[str, list[float]] = {code: [] for code in codes}
            memory = {}
            for round_ in range(args.rounds):
                for code, process in codes.items():
                    *times, memory[code] = process.ask(name, mode if code == "equimol" else mode.removesuffix(", recomputed"), 2)
                    seconds[code] += times if round_ else []
            atoms = len(structure(name))
            for code, times in seconds.items():
                median = statistics.median(times)
                row = {"code": code, "structure": name, "atoms": atoms, "mode": mode, "ms": round(1e3 * median, 2)}
                row |= {"ms_per_atom": round(1e3 * median / atoms, 3), "peak_memory_gb": round(memory[code] / 1e9, 3)}
                row |= {
                    "times_faster_than_peer": round(statistics.median(seconds["fairchem-core"]) / median, 2) if args.peer_python else ""
                }
                print(row, flush=True)
                rows.append(row | describe_surroundings(torch.float32) | {"threads": 1})
            for process in codes.values():
                process.process.kill()
    append_rows(RESULTS, rows)


if __name__ == "__main__":
    main()
