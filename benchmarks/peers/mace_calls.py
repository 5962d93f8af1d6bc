"""Times energy-and-force calls of mace-torch's ASE calculator on request. Runs in mace-torch's own environment.

    python mace_calls.py MODEL.model STRUCTURE.xyz

Reads a line "CALLS SEED" from standard input, makes so many calls, prints the seconds of each on one line; until the input ends.
"""

import sys
import time

import ase.io
import numpy as np
from mace.calculators import MACECalculator


def main(model: str, structure: str) -> None:
    start = ase.io.read(structure, index=0, format="extxyz")
    atoms = start.copy()
    atoms.calc = MACECalculator(model_paths=[model], device="cpu", default_dtype="float32")
    for line in sys.stdin:
        calls, seed = map(int, line.split())
        random, seconds = np.random.default_rng(seed), []
        for _ in range(calls):
            atoms.positions = start.positions + random.normal(scale=0.01, size=start.positions.shape)
            begin = time.perf_counter()
            atoms.get_forces(), atoms.get_potential_energy()
            seconds.append(time.perf_counter() - begin)
        print(*seconds, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
