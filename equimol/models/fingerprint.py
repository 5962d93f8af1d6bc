"""A model's fingerprint: its energies and forces on a few fixed structures, by which a copy of it is recognised.

A wrong cast, a wrong kernel or a library that changed its mind shows here before it shows in somebody's simulation.
"""

from __future__ import annotations

import copy
import math
from itertools import chain, cycle, islice
from typing import Any, NamedTuple

import numpy as np
import torch

from equimol.data.graph import AtomicGraph
from equimol.models.base import Potential

# The one place for the tolerances of a fingerprint: eV per atom for energies and eV/Å for forces, in units of the largest force
# of the fingerprint (at least 1 eV/Å). A cast to bfloat16 or TF32 is off by 1e-3 to 1e-2 of it.
FINGERPRINT_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-9}
ROUNDING_MARGIN = 10.0  # a float32 copy may be so many times farther off than it was where the file was written

_CLUSTER_SIZE = 8
_INPUTS = {"charge": 0.0, "spin": 1.0}  # what a neutral singlet is given where a model asks for it


class Deviation(NamedTuple):
    """How far a model is from its fingerprint, and how far it may be."""

    energy: float  # eV per atom, the largest over the structures
    force: float  # eV/Å, the largest over the components
    tolerance: float  # for both

    @property
    def accepted(self) -> bool:
        return self.energy <= self.tolerance and self.force <= self.tolerance  # False for NaN


def device_of(model: torch.nn.Module) -> torch.device:
    """Where a model's numbers are. A model without any is at home on the CPU."""
    first = next(chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if first is None else first.device


def fingerprint_structures(elements: tuple[int, ...], inputs: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """Small structures that hold every element of a model: clusters of eight atoms and one crystal.

    Positions follow formulas and not random numbers; neighbours are 1.6 to 2.5 Å apart. The numbers go into the model file, so
    these formulas may change without making an older file unreadable.
    """
    numbers = sorted(int(z) for z in elements)
    given = {name: _INPUTS[name] for name in inputs if name in _INPUTS}
    structures = []
    for start in range(0, len(numbers), _CLUSTER_SIZE):
        chosen = list(islice(cycle(numbers[start : start + _CLUSTER_SIZE]), _CLUSTER_SIZE))
        structures.append(_structure(chosen, _helix(_CLUSTER_SIZE), np.zeros((3, 3)), False, given))
    cell = np.array([[4.4, 0.0, 0.0], [0.5, 4.2, 0.0], [-0.3, 0.6, 4.6]])
    structures.append(_structure(list(islice(cycle(numbers), 8)), _rattled_grid(cell), cell, True, given))
    return structures


def take_fingerprint(model: Potential) -> dict[str, Any]:
    """The JSON-able fingerprint of a model: structures, energies and forces in float64, and what float32 makes of them.

    `float32_rounding` is how far a float32 copy was from the float64 numbers here: a deep network may round by more than the
    named tolerance, and is then allowed a multiple of what was seen.
    """
    structures = fingerprint_structures(model.elements, model.inputs)
    reference = _evaluate(copy.deepcopy(model).to(device="cpu", dtype=torch.float64), structures)
    rounded = _evaluate(copy.deepcopy(model).to(device="cpu", dtype=torch.float32), structures)
    energy, force = _distances(rounded, reference, structures)
    return {
        "structures": structures,
        "energies": [energy for energy, _ in reference],
        "forces": [forces.tolist() for _, forces in reference],
        "float32_rounding": max(energy, force),
    }


def compare_fingerprint(model: Potential, fingerprint: dict[str, Any], dtype: torch.dtype) -> Deviation:
    """How far `model` is from `fingerprint`, held against the tolerance of `dtype`.

    `dtype` is the coarser of the file's and the model's: a float32 model that runs in float64 is still a float32 model.
    """
    structures = fingerprint["structures"]
    stored = [(e, np.array(f, dtype=np.float64)) for e, f in zip(fingerprint["energies"], fingerprint["forces"], strict=True)]
    energy, force = _distances(_evaluate(model, structures), stored, structures)
    scale = max(1.0, *(np.abs(forces).max().item() for _, forces in stored))
    tolerance = FINGERPRINT_TOLERANCE[dtype] * scale
    if dtype == torch.float32:
        tolerance = max(tolerance, ROUNDING_MARGIN * fingerprint["float32_rounding"])
    return Deviation(energy, force, tolerance)


def _evaluate(model: Potential, structures: list[dict[str, Any]]) -> list[tuple[float, np.ndarray]]:
    """Energy [eV] and forces [atoms, 3] of each structure, in the dtype and on the device of the model."""
    device, training = device_of(model), model.training
    model.eval()
    try:
        results = []
        for s in structures:
            graph = AtomicGraph.build(
                np.array(s["positions"]), np.array(s["numbers"]), np.array(s["cell"]), np.array(s["pbc"]), model.cutoff, **s["inputs"]
            )
            out = model(graph.to(device))
            results.append((out["energy"].sum().item(), out["forces"].detach().double().cpu().numpy()))
        return results
    finally:
        model.train(training)


def _distances(found: list, expected: list, structures: list) -> tuple[float, float]:
    """Largest difference of energies per atom and of force components; NaN if either has one."""
    energy = [abs(a[0] - b[0]) / len(s["numbers"]) for a, b, s in zip(found, expected, structures, strict=True)]
    force = [np.abs(a[1] - b[1]).max().item() for a, b in zip(found, expected, strict=True)]
    worst = [math.nan if any(math.isnan(x) for x in values) else max(values) for values in (energy, force)]
    return worst[0], worst[1]


def _structure(numbers: list[int], positions: np.ndarray, cell: np.ndarray, periodic: bool, inputs: dict[str, float]) -> dict[str, Any]:
    return {
        "numbers": numbers,
        "positions": positions.tolist(),
        "cell": cell.tolist(),
        "pbc": [periodic] * 3,
        "inputs": inputs,
    }


def _helix(size: int) -> np.ndarray:
    """Atoms on an uneven helix, [size, 3] in Å; without any symmetry, so that every component of a feature is asked for."""
    i = np.arange(size)
    radius = 1.05 + 0.08 * np.sin(3.0 * i)
    return np.stack([radius * np.cos(1.9 * i), radius * np.sin(1.9 * i), 0.66 * i + 0.05 * np.cos(2.3 * i)], axis=1)


def _rattled_grid(cell: np.ndarray) -> np.ndarray:
    """Eight atoms near the half-integer points of a cell, [8, 3] in Å, each displaced by up to 0.1 Å."""
    grid = np.array([[a, b, c] for a in (0.0, 0.5) for b in (0.0, 0.5) for c in (0.0, 0.5)])
    i = np.arange(8)[:, None]
    return grid @ cell + 0.1 * np.sin(2.4 * i + 1.7 * np.arange(3) + 0.3 * i * np.arange(3))
