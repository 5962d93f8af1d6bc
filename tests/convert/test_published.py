"""The published DPA3 models as they are read here, against what their own programs gave (benchmarks/peers/deepmd_published.py)."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from equimol.convert.deepmd import read_deepmd
from equimol.data.graph import AtomicGraph

GOLDEN = json.loads((Path(__file__).parent / "dpa3_published.json").read_text())
PARAMETERS = {"2025-03-14-dpa3-openlam.pth": 6_908_561, "2025-03-14-dpa3-mptrj.pth": 4_810_561}


@pytest.mark.slow
@pytest.mark.parametrize("name", GOLDEN)
def test_a_published_model_gives_its_own_numbers(name):
    folder = os.environ.get("EQUIMOL_PUBLISHED_DPA3")
    if not folder or not Path(folder, name).exists():
        pytest.skip(f"EQUIMOL_PUBLISHED_DPA3 names no folder with {name}, which is in the source distribution of matcalc 0.7.0")
    model = read_deepmd(Path(folder, name)).eval()
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    for row in GOLDEN[name]:
        graph = AtomicGraph.build(np.array(row["positions"]), np.array(row["numbers"]), np.array(row["cell"]), True, model.cutoff)
        found = model(graph)
        assert abs(float(found["energy"]) - row["energy"]) <= 1e-5 * len(row["numbers"])
        assert float((found["forces"] - torch.tensor(row["forces"])).abs().max()) <= 1e-4
