"""Last-layer uncertainty of a trained model: one pass over its training frames, and a scale from frames it was not trained on."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from equimol.data.errors import DataError
from equimol.data.formats import read
from equimol.data.frame import Frame
from equimol.data.selection import GraphsOf
from equimol.data.statistics import is_isolated_atom
from equimol.models import find_device
from equimol.models.base import ConservativePotential, Potential
from equimol.models.file import GIVEN, load, read_metadata, save
from equimol.models.fingerprint import device_of
from equimol.models.uncertainty import WithUncertainty, sum_features
from equimol.training.batches import Batch, ordered_loader
from equimol.training.config import load_config
from equimol.training.loss import atoms_per_system
from equimol.training.metrics import Z90
from equimol.training.prepare import read_data

FEWEST = 10  # frames to calibrate with: sigma is then known to a fifth
TOLERATED = 1.92  # of a log likelihood: half the 95 % quantile of chi square with one degree of freedom
RATIOS = torch.logspace(-9, 0, 19, dtype=torch.float64)  # of r to the largest eigenvalue of C; below, single precision is all one sees


class _Rows(NamedTuple):
    """Of the labelled frames of a set: mean features of their atoms, and what the energy per atom lacks, eV."""

    features: Float[Tensor, "frames features"]
    errors: Float[Tensor, " frames"]


def fit_uncertainty(model: Potential, train: Sequence[Frame], calibration: Sequence[Frame], batch: Batch = 8) -> WithUncertainty:
    """The model with the uncertainty of its energies; it is not changed, and an uncertainty that it has is replaced.

    Calibration frames must be none of the training frames: a model is too good at those, and sigma would be too small elsewhere.

    C is summed over `train` in float64. For each of some r, likelihood is largest at alpha^2 = mean (error^2 / variance) of
    `calibration` (Bigi et al. 2024, arXiv:2403.02251). The smallest r is taken that a likelihood-ratio test does not reject against the
    likeliest: frames like those of the training hardly tell one from another, but a large one would be blind to what is unlike them.

    Raises:
        ValueError: the model is not conservative or has no features, or its features are not finite.
        DataError: too few frames, energies missing, elements the model does not know.
    """
    model = model.inner if isinstance(model, WithUncertainty) else model
    if not isinstance(model, ConservativePotential):
        raise ValueError("last-layer uncertainty is for conservative models, and this one predicts its forces directly; train another")
    if len(calibration) < FEWEST:
        raise DataError(f"uncertainty needs at least {FEWEST} frames to calibrate with, got {len(calibration)}; give more frames")
    was_training = model.training
    model.eval()
    try:
        covariance, used = _covariance(model, train, batch)
        rows = [_labelled(model, graph) for graph in _graphs(model, calibration, batch)]
    finally:
        model.train(was_training)
    found = _Rows(torch.cat([row.features for row in rows]), torch.cat([row.errors for row in rows]))
    if len(found.errors) < len(calibration):
        lacking = len(calibration) - len(found.errors)
        raise DataError(f"{lacking} of {len(calibration)} frames to calibrate with have no energy; leave them out, or name its key")
    factor, facts = _calibrated(covariance, found)
    result = WithUncertainty(model, len(factor), {"frames": used, "calibration_frames": len(calibration), **facts}).to(device_of(model))
    result.factor.copy_(factor)
    return result.train(was_training)


def add_uncertainty(
    model: Path,
    train: Sequence[str],
    calibration: Sequence[str],
    out: Path | None = None,
    keys: Mapping[str, str] | None = None,
    units: Mapping[str, str] | None = None,
    batch: Batch = 8,
    device: str = "cpu",
) -> str:
    """Write a model file with the uncertainty of its energies; what was used and found, as text.

    `model` is the folder of a run, and then `train` and `calibration` are left empty, or a model file. Without `out` it is replaced.
    """
    path = model / "model.equimol" if model.is_dir() else model
    if model.is_dir() and (train or calibration or keys or units):
        raise ValueError(f"{model} is a run, whose frames are known; leave files, keys and units out, or name {path} to give others")
    if not model.is_dir() and not (train and calibration):
        raise ValueError(
            "uncertainty needs the frames that the model was trained on, and others to calibrate with: "
            f"equimol uncertainty {model} train.xyz --calibrate valid.xyz, or the folder of a run in place of the model"
        )
    facts = read_metadata(path)
    fitted = load(path, device=find_device(device))
    if model.is_dir():
        frames, others = frames_of_run(model)
    else:
        frames, others = (_read(files, facts, keys, units) for files in (train, calibration))
    fitted = fit_uncertainty(fitted, frames, others, batch)
    written = save(fitted, out or path, {key: facts[key] for key in GIVEN if key in facts})
    found = fitted.calibration
    return (
        f"last-layer uncertainty of {len(fitted.factor)} features from {found['frames']} frames, scaled by {found['calibration_frames']} "
        f"others, of which the nominal 90 % interval covers {found['coverage_percent']:.0f} %; model in {written}"
    )


def _read(
    files: Sequence[str], facts: Mapping[str, Any], keys: Mapping[str, str] | None, units: Mapping[str, str] | None
) -> Sequence[Frame]:
    preferred = {name: [key] if isinstance(key, str) else key for name, key in (facts.get("label_keys") or {}).items()}
    return [frame for frame in read(files, keys, preferred=preferred, units=units).frames if not is_isolated_atom(frame)]


def frames_of_run(run: Path) -> tuple[Sequence[Frame], Sequence[Frame]]:
    """The frames that a run was trained on and those that it was validated on.

    Raises:
        DataError: the files have changed since.
    """
    data = read_data(load_config(run / "config.yaml"))
    if data.checksum != json.loads((run / "summary.json").read_text()).get("data_checksum"):
        raise DataError(f"the data of {run} have changed since; name {run / 'model.equimol'}, the files it was trained on, and --calibrate")
    return data.frames["train"], data.frames["valid"]


def _covariance(model: ConservativePotential, frames: Sequence[Frame], batch: Batch) -> tuple[Float[Tensor, "features features"], int]:
    """C, and over how many frames with an energy."""
    if not len(frames):
        raise DataError("uncertainty needs the frames that the model was trained on, got none; check the files")
    total, used = torch.zeros((), dtype=torch.float64), 0
    for graph in _graphs(model, frames, batch):
        means = _labelled(model, graph).features
        total, used = total + means.mT @ means, used + len(means)
    if not used:
        raise DataError(f"none of the {len(frames)} training frames has an energy, of whose errors uncertainty speaks; name its key")
    return total, used


def _graphs(model: Potential, frames: Sequence[Frame], batch: Batch) -> Any:
    device = device_of(model)
    return (graph.to(device) for graph in ordered_loader(GraphsOf(frames, model.cutoff), batch))


def _labelled(model: ConservativePotential, graph: Any) -> _Rows:
    energy, features = model.energy_and_features(graph)
    if not features.shape[1:].numel():
        raise ValueError("this model has no features whose last layer could be uncertain; it has learned nothing")
    atoms, known = atoms_per_system(graph), graph.energy_present
    means = (sum_features(features, graph.system, len(atoms)) / atoms[:, None])[known]
    if not bool(torch.isfinite(means).all()):
        raise ValueError("the model gives NaN or infinite features; look for atoms that are too close: equimol data check FILE")
    return _Rows(means.cpu(), ((energy - graph.energy) / atoms)[known].cpu())


def _calibrated(covariance: Float[Tensor, "features features"], rows: _Rows) -> tuple[Float[Tensor, "features features"], dict[str, Any]]:
    """The matrix alpha (C + r I)^-1/2 of the r and alpha chosen, and what there is to tell of it."""
    values, vectors = torch.linalg.eigh(covariance)
    values, squares = values.clamp(min=0), (rows.features @ vectors).square()
    ratios = values[-1] * RATIOS
    variances = squares @ (1 / (values[:, None] + ratios))  # [frames, ratios]
    alphas2 = (rows.errors.square()[:, None] / variances).mean(0)
    likelihoods = -0.5 * len(squares) * (alphas2.log() + variances.log().mean(0))  # logarithms, but for a constant
    n = int((likelihoods >= likelihoods.max() - TOLERATED).double().argmax())
    r, alpha2 = float(ratios[n]), float(alphas2[n])
    if not (math.isfinite(alpha2) and alpha2 > 0):
        raise DataError("the frames to calibrate with have exactly the energies that the model gives: give those it shall be compared with")
    factor = (alpha2 / (values + r)).sqrt()[:, None] * vectors.mT
    sigma = (rows.features @ factor.mT).norm(dim=1)
    coverage = float((rows.errors.abs() <= Z90 * sigma).double().mean())
    return factor, {"alpha": alpha2**0.5, "regularization": r, "coverage_percent": 100 * coverage}
