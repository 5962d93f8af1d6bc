"""Settings: checked when they are given, named when they are wrong, and the same after a trip through YAML."""

from pathlib import Path

import pytest

from equimol.training.config import TrainConfig, dump_config, load_config, parse_duration


def test_the_printed_settings_load_back_to_the_same_ones(tmp_path: Path):
    references = "references={1: -13.6, O: -2.0e3}"
    config = load_config(None, ["data=[a.xyz, b.xyz]", "loss.forces=100", "settings.product=gaunt_grid", references, "ema=1e-3"])
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    assert load_config(path) == config
    path.write_text(dump_config(TrainConfig()))
    assert load_config(path) == TrainConfig()


def test_every_setting_is_explained_in_the_printed_text():
    assert all("  # " in line for line in dump_config(TrainConfig()).splitlines())


def test_overrides_are_laid_over_the_file_and_reach_inside_mappings(tmp_path: Path):
    path = tmp_path / "config.yaml"
    path.write_text("data: data.xyz\nlearning_rate: 0.02\nloss: {energy: 3}\n")
    config = load_config(path, ["loss.forces=100", "settings.product=gaunt_grid", "seed=4"])
    assert config.loss == {"energy": 3.0, "forces": 100.0, "stress": "auto"}
    assert (config.settings, config.seed, config.learning_rate) == ({"product": "gaunt_grid"}, 4, 0.02)


def test_defaults_are_not_shared_between_configurations():
    load_config(None, ["loss.energy=7"])
    assert TrainConfig().loss["energy"] == 1.0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lerning_rate=0.1", "no field 'lerning_rate'; did you mean 'learning_rate'"),
        ("loss.force=1", "no field 'force'; did you mean 'forces'"),
        ("learning_rate=fast", "learning_rate must be a number, got 'fast'"),
        ("batch=2.5", "batch must be a whole number or a mapping {key: value} or auto, got 2.5"),
        ("batch=0", "batch must be at least 1"),
        ("batch.atom=500", "batch must be at least 1, or a budget {atoms: N} or {edges: N}"),
        ("batch.atoms=0", "budget"),
        ("batch={atoms: 5, edges: 5}", "budget"),
        ("accumulate=0", "accumulate must be at least 1"),
        ("schedule=linear", "schedule must be cosine | exponential | wsd"),
        ("stage_two={start: 1.5, energy: 1}", "stage_two must be {start: share of the run"),
        ("stage_two={start: 0.5}", "stage_two must be {start: share of the run"),
        ("stage_two={energy: 5}", "stage_two must be {start: share of the run"),
        ("stage_two={start: 0.5, energies: 5}", "stage_two must be {start: share of the run"),
        ("log_to=[csv]", "log_to must be auto or a list of tensorboard and wandb"),
        ("units.energy=furlong", "units: unknown unit 'furlong' of energy"),
        ("units.energies=eV", "units: units are stated for length, energy, forces, stress"),
        ("units.energy=5", "units must be a mapping"),
        ("seed=true", "seed must be a whole number, got True"),
        ("precision=half", "precision must be float32 | float64"),
        ("time=90", "time must be text"),
        ("time=soon", "time must be a duration"),
        ("loss.forces=-1", "loss.forces must be 0 or more"),
        ("valid=1.5", "valid must be a fraction below 1, a whole number of frames, or a file"),
        ("product=gaunt_grid", "write settings.product=gaunt_grid"),
        ("seed", "overrides are written key=value"),
        ("seed.x=1", "seed"),
    ],
)
def test_a_wrong_setting_is_named_with_what_would_be_right(override: str, message: str):
    with pytest.raises(ValueError) as error:
        load_config(None, ["seed=1", override])
    assert message in str(error.value)


@pytest.mark.parametrize("content", [b"seed: x\n", b"sed: 1\n", b"[1\n", b"- 1\n", b"\xff\xfe\xfd"])
def test_what_is_wrong_in_a_file_is_said_with_its_name(tmp_path: Path, content: bytes):
    (tmp_path / "run.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=r"run\.yaml"):
        load_config(tmp_path / "run.yaml")


def test_numbers_that_yaml_reads_as_text_are_numbers():
    assert load_config(None, ["learning_rate=1e-3"]).learning_rate == 1e-3


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("30m", 1800), ("1h30m", 5400), ("1.5h", 5400), ("1h 10s", 3610)])
def test_durations_have_units(text: str, seconds: float):
    assert parse_duration(text) == seconds
