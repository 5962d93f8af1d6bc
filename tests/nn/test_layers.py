"""Layers: variance, equivariance, zeros where they are promised."""

import pytest
import torch

from equimol.nn import BesselBasis, DegreeLinear, ElementLinear, ScalarMLP, polynomial_envelope
from equimol.o3 import layout_dim, parse_irreps
from equimol.testing import assert_equivariant


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_degree_linear_is_equivariant_and_keeps_variance():
    a, b = parse_irreps("64x0e+64x1o+64x2e"), parse_irreps("48x0e+80x1o")
    layer = DegreeLinear(a, b).double()
    assert_equivariant(layer, [a], b)
    assert float(layer(torch.randn(200, layout_dim(a), dtype=torch.float64)).detach().var()) == pytest.approx(1, abs=0.05)


def test_degree_linear_gives_zero_where_the_input_has_no_such_degree():
    layer = DegreeLinear(parse_irreps("4x0e"), parse_irreps("4x0e+2x1o"))
    assert bool((layer(torch.randn(3, 4))[:, 4:] == 0).all())


def test_degree_linear_refuses_a_degree_twice():
    with pytest.raises(ValueError, match="may appear once"):
        DegreeLinear(parse_irreps("4x0e+4x0e"), parse_irreps("4x0e"))


def test_element_linear_uses_the_matrix_of_each_element():
    layout = parse_irreps("4x0e+3x1o")
    layer = ElementLinear(layout, layout, 3)
    x, species = torch.randn(5, layout_dim(layout)), torch.tensor([0, 2, 1, 2, 0])
    single = DegreeLinear(layout, layout)
    for atom, z in enumerate(species):
        for target, source in zip(single.weights, layer.weights, strict=True):
            target.data = source[z]
        torch.testing.assert_close(layer(x, species)[atom], single(x[atom]))


def test_scalar_mlp_keeps_zero_and_variance():
    mlp = ScalarMLP(32, 256, 256, 64).double()
    assert bool((mlp(torch.zeros(2, 32, dtype=torch.float64)) == 0).all())
    assert float(mlp(torch.randn(2000, 32, dtype=torch.float64)).detach().var()) == pytest.approx(1, abs=0.2)
    z = torch.randn(1_000_000, dtype=torch.float64)
    assert float((torch.nn.functional.silu(z) * ScalarMLP.SILU_GAIN).square().mean()) == pytest.approx(1, abs=1e-2)


def test_envelope_ends_with_two_continuous_derivatives_and_stays_zero():
    x = torch.tensor([4.999999, 5.0, 5.5], dtype=torch.float64, requires_grad=True)
    u = polynomial_envelope(x, 5.0)
    (du,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    (ddu,) = torch.autograd.grad(du.sum(), x)
    u, du = u.detach(), du.detach()
    assert bool((u[1:] == 0).all()) and abs(float(u[0])) < 1e-14 and abs(float(du[0])) < 1e-10 and abs(float(ddu[0])) < 1e-4
    assert float(polynomial_envelope(torch.zeros(1), 5.0)) == 1.0


def test_bessel_basis_is_its_formula():
    r = torch.linspace(0.5, 4.9, 20, dtype=torch.float64)
    expected = torch.stack([(2 / 5.0) ** 0.5 * torch.sin(n * torch.pi * r / 5.0) / r for n in range(1, 9)], -1)
    torch.testing.assert_close(BesselBasis(5.0)(r), expected * polynomial_envelope(r, 5.0)[:, None])
