"""Random inputs of these tests; every number is seeded."""

import pytest
import torch


@pytest.fixture
def random():
    """A function shape -> standard normal numbers in float64, the same in each test."""
    generator = torch.Generator().manual_seed(1)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.fixture(params=["rotation", "improper"])
def rotation(request, random):
    """A random rotation, or one combined with the inversion."""
    q = torch.linalg.qr(random(3, 3)).Q
    q = q * torch.linalg.det(q).sign()
    return q if request.param == "rotation" else -q
