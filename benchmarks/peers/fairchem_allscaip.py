"""Energies, forces and stress of fairchem-core's AllScAIP with weights from a formula: the golden numbers of tests/convert.

    PEER/bin/python benchmarks/peers/fairchem_allscaip.py tests/convert/allscaip_fairchem.json

In the environment of fairchem_escaip.py. Models are small; options are those of the published sizes, and the local form.
"""

import json
import sys

import torch
from fairchem.core.datasets.atomic_data import AtomicData, atomicdata_list_to_batch
from fairchem.core.models.allscaip.AllScAIP import (
    AllScAIPBackbone,
    AllScAIPDirectForceHead,
    AllScAIPEnergyHead,
    AllScAIPGradientEnergyForceStressHead,
)
from fairchem_escaip import fill, structures

SETTINGS = {
    "regress_forces": True,
    "hidden_size": 32,
    "num_layers": 2,
    "use_compile": False,
    "use_padding": False,
    "max_num_elements": 31,
    "max_atoms": 100,
    "max_batch_size": 8,
    "max_radius": 6.0,
    "knn_k": 12,
    "knn_pad_size": 45,
    "atten_name": "math",
    "atten_num_heads": 2,
    "edge_distance_expansion_size": 40,
    "freequency_list": [6, 4, 2, 2, 2],
    "use_sincx_mask": False,
}
VARIANTS = {
    "conservative": {"direct_forces": False, "regress_stress": True},
    "conservative_local": {"direct_forces": False, "regress_stress": True, "use_node_path": False, "use_freq_mask": False},
    "direct": {"direct_forces": True},
}
CHARGES, SPINS = [-1, 2, 0], [2, 0, 3]


def main(out: str) -> None:
    frames = structures()
    golden = {"settings": SETTINGS, "variants": VARIANTS, "structures": [], "results": {}}
    for atoms, charge, spin in zip(frames, CHARGES, SPINS, strict=True):
        entry = {"numbers": atoms.numbers.tolist(), "positions": atoms.positions.tolist(), "cell": atoms.cell[:].tolist()}
        golden["structures"].append(entry | {"charge": charge, "spin": spin})
    for name, variant in VARIANTS.items():
        backbone = AllScAIPBackbone(**SETTINGS, **variant)
        if variant["direct_forces"]:
            heads = {"energy": AllScAIPEnergyHead(backbone), "forces": AllScAIPDirectForceHead(backbone)}
        else:
            heads = {"efs": AllScAIPGradientEnergyForceStressHead(backbone, wrap_property=False)}
        fill(backbone, "backbone")
        for head, module in heads.items():
            fill(module, f"output_heads.{head}")
        for module in (backbone, *heads.values()):
            module.eval()
        data = [AtomicData.from_ase(atoms) for atoms in frames]
        for item, charge, spin in zip(data, CHARGES, SPINS, strict=True):
            item.charge, item.spin = torch.tensor([charge]), torch.tensor([spin])
        batch, results = atomicdata_list_to_batch(data), {}
        embedding = backbone(batch)
        for module in heads.values():
            results |= module(batch, embedding)
        golden["results"][name] = {key: value.detach().double().tolist() for key, value in results.items()}
    with open(out, "w") as file:
        json.dump(golden, file)


if __name__ == "__main__":
    main(sys.argv[1])
