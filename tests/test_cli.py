"""The command line parses, builds and calls; an error is one line and exit code 2."""

import subprocess
import sys
from types import SimpleNamespace

import ase.io
import numpy as np
import pytest
import torch
import yaml
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator

from equimol.cli import COMMANDS, main
from equimol.models import build_model, save
from equimol.training.errors import TrainingInterrupted


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model("mace", preset="tiny", elements=[1, 8], references={1: -13.6, 8: -2042.3})
    return str(save(model, tmp_path_factory.mktemp("model") / "model.equimol", {"level_of_theory": "none at all"}))


@pytest.fixture
def data_path(tmp_path):
    frames = []
    for seed in range(3):
        atoms = molecule("H2O")
        atoms.rattle(0.05, seed=seed)
        atoms.calc = SinglePointCalculator(atoms, energy=-2070.0 + seed, forces=np.full((3, 3), 0.1 * seed))
        frames.append(atoms)
    ase.io.write(tmp_path / "water.xyz", frames, format="extxyz")
    return str(tmp_path / "water.xyz")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Default output names end in a folder of the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EQUIMOL_TRACEBACK", raising=False)
    return tmp_path


def error_of(capsys, *arguments):
    """The one line that a failing command writes."""
    assert main(list(arguments)) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and "Traceback" not in lines[0]
    return lines[0]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_examples(command, capsys):
    with pytest.raises(SystemExit) as exit:
        main([command, "--help"])
    assert exit.value.code == 0
    text = capsys.readouterr().out
    assert "examples:" in text and f"equimol {command}" in text.split("examples:")[1]


def test_help_is_quick():
    code = "import sys\nfrom equimol.cli import main\ntry: main(['--help'])\nexcept SystemExit: print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip().endswith("False")


def test_the_module_is_the_command():
    answer = subprocess.run([sys.executable, "-m", "equimol", "--version"], capture_output=True, text=True, check=False)
    assert answer.returncode == 0 and answer.stdout.startswith("equimol ")


@pytest.mark.parametrize(
    "arguments",
    [[], ["fly"], ["md"], ["info", "--fast"], ["info", "a", "b"], ["md", "a", "b", "--steps", "x"], ["train", "x.xyz", "--fast"]],
)
def test_wrong_usage_is_one_line(arguments, capsys):
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2
    text = capsys.readouterr().err.strip()
    assert len(text.splitlines()) == 1 and text.endswith("--help")


# --- info ------------------------------------------------------------------------------------------------------------------------


def test_info_says_what_is_installed(capsys):
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    assert torch.__version__.split("+")[0] in text and "threads" in text and "mace (" in text and "gaunt_grid" in text


def test_info_says_what_a_model_is(model_path, capsys):
    assert main(["info", model_path]) == 0
    text = capsys.readouterr().out
    for word in ("mace(", "H O", "5 Å", "eV/Å³", "none at all", "O -2042.3", "fingerprint", "reproduced here in float32"):
        assert word in text, word


def test_info_of_something_else_is_an_error(data_path, capsys):
    assert "cannot be read as a model" in error_of(capsys, "info", data_path)
    assert "there is no model file" in error_of(capsys, "info", "missing.equimol")


# --- md --------------------------------------------------------------------------------------------------------------------------


def test_md_writes_a_trajectory_and_prints_speed(model_path, data_path, elsewhere, capsys):
    assert main(["md", model_path, data_path, "--temperature", "50", "--steps", "4", "--interval", "2", "--timestep", "0.1"]) == 0
    assert len(ase.io.read(elsewhere / "md.extxyz", ":")) == 3
    text = capsys.readouterr().out
    assert "Langevin" in text and "ms per step" in text and "--thermostat nve measures it" in text


def test_md_at_constant_energy_prints_the_drift(model_path, data_path, elsewhere, capsys):
    arguments = ["--steps", "3", "--thermostat", "nve", "--trajectory", "nve.traj", "--dtype", "float64"]
    assert main(["md", model_path, data_path, *arguments, "--temperature", "10", "--frame", "2"]) == 0
    assert "eV/atom/ps" in capsys.readouterr().out
    assert (elsewhere / "nve.traj").exists()


def test_md_of_an_unknown_element_is_an_error(model_path, elsewhere, capsys):
    ase.io.write("gold.xyz", molecule("CH4"))
    assert "does not know C; it knows H, O" in error_of(capsys, "md", model_path, "gold.xyz", "--steps", "2")


# --- evaluate --------------------------------------------------------------------------------------------------------------------


