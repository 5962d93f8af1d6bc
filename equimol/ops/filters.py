"""Sums over neighbours of signals times a filter per edge: nothing of the size edges x points x channels reaches the memory."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from equimol.ops.convolution import edges_of, require_beside, require_edges, require_within
from equimol.ops.kernels import find_kernel, has_kernel, is_traced, run
from equimol.ops.multilinear import Form, form_derivatives, form_operator
from equimol.ops.scatter import gather, scatter_sum
from equimol.ops.signals import BLOCK_NUMBERS, Term


def filtered_sum(
    samples: Float[Tensor, "atoms signals1 points channels"],
    harmonics: Float[Tensor, "edges size"],
    weights: Float[Tensor, "edges degrees rank channels"],
    senders: Int[Tensor, " edges"],
    receivers: Int[Tensor, " edges"],
    table: Float[Tensor, "size signals2 points degrees"],
    terms: tuple[Term, ...],
) -> Float[Tensor, "atoms signals3 points rank channels"]:
    """Sum over the edges of each receiver of f_p g_p, signals of the sender times those of the filter g = sum_l w_l (harmonics table)_l.

    A term (i, j, k, s) adds s f_i g_j to signal k. Of any order of derivative, without keeping values at points: filters are made again
    for each. The table is a constant. In a program of PyTorch's compiler it is one operator; in traced ones, `plain_filtered_sum`.
    """
    if is_traced() or (torch.compiler.is_compiling() and samples.device.type != "cpu"):
        return plain_filtered_sum(samples, harmonics, weights, senders, receivers, table, terms)
    edges, channels = len(senders), samples.shape[3]
    require_edges(edges, senders=senders, receivers=receivers)
    shapes = [
        ("samples", samples, (len(samples), samples.shape[1], table.shape[2], channels)),
        ("harmonics", harmonics, (edges, len(table))),
    ]
    shapes += [("weights", weights, (edges, table.shape[3], weights.shape[2], channels)), ("table", table, table.shape)]
    require_beside(samples, edges, shapes)
    if samples.shape[1] <= max(i for i, *_ in terms) or table.shape[1] <= max(j for _, j, *_ in terms):
        raise ValueError(f"terms must be of the {samples.shape[1]} signals of samples and {table.shape[1]} of the table, got {terms}")
    arguments, wanted = (samples, harmonics, weights, None), (False, False, False, True)
    constants = senders.contiguous(), receivers.contiguous(), table
    derivatives = form_operator if torch.compiler.is_compiling() else form_derivatives
    return derivatives(_form(terms), arguments, constants, wanted)[3]


def plain_filtered_sum(
    samples: Tensor, harmonics: Tensor, weights: Tensor, senders: Tensor, receivers: Tensor, table: Tensor, terms: tuple[Term, ...]
) -> Tensor:
    """The same by differentiable operations on all edges at once: the reference."""
    f = gather(samples, senders).unsqueeze(-2).unbind(1)
    zonal = (harmonics @ table.flatten(1)).unflatten(-1, table.shape[1:])
    g = torch.einsum("espl,elrc->esprc", zonal, weights).unbind(1)
    values: list[Tensor | None] = [None] * _signals_out(terms)
    for i, j, k, sign in terms:
        product = f[i] * g[j] if sign > 0 else -f[i] * g[j]
        values[k] = product if values[k] is None else values[k] + product
    return scatter_sum(torch.stack(values, dim=1), receivers, len(samples))


class FilteredSum(Form):
    """Sum over edges of terms of samples, filters (harmonics times weights) and the result."""

    count = 4

    def __init__(self, terms: Sequence[Sequence[int]]) -> None:
        self.terms = tuple(map(tuple, terms))
        super().__init__(self.terms)

    def derivatives(self, arguments, constants, wanted):
        if has_kernel("filters", arguments[2]):
            return self._by_kernels(arguments, constants, wanted)
        return _in_edge_blocks(self.terms, arguments, constants, wanted)

    def _by_kernels(self, arguments, constants, wanted):
        samples, harmonics, weights, out = arguments
        senders, receivers, table = constants
        (edges, degrees, rank, channels), (signals, points), atoms = weights.shape, table.shape[1:3], len(samples)
        if edges == 0:
            return [torch.zeros_like(x) if want else None for x, want in zip((samples, harmonics, weights), wanted, strict=False)] + [
                samples.new_zeros(self.shapes(arguments, constants)[3]) if wanted[3] else None
            ]
        require_within(atoms, senders=senders, receivers=receivers)
        description = self.terms, (samples.shape[1], signals, _signals_out(self.terms)), points, degrees, rank
        flat, found = table.flatten(1), [None] * 4
        zonal = torch.mm(harmonics, flat)

        def launch(name: str, *domain_and_arrays) -> None:
            run(find_kernel("filters", name, weights, *description), *domain_and_arrays)

        if wanted[0]:
            found[0] = torch.empty_like(samples)
            launch("by_samples", atoms, channels, *edges_of(senders, atoms), receivers, out, zonal, weights, found[0])
        if wanted[1]:
            of_zonal = torch.empty_like(zonal)
            launch("by_zonal", edges, channels, senders, receivers, samples, weights, out, of_zonal)
            found[1] = torch.mm(of_zonal, flat.T)
        if wanted[2]:
            found[2] = torch.empty_like(weights)
            launch("by_weights", edges, channels, senders, receivers, samples, zonal, out, found[2])
        if wanted[3]:
            found[3] = samples.new_empty(self.shapes(arguments, constants)[3])
            launch("by_sums", atoms, channels, *edges_of(receivers, atoms), senders, samples, zonal, weights, found[3])
        return found

    def shapes(self, arguments, constants):
        samples, _, weights, _ = arguments  # both are always there
        senders, _, table = constants
        out = len(samples), _signals_out(self.terms), samples.shape[2], weights.shape[2], samples.shape[3]
        return samples.shape, (len(senders), len(table)), weights.shape, out


_form = cache(FilteredSum)


def _in_edge_blocks(
    terms: tuple[Term, ...], arguments: Sequence[Tensor | None], constants: Sequence[Tensor], wanted: Sequence[bool]
) -> list[Tensor | None]:
    """The wanted derivatives of sum over edges of the form, with respect to samples, harmonics, weights and the result."""
    samples, harmonics, weights, out = arguments
    senders, receivers, table = constants
    (edges, degrees, rank, channels), (signals, points) = weights.shape, table.shape[1:3]
    sums, per_point, flat = _signals_out(terms), rank * channels, table.flatten(1)
    rows = max(1, edges)
    if samples.device.type == "cpu":
        numbers = (samples.shape[1] + rank * (signals + 2 * sums)) * points * channels
        blocks = -(-edges * numbers // (BLOCK_NUMBERS * torch.get_num_threads()))
        rows = -(-rows // max(1, blocks))
    of_samples = torch.zeros_like(samples) if wanted[0] else None
    of_harmonics = torch.empty_like(harmonics) if wanted[1] else None
    of_weights = torch.empty_like(weights) if wanted[2] else None
    of_out = samples.new_zeros(len(samples), sums, points, rank, channels) if wanted[3] else None
    # Memory of one block, used for all: new memory costs more than the arithmetic on it.
    f_memory = samples.new_empty(rows, *samples.shape[1:])
    zonal_memory = samples.new_empty(rows, signals * points * degrees)
    g_memory = samples.new_empty(rows, signals * points, per_point)
    h_memory = samples.new_empty(rows, sums, points, rank, channels)
    product_memory = samples.new_empty(rows * max(samples.shape[1], signals, sums) * points * per_point)
    for start in range(0, edges, rows):
        block = slice(start, min(start + rows, edges))
        count = block.stop - start
        f = g = h = None
        zonal = torch.mm(harmonics[block], flat, out=zonal_memory[:count]).view(count, signals * points, degrees)
        mixing = weights[block].flatten(2)
        products = [
            product_memory[: count * n * points * per_point].view(count, n, points, rank, channels)
            for n in (samples.shape[1], signals, sums)
        ]
        if any(wanted[1:]):
            f = torch.index_select(samples, 0, senders[block], out=f_memory[:count]).unsqueeze(-2)
        if wanted[0] or wanted[3]:
            g = torch.bmm(zonal, mixing, out=g_memory[:count]).view(count, signals, points, rank, channels)
        if any(wanted[:3]):
            h = torch.index_select(out, 0, receivers[block], out=h_memory[:count])
        if wanted[3]:
            _add_rows(of_out, receivers[block], _products(2, (f, g, h), products[2], terms))
        if wanted[0]:
            product = _products(0, (f, g, h), products[0], terms)
            _add_rows(of_samples, senders[block], product.squeeze(-2) if rank == 1 else product.sum(-2))
        if wanted[1] or wanted[2]:
            product = _products(1, (f, g, h), products[1], terms).view(count, signals * points, per_point)
            if wanted[1]:
                torch.mm(torch.bmm(product, mixing.mT).flatten(1), flat.T, out=of_harmonics[block])
            if wanted[2]:
                torch.bmm(zonal.mT, product, out=of_weights[block].flatten(2))
    return [of_samples, of_harmonics, of_weights, of_out]


def _products(role: int, signals: Sequence[Tensor | None], out: Tensor, terms: tuple[Term, ...]) -> Tensor:
    """Signals of one role (samples, filters, sums), products of those of the two others."""
    first, second = (n for n in range(3) if n != role)
    begun = set()
    for *term, sign in sorted(terms, key=lambda term: -term[3]):
        f, g, target = signals[first][:, term[first]], signals[second][:, term[second]], out[:, term[role]]
        if term[role] in begun:
            target.addcmul_(f, g, value=sign)
            continue
        begun.add(term[role])
        torch.mul(f, g, out=target)
        if sign < 0:
            target.neg_()
    return out


def _add_rows(total: Tensor, index: Tensor, rows: Tensor) -> None:
    """Adds each row to the one that its index names. Expanded indices are the fast ones: see scatter.py."""
    flat = rows.reshape(len(rows), -1)
    total.view(len(total), -1).scatter_add_(0, index[:, None].expand_as(flat), flat)


def _signals_out(terms: tuple[Term, ...]) -> int:
    return 1 + max(k for _, _, k, _ in terms)
