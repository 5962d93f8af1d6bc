"""Every learning model trains by its name; a model with direct forces does so without a stress."""

import json
from pathlib import Path

import ase.io
import numpy as np
import pytest
import yaml
from ase.calculators.calculator import PropertyNotImplementedError

from equimol.models import MODELS, ModelEntry, load
from equimol.training.budget import ENOUGH_EPOCHS
from equimol.training.config import TrainConfig, dump_config, load_config
from equimol.training.fit import fit


def run(crystals: Path, tmp_path: Path, *more: str) -> Path:
    given = [f"data={crystals}", "preset=tiny", "batch=4", "split=random", f"out={tmp_path / 'run'}", "steps=3", "cutoff=4.0", *more]
    return fit(load_config(None, given))


@pytest.mark.parametrize("name", ["escaip", "escaip_direct", "escaip_v1", "escaip_v1_direct"])
def test_escaip_trains_by_name(name: str, crystals: Path, tmp_path: Path, no_report: None):
    folder = run(crystals, tmp_path, f"model={name}")
    stress = [key for key in json.loads((folder / "errors.json").read_text())["train"] if key.startswith("stress")]
    with np.load(folder / "predictions_train.npz") as arrays:
        assert bool(stress) == ("stress_pred" in arrays) == MODELS[name].model.conservative
    model = load(folder / "model.equimol")
    assert model.conservative == MODELS[name].model.conservative
    assert "stress" in yaml.safe_load((folder / "config.yaml").read_text())["loss"]


def test_the_page_and_the_log_of_direct_forces_know_no_stress(crystals: Path, tmp_path: Path):
    folder = run(crystals, tmp_path, "model=escaip_direct")
    assert "stress" not in (folder / "log.csv").read_text() and "Stress components" not in (folder / "report.html").read_text()
    assert "nan" not in (folder / "log.csv").read_text() + (folder / "errors.txt").read_text()
    assert yaml.safe_load((folder / "config.yaml").read_text())["loss"]["stress"] == 0


def test_a_stress_that_a_model_cannot_give_is_refused_before_the_data_are_read(tmp_path: Path):
    message = r"loss\.stress must be 0 or auto for escaip_direct, which gives energy, forces, got 1\.0; leave it out"
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "absent.xyz", tmp_path, "model=escaip_direct", "loss.stress=1")


def test_time_chooses_among_the_presets_of_escaip():
    assert set(ENOUGH_EPOCHS) <= set(MODELS["escaip"].presets) and MODELS["escaip"].presets == MODELS["escaip_direct"].presets


def test_the_calculator_of_direct_forces_offers_no_stress(crystals: Path, tmp_path: Path, no_report: None):
    from equimol.interfaces.ase import EquiMolCalculator

    atoms = ase.io.read(crystals)
    atoms.calc = EquiMolCalculator(run(crystals, tmp_path, "model=escaip_direct") / "model.equimol")
    assert np.isfinite(atoms.get_forces()).all() and np.isfinite(atoms.get_potential_energy())
    assert "stress" not in atoms.calc.implemented_properties and "stress" in EquiMolCalculator.implemented_properties
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_stress()


def test_dynamics_of_direct_forces_warn_once():
    from equimol.interfaces.ase_md import run_md
    from equimol.models import build_model

    atoms = ase.Atoms("OH2", positions=[[0, 0, 0], [0, 0.76, 0.59], [0, -0.76, 0.59]])
    for name, times in (("escaip", 0), ("escaip_direct", 1)):
        said: list[str] = []
        run_md(build_model(name, elements=[1, 8]), atoms, 10.0, 2, 0.1, progress=False, log=said.append)
        assert sum("no gradient of its energy" in line for line in said) == times


def test_a_model_may_have_defaults_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    entry = MODELS["escaip"]
    suited = {"learning_rate": 1e-3, "loss": {"forces": 30.0}}
    monkeypatch.setitem(MODELS, "escaip", ModelEntry(entry.model, entry.config, entry.presets, suited))
    config = load_config(None, ["data=x", "model=escaip", "loss.energy=2"])
    assert config.learning_rate == 1e-3 and config.loss == {"energy": 2.0, "forces": 30.0, "stress": "auto"}
    assert "learning_rate: 0.001" in dump_config(config)
    assert load_config(None, ["data=x", "model=escaip", "learning_rate=0.5", "loss.forces=1"]).learning_rate == 0.5
    assert load_config(None, ["data=x"]) == TrainConfig(data="x")


def test_a_run_is_resumed_with_the_defaults_of_its_model(monkeypatch: pytest.MonkeyPatch, crystals: Path, tmp_path: Path, no_report: None):
    entry = MODELS["escaip_direct"]
    suited = ModelEntry(entry.model, entry.config, entry.presets, {"learning_rate": 1e-3})
    monkeypatch.setitem(MODELS, "escaip_direct", suited)
    folder = run(crystals, tmp_path, "model=escaip_direct", "learning_rate=2e-3")
    assert run(crystals, tmp_path, "model=escaip_direct", "resume=true") == folder
    with pytest.raises(ValueError, match=r"model was 'escaip_direct' and is now 'escaip'"):
        run(crystals, tmp_path, "model=escaip", "resume=true")
