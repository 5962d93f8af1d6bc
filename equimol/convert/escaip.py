"""EScAIP of fairchem-core ("V2"): its settings and names of weights, as ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from equimol.convert.names import (
    Pairs,
    attributes,
    feedforward,
    head,
    linear,
    one_multiple,
    output,
    query_key_value,
    require,
    take,
)
from equimol.models.escaip import EScAIP, EScAIPConfig, EScAIPDirect

MODELS = {False: EScAIP, True: EScAIPDirect}  # whether forces are predicted
FORCES = ["force_magnitude.last.weight"]  # scales them

#: what the published code can do and this reader does not know, with what it must say
_FIXED: dict[str, Any] = {
    "activation": "gelu",
    "normalization": "rmsnorm",
    "distance_function": "gaussian",
    "use_envelope": True,
    "use_angle_embedding": "none",
    "use_graph_attention": False,
    "use_message_gate": False,
    "use_global_readout": False,
    "energy_reduce": "sum",
    "knn_soft": True,
    "knn_use_low_mem": True,
}


def config_of(settings: Mapping[str, Any], elements: tuple[int, ...]) -> EScAIPConfig:
    """Our configuration of the backbone's settings."""
    require(settings, _FIXED, "EScAIP")
    width, heads = int(settings["hidden_size"]), int(settings["atten_num_heads"])
    frequencies = settings.get("freequency_list", [20, 10, 4, 10, 20])  # spelt so
    if not settings.get("use_frequency_embedding", True):
        frequencies = [width // heads]
    return EScAIPConfig(
        elements=elements,
        cutoff=float(settings["max_radius"]),
        neighbors=int(settings["knn_k"]),
        rank_width=float(settings["knn_sigmoid_scale"]),
        softness=float(settings["knn_lse_scale"]),
        width=width,
        layers=int(settings["num_layers"]),
        heads=heads,
        legendre=tuple(frequencies),
        radial_basis=int(settings.get("edge_distance_expansion_size", 600)),
        radial_width=int(settings.get("edge_distance_embedding_size", 512)),
        element_width=int(settings.get("atom_embedding_size", 128)),
        order_lmax=int(settings.get("node_direction_expansion_size", 10)) - 1,
        order_width=int(settings.get("node_direction_embedding_size", 64)),
        feedforward=one_multiple(settings, "readout", "output", "ffn"),
        stochastic_depth=float(settings.get("stochastic_depth_prob", 0.0)),
        smooth=False,
    )


def translate(weights: Mapping[str, Tensor], config: EScAIPConfig, direct: bool) -> dict[str, Tensor]:
    """Our state dict from theirs. Raises ConversionError where a weight is missing."""
    pairs = [*_names(config, direct), *output("energy", head(weights, "energy_layer"))]
    if direct:
        pairs += output("force_direction", head(weights, "force_direction_layer"))
        pairs += output("force_magnitude", head(weights, "force_magnitude_layer"))
        energy, forces = (head(weights, name).removesuffix(name) for name in ("energy_layer", "force_direction_layer"))
        pairs += [("energy_norm.weight", f"{energy}node_norm.weight"), ("force_norm_atoms.weight", f"{forces}node_norm.weight")]
        pairs += [("force_norm_slots.weight", f"{forces}edge_norm.weight")]
    return take(pairs, weights, config.elements)


def _names(config: EScAIPConfig, direct: bool) -> Pairs:
    """Of the backbone."""
    yield from attributes("backbone.input.attributes", "backbone.input_block.input_layer", "edge_attr_linear")
    yield "backbone.input.norm_attributes.weight", "backbone.input_block.input_layer.edge_attr_norm.weight"
    yield from feedforward("backbone.input.feedforward", "backbone.input_block.input_layer.edge_ffn")
    yield "backbone.input.norm_atoms.weight", "backbone.input_block.norm_node.weight"
    yield "backbone.input.norm_slots.weight", "backbone.input_block.norm_edge.weight"
    for n in range(config.layers):
        ours, theirs = f"backbone.layers.{n}", f"backbone.transformer_blocks.{n}"
        yield f"{ours}.norm_atoms.weight", f"{theirs}.norm_attn_node.weight"
        yield f"{ours}.norm_slots.weight", f"{theirs}.norm_attn_edge.weight"
        yield from attributes(f"{ours}.attention.attributes", f"{theirs}.graph_attention", "edge_attr_linear")
        yield f"{ours}.attention.norm_attributes.weight", f"{theirs}.graph_attention.edge_attr_norm.weight"
        for part, name in (("slots", "edge_hidden_linear.0"), ("atoms", "node_hidden_linear.0"), ("message", "message_linear.0")):
            yield from linear(f"{ours}.attention.{part}", f"{theirs}.graph_attention.{name}")
        yield f"{ours}.attention.norm.weight", f"{theirs}.graph_attention.message_norm.weight"
        yield from query_key_value(f"{ours}.attention", f"{theirs}.graph_attention")
        yield f"{ours}.norm_feedforward_atoms.weight", f"{theirs}.norm_ffn_node.weight"
        yield from feedforward(f"{ours}.feedforward_atoms", f"{theirs}.feedforward.mlp_node")
        if direct or n < config.layers - 1:
            yield f"{ours}.norm_feedforward_slots.weight", f"{theirs}.norm_ffn_edge.weight"
            yield from feedforward(f"{ours}.feedforward_slots", f"{theirs}.feedforward.mlp_edge")
    sides = [("readouts", "node", "projection")] + [("edge_readouts", "edge", "edge_projection")] * direct
    for readouts, name, projection in sides:
        for n in range(config.layers + 1):
            yield f"backbone.{readouts}.{n}.norm.weight", f"backbone.readout_layers.{n}.pre_{name}_norm.weight"
            yield from feedforward(f"backbone.{readouts}.{n}.feedforward", f"backbone.readout_layers.{n}.{name}_ffn")
        yield from linear(f"backbone.{projection}.linear", f"backbone.output_projection.{name}_projection.0")
        yield f"backbone.{projection}.norm.weight", f"backbone.output_projection.output_norm_{name}.weight"
