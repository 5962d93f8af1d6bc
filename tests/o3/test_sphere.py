"""Quadrature grids of the sphere: their size is minimal, and products on them are exact."""

import math

import pytest
import torch
from torch import nn

from equimol.o3 import (
    bracket_coefficient,
    gaunt_coefficient,
    gauss_legendre_grid,
    gradient_scale,
    lebedev_grid,
    sphere_grid,
    spherical_harmonics,
    wigner_3j,
)
from equimol.o3.sphere import ALGORITHMS, LEBEDEV_ORDERS

DEGREES = [(2, 2, 2), (2, 2, 4), (3, 2, 3), (3, 3, 6), (4, 4, 4), (3, 0, 1)]


def coefficients(generator, lmax, channels=2):
    return torch.randn(3, (lmax + 1) ** 2, channels, generator=generator, dtype=torch.float64)


def product_by_couplings(x, y, lmax_out):
    """Coefficients of the pointwise product, as the sum of all couplings weighted with their Gaunt coefficients."""
    l1s, l2s = (range(math.isqrt(f.shape[-2])) for f in (x, y))
    out = x.new_zeros(*x.shape[:-2], (lmax_out + 1) ** 2, x.shape[-1])
    for l1 in l1s:
        for l2 in l2s:
            for l3 in range(abs(l1 - l2), min(l1 + l2, lmax_out) + 1):
                a, b = x[..., l1**2 : (l1 + 1) ** 2, :], y[..., l2**2 : (l2 + 1) ** 2, :]
                coupled = torch.einsum("...ic,...jc,ijk->...kc", a, b, wigner_3j(l1, l2, l3))
                out[..., l3**2 : (l3 + 1) ** 2, :] += gaunt_coefficient(l1, l2, l3) * coupled
    return out


def product_on_points(points, weights, x, y, lmax_out):
    l1, l2 = (math.isqrt(f.shape[-2]) - 1 for f in (x, y))
    values = (spherical_harmonics(points, l1, "integral") @ x) * (spherical_harmonics(points, l2, "integral") @ y)
    return (spherical_harmonics(points, lmax_out, "integral") * weights[:, None]).T @ values


def rings_times_steps(rings: int, steps: int):
    """A Gauss-Legendre grid with numbers of rings and of steps of its own, from the rows and columns of larger ones."""
    ring_points, ring_weights = gauss_legendre_grid(2 * rings - 2)
    y = ring_points[:: 2 * rings - 1, 1]
    weights = ring_weights[:: 2 * rings - 1] * (2 * rings - 1) / steps
    a = 2 * math.pi * torch.arange(steps, dtype=torch.float64) / steps
    r = (1 - y * y).sqrt()[:, None]
    points = torch.stack([r * a.sin(), y[:, None].expand(rings, steps), r * a.cos()], dim=-1)
    return points.flatten(0, 1), weights.repeat_interleave(steps)


@pytest.mark.parametrize("grid", [gauss_legendre_grid, lebedev_grid])
@pytest.mark.parametrize("band", [0, 1, 4, 9, 13, 26, 31])
def test_grids_integrate_up_to_their_band(grid, band):
    points, weights = grid(band)
    assert points.dtype == weights.dtype == torch.float64
    torch.testing.assert_close(points.norm(dim=-1), torch.ones(len(weights), dtype=torch.float64))
    integrals = weights @ spherical_harmonics(points, band, "integral")
    expected = torch.zeros((band + 1) ** 2, dtype=torch.float64)
    expected[0] = math.sqrt(4 * math.pi)
    torch.testing.assert_close(integrals, expected, rtol=0, atol=1e-12)


# Points for L x L -> L, whose band is 3L.
@pytest.mark.parametrize(("lmax", "lebedev", "gauss"), [(1, 6, 8), (2, 26, 28), (3, 38, 50), (4, 74, 91), (5, 86, 128), (6, 146, 190)])
def test_grids_have_their_known_sizes(lmax, lebedev, gauss):
    sizes = [sphere_grid((lmax, lmax), lmax, 3 * lmax, algorithm).points for algorithm in ("lebedev", "gauss_legendre", "separable")]
    assert sizes == [lebedev, gauss, gauss]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(("l1", "l2", "l3"), DEGREES)
def test_products_on_the_grid_are_gaunt_products(l1, l2, l3, algorithm, generator):
    x, y = coefficients(generator, l1), coefficients(generator, l2)
    grid = sphere_grid((l1, l2), l3, l1 + l2 + l3, algorithm)
    product = grid.analysis(grid.synthesis(x) * grid.synthesis(y))
    torch.testing.assert_close(product, product_by_couplings(x, y, l3), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("l1", "l2", "l3"), [(2, 2, 2), (2, 2, 4), (3, 2, 3), (3, 3, 6), (4, 4, 4)])
def test_a_smaller_grid_would_not_do(l1, l2, l3, generator):
    x, y = coefficients(generator, l1), coefficients(generator, l2)
    exact, band = product_by_couplings(x, y, l3), l1 + l2 + l3
    rings, steps = band // 2 + 1, band + 1
    torch.testing.assert_close(product_on_points(*rings_times_steps(rings, steps), x, y, l3), exact, rtol=0, atol=1e-12)
    lower_order = max(order for order in LEBEDEV_ORDERS if order < band)
    for smaller in (rings_times_steps(rings - 1, steps), rings_times_steps(rings, steps - 1), lebedev_grid(lower_order)):
        assert (product_on_points(*smaller, x, y, l3) - exact).abs().max() > 1e-3


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_triple_product_is_exact_on_the_grid_of_its_band(algorithm, generator):
    l, lmax_out = 2, 1
    x = coefficients(generator, l)
    grid = sphere_grid((l, l, l), lmax_out, 3 * l + lmax_out, algorithm)
    cube = grid.analysis(grid.synthesis(x) ** 3)
    torch.testing.assert_close(cube, product_by_couplings(product_by_couplings(x, x, 2 * l), x, lmax_out), rtol=0, atol=1e-12)


