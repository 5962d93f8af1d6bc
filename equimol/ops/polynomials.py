"""Polynomials of the components of a feature, their coefficients for each element and channel: compiled from the list of terms."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from equimol.ops.function import Function
from equimol.ops.kernels import find_kernel, run
from equimol.ops.scatter import gather

Terms = tuple[tuple[int, tuple[int, ...]], ...]  # of each its polynomial, and the components that are multiplied, ascending


def polynomials(
    terms: Terms,
    x: Float[Tensor, "atoms size channels"],
    coefficients: Float[Tensor, "elements terms channels"],
    species: Int[Tensor, " atoms"],
) -> Float[Tensor, "atoms polynomials channels"]:
    """P_o = sum over terms (o, i j ...) of coefficient x_i x_j ..., with the coefficients of the atom's element. There must be a kernel.

    Any order of derivative in x: value and slope are compiled, derivatives of the slope are those of `plain_polynomials`. None in the
    coefficients, which are constants here.
    """
    if coefficients.shape[1:] != (len(terms), x.shape[2]) or coefficients.dtype != x.dtype:
        raise ValueError(
            f"coefficients must be {x.dtype} [elements, {len(terms)}, {x.shape[2]}], got {coefficients.dtype} {list(coefficients.shape)}"
        )
    if coefficients.requires_grad:
        raise ValueError("coefficients must be constants, got some that need a gradient; use plain_polynomials, or detach them")
    least, most = map(int, torch.aminmax(species)) if len(species) else (0, -1)
    if len(species) != len(x) or least < 0 or most >= len(coefficients):  # a kernel does not look
        raise ValueError(f"species must be in 0..{len(coefficients) - 1}, one for each of {len(x)} atoms, got {least}..{most}")
    return _Value.apply(terms, x, coefficients.contiguous(), species.contiguous())


def plain_polynomials(
    terms: Terms, x: Tensor, coefficients: Tensor, species: Int[Tensor, " atoms"]
) -> Float[Tensor, "atoms polynomials channels"]:
    """`polynomials` as it reads: the reference."""
    order = max(len(factors) for _, factors in terms)
    padded = torch.cat([x, torch.ones_like(x[:, :1])], 1)
    places = torch.tensor([factors + (x.shape[1],) * (order - len(factors)) for _, factors in terms], device=x.device)
    products = gather(coefficients, species)
    for column in places.unbind(1):
        products = products * padded[:, column]
    sums = torch.zeros(count_polynomials(terms), len(terms), dtype=x.dtype, device=x.device)
    sums[[o for o, _ in terms], range(len(terms))] = 1.0
    return torch.matmul(sums, products)


def count_polynomials(terms: Terms) -> int:
    return 1 + max(o for o, _ in terms)


class _Value(Function):
    @staticmethod
    def forward(terms, x, coefficients, species):
        x = x.contiguous()
        found = x.new_empty(len(x), count_polynomials(terms), x.shape[2])
        run(find_kernel("polynomials", "value", x, terms, x.shape[1]), len(x), x.shape[2], species, x, coefficients, found)
        return found

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.terms, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, gradient):
        return None, _Slope.apply(ctx.terms, *ctx.saved_tensors, gradient), None, None


class _Slope(Function):
    """sum_o g_o dP_o / dx."""

    @staticmethod
    def forward(terms, x, coefficients, species, gradient):
        x, gradient = x.contiguous(), gradient.contiguous()
        found = torch.empty_like(x)
        run(find_kernel("polynomials", "slope", x, terms, x.shape[1]), len(x), x.shape[2], species, x, coefficients, gradient, found)
        return found

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.terms, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, direction):
        further = torch.is_grad_enabled()
        x, coefficients, species, gradient = ctx.saved_tensors
        with torch.enable_grad():
            x, gradient = (t if further and t.requires_grad else t.detach().requires_grad_() for t in (x, gradient))
            value = plain_polynomials(ctx.terms, x, coefficients, species)
            (slope,) = torch.autograd.grad(value, x, gradient, create_graph=True)
            by_x, by_gradient = torch.autograd.grad(
                slope, (x, gradient), direction, create_graph=further, allow_unused=True, materialize_grads=True
            )
        return None, by_x, None, None, by_gradient
