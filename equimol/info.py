"""What is installed here, and what a model file holds: the text of `equimol info`."""

from __future__ import annotations

import importlib.metadata
import platform
from pathlib import Path
from typing import Any

import torch
from ase.data import chemical_symbols

from equimol.models import MODELS, Potential, by_number, core, is_by_data_set
from equimol.models.file import load, read_metadata
from equimol.ops.kernels import KERNELS, VARIABLE, wanted, why_not
from equimol.tensor_products import TENSOR_PRODUCTS
from equimol.training.metrics import error_table

_PACKAGES = ("torch", "torch-geometric", "lightning", "ase", "vesin", "e3nn", "numpy")


def describe_machine() -> str:
    """Versions, devices and threads, and the models and products to choose from."""
    versions = ", ".join(f"{name} {_version(name)}" for name in _PACKAGES)
    devices = [f"cpu ({torch.get_num_threads()} threads, {platform.machine()})"]
    devices += [f"cuda:{n} ({torch.cuda.get_device_name(n)})" for n in range(torch.cuda.device_count())]
    models = "; ".join(f"{name} ({', '.join(entry.presets)})" for name, entry in MODELS.items())
    return _table(
        {
            "equimol": f"{_version('equimol')}, Python {platform.python_version()}, {platform.system()}",
            "libraries": versions,
            "devices": ", ".join(devices),
            "models": f"{models}",
            "products": ", ".join(TENSOR_PRODUCTS),
            "kernels": _kernels(),
        }
    )


def _kernels() -> str:
    """Which operations have a kernel, where, and what keeps the others from it."""
    devices = ["cpu", *["cuda"] * torch.cuda.is_available()]
    said = [f"{name} on {device}: {why_not(name, device, torch.float32) or 'kernel'}" for device in devices for name in KERNELS[device]]
    return f"{', '.join(said)}; all others: PyTorch's operations ({VARIABLE}={wanted()})"


def describe_model(path: str | Path, device: str | None = None, dtype: str | None = None) -> str:
    """What the file says, after the model was loaded and has reproduced its fingerprint; raises where it does not."""
    facts = read_metadata(path)
    model = load(path, device=device, dtype=dtype)
    reach = f", {facts['hops']} hops: an atom feels others up to {facts['cutoff'] * facts['hops']:g} Å away" if facts["hops"] > 1 else ""
    structures = len(facts["fingerprint"]["energies"])
    known = {
        "model": _summary(facts["description"]),
        "elements": " ".join(chemical_symbols[z] for z in facts["elements"]),
        "cutoff": f"{facts['cutoff']:g} Å{reach}",
        "parameters": f"{sum(p.numel() for p in model.parameters())} in {facts['dtype']}",
        "inputs": ", ".join(["structure", *facts["inputs"]]),
        "outputs": ", ".join(facts["outputs"]) + ("" if facts["conservative"] else " (forces are no gradient of the energy)"),
        "uncertainty": _flat(facts["description"].get("calibration")),
        "units": ", ".join(f"{name} {unit}" for name, unit in facts["units"].items()),
        "references": _references(facts),
        "level of theory": facts.get("level_of_theory") or "not stated",
        "labels": _flat(facts.get("label_keys")),
        "trained": _flat({key: value for key, value in (facts.get("training") or {}).items() if key in _TRAINING and value}),
        "written with": _flat(facts["versions"]),
        "fingerprint": f"reproduced here in {str(model.dtype).removeprefix('torch.')} on {device or 'cpu'}: {structures} structures",
    }
    errors = (facts.get("training") or {}).get("errors")
    table = f"\n\n{error_table(errors)}" if errors else ""
    return _table({"file": str(path)} | {name: text for name, text in known.items() if text}) + table


def describe_potential(model: Potential) -> str:
    """One line on a model that was not trained here: what it is, its size, elements and reference energies."""
    symbols = [chemical_symbols[z] for z in model.elements]
    elements = " ".join(symbols) if len(symbols) < 12 else f"{len(symbols)} elements, {symbols[0]} to {symbols[-1]}"
    described = model.description()
    references = [energy for energy in by_number(described.get("references", {})).values() if energy]
    size = sum(p.numel() for p in model.parameters())
    text = f"{_summary(described)}, cutoff {core(model).config.cutoff:g} Å; {size} parameters; {elements}"
    return f"{text}; reference energies of {len(references)} elements" if references else f"{text}; no reference energies"


_TRAINING = ("data", "preset", "steps", "epochs", "time", "batch", "loss", "seed")


def _summary(description: dict[str, Any]) -> str:
    """mace(product=clebsch_gordan, ...) + zbl, from a nested description."""
    if "members" in description:
        return " + ".join(_summary(member) for member in description["members"])
    if "inner" in description:
        return _summary(description["inner"])
    settings = {key: value for key, value in description.get("config", {}).items() if key not in ("elements", "cutoff")}
    return f"{description['name']}({_flat(settings)})"


def _references(facts: dict[str, Any]) -> str:
    references = by_number(facts["references"] or {})
    tables = references if is_by_data_set(references) else {"": references}
    energies = "; ".join(
        f"{name}{': ' if name else ''}{', '.join(f'{chemical_symbols[z]} {energy:.4f} eV' for z, energy in table.items())}"
        for name, table in tables.items()
    )
    method = facts.get("references_method")
    return f"{energies} ({method})" if energies and method else energies


def _flat(values: Any) -> str:
    if not isinstance(values, dict):
        return "" if values is None else f"{values:.4g}" if isinstance(values, float) else str(values)
    return ", ".join(f"{key} {{{_flat(value)}}}" if isinstance(value, dict) else f"{key} {_flat(value)}" for key, value in values.items())


def _table(rows: dict[str, str]) -> str:
    width = max(map(len, rows))
    return "\n".join(f"{name.ljust(width)}  {text}" for name, text in rows.items())


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"
