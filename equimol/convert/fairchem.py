"""EScAIP of fairchem-core: its state dicts and inference checkpoints, as our models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from equimol.convert.archive import ConversionError, Record, read_archive
from equimol.models.base import Potential
from equimol.models.composition import shifted
from equimol.models.escaip import EScAIP, EScAIPConfig, EScAIPDirect

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


def read_fairchem(path: str | Path, settings: Mapping[str, Any] | None = None) -> Potential:
    """The potential in an inference checkpoint or a bare state dict of fairchem-core's EScAIP.

    Args:
        path: of torch.save.
        settings: of the backbone, as its YAML has them, for files that hold weights alone.

    Raises:
        ConversionError: the file, or an option of the model, is not understood; the message says which.
    """
    content = read_archive(path)
    state, found, tasks = _parts(content, path)
    settings = plain(settings or found)
    if not settings:
        raise ConversionError(f"{path} holds weights without settings; give those of the backbone")
    weights = {name.removeprefix("module."): value for name, value in state.items() if isinstance(value, Tensor)}
    direct = bool(settings.get("direct_forces"))
    elements = tuple(range(1, int(settings["max_num_elements"])))
    config = config_of(settings, elements)
    model = (EScAIPDirect if direct else EScAIP)(config)
    model.load_state_dict(translate(weights, config, direct), strict=True)
    references, scale = _energy_scale(tasks, elements)
    return shifted(model, references, scale).eval()


def config_of(settings: Mapping[str, Any], elements: tuple[int, ...]) -> EScAIPConfig:
    """Our configuration of the backbone's settings."""
    for name, value in _FIXED.items():
        if settings.get(name, value) != value:
            raise ConversionError(f"{name} must be {value!r}, got {settings[name]!r}: this form of EScAIP has no counterpart here")
    multiples = {int(settings.get(f"{part}_hidden_layer_multiplier", 2)) for part in ("readout", "output", "ffn")}
    if len(multiples) > 1:
        raise ConversionError(f"hidden layers of readout, output and ffn must be of one width, got multiples {sorted(multiples)}")
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
        feedforward=multiples.pop(),
        stochastic_depth=float(settings.get("stochastic_depth_prob", 0.0)),
        smooth=False,
    )


def translate(weights: Mapping[str, Tensor], config: EScAIPConfig, direct: bool) -> dict[str, Tensor]:
    """Our state dict from theirs. Raises ConversionError where a weight is missing."""
    head = _prefix(weights, "energy_layer.final_output.0.weight")
    forces = _prefix(weights, "force_direction_layer.final_output.0.weight") if direct else ""
    translated = {}
    for ours, theirs in _names(config, direct):
        theirs = theirs.replace("ENERGY", head).replace("FORCES", forces)
        if theirs not in weights:
            raise ConversionError(f"the file has no weight {theirs!r}; it holds another model than its settings say")
        value = weights[theirs]
        translated[ours] = value[list(config.elements)] if ours.endswith("_element") else value
    return translated


