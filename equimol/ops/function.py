"""Functions with derivatives written out, without PyTorch's cost of a call."""

from __future__ import annotations

import torch


class Function(torch.autograd.Function):
    """``torch.autograd.Function`` for a ``forward`` and a ``setup_context`` of positional arguments.

    PyTorch inspects the signature of such a forward at every call, for the sake of default arguments: 50 microseconds, as much as the
    arithmetic of a small molecule. Under the transforms of ``torch.func`` it is PyTorch's own call.
    """

    @classmethod
    def apply(cls, *args):
        if torch._C._are_functorch_transforms_active():
            return super().apply(*args)
        return super(torch.autograd.Function, cls).apply(*args)
