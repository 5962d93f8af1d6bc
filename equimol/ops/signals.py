"""Products of features as signals: maps to values at points, products of values, a map back.

Fused: on CUDA by a kernel, elsewhere by blocks of rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from equimol.ops.kernels import find_kernel, has_kernel, run
from equimol.ops.multilinear import form_derivatives

#: (signal of x, signal of y, signal of z, sign): what is multiplied and what it is added to
Term = tuple[int, int, int, int]
Tables = tuple[Float[Tensor, "signals1 points dim1"], Float[Tensor, "signals2 points dim2"], Float[Tensor, "signals3 points dim3"]]

REGISTERS = 160  # of 32 bits, that x, y and z of a channel may take in a kernel: with more they would not stay in them
BLOCK_NUMBERS = 2**19  # values that are alive at a time, per thread: about what the cache of a core holds


def signal_product(
    x: Float[Tensor, "*batch1 dim1 channels"],
    y: Float[Tensor, "*batch2 dim2 channels"],
    factors: tuple[Float[Tensor, "rank dim1 channels"], Float[Tensor, "rank dim2 channels"], Float[Tensor, "rank dim3 channels"]] | None,
    tables: Tables,
    terms: tuple[Term, ...],
) -> Float[Tensor, "*batch dim3 channels"]:
    """z = sum over r of c_r C^T [(A a_r x) * (B b_r y)], for factors a, b, c and tables A, B, C, which are constants.

    The product * of signals is that of ``terms``: (i, j, k, s) adds s (A_i x)_p (B_j y)_p to signal k at each point p.

    Of any order of derivative: z and its derivatives are those of one form, linear in x, y, z and in each factor, with other arguments.
    Nothing else is kept for them, so that values at points never reach the memory. While torch.compile traces, it is
    `plain_signal_product`.
    """
    if torch.compiler.is_compiling():
        return plain_signal_product(x, y, factors, tables, terms)
    batch = torch.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    rows = [t.expand(*batch, *t.shape[-2:]).reshape(math.prod(batch), *t.shape[-2:]) for t in (x, y)]
    arguments = (*rows, None, *(factors or (None, None, None)))
    compute = _fused if _has_fused(rows[0], tables) else _in_row_blocks
    z = form_derivatives(partial(compute, terms), arguments, tables, (False, False, True, False, False, False))[2]
    return z.reshape(*batch, *z.shape[-2:])


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


def _has_fused(x: Tensor, tables: Tables) -> bool:
    """Whether a kernel is taken: there is none on a CPU, where blocks of rows are as good."""
    registers = sum(table.shape[2] for table in tables) * x.element_size() // 4
    return x.device.type == "cuda" and registers <= REGISTERS and has_kernel("signals", x)


def _fused(terms: tuple[Term, ...], arguments: Sequence[Tensor | None], tables: Tables, wanted: Sequence[bool]) -> list[Tensor | None]:
    """What `_in_row_blocks` finds, by a kernel that keeps values at points in registers; factors are multiplied outside."""
    features, factors = arguments[:3], arguments[3:]
    like = next(t for t in features if t is not None)
    size, channels = len(like), like.shape[-1]
    rank = next((len(f) for f in factors if f is not None), 1)
    tables = [table.contiguous() for table in tables]
    out: list[Tensor | None] = [None] * 3
    sums: list[list[Tensor]] = [[], [], []]
    for r in range(rank):
        scaled = [x if x is None or f is None else x * f[r] for x, f in zip(features, factors, strict=True)]
        for role in range(3):
            if not (wanted[role] or wanted[3 + role]):
                continue
            order = *(n for n in range(3) if n != role), role
            moved = tuple((*(term[n] for n in order), term[3]) for term in terms)
            signals, points, dims = ([tables[n].shape[axis] for n in order] for axis in range(3))
            kernel = find_kernel("signals", "product", like, moved, tuple(signals), tuple(dims), points[0])
            z = like.new_empty(size, dims[2], channels)
            run(kernel, size, size, channels, *(tables[n] for n in order), *(scaled[n] for n in order[:2]), z)
            if wanted[3 + role]:
                sums[role].append((z * features[role]).sum(0))
            if wanted[role]:
                z = z if factors[role] is None else z * factors[role][r]
                out[role] = z if out[role] is None else out[role].add_(z)
    return [*out, *(torch.stack(parts) if parts else None for parts in sums)]


def _in_row_blocks(
    terms: tuple[Term, ...], arguments: Sequence[Tensor | None], tables: Tables, wanted: Sequence[bool]
) -> list[Tensor | None]:
    """The wanted derivatives of sum over r and rows of the form (a_r x, b_r y, c_r z), with respect to x, y, z, a, b, c."""
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
