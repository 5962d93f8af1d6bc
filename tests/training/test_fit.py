"""A run from settings to a folder; stopped, killed and resumed runs end where an undisturbed one ends."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from equimol.training.checkpoint import Checkpoints, TrainingInterrupted, read_checkpoint
from equimol.training.config import load_config
from equimol.training.fit import fit
from equimol.training.folder import only_writer


def run(overrides: list[str], *more: str) -> Path:
    return fit(load_config(None, [*overrides, *more]))


def assert_same_end(a: Path, b: Path) -> None:
    """Weights, average, optimizer and schedule are bit for bit the same."""
    first, second = read_checkpoint(a / "last.ckpt"), read_checkpoint(b / "last.ckpt")
    for part in ("global_step", "state_dict", "optimizer_states", "lr_schedulers", "random_state"):
        _assert_equal(first[part], second[part], part)


def _assert_equal(a, b, where: str) -> None:
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            _assert_equal(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for place, pair in enumerate(zip(a, b, strict=True)):
            _assert_equal(*pair, f"{where}[{place}]")
    else:
        assert a == b, where


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return [{key: value for key, value in row.items() if key not in ("seconds", "step_seconds", "waiting")} for row in rows]


@pytest.fixture(scope="module")
def finished(clusters: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run to its end."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    settings = [f"data={clusters}", "preset=tiny", "batch=4", "split=random", "settings.channels=4", "cutoff=4.0"]
    assert run(settings, "steps=60", "level_of_theory=EMT", f"out={folder}") == folder
    return folder


def test_a_run_leaves_everything_in_its_folder_and_nothing_else(finished: Path):
    names = {"config.yaml", "data.txt", "summary.json", "log.csv", "last.ckpt", "best.ckpt", "model.equimol", "errors.json", "errors.txt"}
    names |= {"report.html", "predictions_train.npz", "predictions_valid.npz", "predictions_test.npz", ".lock"}
    assert set(os.listdir(finished)) == names


def test_training_reduces_the_errors(finished: Path):
    log = rows(finished)
    first, last = (float(log[place]["valid_forces_rmse_mev_per_angstrom"]) for place in (0, -1))
    assert last < 0.8 * first
    assert int(log[-1]["step"]) == 60 and float(log[-1]["lr"]) < 1e-4


def test_the_model_file_gives_the_errors_of_the_table(finished: Path, clusters: Path):
    from equimol.data.formats import read
    from equimol.models import load
    from equimol.training.evaluate import evaluate

    stored = np.load(finished / "predictions_test.npz")
    chosen = {frame.source: frame for frame in read(clusters).frames}
    result = evaluate(load(finished / "model.equimol"), [chosen[str(source)] for source in stored["source"]], batch=4)
    errors = json.loads((finished / "errors.json").read_text())["test"]
    assert result.errors == pytest.approx(errors, rel=1e-4)
    assert "meV/Å" in (finished / "errors.txt").read_text()


def test_the_model_file_tells_how_it_was_made(finished: Path):
    from equimol.models.file import read_metadata

    metadata = read_metadata(finished / "model.equimol")
    assert metadata["level_of_theory"] == "EMT"
    assert metadata["training"]["steps"] == 60 and metadata["label_keys"]["forces"] == ["forces"]


def test_the_stored_settings_give_the_same_run_again(finished: Path, tmp_path: Path, no_report: None):
    again = fit(load_config(finished / "config.yaml", [f"out={tmp_path / 'again'}"]))
    assert_same_end(finished, again)


def test_a_folder_with_another_run_is_refused_with_the_remedy(finished: Path, quick: list[str], tmp_path: Path):
    with pytest.raises(ValueError, match=r"holds another run, which is finished; choose another folder with out=\.\.\.$"):
        run(quick, f"out={finished}")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").touch()
    with pytest.raises(ValueError, match=r"continue it with: equimol train --resume .*run, or choose another folder with out="):
        run(quick)


def test_resuming_a_finished_run_does_nothing(finished: Path, quick: list[str]):
    before = (finished / "last.ckpt").stat().st_mtime_ns
    assert run(quick, f"out={finished}", "resume=true") == finished
    assert (finished / "last.ckpt").stat().st_mtime_ns == before


def test_resuming_nothing_is_an_error_and_resuming_with_other_settings_too(finished: Path, quick: list[str], tmp_path: Path):
    with pytest.raises(ValueError, match="no run to resume"):
        run(quick, "resume=true", "steps=3")
    with pytest.raises(ValueError, match=r"learning_rate was 0\.01 and is now 0\.5"):
        run(quick, f"out={finished}", "resume=true", "learning_rate=0.5")


@pytest.mark.parametrize("at", [7, 8, 12])
def test_a_run_stopped_by_a_signal_continues_to_the_same_weights_and_log(quick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int):
    length = ["steps=20", "validate_every=4"]
    undisturbed = run(quick, *length, f"out={tmp_path / 'undisturbed'}")
    original = Checkpoints.on_train_batch_start

    def interrupt(self, trainer, module, batch, batch_idx):
        if trainer.global_step == at:
            os.kill(os.getpid(), signal.SIGINT)
        original(self, trainer, module, batch, batch_idx)

    monkeypatch.setattr(Checkpoints, "on_train_batch_start", interrupt)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(TrainingInterrupted, match=f"after step {at}; continue with: equimol train --resume {tmp_path / 'run'}"):
        run(quick, *length)
    assert signal.getsignal(signal.SIGINT) is handler
    monkeypatch.undo()
    (tmp_path / "run" / ".last.ckpt.123.part").write_text("of a writer that was killed")
    resumed = run(quick, *length, "resume=true")
    assert not list(resumed.glob(".*.part"))
    assert_same_end(undisturbed, resumed)
    assert rows(undisturbed) == rows(resumed)


def begin(monkeypatch: pytest.MonkeyPatch, *overrides: str) -> None:
    """A run that is interrupted before its first step."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("equimol.training.fit._train", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        run(list(overrides))


