"""Machine code that was compiled before, on disk: $EQUIMOL_CACHE, or ~/.cache/equimol."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

FOLDER = "EQUIMOL_CACHE"  # environment variable
DIGEST = 32  # bytes before the code in a file


def cached_code(key: str, suffix: str, make: Callable[[], bytes]) -> bytes:
    """What ``make`` gives, of this process or of one before it: ``key`` is all that it depends on.

    A file that is damaged is written again; a folder that cannot be written to is left alone. Whoever can write there can have any code
    run: it must belong to the user, as the default does.
    """
    path = Path(os.environ.get(FOLDER) or Path.home() / ".cache" / "equimol") / f"{hashlib.sha256(key.encode()).hexdigest()}.{suffix}"
    with suppress(OSError):
        kept = path.read_bytes()
        if hashlib.sha256(kept[DIGEST:]).digest() == kept[:DIGEST]:
            return kept[DIGEST:]
    code = make()
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:  # whoever reads meanwhile sees all of it or nothing
            file.write(hashlib.sha256(code).digest() + code)
        os.replace(file.name, path)
    return code
