"""Energies, forces and stress of mace-torch with weights from a formula, and three model files: the golden numbers of tests/convert.

    PEER/bin/python -W ignore benchmarks/peers/mace_golden.py tests/convert

The environment: torch==2.13.0, mace-torch==0.3.16 (e3nn==0.4.4). All in float64; the second file is stored in float32 and evaluated in
float64. Slopes of Chebyshev polynomials are missing from mace-torch's forces, which are left out for them.
"""

import json
import lzma
import sys
import zlib
from pathlib import Path

import ase
import mace  # before e3nn, which PyTorch would not let load its constants
import numpy as np
import torch
from e3nn import o3
from e3nn.nn import Gate
from mace import modules
from mace.data import AtomicData, KeySpecification, config_from_atoms
from mace.tools import AtomicNumberTable, torch_geometric

BASE = {
    "elements": [1, 6, 8], "cutoff": 4.5, "channels": 4, "lmax_hidden": 1, "lmax_edge": 2, "correlation": 2, "layers": 2,
    "first_layer": "residual", "other_layers": "residual", "average_neighbors": 1.5, "radial": "bessel", "radial_basis": 5,
    "radial_widths": [8, 8], "envelope_order": 5, "envelope_on": "basis", "distance_transform": "none", "readouts": "all",
    "readout_width": 3, "last_readout": "perceptron", "repulsion": False, "message_channels": None, "lmax_message": None,
    "charges": None, "spins": None, "embedding_readout": False, "data_sets": 0,
}  # fmt: skip
VARIANTS = {  # what differs from the above, in EquiMol's words
    "scalars": {"lmax_hidden": 0, "correlation": 1},
    "vectors": {},
    "tensors": {"lmax_hidden": 2, "correlation": 3},
    "as_published": {"lmax_edge": 3, "correlation": 3, "channels": 3},
    "scalars_and_harmonics_of_degree_3": {"lmax_hidden": 0, "lmax_edge": 3, "correlation": 3, "channels": 3},
    "correlation_by_layer": {"correlation": [3, 2]},
    "plain": {"first_layer": "plain", "other_layers": "plain"},
    "plain_first": {"first_layer": "plain", "repulsion": True},
    "density": {"first_layer": "density", "other_layers": "density_residual"},
    "density_residual": {"first_layer": "density_residual", "other_layers": "density_residual", "lmax_hidden": 2},
    "repulsion": {"repulsion": True, "envelope_order": 6},
    "agnesi": {"distance_transform": "agnesi", "repulsion": True},
    "soft": {"distance_transform": "soft", "first_layer": "density_residual"},
    "gaussian": {"radial": "gaussian"},
    "chebyshev": {"radial": "chebyshev", "distance_transform": "agnesi"},  # beyond 1 they grow without bounds
    "two_heads": {"data_sets": 2, "repulsion": True},
    "two_heads_scalars": {"data_sets": 2, "lmax_hidden": 0, "correlation": 3, "first_layer": "plain"},
    "one_layer": {"layers": 1},
    "three_layers": {"layers": 3, "lmax_hidden": 2, "correlation": [2, 1, 2]},
    "last_readout": {"readouts": "last"},
    "envelope_on_weights": {"envelope_on": "weights", "other_layers": "density_residual"},
    "without_scale": {},
    "nonlinear": {"first_layer": "nonlinear", "other_layers": "nonlinear", "envelope_on": "weights"},
    "nonlinear_two_heads": {
        "first_layer": "nonlinear",
        "other_layers": "nonlinear",
        "envelope_on": "weights",
        "data_sets": 2,
        "last_readout": "biased",
        "distance_transform": "agnesi",
        "repulsion": True,
        "correlation": 3,
        "lmax_edge": 3,
        "message_channels": 3,
    },
    "nonlinear_last": {"first_layer": "density_residual", "other_layers": "nonlinear", "lmax_hidden": 2, "lmax_message": 1, "layers": 3},
    "nonlinear_degrees_that_features_lack": {
        "first_layer": "nonlinear",
        "other_layers": "nonlinear",
        "message_channels": [4, 2],
        "last_readout": "biased",
    },
    "nonlinear_scalars": {"first_layer": "nonlinear", "other_layers": "residual", "lmax_hidden": 0, "lmax_edge": 1},
    "one_product_for_all_elements": {"first_layer": "nonlinear", "other_layers": "nonlinear", "envelope_on": "weights"},
    "messages_of_fewer_channels": {"message_channels": 2, "lmax_hidden": 2, "other_layers": "density_residual"},
    "charge_and_spin": {"charges": [-2, 3], "spins": [0, 3], "embedding_readout": True, "data_sets": 2},
    "spin": {"spins": [0, 2], "first_layer": "nonlinear", "other_layers": "nonlinear", "envelope_on": "weights"},
}
IRREPS = {  # what features are sent as where it does not follow from the above
    "nonlinear_degrees_that_features_lack": "2x0e+2x1o+2x2e+2x3o",
}
BLOCKS = {
    "plain": "RealAgnosticInteractionBlock",
    "residual": "RealAgnosticResidualInteractionBlock",
    "density": "RealAgnosticDensityInteractionBlock",
    "density_residual": "RealAgnosticDensityResidualInteractionBlock",
    "nonlinear": "RealAgnosticResidualNonLinearInteractionBlock",
}
KEYS = KeySpecification(info_keys={"total_charge": "total_charge", "total_spin": "total_spin"})
HEADS = ["first", "second"]
ENERGIES = [[-13.5, -1029.25, -2042.5], [-13.0, -1030.0, -2041.0]]  # eV, by head and element
SCALES, SHIFTS = [1.25, 0.75], [0.125, -0.25]


