"""EScAIP of the paper: the same weights give the same energies, forces and stress."""

import json
from pathlib import Path

import pytest
import torch
from torch_geometric.data import Batch

from equimol.convert import ConversionError
from equimol.convert.escaip_v1 import _names, config_of, read_escaip_v1
from equimol.convert.fairchem import read_fairchem
from equimol.convert.names import output
from equimol.data.graph import AtomicGraph
from equimol.models.escaip_v1 import EScAIPV1, EScAIPV1Direct

GOLDEN = json.loads((Path(__file__).parent / "escaip_v1.json").read_text())
HEADS = [
    ("energy", "energy.energy_layer"),
    ("force_direction", "forces.force_direction_layer"),
    ("force_magnitude", "forces.force_magnitude_layer"),
    ("stress_isotropic", "stress.scalar_layer"),
    ("stress_anisotropic", "stress.irreps2_layer"),
]
REFERENCES = torch.linspace(-50.0, -900.0, 31, dtype=torch.float64)


def settings_of(variant: str) -> dict:
    return {**GOLDEN["settings"], **GOLDEN["variants"][variant]}


@pytest.fixture(scope="session")
def weights_of(published):
    """Under the names of the published modules."""

    def weights(variant: str) -> dict[str, torch.Tensor]:
        settings = settings_of(variant)
        direct = settings["direct_force"]
        config = config_of(settings, stress=direct)
        heads = HEADS if direct else HEADS[:1]
        pairs = [*_names(config, direct)] + [pair for ours, theirs in heads for pair in output(ours, f"output_heads.{theirs}")]
        return published((EScAIPV1Direct if direct else EScAIPV1)(config), pairs, settings["max_num_elements"])

    return weights


def graphs(cutoff: float) -> list[AtomicGraph]:
    return [AtomicGraph.build(**structure, pbc=True, cutoff=cutoff) for structure in GOLDEN["structures"]]


def check(model, variant: str, precise: bool) -> None:
    """All structures in one batch, and one by one, against the published numbers."""
    expected = {key: torch.tensor(value, dtype=torch.float64) for key, value in GOLDEN["results"][variant].items()}
    singles = graphs(model.cutoff)
    sizes = torch.tensor([len(graph.numbers) for graph in singles])
    energy, forces, stress = (1e-10, 1e-10, 1e-10) if precise else (1e-6, 1e-5, 1e-5)
    together, alone = model(Batch.from_data_list(singles)), [model(graph) for graph in singles]
    for result in (together, {key: torch.cat([single[key] for single in alone]) for key in together}):
        torch.testing.assert_close(result["energy"] / sizes, expected["energy"][:, 0] / sizes, rtol=0, atol=energy)
        torch.testing.assert_close(result["forces"], expected["forces"], rtol=0, atol=forces)
        if "stress" in expected:
            torch.testing.assert_close(result["stress"], expected["stress"], rtol=0, atol=stress)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("variant", GOLDEN["variants"])
def test_the_published_model_gives_its_numbers(variant, dtype, weights_of, tmp_path):
    torch.save(weights_of(variant), tmp_path / "weights.pt")
    model = read_escaip_v1(tmp_path / "weights.pt", settings_of(variant)).to(dtype)
    check(model, variant, precise=dtype == torch.float64)


@pytest.fixture
def checkpoint(weights_of):
    """As the trainer of fairchem-core 1 writes it."""

    def content(variant: str, **entries) -> dict:
        heads = {"energy": {"module": "src.EScAIP.EScAIPEnergyHead"}}
        model = {"name": "hydra", "backbone": {"model": "src.EScAIP.EScAIPBackbone", **settings_of(variant)}, "heads": heads}
        state = {f"module.module.{name}": value for name, value in weights_of(variant).items()}
        return {"state_dict": state, "config": {"model": model, "trainer": "equiformerv2_forces"}, "normalizers": {}, **entries}

    return content


