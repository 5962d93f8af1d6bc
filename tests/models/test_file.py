"""A model file gives back the same model, or one clear error."""

import copy
import json
import os
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from equimol.data.graph import AtomicGraph
from equimol.models import MODELS, build, build_model
from equimol.models.file import FORMAT_VERSION, ModelFileError, as_dtype, load, read_metadata, save
from equimol.models.fingerprint import FINGERPRINT_TOLERANCE, fingerprint_structures


@pytest.fixture
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_model("mace", preset="tiny", elements=[1, 6, 8], references={1: -13.6, 6: -1029.5, 8: -2042.3}, scale=1.3)


@pytest.fixture
def path(model, tmp_path):
    return save(model, tmp_path / "model.equimol")


def evaluate(model):
    structure = fingerprint_structures(model.elements, model.inputs)[0]
    inputs = structure.pop("inputs")
    return model.eval()(AtomicGraph.build(**structure, cutoff=model.cutoff, **inputs))


def rewrite_header(path, change):
    """Apply `change` to the metadata of a file, leaving its tensors alone."""
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    facts = json.loads(header["__metadata__"]["equimol"])
    change(facts)
    header["__metadata__"]["equimol"] = json.dumps(facts)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_model_comes_back_bit_identical(name, dtype, tmp_path):
    model = build_model(name, elements=[1, 8], references={1: -13.6, 8: -2042.3}).to(dtype)
    again = load(save(model, tmp_path / "model.safetensors"))
    assert again.description() == model.description()
    assert again.dtype == model.dtype
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())
    assert again.state_dict().keys() == model.state_dict().keys()
    before, after = evaluate(model), evaluate(again)
    assert torch.equal(before["energy"], after["energy"])
    assert torch.equal(before["forces"], after["forces"])


def test_saving_leaves_the_model_as_it_was(model, tmp_path):
    model.train()
    before = copy.deepcopy(model.state_dict())
    save(model, tmp_path / "model.equimol")
    assert model.training
    assert model.dtype == torch.float32
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_loading_leaves_the_random_numbers_of_the_caller_alone(path):
    before = torch.get_rng_state()
    load(path)
    assert torch.equal(before, torch.get_rng_state())


def test_loading_does_not_depend_on_the_default_dtype(path):
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        assert load(path).dtype == torch.float32
    finally:
        torch.set_default_dtype(before)


def test_a_float32_model_can_be_loaded_in_float64_and_back(model, path):
    wide = load(path, dtype="float64")
    assert wide.dtype == torch.float64
    narrow = load(save(wide, path), dtype=torch.float32)
    assert torch.equal(evaluate(narrow)["forces"], evaluate(model)["forces"])


def test_a_loaded_model_is_in_evaluation_mode(path):
    assert not load(path).training


def test_metadata_say_what_a_user_must_know(model, tmp_path):
    given = {"level_of_theory": "GFN2-xTB", "label_keys": {"energy": "REF_energy"}, "training": {"seed": 3}}
    facts = read_metadata(save(model, tmp_path / "model.equimol", given))
    assert facts["elements"] == [1, 6, 8]
    assert facts["cutoff"] == model.cutoff and facts["hops"] == model.hops
    assert facts["dtype"] == "float32"
    assert facts["units"]["stress"].startswith("eV/Å³")
    assert facts["references"]["8"] == -2042.3
    assert facts["level_of_theory"] == "GFN2-xTB" and facts["training"] == {"seed": 3}
    assert "torch" in facts["versions"] and "equimol" in facts["versions"]


def test_unknown_metadata_and_suffixes_are_refused(model, tmp_path):
    with pytest.raises(ValueError, match="no key 'level'"):
        save(model, tmp_path / "model.equimol", {"level": "DFT"})
    with pytest.raises(ValueError, match=r"ends in \.equimol or \.safetensors"):
        save(model, tmp_path / "model.pt")


def test_a_model_that_gives_nan_is_not_saved_over_a_good_one(model, path):
    before = path.read_bytes()
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    with pytest.raises(ModelFileError, match="NaN"):
        save(model, path)
    assert path.read_bytes() == before


