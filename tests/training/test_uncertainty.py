"""Last-layer uncertainty is what its formula says, holds what it promises where the truth is known, and goes wherever the model goes."""

import json

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator

from equimol.cli import main
from equimol.data.errors import DataError
from equimol.data.formats import read
from equimol.data.frame import Frame
from equimol.data.graph import AtomicGraph
from equimol.interfaces.ase import EquiMolCalculator
from equimol.interfaces.ase_md import run_md
from equimol.models import MODELS, WithUncertainty, build_model, core, for_data_set, load, save
from equimol.models.base import ConservativePotential
from equimol.training.evaluate import evaluate
from equimol.training.metrics import Z90, ErrorSums, error_table
from equimol.training.uncertainty import FEWEST, _calibrated, _covariance, _Rows, fit_uncertainty

LEARNING = [
    name for name, entry in MODELS.items() if issubclass(entry.model, ConservativePotential) and name not in ("lennard_jones", "zbl")
]
REFERENCES = {1: -13.6, 6: -1030.0, 8: -2042.0}


def make(name="mace", dtype=torch.float64, **settings):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_model(name, elements=REFERENCES, **{"references": REFERENCES, "scale": 0.7, **settings}).to(dtype).eval()


def structures(count, seed):
    """Water and methane in turn, atoms off their places."""
    random = np.random.default_rng(seed)
    for n in range(count):
        atoms = molecule(("H2O", "CH4")[n % 2])
        atoms.positions += random.normal(scale=0.1, size=atoms.positions.shape)
        yield atoms


def frames_of(model, count, seed, noise=0.05):
    """Labelled with what the model gives and noise, eV per atom."""
    random, frames = np.random.default_rng(seed), []
    for atoms in structures(count, seed):
        frame = Frame(atoms.numbers, atoms.positions, np.zeros((3, 3)), np.zeros(3, bool), info={"charge": 0.0, "spin": 1.0})
        energy, _ = model.energy_and_features(frame.graph(model.cutoff))
        frame.labels["energy"] = energy.numpy()[0] + noise * len(atoms) * random.normal()
        frames.append(frame)
    return frames


def features_of(model, frame):
    """Of each atom, [atoms, features], the long way."""
    graph = frame.graph(model.cutoff)
    arguments = graph.displacements(), graph.numbers, graph.senders, graph.receivers, model.indices(graph), graph.system
    _, features = model.atomic_energies(*arguments)
    return features.detach().double().flatten(1).numpy()


def uncertainty(model, frame):
    return model(frame.graph(model.cutoff))["energy_uncertainty"].item()


@pytest.fixture(scope="module")
def fitted():
    model = make()
    return fit_uncertainty(model, frames_of(model, 24, 0), frames_of(model, 12, 1))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    model = make(dtype=torch.float32)
    fitted = fit_uncertainty(model, frames_of(model, 24, 0), frames_of(model, 12, 1))
    return save(fitted, tmp_path_factory.mktemp("model") / "model.equimol")


# --- the formula -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LEARNING)
def test_is_the_dense_formula_for_every_conservative_model(name):
    model = make(name)
    train, calibration = frames_of(model, 14, 0), frames_of(model, 10, 1)
    covariance = sum(np.outer(f.mean(0), f.mean(0)) for f in (features_of(model, frame) for frame in train))
    found, used = _covariance(model, train, 5)
    assert used == 14
    np.testing.assert_allclose(found, covariance, rtol=1e-9, atol=1e-12 * np.abs(covariance).max())
    fitted = fit_uncertainty(model, train, calibration, 3)
    alpha, r = fitted.calibration["alpha"], fitted.calibration["regularization"]
    for frame in frames_of(model, 2, 2):
        total = features_of(model, frame).sum(0)
        variance = alpha**2 * total @ np.linalg.solve(covariance + r * np.eye(len(total)), total)
        assert uncertainty(fitted, frame) == pytest.approx(variance**0.5, rel=1e-5)


