"""EScAIP of the paper ("V1"): checkpoints of its trainer, as our models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from equimol.convert.archive import ConversionError, read_archive
from equimol.convert.names import (
    Pairs,
    Settings,
    attributes,
    feedforward,
    head,
    linear,
    one_multiple,
    output,
    plain,
    reference_energies,
    require,
    rescale,
    take,
    unwrapped,
)
from equimol.models.base import Potential
from equimol.models.composition import shifted
from equimol.models.escaip_v1 import EScAIPV1, EScAIPV1Config, EScAIPV1Direct

#: what the published code can do and this reader does not know, with what it must say
_FIXED: dict[str, Any] = {
    "activation": "gelu",
    "normalization": "rmsnorm",
    "distance_function": "gaussian",
    "use_pbc": True,
    "otf_graph": True,
    "enforce_max_neighbors_strictly": True,
}
_SIGN = "backbone.readout_layers.0.energy_ffn.0.0.weight"  # a weight that no later form has
_OLD_NAMES = {"target": "energy", "grad_target": "forces"}  # of normalizers


def read_escaip_v1(path: str | Path, settings: Mapping[str, Any] | None = None) -> Potential:
    """The potential in a checkpoint of the paper's trainer, or in a bare state dict. Averaged weights are taken where there are some.

    Args:
        path: of torch.save.
        settings: of the backbone, as its YAML has them, for files that hold weights alone.

    Raises:
        ConversionError: the file, or an option of the model, is not understood; the message says which.
    """
    content = read_archive(path)
    if not is_v1(content):
        raise ConversionError(f"{path} holds no EScAIP of the paper: there is no weight {_SIGN!r}; use read_fairchem")
    return model_of(content, path, settings)


def is_v1(content: Any) -> bool:
    """Whether a file's content is such a model."""
    return isinstance(content, dict) and _SIGN in unwrapped(content.get("state_dict", content))


def model_of(content: Mapping[str, Any], path: str | Path, settings: Mapping[str, Any] | None) -> Potential:
    """`read_escaip_v1` of a file that was read already."""
    checkpoint = content if "state_dict" in content else {"state_dict": content}
    weights = _averaged(unwrapped(checkpoint["state_dict"]), checkpoint.get("ema"))
    config = plain(checkpoint.get("config")) or {}
    settings = Settings(plain(settings) or (config.get("model") or {}).get("backbone") or {})
    if not settings:
        raise ConversionError(f"{path} holds weights without settings; give those of the backbone")
    direct = bool(settings["direct_force"])
    stress = any(name.endswith("irreps2_layer.final_output.0.weight") for name in weights)
    if stress and not direct:
        raise ConversionError("a head for stress must go with one for forces, got forces that are derivatives; leave it out")
    layers = {name: layers for name, layers in _LAST.items() if direct and (stress or name == "forces")}
    scales, offset = _scales(checkpoint.get("normalizers") or {}, layers)
    config = config_of(settings, offset, stress)
    model = (EScAIPV1Direct if direct else EScAIPV1)(config)
    state = translate(weights, config, direct)
    rescale(state, scales, layers)
    model.load_state_dict(state, strict=True)
    return shifted(model, _references(checkpoint.get("elementrefs") or {}, config.elements), scales["energy"]).eval()


def config_of(settings: Mapping[str, Any], offset: float = 0.0, stress: bool = False) -> EScAIPV1Config:
    """Our configuration of the backbone's settings."""
    require(settings, _FIXED, "EScAIP")
    energy = settings.get("energy_reduce", "mean")
    if not settings["direct_force"] and energy != "mean":
        raise ConversionError(
            f"energy_reduce must be 'mean' where forces are derivatives, got {energy!r}: their head takes the mean anyway; say mean"
        )
    return EScAIPV1Config(
        elements=tuple(range(1, int(settings["max_num_elements"]))),
        cutoff=float(settings["max_radius"]),
        neighbors=int(settings["max_neighbors"]),
        width=int(settings["hidden_size"]),
        layers=int(settings["num_layers"]),
        heads=int(settings["atten_num_heads"]),
        radial_basis=int(settings["edge_distance_expansion_size"]),
        radial_width=int(settings["edge_distance_embedding_size"]),
        element_width=int(settings["atom_embedding_size"]),
        order_lmax=int(settings["node_direction_expansion_size"]) - 1,
        order_width=int(settings["node_direction_embedding_size"]),
        feedforward=one_multiple(settings, "readout", "output", "ffn"),
        angles=bool(settings.get("use_angle_embedding", True)),
        energy=energy,
        offset=offset,
        stress=stress,
    )


def translate(weights: Mapping[str, Tensor], config: EScAIPV1Config, direct: bool) -> dict[str, Tensor]:
    """Our state dict from theirs. Raises ConversionError where a weight is missing."""
    heads = {"energy": "energy_layer"}
    if direct:
        heads |= {"force_direction": "force_direction_layer", "force_magnitude": "force_magnitude_layer"}
    if config.stress:
        heads |= {"stress_isotropic": "scalar_layer", "stress_anisotropic": "irreps2_layer"}
    pairs = [*_names(config, direct)]
    for ours, layer in heads.items():
        pairs += output(ours, head(weights, layer))
    return take(pairs, weights, config.elements)


