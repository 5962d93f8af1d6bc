"""The activation of DPA3 against its definition."""

import math

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from equimol.ops.silut import Tail, silut


@pytest.mark.parametrize("smooth", [True, False])
@pytest.mark.parametrize("threshold", [3.0, 10.0])
def test_it_is_silu_up_to_the_threshold_and_bounded_beyond(threshold, smooth):
    x = torch.linspace(-8, 40, 97, dtype=torch.float64)
    value = silut(x, Tail(threshold, smooth))
    below = x <= threshold
    torch.testing.assert_close(value[below], torch.nn.functional.silu(x[below]))
    assert (value.diff()[x[1:] > 0] >= 0).all()
    assert silut(torch.tensor([1e9], dtype=torch.float64), Tail(threshold, smooth)) < (4e3 if smooth else 12)
    if not smooth:  # tanh(a (x - t)) + b
        s = 1 / (1 + math.exp(-threshold))
        slope, start = s * (1 + threshold * (1 - s)), threshold * s
        torch.testing.assert_close(value[~below], torch.tanh(slope * (x[~below] - threshold)) + start)


def test_the_order_in_memory_does_not_matter():
    x = torch.linspace(-3, 9, 12, dtype=torch.float64).reshape(3, 4)
    torch.testing.assert_close(silut(x.T, Tail(3.0, True)), silut(x, Tail(3.0, True)).T, rtol=0, atol=0)


@pytest.mark.parametrize("smooth", [True, False])
def test_its_derivatives_are_derivatives(smooth):
    x = torch.tensor([-3.0, 0.3, 2.9, 3.2, 5.0], dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x: silut(x, Tail(3.0, smooth)), x) and gradgradcheck(lambda x: silut(x, Tail(3.0, smooth)), x)

    def slope(x):
        return torch.autograd.grad(silut(x, Tail(3.0, smooth)).sum(), x, create_graph=True)[0]

    assert gradgradcheck(slope, x)


@pytest.mark.parametrize(("smooth", "jump"), [(True, 0.0), (False, 0.0323)])
def test_the_smooth_form_has_two_continuous_derivatives(smooth, jump):
    x = torch.tensor([3.0 - 1e-9, 3.0 + 1e-9], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(silut(x, Tail(3.0, smooth)).sum(), x, create_graph=True)
    (bend,) = torch.autograd.grad(slope.sum(), x)
    assert slope[0].item() == pytest.approx(slope[1].item(), abs=1e-8)
    assert bend.diff().abs().item() == pytest.approx(jump, abs=1e-4)
