"""A model in one file: its weights, and all that is needed to rebuild, check and trust them. No pickle.

The file is a safetensors file. Its tensors are the state dict; its header holds one JSON text under the key "equimol".
"""

from __future__ import annotations

import hashlib
import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor

from equimol.data.atomic import write_atomically
from equimol.models.base import Potential
from equimol.models.fingerprint import compare_fingerprint, take_fingerprint

FORMAT_VERSION = 1
SUFFIXES = (".equimol", ".safetensors")
UNITS = {"length": "Å", "energy": "eV", "forces": "eV/Å", "stress": "eV/Å³", "mass": "amu", "charge": "e"}  # stress > 0 wants to contract
GIVEN = ("name", "level_of_theory", "label_keys", "references_method", "training", "authors", "licence", "notes")

_KEY = "equimol"
_DTYPES = {"float32": torch.float32, "float64": torch.float64}


class ModelFileError(ValueError):
    """A model file that cannot be written or must not be used; says which file, why, and what to do."""


def save(model: Potential, path: str | Path, metadata: dict[str, Any] | None = None) -> Path:
    """Write a model to one file, which is complete or not there: an older file of that name stays until the new one is whole.

    `metadata` adds what the model itself does not know; the keys are those of `GIVEN`, the values anything that JSON can hold.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"a model file ends in {' or '.join(SUFFIXES)}, got {path.name!r}; choose such a name")
    unknown = sorted(set(metadata or {}) - set(GIVEN))
    if unknown:
        raise ValueError(f"model metadata has no key {unknown[0]!r}; the keys are {', '.join(GIVEN)}")
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}
    broken = [name for name, value in tensors.items() if value.is_floating_point() and not torch.isfinite(value).all()]
    if broken:
        raise ModelFileError(f"{path} was not written: the weight {broken[0]} holds NaN or infinity; save an earlier state of this model")
    header = json.loads(json.dumps(_describe(model) | (metadata or {})))  # as a reader will see it: tuples are lists
    header["sha256"] = _checksum(header, tensors)
    write_atomically(path, to_safetensors(tensors, metadata={_KEY: json.dumps(header, ensure_ascii=False)}))
    return path


def load(path: str | Path, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None) -> Potential:
    """Rebuild the model of a file and check that it gives the energies and forces it gave when it was saved.

    Without `device` it is on the CPU, without `dtype` in the dtype it was saved in. Comes in evaluation mode.
    """
    header, tensors = _read(Path(path))
    saved = _DTYPES[header["dtype"]]
    wanted = saved if dtype is None else as_dtype(dtype)
    model = _rebuild(path, header, tensors, wanted).to(device=device or "cpu").eval()
    coarser = torch.float32 if torch.float32 in (saved, wanted) else torch.float64
    deviation = compare_fingerprint(model, header["fingerprint"], coarser)
    if deviation.share > 1:
        raise ModelFileError(
            f"{path} does not reproduce its fingerprint in {_name(wanted)} on {device or 'cpu'}: "
            f"energies are off by {deviation.energy:.1e} eV/atom, forces by {deviation.force:.1e} eV/Å, allowed {deviation.tolerance:.1e}; "
            f"it was saved with {_list(header['versions'])} and is read with {_list(_versions())}; "
            "use the versions it was saved with, or dtype='float64' to see whether rounding is the reason"
        )
    return model


def read_metadata(path: str | Path) -> dict[str, Any]:
    """What a file says of its model: settings, units, elements, versions and the fingerprint. Checks that the file is undamaged."""
    return _read(Path(path))[0]


def as_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """torch.float32 or torch.float64, from itself or its name."""
    found = _DTYPES.get(dtype.removeprefix("torch.")) if isinstance(dtype, str) else dtype
    if found not in _DTYPES.values():
        raise ValueError(f"dtype must be float32 or float64, got {dtype!r}")
    return found


def _describe(model: Potential) -> dict[str, Any]:
    description = model.description()
    return {
        "format_version": FORMAT_VERSION,
        "description": description,
        "dtype": _name(as_dtype(model.dtype)),  # refuses what load could not read back
        "units": UNITS,
        "cutoff": float(model.cutoff),
        "hops": int(model.hops),
        "elements": [int(z) for z in model.elements],
        "inputs": list(model.inputs),
        "outputs": list(model.outputs),
        "conservative": bool(model.conservative),
        "references": _find(description, "references"),
        "versions": _versions(),
        "fingerprint": _finite(take_fingerprint(model)),
    }


def _finite(fingerprint: dict[str, Any]) -> dict[str, Any]:
    """A fingerprint with NaN in it could never be matched: such a model is refused while its user is still there."""
    try:
        json.dumps(fingerprint, allow_nan=False)
    except ValueError as error:
        raise ModelFileError("the model gives NaN or infinite energies or forces; it was not written: save an earlier one") from error
    return fingerprint


def _rebuild(path: str | Path, header: dict[str, Any], tensors: dict[str, Tensor], dtype: torch.dtype) -> Potential:
    from equimol.models import build  # here: the package's table of models is built from its files

    written = f"it was written by {_list(header['versions'])}, this is {_list(_versions())}"
    try:
        with torch.random.fork_rng(devices=[]):  # initial weights are drawn and overwritten: the caller's random numbers stay his
            model = build(header["description"])
        model = model.to(dtype=dtype)  # before the weights come: float64 references in the file are not rounded on the way
        model.load_state_dict(tensors, strict=True)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ModelFileError(f"{path} describes a model that cannot be rebuilt here: {reason}; {written}") from error
    return model


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors of a file whose checksum holds."""
    if path.is_dir():
        raise ModelFileError(f"{path} is a folder, not a model file; a training run keeps its model in model.equimol")
    if not path.is_file():
        raise ModelFileError(f"there is no model file {path}; check the path")
    try:
        with safe_open(path, framework="pt") as file:
            texts = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (a handle, not a dict)
    except (SafetensorError, OSError) as error:
        raise ModelFileError(f"{path} cannot be read as a model: {_why_unreadable(path)} ({' '.join(str(error).split())})") from error
    if _KEY not in texts:
        raise ModelFileError(f"{path} holds tensors but no EquiMol model; write models with equimol.save(model, path)")
    header = _parse(path, texts[_KEY])
    if header.get("sha256") != _checksum(header, tensors):
        raise ModelFileError(f"{path} was changed or damaged after it was written: its checksum does not hold; take a fresh copy of it")
    return header, tensors


