"""Recomputation gives the derivatives of what it recomputes, and keeps less."""

from weakref import WeakSet

import pytest
import torch
from torch import nn

from equimol.ops.recomputed import recomputed


class Part(nn.Module):
    """Takes and gives more than tensors, and leaves one argument unused."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.unused = nn.Linear(5, 5, dtype=torch.float64), nn.Linear(2, 2, dtype=torch.float64)

    def forward(self, x, others):
        y, factor, _ = others["y"], others["factor"], others["nothing"]
        return torch.tanh(self.mix(x)) * y * factor, [x.square() @ y.T, None]


@pytest.fixture
def given():
    generator = torch.Generator().manual_seed(3)
    x, y, nothing = (torch.randn(4, 5, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(3))
    return Part(), x, {"y": y, "factor": 3.0, "nothing": nothing, "index": torch.arange(3)}


def losses(part, call, x, others):
    a, (b, nothing) = call(x, others)
    assert nothing is None
    slope_x, slope_y = torch.autograd.grad((a.sin().sum() + b.square().sum()), (x, others["y"]), create_graph=True)
    loss = slope_x.square().sum() + slope_y.sin().sum() + a.sum()
    return torch.autograd.grad(loss, [x, others["y"], *part.mix.parameters()])


def test_first_and_second_derivatives(given):
    part, x, others = given
    for ours, plain in zip(losses(part, lambda *a: recomputed(part, *a), x, others), losses(part, part, x, others), strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-13, rtol=1e-13)


def test_a_third_derivative_is_refused(given):
    part, x, others = given
    a, _ = recomputed(part, x, others)
    (first,) = torch.autograd.grad(a.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        second.sum().backward()


class Kept:
    """A tensor that autograd holds on to."""

    def __init__(self, tensor) -> None:
        self.tensor = tensor


def test_nothing_between_arguments_and_results_is_kept():
    part = nn.Sequential(*(nn.Sequential(nn.Linear(32, 32), nn.Tanh()) for _ in range(12)))
    numbers = {}
    for name, call in (("plain", part), ("recomputed", lambda x: recomputed(part, x))):
        alive = WeakSet()

        def keep(tensor, alive=alive):
            kept = Kept(tensor)
            alive.add(kept)
            return kept

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept.tensor):
            x = torch.randn(1000, 32, requires_grad=True)
            slope = torch.autograd.grad(call(x).sum(), x, create_graph=True)
        numbers[name] = sum(kept.tensor.numel() for kept in alive)
        del slope
    assert numbers["recomputed"] < numbers["plain"] / 10
