"""Forms that are linear in each of several tensors: their derivatives of any order from one function."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from equimol.ops.function import Function, wanted_inputs

#: (arguments, constants, wanted) -> the derivatives of the form with respect to the arguments, None where not wanted
Compute = Callable[[Sequence[Tensor | None], Sequence[Tensor], Sequence[bool]], Sequence[Tensor | None]]


def form_derivatives(
    compute: Compute, arguments: Sequence[Tensor | None], constants: Sequence[Tensor], wanted: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """The wanted derivatives of a form S(arguments), differentiable themselves; not with respect to the constants.

    S is linear in each argument: its derivative with respect to one does not depend on that one, and is differentiated in turn, in the
    direction of a tensor g, by taking S with g in its place. ``compute`` is all there is to write, and keeps nothing for later. An
    argument may be None where only its own derivative is wanted: that is how a product becomes the derivative of a form.
    """
    return _Form.apply(compute, tuple(wanted), *arguments, *constants)


class _Form(Function):
    @staticmethod
    def forward(compute: Compute, wanted: tuple[bool, ...], *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
        arguments = [None if t is None else t.contiguous() for t in tensors[: len(wanted)]]
        return tuple(compute(arguments, tensors[len(wanted) :], wanted))

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.compute, ctx.wanted, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        needed = wanted_inputs(ctx)[2 : 2 + len(ctx.wanted)]
        total = _in_directions(ctx, grads, needed)
        return (None, None, *total, *[None] * (len(ctx.saved_tensors) - len(total)))

    @staticmethod
    def jvp(ctx, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        arguments = ctx.saved_tensors[: len(ctx.wanted)]
        total = _in_directions(ctx, tangents[2 : 2 + len(arguments)], ctx.wanted)
        return tuple(
            torch.zeros_like(argument) if asked and part is None else part
            for argument, asked, part in zip(arguments, ctx.wanted, total, strict=True)
        )

    @staticmethod
    def vmap(info, in_dims, *inputs) -> tuple[tuple[Tensor | None, ...], tuple[int | None, ...]]:
        """One after the other: the mapped dimension may belong to what all rows share."""
        each = [
            _Form.apply(*(t.select(d, n) if isinstance(d, int) else t for t, d in zip(inputs, in_dims, strict=True)))
            for n in range(info.batch_size)
        ]
        stacked = tuple(None if parts[0] is None else torch.stack(parts) for parts in zip(*each, strict=True))
        return stacked, tuple(None if part is None else 0 for part in stacked)


def _in_directions(ctx, directions: Sequence[Tensor | None], wanted: Sequence[bool]) -> list[Tensor | None]:
    """Sum over the given directions of the wanted derivatives of the form with that direction in the place of its argument."""
    count = len(ctx.wanted)
    arguments, constants = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
    total: list[Tensor | None] = [None] * count
    for place, direction in enumerate(directions):
        others = tuple(asked and n != place for n, asked in enumerate(wanted))
        if direction is None or not any(others):
            continue
        moved = *arguments[:place], direction, *arguments[place + 1 :]
        for n, part in enumerate(form_derivatives(ctx.compute, moved, constants, others)):
            if part is None:
                continue
            if total[n] is None:
                total[n] = part
            elif torch.is_grad_enabled():
                total[n] = total[n] + part
            else:
                total[n].add_(part)
    return total