def fill(name: str, shape: tuple) -> torch.Tensor:
    """Numbers of variance one from the name, in products those that mace-torch begins with."""
    t = torch.arange(torch.Size(shape).numel()) + zlib.crc32(name.encode()) % 2**20
    h = t * 1103515245 % 2**31  # whole numbers: a sine differs in its last bit from processor to processor
    h = (h ^ (h >> 15)) * 1664525 % 2**31
    x = (h ^ (h >> 13)).double() / 2**31 - 0.5
    return x.view(shape) * 3.5 / (shape[1] if "symmetric_contractions" in name else 1)


def structures() -> list[dict]:
    rng = np.random.default_rng(0)
    corners = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], dtype=float)
    cell = [[4.6, 0.0, 0.0], [0.7, 4.5, 0.0], [-0.4, 0.5, 4.4]]
    found = [
        {"positions": corners[:5] * 1.1 + 0.1 * rng.normal(size=(5, 3)), "numbers": [8, 1, 1, 6, 1], "cell": None, "pbc": [False] * 3},
        {"positions": corners * 2.2 + 0.15 * rng.normal(size=(8, 3)), "numbers": [8, 1, 6, 1, 8, 6, 1, 1], "cell": cell, "pbc": [True] * 3},
    ]
    found[0] |= {"charge": 3, "spin": 2}
    found[1] |= {"charge": -1, "spin": 1}
    return [{**s, "positions": s["positions"].round(6).tolist()} for s in found]


def build(settings: dict, plain: bool = False, sent: o3.Irreps | None = None, **others) -> torch.nn.Module:
    """mace-torch's model by EquiMol's settings."""
    s, several = settings, settings["data_sets"] > 0
    irreps = "+".join(f"{s['channels']}x{l}{'eo'[l % 2]}" for l in range(s["lmax_hidden"] + 1))
    embedded = {
        theirs: {
            "type": "categorical",
            "per": "graph",
            "num_classes": s[ours][1] - s[ours][0] + 1,
            "offset": -s[ours][0],
            "emb_dim": 2 + len(ours),
        }
        for theirs, ours in (("total_spin", "spins"), ("total_charge", "charges"))
        if s[ours]
    }
    scale = (
        {} if plain else {"atomic_inter_scale": SCALES if several else SCALES[0], "atomic_inter_shift": SHIFTS if several else SHIFTS[0]}
    )
    return (modules.MACE if plain else modules.ScaleShiftMACE)(
        r_max=s["cutoff"],
        num_bessel=s["radial_basis"],
        num_polynomial_cutoff=s["envelope_order"],
        max_ell=s["lmax_edge"],
        interaction_cls=modules.interaction_classes[BLOCKS[s["other_layers"]]],
        interaction_cls_first=modules.interaction_classes[BLOCKS[s["first_layer"]]],
        num_interactions=s["layers"],
        num_elements=len(s["elements"]),
        hidden_irreps=o3.Irreps(irreps),
        MLP_irreps=o3.Irreps(f"{s['readout_width']}x0e"),
        atomic_energies=np.array(ENERGIES if several else ENERGIES[0]),
        avg_num_neighbors=s["average_neighbors"],
        atomic_numbers=s["elements"],
        correlation=s["correlation"],
        gate=torch.nn.functional.silu,
        radial_MLP=s["radial_widths"],
        radial_type=s["radial"],
        distance_transform={"none": "None", "agnesi": "Agnesi", "soft": "Soft"}[s["distance_transform"]],
        pair_repulsion=s["repulsion"],
        apply_cutoff=s["envelope_on"] == "basis",
        use_last_readout_only=s["readouts"] == "last",
        readout_cls={"perceptron": modules.NonLinearReadoutBlock, "biased": modules.readout_classes["NonLinearBiasReadoutBlock"]}[
            s["last_readout"]
        ],
        edge_irreps=sent_as(s) if sent is None else sent,
        use_edge_irreps_first=isinstance(s["message_channels"], int),
        embedding_specs=embedded or None,
        use_embedding_readout=s["embedding_readout"],
        heads=HEADS if several else ["Default"],
        **scale,
        **others,
    )


def sent_as(settings: dict) -> o3.Irreps | None:
    """Irreps of the features of layers after the first on their way to neighbours, where they are others."""
    channels, lmax = settings["message_channels"], settings["lmax_message"]
    if channels is None and lmax is None:
        return None
    channels = settings["channels"] if channels is None else channels if isinstance(channels, int) else channels[-1]
    return o3.Irreps("+".join(f"{channels}x{l}{'eo'[l % 2]}" for l in range((settings["lmax_hidden"] if lmax is None else lmax) + 1)))


