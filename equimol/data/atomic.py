"""Files that are either complete or not there: written beside their place, then renamed into it."""

import io
import os
from pathlib import Path
from typing import Any

import numpy as np


def write_atomically(path: str | Path, content: bytes | str) -> None:
    """Replace a file by new content in one step. A full disk leaves the old file as it was and no partial one."""
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # a rename may reach the disk before the bytes do
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        kept = "the previous version is intact" if path.exists() else "nothing was written"
        raise OSError(f"cannot write {path} ({error.strerror or error}): {kept}; free space or permissions, then repeat") from error


def remove_parts(folder: str | Path) -> None:
    """Delete what writers that were killed left in a folder. Only where no writer is at work."""
    for part in Path(folder).glob(".*.part"):
        part.unlink(missing_ok=True)


def write_arrays(path: str | Path, arrays: dict[str, Any]) -> None:
    """An .npz file, whole or not at all."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_atomically(path, buffer.getvalue())
