"""Harmonics: e3nn's values, their normalisations, and derivatives that stay finite."""

import math

import pytest
import torch

from equimol.o3 import gauss_legendre_grid, spherical_harmonics
from equimol.o3.harmonics import NORMALIZATIONS, _direction, _explicit, _recurrence


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("lmax", [0, 1, 2, 3, 4, 12])
def test_harmonics_are_those_of_e3nn(lmax, normalization, vectors, e3nn_o3):
    theirs = e3nn_o3.spherical_harmonics(list(range(lmax + 1)), vectors, normalize=True, normalization=normalization)
    torch.testing.assert_close(spherical_harmonics(vectors, lmax, normalization), theirs, rtol=0, atol=1e-12)


def test_degree_one_is_the_direction(vectors):
    direction = vectors / vectors.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(spherical_harmonics(vectors, 1, "norm")[:, 1:], direction)


@pytest.mark.parametrize("lmax", [0, 1, 2, 3])
def test_the_explicit_polynomials_are_the_recurrence(lmax, vectors):
    unit = _direction(vectors)
    torch.testing.assert_close(_explicit(unit, lmax), _recurrence(unit, lmax), rtol=0, atol=1e-14)


def test_harmonics_are_orthonormal_up_to_high_degree():
    lmax = 20
    points, weights = gauss_legendre_grid(2 * lmax)
    y = spherical_harmonics(points, lmax, "integral")
    torch.testing.assert_close((y.T * weights) @ y, torch.eye((lmax + 1) ** 2, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("normalization", "squared"), [("component", 2 * 4 + 1), ("norm", 1), ("integral", (2 * 4 + 1) / (4 * math.pi))])
def test_the_squared_norm_of_a_degree_is_the_same_in_all_directions(normalization, squared, vectors):
    degree4 = spherical_harmonics(vectors, 4, normalization)[:, 16:]
    torch.testing.assert_close(degree4.square().sum(-1), torch.full((20,), float(squared), dtype=torch.float64))


@pytest.mark.parametrize("lmax", [3, 5])
def test_inversion_changes_the_sign_of_odd_degrees_only(lmax, vectors):
    signs = torch.tensor([(-1.0) ** l for l in range(lmax + 1) for _ in range(2 * l + 1)], dtype=torch.float64)
    torch.testing.assert_close(spherical_harmonics(-vectors, lmax), signs * spherical_harmonics(vectors, lmax))


@pytest.mark.parametrize("lmax", [3, 5])
def test_the_length_of_a_vector_plays_no_part(lmax, vectors):
    for scale in (1e-6, 1e6):
        torch.testing.assert_close(spherical_harmonics(scale * vectors, lmax), spherical_harmonics(vectors, lmax))


@pytest.mark.parametrize("lmax", [3, 5])
def test_derivatives_are_right_to_second_order(lmax, vectors):
    few = vectors[:2].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: spherical_harmonics(v, lmax), few)
    assert torch.autograd.gradgradcheck(lambda v: spherical_harmonics(v, lmax), few)


@pytest.mark.parametrize("lmax", [1, 2, 3, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_zero_vector_gives_the_mean_over_directions_and_no_gradient(lmax, dtype):
    v = torch.zeros(2, 3, dtype=dtype, requires_grad=True)
    y = spherical_harmonics(v, lmax)
    assert torch.equal(y, torch.eye((lmax + 1) ** 2, dtype=dtype)[:1].expand(2, -1))
    weights = torch.ones_like(y, requires_grad=True)
    (first,) = torch.autograd.grad((weights * y).square().sum() + (weights * y).sum(), v, create_graph=True)
    assert torch.equal(first, torch.zeros_like(v))
    for second in torch.autograd.grad((first + 1).square().sum(), (v, weights)):
        assert torch.equal(second, torch.zeros_like(second))


@pytest.mark.parametrize("lmax", [3, 5])
def test_vectors_along_the_polar_axis_have_derivatives_like_any_other(lmax):
    v = torch.tensor([[0.0, 1.5, 0.0], [0.0, -0.7, 0.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: spherical_harmonics(v, lmax), v)
    assert torch.autograd.gradgradcheck(lambda v: spherical_harmonics(v, lmax), v)


@pytest.mark.parametrize("lmax", [3, 6])
def test_single_precision_follows_the_input(lmax, vectors):
    y = spherical_harmonics(vectors.float(), lmax)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y.double(), spherical_harmonics(vectors, lmax), rtol=0, atol=2e-5)


@pytest.mark.parametrize("shape", [(0, 3), (3,), (2, 4, 3)])
def test_leading_axes_are_free(shape):
    assert spherical_harmonics(torch.ones(shape), 2).shape == (*shape[:-1], 9)


def test_wrong_arguments_are_refused():
    with pytest.raises((ValueError, TypeError)):
        spherical_harmonics(torch.zeros(3, 7), 2)
    with pytest.raises(ValueError, match="got -1"):
        spherical_harmonics(torch.zeros(7, 3), -1)
    with pytest.raises(ValueError, match="'componant'"):
        spherical_harmonics(torch.zeros(7, 3), 2, "componant")