def test_files_that_were_moved_are_named_at_the_resumption(quick, clusters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    files = {name: tmp_path / f"{name}.xyz" for name in ("data", "valid", "test")}
    for path in files.values():
        path.write_bytes(clusters.read_bytes())
    begin(monkeypatch, *quick, "steps=3", *(f"{name}={path}" for name, path in files.items()))
    moved = {name: path.rename(tmp_path / f"moved-{path.name}") for name, path in files.items()}
    stored = [f"out={tmp_path / 'run'}", "resume=true"]
    with pytest.raises(ValueError, match="no such file"):
        fit(load_config(tmp_path / "run" / "config.yaml", stored))
    folder = fit(load_config(tmp_path / "run" / "config.yaml", [*stored, *(f"{name}={path}" for name, path in moved.items())]))
    assert read_checkpoint(folder / "last.ckpt")["global_step"] == 3


def test_a_run_with_a_file_of_references_can_be_resumed(quick, tmp_path: Path, write_frames, monkeypatch: pytest.MonkeyPatch):
    from ase import Atoms

    atoms = [Atoms(symbol, info={"my_energy": energy}) for symbol, energy in (("Cu", -3.0), ("Al", -5.0))]
    data = Path(next(key for key in quick if key.startswith("data=")).removeprefix("data="))
    named = tmp_path / "named.xyz"
    named.write_text(data.read_text().replace(" energy=", " my_energy="))
    references = f"references={write_frames(tmp_path / 'atoms.xyz', atoms)}"
    begin(monkeypatch, *quick, f"data={named}", "steps=3", references, "keys.energy=my_energy", "keys.forces=forces")
    assert "references: 2 structures from" in (tmp_path / "run" / "data.txt").read_text()
    folder = run(quick, f"data={named}", "resume=true")
    assert load_config(folder / "config.yaml").references == {13: -5.0, 29: -3.0}
    assert read_checkpoint(folder / "last.ckpt")["global_step"] == 3


def test_data_that_changed_are_noticed_at_the_resumption(quick: list[str], clusters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    copy = tmp_path / "copy.xyz"
    copy.write_bytes(clusters.read_bytes())
    begin(monkeypatch, *quick, f"data={copy}", "steps=3")
    copy.write_text(copy.read_text().replace("energy=", "energy=1"))
    with pytest.raises(ValueError, match="the data files are not those"):
        run(quick, f"data={copy}", "resume=true")


def test_a_full_disk_keeps_the_previous_checkpoint_and_the_run_can_go_on(quick: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    undisturbed = run(quick, "steps=9", f"out={tmp_path / 'undisturbed'}")
    original = os.fsync

    def full(descriptor: int) -> None:
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        if "last.ckpt" in name and (tmp_path / "run" / "last.ckpt").exists():
            raise OSError(28, "No space left on device")
        original(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"last\.ckpt \(No space left on device\): the previous version is intact"):
        run(quick, "steps=9", "checkpoint_every=3")
    monkeypatch.undo()
    assert read_checkpoint(tmp_path / "run" / "last.ckpt")["global_step"] == 3
    assert_same_end(undisturbed, run(quick, "steps=9", "resume=true"))


def test_a_loss_that_is_not_a_number_stops_the_run_before_it_is_saved(quick: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from equimol.training.module import TrainingModule

    step = TrainingModule.training_step

    def broken(self, graph, batch_idx=0):
        loss = step(self, graph) * (1.0 if self.trainer.global_step < 5 else torch.nan)
        self.terms["loss"] = loss.detach()
        return loss

    monkeypatch.setattr(TrainingModule, "training_step", broken)
    with pytest.raises(ValueError, match="the loss became nan"):
        run(quick, "steps=12", "checkpoint_every=2", "validate_every=12")
    weights = read_checkpoint(tmp_path / "run" / "last.ckpt")["state_dict"]
    assert all(torch.isfinite(value).all() for value in weights.values() if value.is_floating_point())


def test_a_gradient_that_is_not_a_number_never_reaches_the_weights(quick: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from equimol.training.module import TrainingModule

    step = TrainingModule.training_step

    def broken(self, graph, batch_idx=0):
        loss = step(self, graph)
        if self.trainer.global_step >= 5:
            loss.register_hook(lambda grad: grad * torch.nan)
        return loss

    monkeypatch.setattr(TrainingModule, "training_step", broken)
    with pytest.raises(ValueError, match="the gradient became nan although the loss is finite"):
        run(quick, "steps=12", "checkpoint_every=1", "validate_every=12")
    weights = read_checkpoint(tmp_path / "run" / "last.ckpt")["state_dict"]
    assert all(torch.isfinite(value).all() for value in weights.values() if value.is_floating_point())


def test_stress_is_trained_where_there_is_one(quick: list[str], crystals: Path):
    folder = run(quick, f"data={crystals}", "steps=4", "test=0", "precision=float64")
    log = rows(folder)
    assert float(log[-1]["loss_stress"]) > 0
    weights = read_checkpoint(folder / "last.ckpt")["state_dict"]
    assert all(torch.isfinite(value).all() for value in weights.values())


def test_a_run_without_validation_set_logs_its_losses(quick: list[str]):
    folder = run(quick, "steps=6", "validate_every=2", "valid=0", "test=0")
    assert [row["step"] for row in rows(folder)] == ["2", "4", "6"]
    assert not (folder / "best.ckpt").exists()


def test_wrong_settings_are_named_before_the_data_are_read(quick: list[str]):
    with pytest.raises(ValueError, match="did you mean 'channels'"):
        run([key for key in quick if "settings" not in key], "data=absent.xyz", "settings.chanels=8")
    with pytest.raises(ValueError, match="nothing to learn; train one of mace, scale_shift_mace, "):
        run(["data=absent.xyz", "model=lennard_jones", "cutoff=4.0"])
    with pytest.raises(ValueError, match="channels must be a whole number, got 'abc'"):
        run(quick, "data=absent.xyz", "settings.channels=abc")
    with pytest.raises(ValueError, match="data must name a file"):
        run([])


def test_the_global_random_state_is_left_alone(quick: list[str]):
    before = torch.get_rng_state()
    run(quick, "steps=2")
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.slow
def test_a_run_fits_its_time(quick: list[str]):
    start = time.monotonic()
    run([key for key in quick if not key.startswith("preset")], "time=30s")
    assert 20 < time.monotonic() - start < 36


KILLED = """
import os, random, signal, sys, time
from equimol.training import config, fit, report

report.write_report = lambda folder: (folder / "report.html").write_text("")  # drawing takes longer than the run

def begin(*more):
    process = os.fork()
    if process == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        fit.fit(config.load_config(None, [*sys.argv[4:], *more]))
        os._exit(0)
    return process

folder, kills, chance = sys.argv[1], int(sys.argv[2]), random.Random(int(sys.argv[3]))
started = time.monotonic()
undisturbed = begin(f"out={folder}/undisturbed", "workers=0")
while not os.path.exists(f"{folder}/undisturbed/last.ckpt"):
    time.sleep(0.01)
ready = time.monotonic() - started
assert os.waitpid(undisturbed, 0)[1] == 0
steps = time.monotonic() - started - ready
for _ in range(kills):
    process = begin(f"out={folder}/run", "resume=auto")
    time.sleep(chance.uniform(0.3 * ready, ready + 0.6 * steps / kills))
    os.kill(process, signal.SIGKILL)
    print(os.WTERMSIG(os.waitpid(process, 0)[1]), flush=True)
assert os.waitpid(begin(f"out={folder}/run", "resume=auto"), 0)[1] == 0
"""


@pytest.mark.parametrize(("kills", "steps"), [(2, 60), pytest.param(10, 300, marks=pytest.mark.slow)])
def test_a_run_killed_at_random_moments_ends_with_identical_weights(quick: list[str], tmp_path: Path, kills: int, steps: int):
    """Also where the undisturbed run assembles its batches in another number of processes."""
    length = [f"steps={steps}", "validate_every=10", "checkpoint_every=7", "workers=1"]
    given = [sys.executable, "-W", "ignore", "-c", KILLED, str(tmp_path), str(kills), "7", *quick, *length]
    told = subprocess.run(given, capture_output=True, text=True, check=True).stdout
    assert told.split() == [str(int(signal.SIGKILL))] * kills, "a run ended before it was killed"
    assert_same_end(tmp_path / "undisturbed", tmp_path / "run")
    assert rows(tmp_path / "undisturbed") == rows(tmp_path / "run")


def test_a_second_run_into_the_same_folder_is_refused_until_the_first_one_is_gone(tmp_path: Path):
    code = "import sys, time; from pathlib import Path; from equimol.training.folder import only_writer\n"
    code += "with only_writer(Path(sys.argv[1])): print('mine', flush=True); time.sleep(60)"
    first = subprocess.Popen([sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "run")], stdout=subprocess.PIPE)
    try:
        assert first.stdout.readline() == b"mine\n"
        with (
            pytest.raises(ValueError, match=r"run is being written by another run .*choose another folder with out="),
            only_writer(tmp_path / "run"),
        ):
            pass
    finally:
        first.kill()
        first.wait()
        first.stdout.close()
    with only_writer(tmp_path / "run"):
        assert (tmp_path / "run" / ".lock").exists()


@pytest.mark.parametrize("setting", ["accumulate=2", "schedule=wsd", "stage_two={start: 0.5, energy: 10, forces: 0}"])
def test_runs_with_these_settings_resume_to_the_same_weights_too(quick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str):
    length = ["steps=9", "validate_every=4", "checkpoint_every=3", setting, "ema=0"]
    undisturbed = run(quick, *length, f"out={tmp_path / 'undisturbed'}")
    original = Checkpoints.on_train_batch_start

    def interrupt(self, trainer, module, batch, batch_idx):
        if trainer.global_step == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        original(self, trainer, module, batch, batch_idx)

    monkeypatch.setattr(Checkpoints, "on_train_batch_start", interrupt)
    with pytest.raises(TrainingInterrupted, match="stopped by SIGTERM after step 6; continue with: equimol train --resume"):
        run(quick, *length)
    monkeypatch.undo()
    resumed = run(quick, *length, "resume=true", "workers=1")
    assert_same_end(undisturbed, resumed)
    assert rows(undisturbed) == rows(resumed)


def test_two_batches_make_the_step_of_a_large_one(quick: list[str], tmp_path: Path):
    """All structures have as many atoms, so that the mean over two batches is the mean over all."""
    length = ["steps=6", "precision=float64", "valid=4", "test=4"]
    large = run(quick, *length, "batch=8", f"out={tmp_path / 'large'}")
    small = run(quick, *length, "batch=4", "accumulate=2")
    a, b = (read_checkpoint(folder / "last.ckpt")["state_dict"] for folder in (large, small))
    for name, value in a.items():
        torch.testing.assert_close(b[name], value, rtol=1e-9, atol=1e-9)


def test_the_second_stage_changes_the_loss_and_what_is_best(quick: list[str]):
    folder = run(quick, "steps=8", "validate_every=2", "stage_two={start: 0.5, energy: 1000, forces: 0}", "learning_rate=1e-5")
    log = rows(folder)
    valid = [float(row["valid_loss"]) for row in log]
    assert float(log[0]["loss"]) == pytest.approx(float(log[0]["loss_energy"]) + 10 * float(log[0]["loss_forces"]), rel=1e-4)
    assert float(log[-1]["loss"]) == pytest.approx(1000 * float(log[-1]["loss_energy"]), rel=1e-4)
    assert valid[-1] > valid[0] and read_checkpoint(folder / "best.ckpt")["step"] >= 4


def test_log_to_names_what_is_to_be_installed(quick: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("equimol.training.progress.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="log_to=wandb needs the package wandb: pip install wandb"):
        run(quick, "steps=1", "log_to=[wandb]")


def test_rows_reach_tensorboard(quick: list[str]):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = run(quick, "steps=4", "validate_every=2", "log_to=[tensorboard]")
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("valid_loss")] == [2, 4]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx([float(row["loss"]) for row in rows(folder)], rel=1e-6)