def test_evaluate_prints_errors_and_writes_predictions(model_path, data_path, elsewhere, capsys):
    assert main(["evaluate", model_path, data_path]) == 0
    text = capsys.readouterr().out
    for word in ("energy", "meV/atom", "forces RMSE", "forces cosine", "water.xyz", "predictions.extxyz"):
        assert word in text, word
    frames = ase.io.read(elsewhere / "predictions.extxyz", ":")
    assert len(frames) == 3 and "predicted_energy" in frames[0].info and "predicted_forces" in frames[0].arrays


def test_evaluate_writes_arrays_too(model_path, data_path, elsewhere):
    assert main(["evaluate", model_path, data_path, "--out", "p.npz", "--batch", "2"]) == 0
    with np.load(elsewhere / "p.npz") as arrays:
        assert arrays["forces_pred"].shape == (9, 3)


def test_evaluate_leaves_isolated_atoms_out_and_makes_the_folder(model_path, data_path, elsewhere, capsys):
    atom = molecule("O")
    atom.calc = SinglePointCalculator(atom, energy=-2000.0, forces=np.zeros((1, 3)))
    ase.io.write("atom.xyz", atom, format="extxyz")
    assert main(["evaluate", model_path, "atom.xyz", data_path, "--out", "new/folder/p.npz"]) == 0
    assert "1 isolated atoms left out" in capsys.readouterr().out
    with np.load(elsewhere / "new" / "folder" / "p.npz") as arrays:
        assert arrays["natoms"].tolist() == [3, 3, 3]


def test_evaluate_takes_the_keys_of_the_model_or_those_named(data_path, elsewhere, capsys):
    frames = ase.io.read(data_path, ":")
    for frame in frames:
        frame.info |= {"mine": -1.0, "other": -2.0, "REF_energy": -3.0}
        frame.calc = None
    ase.io.write("keys.xyz", frames, format="extxyz")
    model = build_model("mace", preset="tiny", elements=[1, 8])
    save(model, "keys.equimol", {"label_keys": {"energy": ["mine"], "forces": ["absent"]}})
    for words, energy in (([], -1.0), (["--keys", "energy=other"], -2.0)):
        assert main(["evaluate", "keys.equimol", "keys.xyz", "--out", "p.npz", *words]) == 0
        with np.load("p.npz") as arrays:
            assert arrays["energy_true"].tolist() == [energy] * 3
    assert "'mine' as energy: the model was trained on that key" in capsys.readouterr().out
    assert "--keys are written name=value" in error_of(capsys, "evaluate", "keys.equimol", "keys.xyz", "--keys", "energy")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("command", ["evaluate", "md", "info"])
def test_a_device_that_is_not_there_is_named(command, model_path, data_path, capsys):
    files = [model_path] if command == "info" else [model_path, data_path]
    assert "cuda was asked for, but PyTorch finds none here" in error_of(capsys, command, *files, "--device", "cuda")
    assert "must be cpu or cuda, got 'gpu'" in error_of(capsys, command, *files, "--device", "gpu")


def test_evaluate_refuses_other_suffixes_at_once(data_path, capsys):
    assert ".extxyz, .xyz or .npz" in error_of(capsys, "evaluate", "missing.equimol", data_path, "--out", "p.csv")


# --- convert ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def fairchem_weights(elsewhere):
    """A small state dict under the names of fairchem-core, and the settings that belong to it."""
    from equimol.convert.escaip import _names, config_of
    from equimol.convert.names import output
    from equimol.models import EScAIP

    settings = {"max_num_elements": 10, "hidden_size": 16, "num_layers": 2, "max_radius": 5.0, "knn_k": 8, "knn_sigmoid_scale": 0.2}
    settings |= {"knn_lse_scale": 0.1, "atten_num_heads": 2, "freequency_list": [4, 4], "edge_distance_expansion_size": 16}
    config = config_of(settings, tuple(range(1, 10)))
    ours = EScAIP(config).state_dict()
    weights = {}
    for name, theirs in [*_names(config, False), *output("energy", "output_heads.efs.energy_layer")]:
        value = torch.cat([ours[name][:1], ours[name]]) if name.endswith("_element") else ours[name]
        parts = (theirs,) if isinstance(theirs, str) else theirs
        weights |= dict(zip(parts, value.chunk(len(parts)), strict=True))
    torch.save(weights, "weights.pt")
    return settings


