"""Energies, forces and stress of small SevenNets with weights from a formula, float64: the golden numbers of tests/convert.

    PEER/bin/python benchmarks/peers/sevenn_golden.py tests/convert/sevenn.json

In an environment of its own (pip install sevenn==0.13.0). Models are read from files as the package reads them: settings and weights by
name, one of them as release 0.9 wrote it. The JSON has settings, shapes of the weights and results; tests/convert/test_sevenn.py makes
the weights again.
"""

import copy
import json
import sys
import tempfile
import warnings
import zlib
from pathlib import Path

import ase
import numpy as np
import torch

warnings.filterwarnings("ignore")

import sevenn._const as const  # noqa: E402
import sevenn._keys as KEY  # noqa: E402
from e3nn.o3 import wigner_3j  # noqa: E402
from sevenn.atom_graph_data import AtomGraphData  # noqa: E402
from sevenn.checkpoint import SevenNetCheckpoint  # noqa: E402
from sevenn.model_build import build_E3_equivariant_model  # noqa: E402
from sevenn.train.dataload import unlabeled_atoms_to_graph  # noqa: E402

DEFAULTS = copy.deepcopy(const.DEFAULT_E3_EQUIVARIANT_MODEL_CONFIG)  # before anything of the package changes them
SHARED = {
    "version": "0.13.0",
    "_model_type": "E3_equivariant_model",
    "_type_map": {6: 0, 1: 1, 8: 2},
    "_number_of_species": 3,
    "chemical_species": ["C", "H", "O"],
    "cutoff": 4.0,
    "weight_nn_hidden_neurons": [6, 5],
    "radial_basis": {"radial_basis_name": "bessel", "bessel_basis_num": 5},
    "conv_denominator": 3.0,
    "shift": -1.5,
    "scale": 2.0,
}
UNEQUAL = ["6x0e", "6x0e+4x1e+2x2e", "6x0e+4x1e+2x2e", "6x0e"]
VARIANTS = {
    "parity_by_element": {"channel": 4, "lmax": 2, "is_parity": True},
    "even_linear_unequal": {
        "channel": 6,
        "lmax": 2,
        "is_parity": False,
        "irreps_manual": UNEQUAL,
        "self_connection_type": "linear",
        "cutoff_function": {"cutoff_function_name": "XPLOR", "cutoff_on": 3.5},
        "shift": [-1.0, -2.0, -3.0],
        "scale": 1.7,
    },
    "odd_scalars": {
        "channel": 3,
        "lmax": 1,
        "num_convolution_layer": 4,
        "act_scalar": {"e": "ssp", "o": "tanh"},
        "act_gate": {"e": "ssp", "o": "tanh"},
        "self_connection_type": ["linear", "nequip", "linear", "nequip"],
        "radial_basis": {"radial_basis_name": "bessel", "bessel_basis_num": 5, "trainable_coeff": False},
    },
    "solid_harmonics": {
        "channel": 3,
        "lmax": 1,
        "lmax_edge": 3,
        "num_convolution_layer": 2,
        "_normalize_sph": False,
        "cutoff_function": {"cutoff_function_name": "poly_cut", "poly_cut_p_value": 4},
        "weight_nn_hidden_neurons": [7],
        "act_radial": "ssp",
        "train_denominator": True,
        "scale": [1.2, 0.7, 0.9],
        "shift": 0.5,
    },
    "modal": {
        "channel": 6,
        "lmax": 2,
        "is_parity": False,
        "irreps_manual": UNEQUAL,
        "use_modality": True,
        "_modal_map": {"PBE": 0, "R2SCAN": 1, "other": 2},
        "_number_of_modalities": 3,
        "use_modal_node_embedding": True,
        "use_modal_self_inter_intro": True,
        "use_modal_self_inter_outro": True,
        "use_modal_output_block": True,
        "use_modal_wise_shift": True,
        "use_modal_wise_scale": True,
        "shift": [[-1.0, -2.0, -3.0], [1.0, 2.0, 3.0], [0.0, 0.5, 0.25]],
        "scale": [[1.0, 1.0, 1.0], [1.5, 2.0, 0.5], [1.25, 1.0, 1.0]],
    },
    "release_0.9": {
        "version": "0.9.1",
        "channel": 6,
        "lmax": 2,
        "is_parity": False,
        "irreps_manual": UNEQUAL,
        "self_connection_type": "linear",
        "cutoff_function": {"cutoff_function_name": "XPLOR", "cutoff_on": 3.5, "poly_cut_p_value": 6},
        "optimize_by_reduce": True,
        "train_avg_num_neigh": False,
    },
}
FLIPPED = ["_w3j_1_1_1", "_w3j_2_1_2"]  # couplings whose sign was another in e3nn of old