def _names(config: EScAIPConfig, direct: bool) -> Iterator[tuple[str, str]]:
    """Pairs of names: ours, theirs."""

    def linear(ours: str, theirs: str, bias: bool = True) -> Iterator[tuple[str, str]]:
        yield f"{ours}.weight", f"{theirs}.weight"
        if bias:
            yield f"{ours}.bias", f"{theirs}.bias"

    def feedforward(ours: str, theirs: str) -> Iterator[tuple[str, str]]:
        yield from linear(f"{ours}.0", f"{theirs}.0.0")
        yield from linear(f"{ours}.2", f"{theirs}.1.0")

    def attributes(ours: str, theirs: str) -> Iterator[tuple[str, str]]:
        yield from linear(f"{ours}.distance", f"{theirs}.edge_distance_embedding.0")
        for side, name in (("sender", "source"), ("receiver", "target")):
            yield from linear(f"{ours}.{side}_order", f"{theirs}.{name}_direction_embedding.0")
            yield f"{ours}.{side}_element", f"{theirs}.{name}_atomic_embedding.weight"
        yield from linear(f"{ours}.mix", f"{theirs}.edge_attr_linear.0")

    def output(ours: str, theirs: str) -> Iterator[tuple[str, str]]:
        yield from feedforward(f"{ours}.feedforward", f"{theirs}.ffn")
        yield from linear(f"{ours}.last", f"{theirs}.final_output.0", bias=False)

    yield from attributes("backbone.input.attributes", "backbone.input_block.input_layer")
    yield "backbone.input.norm_attributes.weight", "backbone.input_block.input_layer.edge_attr_norm.weight"
    yield from feedforward("backbone.input.feedforward", "backbone.input_block.input_layer.edge_ffn")
    yield "backbone.input.norm_atoms.weight", "backbone.input_block.norm_node.weight"
    yield "backbone.input.norm_slots.weight", "backbone.input_block.norm_edge.weight"
    for n in range(config.layers):
        ours, theirs = f"backbone.blocks.{n}", f"backbone.transformer_blocks.{n}"
        yield f"{ours}.norm_atoms.weight", f"{theirs}.norm_attn_node.weight"
        yield f"{ours}.norm_slots.weight", f"{theirs}.norm_attn_edge.weight"
        yield from attributes(f"{ours}.attention.attributes", f"{theirs}.graph_attention")
        yield f"{ours}.attention.norm_attributes.weight", f"{theirs}.graph_attention.edge_attr_norm.weight"
        for part, name in (("slots", "edge_hidden_linear.0"), ("atoms", "node_hidden_linear.0"), ("message", "message_linear.0")):
            yield from linear(f"{ours}.attention.{part}", f"{theirs}.graph_attention.{name}")
        yield f"{ours}.attention.norm.weight", f"{theirs}.graph_attention.message_norm.weight"
        for part, name in (("query", "in_proj_q"), ("key", "in_proj_k"), ("value", "in_proj_v"), ("out", "out_proj")):
            yield from linear(f"{ours}.attention.{part}", f"{theirs}.graph_attention.attn_{name}")
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
    yield from output("energy", "ENERGYenergy_layer")
    if direct:
        yield "energy_norm.weight", "ENERGYnode_norm.weight"
        yield "force_norm_atoms.weight", "FORCESnode_norm.weight"
        yield "force_norm_slots.weight", "FORCESedge_norm.weight"
        yield from output("force_direction", "FORCESforce_direction_layer")
        yield from output("force_magnitude", "FORCESforce_magnitude_layer")


def _prefix(weights: Mapping[str, Tensor], ending: str) -> str:
    found = [name.removesuffix(ending) for name in weights if name.endswith(ending)]
    if len(found) != 1:
        raise ConversionError(f"the file must have one head with {ending!r}, got {len(found)}; leave the other heads out")
    return found[0]


def _parts(content: Any, path: str | Path) -> tuple[dict, Any, Any]:
    """State dict, settings of the backbone and tasks of any of the known files."""
    if isinstance(content, Record) and content.class_name.endswith("MLIPInferenceCheckpoint"):
        state = getattr(content, "ema_state_dict", None) or content.model_state_dict
        return state, _backbone(content.model_config), getattr(content, "tasks_config", None)
    if isinstance(content, dict) and "state_dict" in content:
        return content["state_dict"], _backbone(content.get("config")), None
    if isinstance(content, dict) and any(isinstance(value, Tensor) for value in content.values()):
        return content, None, None
    raise ConversionError(f"{path} is neither an inference checkpoint of fairchem-core nor a state dict, but {type(content).__name__}")


def _backbone(config: Any) -> Any:
    config = plain(config) or {}
    config = config.get("model", config)
    return config.get("backbone") if isinstance(config, dict) else None


def _energy_scale(tasks: Any, elements: tuple[int, ...]) -> tuple[dict[int, float], float]:
    """Reference energies and scale of the energy task; zeros and one where the file has none."""
    for task in plain(tasks) or []:
        if task.get("property") != "energy":
            continue
        normalizer, references = task.get("normalizer") or {}, task.get("element_references") or {}
        if float(normalizer.get("mean", 0.0)):
            raise ConversionError(f"the energy's mean must be 0, got {normalizer['mean']}: a constant per structure is no potential")
        table = references.get("element_references") if isinstance(references, dict) else references
        table = table.get("_args_", table)[0] if isinstance(table, dict) else table
        if table is None:
            return dict.fromkeys(elements, 0.0), float(normalizer.get("rmsd", 1.0))
        energies = torch.as_tensor(table, dtype=torch.float64).tolist()
        return {z: energies[z] if z < len(energies) else 0.0 for z in elements}, float(normalizer.get("rmsd", 1.0))
    return dict.fromkeys(elements, 0.0), 1.0


def plain(value: Any) -> Any:
    """Dictionaries and lists, also where OmegaConf wraps them."""
    if isinstance(value, Record):
        content = getattr(value, "_content", None)
        return plain(content) if content is not None else plain(getattr(value, "_val", None))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value