@pytest.mark.parametrize("around", [(), ("backbone",), ("model", "backbone")])
def test_convert_writes_a_model_and_says_what_it_is(around, fairchem_weights, elsewhere, capsys):
    content = fairchem_weights
    for key in reversed(around):
        content = {key: content}
    (elsewhere / "settings.yaml").write_text(yaml.safe_dump(content))
    assert main(["convert", "fairchem", "weights.pt", "models/escaip.equimol", "--settings", "settings.yaml"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("models/escaip.equimol: escaip(") and len(text.strip().splitlines()) == 1
    for word in ("width 16", "layers 2", "cutoff 5 Å", " parameters", "H He Li Be B C N O F", "no reference energies"):
        assert word in text, word
    assert main(["info", "models/escaip.equimol"]) == 0


def test_convert_names_what_is_wrong(fairchem_weights, elsewhere, capsys):
    convert = ["convert", "fairchem", "weights.pt"]
    assert "ends in .equimol or .safetensors, got 'x.pt'" in error_of(capsys, *convert, "x.pt")
    assert "give those of the backbone" in error_of(capsys, *convert, "x.equimol")
    assert "absent.pt" in error_of(capsys, "convert", "fairchem", "absent.pt", "x.equimol")
    for name, content, message in (
        ("a.yaml", "[1, 2]", "must hold the settings of a backbone, lines of `key: value`, got list"),
        ("b.yaml", "{1", "b.yaml is not YAML"),
        ("c.yaml", "model: {backbone: 3}", "got int"),
    ):
        (elsewhere / name).write_text(content)
        assert message in error_of(capsys, *convert, "x.equimol", "--settings", name)


# --- train -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["data.xyz", "preset=small", "loss.forces=100", "--time", "30m"],
        ["--time", "30m", "data.xyz", "preset=small", "loss.forces=100"],
        ["data.xyz", "--time", "30m", "preset=small", "--print-config", "loss.forces=100"],
    ],
)
def test_train_takes_data_and_settings_in_any_order(arguments, capsys):
    assert main(["train", "--print-config", *arguments]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["data"] == "data.xyz" and config["preset"] == "small" and config["time"] == "30m"
    assert config["loss"]["forces"] == 100 and config["loss"]["energy"] == 1


def test_train_takes_a_file_of_settings_and_several_data_files(elsewhere, capsys):
    (elsewhere / "run.yaml").write_text("preset: nano\nseed: 3\n")
    assert main(["train", "a b.xyz", "c.xyz", "--config", "run.yaml", "seed=4", "--print-config"]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["data"] == ["a b.xyz", "c.xyz"] and config["preset"] == "nano" and config["seed"] == 4


def test_a_printed_config_can_be_given_back(elsewhere, capsys):
    main(["train", "data.xyz", "preset=small", "--print-config"])
    text = capsys.readouterr().out
    (elsewhere / "run.yaml").write_text(text)
    main(["train", "--config", "run.yaml", "--print-config"])
    assert capsys.readouterr().out == text


def test_train_hands_the_settings_to_the_training(monkeypatch):
    received = []
    monkeypatch.setitem(sys.modules, "equimol.training.fit", SimpleNamespace(fit=received.append))
    assert main(["train", "data.xyz", "out=runs/x"]) == 0
    assert received[0].data == "data.xyz" and received[0].out == "runs/x" and not received[0].resume


def test_resume_takes_the_settings_of_the_run(elsewhere, monkeypatch, capsys):
    received = []
    monkeypatch.setitem(sys.modules, "equimol.training.fit", SimpleNamespace(fit=received.append))
    run = elsewhere / "run"
    run.mkdir()
    (run / "config.yaml").write_text("data: data.xyz\npreset: nano\nout: somewhere\n")
    assert main(["train", "--resume", str(run)]) == 0
    assert received[0].resume is True and received[0].out == str(run) and received[0].preset == "nano"
    assert "holds no run to resume" in error_of(capsys, "train", "--resume", str(elsewhere))


def test_a_setting_written_as_an_option_is_answered_with_the_way_to_write_it(capsys):
    for words, remedy in (
        (["--preset", "small"], "write preset=small"),
        (["--learning-rate=0.1"], "write learning_rate=0.1"),
        (["--loss.forces", "9"], "write loss.forces=9"),
    ):
        with pytest.raises(SystemExit):
            main(["train", "data.xyz", *words])
        assert remedy in capsys.readouterr().err


def test_wrong_settings_are_one_line_with_a_suggestion(capsys):
    assert "did you mean 'learning_rate'?" in error_of(capsys, "train", "data.xyz", "lerning_rate=0.1")
    assert "no-such-file.xyz" in error_of(capsys, "train", "no-such-file.xyz", "time=10s")


# --- demo, bench, errors -----------------------------------------------------------------------------------------------------------


def test_demo_passes_its_settings_on(monkeypatch, elsewhere):
    received = []
    monkeypatch.setitem(sys.modules, "equimol.demo", SimpleNamespace(run=lambda *values, **settings: received.append((values, settings))))
    assert main(["demo", "--minutes", "0.5", "--md-steps", "7"]) == 0
    (values, settings) = received[0]
    assert str(values[0]) == "equimol-demo" and settings == {"minutes": 0.5, "md_steps": 7}


def test_bench_times_the_products(elsewhere, capsys):
    arguments = ["--quick", "--lmax", "1", "--batch", "8", "--channels", "2", "--out", "times.csv"]
    assert main(["bench", "tensor-products", *arguments]) == 0
    assert "clebsch_gordan" in capsys.readouterr().out
    assert (elsewhere / "times.csv").exists()


def failing(error):
    def run(*_, **__):
        raise error

    return SimpleNamespace(run=run)


def test_an_interrupted_command_ends_with_130(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "equimol.demo", failing(KeyboardInterrupt()))
    assert main(["demo"]) == 130
    assert capsys.readouterr().err == "equimol: interrupted\n"


def test_an_interrupted_training_is_no_error(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "equimol.demo", failing(TrainingInterrupted("stopped; continue with: equimol train --resume x")))
    assert main(["demo"]) == 130
    assert capsys.readouterr().err == "equimol demo: stopped; continue with: equimol train --resume x\n"


def test_a_demo_takes_some_time(capsys):
    assert "minutes must be positive" in error_of(capsys, "demo", "--minutes", "0")


def test_an_unforeseen_error_names_its_kind(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "equimol.demo", failing(KeyError("x")))
    line = error_of(capsys, "demo")
    assert line == "equimol demo: error: KeyError: 'x' (EQUIMOL_TRACEBACK=1 shows where)"


def test_a_message_of_several_lines_becomes_one(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "equimol.demo", failing(ValueError("first\n   second")))
    assert error_of(capsys, "demo") == "equimol demo: error: first second"


def test_a_traceback_is_shown_on_request(monkeypatch):
    monkeypatch.setenv("EQUIMOL_TRACEBACK", "1")
    monkeypatch.setitem(sys.modules, "equimol.demo", failing(ValueError("x")))
    with pytest.raises(ValueError, match="x"):
        main(["demo"])


def test_the_package_names_what_others_rely_on():
    import equimol

    assert callable(equimol.load) and callable(equimol.save) and callable(equimol.build_model)
    assert equimol.models.MODELS and equimol.tensor_products.TENSOR_PRODUCTS
    assert {"load", "save", "build_model", "models", "testing"} <= set(dir(equimol))
    with pytest.raises(AttributeError, match="no attribute 'fly'"):
        equimol.fly  # noqa: B018


def test_a_setting_may_be_longer_than_any_file_name(capsys):
    long = "references={" + ", ".join(f"{z}: {-13.6056931227 * z}" for z in range(1, 60)) + "}"
    assert main(["train", "data.xyz", long, "--print-config"]) == 0
    assert "59: -802.7" in capsys.readouterr().out


# --- data ------------------------------------------------------------------------------------------------------------------------


def test_data_check_prints_a_verdict_per_check_and_its_exit_code_tells(data_path, elsewhere, capsys):
    assert main(["data", "check", data_path]) == 0
    text = capsys.readouterr().out
    assert "energy unit" in text and "duplicates" in text and "PROBLEM" not in text
    frames = ase.io.read(data_path, ":")
    ase.io.write(elsewhere / "twice.xyz", frames + frames, format="extxyz")
    assert main(["data", "check", "twice.xyz"]) == 1
    assert "3 of 6 frames repeat another one" in capsys.readouterr().out


def test_data_pack_writes_a_file_that_is_read_like_any_other(data_path, elsewhere, capsys):
    assert main(["data", "pack", data_path, "water.eqpack", "--cutoff", "5", "--units", "energy=hartree", "length=Å"]) == 0
    assert "packed into water.eqpack" in capsys.readouterr().out
    from equimol.data import read

    frames = read(elsewhere / "water.eqpack")
    assert len(frames) == 3 and frames[0].labels["energy"] == pytest.approx(-2070.0 * 27.211386, rel=1e-6)
    assert main(["data", "check", "water.eqpack", "--limit", "2"]) in (0, 1)


def test_data_says_what_is_missing(data_path, capsys):
    assert "pack needs files to read and, last, the file to write" in error_of(capsys, "data", "pack", data_path)
    assert "a packed file ends in .eqpack" in error_of(capsys, "data", "pack", data_path, "out.xyz")
    assert "--units are written name=value, such as energy=hartree" in error_of(capsys, "data", "check", data_path, "--units", "hartree")
    assert "unknown unit 'stone'" in error_of(capsys, "data", "check", data_path, "--units", "energy=stone")


def test_export_and_the_plugin_say_what_is_missing(model_path, capsys, monkeypatch):
    assert "a package ends in .pt2, got 'm.pt'" in error_of(capsys, "export", model_path, "m.pt")
    assert "there is no model file nothing.equimol" in error_of(capsys, "export", "nothing.equimol", "m.pt2")
    assert "leave data_set out" in error_of(capsys, "export", model_path, "m.pt2", "--data-set", "water")
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "there is no C++ compiler no-such-compiler" in error_of(capsys, "lammps", "build")
