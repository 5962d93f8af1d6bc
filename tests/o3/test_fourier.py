"""Fourier series of spherical functions: exact coefficients, exact integrals, and the same products as on the sphere."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from equimol.o3 import TorusGrid, fourier_coefficients, half_sphere_integral, sphere_grid, spherical_harmonics
from equimol.o3.fourier import sphere_integrals

DEGREES = [(1, 1, 1), (2, 2, 2), (2, 2, 4), (3, 2, 3), (3, 3, 6), (4, 4, 4), (4, 0, 0), (0, 3, 1), (2, 1, 5), (5, 0, 4)]


def coefficients(generator, lmax, channels=2):
    return torch.randn(3, (lmax + 1) ** 2, channels, generator=generator, dtype=torch.float64)


def degrees_and_orders(lmax):
    return [(l, m) for l in range(lmax + 1) for m in range(-l, l + 1)]


@pytest.mark.parametrize("lmax", [0, 1, 3, 8])
def test_the_series_sums_to_the_harmonics(lmax, generator):
    b, a = math.pi * torch.rand(2, 15, generator=generator, dtype=torch.float64) * torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    points = torch.stack([b.sin() * a.sin(), b.cos(), b.sin() * a.cos()], dim=-1)
    frequencies = torch.arange(-lmax, lmax + 1, dtype=torch.float64)
    in_b, in_a = (torch.exp(1j * angle[:, None] * frequencies) for angle in (b, a))
    series = torch.einsum("huv,pu,pv->ph", fourier_coefficients(lmax), in_b, in_a)
    torch.testing.assert_close(series.real, spherical_harmonics(points, lmax, "integral"), rtol=0, atol=1e-13)
    assert series.imag.abs().max() < 1e-13


@pytest.mark.parametrize(("lmax", "all_v", "half"), [(2, 34, 20), (3, 86, 48), (4, 163, 89), (6, 452, 240), (8, 949, 497)])
def test_the_series_are_sparse(lmax, all_v, half):
    y = fourier_coefficients(lmax)
    assert [int(y.count_nonzero()), int(y[:, :, lmax:].count_nonzero())] == [all_v, half]


def test_only_frequencies_of_the_right_order_and_parity_occur():
    lmax = 5
    y = fourier_coefficients(lmax)
    for h, (l, m) in enumerate(degrees_and_orders(lmax)):
        for u, v in (y[h].nonzero() - lmax).tolist():
            assert abs(v) == abs(m) and abs(u) <= l and (u - l) % 2 == 0
    assert ((y.real == 0) | (y.imag == 0)).all()


@pytest.mark.parametrize("lmax", [2, 5])
def test_a_quarter_of_the_frequencies_holds_the_rest(lmax):
    y = fourier_coefficients(lmax)
    signs = torch.tensor([(-1.0) ** v for v in range(-lmax, lmax + 1)], dtype=torch.float64)
    torch.testing.assert_close(y.flip(1), y * signs, rtol=0, atol=1e-14)  # F_{-u,v} = (-1)^v F_{u,v}
    torch.testing.assert_close(y.flip(1, 2), y.conj().resolve_conj(), rtol=0, atol=1e-14)  # F_{-u,-v} = conj F_{u,v}


@pytest.mark.parametrize("k", range(-7, 8))
def test_the_half_sphere_integral_is_right(k):
    nodes, weights = np.polynomial.legendre.leggauss(40)
    b = math.pi / 2 * (nodes + 1)
    assert half_sphere_integral(k) == pytest.approx(math.pi / 2 * (weights * np.exp(1j * k * b) * np.sin(b)).sum(), abs=1e-13)


@pytest.mark.parametrize(("lmax", "full", "capped"), [(2, 353, 117), (4, 2209, 567)])
def test_the_table_of_integrals_is_sparse(lmax, full, capped):
    for lmax_out, count in ((2 * lmax, full), (lmax, capped)):
        table = sphere_integrals(lmax_out, 2 * lmax)
        assert int((table.abs() > 1e-12).sum()) == count


def test_the_table_of_integrals_projects_series_on_harmonics(generator):
    lmax = 4
    x = coefficients(generator, lmax)
    series = torch.einsum("huv,nhc->nuvc", fourier_coefficients(lmax), x.to(torch.complex128))
    back = torch.einsum("huv,nuvc->nhc", sphere_integrals(lmax, lmax), series)
    torch.testing.assert_close(back.real, x, rtol=0, atol=1e-13)
    assert back.imag.abs().max() < 1e-13


@pytest.mark.parametrize(("l1", "l2", "l3"), DEGREES)
def test_products_on_the_torus_are_products_on_the_sphere(l1, l2, l3, generator):
    x, y = coefficients(generator, l1), coefficients(generator, l2)
    sphere, torus = (kind((l1, l2), l3, l1 + l2 + l3) for kind in (sphere_grid, TorusGrid))
    results = [grid.analysis(grid.synthesis(x) * grid.synthesis(y)) for grid in (sphere, torus)]
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=1e-12)


def test_a_product_on_the_torus_is_a_convolution_of_series(generator):
    l1, l2 = 2, 1
    x, y = (coefficients(generator, l, channels=1)[0, :, 0] for l in (l1, l2))
    f, g = (torch.einsum("huv,h->uv", fourier_coefficients(l), c.to(torch.complex128)) for l, c in ((l1, x), (l2, y)))
    convolved = torch.zeros(7, 7, dtype=torch.complex128)
    for u in range(2 * l2 + 1):
        for v in range(2 * l2 + 1):
            convolved[u : u + 5, v : v + 5] += g[u, v] * f
    expected = torch.einsum("huv,uv->h", sphere_integrals(3, 3), convolved).real
    torus = TorusGrid((l1, l2), 3, 6)
    product = torus.analysis(torus.synthesis(x[:, None]) * torus.synthesis(y[:, None]))
    torch.testing.assert_close(product[:, 0], expected, rtol=0, atol=1e-13)


def test_a_triple_product_on_the_torus_is_the_one_on_the_sphere(generator):
    x = coefficients(generator, 2)
    cubes = [grid.analysis(grid.synthesis(x) ** 3) for grid in (kind((2, 2, 2), 1, 7) for kind in (sphere_grid, TorusGrid))]
    torch.testing.assert_close(cubes[1], cubes[0], rtol=0, atol=1e-12)


def test_values_on_the_torus_are_values_of_the_function(generator):
    x = coefficients(generator, 3)
    torus = TorusGrid((3, 3), 3, 9)
    b = 2 * math.pi * torch.arange(torus.rows, dtype=torch.float64)[:, None] / (2 * torus.rows - 1)
    a = 2 * math.pi * torch.arange(torus.columns, dtype=torch.float64)[None, :] / torus.columns
    points = torch.stack([b.sin() * a.sin(), b.cos().expand(torus.rows, torus.columns), b.sin() * a.cos()], dim=-1).flatten(0, 1)
    assert torus.points == len(points) == 7 * 10
    torch.testing.assert_close(torus.synthesis(x), spherical_harmonics(points, 3, "integral") @ x, rtol=0, atol=1e-13)


def test_analysis_undoes_synthesis(generator):
    x = coefficients(generator, 4)
    torus = TorusGrid((4,), 4, 8)
    torch.testing.assert_close(torus.analysis(torus.synthesis(x)), x, rtol=0, atol=1e-13)


def test_fewer_degrees_are_synthesised_as_if_the_rest_were_zero(generator):
    torus = TorusGrid((1, 3), 3, 7)
    x = coefficients(generator, 1)
    padded = torch.cat([x, x.new_zeros(3, 12, 2)], dim=-2)
    torch.testing.assert_close(torus.synthesis(x), torus.synthesis(padded), rtol=0, atol=1e-14)


def test_derivatives_of_a_product_are_right_to_second_order(generator):
    torus = TorusGrid((1, 1), 1, 3)
    inputs = [coefficients(generator, 1, channels=1)[:1].requires_grad_() for _ in range(2)]

    def product(x, y):
        return torus.analysis(torus.synthesis(x) * torus.synthesis(y))

    assert torch.autograd.gradcheck(product, inputs)
    assert torch.autograd.gradgradcheck(product, inputs)


def test_single_precision_follows_the_input_and_spoils_no_digits(generator):
    torus = nn.Sequential(TorusGrid((3,), 3, 6)).float().double()[0]
    x = coefficients(generator, 3)
    assert torus.synthesis(x.float()).dtype == torch.float32
    torch.testing.assert_close(torus.analysis(torus.synthesis(x.float())), x.float(), rtol=0, atol=1e-5)
    torch.testing.assert_close(torus.analysis(torus.synthesis(x)), x, rtol=0, atol=1e-13)


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="= 6, got 5"):
        TorusGrid((2, 2), 2, 5)
    torus = TorusGrid((2, 2), 2, 6)
    with pytest.raises(ValueError, match="l <= 2"):
        torus.synthesis(torch.zeros(4, 16, 3))
    with pytest.raises(ValueError, match=f"{torus.points}, channels"):
        torus.analysis(torch.zeros(4, 9, 3))
