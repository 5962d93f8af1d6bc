"""Rotations of these tests."""

import pytest
import torch


@pytest.fixture(params=["rotation", "improper"])
def rotation(request, random):
    """A random rotation, or one combined with the inversion."""
    q = torch.linalg.qr(random(3, 3)).Q
    q = q * torch.linalg.det(q).sign()
    return q if request.param == "rotation" else -q
