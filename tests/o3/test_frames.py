"""Frames along directions: rotations that know no special direction."""

import math

import pytest
import torch

from equimol.o3 import spherical_harmonics, wigner_d
from equimol.o3.frames import PolarFrames

BORDER = math.sqrt(0.5)  # where the frames jump
SPECIAL = torch.tensor(
    [
        *([1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]),
        *([1e-9, 1, 0], [0, -1, 1e-9], [BORDER, BORDER, 0], [0, -BORDER, BORDER]),
    ],
    dtype=torch.float64,
)


@pytest.fixture
def directions(vectors):
    return torch.nn.functional.normalize(torch.cat([vectors, SPECIAL]), dim=-1)


@pytest.mark.parametrize("lmax", [0, 1, 3, 6, 12])
def test_every_direction_is_turned_onto_the_polar_axis(lmax, directions):
    harmonics = spherical_harmonics(directions, lmax)
    axis = spherical_harmonics(torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64), lmax)
    for l, d in enumerate(PolarFrames(lmax, lmax)(directions)):
        degree = slice(l * l, (l + 1) ** 2)
        turned = (d @ harmonics[:, degree, None]).squeeze(-1)
        torch.testing.assert_close(turned, axis[degree].expand_as(turned), rtol=0, atol=1e-12)


@pytest.mark.parametrize("lmax", [1, 6, 12])
def test_all_degrees_are_turned_by_the_same_rotation(lmax, directions):
    frames = PolarFrames(lmax, lmax)(directions)
    rotation = frames[1]  # degree 1 is (x, y, z)
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(len(directions), dtype=torch.float64))
    for l, d in enumerate(frames):
        torch.testing.assert_close(d, wigner_d(rotation, l), rtol=0, atol=1e-12)


@pytest.mark.parametrize("orders", [0, 1, 3])
def test_fewer_orders_are_the_middle_rows(orders, directions):
    for l, (few, full) in enumerate(zip(PolarFrames(4, orders)(directions), PolarFrames(4, 4)(directions), strict=True)):
        kept = min(l, orders)
        torch.testing.assert_close(few, full[:, l - kept : l + kept + 1], rtol=0, atol=1e-14)


@pytest.mark.parametrize("vector", [[0.0, 1.0, 0.0], [0.0, -0.7, 0.0], [1.1, 0.0, 0.0], [0.3, 1.4, -0.2], [0.0, 0.1, -2.0]], ids=str)
def test_derivatives_are_right_to_second_order(vector):
    v = torch.tensor([vector], dtype=torch.float64, requires_grad=True)
    frames = PolarFrames(2, 2)

    def matrices(v):
        return torch.cat([d.flatten() for d in frames(torch.nn.functional.normalize(v, dim=-1))])

    assert torch.autograd.gradcheck(matrices, v)
    assert torch.autograd.gradgradcheck(matrices, v)


def test_the_zero_vector_gives_finite_numbers_and_derivatives():
    v = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    total = sum(d.square().sum() + d.sum() for d in PolarFrames(3, 3)(v))
    (first,) = torch.autograd.grad(total, v, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), v)
    assert all(bool(t.isfinite().all()) for t in (total, first, second))


def test_single_precision_follows_the_input(directions):
    frames = PolarFrames(6, 6)
    for single, double in zip(frames(directions.float()), frames(directions.float().double()), strict=True):
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), double, rtol=0, atol=5e-6)


def test_no_directions_give_no_matrices():
    assert [tuple(d.shape) for d in PolarFrames(2, 1)(torch.zeros(0, 3))] == [(0, 1, 1), (0, 3, 3), (0, 3, 5)]