def batch_of(model: torch.nn.Module, structure: dict, head: str) -> dict:
    atoms = ase.Atoms(structure["numbers"], structure["positions"], cell=structure["cell"], pbc=structure["pbc"])
    atoms.info |= {"total_charge": structure["charge"], "total_spin": structure["spin"]}
    config = config_from_atoms(atoms, KEYS, head_name=head)
    table = AtomicNumberTable(model.atomic_numbers.tolist())
    data = AtomicData.from_config(config, z_table=table, cutoff=float(model.r_max), heads=model.heads)
    return next(iter(torch_geometric.dataloader.DataLoader([data], batch_size=1))).to_dict()


def evaluate(model: torch.nn.Module, forces: bool = True) -> list[dict]:
    """Of each structure and head."""
    results = []
    for number, structure in enumerate(structures()):
        for head in model.heads:
            out = model(batch_of(model, structure, head), compute_stress=structure["cell"] is not None)
            result = {"structure": number, "head": head, "energies": out["node_energy"].detach().tolist()}
            if hasattr(model, "embedding_readout"):  # whose energies mace-torch counts with no atom
                del result["energies"]
                result["energy"] = float(out["energy"].detach())
            if forces:
                result["forces"] = out["forces"].detach().tolist()
            if forces and structure["cell"] is not None:
                result["stress"] = out["stress"].detach()[0].tolist()
            results.append(result)
    return results


@torch.no_grad()
def set_weights(model: torch.nn.Module) -> None:
    for key, value in model.named_parameters():
        value.copy_(fill(key, tuple(value.shape)))


def train(model: torch.nn.Module, steps: int = 40) -> None:
    """To energies of a pair potential, so that weights are no longer those it began with."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(steps):
        loss = 0
        for structure, target in zip(structures(), (-2.0, -5.0), strict=True):
            out = model(batch_of(model, structure, model.heads[0]), training=True)
            loss = loss + (out["interaction_energy"] - target).square().sum() + out["forces"].square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def main(folder: Path) -> None:
    torch.set_default_dtype(torch.float64)
    variants, files = {}, {}
    for name, change in VARIANTS.items():
        settings = BASE | change
        others = {"sent": o3.Irreps(IRREPS[name])} if name in IRREPS else {}
        others |= {"use_agnostic_product": True} if name == "one_product_for_all_elements" else {}
        model = build(settings, plain=name == "without_scale", **others)
        shapes = {key: list(value.shape) for key, value in model.named_parameters()}
        set_weights(model)
        results = evaluate(model, forces=settings["radial"] != "chebyshev")
        print(name)
        variants[name] = {"settings": settings, "shapes": shapes, "results": results}

    torch.manual_seed(0)
    change = {"first_layer": "density", "other_layers": "density_residual", "distance_transform": "agnesi", "repulsion": True}
    model = build(BASE | change | {"channels": 2, "radial_widths": [4]})
    train(model)
    write(folder / "mace_trained.model.xz", model)
    files["mace_trained"] = evaluate(model)
    torch.manual_seed(1)
    change = {"data_sets": 2, "first_layer": "plain", "channels": 2, "radial_widths": [4], "average_neighbors": np.float64(1.5)}
    model = build(BASE | change, keep_last_layer_irreps=True).float()
    write(folder / "mace_heads.model.xz", model)
    files["mace_heads"] = evaluate(model.double())
    change = {
        "data_sets": 2, "first_layer": "nonlinear", "other_layers": "nonlinear", "envelope_on": "weights", "last_readout": "biased",
        "message_channels": 1, "channels": 2, "radial_widths": [4], "correlation": 3, "spins": [0, 2], "charges": [-2, 3],
    }  # fmt: skip
    model = build(BASE | change, sent=o3.Irreps("1x0e+1x1o+1x2e"))
    gate = model.interactions[0].equivariant_nonlin  # e3nn's, as in files older than mace-torch 0.3.16
    parts = gate.irreps_scalars, [torch.nn.functional.silu], gate.irreps_gates, [torch.nn.functional.sigmoid] * 2, gate.irreps_gated
    model.interactions[0].equivariant_nonlin = Gate(*parts)
    set_weights(model)
    write(folder / "mace_nonlinear.model.xz", model)
    files["mace_nonlinear"] = evaluate(model)

    golden = {"mace": mace.__version__, "heads": HEADS, "energies": ENERGIES, "scales": SCALES, "shifts": SHIFTS}
    golden |= {"structures": structures(), "variants": variants, "files": files}
    (folder / "mace_torch.json").write_text(json.dumps(golden))


def write(path: Path, model: torch.nn.Module) -> None:
    plain = path.with_suffix("")
    torch.save(model, plain)
    path.write_bytes(lzma.compress(plain.read_bytes(), preset=9))
    plain.unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