def test_a_checkpoint_is_recognised_and_its_averages_are_preferred(checkpoint, tmp_path):
    content = checkpoint("conservative")
    averages = list(content["state_dict"].values())
    content["state_dict"] = {name: torch.zeros_like(value) for name, value in content["state_dict"].items()}
    torch.save({**content, "ema": {"decay": 0.999, "shadow_params": averages, "collected_params": []}}, tmp_path / "checkpoint.pt")
    check(read_fairchem(tmp_path / "checkpoint.pt"), "conservative", precise=False)
    torch.save({**content, "ema": {"shadow_params": averages[:-1]}}, tmp_path / "short.pt")
    with pytest.raises(ConversionError, match="averaged weights must be those of the model"):
        read_fairchem(tmp_path / "short.pt")


@pytest.mark.parametrize("variant", ["direct", "direct_sum_no_angles"])
def test_scales_means_and_references_are_those_of_the_checkpoint(variant, checkpoint, tmp_path):
    def normalizer(mean, rmsd):
        return {"mean": torch.tensor(mean), "rmsd": torch.tensor(rmsd)}

    scales = {"energy": normalizer(-1.5, 2.0), "forces": normalizer(0.0, 3.0)}
    scales |= {"stress_isotropic": normalizer(0.0, 0.25), "stress_anisotropic": normalizer(0.0, 0.5)}
    references = {"energy": {"element_references": REFERENCES}}
    torch.save(checkpoint(variant, normalizers=scales, elementrefs=references), tmp_path / "checkpoint.pt")
    model = read_escaip_v1(tmp_path / "checkpoint.pt").double()
    expected = GOLDEN["results"][variant]
    assert model.outputs == ("energy", "forces", "energies", "stress")
    for n, (graph, structure) in enumerate(zip(graphs(model.cutoff), GOLDEN["structures"], strict=True)):
        result = model(graph)
        energy = 2.0 * expected["energy"][n][0] - 1.5 + float(REFERENCES[structure["numbers"]].sum())
        assert float(result["energy"]) == pytest.approx(energy, abs=1e-9)
        stress = torch.tensor(expected["stress"][n], dtype=torch.float64)
        pressure = stress.trace() / 3 * torch.eye(3)
        torch.testing.assert_close(result["stress"][0], 0.25 * pressure + 0.5 * (stress - pressure), rtol=0, atol=1e-7)
        begin = sum(len(before["numbers"]) for before in GOLDEN["structures"][:n])
        forces = torch.tensor(expected["forces"][begin : begin + len(graph.numbers)], dtype=torch.float64)
        torch.testing.assert_close(result["forces"], 3.0 * forces, rtol=1e-6, atol=1e-6)


def test_what_is_not_understood_is_refused_with_the_reason(weights_of, checkpoint, tmp_path):
    def refused(content, match, settings=None):
        torch.save(content, tmp_path / "refused.pt")
        with pytest.raises(ConversionError, match=match):
            read_escaip_v1(tmp_path / "refused.pt", settings)

    settings = settings_of("conservative")
    weights = weights_of("conservative")
    refused(weights, "weights without settings")
    refused({"x": torch.ones(1)}, "holds no EScAIP of the paper", settings)
    refused(weights, "must have 'max_radius'", {name: value for name, value in settings.items() if name != "max_radius"})
    refused(weights, "normalization must be 'rmsnorm', got 'skip'", {**settings, "normalization": "skip"})
    refused(weights, "enforce_max_neighbors_strictly must be True", {**settings, "enforce_max_neighbors_strictly": False})
    refused(weights, "energy_reduce must be 'mean' where forces are derivatives", {**settings, "energy_reduce": "sum"})
    refused({name: w for name, w in weights.items() if "attn_scalar" not in name}, "has no weight .*attn_scalar", settings)
    scales = {"energy": {"mean": 0.0, "std": 2.0}, "forces": {"mean": 0.0, "std": 3.0}}
    refused(checkpoint("conservative", normalizers=scales), "forces must be scaled like the energy")
    refused(checkpoint("direct", normalizers={"forces": {"mean": 0.5, "rmsd": 3.0}}), "mean of forces must be 0, got 0.5")
    refused(checkpoint("direct", normalizers={"dipole": {"mean": 0.5, "rmsd": 3.0}}), "got 'dipole'")
    stressed = checkpoint("conservative")
    stressed["state_dict"]["output_heads.stress.irreps2_layer.final_output.0.weight"] = torch.ones(1, 32)
    refused(stressed, "a head for stress must go with one for forces")
