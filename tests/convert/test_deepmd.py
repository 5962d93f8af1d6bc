"""DPA3 of deepmd-kit, read into ours: the numbers are its own (benchmarks/peers/deepmd_dpa3.py)."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from equimol.convert import ConversionError
from equimol.convert.deepmd import _names, config_of, model_of, read_deepmd
from equimol.data.graph import AtomicGraph
from equimol.models.dpa3 import DPA3

GOLDEN = json.loads((Path(__file__).parent / "dpa3_deepmd.json").read_text())
NUMBERS = {"O": 8, "H": 1, "C": 6}
INPUTS = {"charge_and_spin": {"charge": -1.0, "spin": 2.0}}


def formula(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """`fill` of benchmarks/peers/deepmd_dpa3.py."""
    t = torch.arange(torch.Size(shape).numel()) + zlib.crc32(name.encode()) % 2**20
    h = t * 1103515245 % 2**31  # whole numbers: a sine differs in its last bit from processor to processor
    h = (h ^ (h >> 15)) * 1664525 % 2**31
    x = (h ^ (h >> 13)).double() / 2**31 - 0.5
    return x.view(shape) * (6.0 / shape[0] ** 0.5 if len(shape) > 1 else 1.0)


def published_weights(name: str) -> dict[str, torch.Tensor]:
    """Of a variant, under deepmd-kit's names."""
    settings = GOLDEN["variants"][name]["settings"]
    types = len(settings["type_map"])
    cases = settings["fitting_net"].get("dim_case_embd", 0)
    weights = {
        "atomic_model.out_bias": formula("out_bias", (1, types, 1)),
        "atomic_model.fitting_net.bias_atom_e": torch.zeros(types, 1, dtype=torch.float64),
    }
    if cases:
        weights["atomic_model.fitting_net.case_embd"] = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    config = config_of(settings, [NUMBERS[symbol] for symbol in settings["type_map"]], weights)
    shapes = {key: tuple(value.shape) for key, value in DPA3(config).state_dict().items()}
    for ours, theirs in _names(config):
        turned = theirs.endswith(".matrix") and ours.split(".")[0] not in ("element", "charge", "spin")
        weights[theirs] = formula(theirs, shapes[ours][::-1] if turned else shapes[ours])
    return weights


@pytest.mark.parametrize("name", list(GOLDEN["variants"]))
def test_energies_forces_and_virials_are_those_of_deepmd(name: str):
    """66 configurations, float64, to 1e-12 of the largest number."""
    variant = GOLDEN["variants"][name]
    model = model_of(variant["settings"], published_weights(name))
    for structure, expected in zip(GOLDEN["structures"], variant["results"], strict=True):
        numbers = [NUMBERS[variant["settings"]["type_map"][t]] for t in structure["types"]]
        cell = structure["cell"]
        graph = AtomicGraph.build(np.array(structure["positions"]), numbers, cell, cell is not None, model.cutoff, **INPUTS.get(name, {}))
        found = model(graph)
        results = {"energies": found["energies"], "forces": found["forces"]}
        if cell is not None:
            virial = torch.tensor(expected["virial"], dtype=torch.float64).view(1, 3, 3)
            expected = expected | {"virial": (virial + virial.mT) / 2}
            results["virial"] = -found["stress"] * abs(np.linalg.det(cell))
        for key, value in results.items():
            theirs = torch.as_tensor(expected[key], dtype=torch.float64)
            assert float((value - theirs).abs().max()) <= 1e-12 * max(1.0, float(theirs.abs().max())), key


def checkpoint(tmp_path: Path, state: dict, settings: dict) -> Path:
    path = tmp_path / "model.ckpt.pt"
    torch.save({"model": {**state, "_extra_state": {"model_params": settings, "train_infos": {"lr": 1e-3}}}}, path)
    return path