def _names(config: EScAIPV1Config, direct: bool) -> Pairs:
    """Of the backbone."""
    yield from attributes("backbone.attributes", "backbone.input_block.input_layer", "edge_linear")
    yield "backbone.norm_input.weight", "backbone.input_block.input_layer.norm.weight"
    yield from feedforward("backbone.feedforward", "backbone.input_block.input_layer.edge_ffn")
    yield "backbone.norm_atoms.weight", "backbone.input_block.norm.node_norm.weight"
    for n in range(config.layers):
        ours, theirs = f"backbone.blocks.{n}", f"backbone.transformer_blocks.{n}"
        attention = f"{theirs}.graph_attention"
        yield f"{ours}.norm.weight", f"{theirs}.norm_attn.weight"
        yield from attributes(f"{ours}.attributes", attention, "edge_linear")
        yield from linear(f"{ours}.atoms", f"{attention}.node_linear.0")
        yield from linear(f"{ours}.message", f"{attention}.message_linear.0")
        for kind in ("weight", "bias"):
            yield f"{ours}.query_key_value.{kind}", f"{attention}.multi_head_attention.in_proj_{kind}"
        yield from linear(f"{ours}.out", f"{attention}.multi_head_attention.out_proj")
        if config.angles:
            yield f"{ours}.angle", f"{attention}.attn_scalar"
        yield f"{ours}.norm_feedforward.weight", f"{theirs}.norm_ffn.node_norm.weight"
        yield from feedforward(f"{ours}.feedforward", f"{theirs}.feedforward.mlp_node")
        if direct:
            yield f"{ours}.norm_feedforward_slots.weight", f"{theirs}.norm_ffn.edge_norm.weight"
            yield from feedforward(f"{ours}.feedforward_slots", f"{theirs}.feedforward.mlp_edge")
    sides = [("readouts", "energy", "projection", "node")] + [("edge_readouts", "force", "edge_projection", "edge")] * direct
    for readouts, kind, projection, side in sides:
        for n in range(config.layers + 1):
            yield f"backbone.{readouts}.{n}.norm.weight", f"backbone.readout_layers.{n}.{kind}_norm.weight"
            yield from feedforward(f"backbone.{readouts}.{n}.feedforward", f"backbone.readout_layers.{n}.{kind}_ffn")
        yield f"backbone.{projection}.norm_readouts.weight", f"backbone.output_projection.readout_norm.{side}_norm.weight"
        yield from linear(f"backbone.{projection}.linear", f"backbone.output_projection.{side}_projection.0")
        yield f"backbone.{projection}.norm.weight", f"backbone.output_projection.output_norm.{side}_norm.weight"
    if direct:
        yield "backbone.norm_slots.weight", "backbone.input_block.norm.edge_norm.weight"


#: the last layers of outputs beside the energy, none with a bias
_LAST = {
    "forces": ["force_magnitude.last.weight"],
    "stress_isotropic": ["stress_isotropic.last.weight"],
    "stress_anisotropic": ["stress_anisotropic.last.weight"],
}


def _averaged(weights: dict[str, Tensor], average: Any) -> dict[str, Tensor]:
    """The weights, or their moving averages, which a checkpoint lists without names, in the order of the weights."""
    if not average:
        return weights
    values = average["shadow_params"]
    if [value.shape for value in values] != [value.shape for value in weights.values()]:
        raise ConversionError("the averaged weights must be those of the model, in its order; take the entry 'ema' out to read the others")
    return dict(zip(weights, values, strict=True))


def _scales(normalizers: Mapping[str, Any], outputs: Iterable[str]) -> tuple[dict[str, float], float]:
    """The scale of each output, and the energy's mean over its scale: a constant per structure."""
    scales, offset = dict.fromkeys(("energy", "forces", *outputs), 1.0), 0.0
    for name, values in normalizers.items():
        name = _OLD_NAMES.get(name, name)
        if name not in scales:
            raise ConversionError(f"normalizers must be of {', '.join(scales)}, got {name!r}; this output has no counterpart here")
        mean = float(values["mean"])
        scales[name] = float(values["rmsd"] if "rmsd" in values else values["std"])
        if name == "energy":
            offset = mean / scales[name]
        elif mean:
            raise ConversionError(f"the mean of {name} must be 0, got {mean}: a constant has no counterpart here")
    return scales, offset


def _references(references: Mapping[str, Any], elements: tuple[int, ...]) -> dict[int, float]:
    """Energies of the elements."""
    if set(references) - {"energy"}:
        raise ConversionError(f"references of elements must be of the energy, got {sorted(references)}; others have no counterpart here")
    return reference_energies(references["energy"]["element_references"] if references else None, elements)
