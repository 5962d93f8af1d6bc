"""From quantum-chemistry data to molecular dynamics in five minutes. (`equimol demo`)"""

import contextlib
import io
import time
from pathlib import Path

import numpy as np

from equimol.bench import quick as time_products
from equimol.data.formats import read
from equimol.interfaces.ase_md import run_md
from equimol.models.file import load
from equimol.training.config import config_from
from equimol.training.fit import fit

DATA = Path(__file__).parent / "demo_data" / "ethanolamine_gfn2.xyz.xz"


def run(out: str | Path = "equimol-demo", minutes: float = 2.0, md_steps: int = 1000, quiet: bool = False) -> Path:
    """Train on the packaged ethanolamine frames for about `minutes`, run MD, time the products; returns the path of the report.

    Everything goes into `out`, or where that exists into `out`-2, `out`-3, ...
    A training of two minutes shows the machinery, not the accuracy that the architecture reaches in an hour.
    """
    with contextlib.redirect_stdout(io.StringIO()) if quiet else contextlib.nullcontext():
        return _run(Path(out), minutes, md_steps)


def _run(out: Path, minutes: float, md_steps: int) -> Path:
    start = time.perf_counter()
    out = _unused(out)
    _say(f"1/3 training `mace` for about {minutes:g} min on {DATA.name}: GFN2-xTB energies and forces of ethanolamine, 300 and 600 K")
    run_folder = fit(config_from({"data": str(DATA), "time": f"{round(60 * minutes)}s", "out": str(out), "level_of_theory": "GFN2-xTB"}))

    _say(f"2/3 {md_steps} steps of molecular dynamics at 300 K with the new potential, through ASE")
    model = load(run_folder / "model.equimol")
    trajectory = run_folder / "md.extxyz"
    run_md(model, starting_structure(), temperature=300.0, steps=md_steps, timestep_fs=0.5, trajectory=trajectory)

    _say("3/3 the three tensor products against e3nn")
    lmaxes = (1, 2, 3, 4) if minutes >= 1 else (1,)  # a trial run need not wait for the large ones
    time_products(lmaxes, csv=run_folder / "tensor_products.csv")

    report = run_folder / "report.html"
    _say(f"done in {(time.perf_counter() - start) / 60:.1f} min")
    print(f"report      {report}\nmodel       {run_folder / 'model.equimol'}\ntrajectory  {trajectory}")
    print("your own data: equimol train YOUR.xyz --time 1h")
    return report


def starting_structure():
    """The first molecule of the packaged data as ase.Atoms."""
    from ase import Atoms

    frame = next(frame for frame in read(DATA).frames if len(frame.numbers) > 1)
    return Atoms(numbers=np.asarray(frame.numbers), positions=np.asarray(frame.positions))


def _unused(folder: Path) -> Path:
    """The folder, or the first of folder-2, folder-3, ... that does not exist: a second demo keeps the first one."""
    candidate, number = folder, 1
    while candidate.exists():
        number += 1
        candidate = folder.with_name(f"{folder.name}-{number}")
    return candidate


def _say(line: str) -> None:
    print(f"\n== {line}", flush=True)
