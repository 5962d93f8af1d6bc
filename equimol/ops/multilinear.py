"""Forms that are linear in each of several tensors: their derivatives of any order from one function."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor

from equimol.ops.function import Function, wanted_inputs


class Form(ABC):
    """S(arguments), linear in each argument: what it is, in numbers that JSON can hold, and how its derivatives are computed.

    A subclass says how many arguments there are in ``count`` and is made from ``settings``, which ``text`` holds with its name.
    """

    KINDS: ClassVar[dict[str, type[Form]]] = {}
    count: int

    def __init_subclass__(cls) -> None:
        Form.KINDS[cls.__name__] = cls

    def __init__(self, *settings) -> None:
        self.settings, self.text = settings, json.dumps([type(self).__name__, *settings])

    def __deepcopy__(self, memo: dict) -> Form:
        return self  # nothing in it changes

    @abstractmethod
    def derivatives(
        self, arguments: Sequence[Tensor | None], constants: Sequence[Tensor], wanted: Sequence[bool]
    ) -> Sequence[Tensor | None]:
        """With respect to the arguments, those that are wanted, None for the others. Not differentiable; nothing is kept."""

    def along(
        self, arguments: Sequence[Tensor], directions: Sequence[Tensor | None], constants: Sequence[Tensor], wanted: Sequence[bool]
    ) -> Sequence[Tensor | None] | None:
        """The wanted derivatives summed over S with a direction in the place of its argument, at once; None where nothing is gained."""
        return None

    @abstractmethod
    def shapes(self, arguments: Sequence[Tensor | None], constants: Sequence[Tensor]) -> Sequence[tuple[int, ...]]:
        """Of all arguments, from those that are there."""


def form_derivatives(
    form: Form, arguments: Sequence[Tensor | None], constants: Sequence[Tensor], wanted: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """The wanted derivatives of a form S(arguments), differentiable themselves; not with respect to the constants.

    S is linear in each argument: its derivative with respect to one does not depend on that one, and is differentiated in turn, in the
    direction of a tensor g, by taking S with g in its place. `Form.derivatives` is all there is to write. An argument may be None where
    only its own derivative is wanted: that is how a product becomes the derivative of a form.
    """
    return _Form.apply(form, tuple(wanted), *arguments, *constants)


def plain_derivatives(
    form: Form,
    plain: Callable[..., Tensor],
    arguments: Sequence[Tensor | None],
    constants: Sequence[Tensor],
    wanted: Sequence[bool],
) -> list[Tensor | None]:
    """`Form.derivatives` by PyTorch's operations, the reference.

    ``plain`` is the derivative by the last argument: of the form, the arguments before it, and the constants.
    """
    like = next(a for a in arguments if a is not None)
    with torch.enable_grad():
        leaves = [
            (like.new_zeros(shape) if a is None else a.detach()).requires_grad_(want)
            for a, shape, want in zip(arguments, form.shapes(arguments, constants), wanted, strict=True)
        ]
        total = (plain(form, *leaves[:-1], *constants) * leaves[-1]).sum()
        chosen = [leaf for leaf, want in zip(leaves, wanted, strict=True) if want]
        found = iter(torch.autograd.grad(total, chosen, allow_unused=True, materialize_grads=True))
    return [next(found) if want else None for want in wanted]


class _Form(Function):
    @staticmethod
    def forward(form: Form, wanted: tuple[bool, ...], *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
        arguments = [None if t is None else t.contiguous() for t in tensors[: len(wanted)]]
        return tuple(form.derivatives(arguments, tensors[len(wanted) :], wanted))

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.form, ctx.wanted, *tensors = inputs
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
    several = sum(direction is not None for direction in directions) > 1 and all(argument is not None for argument in arguments)
    if several and not torch.is_grad_enabled() and any(wanted):
        contiguous = [[None if t is None else t.contiguous() for t in tensors] for tensors in (arguments, directions)]
        found = ctx.form.along(*contiguous, constants, wanted)
        if found is not None:
            return list(found)
    for place, direction in enumerate(directions):
        others = tuple(asked and n != place for n, asked in enumerate(wanted))
        if direction is None or not any(others):
            continue
        moved = *arguments[:place], direction, *arguments[place + 1 :]
        for n, part in enumerate(form_derivatives(ctx.form, moved, constants, others)):
            if part is None:
                continue
            if total[n] is None:
                total[n] = part
            elif torch.is_grad_enabled():
                total[n] = total[n] + part
            else:
                total[n].add_(part)
    return total


# --- the same as an operator of PyTorch, for its compiler -------------------------------------------------------------------------


def form_operator(
    form: Form, arguments: Sequence[Tensor | None], constants: Sequence[Tensor], wanted: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """`form_derivatives` as an operator that programs of PyTorch's compiler call: equimol::form. Eagerly it takes 0.1 ms longer."""
    places = [n for n, argument in enumerate(arguments) if argument is not None]
    asked = [n for n, want in enumerate(wanted) if want]
    found = torch.ops.equimol.form(form.text, [arguments[n] for n in places], places, list(constants), asked)
    return tuple(found[asked.index(n)] if want else None for n, want in enumerate(wanted))


