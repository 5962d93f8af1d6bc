"""Errors of predictions: sums that any number of batches (or processes) add to, and the table made of them.

Figures are named after what they are and their unit, as logs, files and the report show them: `energy_mae_mev_per_atom`,
`energy_rmse_mev`, `forces_rmse_mev_per_angstrom`, `forces_cosine`, `stress_mae_mev_per_angstrom3`, and `within_threshold_percent`: the
share of the structures whose energy is right to 0.02 eV and each force component of a free atom to 0.03 eV/Å (EFwT of the Open Catalyst
Project, Chanussot et al. 2021). Of a model that says how uncertain its energies are, `energy_coverage_percent` is the share of the
structures whose energy is within the nominal 90 % interval, that of a normal distribution.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from equimol.data.properties import PROPERTIES
from equimol.models.uncertainty import ENERGY_UNCERTAINTY
from equimol.training.loss import EXTENSIVE, atoms_per_system, property_error
from equimol.training.processes import Processes

COSINE = "forces_cosine"
WITHIN = "within_threshold"
COVERAGE = "energy_coverage"
Z90 = 1.6448536269514722  # standard deviations to either side of the mean that hold 90 % of a normal distribution
ENERGY_THRESHOLD, FORCE_THRESHOLD = 0.02, 0.03  # eV, eV/Å


class ErrorSums:
    """Running counts and sums of absolute and squared errors; `result()` turns them into MAE and RMSE.

    Everything is a float64 sum over entries, so that batches of any size give the same figures.
    """

    def __init__(self, names: Iterable[str] = tuple(PROPERTIES)) -> None:
        self.names = tuple(names)
        self.sums: dict[str, Tensor] = {}  # per quantity: entries, sum of |error|, sum of error²

    def update(self, prediction: Mapping[str, Tensor], graph: Any) -> None:
        for name in self.names:
            if name not in prediction:
                continue
            error, labelled = property_error(name, prediction[name].detach(), graph)
            error = error[labelled].double()
            self._add(name, error)
            if name in EXTENSIVE:
                self._add(f"{name}_per_atom", error / atoms_per_system(graph)[labelled])
            if name == "energy" and ENERGY_UNCERTAINTY in prediction:
                self._add(COVERAGE, (error.abs() <= Z90 * prediction[ENERGY_UNCERTAINTY].detach()[labelled]).double())
            if name == "forces":
                label = graph.forces[labelled].double()
                directed = label.any(dim=-1)  # a force of exactly zero has no direction to compare with
                error, label = error[directed], label[directed]
                self._add(COSINE, 1 - torch.nn.functional.cosine_similarity(error + label, label, dim=-1))  # never negative

        if {"energy", "forces"} <= prediction.keys() and {"energy", "forces"} <= set(self.names):
            self._add(WITHIN, _within(prediction, graph))

    def _add(self, quantity: str, error: Tensor) -> None:
        if error.numel():
            sums = torch.stack([torch.full_like(error.sum(), error.numel()), error.abs().sum(), error.square().sum()]).cpu()
            self.sums[quantity] = self.sums.get(quantity, 0) + sums

    def of_all(self, group: Processes) -> "ErrorSums":
        """The sums over all processes, in each of them."""
        if group.count == 1:
            return self
        quantities = list(dict.fromkeys(quantity for quantity, _, _, _ in _figures()))
        none = torch.zeros(3, dtype=torch.float64)
        whole = ErrorSums(self.names)
        total = group.sum(torch.stack([self.sums.get(quantity, none) for quantity in quantities]))
        whole.sums = {quantity: sums for quantity, sums in zip(quantities, total, strict=True) if sums[0] > 0}
        return whole

    def result(self) -> dict[str, float]:
        """The figures in meV and Å, in the order of the table; of labels that never came there is none."""
        found = {quantity: sums.tolist() for quantity, sums in self.sums.items()}
        figures = {}
        for quantity, kind, key, factor in _figures():
            if quantity in found:
                count, absolute, square = found[quantity]
                mean = absolute / count
                mean = {"mae": mean, "share": mean, "rmse": (square / count) ** 0.5, "cosine": 1 - mean}[kind]
                figures[key] = factor * mean
        return figures


def _within(prediction: Mapping[str, Tensor], graph: Any) -> Tensor:
    """1 or 0 for each system with an energy and the force on some atom."""
    error, energies = property_error("energy", prediction["energy"].detach(), graph)
    components, forces = property_error("forces", prediction["forces"].detach(), graph)
    largest, counted = torch.zeros_like(error), torch.zeros_like(energies)
    largest.scatter_reduce_(0, graph.system, components.abs().amax(dim=-1).to(error.dtype), "amax")
    counted[graph.system[forces]] = True
    right = (error.abs() <= ENERGY_THRESHOLD) & (largest <= FORCE_THRESHOLD)
    return right[energies & counted].double()


def weighted_error(errors: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """The loss, always of squares, that these errors amount to: the figure by which the best weights are chosen. NaN without labels."""
    terms = []
    for quantity, kind, key, factor in _figures():
        name = quantity.removesuffix("_per_atom")
        of_loss = kind == "rmse" and (quantity != name) == (name in EXTENSIVE)  # extensive errors count per atom
        if of_loss and key in errors:
            terms.append(weights.get(name, 0.0) * (errors[key] / factor) ** 2)
    return sum(terms) if terms else math.nan


def error_table(errors: Mapping[str, Mapping[str, float]]) -> str:
    """Text table, one line per split and one column per figure."""
    keys = [key for _, _, key, _ in _figures() if any(key in of_split for of_split in errors.values())]
    titles = [_title(key) for key in keys]
    rows = [["split", *(title for title, _ in titles)], ["", *(unit for _, unit in titles)]]
    for split, figures in errors.items():
        rows.append([split, *(f"{figures[key]:.{4 if key == COSINE else 2}f}" if key in figures else "-" for key in keys)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(keys) + 1)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]
    return "\n".join([*lines[:2], "-" * max(map(len, lines)), *lines[2:]])


def shown_errors(errors: Mapping[str, float]) -> list[tuple[str, str, float]]:
    """(title, unit, value) of the root mean squares that say most: one per property, energies per atom."""
    wanted = [key for quantity, kind, key, _ in _figures() if kind == "rmse" and quantity not in EXTENSIVE and key in errors]
    return [(*_title(key), errors[key]) for key in wanted]


def _figures() -> Iterable[tuple[str, str, str, float]]:
    """(quantity, kind, key, factor from eV and Å) of every figure that there can be."""
    for name, row in PROPERTIES.items():
        factor, unit = (1000.0, f"m{row.unit}") if row.unit.startswith("eV") else (1.0, row.unit)
        suffix = unit.lower().replace("/", "_per_").replace("å³", "angstrom3").replace("å", "angstrom").replace("·", "_")
        if name in EXTENSIVE:
            for kind in ("mae", "rmse"):
                yield f"{name}_per_atom", kind, f"{name}_{kind}_{suffix}_per_atom", factor
        for kind in ("rmse",) if name in EXTENSIVE else ("mae", "rmse"):
            yield name, kind, f"{name}_{kind}_{suffix}", factor
        if name == "energy":
            yield COVERAGE, "share", f"{COVERAGE}_percent", 100.0
        if name == "forces":
            yield COSINE, "cosine", COSINE, 1.0
            yield WITHIN, "share", f"{WITHIN}_percent", 100.0


def _title(key: str) -> tuple[str, str]:
    """("forces RMSE", "meV/Å") from forces_rmse_mev_per_angstrom."""
    name, kind, *unit = key.split("_", 2)
    if key == COSINE:
        return "forces cosine", ""
    if key.startswith(COVERAGE):
        return "within 90 % interval", "%"
    if name == "within":
        return "within threshold", "%"
    text = "".join(unit).replace("_per_", "/").replace("angstrom3", "Å³").replace("angstrom", "Å")
    return f"{name} {kind.upper()}", text.replace("mev", "meV")
