"""Files of torch.save, read without running what they contain: no class is imported, no function called but for tensors and numbers."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from equimol.data.inert import Inert as Record
from equimol.data.inert import InertUnpickler


class ConversionError(ValueError):
    """A file that is not understood, with the reason."""


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


class _ProgramUnpickler(InertUnpickler):
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
_INERT = SimpleNamespace(Unpickler=InertUnpickler, __name__="inert")
