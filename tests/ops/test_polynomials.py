"""The compiled polynomials: their numbers, and all derivatives, are those of the plain form."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from equimol.ops import plain_polynomials, polynomials

TERMS = ((0, (0,)), (0, (1, 1)), (2, (0, 1)), (0, (0, 0, 2)), (2, (1, 2, 2)), (0, (1, 2, 2)), (2, (2, 2, 2)), (3, (0, 1, 2)))  # none of 1


def inputs(random, channels=5, atoms=7, dtype=torch.float64):
    x, coefficients = 0.4 * random(atoms, 3, channels).to(dtype), random(4, len(TERMS), channels).to(dtype)
    return x.requires_grad_(), coefficients, torch.arange(atoms) * 3 % 4


@pytest.mark.parametrize(("dtype", "precision"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
@pytest.mark.parametrize(("channels", "atoms", "threads"), [(1, 7, 1), (16, 7, 3), (21, 1, 1), (5, 0, 2)])
def test_compiled_and_plain_are_the_same(random, monkeypatch, dtype, precision, channels, atoms, threads):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setenv("EQUIMOL_KERNELS", "require")
    x, coefficients, species = inputs(random, channels, atoms, dtype)
    coefficients.requires_grad_()
    found = []
    for function in (polynomials, plain_polynomials):
        value = function(TERMS, x, coefficients, species)
        slopes = torch.autograd.grad(value.sin().sum(), (x, coefficients), create_graph=True)
        found.append([value, *slopes, *torch.autograd.grad(sum(slope.sin().sum() for slope in slopes), (x, coefficients))])
    assert found[0][0].shape == (atoms, 4, channels) and not found[0][0][:, 1].any()
    for mine, plain in zip(*found, strict=True):
        scale = float(plain.detach().abs().max()) if plain.numel() else 0.0
        torch.testing.assert_close(mine, plain, rtol=precision, atol=precision * scale)


@pytest.mark.parametrize("terms", [TERMS, ((0, (1,)), (1, (0,)))], ids=["all orders", "linear"])
def test_derivatives(random, terms):
    x, coefficients, species = inputs(random, channels=2, atoms=3)
    coefficients = coefficients[:, : len(terms)].contiguous().requires_grad_()

    def function(x, coefficients):
        return polynomials(terms, x, coefficients, species)

    assert gradcheck(function, (x, coefficients)) and gradgradcheck(function, (x, coefficients))


def test_third_derivatives(random):
    x, coefficients, species = inputs(random, channels=2, atoms=3)
    coefficients.requires_grad_()

    def slope(x, coefficients):
        return torch.autograd.grad(polynomials(TERMS, x, coefficients, species).sin().sum(), (x, coefficients), create_graph=True)

    assert gradgradcheck(slope, (x, coefficients))


def test_gaps_between_numbers_and_what_is_no_number(random):
    x, coefficients, species = inputs(random)
    value = polynomials(TERMS, x, coefficients, species)
    wide = torch.stack([x.detach(), x.detach()], -1)[..., 0]
    assert not wide.is_contiguous() and polynomials(TERMS, wide, coefficients, species).equal(value)
    wide[2, 1, 3] = torch.nan
    broken = polynomials(TERMS, wide, coefficients, species)
    assert broken[2, 0, 3].isnan() and int(broken.isnan().sum()) == 3  # in its atom, its channel, all polynomials that it is in


@pytest.mark.parametrize("bad", [-1, 4])
def test_what_is_not_there_is_refused(random, bad):
    x, coefficients, species = inputs(random)
    species[2] = bad
    with pytest.raises(ValueError, match=r"species must be in 0\.\.3, one for each of 7 atoms, got"):
        polynomials(TERMS, x, coefficients, species)
    with pytest.raises(ValueError, match=r"coefficients must be torch.float64 \[elements, 8, 5\], got torch.float32"):
        polynomials(TERMS, x, coefficients.float(), species)
