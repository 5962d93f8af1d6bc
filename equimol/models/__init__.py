"""Models. A new one is one file here and one line in ``MODELS``."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import fields
from numbers import Integral, Real
from types import MappingProxyType
from typing import Any, NamedTuple, get_type_hints

import torch
from ase.data import atomic_numbers

from equimol.models.allscaip import PRESETS as ALLSCAIP_PRESETS
from equimol.models.allscaip import AllScAIP, AllScAIPConfig, AllScAIPDirect
from equimol.models.base import ConservativePotential, DirectPotential, Potential
from equimol.models.composition import References, Shifted, ShiftedDirect, Sum, by_number, core, data_sets, is_by_data_set, shifted
from equimol.models.dpa3 import DPA3, DPA3Config
from equimol.models.dpa3 import PRESETS as DPA3_PRESETS
from equimol.models.escaip import PRESETS as ESCAIP_PRESETS
from equimol.models.escaip import EScAIP, EScAIPConfig, EScAIPDirect
from equimol.models.escaip_v1 import EScAIPV1, EScAIPV1Config, EScAIPV1Direct
from equimol.models.file import load, save
from equimol.models.lennard_jones import LennardJones, LennardJonesConfig
from equimol.models.mace import MACE, MACEConfig
from equimol.models.mace import PRESETS as MACE_PRESETS
from equimol.models.nequip import PRESETS as NEQUIP_PRESETS
from equimol.models.nequip import NequIP, NequIPConfig
from equimol.models.scale_shift_mace import PRESETS as SCALE_SHIFT_MACE_PRESETS
from equimol.models.scale_shift_mace import ScaleShiftMACE, ScaleShiftMACEConfig
from equimol.models.uncertainty import WithUncertainty
from equimol.models.zbl import ZBL, ZBLConfig

__all__ = [
    "MACE", "MODELS", "ZBL", "AllScAIP", "AllScAIPConfig", "AllScAIPDirect", "ConservativePotential", "DirectPotential", "EScAIP",
    "EScAIPConfig", "EScAIPDirect", "EScAIPV1", "EScAIPV1Config", "EScAIPV1Direct", "LennardJones", "LennardJonesConfig", "MACEConfig",
    "ModelEntry", "NequIP", "NequIPConfig", "Potential", "References", "ScaleShiftMACE", "ScaleShiftMACEConfig", "Shifted",
    "ShiftedDirect", "Sum", "WithUncertainty", "ZBLConfig", "build", "build_model", "by_number", "core", "data_sets", "find_device",
    "for_data_set", "is_by_data_set", "load", "save",
]  # fmt: skip


class ModelEntry(NamedTuple):
    """A class, its settings, and named sets of settings; ``tiny`` is always among them and trains in seconds.

    `training` has settings of a training run that suit this model better than the defaults of all.
    """

    model: type[Potential]
    config: type
    presets: dict[str, dict[str, Any]]
    training: Mapping[str, Any] = MappingProxyType({})


_ESCAIP_V1_PRESETS: dict[str, dict[str, Any]] = {  # the others are as published
    "tiny": {"width": 32, "layers": 2, "heads": 2, "radial_basis": 32, "radial_width": 32, "element_width": 32, "order_width": 16},
    **{size: ESCAIP_PRESETS[size] for size in ("83M", "146M", "317M")},
}
# cutoff and loss as published: with squares, forces that weigh ten times as much leave energies of molecules to chance
_ESCAIP_TRAINING = {"cutoff": 6.0, "learning_rate": 2e-3, "loss_function": "mae", "loss": {"energy": 1.0, "forces": 2.0}}
MODELS: dict[str, ModelEntry] = {
    "mace": ModelEntry(MACE, MACEConfig, MACE_PRESETS),
    "scale_shift_mace": ModelEntry(ScaleShiftMACE, ScaleShiftMACEConfig, SCALE_SHIFT_MACE_PRESETS),
    "nequip": ModelEntry(NequIP, NequIPConfig, NEQUIP_PRESETS),
    "escaip": ModelEntry(EScAIP, EScAIPConfig, ESCAIP_PRESETS, _ESCAIP_TRAINING),
    "escaip_direct": ModelEntry(EScAIPDirect, EScAIPConfig, ESCAIP_PRESETS, _ESCAIP_TRAINING),
    "escaip_v1": ModelEntry(EScAIPV1, EScAIPV1Config, _ESCAIP_V1_PRESETS),
    "escaip_v1_direct": ModelEntry(EScAIPV1Direct, EScAIPV1Config, _ESCAIP_V1_PRESETS),
    "allscaip": ModelEntry(AllScAIP, AllScAIPConfig, ALLSCAIP_PRESETS),
    "allscaip_direct": ModelEntry(AllScAIPDirect, AllScAIPConfig, ALLSCAIP_PRESETS),
    "dpa3": ModelEntry(DPA3, DPA3Config, DPA3_PRESETS, {"cutoff": 6.0, "learning_rate": 1e-3}),
    "lennard_jones": ModelEntry(LennardJones, LennardJonesConfig, {"tiny": {}}),
    "zbl": ModelEntry(ZBL, ZBLConfig, {"tiny": {}}),
}


def build_model(
    name: str,
    preset: str = "tiny",
    *,
    elements: Iterable[int],
    references: References | None = None,
    scale: float = 1.0,
    shift: float = 0.0,
    zbl: bool | Mapping[str, float] = True,
    **settings: Any,
) -> Potential:
    """A potential with fresh weights. Seed torch first if they should be reproducible.

    Args:
        name: one of ``MODELS``.
        preset: a named set of settings of that model.
        elements: atomic numbers that it shall know.
        references: eV per atomic number, added to each atom, or that for each of several data sets; zero where None.
        scale, shift: eV; multiplies the network's energies and is added to each atom's.
        zbl: add screened nuclear repulsion at short range, which real structures hardly feel; {"H-H": Å, ...} says where it ends.
            Models with direct forces go without.
        settings: fields of the model's config, over those of the preset.

    Raises:
        ValueError: unknown model, preset, setting or a setting out of range; the message names the nearest known one.
    """
    entry = MODELS[_known(name, MODELS, "model")]
    preset_settings = entry.presets[_known(preset, entry.presets, f"preset of {name}")]
    elements = tuple(sorted({int(z) for z in elements}))
    model = entry.model(_config(entry.config, {**preset_settings, **settings, "elements": elements}))
    model = shifted(model, references or dict.fromkeys(elements, 0.0), scale, shift)
    if zbl is False or isinstance(model, DirectPotential):
        return model
    reach = {} if zbl is True else zbl
    pairs = tuple((*(atomic_numbers[symbol] for symbol in pair.split("-")), float(r)) for pair, r in reach.items())
    return Sum(model, ZBL(ZBLConfig(elements=elements, reach=pairs)))


def build(description: dict[str, Any]) -> Potential:
    """The potential that ``potential.description()`` described, with fresh weights."""
    match description:
        case {"name": "sum", "members": members}:
            return Sum(*(build(m) for m in members))
        case {"name": "shifted", "inner": inner, "references": references, "scale": scale, "shift": shift}:
            return shifted(build(inner), by_number(references), scale, shift)
        case {"name": "with_uncertainty", "inner": inner, "features": int(features), "calibration": dict(calibration)}:
            return WithUncertainty(build(inner), features, calibration)
        case {"name": str(name), "config": dict(config)}:
            entry = MODELS[_known(name, MODELS, "model")]
            return entry.model(_config(entry.config, config))
    raise ValueError(f"a description needs 'name' and 'config', 'members' or 'inner', got keys {sorted(description)}")


def for_data_set(model: Potential, name: str) -> Potential:
    """The same model for one of the data sets it was trained on, which it needs not be told any more: a copy, with that one's references.

    Raises:
        ValueError: the model has no such data set; the message names those it has.
    """
    names = data_sets(model)
    if name not in names:
        raise ValueError(
            f"data_set must be one of {', '.join(names)}, got {name!r}"
            if names
            else "the model is for one level of theory; leave data_set out"
        )

    def chosen(described: dict[str, Any]) -> dict[str, Any]:
        if "members" in described:
            return described | {"members": [chosen(member) for member in described["members"]]}
        if "references" in described:
            return described | {"inner": chosen(described["inner"]), "references": described["references"][name]}
        if "inner" in described:
            return described | {"inner": chosen(described["inner"])}
        own = described["config"]
        return described | {"config": own | {"data_set": names.index(name)}} if own.get("data_sets") else described

    with torch.random.fork_rng(devices=[]):  # initial weights are drawn and overwritten
        one = build(chosen(model.description()))
    one.to(device=next(model.parameters()).device, dtype=model.dtype).load_state_dict(model.state_dict())
    return one.train(model.training)


def find_device(name: str | torch.device) -> torch.device:
    """The device of that name, if it is there; auto is cuda where there is one, else cpu."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"the device must be cpu or cuda, got {name!r}") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("the device cuda was asked for, but PyTorch finds none here; use cpu, or install a CUDA build of PyTorch")
    return device


_KINDS = {int: (Integral, "a whole number"), float: (Real, "a number"), str: (str, "text"), bool: (bool, "true or false")}


def _check_type(field: str, value: Any, hint: Any) -> None:
    """Plain numbers and words; the other fields are checked by their configuration."""
    if hint in _KINDS:
        kind, words = _KINDS[hint]
        if not isinstance(value, kind) or (isinstance(value, bool) and hint is not bool):
            raise ValueError(f"{field} must be {words}, got {value!r}")


def _config(cls: type, settings: dict[str, Any]) -> Any:
    names, hints = [f.name for f in fields(cls)], get_type_hints(cls)
    for key, value in settings.items():
        _known(key, names, f"field of {cls.__name__}")
        _check_type(key, value, hints[key])
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()})


def _known(word: str, words: Iterable[str], what: str) -> str:
    words = list(words)
    if word in words:
        return word
    near = difflib.get_close_matches(str(word), words, 1)
    raise ValueError(f"{word!r} is no {what}" + (f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(words)}"))
