"""Energies, forces and stress of fairchem-core's EScAIP with weights from a formula: the golden numbers of tests/convert.

    PEER/bin/python benchmarks/peers/fairchem_escaip.py tests/convert/escaip_fairchem.json

In an environment of its own (pip install fairchem-core==2.24.0 ase). Models are small; options are those of the published sizes.
"""

import json
import sys
import zlib

import ase.build
import numpy as np
import torch
from fairchem.core.datasets.atomic_data import AtomicData, atomicdata_list_to_batch
from fairchem.core.models.escaip.EScAIP import (
    EScAIPBackbone,
    EScAIPDirectForceHead,
    EScAIPEnergyHead,
    EScAIPGradientEnergyForceStressHead,
)

SETTINGS = {
    "regress_forces": True,
    "hidden_size": 32,
    "num_layers": 2,
    "use_compile": False,
    "use_padding": False,
    "use_pbc": True,
    "max_num_elements": 31,
    "max_atoms": 100,
    "max_batch_size": 8,
    "max_radius": 6.0,
    "knn_k": 12,
    "knn_soft": True,
    "knn_sigmoid_scale": 0.2,
    "knn_lse_scale": 0.1,
    "knn_use_low_mem": True,
    "knn_pad_size": 45,
    "atten_name": "math",
    "atten_num_heads": 2,
    "atom_embedding_size": 8,
    "node_direction_embedding_size": 6,
    "edge_distance_expansion_size": 40,
    "edge_distance_embedding_size": 24,
    "freequency_list": [6, 4, 2, 2, 2],
}


def fill(module: torch.nn.Module, prefix: str) -> None:
    """Weights that anybody can make again: see formula in tests/convert/test_fairchem.py."""
    for name, parameter in module.named_parameters():
        full = f"{prefix}.{name}"
        t = torch.arange(parameter.numel(), dtype=torch.float64)
        x = torch.sin(t * 12.9898 + zlib.crc32(full.encode()) % 1000) * 43758.5453
        x = (x - x.floor() - 0.5).view(parameter.shape)
        norm = parameter.ndim == 1 and full.endswith("weight")
        scale = 0.2 if parameter.ndim < 2 else 3.0 / parameter.shape[-1] ** 0.5
        parameter.data.copy_(x * scale + norm)


def structures() -> list:
    rng = np.random.default_rng(0)
    ethanol = ase.build.molecule("CH3CH2OH")
    ethanol.set_cell([25.0, 25.0, 25.0])
    copper = ase.build.bulk("Cu", cubic=True) * (2, 2, 2)
    salt = ase.build.bulk("NaCl", "rocksalt", a=5.64, cubic=True)
    for atoms in (ethanol, copper, salt):
        atoms.pbc = True
        atoms.positions += rng.normal(size=atoms.positions.shape) * 0.08
    return [ethanol, copper, salt]


def main(out: str) -> None:
    frames = structures()
    golden = {"settings": SETTINGS, "structures": [], "conservative": [], "direct": []}
    for atoms in frames:
        entry = {"numbers": atoms.numbers.tolist(), "positions": atoms.positions.tolist(), "cell": atoms.cell[:].tolist()}
        golden["structures"].append(entry)
    for kind, direct in (("conservative", False), ("direct", True)):
        backbone = EScAIPBackbone(**SETTINGS, direct_forces=direct, regress_stress=not direct)
        if direct:
            heads = {"energy": EScAIPEnergyHead(backbone), "forces": EScAIPDirectForceHead(backbone)}
        else:
            heads = {"efs": EScAIPGradientEnergyForceStressHead(backbone, wrap_property=False)}
        fill(backbone, "backbone")
        for name, head in heads.items():
            fill(head, f"output_heads.{name}")
        for module in (backbone, *heads.values()):
            module.eval()
        for atoms in frames:
            data = atomicdata_list_to_batch([AtomicData.from_ase(atoms)])
            embedding = backbone(data)
            results: dict = {}
            for head in heads.values():
                results |= head(data, embedding)
            golden[kind].append({key: value.detach().double().tolist() for key, value in results.items()})
    with open(out, "w") as file:
        json.dump(golden, file)


if __name__ == "__main__":
    main(sys.argv[1])
