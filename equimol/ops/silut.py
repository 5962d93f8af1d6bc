"""SiLU with a bounded tail: the activation of DPA3."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.nn.functional import silu

from equimol.ops.function import Function


def silut(x: Float[Tensor, "..."], tail: Tail) -> Float[Tensor, "..."]:
    """x sigmoid(x) below the threshold of the tail, bounded beyond."""
    if math.isinf(tail.threshold):
        return silu(x)
    if (
        torch.compiler.is_compiling() or get_proxy_mode() is not None
    ):  # while being traced nothing may depend on numbers, and the compiler joins plain operations
        return torch.where(x < tail.threshold, silu(x), tail.derivative(x.clamp(min=tail.threshold), 0))
    return _SiLUT.apply(x, tail)[0]


class Tail(NamedTuple):
    """What stands for SiLU beyond a threshold t; an infinite one leaves SiLU as it is.

    As published (arXiv:2506.01686) tanh(a (x - t)) + silu(t) with the slope a at t: the second derivative jumps there. ``smooth``:
    silu(t) + a (1 - exp(-k (x - t))) / k, whose second derivative does not; t must be above 2.4, where SiLU bends down.
    """

    threshold: float
    smooth: bool

    def slope(self, gradient: Tensor, x: Tensor) -> Tensor:
        """The gradient times the first derivative at x, in one pass. Not differentiable."""
        return self.replace(torch.ops.aten.silu_backward(gradient, x), x, self.beyond(x), 1, gradient)

    def expansion(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The value and the first and second derivatives at x. Not differentiable."""
        sigmoid = torch.sigmoid(x)
        value = x * sigmoid
        rest = 1 - sigmoid
        first = torch.addcmul(sigmoid, value, rest)
        second = rest.mul_(torch.add(first, sigmoid).addcmul_(value, sigmoid, value=-1))
        beyond = self.beyond(x)
        return tuple(self.replace(found, x, beyond, order) for order, found in enumerate((value, first, second)))

    def beyond(self, x: Tensor) -> Tensor | None:
        """Which of the numbers are beyond, by their places, or None where none is. Few are: the others cost a comparison."""
        if math.isinf(self.threshold) or not x.numel() or float(x.amax()) < self.threshold:
            return None
        return torch.nonzero(x.reshape(-1) >= self.threshold)[:, 0]

    def replace(self, values: Tensor, x: Tensor, beyond: Tensor | None, order: int, factor: Tensor | None = None) -> Tensor:
        """``values`` with the tail's derivative, times the factor, where x is beyond."""
        if beyond is None:
            return values
        tail, values = self.derivative(x.reshape(-1)[beyond], order), values.contiguous()
        values.view(-1)[beyond] = tail if factor is None else tail * factor.reshape(-1)[beyond]
        return values

    @property
    def numbers(self) -> tuple[float, float, float, float, bool]:
        """Threshold; value and slope there; the rate at which a smooth tail's slope falls; whether it is smooth."""
        if math.isinf(self.threshold):
            return self.threshold, 0.0, 1.0, 1.0, True
        value, slope, bend = (float(_silu_derivative(torch.tensor(self.threshold, dtype=torch.float64), n)) for n in range(3))
        return self.threshold, value, slope, -bend / slope if self.smooth else 1.0, self.smooth

    def derivative(self, x: Tensor, order: int) -> Tensor:
        _, value, slope, rate, _ = self.numbers
        beyond = x - self.threshold
        if self.smooth:
            decay = torch.exp(-rate * beyond)
            return value + slope * (1 - decay) / rate if order == 0 else slope * (-rate) ** (order - 1) * decay
        t = torch.tanh(slope * beyond)
        u = 1 - t * t
        return (value + t, slope * u, -2 * slope**2 * t * u, slope**3 * u * (6 * t * t - 2))[order]


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
    @staticmethod
    def forward(x, tail):
        beyond = tail.beyond(x)
        return tail.replace(silu(x), x, beyond, 0), beyond

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, ctx.tail = inputs
        ctx.beyond = output[1]
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx, gradient, _):
        return _Slope.apply(gradient, ctx.saved_tensors[0], ctx.beyond, ctx.tail), None


class _Slope(Function):
    """A gradient times the first derivative, in one pass."""

    @staticmethod
    def forward(gradient, x, beyond, tail):
        gradient = gradient.contiguous()
        return tail.replace(torch.ops.aten.silu_backward(gradient, x), x, beyond, 1, gradient)

    @staticmethod
    def setup_context(ctx, inputs, output):
        gradient, x, ctx.beyond, ctx.tail = inputs
        ctx.save_for_backward(gradient, x)

    @staticmethod
    def backward(ctx, outer):
        gradient, x = ctx.saved_tensors
        bend = _Bend.apply(x, ctx.beyond, ctx.tail)
        return _Slope.apply(outer, x, ctx.beyond, ctx.tail), outer * gradient * bend, None, None


class _Bend(Function):
    """The second derivative. The third, which hardly anybody needs, is a plain expression."""

    @staticmethod
    def forward(x, beyond, tail):
        return tail.replace(_silu_derivative(x, 2), x, beyond, 2)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, _, ctx.tail = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx, gradient):
        (x,), tail = ctx.saved_tensors, ctx.tail
        third = torch.where(x >= tail.threshold, tail.derivative(x.clamp(min=tail.threshold), 3), _silu_derivative(x, 3))
        return gradient * third, None, None
