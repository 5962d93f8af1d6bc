"""Reference energies of the elements, by level of theory, and the scale of what they leave to a model."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from ase.data import atomic_numbers, chemical_symbols

from equimol.data.frame import Frame
from equimol.data.selection import sample
from equimol.data.statistics import FrameSums, fitted_energies, reference_energies, residual_energies
from equimol.models import is_by_data_set
from equimol.training.config import TrainConfig
from equimol.training.prepare import SAMPLE, TrainingData, references_by_set
from equimol.training.start import stored_references


def find_references(config: TrainConfig, data: TrainingData) -> tuple[dict[int, float] | dict[str, dict[int, float]], str]:
    """Energy of each element in eV, by data set where there are several, and how it was found.

    Those of several data sets include the mean per atom of what they leave, as there is one shift for all.
    """
    if not data.data_sets:
        return _references_of(config.references, config, data.elements, data.frames["train"], data.sums[""], data.isolated)
    tables, methods = {}, []
    for number, name in enumerate(data.data_sets):
        training, sums = data.subset("train", name), data.sums.get(name, FrameSums())
        isolated = [frame for frame in data.isolated if frame.info["data_set"] == number]
        given = config.references.get(name, "auto") if references_by_set(config) else config.references
        elements = sums.elements
        if not len(training):  # only the model that is begun with has seen this one
            elements = [z for z in data.elements if z in given]
        table, method = _references_of(given, config, elements, training, sums, isolated)
        if not isinstance(given, dict) and config.shift == "auto" and sums.energies:
            rest = sums.mean_residual(table)
            table = {z: energy + rest for z, energy in table.items()}
        tables[name], methods = table, [*methods, f"{name}: {method}"]
    return {name: _completed(tables, name, data.elements) for name in tables}, "; ".join(methods)


def _references_of(
    given: Any, config: TrainConfig, elements: list[int], training: Sequence[Frame], sums: FrameSums, isolated: list[Frame]
) -> tuple[dict[int, float], str]:
    """Energies for the elements of one data set. Those of `start` are kept, and elements that are new to it found beside them."""
    if isinstance(given, dict):
        energies = {_atomic_number(key): float(energy) for key, energy in given.items()}
        missing = [chemical_symbols[z] for z in elements if z not in energies]
        if missing and not config.start:
            lacking = ", ".join(missing)
            raise ValueError(f"references must name every element of the data, {lacking} missing; add them in eV or use references=auto")
        if missing:
            energies = fitted_energies(sums, elements, known=energies)
        return {z: energies[z] for z in elements}, "given" + (f", {', '.join(missing)} by ridge regression beside them" if missing else "")
    if not sums.energies:
        return dict.fromkeys(elements, 0.0), "none: the training set has no energies"
    if given == "fit" and config.start:
        before = stored_references(config.start)
        if is_by_data_set(before):
            before = {z: float(np.mean([table[z] for table in before.values()])) for z in next(iter(before.values()))}
        return fitted_energies(sums, elements, prior=before), f"ridge regression around those of {config.start}"
    energies, method = reference_energies(training, isolated, sums)
    return {int(z): float(energies[z]) for z in elements}, method


def _completed(tables: dict[str, dict[int, float]], name: str, elements: list[int]) -> dict[int, float]:
    """The table of a data set with all elements of the model: from the other sets, by how they differ on the elements they share."""
    own = tables[name]
    complete = {}
    for z in elements:
        guesses = [
            other[z] + float(np.mean([own[k] - other[k] for k in shared]))
            for other in tables.values()
            if z in other and (shared := own.keys() & other.keys())
        ]
        complete[z] = own[z] if z in own else float(np.mean(guesses)) if guesses else float(np.mean(list(own.values())))
    return complete


def find_scale_and_shift(config: TrainConfig, data: TrainingData, references: dict) -> tuple[float, float]:
    """Typical size of the energies a model predicts, eV, and the mean per atom of what the references leave."""
    sums, scale, shift = data.all_sums, config.scale, config.shift
    if scale == "auto":
        scale = sums.force_rms if sums.components else _spread(data, references)
        scale = scale if np.isfinite(scale) and scale > 1e-6 else 1.0
    if shift == "auto":
        shift = 0.0 if data.data_sets else sums.mean_residual(references)
    return scale, shift


def _spread(data: TrainingData, references: dict) -> float:
    """Standard deviation of the energy per atom that the references leave, eV, of all training frames in memory or some of a packed set."""
    if not data.data_sets:
        rest = residual_energies(sample(data.frames["train"], SAMPLE), references)
    else:
        parts = [residual_energies(sample(data.subset("train", name), SAMPLE), references[name]) for name in data.data_sets]
        rest = np.concatenate(parts)
    return float(rest.std()) if len(rest) else 1.0


def _atomic_number(key: int | str) -> int:
    number = atomic_numbers.get(key, key) if isinstance(key, str) else key
    if not isinstance(number, int) or not 0 < number < len(chemical_symbols):
        raise ValueError(f"references must be {{element: eV}} with symbols or atomic numbers, got the element {key!r}")
    return number
