"""AllScAIP of fairchem-core: its settings and names of weights, as ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from equimol.convert.names import Pairs, feedforward, head, linear, one_multiple, query_key_value, require, take
from equimol.models.allscaip import AllScAIP, AllScAIPConfig, AllScAIPDirect

MODELS = {False: AllScAIP, True: AllScAIPDirect}  # whether forces are predicted
FORCES = ["forces.feedforward.2.weight", "forces.feedforward.2.bias"]  # scale them

#: what the published code can do and this reader does not know, with what it must say
_FIXED: dict[str, Any] = {
    "activation": "gelu",
    "normalization": "rmsnorm",
    "distance_function": "gaussian",
    "use_envelope": True,
    "energy_reduce": "sum",
    "knn_soft": True,
    "knn_use_low_mem": True,
}
_SIGN = "backbone.input_block.charge_embedding.rand_emb.weight"  # a weight that no EScAIP has


def is_allscaip(weights: Mapping[str, Tensor]) -> bool:
    """Whether weights are those of such a model."""
    return _SIGN in weights


def config_of(settings: Mapping[str, Any], elements: tuple[int, ...]) -> AllScAIPConfig:
    """Our configuration of the backbone's settings."""
    require(settings, _FIXED, "AllScAIP")
    all_to_all = bool(settings.get("use_node_path", True))
    if all_to_all:
        require({"use_sincx_mask": True, **settings}, {"use_sincx_mask": False}, "AllScAIP")  # on where nothing is said
    width, heads = int(settings["hidden_size"]), int(settings["atten_num_heads"])
    frequencies = settings.get("freequency_list", [20, 10, 4, 10, 20])  # spelt so
    if not settings.get("use_freq_mask", True):
        frequencies = [width // heads]
    return AllScAIPConfig(
        elements=elements,
        cutoff=float(settings["max_radius"]),
        neighbors=int(settings["knn_k"]),
        rank_width=float(settings.get("knn_sigmoid_scale", 0.2)),
        softness=float(settings.get("knn_lse_scale", 0.1)),
        width=width,
        layers=int(settings["num_layers"]),
        heads=heads,
        legendre=tuple(frequencies),
        radial_basis=int(settings.get("edge_distance_expansion_size", 512)),
        direction_lmax=int(settings.get("edge_direction_expansion_size", 6)) - 1,
        order_lmax=int(settings.get("node_direction_expansion_size", 10)) - 1,
        feedforward=one_multiple(settings, "output", "ffn"),
        all_to_all=all_to_all,
    )


def translate(weights: Mapping[str, Tensor], config: AllScAIPConfig, direct: bool) -> dict[str, Tensor]:
    """Our state dict from theirs. Raises ConversionError where a weight is missing."""
    pairs = [*_names(config)]
    for ours, layer in [("energy", "energy_ffn"), ("forces", "force_ffn")][: 1 + direct]:
        theirs = head(weights, layer, "0.0.weight")
        pairs += [*feedforward(f"{ours}.feedforward", theirs), (f"{ours}.norm.weight", f"{theirs.removesuffix(layer)}node_norm.weight")]
    return take(pairs, weights, config.elements)


def _names(config: AllScAIPConfig) -> Pairs:
    """Of the backbone."""
    ours, theirs = "backbone.input", "backbone.input_block"
    yield f"{ours}.element", f"{theirs}.atomic_embedding.weight"
    yield f"{ours}.norm.weight", f"{theirs}.node_norm.weight"
    for part, name in (
        ("orders", "node_direction_embedding"),
        ("atom", "node_linear"),
        ("edge", "edge_attr_linear"),
        ("mix", "edge_feature_linear"),
        ("charge_and_spin", "charge_spin_linear"),
    ):
        yield from linear(f"{ours}.{part}", f"{theirs}.{name}.0")
    for part in ("charge", "spin"):
        yield f"{ours}.{part}.weight", f"{theirs}.{part}_embedding.rand_emb.weight"
    for n in range(config.layers):
        ours, theirs = f"backbone.layers.{n}", f"backbone.transformer_blocks.{n}"
        for part, name in (("receiving", "src_attn"), ("sending", "dst_attn")):
            yield f"{ours}.{part}.norm.weight", f"{theirs}.neighborhood_attention.{name}_norm.weight"
            yield f"{ours}.{part}.share", f"{theirs}.neighborhood_attention.{name}_res_scale"
            yield from query_key_value(f"{ours}.{part}", f"{theirs}.neighborhood_attention.{name}")
        if config.all_to_all:
            yield f"{ours}.all_to_all.norm.weight", f"{theirs}.node_attention.node_norm.weight"
            yield f"{ours}.all_to_all.share", f"{theirs}.node_attention.node_attn_res_scale"
            yield from query_key_value(f"{ours}.all_to_all", f"{theirs}.node_attention")
        for part, name in (("atoms", "node_ffn"), ("slots", "edge_ffn")):
            yield f"{ours}.{part}.norm.weight", f"{theirs}.{name}.ffn_norm.weight"
            yield f"{ours}.{part}.share", f"{theirs}.{name}.ffn_res_scale"
            yield from feedforward(f"{ours}.{part}.feedforward", f"{theirs}.{name}.ffn")
