"""Evaluation predicts every frame once, in order, and leaves the model as it was."""

from pathlib import Path

import numpy as np
import pytest
import torch

from equimol.data.formats import read
from equimol.models import build_model
from equimol.training.evaluate import evaluate


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build_model("mace", "tiny", elements=[13, 29], cutoff=4.0)


def test_predictions_come_in_the_order_of_the_frames_whatever_the_batch(model, crystals: Path):
    frames = read(crystals).frames
    one, many = evaluate(model, frames, batch=1), evaluate(model, frames, batch=5)
    assert one.predictions["natoms"].tolist() == [len(frame.numbers) for frame in frames]
    assert one.predictions["source"].tolist() == [frame.source for frame in frames]
    for key in ("energy_pred", "forces_pred", "stress_pred"):
        np.testing.assert_allclose(one.predictions[key], many.predictions[key], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(one.predictions["forces_true"], np.concatenate([frame.labels["forces"] for frame in frames]))
    assert np.isnan(one.predictions["stress_true"]).all(axis=(1, 2)).tolist() == ["stress" not in frame.labels for frame in frames]


def test_errors_are_those_of_the_predictions(model, clusters: Path):
    result = evaluate(model, read(clusters).frames)
    error = result.predictions["forces_pred"] - result.predictions["forces_true"]
    assert result.errors["forces_mae_mev_per_angstrom"] == pytest.approx(1000 * np.abs(error).mean())
    assert "stress_pred" not in result.predictions


def test_the_mode_of_the_model_is_kept(model, clusters: Path):
    evaluate(model.train(), read(clusters).frames[:2])
    assert model.training


def test_no_frames_are_an_error(model):
    with pytest.raises(ValueError, match="nothing to evaluate"):
        evaluate(model, [])
