"""Does a trained potential conserve energy, and does it survive heat? NVE and Langevin runs of one molecule through ASE.

    python benchmarks/md_stability.py MODEL STRUCTURE.xyz [--nve-ps 20] [--langevin-ps 10] [--runs 5]

Prints drift, ms per step and the largest bond stretch; appends a row per run to benchmarks/results/md_stability.csv.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.data import covalent_radii

from equimol.bench import append_rows, describe_surroundings
from equimol.interfaces.ase_md import MDError, read_structure, run_md

RESULTS = Path(__file__).parent / "results" / "md_stability.csv"


def bonds(atoms: Atoms) -> np.ndarray:
    """Pairs closer than 1.25 times the sum of their covalent radii: [bonds, 2]."""
    radii = covalent_radii[atoms.numbers]
    near = atoms.get_all_distances() < 1.25 * (radii[:, None] + radii[None])
    return np.argwhere(np.triu(near, 1))


def longest_stretch(start: Atoms, end: Atoms) -> float:
    """Largest bond length at the end over that at the start: beyond about 1.5 the molecule has fallen apart."""
    pairs = bonds(start)
    lengths = [np.linalg.norm(a.positions[pairs[:, 0]] - a.positions[pairs[:, 1]], axis=1) for a in (start, end)]
    return float((lengths[1] / lengths[0]).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("structure", type=Path)
    parser.add_argument("--nve-ps", type=float, default=20)
    parser.add_argument("--langevin-ps", type=float, default=10)
    parser.add_argument("--runs", type=int, default=5, help="Langevin runs, each with another seed")
    parser.add_argument("--timestep", type=float, default=0.5, help="fs")
    args = parser.parse_args()
    start = read_structure(args.structure)
    cases = [("nve", 300.0, dtype, args.nve_ps, 0) for dtype in ("float32", "float64") if args.nve_ps]
    cases += [("langevin", 600.0, "float32", args.langevin_ps, seed) for seed in range(args.runs) if args.langevin_ps]
    for thermostat, temperature, dtype, picoseconds, seed in cases:
        steps = round(1000 * picoseconds / args.timestep)
        row = {"model": args.model.parent.name, "thermostat": thermostat, "temperature": temperature, "seed": seed}
        row |= {"picoseconds": picoseconds, "timestep_fs": args.timestep, "atoms": len(start)}
        settings = {"seed": seed, "dtype": dtype, "progress": False, "log": lambda text: None}
        measured = dict.fromkeys(("drift_ev_per_atom_ps", "ms_per_step", "mean_temperature", "longest_bond_stretch"), "")
        try:
            result = run_md(args.model, start, temperature, steps, args.timestep, thermostat, **settings)
            measured["drift_ev_per_atom_ps"] = "" if result.drift is None else f"{result.drift:.2e}"
            measured |= {"ms_per_step": round(result.ms_per_step, 2), "mean_temperature": round(result.mean_temperature)}
            measured["longest_bond_stretch"] = round(longest_stretch(start, result.atoms), 2)
            row |= measured | {"outcome": "ok"}
        except MDError as error:
            row |= measured | {"outcome": str(error)}
        print(row | {"dtype": dtype}, flush=True)
        append_rows(RESULTS, [row | describe_surroundings(getattr(torch, dtype))])


if __name__ == "__main__":
    main()
