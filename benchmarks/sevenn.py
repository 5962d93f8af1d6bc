"""Are SevenNet's published models read exactly, and how much faster are they here than in sevenn itself, on a CPU?

    python benchmarks/sevenn.py parity --peer-python PEER/bin/python       # appends to results/sevenn_parity.csv
    python benchmarks/sevenn.py speed --peer-python PEER/bin/python        # appends to results/sevenn.csv

Both take the checkpoints from the peer's package (pip install sevenn==0.13.0 in an environment of its own) and float32.
`parity`: energies, forces and stress of structures of MAD (shared/data/mad_1k, those of known elements and few enough atoms), each
model in processes of its own; the tables of the frozen model included. `speed`: calls of the ASE calculators, neighbour lists included,
atoms moving a little from call to call, as in molecular dynamics (ours keeps its list while none has moved half a skin, theirs is made
anew); the two take turns, the first round warms up; medians and their ratio. Structures are 192 atoms of water
(shared/data/deepmd_water) and rattled CaTiO3 with 135 atoms. It ends with status 1 where `parity` exceeds the tolerances.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import statistics
import subprocess
import sys
import tempfile
import time
from io import StringIO
from pathlib import Path

import ase.io
import ase.spacegroup
import numpy as np
import torch

from equimol.bench import append_rows, describe_surroundings
from equimol.convert.sevenn import read_sevenn
from equimol.interfaces.ase import EquiMolCalculator

RESULTS = Path(__file__).parent / "results"
CHECKPOINTS = {  # in the package: folder and file, modals
    "SevenNet-0 (11Jul2024)": ("SevenNet_0__11Jul2024/checkpoint_sevennet_0.pth", [None]),
    "SevenNet-0 (22May2024)": ("SevenNet_0__22May2024/checkpoint_sevennet_0.pth", [None]),
    "SevenNet-l3i5": ("SevenNet_l3i5/checkpoint_l3i5.pth", [None]),
    "SevenNet-MF-0": ("SevenNet_MF_0/checkpoint_sevennet_mf_0.pth", ["PBE", "R2SCAN"]),
}
ENERGY, FORCE, STRESS = 1e-5, (1e-4, 1e-5), 1e-5  # eV/atom; eV/Å, and of the largest force; eV/Å³


class Peer:
    """sevenn's calculator in a process of its own."""

    def __init__(self, python: str, checkpoint: Path, structures: Path, modal: str | None) -> None:
        script = Path(__file__).parent / "peers" / "sevenn_calls.py"
        command = [python, "-W", "ignore", str(script), str(checkpoint), str(structures), *([modal] if modal else [])]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._answer()

    def ask(self, question: str):
        self.process.stdin.write(question + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self):
        for line in self.process.stdout:
            try:
                return json.loads(line)
            except ValueError:
                continue  # what it prints while it loads
        raise SystemExit("the peer stopped; run its script by hand to see why")

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


class Ours:
    """EquiMol's calculator with the same interface."""

    def __init__(self, checkpoint: Path, structures: Path, modal: str | None) -> None:
        self.frames = ase.io.read(structures, index=":", format="extxyz")
        self.calculator = EquiMolCalculator(read_sevenn(checkpoint, modal))

    def numbers(self, number: int) -> dict:
        atoms = self.frames[number].copy()
        atoms.calc = self.calculator
        return {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces(), "stress": atoms.get_stress()}

    def time(self, number: int, calls: int, seed: int) -> list[float]:
        start = self.frames[number]
        atoms = start.copy()
        atoms.calc = self.calculator
        random, seconds = np.random.default_rng(seed), []
        for _ in range(calls):
            atoms.positions = start.positions + random.normal(scale=0.01, size=start.positions.shape)
            begin = time.perf_counter()
            atoms.get_forces(), atoms.get_potential_energy()
            seconds.append(time.perf_counter() - begin)
        return seconds