def test_scale_is_the_likeliest_and_regularisation_the_smallest_that_is_likely(fitted):
    model = fitted.inner
    train, calibration = frames_of(model, 24, 0), frames_of(model, 12, 1)
    features = np.array([features_of(model, frame).mean(0) for frame in train])
    rows = np.array([features_of(model, frame).mean(0) for frame in calibration])
    errors = [(evaluate(model, [f]).predictions["energy_pred"][0] - f.labels["energy"]) / len(f.numbers) for f in calibration]

    def likelihood(r, factor=1.0):
        """Logarithm of the largest for this r, or with the alpha of this r times a factor."""
        variance = np.einsum("nf,fn->n", rows, np.linalg.solve(features.T @ features + r * np.eye(rows.shape[1]), rows.T))
        variance = variance * np.mean(np.square(errors) / variance) * factor**2
        return -0.5 * (np.log(variance) + np.square(errors) / variance).sum()

    alpha, r = fitted.calibration["alpha"], fitted.calibration["regularization"]
    variance = np.einsum("nf,fn->n", rows, np.linalg.solve(features.T @ features + r * np.eye(rows.shape[1]), rows.T))
    assert alpha**2 == pytest.approx(np.mean(np.square(errors) / variance), rel=1e-6)
    assert likelihood(r) > max(likelihood(r, 0.99), likelihood(r, 1.01))
    largest = np.linalg.eigvalsh(features.T @ features)[-1]
    grid = largest * np.logspace(-9, 0, 19)
    best = max(likelihood(x) for x in grid)
    assert best - likelihood(r) <= 1.92
    assert all(best - likelihood(x) > 1.92 for x in grid if x < 0.9 * r)


def test_covers_what_it_should_where_the_truth_is_linear_and_noise_is_normal():
    """Least squares on noisy labels: weights are off by N(0, noise^2 C^-1), and nothing else is wrong."""
    random, size, noise, coverages, ratios = np.random.default_rng(0), 32, 0.3, [], []
    mixing = random.normal(size=(size, size))
    train, calibration, test = (random.normal(size=(n, size)) @ mixing for n in (300, 200, 500))
    covariance = train.T @ train
    true = noise * np.sqrt(np.einsum("nf,fn->n", test, np.linalg.solve(covariance, test.T)))
    for _ in range(60):
        wrong = np.linalg.solve(covariance, train.T @ random.normal(scale=noise, size=300))
        rows = _Rows(torch.tensor(calibration), torch.tensor(calibration @ wrong))
        factor, _ = _calibrated(torch.tensor(covariance), rows)
        sigma = np.linalg.norm(test @ factor.numpy().T, axis=1)
        coverages.append(np.mean(np.abs(test @ wrong) <= Z90 * sigma))
        ratios.append(np.mean((sigma / true) ** 2))
    assert 0.88 < np.mean(coverages) < 0.92
    assert np.mean(ratios) == pytest.approx(1, abs=0.1)


def test_is_larger_away_from_the_training_frames():
    """Where the weights of the last layer are wrong by as much as the training frames leave open."""
    model = make()
    train, calibration, near = (frames_of(model, n, seed, noise=0) for n, seed in ((60, 0), (20, 1), (10, 2)))
    values, vectors = np.linalg.eigh(_covariance(model, train, 8)[0].numpy())
    wrong = vectors @ (np.random.default_rng(0).normal(size=len(values)) / np.sqrt(np.maximum(values, 1e-6 * values[-1])))
    for frame in calibration:
        frame.labels["energy"] += features_of(model, frame).sum(0) @ wrong
    fitted = fit_uncertainty(model, train, calibration)
    far = [Frame(f.numbers, 1.3 * f.positions, f.cell, f.pbc) for f in near]
    assert np.mean([uncertainty(fitted, f) for f in far]) > 3 * np.mean([uncertainty(fitted, f) for f in near])


def test_two_copies_are_twice_as_uncertain_as_one_and_a_batch_is_its_members(fitted):
    atoms = next(structures(1, 7))
    other = atoms.copy()
    other.positions += 100.0
    frames = [Frame(a.numbers, a.positions, np.zeros((3, 3)), np.zeros(3, bool)) for a in (atoms, atoms + other)]
    one, two = (uncertainty(fitted, frame) for frame in frames)
    assert two == pytest.approx(2 * one, rel=1e-9)
    result = evaluate(fitted, frames_of(fitted, 5, 3), 5)
    assert result.predictions["energy_uncertainty"] == pytest.approx([uncertainty(fitted, f) for f in frames_of(fitted, 5, 3)], rel=1e-9)


