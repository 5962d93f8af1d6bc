"""What training minimises: a weighted sum, over the rows of PROPERTIES, of mean squared errors of the labels that are there.

    loss = Σ_p w_p L_p,    L_p = mean over the labelled entries of the batch of φ(error)

- energy: error = (E - E_label) / atoms, in eV per atom; one entry per labelled system
- forces: error in eV/Å; one entry per component of every atom of a labelled system that is not held in place
- stress: error in eV/Å³; nine entries per labelled system

φ(e) = e² (mse), or e² up to |e| = δ and straight beyond (huber, δ = 0.01 in the unit of the error), or |e| (mae); mae takes the length of
the error of a force, one entry per atom, as OC20 and fairchem-core do.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from equimol.data.properties import PROPERTIES
from equimol.data.statistics import FrameSums
from equimol.training.processes import ALONE, Processes

EXTENSIVE = ("energy",)  # grows with the number of atoms: its error counts per atom
HUBER_DELTA = 0.01


def _huber(error: Tensor) -> Tensor:
    size = error.abs()
    return torch.where(size <= HUBER_DELTA, error.square(), HUBER_DELTA * (2 * size - HUBER_DELTA))


PENALTIES = {"mse": torch.square, "huber": _huber, "mae": torch.abs}


def loss_terms(
    prediction: Mapping[str, Tensor], graph: Any, names: Iterable[str], function: str = "mse", group: Processes = ALONE
) -> dict[str, Float[Tensor, ""]]:
    """The mean of φ(error) per property, without weights. A property without any label in the batch gives zero.

    Of several processes, each gives its share of the mean over the entries of all, times their number: the mean of the gradients, as
    processes take it, is then that of one process with all their frames, also where some have more atoms or labels than others.
    """
    penalties, entries = [], []
    names = list(names)
    for name in names:
        error, labelled = property_error(name, prediction[name], graph)
        if name in EXTENSIVE:
            error = error / atoms_per_system(graph).to(error.dtype)
        if name == "forces" and function == "mae":
            error = error.norm(dim=-1)
        penalties.append(PENALTIES[function](error).sum())
        entries.append(labelled.sum() * (error[0].numel() if error.ndim > 1 else 1))
    of_all = group.sum(torch.stack(entries)).clamp(min=1)
    return {name: group.count * penalty / number for name, penalty, number in zip(names, penalties, of_all, strict=True)}


def property_error(name: str, predicted: Tensor, graph: Any) -> tuple[Float[Tensor, "n ..."], Bool[Tensor, "n"]]:
    """Prediction minus label, zero where there is no label, and where there is one (per system or per atom)."""
    labelled = graph[f"{name}_present"]
    mask = labelled.reshape(-1, *[1] * (predicted.ndim - 1))
    return torch.where(mask, predicted - graph[name], 0.0), labelled


def atoms_per_system(graph: Any) -> Tensor:
    """How many atoms each system of a batch has, [systems]."""
    system = graph.system
    return torch.zeros(graph.num_systems, dtype=torch.long, device=system.device).index_add_(0, system, torch.ones_like(system))


def resolve_weights(weights: Mapping[str, float | str], sums: FrameSums, outputs: Iterable[str] = tuple(PROPERTIES)) -> dict[str, float]:
    """Numbers for the weights: zero where the training set has no label or the model no such output, and a scale for `auto`.

    auto is 1, except for the stress: the mean of (volume per atom)², so that an error of the virial per atom counts like the
    same error of the energy per atom at weight one; only frames with a volume count.
    """
    resolved = {}
    for name, weight in weights.items():
        labelled = (sums.volumes if name == "stress" else sums.labels[name]) if name in outputs else 0
        if not labelled:
            resolved[name] = 0.0
        elif weight != "auto":
            resolved[name] = float(weight)
        elif name == "stress":
            resolved[name] = sums.volume_squares / sums.volumes
        else:
            resolved[name] = 1.0
    if not any(resolved.values()):
        raise ValueError(
            f"nothing to train on: none of the {sums.frames} training frames has a label with a weight above zero"
            f" (weights {dict(weights)}); name the keys of the file with keys.energy=..., keys.forces=..."
        )
    return resolved
