"""Files of torch.save, read without running what they contain: no class is imported, no function called but for tensors and numbers."""

from __future__ import annotations

import collections
import io
import pickle
import struct
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch


class ConversionError(ValueError):
    """A file that is not understood, with the reason."""


class Record:
    """What a file says of an object whose class is not loaded: ``class_name``, ``arguments``, attributes and ``items``."""

    class_name = ""
    arguments: tuple = ()

    def __new__(cls, *arguments: Any, **named: Any) -> Record:
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


def read_archive(path: str | Path) -> Any:
    """The content of a file of torch.save, on the CPU, every foreign object a `Record`.

    Raises ConversionError where the file is none of those, or holds a program (TorchScript).
    """
    path = Path(path)
    if not path.is_file():
        raise ConversionError(f"there is no file {path}; check the path")
    if not zipfile.is_zipfile(path):
        raise ConversionError(f"{path} is no archive of torch.save (PyTorch 1.6 or newer); write it again with a current PyTorch")
    if is_program(path):
        raise ConversionError(f"{path} is a TorchScript program; this reader takes weights, not programs")
    try:
        return torch.load(path, map_location="cpu", weights_only=False, pickle_module=_INERT)
    except (pickle.UnpicklingError, RuntimeError, EOFError, AttributeError, TypeError, KeyError) as error:
        raise ConversionError(f"{path} cannot be read: {' '.join(str(error).split())}") from error


def is_program(path: str | Path) -> bool:
    """Whether a file is a program of TorchScript."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_program(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Parameters and buffers of a program of TorchScript, by their names, and its plain attributes. Its code is not looked at.

    Raises ConversionError where the file is damaged.
    """
    tensors: dict[str, torch.Tensor] = {}
    attributes: dict[str, Any] = {}

    def collect(record: Record, prefix: str) -> None:
        for name, value in vars(record).items():
            if isinstance(value, torch.Tensor):
                tensors[prefix + name] = value
            elif isinstance(value, Record):
                collect(value, f"{prefix}{name}.")
            else:
                attributes[prefix + name] = value

    try:
        with zipfile.ZipFile(path) as archive:
            (root,) = {name.split("/")[0] for name in archive.namelist()}
            unpickler = _ProgramUnpickler(archive, root)
            collect(unpickler.load(), "")
    except (pickle.UnpicklingError, RuntimeError, EOFError, AttributeError, TypeError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ConversionError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    return tensors, attributes


_NUMBERS = {"f8": "<d", "f4": "<f", "i8": "<q", "i4": "<i", "b1": "<?"}  # of numpy, by the name of their type


def _number(kind: Record, content: bytes) -> Any:
    """A number of numpy as Python's; one of another type stays what the file says of it."""
    name = str(kind.arguments[0]) if kind.arguments else ""
    return struct.unpack(_NUMBERS[name], content)[0] if name in _NUMBERS else Record(kind, content)


_SAFE = {
    ("_codecs", "encode"): lambda text, _: text.encode("latin1"),  # how bytes are written
    ("numpy.core.multiarray", "scalar"): _number,
    ("numpy._core.multiarray", "scalar"): _number,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "defaultdict"): lambda *_: {},
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    ("copyreg", "_reconstructor"): lambda cls, base, state: cls() if issubclass(cls, Record) else base(state),
}
_PLAIN = (set, frozenset, dict, list, tuple, int, float, bool, str, bytes, complex, slice, range)
_SAFE |= {(module, kind.__name__): kind for module in ("builtins", "__builtin__") for kind in _PLAIN}  # the second is its name of old


class _Unpickler(pickle.Unpickler):
    """Knows tensors and plain containers; makes up a kind of Record for any other class, and never imports."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _SAFE:
            return _SAFE[module, name]
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        return type(name, (Record,), {"class_name": f"{module}.{name}"})


class _ProgramUnpickler(_Unpickler):
    """That of the data of a program, whose tensors lie beside them."""

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(io.BytesIO(archive.read(f"{root}/data.pkl")))
        self.archive, self.root = archive, root

    def persistent_load(self, saved: Any) -> Any:
        kind, storage, key, *_ = saved
        if kind != "storage" or storage.__name__ not in _STORAGES:
            raise pickle.UnpicklingError(f"storages must be of {', '.join(_STORAGES)}, got {storage.__name__}")
        content = bytearray(self.archive.read(f"{self.root}/data/{key}"))
        held = torch.frombuffer(content, dtype=torch.uint8).untyped_storage() if content else torch.UntypedStorage(0)
        return torch.storage.TypedStorage(wrap_storage=held, dtype=_STORAGES[storage.__name__], _internal=True)


_STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "BoolStorage": torch.bool,
}
_INERT = SimpleNamespace(Unpickler=_Unpickler, __name__="inert")
