"""The settings in examples/ train as they stand, here on a few structures and for a few steps."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from equimol.models import data_sets, load
from equimol.training.config import load_config
from equimol.training.fit import fit

EXAMPLES = Path(__file__).parents[2] / "examples"
SHORT = ["steps=3", "batch=4"]


@pytest.fixture
def train(tmp_path: Path, write_frames: Callable, no_report: None) -> Callable[..., Path]:
    """Trains by a recipe on the given frames."""

    def run(recipe: str, frames: list, *more: str) -> Path:
        data = write_frames(tmp_path / f"{recipe}.extxyz", frames)
        return fit(load_config(EXAMPLES / f"{recipe}.yaml", [f"data={data}", *SHORT, f"out={tmp_path / recipe}", *more]))

    return run


def test_every_recipe_is_short_and_run_here():
    recipes = {path.name for path in EXAMPLES.glob("*.yaml")}
    escaip = {f"{name}_escaip.yaml" for name in ("spice", "oc20", "periodic")} | {"escaip_pretrain.yaml", "escaip_finetune.yaml"}
    assert recipes == escaip | {"dpa3_data_sets.yaml", "dpa3_finetune.yaml", "few_frames.yaml"}
    for name in recipes:
        lines = (EXAMPLES / name).read_text().splitlines()
        assert lines[0].startswith("# ") and sum(not line.startswith("#") for line in lines) <= 10


def test_molecules(train: Callable, emt_frames: Callable):
    frames = emt_frames(12)
    for number, frame in enumerate(frames):
        frame.info["smiles"] = f"molecule-{number // 3}"
    folder = train("spice_escaip", frames, "preset=tiny", "valid=0.3")
    assert load(folder / "model.equimol").conservative
    with np.load(folder / "predictions_train.npz") as train_set, np.load(folder / "predictions_valid.npz") as valid_set:
        groups = [{int(str(source).rpartition(":")[2]) // 3 for source in part["source"]} for part in (train_set, valid_set)]
    assert groups[0] and groups[1] and not groups[0] & groups[1]


def test_catalysts(train: Callable, emt_frames: Callable, capsys: pytest.CaptureFixture):
    frames = emt_frames(12, periodic=True)
    for number, frame in enumerate(frames):
        frame.info["sid"] = f"slab-{number // 3}"
        frame.set_tags([2, 1, 0, 0])
    folder = train("oc20_escaip", frames, "preset=tiny", "valid=0.3")
    assert "forces count on free atoms alone: 24 of 48 atoms are held in place (tag 0)" in capsys.readouterr().out
    with np.load(folder / "predictions_train.npz") as arrays:
        free = np.isfinite(arrays["forces_true"]).all(axis=1).reshape(-1, 4)
    assert (free == [True, True, False, False]).all()
    assert "loss_stress" not in (folder / "log.csv").read_text()


def test_crystals(train: Callable, emt_frames: Callable):
    folder = train("periodic_escaip", emt_frames(8, periodic=True), "preset=tiny")
    assert "loss_stress" in (folder / "log.csv").read_text() and "stress MAE" in (folder / "errors.txt").read_text()


def test_pre_training_then_fine_tuning(train: Callable, emt_frames: Callable):
    first = train("escaip_pretrain", emt_frames(8), "preset=tiny")
    second = train("escaip_finetune", emt_frames(8), f"start={first / 'model.equimol'}")
    before, after = load(first / "model.equimol"), load(second / "model.equimol")
    assert not before.conservative and after.conservative
    assert after.cutoff == before.cutoff and "left behind" in (second / "data.txt").read_text()


def test_several_data_sets_then_one_more(tmp_path: Path, write_frames: Callable, emt_frames: Callable, no_report: None):
    paths = {name: write_frames(tmp_path / f"{name}.xyz", emt_frames(12, seed)) for seed, name in enumerate(("water", "molecules", "ice"))}
    given = [*SHORT, "preset=tiny", "cutoff=4", "zbl=false"]
    first = [f"data.{name}={paths[name]}" for name in ("water", "molecules")]
    both = fit(load_config(EXAMPLES / "dpa3_data_sets.yaml", [*first, *given, f"out={tmp_path / 'both'}"]))
    assert data_sets(load(both / "model.equimol")) == ("water", "molecules")
    second = [f"data.{name}={paths[name]}" for name in ("ice", "water")]
    start = f"start={both / 'model.equimol'}"
    after = fit(load_config(EXAMPLES / "dpa3_finetune.yaml", [*second, *given, start, f"out={tmp_path / 'ice'}"]))
    assert data_sets(load(after / "model.equimol")) == ("water", "molecules", "ice")


def test_few_frames_are_all_trained_on(train: Callable, emt_frames: Callable):
    folder = train("few_frames", emt_frames(5), "preset=tiny")
    assert "frames: 5 train, 0 valid, 0 test" in (folder / "data.txt").read_text()
    assert load(folder / "model.equimol").conservative and not (folder / "predictions_valid.npz").exists()
