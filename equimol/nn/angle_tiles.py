"""Messages of angles to bonds, and updates of angles, for atoms with m neighbours each: tiles of m x m angles."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from equimol.nn.silut import Tail, silut
from equimol.ops.function import Function


def angle_tiles(
    angles: Float[Tensor, "atoms m m width"],
    first: Float[Tensor, "atoms m out"],
    second: Float[Tensor, "atoms m out"],
    weight: Float[Tensor, "out width"],
    envelope: Float[Tensor, "atoms m 1"],
    messages: int,
    tail: Tail,
) -> tuple[Float[Tensor, "atoms m messages"], Float[Tensor, "atoms m m rest"]]:
    """x_jk = act(weight a_jk + first_j + second_k): s_j times the sum over k of s_k x_jk, of the first ``messages`` numbers; and the rest.

    A linear layer of the concatenated features of an angle, its two bonds and its atom is such a sum of three.
    """
    x = silut((angles @ weight.T).add_(first.unsqueeze(2)).add_(second.unsqueeze(1)), tail)
    message, rest = x.split([messages, x.shape[-1] - messages], -1)
    return torch.matmul(envelope.mT.unsqueeze(1), message)[:, :, 0] * envelope, rest


def lean_angle_tiles(angles: Tensor, first: Tensor, second: Tensor, weight: Tensor, envelope: Tensor, messages: int, tail: Tail) -> tuple:
    """`angle_tiles` for inference: keeps its arguments alone, and computes x again for the derivative."""
    return _Tiles.apply(angles, first, second, weight, envelope, messages, tail)


class _Tiles(Function):
    @staticmethod
    def forward(angles, first, second, weight, envelope, messages, tail):
        return angle_tiles(angles, first, second, weight, envelope, messages, tail)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.messages, ctx.tail = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, of_sums, of_rest):
        arguments, messages, tail = ctx.saved_tensors, ctx.messages, ctx.tail
        if torch.is_grad_enabled():  # the derivative will be differentiated
            needed = [x for x, need in zip(arguments, ctx.needs_input_grad, strict=False) if need]
            results = angle_tiles(*arguments, messages, tail)
            found = iter(torch.autograd.grad(results, needed, (of_sums, of_rest), create_graph=True, allow_unused=True))
            return *(next(found) if need else None for need in ctx.needs_input_grad[:5]), None, None
        angles, first, second, weight, envelope = arguments
        x = (angles @ weight.T).add_(first.unsqueeze(2)).add_(second.unsqueeze(1))
        of_x = torch.empty_like(x)
        torch.mul((of_sums * envelope).unsqueeze(2), envelope.unsqueeze(1), out=of_x[..., :messages])
        of_x[..., messages:] = of_rest
        of_envelope = None
        if ctx.needs_input_grad[4]:
            pairs = torch.matmul(silut(x[..., :messages], tail), of_sums.unsqueeze(-1))[..., 0]
            of_envelope = torch.matmul(pairs, envelope) + torch.matmul(pairs.mT, envelope)
        of_x = tail.slope(of_x, x)
        of_weight = of_x.flatten(0, 2).T @ angles.flatten(0, 2) if ctx.needs_input_grad[3] else None
        return of_x @ weight, of_x.sum(2), of_x.sum(1), of_weight, of_envelope, None, None
