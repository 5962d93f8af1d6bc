"""Tiles of angles by blocks, against the plain form."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from equimol.nn import angle_tiles as module
from equimol.nn.angle_tiles import angle_tiles, plain_angle_tiles
from equimol.nn.silut import Tail


@pytest.fixture(params=[0, 3, 5])
def messages(request) -> int:
    return request.param


@pytest.fixture
def arguments(random) -> list[torch.Tensor]:
    shapes = (3, 2, 2, 4), (3, 2, 5), (3, 2, 5), (5, 4), (3, 2, 1)
    return [random(*shape).requires_grad_() for shape in shapes]


@pytest.fixture(params=[1, 2**16], ids=["a block for each", "one block"])
def block(request, monkeypatch) -> None:
    monkeypatch.setitem(module.BLOCK, "cpu", request.param)


@pytest.mark.parametrize("threshold", [0.7, float("inf")])
@pytest.mark.usefixtures("block")
def test_tiles_are_the_plain_form_with_its_derivatives(arguments, messages, threshold):
    """Below 2.4 the tail is the published one."""

    def blocked(*tensors):
        return angle_tiles(*tensors, messages, Tail(threshold, smooth=False))

    for mine, plain in zip(blocked(*arguments), plain_angle_tiles(*arguments, messages, Tail(threshold, smooth=False)), strict=True):
        torch.testing.assert_close(mine, plain, rtol=0, atol=1e-14)
    assert gradcheck(blocked, arguments) and gradgradcheck(blocked, arguments, fast_mode=True)


@pytest.mark.usefixtures("block")
def test_second_derivatives_as_training_takes_them(arguments, messages, random):
    """The slope of features and weights, then gradients of everything: written out, beside autograd's own."""
    places = (0, 1, 2, 4)
    directions = [random(*arguments[n].shape) for n in places]

    def second(function):
        results = function(*arguments, messages, Tail(2.5, smooth=True))
        outer = [torch.linspace(-1, 1, x.numel(), dtype=x.dtype).reshape(x.shape).requires_grad_() for x in results]
        slopes = torch.autograd.grad(results, [arguments[n] for n in places], outer, create_graph=True)
        return torch.autograd.grad(slopes, [*arguments, *outer], directions, materialize_grads=True)

    for mine, plain in zip(second(angle_tiles), second(plain_angle_tiles), strict=True):
        torch.testing.assert_close(mine, plain, rtol=0, atol=1e-12)


def test_third_derivatives(arguments):
    def blocked(*tensors):
        summed, rest = angle_tiles(*tensors, *arguments[3:], 3, Tail(2.5, smooth=True))
        (slope,) = torch.autograd.grad((summed.sin().sum(), rest.sin().sum()), tensors[0], create_graph=True)
        return slope

    assert gradgradcheck(blocked, arguments[:3], fast_mode=True)
