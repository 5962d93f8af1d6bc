"""Files that are either complete or not there: written beside their place, then renamed into it."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np


def write_atomically(path: str | Path, content: bytes | str) -> None:
    """Replace a file by new content in one step. A full disk leaves the old file as it was and no partial one."""
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def replacing(path: str | Path) -> Iterator[BinaryIO]:
    """A file to write into that takes its name when the block ends well. Otherwise the old file is as it was, and no partial one stays."""
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # a rename may reach the disk before the bytes do
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        if error.filename not in (None, str(part), part):
            raise  # of another file that was read in the block
        kept = "the previous version is intact" if path.exists() else "nothing was written"
        raise OSError(f"cannot write {path} ({error.strerror or error}): {kept}; free space or permissions, then repeat") from error
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def remove_parts(folder: str | Path) -> None:
    """Delete what writers that were killed left in a folder. Only where no writer is at work."""
    for part in Path(folder).glob(".*.part"):
        part.unlink(missing_ok=True)


def write_arrays(path: str | Path, arrays: dict[str, Any]) -> None:
    """An .npz file, whole or not at all."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_atomically(path, buffer.getvalue())
