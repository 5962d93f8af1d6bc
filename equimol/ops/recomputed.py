"""Activation checkpoints that second derivatives work through: memory for time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils import _pytree as tree

from equimol.ops.function import Function, wanted_inputs


def recomputed(module: nn.Module, *arguments: Any) -> Any:
    """module(*arguments), of which nothing but arguments and results is kept: what is between is computed again for derivatives.

    For first and second derivatives, such as training on forces needs; ``torch.utils.checkpoint`` keeps for the second what it saved for
    the first. The module must not draw random numbers.

    Args:
        arguments: tensors, and tuples, lists and dictionaries of them and of other things; all tensors that need a gradient get it.
    """
    leaves, form = tree.tree_flatten(arguments)
    places = [n for n, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.requires_grad]
    parameters = [p for p in module.parameters() if p.requires_grad]
    forms: list[tree.TreeSpec] = []

    def call(*tensors: Tensor) -> list:
        filled = list(leaves)
        for place, tensor in zip(places, tensors, strict=True):
            filled[place] = tensor
        results, of_results = tree.tree_flatten(module(*tree.tree_unflatten(filled, form)))
        forms.append(of_results)
        return results

    results = _Recomputed.apply(call, len(places), *(leaves[place] for place in places), *parameters)
    return tree.tree_unflatten(list(results), forms[0])


class _Recomputed(Function):
    """The results; then the first derivative, which is computed anew each time and keeps as little."""

    @staticmethod
    def forward(call, inputs, *tensors):
        return tuple(call(*tensors[:inputs]))

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.call, ctx.inputs, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, *of_results):
        wanted = [n for n, need in enumerate(wanted_inputs(ctx)[2:]) if need]
        slopes = _Slope.apply(ctx.call, ctx.inputs, wanted, len(ctx.saved_tensors), *ctx.saved_tensors, *of_results)
        found: list[Tensor | None] = [None] * len(ctx.saved_tensors)
        for n, slope in zip(wanted, slopes, strict=True):
            found[n] = slope
        return None, None, *found


class _Slope(Function):
    @staticmethod
    def forward(call, inputs, wanted, size, *tensors):
        with torch.enable_grad():
            arguments, results = _again(call, inputs, tensors[:size])
            places = _differentiable(results, tensors[size:])
            chosen = [results[n] for n in places], [arguments[n] for n in wanted], [tensors[size + n] for n in places]
            return torch.autograd.grad(*chosen, allow_unused=True, materialize_grads=True)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.call, ctx.inputs, ctx.wanted, ctx.size, *tensors = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx, *directions):
        tensors = ctx.saved_tensors
        with torch.enable_grad():
            arguments, results = _again(ctx.call, ctx.inputs, tensors[: ctx.size])
            places = _differentiable(results, tensors[ctx.size :])
            gradients = [tensors[ctx.size + n].detach().requires_grad_() for n in places]
            asked = [n for n, direction in enumerate(directions) if direction is not None]
            chosen = [results[n] for n in places], [arguments[ctx.wanted[n]] for n in asked], gradients
            slopes = torch.autograd.grad(*chosen, create_graph=True, allow_unused=True, materialize_grads=True)
            pairs = [(slope, directions[n]) for n, slope in zip(asked, slopes, strict=True) if slope.requires_grad]
            found = [None] * (ctx.size + len(places))
            if pairs:
                slopes, along = zip(*pairs, strict=True)
                found = torch.autograd.grad(slopes, [*arguments, *gradients], along, allow_unused=True)
        of_results: list[Tensor | None] = [None] * (len(tensors) - ctx.size)
        for n, place in enumerate(places):
            of_results[place] = found[ctx.size + n]
        return None, None, None, None, *found[: ctx.size], *of_results


def _differentiable(results: Sequence, gradients: Sequence[Tensor | None]) -> list[int]:
    """Which results have a derivative and a gradient."""
    pairs = enumerate(zip(results, gradients, strict=True))
    return [n for n, (result, gradient) in pairs if gradient is not None and isinstance(result, Tensor) and result.requires_grad]


def _again(call: Callable[..., list], inputs: int, tensors: Sequence[Tensor]) -> tuple[list[Tensor], list]:
    """Arguments by themselves, then the parameters; and the results."""
    arguments = [*(x.detach().requires_grad_() for x in tensors[:inputs]), *tensors[inputs:]]
    return arguments, call(*arguments[:inputs])
