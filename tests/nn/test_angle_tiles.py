"""Tiles of angles for inference against the plain form."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from equimol.nn.angle_tiles import angle_tiles, lean_angle_tiles
from equimol.nn.silut import Tail


@pytest.mark.parametrize("messages", [0, 3, 5])
@pytest.mark.parametrize("threshold", [0.7, float("inf")])
def test_the_lean_form_is_the_plain_one_with_its_derivatives(random, messages, threshold):
    """Below 2.4 the tail is the published one."""
    arguments = [random(2, 3, 3, 4), random(2, 3, 5), random(2, 3, 5), random(5, 4), random(2, 3, 1)]
    arguments = [x.requires_grad_() for x in arguments]

    def lean(*tensors):
        return lean_angle_tiles(*tensors, messages, Tail(threshold, smooth=False))

    for mine, plain in zip(lean(*arguments), angle_tiles(*arguments, messages, Tail(threshold, smooth=False)), strict=True):
        torch.testing.assert_close(mine, plain, rtol=0, atol=0)
    assert gradcheck(lean, arguments) and gradgradcheck(lean, arguments)
