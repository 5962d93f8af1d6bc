"""EScAIP of fairchem-core: the same weights give the same energies, forces and stress."""

import json
import zlib
from pathlib import Path

import pytest
import torch

from equimol.convert import ConversionError
from equimol.convert.fairchem import config_of, read_fairchem, translate
from equimol.data.graph import AtomicGraph
from equimol.models.escaip import EScAIP, EScAIPDirect

GOLDEN = json.loads((Path(__file__).parent / "escaip_fairchem.json").read_text())


def formula(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Weights of benchmarks/peers/fairchem_escaip.py."""
    t = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    x = torch.sin(t * 12.9898 + zlib.crc32(name.encode()) % 1000) * 43758.5453
    x = (x - x.floor() - 0.5).view(shape)
    norm = len(shape) == 1 and name.endswith("weight")
    return x * (0.2 if len(shape) == 1 else 3.0 / shape[-1] ** 0.5) + norm


def published_weights(direct: bool) -> dict[str, torch.Tensor]:
    """Under the names of fairchem-core, as its modules have them."""
    from equimol.convert.fairchem import _names

    settings = GOLDEN["settings"]
    config = config_of(settings, tuple(range(1, settings["max_num_elements"])))
    model = (EScAIPDirect if direct else EScAIP)(config)
    heads = {"ENERGY": "output_heads.energy." if direct else "output_heads.efs.", "FORCES": "output_heads.forces."}
    weights = {}
    for ours, theirs in _names(config, direct):
        for key, prefix in heads.items():
            theirs = theirs.replace(key, prefix)
        shape = tuple(model.state_dict()[ours].shape)
        if ours.endswith("_element"):
            shape = (settings["max_num_elements"], *shape[1:])
        weights[theirs] = formula(theirs, shape).float()
    return weights


@pytest.fixture(params=["conservative", "direct"])
def kind(request):
    return request.param


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_published_model_gives_its_numbers(kind, dtype, tmp_path):
    torch.save(published_weights(kind == "direct"), tmp_path / "weights.pt")
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


def test_what_is_not_understood_is_refused_with_the_reason(tmp_path):
    settings = GOLDEN["settings"]
    with pytest.raises(ConversionError, match="activation must be 'gelu', got 'relu'"):
        config_of({**settings, "activation": "relu"}, (1, 6))
    config = config_of(settings, (1, 6))
    weights = published_weights(False)
    del weights["backbone.transformer_blocks.1.graph_attention.attn_in_proj_q.weight"]
    with pytest.raises(ConversionError, match="has no weight 'backbone.transformer_blocks.1.graph_attention.attn_in_proj_q.weight'"):
        translate(weights, config, False)
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ConversionError, match="neither an inference checkpoint"):
        read_fairchem(tmp_path / "list.pt", settings)


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