def test_energies_and_forces_stay_and_fitting_again_replaces(fitted):
    frame = frames_of(fitted.inner, 1, 9)[0]
    with_it, without = (model(frame.graph(model.cutoff)) for model in (fitted, fitted.inner))
    assert with_it.keys() - without.keys() == {"energy_uncertainty"} and not with_it["energy_uncertainty"].requires_grad
    assert all(torch.equal(with_it[key], without[key]) for key in ("energy", "energies", "forces"))
    again = fit_uncertainty(fitted, frames_of(fitted, 24, 0), frames_of(fitted, 12, 1))
    assert again.inner is fitted.inner and torch.equal(again.factor, fitted.factor)


# --- wherever the model goes -----------------------------------------------------------------------------------------------------


def test_comes_back_from_its_file_in_full_precision(path):
    model = load(path)
    assert isinstance(model, WithUncertainty) and model.dtype == torch.float32 and model.factor.dtype == torch.float64
    fresh = make(dtype=torch.float32)
    fitted = fit_uncertainty(fresh, frames_of(fresh, 24, 0), frames_of(fresh, 12, 1))
    frame = frames_of(fresh, 1, 4)[0]
    assert uncertainty(model, frame) == uncertainty(fitted, frame) > 0
    assert torch.equal(model.factor, fitted.factor) and model.description() == fitted.description()
    assert core(model).name == "mace" and "energy_uncertainty" in model.outputs
    assert uncertainty(load(path, dtype="float64"), frame) == pytest.approx(uncertainty(model, frame), rel=1e-3)


def test_of_one_data_set_is_that_of_the_whole_model():
    references = {"a": REFERENCES, "b": {z: e + 1 for z, e in REFERENCES.items()}}
    model = make("nequip", references=references, data_sets=2)
    train, others = (frames_of(for_data_set(model, "b"), n, seed) for n, seed in ((20, 0), (10, 1)))
    for frame in train + others:
        frame.info["data_set"] = 1.0
    fitted = fit_uncertainty(model, train, others)
    assert uncertainty(for_data_set(fitted, "b"), train[0]) == uncertainty(fitted, train[0]) > 0


def test_calculator_and_dynamics_give_it(path, tmp_path):
    atoms = next(structures(1, 3))
    atoms.calc = EquiMolCalculator(path)
    found = atoms.calc.get_property("energy_uncertainty", atoms)
    atoms.get_potential_energy()
    assert atoms.calc.results["energy_uncertainty"] == found > 0
    model = load(path)  # which has not been frozen, as the calculator's has
    expected = model(AtomicGraph.build(atoms.positions, atoms.numbers, np.zeros((3, 3)), np.zeros(3, bool), model.cutoff))
    assert found == pytest.approx(expected["energy_uncertainty"].item(), rel=1e-3)
    ase.io.write(tmp_path / "one.xyz", atoms, format="extxyz")
    assert "energy_uncertainty" not in EquiMolCalculator(make()).implemented_properties
    for name in ("md.extxyz", "md.traj"):
        lines = []
        result = run_md(path, atoms, 100.0, 3, trajectory=tmp_path / name, interval=1, progress=False, log=lines.append)
        frames = ase.io.read(tmp_path / name, ":")
        assert [frame.info["energy_uncertainty"] for frame in frames[1:]] == pytest.approx(result.uncertainties, rel=1e-6)
        assert len(frames) == 4 and "meV at most, in step" in lines[-1]
    assert run_md(make(), atoms, 100.0, 2, progress=False, log=lines.append).uncertainties is None


def test_coverage_is_counted_where_there_is_an_energy(fitted):
    graph = next(iter([frames_of(fitted, 1, 0)[0].graph(fitted.cutoff)]))
    sums = ErrorSums(["energy"])
    for error in (0.0, 1.6, -1.7, 3.0):
        sums.update({"energy": graph.energy + error, "energy_uncertainty": torch.ones(1)}, graph)
    assert sums.result()["energy_coverage_percent"] == 50
    assert "within 90 % interval" in error_table({"test": sums.result()})
    assert "energy_coverage_percent" not in evaluate(fitted.inner, frames_of(fitted, 2, 0)).errors


