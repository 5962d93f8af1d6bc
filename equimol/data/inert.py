"""Pickles, read without running anything in them: no class is imported, no function called but those of tensors and arrays."""

from __future__ import annotations

import collections
import io
import pickle
from functools import lru_cache
from typing import Any

import numpy as np
import torch


class Inert:
    """What a pickle says of an object whose class is not loaded: ``class_name``, ``arguments``, attributes and ``items``."""

    class_name = ""
    arguments: tuple = ()

    def __new__(cls, *arguments: Any, **named: Any) -> Inert:
        record = object.__new__(cls)
        record.arguments, record.items = (*arguments, *named.items()), []
        return record

    def __init__(self, *arguments: Any, **named: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        for part in state if isinstance(state, tuple) else (state,):
            if isinstance(part, dict):
                self.__dict__.update({str(key): value for key, value in part.items()})

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items.append((key, value))

    def append(self, value: Any) -> None:
        self.items.append(value)

    def extend(self, values: Any) -> None:
        self.items.extend(values)

    def __repr__(self) -> str:
        return f"<{self.class_name} as read>"


class InertUnpickler(pickle.Unpickler):
    """Knows tensors, arrays and plain containers; makes up a kind of `Inert` for any other class, and never imports."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _SAFE:
            return _SAFE[module, name]
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        return _kind(module, name)


@lru_cache(maxsize=1000)  # a new class for each record of a large file would fill the memory
def _kind(module: str, name: str) -> type[Inert]:
    return type(name, (Inert,), {"class_name": f"{module}.{name}"})


def loads(content: bytes) -> Any:
    """The object that the bytes of a pickle hold, every foreign one an `Inert`. Raises whatever a damaged pickle makes the parser raise."""
    return InertUnpickler(io.BytesIO(content)).load()


_CORE = getattr(np, "_core", None) or np.core  # its name before NumPy 2


def _load_number(kind: np.dtype, content: Any) -> Any:
    """A number of numpy as Python's."""
    return _CORE.multiarray.scalar(kind, content).item()


def _load_storage(content: bytes) -> Any:
    """The numbers of a tensor that was pickled by itself: a small file of torch.save inside the pickle."""
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


_SAFE = {
    ("_codecs", "encode"): lambda text, _: text.encode("latin1"),  # how bytes are written
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "defaultdict"): lambda *_: {},
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch.storage", "_load_from_bytes"): _load_storage,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    ("copyreg", "_reconstructor"): lambda cls, base, state: cls() if issubclass(cls, Inert) else base(state),
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}
_PLAIN = (set, frozenset, dict, list, tuple, int, float, bool, str, bytes, complex, slice, range)
_SAFE |= {(module, kind.__name__): kind for module in ("builtins", "__builtin__") for kind in _PLAIN}  # the second is its name of old
for _core in ("core", "_core"):
    _SAFE[f"numpy.{_core}.multiarray", "_reconstruct"] = _CORE.multiarray._reconstruct
    _SAFE[f"numpy.{_core}.multiarray", "scalar"] = _load_number
    _SAFE[f"numpy.{_core}.numeric", "_frombuffer"] = _CORE.numeric._frombuffer
