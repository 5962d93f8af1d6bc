"""SiLU with a bounded tail: the activation of DPA3."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import silu

from equimol.ops.function import Function


def silut(x: Float[Tensor, "..."], threshold: float, smooth: bool) -> Float[Tensor, "..."]:
    """x sigmoid(x) below the threshold t, bounded beyond; plain SiLU for an infinite t.

    As published (arXiv:2506.01686) tanh(a (x - t)) + silu(t) with the slope a at t: the second derivative jumps there. ``smooth``:
    silu(t) + a (1 - exp(-k (x - t))) / k, whose second derivative does not; t must be above 2.4, where SiLU bends down.
    """
    return silu(x) if math.isinf(threshold) else _SiLUT.apply(x, threshold, smooth, 0)


def _silu_derivative(x: Tensor, order: int) -> Tensor:
    if order == 0:
        return silu(x)
    s = torch.sigmoid(x)
    if order == 1:
        return s * (1 + x * (1 - s))
    if order == 2:
        return s * (1 - s) * (2 + x * (1 - 2 * s))
    return s * (1 - s) * (3 * (1 - 2 * s) + x * (1 - 6 * s * (1 - s)))


class _SiLUT(Function):
    """A derivative of the activation, up to the third; the derivative of one is the next."""

    @staticmethod
    def forward(x, threshold, smooth, order):
        low = _silu_derivative(x, order)
        value, slope, bend = (float(_silu_derivative(torch.tensor(threshold, dtype=torch.float64), n)) for n in range(3))
        beyond = (x - threshold).clamp_(min=0)
        if smooth:
            rate = -bend / slope
            decay = torch.exp(-rate * beyond)
            high = value + slope * (1 - decay) / rate if order == 0 else slope * (-rate) ** (order - 1) * decay
        else:
            t = torch.tanh(slope * beyond)
            u = 1 - t * t
            high = (value + t, slope * u, -2 * slope**2 * t * u, slope**3 * u * (6 * t * t - 2))[order]
        return torch.where(x >= threshold, high, low)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, ctx.threshold, ctx.smooth, ctx.order = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx, gradient):
        if ctx.order == 3:
            raise NotImplementedError("the activation has three derivatives; a fourth is not written")
        return gradient * _SiLUT.apply(ctx.saved_tensors[0], ctx.threshold, ctx.smooth, ctx.order + 1), None, None, None