# --- from the command line -------------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Three files with labelled structures."""
    monkeypatch.chdir(tmp_path)
    model = make()
    for name, count, seed in (("train", 24, 0), ("valid", 12, 1), ("test", 6, 2)):
        frames = []
        for frame in frames_of(model, count, seed):
            atoms = Atoms(frame.numbers, frame.positions)
            atoms.calc = SinglePointCalculator(atoms, energy=frame.labels["energy"], forces=np.zeros((len(atoms), 3)))
            frames.append(atoms)
        ase.io.write(f"{name}.xyz", frames, format="extxyz")
    return tmp_path


def test_command_writes_a_model_that_evaluate_and_info_know(files, capsys):
    save(make(), "model.equimol", {"level_of_theory": "PBE"})
    assert main(["uncertainty", "model.equimol", "train.xyz", "--calibrate", "valid.xyz", "--out", "out.equimol"]) == 0
    assert "from 24 frames, scaled by 12 others" in capsys.readouterr().out
    assert main(["evaluate", "out.equimol", "test.xyz"]) == 0
    assert "within 90 % interval" in capsys.readouterr().out
    predicted = ase.io.read("predictions.extxyz", ":")
    assert all(atoms.info["predicted_energy_uncertainty"] > 0 for atoms in predicted)
    assert "uncertainty" not in read(["predictions.extxyz"]).frames[0].labels
    assert main(["info", "out.equimol"]) == 0
    told = capsys.readouterr().out
    assert "energy_uncertainty" in told and "calibration_frames 12" in told and "PBE" in told


def test_command_takes_the_frames_of_a_run(files, capsys):
    train = ["train", "train.xyz", "valid=valid.xyz", "preset=nano", "steps=2", "references=fit", "test=0.0", "out=run"]
    assert main(train) == 0
    before = load("run/model.equimol").state_dict()
    assert main(["uncertainty", "run"]) == 0
    assert "from 24 frames, scaled by 12 others" in capsys.readouterr().out
    after = load("run/model.equimol")
    assert isinstance(after, WithUncertainty) and all(torch.equal(after.inner.state_dict()[key], before[key]) for key in before)
    assert main(["uncertainty", "run", "train.xyz"]) == 2
    assert "whose frames are known" in capsys.readouterr().err
    summary = json.loads((files / "run" / "summary.json").read_text())
    (files / "run" / "summary.json").write_text(json.dumps(summary | {"data_checksum": "other"}))
    assert main(["uncertainty", "run"]) == 2
    assert "have changed since" in capsys.readouterr().err


def test_command_says_what_is_missing(files, capsys):
    save(make(), "model.equimol")
    assert main(["uncertainty", "model.equimol", "train.xyz"]) == 2
    assert "--calibrate valid.xyz" in capsys.readouterr().err
    assert main(["uncertainty", "model.equimol", "train.xyz", "--calibrate", "test.xyz"]) == 2
    assert f"at least {FEWEST} frames to calibrate with, got 6" in capsys.readouterr().err
    assert not list(files.glob("*.part"))


# --- what cannot be --------------------------------------------------------------------------------------------------------------


def test_bad_input_is_refused_with_the_reason():
    model = make()
    train, calibration = frames_of(model, 12, 0), frames_of(model, 12, 1)
    bare = [Frame(f.numbers, f.positions, f.cell, f.pbc, {"forces": np.zeros_like(f.positions)}) for f in train]
    for error, message, arguments in (
        (DataError, "to calibrate with, got 9", (model, train, calibration[:9])),
        (DataError, "got none", (model, [], calibration)),
        (DataError, "none of the 12 training frames has an energy", (model, bare, calibration)),
        (DataError, "1 of 13 frames to calibrate with have no energy", (model, train, [*calibration, bare[0]])),
        (ValueError, "the structure has C too", (build_model("mace", elements=[1, 8]), train, calibration)),
        (ValueError, "predicts its forces directly", (make("escaip_direct"), train, calibration)),
        (ValueError, "it has learned nothing", (build_model("lennard_jones", elements=REFERENCES), train, calibration)),
        (DataError, "exactly the energies that the model gives", (model, train, frames_of(model, 12, 1, noise=0))),
    ):
        with pytest.raises(error, match=message):
            fit_uncertainty(*arguments)
