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


def wanted_inputs(ctx) -> tuple[bool, ...]:
    """In a backward, which inputs' gradients somebody waits for: ``ctx.needs_input_grad``, less those that this call does not ask for.

    The slope of an energy needs no derivative of a weight, but PyTorch counts all that have one.
    """
    if torch._C._are_functorch_transforms_active():
        return ctx.needs_input_grad
    nodes = (node for node, _ in ctx.next_functions if node is not None)  # of those alone that need a gradient
    return tuple(need and _will_run(next(nodes)) for need in ctx.needs_input_grad)


def _will_run(node) -> bool:
    try:
        return torch._C._will_engine_execute_node(node)
    except RuntimeError:  # a leaf whose gradient is the very thing asked for
        return True