def test_a_full_disk_loses_nothing(model, path, monkeypatch):
    before = path.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises((ModelFileError, OSError), match="No space left on device"):
        save(model, path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("keep", [0, 5, 100, 0.5, 0.999])
def test_a_truncated_file_is_refused(path, keep):
    data = path.read_bytes()
    path.write_bytes(data[: keep if isinstance(keep, int) else int(keep * len(data))])
    with pytest.raises(ModelFileError, match="fresh copy"):
        load(path)


def test_a_changed_weight_is_refused(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ModelFileError, match="changed or damaged"):
        load(path)


def test_a_changed_setting_is_refused(path):
    rewrite_header(path, lambda facts: facts.update(cutoff=4.0))
    with pytest.raises(ModelFileError, match="changed or damaged"):
        load(path)


def test_a_file_of_a_newer_format_says_how_to_update(path):
    rewrite_header(path, lambda facts: facts.update(format_version=FORMAT_VERSION + 1))
    with pytest.raises(ModelFileError, match="pip install -U equimol"):
        load(path)


def test_a_file_without_its_description_is_refused(path):
    rewrite_header(path, lambda facts: facts.clear())
    with pytest.raises(ModelFileError, match="damaged description"):
        load(path)


def test_a_pickle_is_never_opened(tmp_path):
    path = tmp_path / "model.equimol"
    torch.save({"weights": torch.zeros(2)}, path)
    with pytest.raises(ModelFileError, match="never opened"):
        load(path)


def test_other_tensors_are_no_model(tmp_path):
    save_file({"x": torch.zeros(2)}, tmp_path / "x.safetensors")
    with pytest.raises(ModelFileError, match="no EquiMol model"):
        load(tmp_path / "x.safetensors")


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(ModelFileError, match="there is no model file"):
        load(tmp_path / "nothing.equimol")
    with pytest.raises(ModelFileError, match="is a folder"):
        load(tmp_path)


def test_a_model_that_computes_something_else_is_refused_with_the_numbers(path, monkeypatch):
    def with_another_constant(description):  # as another version might build it
        if description["name"] == "shifted":
            description = {**description, "scale": 1.001 * description["scale"]}
        return build(description)

    monkeypatch.setattr("equimol.models.build", with_another_constant)
    with pytest.raises(ModelFileError, match=r"energies are off by \S+ eV/atom, forces by \S+ eV/Å, allowed .* torch "):
        load(path)


def test_a_cast_to_bfloat16_would_be_noticed(model, path, monkeypatch):
    def blunt(self, state, strict=True):
        rounded = {key: value.bfloat16().to(value.dtype) if value.is_floating_point() else value for key, value in state.items()}
        return torch.nn.Module.load_state_dict(self, rounded, strict)

    monkeypatch.setattr(type(model), "load_state_dict", blunt)
    with pytest.raises(ModelFileError, match="fingerprint"):
        load(path)


def test_dtypes_have_names():
    assert as_dtype("float64") is as_dtype("torch.float64") is as_dtype(torch.float64) is torch.float64
    with pytest.raises(ValueError, match="float32 or float64"):
        as_dtype("float16")


@pytest.mark.parametrize("elements", [(1,), (1, 6, 8), tuple(range(1, 119))])
def test_fingerprint_structures_hold_every_element_at_sensible_distances(elements):
    structures = fingerprint_structures(elements)
    assert {z for s in structures for z in s["numbers"]} == set(elements)
    assert {all(s["pbc"]) for s in structures} == {True, False}
    for s in structures:
        graph = AtomicGraph.build(s["positions"], s["numbers"], s["cell"], s["pbc"], 5.0)
        distances = graph.displacements().norm(dim=1)
        assert 1.2 < distances.min() < 3.0
        nearest = torch.full((8,), torch.inf, dtype=torch.float64).scatter_reduce(0, graph.receivers, distances, "amin")
        assert nearest.max() < 3.6


def test_tolerances_are_what_the_dtypes_can_do():
    assert {torch.float32: 1e-5, torch.float64: 1e-9} == FINGERPRINT_TOLERANCE
    assert all(tolerance > 10 * np.finfo(str(dtype)[6:]).eps for dtype, tolerance in FINGERPRINT_TOLERANCE.items())
