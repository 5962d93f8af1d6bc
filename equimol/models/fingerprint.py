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
from ase.data import covalent_radii

from equimol.data.graph import AtomicGraph
from equimol.models.base import Potential

# The one place for the tolerances of a fingerprint: eV per atom for energies and eV/Å for forces, times the largest force of the
# structure where that is more than 1 eV/Å. A cast to bfloat16 or TF32 is off by 1e-3 to 1e-2 of it.
FINGERPRINT_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-9}
ROUNDING_MARGIN = 10.0  # a float32 copy may be so many times farther off than it was where the file was written

_CLUSTER_SIZE = 8
_INPUTS = {"charge": 0.0, "spin": 1.0, "data_set": 0.0}  # what a neutral singlet is given where a model asks for it


class Deviation(NamedTuple):
    """How far a model is from its fingerprint in one structure, and how far it may be."""

    energy: float  # eV per atom
    force: float  # eV/Å, the largest component
    tolerance: float  # for both

    @property
    def share(self) -> float:
        """Of the tolerance that is used up: accepted up to one, infinite for NaN."""
        worst = max(self.energy, self.force) / self.tolerance
        return math.inf if math.isnan(self.energy) or math.isnan(self.force) else worst


def device_of(model: torch.nn.Module) -> torch.device:
    """Where a model's numbers are. A model without any is at home on the CPU."""
    first = next(chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if first is None else first.device


def fingerprint_structures(elements: tuple[int, ...], inputs: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """Small structures that hold every element of a model: clusters of eight atoms and one crystal.

    Positions follow formulas and not random numbers; neighbours are 1.3 to 3.5 Å apart, the more the larger their atoms are. All
    numbers go into the model file, so these formulas may change without making an older file unreadable.
    """
    numbers = sorted(int(z) for z in elements)
    given = {name: _INPUTS[name] for name in inputs if name in _INPUTS}
    structures = []
    for start in range(0, len(numbers), _CLUSTER_SIZE):
        chosen = list(islice(cycle(numbers[start : start + _CLUSTER_SIZE]), _CLUSTER_SIZE))
        structures.append(_structure(chosen, _size(chosen) * _helix(_CLUSTER_SIZE), np.zeros((3, 3)), False, given))
    chosen = list(islice(cycle(numbers), 8))
    cell = _size(chosen) * np.array([[4.4, 0.0, 0.0], [0.5, 4.2, 0.0], [-0.3, 0.6, 4.6]])
    structures.append(_structure(chosen, _rattled_grid(cell), cell, True, given))
    return structures


def take_fingerprint(model: Potential) -> dict[str, Any]:
    """The JSON-able fingerprint of a model: structures, energies and forces in float64, and what float32 makes of them.

    `float32_rounding` is how far a float32 copy was from the float64 numbers here, in the units of the tolerance: a deep network
    may round by more than the named tolerance, and is then allowed a multiple of what was seen.
    """
    structures = fingerprint_structures(model.elements, model.inputs)
    reference = _evaluate(copy.deepcopy(model).to(device="cpu", dtype=torch.float64), structures)
    rounded = _evaluate(copy.deepcopy(model).to(device="cpu", dtype=torch.float32), structures)
    return {
        "structures": structures,
        "energies": [energy for energy, _ in reference],
        "forces": [forces.tolist() for _, forces in reference],
        "float32_rounding": _worst(rounded, reference, 1.0).share,
    }


def compare_fingerprint(model: Potential, fingerprint: dict[str, Any], dtype: torch.dtype) -> Deviation:
    """How far `model` is from `fingerprint`, in the structure where that is most of the tolerance of `dtype`.

    `dtype` is the coarser of the file's and the model's: a float32 model that runs in float64 is still a float32 model.
    """
    structures = fingerprint["structures"]
    stored = [(e, np.array(f, dtype=np.float64)) for e, f in zip(fingerprint["energies"], fingerprint["forces"], strict=True)]
    tolerance = FINGERPRINT_TOLERANCE[dtype]
    if dtype == torch.float32:
        tolerance = max(tolerance, ROUNDING_MARGIN * fingerprint["float32_rounding"])
    return _worst(_evaluate(model, structures), stored, tolerance)


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


def _worst(found: list, expected: list, tolerance: float) -> Deviation:
    deviations = []
    for (energy, forces), (energy0, forces0) in zip(found, expected, strict=True):
        scale = max(1.0, np.abs(forces0).max().item())
        deviations.append(Deviation(abs(energy - energy0) / len(forces0), np.abs(forces - forces0).max().item(), tolerance * scale))
    return max(deviations, key=lambda deviation: deviation.share)


def _size(numbers: list[int]) -> float:
    """A length to make room for these atoms, so that a screened nuclear repulsion does not drown what a network has learned."""
    return float(np.clip(covalent_radii[numbers].mean() / 0.85, 0.8, 1.6))


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
