"""Large batches a few rows at a time, so that intermediates stay in the cache."""

from collections.abc import Callable

import torch
from torch import Tensor

CACHED_NUMBERS = 2**17  # of one intermediate: about what the cache of one core holds


def in_row_blocks(
    multiply: Callable[[Tensor, Tensor, Tensor], Tensor], x: Tensor, y: Tensor, weights: Tensor, numbers_per_row: int
) -> Tensor:
    """``multiply(x, y, weights)`` of a product, in blocks of rows of one flat batch on a CPU; elsewhere, at once."""
    rows, batch = max(1, CACHED_NUMBERS // numbers_per_row), x.shape[:-1]
    one_batch = len(batch) == 1 and y.shape[:-1] == batch and weights.shape[:-2] in ((), batch) and len(x) > rows
    if not one_batch or x.device.type != "cpu" or torch.compiler.is_compiling():
        return multiply(x, y, weights)
    blocks = list(zip(x.split(rows), y.split(rows), strict=True))
    parts = weights.split(rows) if weights.ndim == 3 else [weights] * len(blocks)
    return torch.cat([multiply(*block, part) for block, part in zip(blocks, parts, strict=True)])