def parity(args: argparse.Namespace, package: Path) -> bool:
    rows = []
    for name in args.models:
        file, modals = CHECKPOINTS[name]
        for modal in modals:
            known = set(read_sevenn(package / file).elements)
            frames = [f for f in _read(args.data / "mad_1k" / "mad_1k.xyz.xz") if len(f) <= args.atoms and set(f.numbers.tolist()) <= known]
            frames = frames[:: max(1, len(frames) // args.structures)][: args.structures]
            with tempfile.TemporaryDirectory() as folder:
                path = _write(frames, Path(folder) / "structures.xyz")
                peer, ours = Peer(args.peer_python, package / file, path, modal), Ours(package / file, path, modal)
                row = {"model": name, "modal": modal or "", "structures": len(frames), "atoms": sum(map(len, frames))}
                rows.append(row | _differences(peer, ours, len(frames)) | describe_surroundings(torch.float32))
                peer.close()
            print(rows[-1], flush=True)
    append_rows(RESULTS / "sevenn_parity.csv", rows)
    return all(row["share_of_tolerance"] <= 1 for row in rows)


def _differences(peer: Peer, ours: Ours, count: int) -> dict:
    worst = {"energy_ev_per_atom": 0.0, "force_ev_per_a": 0.0, "stress_ev_per_a3": 0.0}
    share = 0.0
    for n in range(count):
        theirs, found = peer.ask(f"numbers {n}"), ours.numbers(n)
        forces = np.array(theirs["forces"])
        energy = abs(found["energy"] - theirs["energy"]) / len(forces)
        force = np.abs(found["forces"] - forces)
        stress = np.abs(found["stress"] - np.array(theirs["stress"])).max()
        allowed = FORCE[0] + FORCE[1] * np.abs(forces).max()
        for key, value in zip(worst, (energy, force.max(), stress), strict=True):
            worst[key] = max(worst[key], float(value))
        share = max(share, energy / ENERGY, float(force.max() / allowed), stress / STRESS)
    return {key: float(f"{value:.2e}") for key, value in worst.items()} | {"share_of_tolerance": round(float(share), 3)}


def speed(args: argparse.Namespace, package: Path) -> bool:
    water = _read(args.data / "deepmd_water" / "valid_data_3.xyz.xz", ":1")[0]
    crystal = ase.spacegroup.crystal(
        ["Ca", "Ti", "O"], [(0, 0, 0), (0.5, 0.5, 0.5), (0.5, 0.5, 0)], spacegroup=221, cellpar=[3.85] * 3 + [90] * 3
    ) * (3, 3, 3)
    crystal.positions += np.random.default_rng(0).normal(scale=0.05, size=crystal.positions.shape)
    rows = []
    for name in args.models:
        file, (modal, *_) = CHECKPOINTS[name]
        with tempfile.TemporaryDirectory() as folder:
            path = _write([water, crystal], Path(folder) / "structures.xyz")
            peer, ours = Peer(args.peer_python, package / file, path, modal), Ours(package / file, path, modal)
            for number, (label, atoms) in enumerate((("water", water), ("CaTiO3", crystal))):
                seconds: dict[str, list[float]] = {"equimol": [], "sevenn": []}
                for seed in range(args.rounds):
                    timed = {"equimol": ours.time(number, args.calls, seed), "sevenn": peer.ask(f"time {number} {args.calls} {seed}")}
                    for code, found in timed.items():
                        seconds[code] += found if seed else []
                rows += _summary(name, label, len(atoms), seconds)
            peer.close()
    append_rows(RESULTS / "sevenn.csv", rows)
    return True


def _summary(name: str, label: str, atoms: int, seconds: dict[str, list[float]]) -> list[dict]:
    rows, theirs = [], statistics.median(seconds["sevenn"])
    for code, found in seconds.items():
        low, _, high = (1e3 * q for q in statistics.quantiles(found, n=4))
        median = statistics.median(found)
        row = {"code": code, "model": name, "structure": label, "atoms": atoms, "median_ms": round(1e3 * median, 2)}
        row |= {"quartiles_ms": f"{low:.2f}-{high:.2f}", "times_faster_than_peer": round(theirs / median, 2)}
        print(row, flush=True)
        rows.append(row | describe_surroundings(torch.float32) | {"threads": torch.get_num_threads()})
    return rows


def _read(path: Path, index: str = ":") -> list[ase.Atoms]:
    with lzma.open(path, "rt") as file:
        return ase.io.read(StringIO(file.read()), index=index, format="extxyz")


def _write(frames: list[ase.Atoms], path: Path) -> Path:
    """Structures without labels, as both codes then read them."""
    bare = [ase.Atoms(numbers=f.numbers, positions=f.positions, cell=f.cell, pbc=f.pbc) for f in frames]
    ase.io.write(path, bare, format="extxyz")
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("parity", "speed"))
    parser.add_argument("--peer-python", required=True, help="of an environment with sevenn")
    parser.add_argument("--models", nargs="+", choices=CHECKPOINTS, help="(default: all, of speed SevenNet-0)")
    default = os.environ.get("EQUIMOL_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data"
    parser.add_argument("--data", type=Path, default=default, help="folder of the public data sets")
    parser.add_argument("--structures", type=int, default=60, help="of parity")
    parser.add_argument("--atoms", type=int, default=60, help="the most that a structure of parity may have")
    parser.add_argument("--rounds", type=int, default=5, help="of speed; the first one warms up and is not counted")
    parser.add_argument("--calls", type=int, default=4, help="of each in a round")
    args = parser.parse_args()
    args.models = args.models or (list(CHECKPOINTS) if args.command == "parity" else list(CHECKPOINTS)[:1])
    where = "import sevenn, pathlib; print(pathlib.Path(sevenn.__file__).parent / 'pretrained_potentials')"
    found = subprocess.run([args.peer_python, "-I", "-W", "ignore", "-c", where], capture_output=True, text=True, check=True)
    package = Path(found.stdout.split("\n")[-2])
    return 0 if {"parity": parity, "speed": speed}[args.command](args, package) else 1


if __name__ == "__main__":
    sys.exit(main())
