"""DPA3 of deepmd-kit: checkpoints with one or several branches, and frozen models, as our models."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from ase.data import atomic_numbers
from torch import Tensor

from equimol.convert.archive import ConversionError, is_program, read_archive, read_program
from equimol.convert.names import plain
from equimol.models.base import Potential
from equimol.models.composition import shifted
from equimol.models.dpa3 import DPA3, LENGTH_SCALE, DPA3Config

# what deepmd-kit takes where the file says nothing
REPFLOW = {
    "n_dim": 128, "e_dim": 64, "a_dim": 64, "nlayers": 6, "e_rcut": 6.0, "e_rcut_smth": 5.0, "e_sel": 120,
    "a_rcut": 4.0, "a_rcut_smth": 3.5, "a_sel": 20, "a_compress_rate": 0, "a_compress_e_rate": 1, "a_compress_use_split": False,
    "n_multi_edge_message": 1, "axis_neuron": 4, "update_angle": True, "update_style": "res_residual", "fix_stat_std": LENGTH_SCALE,
    "smooth_edge_update": False, "edge_init_use_dist": False, "use_exp_switch": False, "use_dynamic_sel": False,
    "sel_reduce_factor": 10.0, "sequential_update": False,
}  # fmt: skip
WITHOUT_EFFECT = {"update_residual", "update_residual_init", "skip_stat", "optim_update", "use_env_envelope", "use_loc_mapping"}
UPDATES = {"res_residual": "residual", "res_avg": "average", "res_incr": "increment"}
LAYER = {
    "atom_self": "node_self_mlp",
    "symmetric": "node_sym_linear",
    "message": "node_edge_linear",
    "bond_self": "edge_self_linear",
    "angle_message": "edge_angle_linear1",
    "angle_bond": "edge_angle_linear2",
    "angle_self": "angle_self_linear",
    "compress_atoms": "a_compress_n_linear",
    "compress_bonds": "a_compress_e_linear",
}


def read_deepmd(path: str | Path, branch: str | None = None) -> Potential:
    """The potential in a checkpoint or a frozen model of deepmd-kit's DPA3.

    Args:
        path: of ``dp --pt train`` (``.pt``), or of ``dp --pt freeze`` (``.pth``), whose program is not run.
        branch: which one, of a file with several; its encoding becomes part of the model.

    Raises:
        ConversionError: the file, or an option of the model, is not understood; the message says which.
    """
    if Path(path).is_file() and is_program(path):
        state, attributes = read_program(path)
        settings = json.loads(attributes.get("model_def_script") or "{}")
    else:
        state, settings = _parts(read_archive(path), path)
    settings = plain(settings)
    if not settings:
        raise ConversionError(f"{path} holds weights without the settings of the model; give a checkpoint of dp --pt train")
    branches = settings.get("model_dict")
    if branches:
        if branch not in branches:
            raise ConversionError(f"branch must be one of {', '.join(branches)}, got {branch}")
        settings = branches[branch]
    elif branch not in (None, "Default"):
        raise ConversionError(f"{path} has one model and no branches, got branch {branch}; leave it out")
    prefix = f"model.{branch if branches else 'Default'}."
    weights = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith((prefix, "atomic_model."))}
    if not weights:
        raise ConversionError(f"{path} has no weights that begin with {prefix}")
    return model_of(settings, weights)


def model_of(settings: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Potential:
    """The potential with these settings and weights, in the precision of the weights."""
    numbers = _elements(settings.get("type_map"))
    config = config_of(settings, numbers, weights)
    model = DPA3(config)
    table = torch.tensor(sorted(range(len(numbers)), key=numbers.__getitem__))  # ours go by atomic number
    ours = {}
    for name, theirs in _names(config):
        if theirs not in weights:
            raise ConversionError(f"the file has no weight {theirs!r}; it holds another model than its settings say")
        value = weights[theirs]
        if name in ("element.weight", "charge.weight", "spin.weight"):
            value = value + _copies(*value.shape).to(value)
            value = value[table] if name == "element.weight" else value
        ours[name] = value.T if theirs.endswith(".matrix") and name.split(".")[0] not in ("element", "charge", "spin") else value
    model = model.to(ours["bond.weight"].dtype)
    model.load_state_dict(ours, strict=True)
    offsets = weights["atomic_model.out_bias"][0, :, 0].double() + weights["atomic_model.fitting_net.bias_atom_e"][:, 0].double()
    return shifted(model, dict(zip(numbers, offsets.tolist(), strict=True))).eval()


def config_of(settings: Mapping[str, Any], numbers: list[int], weights: Mapping[str, Tensor]) -> DPA3Config:
    """Our settings for theirs. Raises ConversionError for an option that is not ours."""
    descriptor, fitting = dict(settings.get("descriptor") or {}), dict(settings.get("fitting_net") or {})
    if descriptor.get("type") != "dpa3":
        raise ConversionError(f"descriptor.type must be 'dpa3', got {descriptor.get('type')!r}")
    given = dict(descriptor.get("repflow") or {})
    given.setdefault("use_exp_switch", given.get("use_env_envelope", False))
    unknown = sorted(set(given) - set(REPFLOW) - WITHOUT_EFFECT)
    if unknown:
        raise ConversionError(f"options of descriptor.repflow must be known, got {', '.join(unknown)}")
    repflow = {**REPFLOW, **given}
    for option, wanted in (("exclude_types", []), ("use_econf_tebd", False)):
        if descriptor.get(option, wanted) != wanted:
            raise ConversionError(f"descriptor.{option} must be {wanted}, got {descriptor[option]}")
    for option in ("numb_fparam", "numb_aparam"):
        if fitting.get(option, 0):
            raise ConversionError(f"fitting_net.{option} must be 0, got {fitting[option]}")
    if abs(repflow["fix_stat_std"] - LENGTH_SCALE) > 1e-12:
        raise ConversionError(f"descriptor.repflow.fix_stat_std must be {LENGTH_SCALE}, got {repflow['fix_stat_std']}")
    activation = descriptor.get("activation_function", "silu")
    if fitting.get("activation_function", "tanh") != activation:
        raise ConversionError(f"fitting_net.activation_function must be {activation}, as the descriptor's, got another")
    dynamic = repflow["use_dynamic_sel"]
    share = repflow["sel_reduce_factor"] if dynamic else 1
    cases = int(fitting.get("dim_case_embd", 0))
    case = weights.get("atomic_model.fitting_net.case_embd")
    return DPA3Config(
        elements=tuple(numbers),
        layers=repflow["nlayers"],
        width=repflow["n_dim"],
        bond_width=repflow["e_dim"],
        angle_width=repflow["a_dim"],
        cutoff=float(repflow["e_rcut"]),
        cutoff_start=float(repflow["e_rcut_smth"]),
        angle_cutoff=float(repflow["a_rcut"]),
        angle_cutoff_start=float(repflow["a_rcut_smth"]),
        neighbors=repflow["e_sel"] / share,
        angle_neighbors=repflow["a_sel"] / share,
        nearest=None if dynamic else int(repflow["e_sel"]),
        angle_nearest=None if dynamic else int(repflow["a_sel"]),
        smooth=False,
        envelope="exponential" if repflow["use_exp_switch"] else "polynomial",
        threshold=_threshold(activation),
        axis=repflow["axis_neuron"],
        message_heads=repflow["n_multi_edge_message"],
        update=UPDATES[repflow["update_style"]],
        sequential=repflow["sequential_update"],
        angles=repflow["update_angle"],
        bonds_without_angles="nothing" if repflow["smooth_edge_update"] else "themselves",
        compress=repflow["a_compress_rate"],
        compress_bonds=repflow["a_compress_e_rate"],
        compress_by="slice" if repflow["a_compress_use_split"] else "matrix",
        bonds_from="distance" if repflow["edge_init_use_dist"] else "envelope",
        length_protection=float(descriptor.get("env_protection", 0.0)),
        concatenate_elements=bool(descriptor.get("concat_output_tebd", False)),
        element_bias=bool(descriptor.get("use_tebd_bias", False)),
        readout=tuple(fitting.get("neuron", (128, 128, 128))),
        readout_steps=bool(fitting.get("resnet_dt", True)),
        data_sets=cases,
        data_set=int(case.argmax()) if cases and case is not None else None,
        charge_spin=bool(descriptor.get("add_chg_spin_ebd", False)),
    )


def _parts(content: Any, path: str | Path) -> tuple[dict, Any]:
    """State dict and settings."""
    if isinstance(content, dict):
        state = content.get("model", content)
        if isinstance(state, dict) and any(str(key).startswith(("model.", "atomic_model.")) for key in state):
            extra = state.get("_extra_state") or {}
            return state, extra.get("model_params") if isinstance(extra, dict) else None
    raise ConversionError(f"{path} is no checkpoint of deepmd-kit's PyTorch backend")


def _elements(type_map: Any) -> list[int]:
    unknown = [name for name in type_map or [] if name not in atomic_numbers or not atomic_numbers[name]]
    if not type_map or unknown:
        raise ConversionError(f"type_map must list chemical symbols, got {unknown or type_map}")
    return [atomic_numbers[name] for name in type_map]


def _threshold(activation: str) -> float:
    """Where the activation leaves SiLU."""
    if activation == "silu":
        return math.inf
    match = re.fullmatch(r"(?:silut|custom_silu)(?::([0-9.]+))?", activation)
    if not match:
        raise ConversionError(f"activation_function must be silu or silut, got {activation!r}")
    return float(match[1] or 3.0)


def _copies(rows: int, width: int) -> Tensor:
    """What their table of elements has beside its weights: the identity where widths agree, twice where they double."""
    if width not in (rows, 2 * rows):
        return torch.zeros(rows, width)
    return torch.cat([torch.eye(rows)] * (width // rows), 1)


def _names(config: DPA3Config) -> Iterator[tuple[str, str]]:
    """Our names and theirs."""
    descriptor, fitting = "atomic_model.descriptor.", "atomic_model.fitting_net.filter_layers.networks.0.layers."

    def linear(ours: str, theirs: str, bias: bool = True) -> Iterator[tuple[str, str]]:
        yield f"{ours}.weight", f"{theirs}.matrix"
        if bias:
            yield f"{ours}.bias", f"{theirs}.bias"

    yield from linear("element", f"{descriptor}type_embedding.embedding.embedding_net.layers.0", config.element_bias)
    if config.charge_spin:
        for ours, theirs in (("charge", "chg"), ("spin", "spin")):
            yield from linear(ours, f"{descriptor}{theirs}_embedding.embedding.embedding_net.layers.0", config.element_bias)
        yield from linear("charge_spin", f"{descriptor}mix_cs_mlp")
    yield from linear("bond", f"{descriptor}repflows.edge_embd")
    yield from linear("angle", f"{descriptor}repflows.angle_embd", bias=False)
    matrices = config.compress and config.compress_by == "matrix"
    for n in range(config.layers):
        theirs = f"{descriptor}repflows.layers.{n}."
        for ours, name in LAYER.items():
            if (ours.startswith("angle") and not config.angles) or (ours.startswith("compress") and not (config.angles and matrices)):
                continue
            yield from linear(f"layers.{n}.{ours}", theirs + name, bias=not ours.startswith("compress"))
        if config.update == "residual":
            counts = {"atom": ("n", 2 + config.message_heads), "bond": ("e", 1 + config.angles), "angle": ("a", int(config.angles))}
            for ours, (name, count) in counts.items():
                for k in range(count):
                    yield f"layers.{n}.{ours}_update.steps.{k}", f"{theirs}{name}_residual.{k}"
    widths = [config.width * (1 + config.concatenate_elements) + config.data_sets, *config.readout]
    for n, (into, out) in enumerate(zip(widths, widths[1:], strict=False)):
        yield from linear(f"readout.{n}.linear", f"{fitting}{n}")
        if config.readout_steps and out in (into, 2 * into):
            yield f"readout.{n}.step", f"{fitting}{n}.idt"
    yield from linear("energy", f"{fitting}{len(config.readout)}")
