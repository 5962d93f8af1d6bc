"""Linear layers by oneDNN where PyTorch would ask MKL, which on some processors reaches half the speed or less."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from equimol.ops.function import Function, wanted_inputs
from equimol.ops.kernels import has_kernel

SMALLEST = 2**15  # numbers in a weight; a call with smaller ones costs more than the product
SEVERAL_ROWS = 2  # one is read as fast by the product of a matrix and a vector that MKL has
MANY_ROWS = 64  # that are worth arranging a weight anew for each product

_packed: WeakIdKeyDictionary = WeakIdKeyDictionary()  # of each frozen weight, the layouts of its views that oneDNN reads fastest


def linear(
    x: Float[Tensor, "rows n"],
    weight: Float[Tensor, "out n"],
    bias: Float[Tensor, " out"] | None = None,
    plus: Float[Tensor, "rows out"] | None = None,
) -> Float[Tensor, "rows out"]:
    """x weight^T + bias, and + ``plus``: float32 on a CPU by oneDNN, all else by PyTorch. Derivatives of any order.

    A parameter that needs no gradient is rearranged once for the processor, which doubles its memory (and again for the derivative):
    this is what makes products of few rows fast. It may change in place; it is then rearranged again.
    """
    if weight.numel() >= SMALLEST and len(x) >= (SEVERAL_ROWS if _is_frozen(weight) else MANY_ROWS) and has_kernel("linear", x):
        return _Linear.apply(x, weight, bias, plus)
    return plain_linear(x, weight, bias, plus)


def plain_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, plus: Tensor | None = None) -> Tensor:
    """`linear` as it reads: the reference."""
    if plus is None:
        return torch.nn.functional.linear(x, weight, bias)
    return torch.addmm(plus if bias is None else plus + bias, x, weight.T)


class _Linear(Function):
    @staticmethod
    def forward(x, weight, bias, plus):
        if weight.dtype != x.dtype or weight.device != x.device:
            raise ValueError(f"weight must be {x.dtype} on {x.device} as x is, got {weight.dtype} on {weight.device}")
        x, weight = x.contiguous(), _arranged(weight, len(x))
        if plus is None:
            return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return torch.ops.mkldnn._linear_pointwise.binary(x, plus, weight, bias, "add")

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weight, _, _ = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx, of_result):
        x, weight = ctx.saved_tensors
        need = wanted_inputs(ctx)
        return (
            linear(of_result, weight.T) if need[0] else None,
            linear(of_result.T, x.T) if need[1] else None,
            of_result.sum(0) if need[2] else None,
            of_result if need[3] else None,
        )


def _whole(weight: Tensor) -> Tensor:
    """The tensor that a weight is a view of."""
    return weight if weight._base is None else weight._base


def _is_frozen(weight: Tensor) -> bool:
    """Whether it is a parameter, or part of one, that needs no gradient."""
    whole = _whole(weight)
    return isinstance(whole, torch.nn.Parameter) and not whole.requires_grad


def _arranged(weight: Float[Tensor, "out n"], rows: int) -> Tensor:
    """A frozen parameter, or a part of one, as oneDNN wants it, kept as long as the parameter; all else without gaps.

    For rows with gaps, as those of a part of a matrix are, oneDNN has but its reference: a thousand times slower.
    """
    if not _is_frozen(weight):
        return weight if weight.mT.is_contiguous() else weight.contiguous()
    whole = _whole(weight)
    view = weight.storage_offset(), weight.shape, weight.stride()
    version, views = _packed.get(whole, (None, {}))
    if version != whole._version:
        views = {}
        _packed[whole] = whole._version, views
    if view not in views:
        views[view] = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), max(rows, 64))
    return views[view]
