"""Predictions of a model for labelled frames, and their errors."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch

from equimol.data.frame import Frame
from equimol.data.properties import PROPERTIES
from equimol.models.base import Potential
from equimol.models.uncertainty import ENERGY_UNCERTAINTY
from equimol.training.batches import Batch, ordered_loader
from equimol.training.metrics import ErrorSums


@dataclass(frozen=True)
class Evaluation:
    """Errors by figure (see metrics.py), and arrays for an .npz file.

    The arrays hold `natoms` and `source` per frame, and `{property}_pred` and `{property}_true` for every property: one row per frame,
    or one per atom with the frames one after the other. A missing label is NaN, the force on an atom that is held in place among them.
    Of a model that gives one there is `energy_uncertainty`, eV, for every frame.
    """

    errors: dict[str, float]
    predictions: dict[str, np.ndarray]


def evaluate(model: Potential, frames: Sequence[Frame], batch: Batch = 8, graphs: Sequence[Any] | None = None) -> Evaluation:
    """Predict every frame once, in order. Give `graphs` where they exist already; they must be those of `frames`."""
    if not len(frames):
        raise ValueError("there is nothing to evaluate: no frames; check the file, or the split")
    graphs = [frame.graph(model.cutoff) for frame in frames] if graphs is None else graphs
    device = next((p.device for p in chain(model.parameters(), model.buffers())), torch.device("cpu"))
    names = [name for name in PROPERTIES if name in model.outputs]
    sums, columns = ErrorSums(names), {}
    was_training = model.training
    model.eval()
    try:
        for graph in ordered_loader(graphs, batch):
            graph = graph.to(device)
            prediction = model(graph)
            sums.update(prediction, graph)
            if ENERGY_UNCERTAINTY in prediction:
                columns.setdefault(ENERGY_UNCERTAINTY, []).append(prediction[ENERGY_UNCERTAINTY].cpu().numpy())
            for name in names:
                label = graph[name].clone()
                label[~graph[f"{name}_present"]] = torch.nan
                columns.setdefault(f"{name}_true", []).append(label.cpu().numpy())
                columns.setdefault(f"{name}_pred", []).append(prediction[name].detach().cpu().numpy())
    finally:
        model.train(was_training)
    arrays = {key: np.concatenate(parts) for key, parts in columns.items()}
    if not np.isfinite(arrays.get("stress_pred", np.nan)).any():  # molecules only
        arrays = {key: array for key, array in arrays.items() if not key.startswith("stress")}
    arrays["natoms"] = np.array([len(frame.numbers) for frame in frames])
    arrays["source"] = np.array([frame.source for frame in frames])
    return Evaluation(sums.result(), arrays)
