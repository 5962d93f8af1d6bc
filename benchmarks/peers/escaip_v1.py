"""Energies, forces and stress of the paper's EScAIP with weights from a formula: the golden numbers of tests/convert.

    PEER/bin/python benchmarks/peers/escaip_v1.py CHECKOUT tests/convert/escaip_v1.json

CHECKOUT is a working tree of ASK-Berkeley/EScAIP at commit cea229e; the environment is that of fairchem_escaip.py. The modules that the
commit imports and the environment lacks are made here, in memory. All in float64.
"""

import json
import os
import sys
import types

os.environ["TORCHDYNAMO_DISABLE"] = "1"  # the commit compiles a function as it is imported

import ase
import ase.build
import fairchem.core.models.base
import fairchem.core.models.escaip.utils.smearing as smearing
import numpy as np
import torch
from ase.build import molecule
from fairchem.core.graph.compute import generate_graph
from fairchem.core.models.utils.irreps import cg_change_mat
from fairchem_escaip import fill

SETTINGS = {
    "regress_forces": True,
    "hidden_size": 32,
    "batch_size": 4,
    "activation": "gelu",
    "use_compile": False,
    "use_padding": False,
    "use_pbc": True,
    "use_pbc_single": False,
    "otf_graph": True,
    "max_neighbors": 12,
    "max_radius": 6.0,
    "max_num_elements": 31,
    "max_num_nodes_per_batch": 100,
    "enforce_max_neighbors_strictly": True,
    "distance_function": "gaussian",
    "num_layers": 2,
    "atom_embedding_size": 8,
    "node_direction_embedding_size": 6,
    "node_direction_expansion_size": 10,
    "edge_distance_expansion_size": 40,
    "edge_distance_embedding_size": 24,
    "atten_name": "math",
    "atten_num_heads": 2,
    "readout_hidden_layer_multiplier": 2,
    "output_hidden_layer_multiplier": 2,
    "ffn_hidden_layer_multiplier": 2,
    "mlp_dropout": 0.05,
    "atten_dropout": 0.1,
    "stochastic_depth_prob": 0.0,
    "normalization": "rmsnorm",
}
VARIANTS = {
    "conservative": {"direct_force": False},
    "conservative_no_angles": {"direct_force": False, "use_angle_embedding": False},
    "direct": {"direct_force": True},
    "direct_sum_no_angles": {"direct_force": True, "use_angle_embedding": False, "energy_reduce": "sum"},
}


def scatter(src: torch.Tensor, index: torch.Tensor, dim: int, out: torch.Tensor | None = None, reduce: str = "sum") -> torch.Tensor:
    """The two uses of torch_scatter: a mean into rows of zeros, and a sum over columns. Read by TorchScript."""
    if out is None:
        out = torch.zeros([src.shape[0], int(index.max()) + 1], dtype=src.dtype)
    total = out.index_add(dim, index, src)
    if reduce == "sum":
        return total
    count = torch.bincount(index, minlength=out.shape[0]).clamp(min=1)
    return total / count.unsqueeze(1)


def sort_edge_index(edge_index: torch.Tensor, edge_attr: list, sort_by_row: bool) -> tuple:
    order = torch.argsort(edge_index[0 if sort_by_row else 1], stable=True)
    return edge_index[:, order], [values[order] for values in edge_attr]


class GraphModelMixin:
    def generate_graph(self, data, cutoff, max_neighbors, enforce_max_neighbors_strictly, **_):
        graph = generate_graph(data, cutoff, max_neighbors, enforce_max_neighbors_strictly, 1, data.pbc)
        return types.SimpleNamespace(**graph)


def provide(name: str, **members) -> None:
    module = types.ModuleType(name)
    module.__dict__.update(members)
    sys.modules[name] = module


def batch(frames: list[ase.Atoms]) -> types.SimpleNamespace:
    natoms = torch.tensor([len(atoms) for atoms in frames])
    return types.SimpleNamespace(
        atomic_numbers=torch.tensor(np.concatenate([atoms.numbers for atoms in frames])),
        pos=torch.tensor(np.concatenate([atoms.positions for atoms in frames])),
        cell=torch.tensor(np.stack([atoms.cell[:] for atoms in frames])),
        pbc=torch.ones(len(frames), 3, dtype=torch.bool),
        batch=torch.repeat_interleave(torch.arange(len(frames)), natoms),
        natoms=natoms,
        num_nodes=int(natoms.sum()),
        num_graphs=len(frames),
    )


def structures() -> list[ase.Atoms]:
    """A molecule, two crystals with more neighbours than are seen, and an atom without any beside another molecule."""
    rng = np.random.default_rng(0)
    ethanol, water = molecule("CH3CH2OH", cell=[25.0] * 3), molecule("H2O", cell=[25.0] * 3)
    lonely = water + ase.Atoms("Ne", [[9.0, 9.0, 9.0]])
    frames = [ethanol, ase.build.bulk("Cu", cubic=True), ase.build.bulk("NaCl", "rocksalt", a=5.64, cubic=True), lonely]
    for atoms in frames:
        atoms.pbc = True
        atoms.positions += rng.normal(size=atoms.positions.shape) * 0.08
    return frames


def main(checkout: str, out: str) -> None:
    torch.set_default_dtype(torch.float64)
    provide("torch_scatter", scatter=scatter)
    provide("torch_geometric", utils=types.SimpleNamespace(sort_edge_index=sort_edge_index), data=types.SimpleNamespace(Batch=object))
    provide("fairchem.core.models.scn.smearing", **vars(smearing))
    fairchem.core.models.base.GraphModelMixin = GraphModelMixin
    sys.path.insert(0, checkout)
    from src import EScAIP as v1

    frames = structures()
    golden = {"settings": SETTINGS, "variants": VARIANTS, "structures": [], "results": {}}
    for atoms in frames:
        entry = {"numbers": atoms.numbers.tolist(), "positions": atoms.positions.tolist(), "cell": atoms.cell[:].tolist()}
        golden["structures"].append(entry)
    for name, variant in VARIANTS.items():
        backbone = v1.EScAIPBackbone(**SETTINGS, **variant)
        if variant["direct_force"]:
            heads = {"energy": v1.EScAIPEnergyHead(backbone), "forces": v1.EScAIPDirectForceHead(backbone)}
            heads["stress"] = v1.EScAIPRank2Head(backbone)
        else:
            heads = {"energy": v1.EScAIPGradientEnergyForceHead(backbone)}
        fill(backbone, "backbone")
        for head, module in heads.items():
            fill(module, f"output_heads.{head}")
        for module in (backbone, *heads.values()):
            module.eval().float().double()  # weights that single precision has, in double precision
        data, results = batch(frames), {}
        embedding = backbone(data)
        for module in heads.values():
            results |= module(data, embedding)
        if "stress_isotropic" in results:
            irreps = torch.cat([results.pop("stress_isotropic"), torch.zeros(len(frames), 3), results.pop("stress_anisotropic")], 1)
            results["stress"] = (irreps @ cg_change_mat(2)).view(-1, 3, 3)
        golden["results"][name] = {key: value.detach().tolist() for key, value in results.items()}
    with open(out, "w") as file:
        json.dump(golden, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
