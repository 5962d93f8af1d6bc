"""Products of functions on the sphere at rings of points that mirror each other, where transforms are short: for kernels.

There, a signal is a sum over orders of a function of the ring times a cosine or sine of the angle: see kernels/cpu/signals.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from equimol.ops.function import Function, wanted_inputs
from equimol.ops.kernels import find_kernel, has_kernel, run
from equimol.ops.multilinear import Form, form_derivatives
from equimol.ops.signals import (
    REGISTERS,
    TOO_LONG,
    Tables,
    derivatives_by_kernel,
    derivatives_by_launches,
    derivatives_in_row_blocks,
    require_shapes,
)

#: of each role, for each signal: a component, its order, and whether it is the same on both rings of a pair
Entries = tuple[tuple[tuple[tuple[int, int, bool], ...], ...], ...]
#: a coefficient, the signals that are multiplied, each as (role, signal), and the signal of the result
Monomial = tuple[float, tuple[tuple[int, int], ...], int]
LONGEST = 1500  # entries of a kernel: 4 s to compile; degrees up to 12 of all couplings, where it is 8 times faster than other grids


class RingProduct(Form):
    """Sum over rows and rank of terms of the signals of a x, b y and c z, as of a `signal_product`: linear in x, y, z and in a, b, c.

    Args:
        terms: as of a `signal_product`.
        entries: of each role's signals, in the order of its table.
        sizes: how many components x, y and z have.

    The constants are, of each role, functions of the ring, on one ring of each pair [pairs, entries], and cosines and sines, negative
    orders first, at the angles of a quarter of a ring [2 most + 1, quarter].
    """

    count = 6

    def __init__(self, terms: Sequence[Sequence[int]], entries: Sequence, sizes: Sequence[int]) -> None:
        self.terms, self.sizes = tuple(map(tuple, terms)), tuple(sizes)
        self.entries = as_entries(entries)
        super().__init__(self.terms, self.entries, self.sizes)

    def derivatives(self, arguments, constants, wanted):
        like = next(t for t in arguments[:3] if t is not None)
        if not has_rings(like, self.entries):
            return derivatives_in_row_blocks(self.terms, arguments, at_points(self.entries, self.sizes, constants), wanted)
        shape = len(constants[0]), constants[3].shape[1]
        by = derivatives_by_kernel if like.device.type == "cpu" else derivatives_by_launches
        return by("ring_product", self.terms, self.entries, self.sizes, shape, arguments, constants, wanted)

    def shapes(self, arguments, constants):
        like = next(t for t in arguments[:3] if t is not None)
        rank = next((len(f) for f in arguments[3:] if f is not None), 1)
        return [(n, size, like.shape[2]) for n in (len(like), rank) for size in self.sizes]


def has_rings(like: Tensor, entries: Entries) -> bool:
    """Whether there is a kernel of a `ring_product` for such tensors."""
    if like.device.type == "cpu":
        fits = sum(len(signal) for role in entries for signal in role) <= LONGEST
    else:
        orders = sum(len(role) * (2 * max(abs(m) for signal in role for _, m, _ in signal) + 1) for role in entries)
        fits = orders * like.element_size() // 4 <= REGISTERS
    return has_kernel("signals", like, "" if fits else TOO_LONG)


def ring_product(
    form: RingProduct,
    x: Float[Tensor, "*batch1 dim1 channels"],
    y: Float[Tensor, "*batch2 dim2 channels"],
    factors: tuple[Float[Tensor, "rank dim1 channels"], Float[Tensor, "rank dim2 channels"], Float[Tensor, "rank dim3 channels"]] | None,
    constants: Sequence[Tensor],
) -> Float[Tensor, "*batch dim3 channels"]:
    """A `signal_product` on rings: far fewer operations where degrees are high. Of any order of derivative; nothing is kept by points."""
    expected = [(t, (size, x.shape[-1])) for t, size in zip((x, y, *(factors or ())), (*form.sizes[:2], *form.sizes), strict=False)]
    expected += [(t, (sum(map(len, role)),)) for t, role in zip(constants, form.entries, strict=False)]
    require_shapes(expected, x)
    batch = torch.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    rows = [t.expand(*batch, *t.shape[-2:]).reshape(math.prod(batch), *t.shape[-2:]) for t in (x, y)]
    arguments = (*rows, None, *(factors or (None, None, None)))
    z = form_derivatives(form, arguments, constants, (False, False, True, False, False, False))[2]
    return z.reshape(*batch, *z.shape[-2:])


class Polynomial(NamedTuple):
    """Sums of products of signals, of arguments that are each of a kind of feature: its signals and components, by `entries` of a call.

    Its derivative by an argument in the direction of a result is another one, with that direction as an argument.
    """

    terms: tuple[Monomial, ...]
    kinds: tuple[int, ...]  # of the arguments
    result: int  # its kind

    def derivative(self, place: int) -> tuple[Polynomial, tuple[int, ...]]:
        """By an argument, and which of the arguments and the direction, which comes after them, it depends on."""
        return _derivative(self, place)


@cache
def _derivative(polynomial: Polynomial, place: int) -> tuple[Polynomial, tuple[int, ...]]:
    direction = len(polynomial.kinds)
    found: dict[tuple, float] = {}
    for coefficient, factors, k in polynomial.terms:
        for n, (argument, signal) in enumerate(factors):
            if argument == place:
                rest = tuple(sorted((*factors[:n], *factors[n + 1 :], (direction, k))))
                found[rest, signal] = found.get((rest, signal), 0) + coefficient
    used = tuple(sorted({argument for factors, _ in found for argument, _ in factors}))
    terms = tuple((c, tuple((used.index(n), s) for n, s in factors), signal) for (factors, signal), c in found.items())
    kinds = (*polynomial.kinds, polynomial.result)
    return Polynomial(terms, tuple(kinds[n] for n in used), kinds[place]), used


def has_ring_polynomials(like: Tensor, entries: Entries) -> bool:
    """Whether there is a kernel of a `ring_polynomial` of such tensors. Under transforms of ``torch.func`` there is none."""
    longest = 2 * sum(len(signal) for role in entries for signal in role)  # with directions
    obstacle = TOO_LONG if longest > LONGEST else ""
    if torch._C._are_functorch_transforms_active():
        obstacle = "powers of functions have none under transforms of torch.func"
    if like.device.type == "cuda":
        obstacle = "powers of functions have none there yet"
    return has_kernel("signals", like, obstacle)


def ring_polynomial(
    polynomial: Polynomial,
    entries: Entries,
    sizes: Sequence[int],
    arguments: Sequence[Float[Tensor, "rows _ channels"]],
    constants: Sequence[Tensor],
) -> Float[Tensor, "rows _ channels"]:
    """A polynomial of signals, and the way back: of any order of derivative, each by one kernel; nothing is kept by points.

    ``entries`` and ``sizes`` are of each kind of feature, ``constants`` their functions of the ring, and waves: see `RingProduct`.
    """
    expected = [(x, (len(arguments[0]), sizes[kind], arguments[0].shape[2])) for x, kind in zip(arguments, polynomial.kinds, strict=True)]
    expected += [(t, (sum(map(len, role)),)) for t, role in zip(constants, entries, strict=False)]
    require_shapes(expected, arguments[0])
    return _Polynomial.apply(polynomial, entries, tuple(sizes), len(arguments), *arguments, *constants)


class _Polynomial(Function):
    @staticmethod
    def forward(polynomial: Polynomial, entries: Entries, sizes: tuple[int, ...], count: int, *tensors: Tensor) -> Tensor:
        arguments, constants = [x.contiguous() for x in tensors[:count]], tensors[count:]
        like, roles = arguments[0], (*polynomial.kinds, polynomial.result)
        if not has_ring_polynomials(like, entries):
            return plain_ring_polynomial(polynomial, entries, sizes, arguments, constants)
        shape = len(constants[0]), constants[-1].shape[1]
        description = polynomial.terms, tuple(entries[kind] for kind in roles), tuple(sizes[kind] for kind in roles), *shape
        kernel = find_kernel("signals", "ring_polynomial", like, *description)
        found = like.new_empty(len(like), sizes[polynomial.result], like.shape[2])
        unused = [0] * (1 + len(roles))  # the result as it was, factors
        tables = [constants[kind].contiguous() for kind in (*roles, -1)]
        run(kernel, len(like), 1, len(like), like.shape[2], 1, True, False, *arguments, *unused, *tables, found, 0)
        return found

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.polynomial, ctx.entries, ctx.sizes, ctx.count, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        needed = wanted_inputs(ctx)[4 : 4 + ctx.count]
        arguments, constants = (*ctx.saved_tensors[: ctx.count], grad), ctx.saved_tensors[ctx.count :]
        found: list[Tensor | None] = []
        for place, need in enumerate(needed):
            polynomial, used = ctx.polynomial.derivative(place) if need else (None, ())
            chosen = [arguments[n] for n in used]
            found.append(_Polynomial.apply(polynomial, ctx.entries, ctx.sizes, len(used), *chosen, *constants) if need else None)
        return (None, None, None, None, *found, *[None] * len(constants))


def plain_ring_polynomial(
    polynomial: Polynomial, entries: Entries, sizes: Sequence[int], arguments: Sequence[Tensor], constants: Sequence[Tensor]
) -> Tensor:
    """The same by differentiable operations at all points: the reference."""
    tables = at_points(entries, sizes, constants)
    values = [torch.einsum("spn,rnc->srpc", tables[kind], x) for kind, x in zip(polynomial.kinds, arguments, strict=True)]
    result = tables[polynomial.result]
    products = [torch.zeros_like(values[0][0]) for _ in result]
    for coefficient, factors, k in polynomial.terms:
        products[k] = products[k] + coefficient * math.prod(
            (values[n][s] for n, s in factors[1:]), start=values[factors[0][0]][factors[0][1]]
        )
    return torch.einsum("spn,srpc->rnc", result, torch.stack(products))


def at_points(entries: Entries, sizes: Sequence[int], constants: Sequence[Tensor]) -> Tables:
    """Tables at all points of all rings [signals, points, components] of each role: what a `signal_product` takes."""
    *functions, waves = constants
    most, found = len(waves) // 2, []
    for role, table, size in zip(entries, functions, sizes, strict=True):
        whole, at = table.new_zeros(len(role), 2, len(table), 4, waves.shape[1], size), 0
        for signal, of_signal in enumerate(role):
            for component, order, even in of_signal:
                wave, parity = waves[most + order], (-1) ** order
                signs = (1, 1, parity, parity) if order >= 0 else (1, -1, -parity, parity)  # at a, -a, pi - a and pi + a
                for ring, mirrored in enumerate((1, 1 if even else -1)):
                    for quarter, sign in enumerate(signs):
                        whole[signal, ring, :, quarter, :, component] += mirrored * sign * table[:, at, None] * wave
                at += 1
        found.append(whole.flatten(1, 4))
    return tuple(found)


def as_entries(entries: Sequence) -> Entries:
    """Of lists."""
    return tuple(tuple(tuple(map(tuple, signal)) for signal in role) for role in entries)