def test_a_checkpoint_is_read_by_its_branch(tmp_path: Path):
    settings, weights = GOLDEN["variants"]["data_sets"]["settings"], published_weights("data_sets")
    path = checkpoint(tmp_path, {f"model.Metals.{key}": value for key, value in weights.items()}, {"model_dict": {"Metals": settings}})
    model = read_deepmd(path, branch="Metals")
    assert model.inner.config.data_set == 1 and model.inputs == ()
    with pytest.raises(ConversionError, match="branch must be one of Metals, got None"):
        read_deepmd(path)
    with pytest.raises(ConversionError, match="branch must be one of Metals, got Drugs"):
        read_deepmd(path, branch="Drugs")


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("descriptor", {"type": "dpa2"}, "descriptor.type must be 'dpa3', got 'dpa2'"),
        ("descriptor", {"exclude_types": [[0, 1]]}, r"descriptor.exclude_types must be \[\], got \[\[0, 1\]\]"),
        ("descriptor", {"activation_function": "tanh"}, "fitting_net.activation_function must be tanh"),
        ("fitting_net", {"numb_fparam": 2}, "fitting_net.numb_fparam must be 0, got 2"),
    ],
)
def test_what_is_not_understood_is_refused(tmp_path: Path, part: str, change: dict, message: str):
    settings = json.loads(json.dumps(GOLDEN["variants"]["published"]["settings"]))
    settings[part] |= change
    weights = {f"model.Default.{key}": value for key, value in published_weights("published").items()}
    with pytest.raises(ConversionError, match=message):
        read_deepmd(checkpoint(tmp_path, weights, settings))


def test_an_unknown_option_and_a_missing_weight_are_named(tmp_path: Path):
    settings = json.loads(json.dumps(GOLDEN["variants"]["published"]["settings"]))
    weights = {f"model.Default.{key}": value for key, value in published_weights("published").items()}
    missing = "model.Default.atomic_model.descriptor.repflows.edge_embd.bias"
    with pytest.raises(ConversionError, match=r"the file has no weight '.*edge_embd\.bias'"):
        read_deepmd(checkpoint(tmp_path, {key: value for key, value in weights.items() if key != missing}, settings))
    settings["descriptor"]["repflow"]["new_option"] = 1
    with pytest.raises(ConversionError, match="options of descriptor.repflow must be known, got new_option"):
        read_deepmd(checkpoint(tmp_path, weights, settings))


class Frozen(torch.nn.Module):
    """Tensors under dotted names, as attributes of modules."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        super().__init__()
        parts: dict[str, dict[str, torch.Tensor]] = {}
        for name, value in tensors.items():
            first, _, rest = name.partition(".")
            if rest:
                parts.setdefault(first, {})[rest] = value
            else:
                self.register_buffer(first, value)
        for name, inner in parts.items():
            self.add_module(name, Frozen(inner))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_frozen_model_is_read_without_running_it(tmp_path: Path):
    settings, weights = GOLDEN["variants"]["static"]["settings"], published_weights("static")
    frozen = Frozen(weights)
    frozen.model_def_script = json.dumps(settings)
    torch.jit.script(frozen).save(tmp_path / "frozen.pth")
    expected, found = model_of(settings, weights), read_deepmd(tmp_path / "frozen.pth")
    assert found.description() == expected.description()
    for key, value in expected.state_dict().items():
        assert torch.equal(found.state_dict()[key], value), key
    content = (tmp_path / "frozen.pth").read_bytes()
    (tmp_path / "damaged.pth").write_bytes(content[: len(content) // 2])
    with pytest.raises(ConversionError, match="damaged.pth is no archive"):
        read_deepmd(tmp_path / "damaged.pth")


def test_the_command_line_converts_and_names_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture):
    from equimol.cli import main
    from equimol.models import load

    settings, weights = GOLDEN["variants"]["data_sets"]["settings"], published_weights("data_sets")
    path = checkpoint(tmp_path, {f"model.Metals.{key}": value for key, value in weights.items()}, {"model_dict": {"Metals": settings}})
    assert main(["convert", "deepmd", str(path), str(tmp_path / "dpa3.equimol"), "--branch", "Metals"]) == 0
    assert load(tmp_path / "dpa3.equimol").elements == (1, 6, 8) and "dpa3" in capsys.readouterr().out
    assert main(["convert", "deepmd", str(path), str(tmp_path / "other.equimol"), "--settings", "x.yaml"]) == 2
    assert "--settings is for files of fairchem, got deepmd" in capsys.readouterr().err
