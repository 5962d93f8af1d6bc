"""A run may begin with the weights of another model: of pre-training with direct forces, or on other data."""

from pathlib import Path

import pytest
import torch
import yaml

from equimol.models import build_model, core, load, save
from equimol.training.config import load_config
from equimol.training.fit import fit
from equimol.training.start import settle, take_weights

REFERENCES = {1: -13.6, 13: -3.0, 29: -2.0}


def of(name: str, elements=(1, 13, 29), **settings):
    torch.manual_seed(len(name) + len(elements))
    return build_model(name, "tiny", elements=elements, references=REFERENCES, scale=2.5, shift=-0.5, **settings)


def settled(path: Path, *more: str):
    return settle(load_config(None, ["data=x", f"start={path}", *more]))


@pytest.fixture
def direct(tmp_path: Path) -> Path:
    return save(of("escaip_direct", cutoff=4.0, neighbors=7), tmp_path / "direct.equimol")


def test_the_backbone_and_the_energy_of_direct_forces_are_taken_by_a_conservative_model(direct: Path):
    model = of("escaip", (13, 29), cutoff=4.0, neighbors=7)
    text = take_weights(model, str(direct))
    given, taken = core(load(direct)).state_dict(), core(model).state_dict()
    for name, value in taken.items():
        expected = given[name][1:] if name.endswith("_element") else given[name]
        assert torch.equal(value, expected), name
    assert f"{len(taken)} of {len(taken)} weights" in text and "new:" not in text and "changed" not in text
    left = text.splitlines()[1].removeprefix("  left behind: ").split(", ")
    heads = {"energy_norm", "force_direction", "force_magnitude", "force_norm_atoms", "force_norm_slots"}
    assert {"backbone.edge_projection", "backbone.edge_readouts"} | heads <= set(left)
    assert not [name for name in taken for cut in left if name.startswith(f"{cut}.")]


def test_what_is_new_or_changed_is_said(direct: Path):
    text = take_weights(of("escaip", radial_basis=16), str(direct))
    assert "  new: backbone." in text and "attributes.distance.weight" in text
    assert "  changed: cutoff 4.0 -> 6.0, neighbors 7 -> 30, radial_basis 32 -> 16" in text


def test_the_same_model_gives_the_same_energies(tmp_path: Path):
    from equimol.data.graph import AtomicGraph
    from equimol.testing import example_structures

    first = of("mace", cutoff=4.0)
    second = of("mace", (13, 29), cutoff=4.0)
    take_weights(second, str(save(first, tmp_path / "first.equimol")))
    graph = AtomicGraph.build(**example_structures((13, 29))[1], cutoff=4.0)
    torch.testing.assert_close(second(graph)["forces"], first.eval()(graph)["forces"], rtol=1e-5, atol=1e-5)


def test_what_cannot_be_taken_is_refused_with_the_reason(direct: Path):
    with pytest.raises(ValueError, match=r"model must share weights with start: no name and shape of mace is in .* \(escaip_direct\)"):
        take_weights(of("mace"), str(direct))
    with pytest.raises(ValueError, match="there is no model file"):
        settled(direct.with_name("absent.equimol"), "model=escaip")


def test_new_elements_begin_afresh(direct: Path):
    """Beside the rows of those that the file knows."""
    torch.manual_seed(1)
    model, old = core(build_model("escaip", elements=[1, 6, 8, 29])), core(load(direct))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert "  new elements: C, O\n" in take_weights(model, str(direct))
    tables = [name for name, value in model.state_dict().items() if value.shape[:1] == (4,)]
    assert tables
    for name in tables:
        value, stored = model.state_dict()[name], old.state_dict()[name]
        assert torch.equal(value[[1, 2]], before[name][[1, 2]])
        assert torch.equal(value[[0, 3]], stored[[old.elements.index(1), old.elements.index(29)]])


def test_what_is_left_open_is_taken_from_the_file(direct: Path):
    config = settled(direct, "model=escaip")
    assert (config.preset, config.settings, config.cutoff) == ("tiny", {"neighbors": 7}, 4.0)
    assert (config.scale, config.shift, config.references) == (2.5, -0.5, REFERENCES)


def test_what_is_given_is_kept(direct: Path):
    config = settled(direct, "model=escaip", "cutoff=4.5", "scale=1", "shift=0", "settings.neighbors=9", "references={H: 0, Al: 0, Cu: 1}")
    assert (config.cutoff, config.scale, config.shift, config.settings) == (4.5, 1.0, 0.0, {"neighbors": 9})
    assert config.references == {"H": 0, "Al": 0, "Cu": 1}
    assert settled(direct, "model=escaip", "preset=nano").settings == {}


def test_pre_training_and_fine_tuning(clusters: Path, tmp_path: Path, no_report: None, capsys: pytest.CaptureFixture):
    quick = [f"data={clusters}", "batch=4", "split=random"]
    first = fit(load_config(None, [*quick, "model=escaip_direct", "preset=tiny", "cutoff=4.0", "steps=6", f"out={tmp_path / 'first'}"]))
    start = first / "model.equimol"
    tune = [*quick, "model=escaip", f"start={start}", "zbl=false", "learning_rate=1e-12", "steps=2", f"out={tmp_path / 'second'}"]
    second = fit(load_config(None, tune))
    assert "left behind: " in capsys.readouterr().out and "left behind: " in (second / "data.txt").read_text()
    stored = yaml.safe_load((second / "config.yaml").read_text())
    assert stored["preset"] == "tiny" and stored["cutoff"] == 4.0 and stored["scale"] == pytest.approx(load(start).scale)
    before, after = core(load(start)).state_dict(), core(load(second / "model.equimol")).state_dict()
    assert all(torch.allclose(value, before[name], atol=1e-6) for name, value in after.items())
    start.rename(tmp_path / "moved.equimol")  # a run that has begun needs it no more
    assert fit(load_config(None, [*tune, "resume=true"])) == second
