"""EquiMol: equivariant interatomic potentials, from data to molecular dynamics.

Importing this does nothing but name things: a room is imported when one of its names is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from equimol.models import build_model
    from equimol.models.file import load, save

    __version__: str

__all__ = ["__version__", "build_model", "load", "save"]

_NAMES = {"build_model": "equimol.models", "load": "equimol.models.file", "save": "equimol.models.file"}
_ROOMS = ("data", "interfaces", "models", "nn", "o3", "ops", "tensor_products", "testing", "training")


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("equimol")
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    if name in _ROOMS:
        return importlib.import_module(f"equimol.{name}")
    raise AttributeError(f"module 'equimol' has no attribute {name!r}; it offers {', '.join((*__all__, *_ROOMS))}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ROOMS})
