"""Fixtures of the mathematics tests."""

import warnings

import pytest
import torch


@pytest.fixture(scope="session")
def e3nn_o3():
    """e3nn.o3, imported without its warnings, which would be errors here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from e3nn import o3
    return o3


@pytest.fixture
def vectors(generator) -> torch.Tensor:
    """Vectors of many lengths, `[20, 3]` in float64."""
    return torch.randn(20, 3, generator=generator, dtype=torch.float64)


@pytest.fixture
def rotations(generator) -> torch.Tensor:
    """Proper rotations, `[4, 3, 3]` in float64."""
    q, _ = torch.linalg.qr(torch.randn(4, 3, 3, generator=generator, dtype=torch.float64))
    return q * torch.linalg.det(q)[:, None, None]
