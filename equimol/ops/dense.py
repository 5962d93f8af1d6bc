"""Memory layout that survives differentiation."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from equimol.ops.function import Function


def dense(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """``x.contiguous()``, whose derivatives of any order are contiguous too.

    Gradients take the strides of whatever they were multiplied with. Batched matrix products fall back to a loop over the
    batch when neither of the last two strides is one, which the second derivative of a permuted tensor is prone to.
    """
    return _Dense.apply(x)


class _Dense(Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.contiguous() if not x.is_contiguous() else x.view_as(x)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        pass

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return _Dense.apply(grad)
