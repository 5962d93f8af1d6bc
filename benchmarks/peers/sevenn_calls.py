"""Energies, forces and stress of SevenNet's ASE calculator, and the times of its calls, on request. Runs in sevenn's own environment.

    python sevenn_calls.py CHECKPOINT.pth STRUCTURES.xyz [MODAL]

Reads lines from standard input, until it ends, and answers each with one line of JSON:
"numbers N" gives those of structure N, "time N CALLS SEED" the seconds of each of so many calls with atoms that move a little.
The environment: pip install sevenn==0.13.0.
"""

import json
import sys
import time
import warnings

import ase.io
import numpy as np
from sevenn.calculator import SevenNetCalculator


def main(checkpoint: str, structures: str, modal: str | None = None) -> None:
    warnings.simplefilter("ignore")
    frames = ase.io.read(structures, index=":", format="extxyz")
    calculator = SevenNetCalculator(checkpoint, device="cpu", modal=modal)
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        command, number, *rest = line.split()
        start = frames[int(number)]
        atoms = start.copy()
        atoms.calc = calculator
        if command == "numbers":
            found = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces().tolist(), "stress": atoms.get_stress().tolist()}
            print(json.dumps(found), flush=True)
            continue
        calls, seed = map(int, rest)
        random, seconds = np.random.default_rng(seed), []
        for _ in range(calls):
            atoms.positions = start.positions + random.normal(scale=0.01, size=start.positions.shape)
            begin = time.perf_counter()
            atoms.get_forces(), atoms.get_potential_energy()
            seconds.append(time.perf_counter() - begin)
        print(json.dumps(seconds), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
