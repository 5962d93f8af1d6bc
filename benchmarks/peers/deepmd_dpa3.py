"""Energies, forces and virials of deepmd-kit's DPA3 with weights from a formula: the golden numbers of tests/convert.

    PEER/bin/python benchmarks/peers/deepmd_dpa3.py tests/convert/dpa3_deepmd.json

The environment: torch==2.13.0, deepmd-kit==3.2.0, mpich, e3nn>=0.5.9, ase, with libdeepmd_op_pt.so, which is built for torch 2.11, renamed
away. All in float64.
"""

import json
import sys
import zlib

import numpy as np
import torch
from deepmd.pt.model.model import get_model

REPFLOW = {
    "n_dim": 16,
    "e_dim": 8,
    "a_dim": 8,
    "nlayers": 3,
    "e_rcut": 5.0,
    "e_rcut_smth": 4.2,
    "e_sel": 1200,
    "a_rcut": 3.6,
    "a_rcut_smth": 3.0,
    "a_sel": 300,
    "axis_neuron": 4,
    "a_compress_rate": 1,
    "a_compress_e_rate": 2,
    "a_compress_use_split": True,
    "update_angle": True,
    "smooth_edge_update": True,
    "edge_init_use_dist": True,
    "use_exp_switch": True,
    "use_dynamic_sel": True,
    "sel_reduce_factor": 10.0,
    "update_style": "res_residual",
    "fix_stat_std": 0.3,
}
STATIC = {"use_dynamic_sel": False, "e_sel": 60, "a_sel": 30}
VARIANTS = {  # what differs from the above: repflow, descriptor, fitting_net
    "published": {},
    "static": {"repflow": STATIC},
    "static_truncated": {"repflow": {**STATIC, "e_sel": 11, "a_sel": 5}},
    "static_edges_themselves": {"repflow": {**STATIC, "smooth_edge_update": False}},
    "polynomial": {"repflow": {"use_exp_switch": False}},
    "inverse_distance": {"repflow": {"edge_init_use_dist": False}},
    "uncompressed": {"repflow": {"a_compress_rate": 0}},
    "compressed_by_matrices": {"repflow": {"a_compress_rate": 2, "a_compress_e_rate": 1, "a_compress_use_split": False}},
    "two_messages": {"repflow": {"n_multi_edge_message": 2, "axis_neuron": 3}},
    "sequential": {"repflow": {"sequential_update": True}},
    "average": {"repflow": {"update_style": "res_avg"}},
    "increment": {"repflow": {"update_style": "res_incr"}},
    "no_angles": {"repflow": {"update_angle": False}},
    "silu": {"descriptor": {"activation_function": "silu"}, "fitting_net": {"activation_function": "silu"}},
    "silut_3": {"descriptor": {"activation_function": "silut:3.0"}, "fitting_net": {"activation_function": "silut:3.0"}},
    "protected": {"descriptor": {"env_protection": 0.01}, "repflow": {"edge_init_use_dist": False}},
    "biased_elements": {"descriptor": {"use_tebd_bias": True, "concat_output_tebd": True}},
    "as_many_elements_as_features": {"repflow": {"n_dim": 3, "axis_neuron": 2, "a_compress_rate": 0}},
    "half_as_many_elements": {"repflow": {"n_dim": 6, "axis_neuron": 2, "a_compress_rate": 0}},
    "charge_and_spin": {"descriptor": {"add_chg_spin_ebd": True}},
    "data_sets": {"fitting_net": {"dim_case_embd": 3}},
    "other_readout": {"fitting_net": {"resnet_dt": False, "neuron": [16, 32, 32]}},
}
TYPES = ["O", "H", "C"]
CHARGE_SPIN, CASE = [-1.0, 2.0], 1


def fill(name: str, shape: tuple) -> torch.Tensor:
    """Numbers of the size of trained weights, from the name."""
    t = torch.arange(torch.Size(shape).numel()) + zlib.crc32(name.encode()) % 2**20
    h = t * 1103515245 % 2**31  # whole numbers: a sine differs in its last bit from processor to processor
    h = (h ^ (h >> 15)) * 1664525 % 2**31
    x = (h ^ (h >> 13)).double() / 2**31 - 0.5
    return x.view(shape) * (6.0 / shape[0] ** 0.5 if len(shape) > 1 else 1.0)


def structures() -> list[dict]:
    rng = np.random.default_rng(0)
    corners = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], dtype=float)
    return [
        {"positions": corners[:6] * 1.5 + 0.1 * rng.normal(size=(6, 3)), "types": [0, 1, 1, 2, 1, 0], "cell": None},
        {
            "positions": corners * 2.2 + 0.15 * rng.normal(size=(8, 3)),
            "types": [0, 1, 2, 1, 0, 2, 1, 1],
            "cell": [[4.6, 0.0, 0.0], [0.7, 4.5, 0.0], [-0.4, 0.5, 4.4]],
        },
        {"positions": rng.uniform(0, 7, size=(16, 3)), "types": ([0, 1, 1, 2] * 4), "cell": [[7.0, 0, 0], [0, 7.0, 0], [0, 0, 7.0]]},
    ]


def main(out: str) -> None:
    found = {}
    for name, change in VARIANTS.items():
        act = {"activation_function": "silut:10.0", "precision": "float64"}
        descriptor = {"type": "dpa3", "repflow": {**REPFLOW, **change.get("repflow", {})}, **act, **change.get("descriptor", {})}
        settings = {
            "type_map": TYPES,
            "descriptor": descriptor,
            "fitting_net": {"neuron": [24, 24, 24], "resnet_dt": True, **act, **change.get("fitting_net", {})},
        }
        model = get_model(json.loads(json.dumps(settings))).eval()
        if name == "data_sets":
            model.set_case_embd(CASE)
        state = model.state_dict()
        with torch.no_grad():
            for key, value in state.items():
                if key.split(".")[-1] in ("matrix", "bias", "idt") or "_residual." in key:
                    value.copy_(fill(key.replace("._networks.", ".networks."), tuple(value.shape)))
            state["atomic_model.out_bias"].copy_(fill("out_bias", tuple(state["atomic_model.out_bias"].shape)))
        results = []
        for structure in structures():
            box = None if structure["cell"] is None else torch.tensor(structure["cell"], dtype=torch.float64).reshape(1, 9)
            more = {"charge_spin": torch.tensor([CHARGE_SPIN], dtype=torch.float64)} if name == "charge_and_spin" else {}
            result = model(torch.tensor(structure["positions"])[None], torch.tensor([structure["types"]]), box=box, **more)
            energies = result["atom_energy"].detach()[0, :, 0].tolist()
            virial = None if box is None else result["virial"].detach()[0].tolist()
            results.append({"energies": energies, "forces": result["force"].detach()[0].tolist(), "virial": virial})
        print(name, sum(results[-1]["energies"]))
        found[name] = {"settings": settings, "results": results}
    plain = [{key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in s.items()} for s in structures()]
    with open(out, "w") as file:
        json.dump({"structures": plain, "variants": found}, file)


if __name__ == "__main__":
    main(sys.argv[1])
