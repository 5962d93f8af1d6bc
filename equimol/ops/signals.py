"""Products of features as signals: maps to values at points, products of values, a map back. Fused where there is a kernel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from equimol.ops.kernels import find_kernel, has_kernel, run
from equimol.ops.multilinear import Form, form_derivatives

#: (signal of x, signal of y, signal of z, sign): what is multiplied and what it is added to
Term = tuple[int, int, int, int]
Tables = tuple[Float[Tensor, "signals1 points dim1"], Float[Tensor, "signals2 points dim2"], Float[Tensor, "signals3 points dim3"]]
#: of each table, for each signal, the components that are not zero at all points
Components = tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]

REGISTERS = 160  # of 32 bits, that x, y and z of a channel may take in a kernel for CUDA: with more they would not stay in them
BLOCK_NUMBERS = 2**19  # values that are alive at a time, per thread: about what the cache of a core holds
TOO_LONG = "it would be too long, at so high degrees"
PARTS = 64  # of the rows, each with its own sums, when a kernel computes derivatives by factors
# Entries of all tables at a point, up to which there is a kernel. Products on grids are faster by it at all sizes measured, 1.6 to 3
# times for degrees 2 to 8; but what is longer than degree 8 (650 entries, 3 s) takes too long to compile.
LONGEST = 700


def signal_product(
    x: Float[Tensor, "*batch1 dim1 channels"],
    y: Float[Tensor, "*batch2 dim2 channels"],
    factors: tuple[Float[Tensor, "rank dim1 channels"], Float[Tensor, "rank dim2 channels"], Float[Tensor, "rank dim3 channels"]] | None,
    tables: Tables,
    terms: tuple[Term, ...],
    components: Components | None = None,
) -> Float[Tensor, "*batch dim3 channels"]:
    """z = sum over r of c_r C^T [(A a_r x) * (B b_r y)], for factors a, b, c and tables A, B, C, which are constants.

    The product * of signals is that of ``terms``: (i, j, k, s) adds s (A_i x)_p (B_j y)_p to signal k at each point p.

    ``components`` are those of each signal that are not zero at all points: a kernel skips the others. All of them if not given.

    Of any order of derivative: z and its derivatives are those of one form, linear in x, y, z and in each factor, with other arguments.
    Nothing else is kept for them, so that values at points never reach the memory. While torch.compile traces, it is
    `plain_signal_product`.
    """
    if torch.compiler.is_compiling():
        return plain_signal_product(x, y, factors, tables, terms)
    _require_shapes(x, y, factors, tables)
    batch = torch.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    rows = [t.expand(*batch, *t.shape[-2:]).reshape(math.prod(batch), *t.shape[-2:]) for t in (x, y)]
    arguments = (*rows, None, *(factors or (None, None, None)))
    if components is None:
        components = tuple((tuple(range(table.shape[2])),) * len(table) for table in tables)
    z = form_derivatives(_form(terms, components), arguments, tables, (False, False, True, False, False, False))[2]
    return z.reshape(*batch, *z.shape[-2:])


def _require_shapes(x: Tensor, y: Tensor, factors: tuple[Tensor, ...] | None, tables: Tables) -> None:
    """A kernel does not look where it reads."""
    rank, channels, points = len(factors[0]) if factors else 1, x.shape[-1], tables[0].shape[1]
    expected = [(t, (table.shape[2], channels)) for t, table in zip((x, y), tables, strict=False)]
    expected += [(f, (rank, table.shape[2], channels)) for f, table in zip(factors or (), tables, strict=False)]
    expected += [(table, (points, table.shape[2])) for table in tables]
    require_shapes(expected, x)


def require_shapes(expected: Sequence[tuple[Tensor, tuple[int, ...]]], x: Tensor) -> None:
    """Raises ValueError where a tensor has other last dimensions than stated, or not the dtype and device of x."""
    for tensor, shape in expected:
        if tensor.shape[-len(shape) :] != shape or tensor.dtype != x.dtype or tensor.device != x.device:
            raise ValueError(
                f"features, factors and tables must agree, expected {x.dtype} [..., {', '.join(map(str, shape))}] on {x.device}, got"
                f" {tensor.dtype} {list(tensor.shape)} on {tensor.device}"
            )


def plain_signal_product(
    x: Tensor, y: Tensor, factors: tuple[Tensor, Tensor, Tensor] | None, tables: Tables, terms: tuple[Term, ...]
) -> Tensor:
    """The same by differentiable operations on the whole batch: the reference."""
    if factors is not None:
        x, y = x.unsqueeze(-3) * factors[0], y.unsqueeze(-3) * factors[1]
    f, g = (
        torch.matmul(table.flatten(0, 1), t).unflatten(-2, table.shape[:2]).unbind(-3) for table, t in zip(tables[:2], (x, y), strict=True)
    )
    values: list[Tensor | None] = [None] * len(tables[2])
    for i, j, k, sign in terms:
        product = f[i] * g[j] if sign > 0 else -f[i] * g[j]
        values[k] = product if values[k] is None else values[k] + product
    z = torch.matmul(tables[2].flatten(0, 1).mT, torch.cat(values, dim=-2))
    return z if factors is None else (z * factors[2]).sum(-3)


class SignalProduct(Form):
    """Sum over rows and rank of terms of the signals of a x, b y and c z: linear in x, y, z and in a, b, c."""

    count = 6

    def __init__(self, terms: Sequence[Sequence[int]], components: Sequence[Sequence[Sequence[int]]]) -> None:
        self.terms = tuple(map(tuple, terms))
        self.components = tuple(tuple(map(tuple, signals)) for signals in components)
        super().__init__(self.terms, self.components)

    def derivatives(self, arguments, constants, wanted):
        return _derivatives(self.terms, self.components, arguments, tuple(constants), wanted)

    def shapes(self, arguments, constants):
        like = next(t for t in arguments[:3] if t is not None)
        rank = next((len(f) for f in arguments[3:] if f is not None), 1)
        sizes = [table.shape[2] for table in constants]
        return [(n, size, like.shape[2]) for n in (len(like), rank) for size in sizes]


_form = cache(SignalProduct)


def is_compiled(like: Tensor, components: Components) -> bool:
    """Whether products of such tensors have a kernel, which on a CPU skips components that are zero; PyTorch's operations do not."""
    if like.device.type == "cpu":
        fits = sum(len(used) for signals in components for used in signals) <= LONGEST
    else:
        fits = sum(len(set().union(*signals)) for signals in components) * like.element_size() // 4 <= REGISTERS
    return has_kernel("signals", like, "" if fits else TOO_LONG)


