"""Normalisation and tables against their plain forms."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from equimol.nn.cubic_table import cubic_table, cubic_weights, look_up
from equimol.nn.rms_norm import RMSNorm


def test_rms_norm_is_that_of_torch(random):
    plain, ours = torch.nn.RMSNorm(5).double(), RMSNorm(5).double()
    plain.weight.data = random(5)
    ours.load_state_dict(plain.state_dict())
    x = random(4, 5).requires_grad_()
    torch.testing.assert_close(ours(x), plain(x))
    assert gradcheck(ours, x) and gradgradcheck(ours, x)
    assert torch.isfinite(ours(torch.zeros(2, 5, dtype=torch.float64))).all()


@pytest.mark.parametrize("knots", [4, 33])
def test_a_table_gives_cubics_exactly_and_its_slope_is_that_of_its_value(random, knots):
    """Also at its ends and in the pieces next to them."""
    step = 0.3
    x = torch.cat([torch.rand(20, dtype=torch.float64) * step * (knots - 1), torch.tensor([0.0, step * (knots - 1)]).double()])
    x.requires_grad_()

    def cubic(x):
        return torch.stack([x**3 - x, 2 - x**2], 1)

    table = cubic_table(cubic(step * torch.arange(knots, dtype=torch.float64)))
    found = look_up(table, cubic_weights(x, step, knots, torch.float64))
    torch.testing.assert_close(found, cubic(x))
    for column, slope in enumerate((3 * x**2 - 1, -2 * x)):
        (gradient,) = torch.autograd.grad(found[:, column].sum(), x, retain_graph=True)
        torch.testing.assert_close(gradient, slope)
