"""Training through a compiled program, and with less kept for derivatives."""

from pathlib import Path

import numpy as np
import pytest

from equimol.training.config import load_config
from equimol.training.fit import fit

SETTINGS = "settings={width: 8, layers: 1, heads: 1, legendre: [4, 2, 2], radial_basis: 8, radial_width: 8, element_width: 4}"


def test_a_model_that_cannot_be_compiled_is_named_before_the_data_are_read(tmp_path: Path):
    with pytest.raises(ValueError, match="compile must be false for mace, which cannot be compiled yet; escaip and dpa3 can"):
        fit(load_config(None, [f"data={tmp_path / 'absent.xyz'}", "model=mace", "compile=true"]))


@pytest.mark.slow
def test_compiled_training_learns_what_plain_training_learns(crystals: Path, tmp_path: Path, no_report: None):
    """In float64, where rounding does not show; the budget is timed with the compiled program, too."""
    given = [f"data={crystals}", "model=escaip", "preset=tiny", "batch=4", "split=random", "cutoff=4.0", "precision=float64", SETTINGS]
    errors = []
    for compiled in ("true", "false"):
        folder = fit(load_config(None, [*given, "steps=4", f"compile={compiled}", f"out={tmp_path / compiled}"]))
        with np.load(folder / "predictions_train.npz") as arrays:
            errors.append(arrays["forces_pred"])
    np.testing.assert_allclose(*errors, atol=1e-8)
    assert (fit(load_config(None, [*given, "time=150s", "compile=true", f"out={tmp_path / 'timed'}"])) / "model.equimol").exists()


def test_recomputed_training_learns_what_plain_training_learns(crystals: Path, tmp_path: Path, no_report: None):
    given = [f"data={crystals}", "model=escaip", "preset=tiny", "batch=4", "split=random", "cutoff=4.0", "precision=float64", SETTINGS]
    errors = []
    for recompute in ("true", "false"):
        folder = fit(load_config(None, [*given, "steps=3", f"recompute={recompute}", f"out={tmp_path / recompute}"]))
        with np.load(folder / "predictions_train.npz") as arrays:
            errors.append(arrays["forces_pred"])
    np.testing.assert_allclose(*errors, atol=1e-10)


def test_a_model_that_keeps_little_as_it_is_is_not_recomputed(tmp_path: Path):
    with pytest.raises(ValueError, match="recompute must be false for mace, which keeps little as it is; escaip can"):
        fit(load_config(None, [f"data={tmp_path / 'absent.xyz'}", "model=mace", "recompute=true"]))
    with pytest.raises(ValueError, match="recompute must be false with compile, which decides itself what to keep, got True"):
        load_config(None, ["recompute=true", "compile=true"])
