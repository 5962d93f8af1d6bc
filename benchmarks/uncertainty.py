"""Do intervals of last-layer uncertainty hold what they promise, near the training data and far from them, and what do they cost?

    python benchmarks/uncertainty.py RUN TEST [TEST ...]    # a finished run, and files with held-out frames

Fits the uncertainty of the run's model on its training frames, scales it by its validation frames, and appends one row for each test
file to benchmarks/results/uncertainty.csv: root mean square of error and of sigma, the share of energies within the nominal 50, 90 and
99 % intervals, the rank correlation of |error| and sigma, and the processor time of a step through the ASE calculator without and with
uncertainty (two calculators taking turns call by call, of the first test frame, atoms moved a little between calls; medians). The 90 %
interval is also measured with another scale: of 500 random halves of the test set, each gives alpha for the other half (`rescaled`, mean),
as where the user calibrates with frames of the very kind that will come.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
from ase import Atoms

from equimol.bench import append_rows, describe_surroundings
from equimol.data.formats import read
from equimol.data.frame import Frame
from equimol.interfaces.ase import EquiMolCalculator
from equimol.models import core, load
from equimol.training.evaluate import evaluate
from equimol.training.uncertainty import fit_uncertainty, frames_of_run

RESULTS = Path(__file__).parent / "results" / "uncertainty.csv"
INTERVALS = {50: 0.6744897501960817, 90: 1.6448536269514722, 99: 2.5758293035489004}
HALVES = 500


def coverage(errors: np.ndarray, sigma: np.ndarray) -> dict[str, float]:
    """Percent of the errors within each nominal interval; the 90 % one with the scale of random other halves, too."""
    found = {f"within_{p}_percent": 100 * float((np.abs(errors) <= z * sigma).mean()) for p, z in INTERVALS.items()}
    random, rescaled, scores = np.random.default_rng(0), [], np.abs(errors / sigma)
    for _ in range(HALVES):
        order = random.permutation(len(scores))
        given, left = scores[order[: len(order) // 2]], scores[order[len(order) // 2 :]]
        rescaled.append(100 * (left <= INTERVALS[90] * np.sqrt((given**2).mean())).mean())
    return found | {"within_90_percent_rescaled": float(np.mean(rescaled))}


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.argsort().argsort(), b.argsort().argsort())[0, 1])


def times(models: list, frame: Frame, calls: int) -> list[float]:
    """Median ms of processor time of a calculator's step with each model, taking turns call by call, the order changing."""
    atoms = [Atoms(frame.numbers, frame.positions, cell=frame.cell, pbc=frame.pbc) for _ in models]
    for one, model in zip(atoms, models, strict=True):
        one.calc = EquiMolCalculator(model)
    random, seconds = np.random.default_rng(0), [[] for _ in models]
    for call in range(calls + 20):  # the first warm up
        moved = frame.positions + random.normal(scale=0.01, size=frame.positions.shape)
        for n in (0, 1) if call % 2 else (1, 0):
            atoms[n].positions = moved
            begin = time.process_time()
            atoms[n].get_forces()
            if call >= 20:
                seconds[n].append(time.process_time() - begin)
    return [1e3 * statistics.median(one) for one in seconds]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("tests", type=Path, nargs="+")
    parser.add_argument("--calls", type=int, default=300)
    args = parser.parse_args()
    plain = load(args.run / "model.equimol")
    train, valid = frames_of_run(args.run)
    begin = time.process_time()
    model = fit_uncertainty(plain, train, valid)
    seconds, rows = time.process_time() - begin, []
    for path in args.tests:
        frames = read([str(path)]).frames
        result = evaluate(model, frames)
        errors = result.predictions["energy_pred"] - result.predictions["energy_true"]
        sigma = result.predictions["energy_uncertainty"]
        without, with_it = times([plain, model], frames[0], args.calls)
        row = {
            "model": core(model).name,
            "test": path.stem,
            "features": len(model.factor),
            "train_frames": len(train),
            "calibration_frames": len(valid),
            "test_frames": len(frames),
            "atoms": len(frames[0].numbers),
            "fit_s": round(seconds, 2),
            "error_rms_mev": round(1e3 * float(np.sqrt((errors**2).mean())), 2),
            "sigma_rms_mev": round(1e3 * float(np.sqrt((sigma**2).mean())), 2),
            **{name: round(value, 1) for name, value in coverage(errors, sigma).items()},
            "rank_correlation": round(rank_correlation(np.abs(errors), sigma), 3),
            "ms_without": round(without, 3),
            "ms_with": round(with_it, 3),
            "more_time_percent": round(100 * (with_it / without - 1), 2),
            **describe_surroundings(model.dtype),
        }
        rows.append(row)
        print(*(f"{key}={value}" for key, value in list(row.items())[:18]))
    append_rows(RESULTS, rows)


if __name__ == "__main__":
    main()
