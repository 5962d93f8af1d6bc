"""What readers of fairchem's models share: pairs of names of weights (ours, theirs), and settings as plain values."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from equimol.convert.archive import ConversionError, Record

Pairs = Iterator[tuple[str, str | tuple[str, ...]]]  # several of theirs: one below the other they are ours


def linear(ours: str, theirs: str, bias: bool = True) -> Pairs:
    yield f"{ours}.weight", f"{theirs}.weight"
    if bias:
        yield f"{ours}.bias", f"{theirs}.bias"


def feedforward(ours: str, theirs: str) -> Pairs:
    yield from linear(f"{ours}.0", f"{theirs}.0.0")
    yield from linear(f"{ours}.2", f"{theirs}.1.0")


def query_key_value(ours: str, theirs: str) -> Pairs:
    for kind in ("weight", "bias"):
        yield f"{ours}.query_key_value.{kind}", tuple(f"{theirs}.attn_in_proj_{part}.{kind}" for part in "qkv")
    yield from linear(f"{ours}.out", f"{theirs}.attn_out_proj")


def attributes(ours: str, theirs: str, mix: str) -> Pairs:
    yield from linear(f"{ours}.distance", f"{theirs}.edge_distance_embedding.0")
    for side, name in (("sender", "source"), ("receiver", "target")):
        yield from linear(f"{ours}.{side}_order", f"{theirs}.{name}_direction_embedding.0")
        yield f"{ours}.{side}_element", f"{theirs}.{name}_atomic_embedding.weight"
    yield from linear(f"{ours}.mix", f"{theirs}.{mix}.0")


def output(ours: str, theirs: str) -> Pairs:
    yield from feedforward(f"{ours}.feedforward", f"{theirs}.ffn")
    yield from linear(f"{ours}.last", f"{theirs}.final_output.0", bias=False)


def take(pairs: Iterable[tuple[str, str | tuple[str, ...]]], weights: Mapping[str, Tensor], elements: tuple[int, ...]) -> dict[str, Tensor]:
    """Our state dict; of the tables of elements, whose first row is of no element, the rows of ``elements``.

    Raises ConversionError where a weight is missing.
    """
    taken = {}
    for ours, theirs in pairs:
        names = (theirs,) if isinstance(theirs, str) else theirs
        for name in names:
            if name not in weights:
                raise ConversionError(f"the file has no weight {name!r}; it holds another model than its settings say")
        value = weights[names[0]] if len(names) == 1 else torch.cat([weights[name] for name in names])
        taken[ours] = value[list(elements)] if ours.endswith("element") else value
    return taken


def head(weights: Mapping[str, Tensor], layer: str, last: str = "final_output.0.weight") -> str:
    """The full name of a head's layer: what precedes it is the user's word."""
    ending = f"{layer}.{last}"
    found = [name.removesuffix(ending) for name in weights if name.endswith(ending)]
    if len(found) != 1:
        raise ConversionError(f"the file must have one head with {ending!r}, got {len(found)}; leave the other heads out")
    return found[0] + layer


def unwrapped(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights of a state dict by their names in the model alone, without what distributed training wrote before them."""
    return {re.sub(r"^(module\.)+", "", name): value for name, value in state.items() if isinstance(value, Tensor)}


class Settings(dict):
    """Of a published backbone. Raises ConversionError for one that is not there and that a reader cannot do without."""

    def __missing__(self, name: str) -> None:
        raise ConversionError(f"the settings of the backbone must have {name!r}, got {', '.join(map(str, self))}; give all of its YAML")


def require(settings: Mapping[str, Any], fixed: Mapping[str, Any], model: str) -> None:
    """Raises ConversionError for a setting of the published code that we have no counterpart of."""
    for name, value in fixed.items():
        if settings.get(name, value) != value:
            raise ConversionError(f"{name} must be {value!r}, got {settings[name]!r}: this form of {model} has no counterpart here")


def one_multiple(settings: Mapping[str, Any], *parts: str) -> int:
    """By how much hidden layers are wider than features, where all ``parts`` agree."""
    multiples = {int(settings.get(f"{part}_hidden_layer_multiplier", 2)) for part in parts}
    if len(multiples) > 1:
        raise ConversionError(f"hidden layers of {', '.join(parts)} must be of one width, got multiples {sorted(multiples)}")
    return multiples.pop()


def rescale(state: dict[str, Tensor], scales: Mapping[str, float], layers: Mapping[str, list[str]]) -> None:
    """Gives outputs their scale over that of the energy, which `shifted` gives them all, by their last layers.

    An output without such layers is a slope of the energy: raises ConversionError where its scale is another.
    """
    for name, scale in scales.items():
        for weight in layers.get(name, []):
            state[weight] = state[weight].double() * (scale / scales["energy"])
        if name not in layers and abs(scale / scales["energy"] - 1) > 1e-6:
            raise ConversionError(f"{name} must be scaled like the energy whose slope it is, got {scale} and {scales['energy']}")


def reference_energies(table: Any, elements: tuple[int, ...]) -> dict[int, float]:
    """Of the elements, from a table by atomic number that may be shorter, or None; zero for what it lacks."""
    energies = [] if table is None else torch.as_tensor(table, dtype=torch.float64).flatten().tolist()
    return {z: energies[z] if z < len(energies) else 0.0 for z in elements}


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
