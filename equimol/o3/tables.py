"""Constant tables that keep their float64 digits."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Table(nn.Module):
    """A constant array, given in the dtype and on the device of whoever asks.

    A plain buffer would stay rounded after `model.float().double()`; this one is cast from its float64 original every time.
    It is no part of the state dict.
    """

    exact: Tensor
    cast: Tensor

    def __init__(self, values: Float[Tensor, "..."]):
        super().__init__()
        self.exact = values.to("cpu", torch.float64).contiguous()
        # In the dtype that new parameters get, so that the usual call finds it ready.
        self.register_buffer("cast", self.exact.to(torch.get_default_dtype()), persistent=False)

    def forward(self, like: Tensor) -> Tensor:
        """The table in the dtype and on the device of `like`."""
        if self.cast.dtype == like.dtype and self.cast.device == like.device:
            return self.cast
        return self.exact.to(like)  # not kept: a copy made in inference mode or while tracing would poison later calls

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        self.cast = self.exact.to(self.cast)
        return self
