"""Activated sums over pairs of slots, such as the bonds of an atom: tiles, by blocks that stay in the cache."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from equimol.ops.function import Function, wanted_inputs
from equimol.ops.kernels import find_kernel, is_traced, run
from equimol.ops.silut import Tail, silut

NAMES = ("pairs", "first", "second", "weight", "first_weights", "second_weights")
BLOCK = {"cpu": 2**18, "cuda": 2**26}  # numbers in one array of a block: a few of them fit into the cache of a core, or into memory


def tiles(
    pairs: Float[Tensor, "n j k width"],
    first: Float[Tensor, "n j out"],
    second: Float[Tensor, "n k out"],
    weight: Float[Tensor, "out width"],
    first_weights: Float[Tensor, "n j"],
    second_weights: Float[Tensor, "n k"],
    messages: int,
    tail: Tail,
) -> tuple[Float[Tensor, "n j messages"], Float[Tensor, "n j k rest"]]:
    """x_jk = act(weight a_jk + first_j + second_k): v_j times the sum over k of w_k x_jk, of the first ``messages`` numbers; and the rest.

    A linear layer of the concatenated features of an angle, its two bonds and its atom is such a sum of three, and with a single j so
    is that of a bond and its two atoms. Keeps its arguments alone: x is computed again for the derivatives, of which the first and the
    second are written out, and on a CPU compiled (kernels/cpu/tiles.py).
    """
    tensors = pairs, first, second, weight, first_weights, second_weights
    n, j, k, width = pairs.shape
    shapes = (n, j, k, width), (n, j, len(weight)), (n, k, len(weight)), (len(weight), width), (n, j), (n, k)
    for name, tensor, shape in zip(NAMES, tensors, shapes, strict=True):
        if tensor.shape != shape or tensor.dtype != pairs.dtype or tensor.device != pairs.device:
            raise ValueError(
                f"{name} must be {pairs.dtype} {list(shape)} on {pairs.device} beside pairs {list(pairs.shape)},"
                f" got {tensor.dtype} {list(tensor.shape)} on {tensor.device}"
            )
    if not 0 <= messages <= len(weight):
        raise ValueError(f"messages must be 0 to {len(weight)}, the rows of weight, got {messages}")
    if is_traced() or (torch.compiler.is_compiling() and pairs.device.type != "cpu"):  # a program is traced from plain operations
        return plain_tiles(pairs, first, second, weight, first_weights, second_weights, messages, tail)
    if torch.compiler.is_compiling():
        return torch.ops.equimol.tiles(*tensors, messages, tail.threshold, tail.smooth)
    return _Tiles.apply(pairs, first, second, weight, first_weights, second_weights, messages, tail)


def plain_tiles(
    pairs: Tensor, first: Tensor, second: Tensor, weight: Tensor, first_weights: Tensor, second_weights: Tensor, messages: int, tail: Tail
) -> tuple[Tensor, Tensor]:
    """`tiles` as it reads: the reference."""
    x = silut(pairs @ weight.T + first.unsqueeze(2) + second.unsqueeze(1), tail)
    message, rest = x.split([messages, x.shape[-1] - messages], -1)
    return _sum(second_weights, message) * first_weights.unsqueeze(-1), rest


class _Tiles(Function):
    @staticmethod
    def forward(pairs, first, second, weight, first_weights, second_weights, messages, tail):
        tensors = [x.contiguous() for x in (pairs, first, second, weight, first_weights, second_weights)]
        pairs, first, second, weight, v, w = tensors
        n, j, k, _ = pairs.shape
        sizes = j, k, len(weight), messages, *tail.numbers
        summed, rest = pairs.new_empty(n, j, messages), pairs.new_empty(n, j, k, len(weight) - messages)
        kernel = find_kernel("tiles", "forward", pairs)
        for part in _blocks(pairs, weight):
            x, block = pairs[part] @ weight.T, (first[part], second[part], v[part], w[part], summed[part], rest[part])
            if kernel:
                run(kernel, len(x), *sizes, x, *block)
            else:
                _forward(messages, tail, x, *block)
        return summed, rest

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.messages, ctx.tail = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, of_summed, of_rest):
        return *_Slope.apply(*ctx.saved_tensors, of_summed, of_rest, wanted_inputs(ctx)[:6], ctx.messages, ctx.tail), None, None


class _Slope(Function):
    """The derivatives of `tiles` with respect to its six tensors, those that are wanted, times the gradients of its results."""

    @staticmethod
    def forward(pairs, first, second, weight, first_weights, second_weights, of_summed, of_rest, wanted, messages, tail):
        tensors = [x.contiguous() for x in (pairs, first, second, weight, first_weights, second_weights, of_summed, of_rest)]
        pairs, first, second, weight, v, w, of_summed, of_rest = tensors
        _, j, k, width = pairs.shape
        sizes = j, k, len(weight), messages, *tail.numbers
        found = [torch.zeros_like(x) if n in _summed(j) else torch.empty_like(x) for n, x in enumerate(tensors[:6])]
        kernel = find_kernel("tiles", "slope", pairs)
        for part in _blocks(pairs, weight):
            x = _product(pairs[part], weight, found[2][part])
            block = [tensor[part] for tensor in (first, second, v, w, of_summed, of_rest)]
            block += [found[n][part] for n in (1, 2, 4, 5)]
            if kernel:
                run(kernel, len(x), *sizes, x, *block)
            else:
                x = _slope(messages, tail, x, *block)
            slope = x.view(-1, len(weight))
            if wanted[0]:
                torch.matmul(slope, weight, out=found[0][part].view(-1, width))
            if wanted[3]:
                found[3].addmm_(slope.T, pairs[part].view(-1, width))
        return tuple(x if want else None for x, want in zip(found, wanted, strict=True))

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
            found = _bends(arguments, directions, ctx.messages, ctx.tail)
        return *(x if need else None for x, need in zip(found, ctx.needs_input_grad, strict=False)), None, None, None


def _bends(arguments: tuple[Tensor, ...], directions: tuple[Tensor | None, ...], messages: int, tail: Tail) -> list[Tensor]:
    """The derivatives of `_Slope` with respect to its eight tensors, in the directions given for its results but that of the weight."""
    arguments = tuple(x.contiguous() for x in arguments)
    pairs, first, second, weight, v, w, of_summed, of_rest = arguments
    others = zip((pairs, first, second, v, w), (*directions[:3], *directions[4:]), strict=True)
    to_pairs, *steps = (torch.zeros_like(x) if direction is None else direction.contiguous() for x, direction in others)
    _, j, k, width = pairs.shape
    sizes = j, k, len(weight), messages, *tail.numbers
    found = [torch.zeros_like(x) if n in _summed(j) else torch.empty_like(x) for n, x in enumerate(arguments)]
    kernel = find_kernel("tiles", "bend", pairs)
    for part in _blocks(pairs, weight):
        x, q = _product(pairs[part], weight, found[2][part]), to_pairs[part] @ weight.T
        to_first, to_second, to_v, to_w = (step[part] for step in steps)
        block = [first[part], second[part], to_first, to_second, v[part], w[part], to_v, to_w, of_summed[part], of_rest[part]]
        block += [found[n][part] for n in (1, 2, 4, 5, 6, 7)]
        if kernel:
            run(kernel, len(x), *sizes, x, q, *block)
        else:
            x, q = _bend(messages, tail, x, q, *block)
        through, slope = x.view(-1, len(weight)), q.view(-1, len(weight))
        torch.matmul(through, weight, out=found[0][part].view(-1, width))
        found[3].addmm_(through.T, pairs[part].view(-1, width)).addmm_(slope.T, to_pairs[part].view(-1, width))
    return found


def _plain_bend(ctx, arguments: tuple[Tensor, ...], directions: tuple[Tensor | None, ...]) -> list[Tensor | None]:
    """The same by autograd: to be differentiated again, or for all directions."""
    with torch.enable_grad():
        # views: of arguments that depend on each other, the derivatives are those of each alone
        arguments = [x.view_as(x) if x.requires_grad else x.detach().requires_grad_() for x in arguments]
        results = plain_tiles(*arguments[:6], ctx.messages, ctx.tail)
        places = [n for n in range(6) if directions[n] is not None]
        slopes = torch.autograd.grad(results, [arguments[n] for n in places], arguments[6:], create_graph=True)
        return list(torch.autograd.grad(slopes, arguments, [directions[n] for n in places], create_graph=True, allow_unused=True))


# --- the same as operators of PyTorch, for its compiler, which has first derivatives alone --------------------------------------------

_TENSORS = "Tensor pairs, Tensor first, Tensor second, Tensor weight, Tensor first_weights, Tensor second_weights"
_NUMBERS = "int messages, float threshold, bool smooth"


@torch.library.custom_op("equimol::tiles", mutates_args=(), schema=f"({_TENSORS}, {_NUMBERS}) -> (Tensor, Tensor)")
def _operator(pairs, first, second, weight, first_weights, second_weights, messages, threshold, smooth):
    return _Tiles.forward(pairs, first, second, weight, first_weights, second_weights, messages, Tail(threshold, smooth))


@_operator.register_fake
def _(pairs, first, second, weight, first_weights, second_weights, messages, threshold, smooth):
    n, j, k, _ = pairs.shape
    return pairs.new_empty(n, j, messages), pairs.new_empty(n, j, k, len(weight) - messages)


@torch.library.custom_op(
    "equimol::tiles_slope", mutates_args=(), schema=f"({_TENSORS}, Tensor of_summed, Tensor of_rest, {_NUMBERS}) -> Tensor[]"
)
def _slope_operator(
    pairs, first, second, weight, first_weights, second_weights, of_summed, of_rest, messages, threshold, smooth
) -> list[Tensor]:
    tensors = pairs, first, second, weight, first_weights, second_weights, of_summed, of_rest
    return list(_Slope.forward(*tensors, (True,) * 6, messages, Tail(threshold, smooth)))


@_slope_operator.register_fake
def _(pairs, first, second, weight, first_weights, second_weights, of_summed, of_rest, messages, threshold, smooth):
    return [x.new_empty(x.shape) for x in (pairs, first, second, weight, first_weights, second_weights)]


def _keep(ctx, inputs, output) -> None:
    *tensors, ctx.messages, ctx.threshold, ctx.smooth = inputs
    ctx.save_for_backward(*tensors)


def _operator_backward(ctx, of_summed, of_rest):
    return *torch.ops.equimol.tiles_slope(*ctx.saved_tensors, of_summed, of_rest, ctx.messages, ctx.threshold, ctx.smooth), None, None, None


_operator.register_autograd(_operator_backward, setup_context=_keep)


# --- a block ---------------------------------------------------------------------------------------------------------------------


def _blocks(pairs: Float[Tensor, "n j k width"], weight: Float[Tensor, "out width"]) -> Iterator[slice]:
    """Parts of the first dimension."""
    n, j, k, _ = pairs.shape
    step = max(1, BLOCK[pairs.device.type] // max(1, j * k * len(weight)))
    return (slice(start, min(n, start + step)) for start in range(0, n, step))


def _summed(rows: int) -> tuple[int, ...]:
    """Of the six tensors, those whose derivatives are sums over rows or blocks."""
    return (2, 3, 5) if rows > 1 else (3, 5)


def _product(pairs: Float[Tensor, "n j k width"], weight: Float[Tensor, "out width"], of_second: Tensor) -> Float[Tensor, "n j k out"]:
    """In the place of the derivative by ``second``, if there is a single row: it will be the same."""
    if pairs.shape[1] != 1:
        return pairs @ weight.T
    torch.matmul(pairs[:, 0], weight.T, out=of_second)
    return of_second.unsqueeze(1)


def _forward(messages, tail, x, first, second, v, w, summed, rest) -> None:
    """As the kernel, by PyTorch's operations."""
    x.add_(first.unsqueeze(2)).add_(second.unsqueeze(1))
    y = tail.replace(torch.nn.functional.silu(x), x, tail.beyond(x), 0)
    torch.mul(_sum(w, y[..., :messages]), v.unsqueeze(-1), out=summed)
    rest.copy_(y[..., messages:])