def _derivatives(
    terms: tuple[Term, ...], components: Components, arguments: Sequence[Tensor | None], tables: Tables, wanted: Sequence[bool]
) -> list[Tensor | None]:
    """The wanted derivatives of sum over r and rows of the form (a_r x, b_r y, c_r z), with respect to x, y, z, a, b, c."""
    like = next(t for t in arguments[:3] if t is not None)
    if not is_compiled(like, components):
        return derivatives_in_row_blocks(terms, arguments, tables, wanted)
    sizes = [table.shape[2] for table in tables]
    if like.device.type == "cuda":
        return derivatives_by_launches(
            "product", terms, [len(table) for table in tables], sizes, tables[0].shape[1:2], arguments, tables, wanted
        )
    return derivatives_by_kernel("product", terms, components, sizes, tables[0].shape[1:2], arguments, (*tables, None), wanted)


def derivatives_by_kernel(
    name: str,
    terms: tuple[Term, ...],
    contents: Sequence,
    sizes: Sequence[int],
    shape: Sequence[int],
    arguments: Sequence[Tensor | None],
    tables: Sequence[Tensor | None],
    wanted: Sequence[bool],
) -> list[Tensor | None]:
    """The same by a kernel: written for the terms, what the signals of each role contain, its components, and the shape of the points."""
    features, factors = arguments[:3], arguments[3:]
    like = next(t for t in features if t is not None)
    rows, channels, rank = len(like), like.shape[-1], next((len(f) for f in factors if f is not None), 1)
    found: list[Tensor | None] = [None] * 6
    for role in range(3):
        if not (wanted[role] or wanted[3 + role]):
            continue
        order = [n for n in range(3) if n != role] + [role]  # what is made stands in the place of z
        description = (
            tuple(sorted((*(term[n] for n in order), term[3]) for term in terms)),  # sorted, for fewer to be compiled
            tuple(contents[n] for n in order),
            tuple(sizes[n] for n in order),
            *shape,
            factors[role] is not None,
        )
        each = -(-rows // PARTS) if wanted[3 + role] else 1
        parts = -(-rows // max(1, each))
        if wanted[role]:
            found[role] = like.new_empty(rows, sizes[role], channels)
        sums = like.new_zeros(parts, *factors[role].shape) if wanted[3 + role] else None
        inputs = [array[n] for array in (features, factors, tables) for n in order]
        places = [0 if t is None else t.contiguous() for t in (*inputs, tables[3], found[role], sums)]
        kernel = find_kernel("signals", name, like, *description)
        run(kernel, parts, each, rows, channels, rank, wanted[role], wanted[3 + role], *places)
        found[3 + role] = None if sums is None else sums.sum(0)
    return found


def derivatives_by_launches(
    name: str,
    terms: tuple[Term, ...],
    contents: Sequence,
    sizes: Sequence[int],
    shape: Sequence[int],
    arguments: Sequence[Tensor | None],
    tables: Sequence[Tensor],
    wanted: Sequence[bool],
) -> list[Tensor | None]:
    """What `derivatives_by_kernel` finds by kernels of CUDA, which do not know factors: those are multiplied outside."""
    features, factors = arguments[:3], arguments[3:]
    like = next(t for t in features if t is not None)
    rows, channels, rank = len(like), like.shape[-1], next((len(f) for f in factors if f is not None), 1)
    tables = [table.contiguous() for table in tables]
    found: list[Tensor | None] = [None] * 3
    sums: list[list[Tensor]] = [[], [], []]
    for r in range(rank):
        scaled = [x if x is None or f is None else x * f[r] for x, f in zip(features, factors, strict=True)]
        for role in range(3):
            if not (wanted[role] or wanted[3 + role]):
                continue
            order = [n for n in range(3) if n != role] + [role]
            moved = tuple(sorted((*(term[n] for n in order), term[3]) for term in terms))
            kernel = find_kernel("signals", name, like, moved, tuple(contents[n] for n in order), tuple(sizes[n] for n in order), *shape)
            z = like.new_empty(rows, sizes[role], channels)
            run(kernel, rows, rows, channels, *(tables[n] for n in order), *tables[3:], *(scaled[n] for n in order[:2]), z)
            if wanted[3 + role]:
                sums[role].append((z * features[role]).sum(0))
            if wanted[role]:
                z = z if factors[role] is None else z * factors[role][r]
                found[role] = z if found[role] is None else found[role].add_(z)
    return [*found, *(torch.stack(parts) if parts else None for parts in sums)]


def derivatives_in_row_blocks(
    terms: tuple[Term, ...], arguments: Sequence[Tensor | None], tables: Tables, wanted: Sequence[bool]
) -> list[Tensor | None]:
    """The same by PyTorch's operations, rows by rows."""
    features, factors = arguments[:3], arguments[3:]
    like = next(t for t in features if t is not None)
    size, channels, points = len(like), like.shape[-1], tables[0].shape[1]
    made = [role for role in range(3) if wanted[role] or wanted[3 + role]]
    needed = [role for role in range(3) if any(other != role for other in made)]
    rank = next((len(f) for f in factors if f is not None), 1)
    rows = max(1, size)
    if like.device.type == "cpu":
        numbers = (sum(len(tables[role]) for role in needed) + max(len(tables[role]) for role in made)) * points * channels
        blocks = -(-size * numbers // (BLOCK_NUMBERS * torch.get_num_threads()))
        rows = -(-rows // max(1, blocks))
    # Nothing is allocated, and no view is made, per block: both cost more than the arithmetic on it.
    out = [like.new_empty(size, tables[role].shape[2], channels) if wanted[role] else None for role in range(3)]
    sums = [like.new_zeros(rank, rows, *factors[role].shape[1:]) if wanted[3 + role] else None for role in range(3)]
    signals = [like.new_empty(rows, len(tables[role]), points, channels) if role in needed else None for role in range(3)]
    product = like.new_empty(rows * max(len(table) for table in tables) * points * channels)
    scaled = like.new_empty(rows * max(table.shape[2] for table in tables) * channels)
    parts = [None if t is None else t.split(rows) for t in (*features, *out)]
    for n, count in enumerate([rows] * (size // rows) + [size % rows] * (size % rows > 0)):
        if n == 0 or count < rows:
            to_points = [table.flatten(0, 1).expand(count, -1, -1) for table in tables]
            samples = [None if s is None else s[:count].flatten(1, 2) for s in signals]
            if len(terms) == len(made) == 1:
                products = [samples[needed[0]]] * 3  # nothing else needs these values again
            else:
                products = [product[: count * len(table) * points * channels].view(count, -1, channels) for table in tables]
            rows_scaled = [scaled[: count * table.shape[2] * channels].view(count, -1, channels) for table in tables]
            steps = [_steps(role, samples, products[role], points, terms) for role in range(3)]
        for r in range(rank):
            for role in needed:
                x = parts[role][n]
                if factors[role] is not None:
                    x = torch.mul(x, factors[role][r], out=rows_scaled[role])
                torch.bmm(to_points[role], x, out=samples[role])
            for role in made:
                for first, f, g, target, sign in steps[role]:
                    if not first:
                        target.addcmul_(f, g, value=sign)
                    else:
                        torch.mul(f, g, out=target)
                        if sign < 0:
                            target.neg_()
                z = parts[3 + role][n] if factors[role] is None else rows_scaled[role]
                torch.bmm(to_points[role].mT, products[role], out=z)
                if wanted[3 + role]:
                    sums[role][r, :count].addcmul_(z, parts[role][n])
                if wanted[role] and factors[role] is not None:
                    if r == 0:
                        torch.mul(z, factors[role][r], out=parts[3 + role][n])
                    else:
                        parts[3 + role][n].addcmul_(z, factors[role][r])
    return [*out, *(None if s is None else s.sum(1) for s in sums)]


def _steps(role: int, samples: Sequence[Tensor | None], product: Tensor, points: int, terms: tuple[Term, ...]) -> list[tuple]:
    """How the signals of one role are made of those of the two others: first or not, two factors, target, sign."""
    (f, first), (g, second) = ((samples[n], n) for n in range(3) if n != role)
    if f is None or g is None:
        return []
    f, g, product = (t.unflatten(1, (-1, points)).unbind(1) for t in (f, g, product))
    steps, begun = [], set()
    for *term, sign in sorted(terms, key=lambda term: -term[3]):
        target = term[role]
        steps.append((target not in begun, f[term[first]], g[term[second]], product[target], sign))
        begun.add(target)
    return steps
