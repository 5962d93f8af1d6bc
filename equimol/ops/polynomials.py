"""Polynomials of the components of a feature, their coefficients for each element and channel: compiled from the list of terms."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from equimol.ops.convolution import edges_of
from equimol.ops.function import Function, wanted_inputs
from equimol.ops.kernels import find_kernel, has_kernel, run
from equimol.ops.scatter import gather

Terms = tuple[tuple[int, tuple[int, ...]], ...]  # of each its polynomial, and the components that are multiplied, ascending

# P(x, d) are the polynomials with coefficients d, S = sum g P, and S' = v . dS/dx. S is linear in d and g, S' in d, g and v: these are
# their derivatives, and what each of them becomes when it is differentiated, in a direction h, by the arguments it depends on.
_KERNELS = {
    "value": {"x": ("slope", "xdh"), "d": ("coefficients", "xh")},  # dS/dg
    "slope": {"x": ("slope_along", "xdgh"), "d": ("coefficients_along", "xgh"), "g": ("value_along", "xdh")},  # dS/dx and dS'/dv
    "coefficients": {"x": ("slope", "xhg"), "g": ("value", "xh")},  # dS/dd
    "value_along": {"x": ("slope_along", "xdhv"), "d": ("coefficients_along", "xhv"), "v": ("slope", "xdh")},  # dS'/dg
    "coefficients_along": {"x": ("slope_along", "xhgv"), "g": ("value_along", "xhv"), "v": ("slope", "xhg")},  # dS'/dd
    "slope_along": None,  # dS'/dx: by PyTorch's operations
}
_ARGUMENTS = {"value": "xd", "slope": "xdg", "coefficients": "xg", "value_along": "xdv", "coefficients_along": "xgv", "slope_along": "xdgv"}


def has_polynomials(like: Tensor) -> bool:
    """Whether there is a kernel of `polynomials` of such tensors. Under transforms of ``torch.func`` there is none."""
    transformed = torch._C._are_functorch_transforms_active()
    return has_kernel("polynomials", like, "polynomials have none under transforms of torch.func" if transformed else "")


def polynomials(
    terms: Terms,
    x: Float[Tensor, "atoms size channels"],
    coefficients: Float[Tensor, "elements terms channels"],
    species: Int[Tensor, " atoms"],
) -> Float[Tensor, "atoms polynomials channels"]:
    """P_o = sum over terms (o, i j ...) of coefficient x_i x_j ..., with the coefficients of the atom's element. There must be a kernel.

    Derivatives of any order in both; those that training on forces takes are compiled, and keep nothing but the inputs.
    """
    if coefficients.shape[1:] != (len(terms), x.shape[2]) or coefficients.dtype != x.dtype:
        raise ValueError(
            f"coefficients must be {x.dtype} [elements, {len(terms)}, {x.shape[2]}], got {coefficients.dtype} {list(coefficients.shape)}"
        )
    least, most = map(int, torch.aminmax(species)) if len(species) else (0, -1)
    if len(species) != len(x) or least < 0 or most >= len(coefficients):  # a kernel does not look
        raise ValueError(f"species must be in 0..{len(coefficients) - 1}, one for each of {len(x)} atoms, got {least}..{most}")
    return _Compiled.apply("value", terms, len(coefficients), species.contiguous(), x, coefficients)


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


class _Compiled(Function):
    """One of `_KERNELS`."""

    @staticmethod
    def forward(name: str, terms: Terms, elements: int, species: Tensor, *tensors: Tensor) -> Tensor:
        tensors = [t.contiguous() for t in tensors]
        x = tensors[0]
        atoms, size, channels = x.shape
        kernel = find_kernel("polynomials", name, x, terms, size)
        if name.startswith("coefficients"):
            from equimol.ops.vector_code import LANES  # there is one, as there is a kernel

            found = x.new_empty(elements, len(terms), channels)
            run(kernel, -(-channels // LANES[x.dtype]), channels, elements, *edges_of(species, elements), *tensors, found)
        else:
            found = x.new_empty(atoms, count_polynomials(terms) if name.startswith("value") else size, channels)
            run(kernel, atoms, channels, species, *tensors, found)
        return found

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.name, ctx.terms, ctx.elements, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, direction: Tensor) -> tuple[Tensor | None, ...]:
        species, *tensors = ctx.saved_tensors
        wanted = wanted_inputs(ctx)[4:]
        letters, derivatives = _ARGUMENTS[ctx.name], _KERNELS[ctx.name]
        if derivatives is None:
            return None, None, None, None, *_plain_derivatives(ctx.terms, species, tensors, direction, wanted)
        given, found = dict(zip(letters, tensors, strict=True)) | {"h": direction}, []
        for letter, want in zip(letters, wanted, strict=True):
            name, arguments = derivatives[letter]
            chosen = [given[argument] for argument in arguments] if want else ()
            found.append(_Compiled.apply(name, ctx.terms, ctx.elements, species, *chosen) if want else None)
        return None, None, None, None, *found


def _plain_derivatives(terms: Terms, species: Tensor, tensors: list[Tensor], direction: Tensor, wanted: tuple[bool, ...]) -> list:
    """Those of slope_along."""
    further = torch.is_grad_enabled()
    with torch.enable_grad():
        x, d, g, v = tensors = [t if further and t.requires_grad else t.detach().requires_grad_() for t in tensors]
        (slope,) = torch.autograd.grad(plain_polynomials(terms, x, d, species), x, g, create_graph=True)
        (along,) = torch.autograd.grad(slope, x, v, create_graph=True, materialize_grads=True)
        leaves = [t for t, want in zip(tensors, wanted, strict=True) if want]
        found = iter(torch.autograd.grad(along, leaves, direction, create_graph=further, allow_unused=True, materialize_grads=True))
    return [next(found) if want else None for want in wanted]
