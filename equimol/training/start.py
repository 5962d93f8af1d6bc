"""To begin with another model: which of its settings and weights the new one takes."""

import dataclasses
import json
from collections.abc import Iterable
from typing import Any

import torch
from ase.data import chemical_symbols
from torch import nn

from equimol.models import MODELS, Potential, by_number, core, is_by_data_set, load
from equimol.models.file import read_metadata
from equimol.training.config import TrainConfig, check_keys, config_from


def settle(config: TrainConfig) -> TrainConfig:
    """The settings with what they leave open taken from the file `start`: preset and model's settings, cutoff, references, scale, shift."""
    check_keys("MODELS", [config.model], MODELS)
    stored = _flat(read_metadata(config.start)["description"])
    taken: dict[str, Any] = {}
    if config.scale == "auto" and "scale" in stored:
        taken["scale"] = stored["scale"]
    if config.references == "auto" and "references" in stored:
        by_set = is_by_data_set(stored["references"])
        if by_set and not isinstance(config.data, dict):
            raise ValueError(
                f"data must be {{data set: files}}, as {config.start} tells {', '.join(stored['references'])} apart;"
                " name one of them, or a new one"
            )
        if by_set or not isinstance(config.data, dict):  # of one level of theory they say nothing on others
            taken["references"] = stored_references(config.start)
    kept = isinstance(taken.get("references", config.references), dict)  # those that are found anew find what the shift is for
    if config.shift == "auto" and "shift" in stored and kept:
        taken["shift"] = stored["shift"]
    if config.preset == "auto":
        taken["preset"], settings = _nearest_preset(config.model, stored)
        taken["settings"] = settings | config.settings
    if config.cutoff == config_from({"model": config.model}).cutoff and "cutoff" in stored:
        taken["cutoff"] = stored["cutoff"]
    return dataclasses.replace(config, **taken)


def stored_references(path: str) -> dict:
    """Reference energies in a model file, eV, by atomic number, and by data set where it has several."""
    return by_number(_flat(read_metadata(path)["description"]).get("references", {}))


def take_weights(model: Potential, path: str) -> str:
    """Puts the weights of a file into the model, in place, where names and shapes agree; the rest stays as it is. Says which is which.

    The first axis of a table by element is taken element by element: the model may know fewer of them than the file, or more, whose
    rows are new. Of new data sets the encoding begins with zeros.
    """
    old, new = core(load(path)), core(model)
    rows, places = ([m.elements.index(z) for z in old.elements if z in new.elements] for m in (old, new))
    sets = getattr(new.config, "data_sets", 0) - getattr(old.config, "data_sets", 0)
    given, wanted = old.state_dict(), new.state_dict()
    taken = {}
    for name in given.keys() & wanted.keys():
        value, fresh = given[name], wanted[name]
        if value.shape[:1] == (len(old.elements),) and fresh.shape == (len(new.elements), *value.shape[1:]):
            taken[name] = fresh.clone().index_copy_(0, torch.tensor(places), value[rows].to(fresh))
        elif sets > 0 and value.ndim == 2 and fresh.shape == (len(value), value.shape[1] + sets):
            taken[name] = nn.functional.pad(value, (0, sets))
        elif value.shape == fresh.shape:
            taken[name] = value
    if not taken:
        raise ValueError(f"model must share weights with start: no name and shape of {new.name} is in {path} ({old.name}); set model=...")
    new.load_state_dict(taken, strict=False)
    before, after = _plain(old.config), _plain(new.config)
    changed = [f"{key} {before[key]} -> {after[key]}" for key in after if key != "elements" and after[key] != before.get(key, after[key])]
    elements = [chemical_symbols[z] for z in new.elements if z not in old.elements]
    lines = [f"start: {len(taken)} of {len(wanted)} weights are those of {path} ({old.name})"]
    lines += [f"  new elements: {', '.join(elements)}"] * bool(elements)
    for title, names in (("new", wanted.keys() - taken.keys()), ("left behind", given.keys() - taken.keys())):
        if names:
            lines.append(f"  {title}: {', '.join(_prefixes(names, taken))}")
    return "\n".join([*lines, *[f"  changed: {', '.join(changed)}"] * bool(changed)])


def _flat(description: dict[str, Any]) -> dict[str, Any]:
    """Settings of the first model in a description, and references, scale and shift around it."""
    if "members" in description:
        return _flat(description["members"][0])
    if "inner" in description:
        return _flat(description["inner"]) | {name: description[name] for name in ("references", "scale", "shift")}
    return dict(description["config"])


def _nearest_preset(model: str, stored: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The preset of a model with the fewest differences to stored settings, and these."""
    entry, differences = MODELS[model], {}
    for preset, settings in entry.presets.items():
        plain = _plain(entry.config(**{**settings, "elements": tuple(stored["elements"])}))
        own = plain.keys() & stored.keys() - {"elements", "cutoff"}
        differences[preset] = {name: stored[name] for name in sorted(own) if stored[name] != plain[name]}
    nearest = min(differences, key=lambda preset: len(differences[preset]))
    return nearest, differences[nearest]


def _plain(config: Any) -> dict[str, Any]:
    """As a file has it: lists for tuples."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def _prefixes(names: Iterable[str], others: Iterable[str]) -> list[str]:
    """The names, cut as short as they can be without being the beginning of another."""
    begun = {".".join(parts[:n]) for parts in (other.split(".") for other in others) for n in range(1, len(parts) + 1)}
    short = set()
    for parts in (name.split(".") for name in names):
        short.add(next((cut for n in range(1, len(parts)) if (cut := ".".join(parts[:n])) not in begun), ".".join(parts)))
    return sorted(short)
