"""Root-mean-square normalisation with its derivative written out, which passes over memory less often than PyTorch's."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from equimol.ops.function import Function


class RMSNorm(nn.Module):
    """x / sqrt(mean of x² + eps) * weight for each row (Zhang and Sennrich 2019). As ``torch.nn.RMSNorm``: eps is that of the dtype."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Float[Tensor, "rows width"]) -> Float[Tensor, "rows width"]:
        normal, _ = _Normal.apply(x)
        return normal * self.weight


class _Normal(Function):
    """Rows of length sqrt(width), and the factor that made them so: a result, for the sake of second derivatives."""

    @staticmethod
    def forward(x):
        factor = torch.linalg.vecdot(x, x).div_(x.shape[1]).add_(torch.finfo(x.dtype).eps).rsqrt_().unsqueeze(1)
        return x * factor, factor

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*output)

    @staticmethod
    def backward(ctx, of_normal, of_factor):
        normal, factor = ctx.saved_tensors
        result = None
        if of_normal is not None:
            along = torch.linalg.vecdot(of_normal, normal).div(-normal.shape[1]).unsqueeze(1)
            result = torch.addcmul(of_normal, normal, along) * factor
        if of_factor is not None:
            through = normal * (of_factor * factor.square() / -normal.shape[1])
            result = through if result is None else result + through
        return result
