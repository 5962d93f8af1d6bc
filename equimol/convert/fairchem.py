"""EScAIP and AllScAIP of fairchem-core: state dicts and inference checkpoints, as our models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from equimol.convert import allscaip, escaip, escaip_v1
from equimol.convert.archive import ConversionError, Record, read_archive
from equimol.convert.names import Settings, plain, reference_energies, rescale, unwrapped
from equimol.models.base import Potential
from equimol.models.composition import shifted


def read_fairchem(path: str | Path, settings: Mapping[str, Any] | None = None) -> Potential:
    """The potential in an inference checkpoint or a state dict of fairchem-core's EScAIP or AllScAIP, or in one of the paper's EScAIP.

    Of an inference checkpoint it is the averaged weights that are read.

    Args:
        path: of torch.save.
        settings: of the backbone, as its YAML has them, for files that hold weights alone.

    Raises:
        ConversionError: the file, or an option of the model, is not understood; the message says which.
    """
    content = read_archive(path)
    if escaip_v1.is_v1(content):
        return escaip_v1.model_of(content, path, settings)
    state, found, tasks = _parts(content, path)
    settings = Settings(plain(settings or found) or {})
    if not settings:
        raise ConversionError(f"{path} holds weights without settings; give those of the backbone")
    weights, direct = unwrapped(state), bool(settings.get("direct_forces"))
    form = allscaip if allscaip.is_allscaip(weights) else escaip
    elements = tuple(range(1, int(settings["max_num_elements"])))
    config = form.config_of(settings, elements)
    model = form.MODELS[direct](config)
    scales, references = _scales(tasks, elements)
    ours = form.translate(weights, config, direct)
    rescale(ours, scales, {"forces": form.FORCES} if direct else {})
    model.load_state_dict(ours, strict=True)
    return shifted(model, references, scales["energy"]).eval()


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


def _scales(tasks: Any, elements: tuple[int, ...]) -> tuple[dict[str, float], dict[int, float]]:
    """The scale of each output, and reference energies; one and zeros where the file has none."""
    found: dict[str, tuple[float, Any]] = {"energy": (1.0, None)} if not tasks else {}
    for task in plain(tasks) or []:
        name, normalizer, references = task["property"], task.get("normalizer") or {}, task.get("element_references")
        if float(normalizer.get("mean", 0.0)):
            raise ConversionError(f"the mean of {name} must be 0, got {normalizer['mean']}: a constant per structure is no potential")
        scale = float(normalizer.get("rmsd", 1.0)), _table(references)
        if found.setdefault(name, scale) != scale:
            raise ConversionError(f"tasks of {name} must share their scale and references; got several that do not: leave one in the file")
    if "energy" not in found:
        raise ConversionError(f"the file must have a task of energy, got tasks of {sorted(found)}")
    return {name: scale for name, (scale, _) in found.items()}, reference_energies(found["energy"][1], elements)


def _table(references: Any) -> Any:
    """Of reference energies by atomic number, as a task lists them: plainly, or as the arguments of a tensor."""
    if not references:
        return None
    table = references.get("element_references") if isinstance(references, dict) else references
    table = table["_args_"][0] if isinstance(table, dict) and "_args_" in table else table
    if not isinstance(table, (list, Tensor)):
        raise ConversionError(f"references of elements must be listed in the file, got {references}; write the numbers out")
    return table if isinstance(table, list) else table.tolist()