@cache
def _decoded(text: str) -> Form:
    kind, *settings = json.loads(text)
    return Form.KINDS[kind](*settings)


def _spread(form: Form, arguments: Sequence[Tensor], places: Sequence[int]) -> list[Tensor | None]:
    found: list[Tensor | None] = [None] * form.count
    for place, argument in zip(places, arguments, strict=True):
        found[place] = argument
    return found


_SCHEMA = "(str text, Tensor[] arguments, int[] places, Tensor[] constants, int[] wanted) -> Tensor[]"


@torch.library.custom_op("equimol::form", mutates_args=(), schema=_SCHEMA)
def _operator(
    text: str, arguments: Sequence[Tensor], places: Sequence[int], constants: Sequence[Tensor], wanted: Sequence[int]
) -> list[Tensor]:
    form = _decoded(text)
    asked = [n in wanted for n in range(form.count)]
    found = form.derivatives([None if t is None else t.contiguous() for t in _spread(form, arguments, places)], constants, asked)
    return [found[n] for n in wanted]


@_operator.register_fake
def _(text, arguments, places, constants, wanted):
    form = _decoded(text)
    shapes = form.shapes(_spread(form, arguments, places), constants)
    return [arguments[0].new_empty(shapes[n]) for n in wanted]


def _keep(ctx, inputs, output) -> None:
    ctx.text, arguments, ctx.places, constants, ctx.wanted = inputs
    ctx.save_for_backward(*arguments, *constants)


def _backward(ctx, gradients):
    arguments, constants = ctx.saved_tensors[: len(ctx.places)], ctx.saved_tensors[len(ctx.places) :]
    total: dict[int, Tensor] = {}
    for place, gradient in zip(ctx.wanted, gradients, strict=True):
        others = [n for n, need in zip(ctx.places, ctx.needs_input_grad[1], strict=True) if need and n != place]
        if gradient is None or not others:
            continue
        moved = {n: x for n, x in zip(ctx.places, arguments, strict=True) if n != place} | {place: gradient}
        parts = torch.ops.equimol.form(ctx.text, list(moved.values()), list(moved), list(constants), others)
        for n, part in zip(others, parts, strict=True):
            total[n] = total[n] + part if n in total else part
    return None, [total.get(n) for n in ctx.places], None, [None] * len(constants), None


_operator.register_autograd(_backward, setup_context=_keep)


@_operator.register_vmap
def _(info, in_dims, text, arguments, places, constants, wanted):
    """One after the other: the mapped dimension may belong to what all rows share."""

    def part(tensors: Sequence[Tensor], dims: Sequence[int | None], n: int) -> list[Tensor]:
        return [t if d is None else t.select(d, n) for t, d in zip(tensors, dims, strict=True)]

    each = [
        torch.ops.equimol.form(text, part(arguments, in_dims[1], n), places, part(constants, in_dims[3], n), wanted)
        for n in range(info.batch_size)
    ]
    return [torch.stack(parts) for parts in zip(*each, strict=True)], [0] * len(wanted)
