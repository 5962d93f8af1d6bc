"""AllScAIP of fairchem-core: the same weights give the same energies, forces and stress."""

import json
from pathlib import Path

import pytest
import torch
from torch_geometric.data import Batch

from equimol.convert import ConversionError
from equimol.convert.allscaip import MODELS, _names, config_of
from equimol.convert.fairchem import read_fairchem
from equimol.convert.names import feedforward
from equimol.data.graph import AtomicGraph

GOLDEN = json.loads((Path(__file__).parent / "allscaip_fairchem.json").read_text())


def settings_of(variant: str) -> dict:
    return {**GOLDEN["settings"], **GOLDEN["variants"][variant]}


@pytest.fixture(scope="session")
def weights_of(published):
    """Under the names of fairchem-core, as its modules have them."""

    def weights(variant: str) -> dict[str, torch.Tensor]:
        settings = settings_of(variant)
        config, direct = config_of(settings, tuple(range(1, settings["max_num_elements"]))), settings["direct_forces"]
        heads = {"energy": "energy.energy_ffn", "forces": "forces.force_ffn"} if direct else {"energy": "efs.energy_ffn"}
        pairs = [*_names(config)]
        for ours, theirs in heads.items():
            pairs += feedforward(f"{ours}.feedforward", f"output_heads.{theirs}")
            pairs.append((f"{ours}.norm.weight", f"output_heads.{theirs.split('.')[0]}.node_norm.weight"))
        return published(MODELS[direct](config), pairs, settings["max_num_elements"])

    return weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("variant", GOLDEN["variants"])
def test_the_published_model_gives_its_numbers(variant, dtype, weights_of, tmp_path):
    torch.save(weights_of(variant), tmp_path / "weights.pt")
    model = read_fairchem(tmp_path / "weights.pt", settings_of(variant)).to(dtype)
    assert model.inputs == ("charge", "spin")
    expected = {key: torch.tensor(value, dtype=torch.float64) for key, value in GOLDEN["results"][variant].items()}
    singles = [AtomicGraph.build(**structure, pbc=True, cutoff=model.cutoff) for structure in GOLDEN["structures"]]
    sizes = torch.tensor([len(graph.numbers) for graph in singles])
    together, alone = model(Batch.from_data_list(singles)), [model(graph) for graph in singles]
    for result in (together, {key: torch.cat([single[key] for single in alone]) for key in together}):
        torch.testing.assert_close(result["energy"] / sizes, expected["energy"] / sizes, rtol=0, atol=1e-6)
        torch.testing.assert_close(result["forces"], expected["forces"], rtol=0, atol=1e-5)
        if "stress" in expected:
            torch.testing.assert_close(result["stress"], expected["stress"].view(-1, 3, 3), rtol=0, atol=1e-6)


def test_options_without_counterpart_are_refused_by_name():
    settings = settings_of("conservative")
    with pytest.raises(ConversionError, match="use_sincx_mask must be False, got True"):
        config_of({name: value for name, value in settings.items() if name != "use_sincx_mask"}, (1, 6))  # theirs is on by default
    with pytest.raises(ConversionError, match="knn_soft must be True, got False"):
        config_of({**settings, "knn_soft": False}, (1, 6))
