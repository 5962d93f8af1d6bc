"""Fixtures that several test folders share."""

import os
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the public data sets: $EQUIMOL_DATA, or shared/data beside the checkout. Tests that need it skip where it is absent."""
    folder = Path(os.environ.get("EQUIMOL_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no public data sets at {folder}; set EQUIMOL_DATA")
    return folder


@pytest.fixture
def generator() -> torch.Generator:
    """Random numbers that are the same in every run and every order of the tests."""
    return torch.Generator().manual_seed(0)


@pytest.fixture
def random():
    """A function shape -> standard normal numbers in float64, the same in each test."""
    generator = torch.Generator().manual_seed(1)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