def _parse(path: Path, text: str) -> dict[str, Any]:
    try:
        header = json.loads(text)
        found = int(header["format_version"])
    except (ValueError, KeyError, TypeError) as error:
        raise ModelFileError(f"{path} has a damaged description: {error}; take a fresh copy of it") from error
    if found > FORMAT_VERSION:
        raise ModelFileError(
            f"{path} has file format {found}, written by {_list(header.get('versions', {}))}; "
            f"this equimol {_version('equimol')} reads formats up to {FORMAT_VERSION}; update with: pip install -U equimol"
        )
    return header


def _why_unreadable(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(8)
    if not start:
        return "it is empty; take a fresh copy of it"
    if start.startswith((b"PK", b"\x80")):
        return "it is a pickle or a zip archive, such as PyTorch writes, and these are never opened; save models with equimol.save"
    return "it is truncated, damaged or no safetensors file; take a fresh copy of it"


def _checksum(header: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """SHA-256 of everything in the file but itself: against damage, not against an attacker."""
    digest = hashlib.sha256()
    facts = {key: value for key, value in header.items() if key != "sha256"}
    digest.update(json.dumps(facts, sort_keys=True, ensure_ascii=False).encode())
    for name in sorted(tensors):
        value = tensors[name].contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _versions() -> dict[str, str]:
    names = ("equimol", "torch", "torch-geometric", "numpy", "vesin")
    return {name: _version(name) for name in names} | {"python": platform.python_version()}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"  # a checkout on the path that was never installed


def _list(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in versions.items()) or "an unknown version"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _find(description: Any, key: str) -> Any:
    """The first value of `key` in a nested description, None if there is none."""
    if isinstance(description, dict):
        if description.get(key) is not None:
            return description[key]
        description = list(description.values())
    if isinstance(description, (list, tuple)):
        return next((value for part in description if (value := _find(part, key)) is not None), None)
    return None
