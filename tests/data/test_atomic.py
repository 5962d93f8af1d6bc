"""Files are complete or absent."""

import os
from pathlib import Path

import numpy as np
import pytest

from equimol.data.atomic import write_arrays, write_atomically

resource = pytest.importorskip("resource")


@pytest.fixture
def small_disk():
    """A limit of 10 kB per file: the operating system refuses to write on, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_previous_file_and_no_remains(tmp_path: Path, small_disk):
    path = tmp_path / "last.ckpt"
    write_atomically(path, b"old")
    with pytest.raises(OSError, match="the previous version is intact"):
        write_atomically(path, bytes(100_000))
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["last.ckpt"]


def test_a_folder_that_is_not_there_is_one_clear_error(tmp_path: Path):
    with pytest.raises(OSError, match=r"cannot write .*nothing was written"):
        write_atomically(tmp_path / "missing" / "file", "text")


def test_arrays_come_back(tmp_path: Path):
    write_arrays(tmp_path / "a.npz", {"x": np.arange(3)})
    assert np.load(tmp_path / "a.npz")["x"].tolist() == [0, 1, 2]
