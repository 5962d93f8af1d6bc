"""EScAIP of fairchem-core: the same weights give the same energies, forces and stress."""

import json
import sys
import types
from pathlib import Path

import pytest
import torch

from equimol.convert import ConversionError
from equimol.convert.escaip import _names, config_of, translate
from equimol.convert.fairchem import read_fairchem
from equimol.convert.names import output
from equimol.data.graph import AtomicGraph
from equimol.models.escaip import EScAIP, EScAIPDirect

GOLDEN = json.loads((Path(__file__).parent / "escaip_fairchem.json").read_text())
HEADS_DIRECT = [
    ("energy", "energy.energy_layer"),
    ("force_direction", "forces.force_direction_layer"),
    ("force_magnitude", "forces.force_magnitude_layer"),
]
NORMS_DIRECT = [
    ("energy_norm", "energy.node_norm"),
    ("force_norm_atoms", "forces.node_norm"),
    ("force_norm_slots", "forces.edge_norm"),
]


@pytest.fixture(scope="session")
def weights_of(published):
    """Under the names of fairchem-core, as its modules have them."""

    def weights(direct: bool) -> dict[str, torch.Tensor]:
        settings = GOLDEN["settings"]
        config = config_of(settings, tuple(range(1, settings["max_num_elements"])))
        heads = HEADS_DIRECT if direct else [("energy", "efs.energy_layer")]
        pairs = [*_names(config, direct)] + [pair for ours, theirs in heads for pair in output(ours, f"output_heads.{theirs}")]
        norms = NORMS_DIRECT if direct else []
        pairs += [(f"{ours}.weight", f"output_heads.{theirs}.weight") for ours, theirs in norms]
        return published((EScAIPDirect if direct else EScAIP)(config), pairs, settings["max_num_elements"])

    return weights


@pytest.fixture(params=["conservative", "direct"])
def kind(request):
    return request.param


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_published_model_gives_its_numbers(kind, dtype, weights_of, tmp_path):
    torch.save(weights_of(kind == "direct"), tmp_path / "weights.pt")
    model = read_fairchem(tmp_path / "weights.pt", {**GOLDEN["settings"], "direct_forces": kind == "direct"}).to(dtype)
    for structure, expected in zip(GOLDEN["structures"], GOLDEN[kind], strict=True):
        result = model(AtomicGraph.build(**structure, pbc=True, cutoff=model.cutoff))
        atoms = len(structure["numbers"])
        energy = torch.tensor(expected["energy"], dtype=torch.float64)
        torch.testing.assert_close(result["energy"] / atoms, energy.view(1) / atoms, rtol=0, atol=1e-6)
        torch.testing.assert_close(result["forces"], torch.tensor(expected["forces"], dtype=torch.float64), rtol=0, atol=1e-5)
        if kind == "conservative":
            stress = torch.tensor(expected["stress"], dtype=torch.float64).view(1, 3, 3)
            torch.testing.assert_close(result["stress"], stress, rtol=0, atol=1e-6)


def test_what_is_not_understood_is_refused_with_the_reason(weights_of, tmp_path):
    settings = GOLDEN["settings"]
    with pytest.raises(ConversionError, match="activation must be 'gelu', got 'relu'"):
        config_of({**settings, "activation": "relu"}, (1, 6))
    config = config_of(settings, (1, 6))
    weights = weights_of(False)
    del weights["backbone.transformer_blocks.1.graph_attention.attn_in_proj_q.weight"]
    with pytest.raises(ConversionError, match="has no weight 'backbone.transformer_blocks.1.graph_attention.attn_in_proj_q.weight'"):
        translate(weights, config, False)
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ConversionError, match="neither an inference checkpoint"):
        read_fairchem(tmp_path / "list.pt", settings)


MODULE = "fairchem.core.units.mlip_unit.api.inference"
REFERENCES = torch.linspace(-13.6, -40000.0, 100, dtype=torch.float64)


def save_checkpoint(path: Path, **attributes) -> None:
    """As fairchem-core writes one: an object of a class that is not here when it is read."""
    parts = MODULE.split(".")
    with pytest.MonkeyPatch.context() as patch:
        for n in range(len(parts)):
            name = ".".join(parts[: n + 1])
            patch.setitem(sys.modules, name, types.ModuleType(name))
        cls = type("MLIPInferenceCheckpoint", (), {"__module__": MODULE})
        sys.modules[MODULE].MLIPInferenceCheckpoint = cls
        checkpoint = cls()
        vars(checkpoint).update(attributes)
        torch.save(checkpoint, path)