@pytest.mark.parametrize("algorithm", [*ALGORITHMS, "auto"])
def test_analysis_undoes_synthesis(algorithm, generator):
    x = coefficients(generator, 4)
    grid = sphere_grid((4,), 4, 8, algorithm)
    torch.testing.assert_close(grid.analysis(grid.synthesis(x)), x, rtol=0, atol=1e-13)


def bracket_by_couplings(x, y, lmax_out):
    """Coefficients of the bracket of two functions, scaled as the grids scale it."""
    l1s, l2s = (range(1, math.isqrt(f.shape[-2])) for f in (x, y))
    out = x.new_zeros(*x.shape[:-2], (lmax_out + 1) ** 2, x.shape[-1])
    for l1 in l1s:
        for l2 in l2s:
            for l3 in range(abs(l1 - l2), min(l1 + l2, lmax_out) + 1):
                a, b = x[..., l1**2 : (l1 + 1) ** 2, :], y[..., l2**2 : (l2 + 1) ** 2, :]
                coupled = torch.einsum("...ic,...jc,ijk->...kc", a, b, wigner_3j(l1, l2, l3))
                strength = bracket_coefficient(l1, l2, l3) * math.prod(gradient_scale(l) for l in (l1, l2, l3))
                out[..., l3**2 : (l3 + 1) ** 2, :] += strength * coupled
    return out


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(("l1", "l2", "l3"), [*DEGREES, (5, 6, 7)])
def test_brackets_on_the_grid_hold_the_odd_couplings(l1, l2, l3, algorithm, generator):
    x, y = coefficients(generator, l1), coefficients(generator, l2)
    grid = sphere_grid((l1, l2), l3, l1 + l2 + l3, algorithm)
    (a1, a2), (b1, b2) = grid.gradient(x).unbind(-3), grid.gradient(y).unbind(-3)
    bracket = grid.analysis_of_bracket(a1 * b2 - a2 * b1)
    torch.testing.assert_close(bracket, bracket_by_couplings(x, y, l3), rtol=0, atol=1e-12)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_values_and_gradients_in_one_go_are_those_one_by_one(algorithm, generator):
    grid, x = sphere_grid((3, 4), 3, 10, algorithm), coefficients(generator, 3)
    together = grid.synthesis_and_gradient(x)
    torch.testing.assert_close(together[..., 0, :, :], grid.synthesis(x))
    torch.testing.assert_close(together[..., 1:, :, :], grid.gradient(x))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_fewer_degrees_are_synthesised_as_if_the_rest_were_zero(algorithm, generator):
    grid = sphere_grid((1, 3), 3, 7, algorithm)
    x = coefficients(generator, 1)
    padded = torch.cat([x, x.new_zeros(3, 12, 2)], dim=-2)
    torch.testing.assert_close(grid.synthesis(x), grid.synthesis(padded))
    torch.testing.assert_close(grid.gradient(x), grid.gradient(padded))


def test_derivatives_of_a_product_are_right_to_second_order(generator):
    grid = sphere_grid((1, 1), 1, 3)
    inputs = [coefficients(generator, 1, channels=1)[:1].requires_grad_() for _ in range(2)]

    def product(x, y):
        return grid.analysis(grid.synthesis(x) * grid.synthesis(y))

    assert torch.autograd.gradcheck(product, inputs)
    assert torch.autograd.gradgradcheck(product, inputs)


def test_single_precision_follows_the_input_and_spoils_no_digits(generator):
    grid = nn.Sequential(sphere_grid((3,), 3, 6)).float().double()[0]
    x = coefficients(generator, 3)
    assert grid.synthesis(x.float()).dtype == torch.float32
    torch.testing.assert_close(grid.analysis(grid.synthesis(x.float())), x.float(), rtol=0, atol=1e-5)
    torch.testing.assert_close(grid.analysis(grid.synthesis(x)), x, rtol=0, atol=1e-13)


def test_one_function_and_an_empty_batch_are_inputs_too():
    grid = sphere_grid((2,), 2, 4)
    assert grid.analysis(grid.synthesis(torch.ones(9, 1))).shape == (9, 1)
    assert grid.analysis(grid.synthesis(torch.ones(0, 9, 4))).shape == (0, 9, 4)


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="= 6, got 5"):
        sphere_grid((2, 2), 2, 5)
    with pytest.raises(ValueError, match="lmaxes_in"):
        sphere_grid((), 2, 5)
    with pytest.raises(ValueError, match="algorithm must be one of"):
        sphere_grid((2, 2), 2, 6, "fft")
    with pytest.raises(ValueError, match="'gauss'"):
        sphere_grid((2, 2), 2, 6, "gauss")
    with pytest.raises(ValueError, match="gauss_legendre"):
        lebedev_grid(132)
    with pytest.raises(ValueError, match="got -1"):
        gauss_legendre_grid(-1)
    grid = sphere_grid((2, 2), 2, 6)
    for rows in (8, 16, 0):
        with pytest.raises(ValueError, match="l <= 2"):
            grid.synthesis(torch.zeros(4, rows, 3))
    with pytest.raises(ValueError, match=f"{grid.points}, channels"):
        grid.analysis(torch.zeros(4, 9, 3))


def test_above_the_largest_lebedev_rule_auto_takes_gauss_legendre():
    assert sphere_grid((0,), 0, 132).points == 67 * 133
