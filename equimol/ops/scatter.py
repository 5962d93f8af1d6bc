"""Sums over the edges of an atom, and their adjoint."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def scatter_sum(values: Float[Tensor, "n ..."], index: Int[Tensor, " n"], size: int | torch.SymInt) -> Float[Tensor, "size ..."]:
    """Sum of the rows of ``values`` that share an ``index``. A row that nobody names is zero, not missing.

    Args:
        values: [n, ...].
        index: [n], each in 0..size-1.
        size: number of rows of the result.
    """
    return values.new_zeros(size, *values.shape[1:]).scatter_add(0, _expand(index, values), values)


def gather(values: Float[Tensor, "size ..."], index: Int[Tensor, " n"]) -> Float[Tensor, "n ..."]:
    """Rows of ``values`` by ``index``: the adjoint of :func:`scatter_sum`. Negative indices do not count from the end."""
    return values.gather(0, _expand(index, values))


def _expand(index: Tensor, values: Tensor) -> Tensor:
    """One index per row, seen as one per number: PyTorch's CPU sums recognise the zero strides and add whole rows at once.

    ``index_add`` and the derivative of ``index_select`` mean the same and take hundreds of times longer there.
    """
    return index.view(-1, *[1] * (values.ndim - 1)).expand(-1, *values.shape[1:])
