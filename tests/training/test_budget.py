"""A run fits its time: batch, preset and steps follow from timings."""

import time
from pathlib import Path

import numpy as np
import pytest

from equimol.data.frame import Frame
from equimol.models import MODELS
from equimol.training import budget
from equimol.training.config import load_config
from equimol.training.fit import make_model
from equimol.training.prepare import TrainingData, build_graphs, read_data

WEIGHTS = {"energy": 1.0, "forces": 10.0}


@pytest.fixture
def data(clusters: Path) -> TrainingData:
    data = read_data(load_config(None, [f"data={clusters}", "split=random"]))
    build_graphs(data, 4.0)
    return data


def fitted(data: TrainingData, *overrides: str):
    config = load_config(None, ["data=x", "cutoff=4.0", *overrides])

    def build(preset: str):
        return make_model(config, preset, data.elements, dict.fromkeys(data.elements, 0.0), 1.0, 0.0, 3.0)

    return budget.fit_to_budget(config, data, WEIGHTS, build, list(MODELS["mace"].presets), time.monotonic())[0]


@pytest.fixture
def timings(monkeypatch: pytest.MonkeyPatch) -> dict[int, float]:
    """Step times by number of channels, instead of measured ones."""
    seconds = {16: 0.01, 64: 0.1, 128: 1.0}
    monkeypatch.setattr(budget, "train_step_seconds", lambda model, *rest, **named: seconds[_channels(model)])
    monkeypatch.setattr(budget, "evaluation_seconds", lambda *rest: 0.001)
    return seconds


def _channels(model) -> int:
    return next(module.config.channels for module in model.modules() if hasattr(module, "config") and hasattr(module.config, "channels"))


def test_steps_fill_the_time_and_leave_room_for_validation(data: TrainingData, timings):
    config = fitted(data, "preset=small", "time=100s")
    assert 850 <= config.steps <= 910
    assert config.steps % config.validate_every == 0


def test_less_than_one_pass_over_the_data_is_a_warning(data: TrainingData, timings):
    build = lambda preset: make_model(load_config(), preset, data.elements)  # noqa: E731
    for given, warned in (("6s", True), ("100s", False)):
        config = load_config(None, ["data=x", "preset=small", f"time={given}", "batch=1"])
        text = budget.fit_to_budget(config, data, WEIGHTS, build, ["small"], time.monotonic())[1]
        assert ("less than one pass" in text) == warned


@pytest.mark.parametrize(("given", "preset"), [("1s", "nano"), ("60s", "small"), ("2h", "medium")])
def test_more_time_gives_a_larger_preset(data: TrainingData, timings, given: str, preset: str):
    assert fitted(data, "preset=auto", f"time={given}").preset == preset


def test_steps_go_before_epochs_and_epochs_before_time(data: TrainingData):
    assert fitted(data, "batch=5", "epochs=3", "time=1h").steps == 3 * 4
    assert fitted(data, "batch=5", "epochs=3", "steps=7").steps == 7


def test_validation_is_not_more_frequent_than_epochs_nor_than_fifty_times(data: TrainingData):
    assert fitted(data, "batch=5", "epochs=3").validate_every == 4
    assert fitted(data, "batch=5", "epochs=1000").validate_every == 1000 * 4 // 50


def test_large_structures_come_in_small_batches(data: TrainingData, crystals: Path):
    assert budget.automatic_batch(data) == 5
    for atoms, batch in ((27, 2), (60, 1), (1000, 1)):
        data.frames["train"] = [Frame(np.ones(atoms, dtype=np.int64), np.zeros((atoms, 3)), np.zeros((3, 3)), np.zeros(3, dtype=bool))]
        assert budget.automatic_batch(data) == batch


def test_a_step_is_timed_without_touching_the_model(data: TrainingData):
    config = load_config(None, ["data=x", "cutoff=4.0", "batch=4"])
    model = make_model(config, "tiny", data.elements, dict.fromkeys(data.elements, 0.0), 1.0, 0.0, 3.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert 0 < budget.train_step_seconds(model, data.graphs["train"], WEIGHTS, config, limit=0.1) < 5
    assert 0 < budget.evaluation_seconds(model, data.graphs["train"], 4) < 5
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