def task(output: str, scale: float, **entries) -> dict:
    """A part of such a file: how an output is scaled."""
    normalizer = {"_target_": "fairchem.core.modules.normalization.normalizer.Normalizer", "mean": 0.0, "rmsd": scale}
    return {"_target_": "fairchem.core.units.mlip_unit.mlip_unit.Task", "property": output, "normalizer": normalizer, **entries}


def energy_task(scale: float) -> dict:
    table = {"_target_": "torch.DoubleTensor", "_args_": [REFERENCES.tolist()]}
    kind = "fairchem.core.modules.normalization.element_references.ElementReferences"
    return task("energy", scale, element_references={"_target_": kind, "element_references": table})


@pytest.fixture
def checkpoint(weights_of):
    """The attributes of an inference checkpoint; its plain weights are none that anybody should take."""

    def attributes(kind: str, tasks: list[dict]) -> dict:
        backbone = {"model": "EScAIP_backbone", **GOLDEN["settings"], "direct_forces": kind == "direct"}
        weights = weights_of(kind == "direct")
        averaged = {"n_averaged": torch.tensor(7), **{f"module.{name}": value for name, value in weights.items()}}
        plain = {name: torch.zeros_like(value) for name, value in weights.items()}
        config = {"_target_": "fairchem.core.models.base.HydraModel", "backbone": backbone, "heads": {}}
        return {"model_config": config, "model_state_dict": plain, "ema_state_dict": averaged, "tasks_config": tasks}

    return attributes


def test_of_a_checkpoint_averaged_weights_scales_and_references_count(kind, checkpoint, tmp_path):
    scale = {"energy": 1.7, "forces": 2.3 if kind == "direct" else 1.7, "stress": 1.7}
    tasks = [energy_task(scale["energy"]), task("forces", scale["forces"])]
    save_checkpoint(tmp_path / "inference.pt", **checkpoint(kind, tasks))
    model = read_fairchem(tmp_path / "inference.pt")
    assert MODULE not in sys.modules
    for structure, golden in zip(GOLDEN["structures"], GOLDEN[kind], strict=True):
        result = model(AtomicGraph.build(**structure, pbc=True, cutoff=model.cutoff))
        expected = {name: scale[name] * torch.tensor(values, dtype=torch.float64) for name, values in golden.items()}
        atoms = len(structure["numbers"])
        energy = expected["energy"] + REFERENCES[structure["numbers"]].sum()
        torch.testing.assert_close(result["energy"] / atoms, energy.view(1) / atoms, rtol=0, atol=2e-6)
        torch.testing.assert_close(result["forces"], expected["forces"], rtol=0, atol=2e-5)
        if kind == "conservative":
            torch.testing.assert_close(result["stress"], expected["stress"].view(1, 3, 3), rtol=0, atol=2e-6)


def test_scales_that_are_no_potential_are_refused(checkpoint, tmp_path):
    def refused(match, *tasks):
        save_checkpoint(tmp_path / "refused.pt", **checkpoint("conservative", list(tasks)))
        with pytest.raises(ConversionError, match=match):
            read_fairchem(tmp_path / "refused.pt")

    refused("forces must be scaled like the energy whose slope it is, got 2.3 and 1.7", energy_task(1.7), task("forces", 2.3))
    refused("the mean of energy must be 0, got -3.0", task("energy", 1.7, normalizer={"mean": -3.0, "rmsd": 1.7}))
    refused("tasks of energy must share their scale", energy_task(1.7), task("energy", 1.7))
    refused("must have a task of energy, got tasks of", task("forces", 1.7))
    refused("references of elements must be listed", task("energy", 1.7, element_references={"file": "references.pt"}))


def test_nothing_in_a_file_is_executed(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (exec, ("open('harm', 'w')",))

    torch.save({"x": Harmful(), "y": torch.ones(2)}, tmp_path / "harmful.pt")
    from equimol.convert import Record, read_archive

    content = read_archive(tmp_path / "harmful.pt")
    assert isinstance(content["x"], Record)
    assert content["x"].class_name.endswith(".exec")
    assert not Path("harm").exists()
    torch.testing.assert_close(content["y"], torch.ones(2))
