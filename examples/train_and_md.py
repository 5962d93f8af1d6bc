"""Train a potential on your own file and run molecular dynamics with it, from Python instead of the command line.

    python examples/train_and_md.py data.xyz --time 10m

Without a file it takes the small data set that comes with EquiMol.
"""

import argparse
from pathlib import Path

import ase.io

import equimol.demo
from equimol.interfaces.ase_md import run_md
from equimol.training.config import config_from
from equimol.training.fit import fit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", default=equimol.demo.DATA)
    parser.add_argument("--time", default="1m", help="training budget: 30s, 10m, 2h")
    parser.add_argument("--steps", type=int, default=200, help="MD steps")
    parser.add_argument("--out", type=Path, default=Path("runs/example"))
    options = parser.parse_args()

    run_folder = fit(config_from({"data": str(options.data), "time": options.time, "out": str(options.out)}))
    model = equimol.load(run_folder / "model.equimol")
    atoms = ase.io.read(options.data, index=-1)  # the last frame: the first ones may be isolated atoms
    run_md(model, atoms, temperature=300.0, steps=options.steps, trajectory=run_folder / "md.extxyz")
    print(f"see {run_folder / 'report.html'}")


if __name__ == "__main__":
    main()
