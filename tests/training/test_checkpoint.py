"""Checkpoints are read without executing anything, and damage is named."""

from pathlib import Path

import pytest
import torch

from equimol.training.checkpoint import read_checkpoint, write_checkpoint


class Harmful:
    def __reduce__(self):
        return (print, ("executed",))


def test_what_is_written_is_read(tmp_path: Path):
    path = tmp_path / "last.ckpt"
    write_checkpoint({"step": 3, "weights": torch.arange(3.0)}, path)
    assert read_checkpoint(path)["step"] == 3


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path, capsys):
    path = tmp_path / "last.ckpt"
    torch.save({"step": Harmful()}, path)
    with pytest.raises(ValueError, match="not a complete checkpoint"):
        read_checkpoint(path)
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"text"])
def test_damage_is_named_with_the_file(tmp_path: Path, content: bytes):
    path = tmp_path / "last.ckpt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"last\.ckpt is not a complete checkpoint"):
        read_checkpoint(path)
