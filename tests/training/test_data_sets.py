"""One model for several data sets of different levels of theory: what is read, drawn, fitted and saved for each of them."""

import json

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.emt import EMT
from ase.io import write

from equimol.info import describe_model
from equimol.interfaces.ase import EquiMolCalculator
from equimol.models import build_model, data_sets, for_data_set, load
from equimol.training.batches import StepSampler
from equimol.training.config import config_from, load_config
from equimol.training.evaluate import evaluate
from equimol.training.fit import fit
from equimol.training.prepare import read_data
from equimol.training.references import find_references, find_scale_and_shift
from equimol.training.start import settle, take_weights

TETRAHEDRON = 1.3 * np.array([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
ZERO = {"Cu": -30.0, "Ag": -55.0, "Au": -99.0}  # eV; of another level of theory, which stretches energies by a tenth as well


def alloys(symbols: str, count: int, seed: int, stretched: bool = False) -> list[Atoms]:
    """Clusters of four atoms by ASE's effective medium theory, or by the other level."""
    rng, frames = np.random.default_rng(seed), []
    for _ in range(count):
        atoms = Atoms(rng.choice(symbols.split(), 4), TETRAHEDRON + 0.1 * rng.normal(size=(4, 3)))
        atoms.calc = EMT()
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        atoms.calc = None
        if stretched:
            energy, forces = 1.1 * energy + sum(ZERO[symbol] for symbol in atoms.symbols), 1.1 * forces
        atoms.info["REF_energy"], atoms.arrays["REF_forces"] = energy, forces
        frames.append(atoms)
    return frames


def written(path, frames) -> str:
    write(path, frames, format="extxyz")
    return str(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two data sets: copper, and copper with silver by another level of theory."""
    folder = tmp_path_factory.mktemp("data")
    shifted = written(folder / "b.xyz", alloys("Cu Ag", 12, seed=1, stretched=True))
    return {"plain": written(folder / "a.xyz", alloys("Cu", 12, seed=0)), "shifted": shifted}


def settings(files, tmp_path, **others):
    values = {"data": files, "model": "dpa3", "preset": "tiny", "cutoff": 4.0, "valid": 0.2, "test": 0.1, "steps": 4, "zbl": False}
    return config_from({**values, "out": str(tmp_path / "run"), **others})


def test_frames_know_their_data_set_and_each_is_split_by_itself(files, tmp_path):
    data = read_data(settings(files, tmp_path, valid={"plain": 3, "shifted": 0.25}, test=0))
    assert data.data_sets == ["plain", "shifted"]
    assert [len(data.of_set(split, name)) for split in ("train", "valid") for name in files] == [9, 9, 3, 3]
    assert "plain: 12 structures" in data.summary and "shifted: 12 structures" in data.summary


def test_each_data_set_has_references_of_its_own(files, tmp_path):
    """Those of an element that a data set lacks follow from how it differs from the others."""
    config = settings(files, tmp_path)
    data = read_data(config)
    references, method = find_references(config, data)
    assert list(references) == ["plain", "shifted"] and all(set(table) == {29, 47} for table in references.values())
    assert references["shifted"][29] - references["plain"][29] == pytest.approx(ZERO["Cu"], abs=1)
    difference = references["shifted"][29] - references["plain"][29]
    assert references["plain"][47] == pytest.approx(references["shifted"][47] - difference)
    assert "plain: ridge regression" in method and "shifted: ridge regression" in method
    scale, shift = find_scale_and_shift(config, data, references)
    assert scale > 0 and shift == 0


def test_frames_are_drawn_in_the_shares_asked_for():
    parts = [(list(range(6)), 3.0), (list(range(6, 20)), 1.0)]
    sampler = StepSampler(20, 4, seed=3, total=40, parts=parts)
    drawn = np.concatenate(list(sampler))
    assert np.mean(drawn < 6) == 0.75
    assert np.bincount(drawn[drawn < 6][:30]).tolist() == [5] * 6  # two epochs: no frame more often than another
    assert list(StepSampler(20, 4, seed=3, total=40, start=17, parts=parts)) == list(sampler)[17:]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model": "mace"}, "several data sets need a model that tells them apart: scale_shift_mace, nequip, dpa3, got mace"),
        ({"sampling": {"plain": 1}}, "sampling must be a positive number for each data set, or for none"),
        ({"sampling": {"plan": 1, "shifted": 1}}, r"sampling must be by data set with the names in data \(plain, shifted\)"),
        ({"valid": {"plan": 0.1}}, "valid must be by data set with the names in data"),
        ({"valid": {"plain": -1}}, "valid must be a fraction below 1"),
        ({"data": {"plain": 3}}, "data must be a file, a list of files, or"),
        ({"freeze": ["layer"]}, "freeze must name weights of dpa3, which begin with element, "),
    ],
)
def test_bad_settings_say_what_is_wrong(files, tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        fit(settings(files, tmp_path, **given))


@pytest.fixture(scope="module")
def run(files, tmp_path_factory):
    return fit(settings(files, tmp_path_factory.mktemp("run"), sampling={"plain": 1, "shifted": 2}))


def test_a_run_of_two_data_sets_and_its_model(run, files, tmp_path):
    """Errors of each, and a model that is one for both or, by name, for one of them."""
    errors = json.loads((run / "errors.json").read_text())
    assert {"train", "train plain", "train shifted", "valid plain", "test shifted"} <= errors.keys()
    assert load_config(run / "config.yaml").data == files
    model = load(run / "model.equimol")
    assert data_sets(model) == ("plain", "shifted") and "data_set" in model.inputs
    atoms = alloys("Cu", 1, seed=5)[0]
    for number, name in enumerate(data_sets(model)):
        one, told = EquiMolCalculator(run / "model.equimol", data_set=name), EquiMolCalculator(run / "model.equimol")
        assert "data_set" not in one.model.inputs and data_sets(one.model) == ()
        atoms.info["data_set"] = number
        for quantity in ("energy", "forces"):
            np.testing.assert_allclose(one.get_property(quantity, atoms), told.get_property(quantity, atoms), rtol=1e-12, atol=1e-7)
    assert "plain: Cu " in describe_model(str(run / "model.equimol"))
    with pytest.raises(ValueError, match="data_set must be one of plain, shifted, got 'other'"):
        for_data_set(model, "other")
    with pytest.raises(ValueError, match="for one level of theory"):
        for_data_set(for_data_set(model, "plain"), "plain")


def test_it_resumes_to_the_same_weights(run, files, tmp_path):
    """With the data sets in the same order, from the settings in the folder alone."""
    for name in ("report.html", "model.equimol", "best.ckpt", "last.ckpt"):
        (run / name).rename(tmp_path / name)
    fit(load_config(run / "config.yaml", ["resume=true"]))
    mine, before = load(run / "model.equimol"), load(tmp_path / "model.equimol")
    for a, b in zip(mine.parameters(), before.parameters(), strict=True):
        assert torch.equal(a, b)


def test_training_goes_on_with_a_new_data_set_and_new_elements(run, files, tmp_path):
    """The old ones keep references and encoding, so that before any step the model says of them what it said."""
    path = written(tmp_path / "c.xyz", alloys("Cu Au", 8, seed=2, stretched=True))
    start = run / "model.equimol"
    config = settle(config_from({"data": {"gold": path, "plain": files["plain"]}, "model": "dpa3", "start": str(start), "zbl": False}))
    data = read_data(config)
    assert data.data_sets == ["plain", "shifted", "gold"] and data.elements == [29, 79]
    references, _ = find_references(config, data)
    old = load(start)
    assert references["plain"][29] == old.references["plain"][29]
    model = build_model(
        "dpa3", config.preset, elements=data.elements, references=references, scale=config.scale, shift=config.shift, zbl=False,
        **{**config.settings, "cutoff": config.cutoff, "data_sets": 3},
    )  # fmt: skip
    told = take_weights(model, str(start))
    assert "new elements: Au" in told
    frames = read_data(settings(files, tmp_path)).frames["train"]
    frames = [frame for frame in frames if 47 not in frame.numbers]
    before, after = evaluate(old, frames), evaluate(model.to(old.dtype), frames)
    np.testing.assert_allclose(after.predictions["energy_pred"], before.predictions["energy_pred"], rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="tells plain, shifted apart; name one of them, or a new one"):
        settle(config_from({"data": path, "model": "dpa3", "start": str(start)}))


def test_frozen_weights_stay(run, files, tmp_path):
    config = settings(files, tmp_path, start=str(run / "model.equimol"), freeze=["element", "layers.0"], out=str(tmp_path / "next"))
    before, after = load(run / "model.equimol"), load(fit(config) / "model.equimol")
    moved = {name for name, p in after.named_parameters() if not torch.equal(p, dict(before.named_parameters())[name])}
    assert moved and not any(name.startswith(("inner.element", "inner.layers.0.")) for name in moved)


def test_references_are_fitted_around_those_of_the_start(run, files, tmp_path):
    """What composition cannot tell, here copper and silver apart, follows the level of theory that the model knows."""
    config = settings({"new": files["plain"]}, tmp_path, start=str(run / "model.equimol"), references={"new": "fit"})
    config = settle(config)
    data = read_data(config)
    table = find_references(config, data)[0]["new"]
    assert set(table) == {29} and table[29] == pytest.approx(load(run / "model.equimol").references["plain"][29], abs=0.5)
