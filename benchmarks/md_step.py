"""How long does one energy-and-force call take through ASE, as in a step of molecular dynamics? EquiMol's models and mace-torch, in turn.

    python benchmarks/md_step.py STRUCTURE.xyz MODEL.equimol [MODEL.equimol ...] [--mace-python PYTHON --mace-model FILE.model]

Atoms move a little between calls, so that nothing is cached and neighbours are looked for as in a simulation. Appends to
benchmarks/results/md_step.csv: median and quartiles in ms.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import time
from pathlib import Path

import ase.io
import numpy as np
import torch

from equimol.bench import append_rows, describe_surroundings
from equimol.interfaces.ase import EquiMolCalculator

RESULTS = Path(__file__).parent / "results" / "md_step.csv"


class OurCalls:
    """Times calls of EquiMol's calculator in this process."""

    def __init__(self, model: Path, structure: Path) -> None:
        self.start = ase.io.read(structure, index=0, format="extxyz")
        self.atoms = self.start.copy()
        self.atoms.calc = EquiMolCalculator(model)

    def time(self, calls: int, seed: int) -> list[float]:
        random, seconds = np.random.default_rng(seed), []
        for _ in range(calls):
            self.atoms.positions = self.start.positions + random.normal(scale=0.01, size=self.start.positions.shape)
            begin = time.perf_counter()
            self.atoms.get_forces(), self.atoms.get_potential_energy()
            seconds.append(time.perf_counter() - begin)
        return seconds


class PeerCalls:
    """Asks a process in the peer's environment for the same."""

    def __init__(self, python: str, model: str, structure: Path) -> None:
        script = Path(__file__).parent / "peers" / "mace_calls.py"
        command = [python, "-W", "ignore", str(script), model, str(structure)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def time(self, calls: int, seed: int) -> list[float]:
        self.process.stdin.write(f"{calls} {seed}\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            try:
                return [float(word) for word in line.split()]
            except ValueError:
                continue  # what the peer prints while it loads
        raise SystemExit("the peer stopped; run its script by hand to see why")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("structure", type=Path)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--mace-python")
    parser.add_argument("--mace-model")
    parser.add_argument("--rounds", type=int, default=6, help="the first one warms up and is not counted")
    parser.add_argument("--calls", type=int, default=30, help="calls of each in a round")
    args = parser.parse_args()
    candidates = {path.parent.name or path.stem: OurCalls(path, args.structure) for path in args.models}
    if args.mace_python:
        candidates["mace-torch"] = PeerCalls(args.mace_python, args.mace_model, args.structure)
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for seed in range(args.rounds):
        for name, candidate in candidates.items():
            seconds = candidate.time(args.calls, seed)
            times[name] += seconds if seed else []
    rows = []
    for name, seconds in times.items():
        low, median, high = (1e3 * q for q in statistics.quantiles(seconds, n=4))
        row = {"model": name, "structure": args.structure.stem, "median_ms": round(median, 2), "quartiles_ms": f"{low:.2f}-{high:.2f}"}
        rows.append(row | describe_surroundings(torch.float32))
        print(row)
    append_rows(RESULTS, rows)


if __name__ == "__main__":
    main()
