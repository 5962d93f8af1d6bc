"""Predictions are written beside their labels, and the file stays a data set."""

import io

import ase.io
import numpy as np

from equimol.data.formats import read
from equimol.data.frame import Frame
from equimol.interfaces.extxyz import format_predictions


def frames():
    crystal = Frame(
        np.array([6, 8]),
        np.array([[0.0, 0, 0], [1.2, 0, 0]]),
        4.0 * np.eye(3),
        np.array([True] * 3),
        {"energy": np.array(-3.0), "forces": np.ones((2, 3)), "stress": np.array([[1.0, 2, 3], [2, 4, 5], [3, 5, 6]])},
        {"config_type": "bulk"},
    )
    atom = Frame(np.array([1]), np.zeros((1, 3)), np.zeros((3, 3)), np.array([False] * 3), {"energy": np.array(-13.6)}, {"charge": 1.0})
    return [crystal, atom]


def predictions():
    stress = np.stack([np.eye(3), np.full((3, 3), np.nan)])
    return {"energy_pred": np.array([-3.1, -13.5]), "forces_pred": np.arange(9.0).reshape(3, 3), "stress_pred": stress}


def test_predictions_stand_beside_labels():
    first, second = ase.io.read(io.StringIO(format_predictions(frames(), predictions())), ":", format="extxyz")
    assert first.get_potential_energy() == -3.0 and first.info["predicted_energy"] == -3.1
    np.testing.assert_array_equal(first.arrays["predicted_forces"], np.arange(6.0).reshape(2, 3))
    np.testing.assert_array_equal(second.arrays["predicted_forces"], [[6.0, 7.0, 8.0]])
    np.testing.assert_array_equal(np.reshape(first.info["predicted_stress"], (3, 3)), np.eye(3))
    assert "predicted_stress" not in second.info
    assert first.info["config_type"] == "bulk" and second.info["charge"] == 1.0


def test_the_labels_are_read_back(tmp_path):
    (tmp_path / "p.extxyz").write_text(format_predictions(frames(), predictions()))
    again = read(tmp_path / "p.extxyz").frames
    for before, after in zip(frames(), again, strict=True):
        assert before.labels.keys() == after.labels.keys()
        assert all(np.allclose(value, after.labels[name]) for name, value in before.labels.items())