def _slope(messages, tail, x, first, second, v, w, of_sum, of_rest, of_first, of_second, of_v, of_w) -> Tensor:
    """As the kernel, by PyTorch's operations; returns what that leaves in x."""
    x.add_(first.unsqueeze(2)).add_(second.unsqueeze(1))
    slope = tail.slope(_gradient(v, w, of_sum, of_rest), x)
    product = _dot(silut(x[..., :messages], tail), of_sum)  # before x may be overwritten: see _product
    torch.sum(slope, 2, out=of_first)
    torch.sum(slope, 1, out=of_second)
    torch.matmul(product, w.unsqueeze(-1), out=of_v.unsqueeze(-1))
    torch.matmul(product.mT, v.unsqueeze(-1), out=of_w.unsqueeze(-1))
    return slope


def _bend(
    messages, tail, x, q, first, second, to_first, to_second, v, w, to_v, to_w, of_sum, of_rest,
    of_first, of_second, of_v, of_w, of_of_sum, of_of_rest,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """As the kernel, by PyTorch's operations; returns what that leaves in x and q."""
    x.add_(first.unsqueeze(2)).add_(second.unsqueeze(1))
    q.add_(to_first.unsqueeze(2)).add_(to_second.unsqueeze(1))  # the direction of x
    values, slope, bend = tail.expansion(x)
    y, gradient = values[..., :messages], _gradient(v, w, of_sum, of_rest)
    through = bend.mul_(q).mul_(gradient)
    turned = q.mul_(slope)  # the derivative with respect to the gradient
    t = to_v.unsqueeze(2) * w.unsqueeze(1) + v.unsqueeze(2) * to_w.unsqueeze(1)
    through[..., :messages] += (slope[..., :messages] * of_sum.unsqueeze(2)).mul_(t.unsqueeze(-1))
    torch.sum(through, 2, out=of_first)
    torch.sum(through, 1, out=of_second)
    product, turn = _dot(y, of_sum), _dot(turned[..., :messages], of_sum)
    of_v.copy_((turn @ w.unsqueeze(-1) + product @ to_w.unsqueeze(-1))[..., 0])
    of_w.copy_((turn.mT @ v.unsqueeze(-1) + product.mT @ to_v.unsqueeze(-1))[..., 0])
    of_of_sum.copy_(_sum(w, turned[..., :messages]).mul_(v.unsqueeze(-1)) + torch.matmul(t.unsqueeze(2), y)[:, :, 0])
    of_of_rest.copy_(turned[..., messages:])
    return through, gradient.mul_(slope)


def _gradient(v: Tensor, w: Tensor, of_sum: Tensor, of_rest: Tensor) -> Float[Tensor, "n j k out"]:
    """Of what the activation gives."""
    messages = of_sum.shape[-1]
    found = of_rest.new_empty(*of_rest.shape[:3], messages + of_rest.shape[-1])
    torch.mul((of_sum * v.unsqueeze(-1)).unsqueeze(2), w[:, None, :, None], out=found[..., :messages])
    found[..., messages:] = of_rest
    return found


def _sum(w: Float[Tensor, "n k"], y: Float[Tensor, "n j k messages"]) -> Float[Tensor, "n j messages"]:
    return torch.matmul(w[:, None, None, :], y)[:, :, 0]


def _dot(y: Float[Tensor, "n j k messages"], of_sum: Float[Tensor, "n j messages"]) -> Float[Tensor, "n j k"]:
    return torch.matmul(y, of_sum.unsqueeze(-1))[..., 0]
