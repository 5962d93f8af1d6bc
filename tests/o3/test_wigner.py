"""Wigner D matrices: they turn harmonics, form a group, and know no special direction."""

import math

import pytest
import torch

from equimol.o3 import layout_dim, parse_irreps, rotate, spherical_harmonics, split_blocks, wigner_d

DEGREES = [0, 1, 2, 3, 6]


def about_y(angle: float) -> torch.Tensor:
    c, s = math.cos(angle), math.sin(angle)
    return torch.tensor([[c, 0, s], [0, 1, 0], [-s, 0, c]], dtype=torch.float64)


@pytest.mark.parametrize("l", DEGREES)
@pytest.mark.parametrize("sign", [1, -1])
def test_harmonics_of_turned_vectors_are_turned_harmonics(l, sign, vectors, rotations):
    for r in sign * rotations:
        y, turned = (spherical_harmonics(v, l)[:, l * l :] for v in (vectors, vectors @ r.T))
        torch.testing.assert_close(y @ wigner_d(r, l).T, turned, rtol=0, atol=1e-12)


@pytest.mark.parametrize("l", DEGREES)
@pytest.mark.parametrize("parity", [1, -1])
@pytest.mark.parametrize("sign", [1, -1])
def test_matrices_are_those_of_e3nn(l, parity, sign, rotations, e3nn_o3):
    theirs = e3nn_o3.Irrep(l, parity).D_from_matrix(sign * rotations)
    # e3nn computes them in the default dtype, float32: this compares conventions, the tests around it the digits.
    torch.testing.assert_close(wigner_d(sign * rotations, l, parity), theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("l", DEGREES)
@pytest.mark.parametrize("parity", [1, -1])
def test_the_matrix_of_a_product_is_the_product_of_matrices(l, parity, rotations):
    for a, b in ((rotations[0], rotations[1]), (-rotations[0], rotations[1]), (-rotations[2], -rotations[3])):
        torch.testing.assert_close(wigner_d(a @ b, l, parity), wigner_d(a, l, parity) @ wigner_d(b, l, parity), rtol=0, atol=1e-12)


@pytest.mark.parametrize("l", DEGREES)
def test_matrices_are_orthogonal(l, rotations):
    d = wigner_d(rotations, l)
    torch.testing.assert_close(d @ d.mT, torch.eye(2 * l + 1, dtype=torch.float64).expand_as(d), rtol=0, atol=1e-13)


@pytest.mark.parametrize("l", DEGREES)
@pytest.mark.parametrize("parity", [1, -1])
def test_improper_rotations_add_the_parity(l, parity, rotations):
    torch.testing.assert_close(wigner_d(-rotations, l, parity), parity * wigner_d(rotations, l))
    natural = wigner_d(-rotations, l, (-1) ** l)
    torch.testing.assert_close(wigner_d(-rotations, l), natural)


@pytest.mark.parametrize("l", DEGREES)
def test_rotations_that_keep_or_flip_the_polar_axis_are_nothing_special(l, vectors):
    flip = torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64))
    for r in (about_y(0.0), about_y(1e-9), about_y(1.0), about_y(math.pi), flip, flip @ about_y(0.5)):
        turned = spherical_harmonics(vectors @ r.T, l)[:, l * l :]
        torch.testing.assert_close(spherical_harmonics(vectors, l)[:, l * l :] @ wigner_d(r, l).T, turned, rtol=0, atol=1e-12)
    torch.testing.assert_close(wigner_d(about_y(0.0), l), torch.eye(2 * l + 1, dtype=torch.float64), rtol=0, atol=1e-13)


def test_a_turn_about_the_polar_axis_mixes_m_with_minus_m_only():
    l, angle = 3, 0.4
    expected = torch.diag(torch.cos(angle * torch.arange(-l, l + 1, dtype=torch.float64)))
    expected += torch.diag(torch.sin(-angle * torch.arange(-l, l + 1, dtype=torch.float64))).flip(1)
    torch.testing.assert_close(wigner_d(about_y(angle), l), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("axis", ["identity", "generic"])
def test_derivatives_are_right_where_euler_angles_have_none(axis, rotations):
    start = torch.eye(3, dtype=torch.float64) if axis == "identity" else rotations[0]
    tilt = torch.zeros(3, dtype=torch.float64, requires_grad=True)

    def matrix(tilt):
        a, b, c = tilt
        zero = torch.zeros_like(a)
        generator = torch.stack([torch.stack([zero, -c, b]), torch.stack([c, zero, -a]), torch.stack([-b, a, zero])])
        return wigner_d(torch.linalg.matrix_exp(generator) @ start, 2)

    assert torch.autograd.gradcheck(matrix, tilt)
    assert torch.autograd.gradgradcheck(matrix, tilt)


@pytest.mark.parametrize("sign", [1, -1])
def test_rotating_a_feature_rotates_each_channel_of_each_block(sign, generator, rotations):
    layout = parse_irreps("2x0e+0o+3x1o+2x1e+2x2e+3o")
    x = torch.randn(4, 5, layout_dim(layout), generator=generator, dtype=torch.float64)
    r = sign * rotations[0]
    for block, before, after in zip(layout, split_blocks(x, layout), split_blocks(rotate(x, layout, r), layout), strict=True):
        for channel in range(block.channels):
            expected = before[..., channel] @ wigner_d(r, block.l, block.parity).T
            torch.testing.assert_close(after[..., channel], expected, rtol=0, atol=1e-13)


def test_each_feature_may_have_its_own_rotation(generator, rotations):
    layout = parse_irreps("2x0e+3x1o+2e")
    x = torch.randn(4, layout_dim(layout), generator=generator, dtype=torch.float64)
    one_by_one = torch.stack([rotate(row, layout, r) for row, r in zip(x, rotations, strict=True)])
    torch.testing.assert_close(rotate(x, layout, rotations), one_by_one)


def test_a_single_precision_feature_stays_so(rotations):
    assert rotate(torch.ones(3), parse_irreps("1o"), rotations[0]).dtype == torch.float32


def test_wrong_arguments_are_refused(rotations):
    with pytest.raises((ValueError, TypeError)):
        wigner_d(torch.eye(4), 1)
    with pytest.raises(ValueError, match="got 2"):
        wigner_d(rotations, 1, 2)
    with pytest.raises(ValueError, match="length 3, got shape"):
        rotate(torch.zeros(4), parse_irreps("1o"), rotations[0])
