"""Messages of angles to bonds, and updates of angles, for atoms with m neighbours each: tiles of m x m angles, by blocks."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from equimol.nn.silut import Tail, silut
from equimol.ops.function import Function

BLOCK = {"cpu": 2**18, "cuda": 2**26}  # numbers in one array of a block: a few of them fit into the cache of a core, or into memory


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

    A linear layer of the concatenated features of an angle, its two bonds and its atom is such a sum of three. Keeps its arguments
    alone: x is computed again for the derivatives, of which the first and the second are written out.
    """
    if get_proxy_mode() is not None:  # a program is traced from plain operations
        return plain_angle_tiles(angles, first, second, weight, envelope, messages, tail)
    summed, rest, _ = _Tiles.apply(angles, first, second, weight, envelope, messages, tail)
    return summed, rest


def plain_angle_tiles(
    angles: Tensor, first: Tensor, second: Tensor, weight: Tensor, envelope: Tensor, messages: int, tail: Tail
) -> tuple[Tensor, Tensor]:
    """`angle_tiles` as it reads: the reference."""
    x = silut(angles @ weight.T + first.unsqueeze(2) + second.unsqueeze(1), tail)
    message, rest = x.split([messages, x.shape[-1] - messages], -1)
    return _sum(envelope, message) * envelope, rest


class _Tiles(Function):
    @staticmethod
    def forward(angles, first, second, weight, envelope, messages, tail):
        n, m, _, _ = angles.shape
        summed, rest, inside = angles.new_empty(n, m, messages), angles.new_empty(n, m, m, len(weight) - messages), True
        for part in _blocks(angles, weight):
            x = _linear(angles[part], first[part], second[part], weight)
            beyond = tail.beyond(x)
            inside = inside and beyond is None
            y = tail.replace(torch.nn.functional.silu(x), x, beyond, 0)
            summed[part] = _sum(envelope[part], y[..., :messages]).mul_(envelope[part])
            rest[part] = y[..., messages:]
        return summed, rest, inside

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.messages, tail = inputs
        ctx.tail = Tail(math.inf, tail.smooth) if output[2] else tail  # not looked for again
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, of_summed, of_rest, _):
        return *_Slope.apply(*ctx.saved_tensors, of_summed, of_rest, ctx.needs_input_grad[:5], ctx.messages, ctx.tail), None, None


class _Slope(Function):
    """The derivatives of `angle_tiles` with respect to its five tensors, those that are wanted, times the gradients of its results."""

    @staticmethod
    def forward(angles, first, second, weight, envelope, of_summed, of_rest, wanted, messages, tail):
        found = [torch.empty_like(x) if want else None for x, want in zip((angles, first, second, weight, envelope), wanted, strict=True)]
        out, width = weight.shape
        if wanted[3]:
            found[3].zero_()
        for part in _blocks(angles, weight):
            s, of_sum = envelope[part], of_summed[part]
            x = _linear(angles[part], first[part], second[part], weight)
            slope = tail.slope(_gradient(s, of_sum, of_rest[part]), x)
            if wanted[0]:
                torch.matmul(slope.view(-1, out), weight, out=found[0][part].view(-1, width))
            if wanted[1]:
                torch.sum(slope, 2, out=found[1][part])
            if wanted[2]:
                torch.sum(slope, 1, out=found[2][part])
            if wanted[3]:
                found[3].addmm_(slope.view(-1, out).T, angles[part].reshape(-1, width))
            if wanted[4]:
                product = _dot(silut(x[..., :messages], tail), of_sum)
                found[4][part] = (product + product.mT) @ s
        return tuple(found)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.wanted, ctx.messages, ctx.tail = inputs
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, *directions):
        arguments = ctx.saved_tensors
        if torch.is_grad_enabled() or directions[3] is not None:
            found = _plain_bend(ctx, arguments, directions)
        else:
            found = _bend(arguments, directions, ctx.messages, ctx.tail)
        return *(x if need else None for x, need in zip(found, ctx.needs_input_grad, strict=False)), None, None, None


