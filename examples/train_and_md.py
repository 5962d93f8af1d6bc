"""Train a potential on your own file and run molecular dynamics with it, from Python instead of the command line.

    python examples/train_and_md.py data.xyz --time 10m

Without a file it takes the small data set that comes with EquiMol.
"""

import argparse
from pathlib import Path

import equimol.demo
from equimol.interfaces.ase_md import run_md
from equimol.training.config import load_config
from equimol.training.fit import fit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", default=equimol.demo.DATA)
    parser.add_argument("--time", default="1m", help="training budget: 30s, 10m, 2h")
    parser.add_argument("--steps", type=int, default=200, help="MD steps")
    parser.add_argument("--out", type=Path, default=Path("runs/example"))
    options = parser.parse_args()

    run_folder = fit(load_config(None, [f"data={options.data}", f"time={options.time}", f"out={options.out}"]))
    model = equimol.load(Path(run_folder) / "model.equimol")
    atoms = equimol.demo.starting_structure()
    run_md(model, atoms, temperature=300.0, steps=options.steps, timestep_fs=0.5, trajectory=options.out / "md.extxyz")
    print(f"see {options.out / 'report.html'}")


if __name__ == "__main__":
    main()