def formula(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Weights that anybody can make again: whole numbers, then numbers that float32 has exactly."""
    t = torch.arange(torch.Size(shape).numel()) + zlib.crc32(name.encode()) % 2**20
    h = t * 1103515245 % 2**31
    h = (h ^ (h >> 15)) * 1664525 % 2**31
    x = (h ^ (h >> 13)).double() / 2**31 - 0.5
    if name.endswith(("denominator", "denumerator")):
        return (x + 3.0).float().double().view(shape)
    if name.endswith("coeffs"):
        return ((x / 5 + torch.arange(1, len(x) + 1)) * 0.7853981633974483).float().double().view(shape)
    return (3.5 * x).float().double().view(shape)


def structures() -> list[ase.Atoms]:
    rng = np.random.default_rng(0)
    molecule = ase.Atoms("COHHCH", rng.normal(size=(6, 3)) * 1.1 + np.arange(6)[:, None] * [0.5, 0.3, 0.1])
    cell = np.array([[4.1, 0.0, 0.0], [0.4, 4.5, 0.0], [-0.3, 0.6, 4.8]])
    grid = np.array([[a, b, c] for a in (0.0, 0.5) for b in (0.0, 0.5) for c in (0.0, 0.5)])[:7]
    crystal = ase.Atoms("OCHOHCO", grid @ cell + rng.normal(size=(7, 3)) * 0.1, cell=cell, pbc=True)
    return [molecule, crystal]


def to_double(module, arguments, data):
    """Casts what the embedding of elements gives in float32 always."""
    for key in (KEY.NODE_FEATURE, KEY.NODE_ATTR):
        data[key] = data[key].double()
    return data


def old_name(name: str) -> str:
    """As release 0.9 had it."""
    module, rest = name.split(".", 1)
    special = {
        "edge_embedding": "EdgeEmbedding",
        "reduce_input_to_hidden": "reducing nn input to hidden",
        "reduce_hidden_to_energy": "reducing nn hidden to energy",
        "rescale_atomic_energy": "rescale atomic energy",
    }
    kept = module == "onehot_to_feature_x" or module.endswith("self_interaction_1")
    return special.get(module, module if kept else module.replace("_", " ")) + "." + rest.replace("denominator", "denumerator")


def weights(settings: dict) -> dict[str, torch.Tensor]:
    """By name, as a file has them."""
    current = copy.deepcopy({"_normalize_sph": True, **settings})
    if current["cutoff_function"]["cutoff_function_name"] == "XPLOR":
        current["cutoff_function"].pop("poly_cut_p_value", None)
    model = build_E3_equivariant_model(current)
    old, found = settings["version"].startswith("0.9"), {}
    for name, value in model.state_dict().items():
        last = name.rsplit(".", 1)[1]
        if last.startswith("_w3j"):
            if old:
                found[old_name(name)] = wigner_3j(*map(int, last.split("_")[2:])) * (-1 if last in FLIPPED else 1)
        elif name.startswith("rescale"):
            found[old_name(name) if old else name] = value.double()
        elif value.numel() and not last.startswith("output_mask"):
            found[old_name(name) if old else name] = formula(old_name(name) if old else name, tuple(value.shape))
        else:
            found[old_name(name) if old else name] = value
    if not old:  # buffers of couplings, which a current file has too
        found |= {name: value for name, value in model.state_dict().items() if "_w3j" in name}
    return found


def results(model, atoms: ase.Atoms, cutoff: float, modal: str) -> dict:
    graph = unlabeled_atoms_to_graph(atoms, cutoff)
    exact = {key: torch.tensor(np.asarray(graph[key]), dtype=torch.float64) for key in (KEY.POS, KEY.EDGE_VEC, KEY.CELL_VOLUME)}
    data = AtomGraphData.from_numpy_dict(graph)
    for key, value in exact.items():
        data[key] = value
    if modal:
        data[KEY.DATA_MODALITY] = modal
    found = model(data)
    row = {"energies": found[KEY.ATOMIC_ENERGY].flatten().tolist(), "forces": found[KEY.PRED_FORCE].tolist()}
    if atoms.pbc.all():
        row["stress"] = (-found[KEY.PRED_STRESS])[[0, 1, 2, 4, 5, 3]].tolist()  # as in ASE
    return row


def main(out: str) -> None:
    torch.set_default_dtype(torch.float64)
    frames = structures()
    golden = {"structures": [], "variants": {}, "flipped": FLIPPED}
    for atoms in frames:
        cell = atoms.cell[:].tolist() if atoms.pbc.all() else None
        entry = {"numbers": atoms.numbers.tolist(), "positions": atoms.positions.tolist(), "cell": cell}
        golden["structures"].append(entry)
    for name, variant in VARIANTS.items():
        settings = {**DEFAULTS, **SHARED, **variant}
        if settings["version"].startswith("0.9"):
            del settings["_normalize_sph"]  # came later, and is false without
        state = weights(settings)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "checkpoint.pth"
            torch.save({"model_state_dict": state, "config": settings}, path)
            const.DEFAULT_E3_EQUIVARIANT_MODEL_CONFIG.update(copy.deepcopy(DEFAULTS))
            model = SevenNetCheckpoint(str(path)).build_model().double().eval()
        model.set_is_batch_data(False)
        model.get_submodule("onehot_idx_to_onehot").register_forward_hook(to_double)
        modals = list(settings.get("_modal_map", [""]))
        rows = {modal: [results(model, atoms, settings["cutoff"], modal) for atoms in frames] for modal in modals}
        shapes = {key: list(value.shape) for key, value in state.items() if value.numel() and "output_mask" not in key}
        golden["variants"][name] = {"settings": settings, "weights": shapes, "results": rows}
        print(name, rows[next(iter(rows))][0]["energies"][:2])
    Path(out).write_text(json.dumps(golden))


if __name__ == "__main__":
    main(sys.argv[1])