def _bend(arguments: tuple[Tensor, ...], directions: tuple[Tensor | None, ...], messages: int, tail: Tail) -> list[Tensor]:
    """The derivatives of `_Slope` with respect to its seven tensors, in the directions given for its results but that of the weight."""
    angles, first, second, weight, envelope, of_summed, of_rest = arguments
    others = angles, first, second, envelope
    to_others = [torch.zeros_like(x) if d is None else d for x, d in zip(others, (*directions[:3], directions[4]), strict=True)]
    found = [torch.empty_like(x) for x in arguments]
    of_angles, of_first, of_second, of_weight, of_envelope, of_of_summed, of_of_rest = found
    of_weight.zero_()
    out, width = weight.shape
    for part in _blocks(angles, weight):
        to_angles, to_first, to_second, to_s = (x[part] for x in to_others)
        a, s, of_sum = angles[part], envelope[part], of_summed[part]
        x = _linear(a, first[part], second[part], weight)
        q = _linear(to_angles, to_first, to_second, weight)  # the direction of x
        values, slope, bend = tail.expansion(x)
        y, gradient = values[..., :messages], _gradient(s, of_sum, of_rest[part])
        through_x = bend.mul_(q).mul_(gradient)
        turned = q.mul_(slope)  # the derivative with respect to the gradient
        t = torch.baddbmm(to_s @ s.mT, s, to_s.mT)
        through_x[..., :messages] += (slope[..., :messages] * of_sum.unsqueeze(2)).mul_(t.unsqueeze(-1))
        flat, direct = through_x.view(-1, out), gradient.mul_(slope).view(-1, out)
        torch.matmul(flat, weight, out=of_angles[part].view(-1, width))
        torch.sum(through_x, 2, out=of_first[part])
        torch.sum(through_x, 1, out=of_second[part])
        of_weight.addmm_(flat.T, a.reshape(-1, width)).addmm_(direct.T, to_angles.reshape(-1, width))
        product, turn = _dot(y, of_sum), _dot(turned[..., :messages], of_sum)
        of_envelope[part] = (turn + turn.mT) @ s + (product + product.mT) @ to_s
        of_of_summed[part] = _sum(s, turned[..., :messages]).mul_(s) + torch.matmul(t.unsqueeze(2), y)[:, :, 0]
        of_of_rest[part] = turned[..., messages:]
    return found


def _plain_bend(ctx, arguments: tuple[Tensor, ...], directions: tuple[Tensor | None, ...]) -> list[Tensor | None]:
    """The same by autograd: to be differentiated again, or for all directions."""
    with torch.enable_grad():
        # views: of arguments that depend on each other, the derivatives are those of each alone
        arguments = [x.view_as(x) if x.requires_grad else x.detach().requires_grad_() for x in arguments]
        results = plain_angle_tiles(*arguments[:5], ctx.messages, ctx.tail)
        places = [n for n in range(5) if directions[n] is not None]
        slopes = torch.autograd.grad(results, [arguments[n] for n in places], arguments[5:], create_graph=True)
        return list(torch.autograd.grad(slopes, arguments, [directions[n] for n in places], create_graph=True, allow_unused=True))


def _blocks(angles: Float[Tensor, "atoms m m width"], weight: Float[Tensor, "out width"]) -> Iterator[slice]:
    """Parts of the atoms."""
    n, m, _, _ = angles.shape
    step = max(1, BLOCK[angles.device.type] // max(1, m * m * len(weight)))
    return (slice(start, min(n, start + step)) for start in range(0, n, step))


def _linear(angles: Tensor, first: Tensor, second: Tensor, weight: Tensor) -> Float[Tensor, "atoms m m out"]:
    return (angles @ weight.T).add_(first.unsqueeze(2)).add_(second.unsqueeze(1))


def _gradient(envelope: Tensor, of_sum: Tensor, of_rest: Tensor) -> Float[Tensor, "atoms m m out"]:
    """Of what the activation gives."""
    messages = of_sum.shape[-1]
    found = of_rest.new_empty(*of_rest.shape[:3], messages + of_rest.shape[-1])
    torch.mul((of_sum * envelope).unsqueeze(2), envelope.unsqueeze(1), out=found[..., :messages])
    found[..., messages:] = of_rest
    return found


def _sum(envelope: Tensor, y: Float[Tensor, "atoms m m messages"]) -> Float[Tensor, "atoms m messages"]:
    return torch.matmul(envelope.mT.unsqueeze(1), y)[:, :, 0]


def _dot(y: Float[Tensor, "atoms m m messages"], of_sum: Float[Tensor, "atoms m messages"]) -> Float[Tensor, "atoms m m"]:
    return torch.matmul(y, of_sum.unsqueeze(-1))[..., 0]
