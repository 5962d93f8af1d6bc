"""Sums over neighbours of features coupled with the harmonics of edges, a weight for each path: compiled from the couplings."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from equimol.ops.cuda_code import CudaKernel
from equimol.ops.kernels import find_kernel, run
from equimol.ops.multilinear import form_derivatives


class PathRows(NamedTuple):
    """A path: where its rows of channels begin in features, harmonics and sums, and its coefficients.

    Sums of a path may stand ``step`` rows apart, when those of other paths are between them.
    """

    features: int
    harmonics: int
    sums: int
    step: int
    entries: tuple[tuple[int, int, int, float], ...]  # m1, m2, m3 from 0, and what is not zero


def coupled_sum(
    features: Float[Tensor, "atoms rows channels"],
    harmonics: Float[Tensor, "edges size"],
    weights: Float[Tensor, "edges paths channels"],
    senders: Int[Tensor, " edges"],
    receivers: Int[Tensor, " edges"],
    paths: tuple[PathRows, ...],
    sums: int,
) -> Float[Tensor, "atoms sums channels"]:
    """sum_e w_p C (features of the sender) (harmonics of the edge), for each path p: of any order of derivative, nothing kept by edges.

    Only where there is a kernel: ask `has_kernel` before.
    """
    atoms, _, channels = features.shape
    edges = len(senders)
    for name, tensor, shape in (("harmonics", harmonics, (edges, harmonics.shape[1])), ("weights", weights, (edges, len(paths), channels))):
        if tensor.shape != shape or tensor.dtype != features.dtype or tensor.device != features.device:
            raise ValueError(
                f"{name} must be {features.dtype} {list(shape)} on {features.device} beside features {list(features.shape)} and {edges}"
                f" senders, got {tensor.dtype} {list(tensor.shape)} on {tensor.device}"
            )
    if len(receivers) != edges or senders.dtype != torch.int64 or receivers.dtype != torch.int64:
        raise ValueError(
            f"senders and receivers must be int64, one for each edge, got {senders.dtype} [{edges}], {receivers.dtype} [{len(receivers)}]"
        )
    for name, index in (("senders", senders), ("receivers", receivers)):
        least, most = map(int, torch.aminmax(index)) if edges else (0, -1)
        if least < 0 or most >= atoms:
            raise ValueError(f"{name} must be in 0..{atoms - 1}, got {least}..{most}")
    compute = partial(_derivatives, paths, features.shape[1], harmonics.shape[1], sums)
    arguments, wanted = (features, harmonics, weights, None), (False, False, False, True)
    return form_derivatives(compute, arguments, (senders.contiguous(), receivers.contiguous()), wanted)[3]


def _derivatives(
    paths: tuple[PathRows, ...],
    rows: int,
    size: int,
    sums: int,
    arguments: Sequence[Tensor | None],
    constants: Sequence[Tensor],
    wanted: Sequence[bool],
) -> list[Tensor | None]:
    """The wanted derivatives of the form, with respect to features, harmonics, weights and sums."""
    x, y, w, g = arguments
    senders, receivers = constants
    like = next(a for a in arguments if a is not None)
    atoms, channels = (len(x), x.shape[2]) if x is not None else (len(g), g.shape[2])
    edges, found = len(senders), [None] * 4
    description = paths, rows, size, sums
    edges_of = cache(_edges_of)  # two derivatives may share it

    def launch(name: str, place: int, *arrays: Tensor | None) -> None:
        """Derivatives by features and sums are found atom by atom; the others edge by edge, or on CUDA by receivers, whose rows stay."""
        kernel = find_kernel("convolution", name, like, *description)
        if place == 0:
            domain = atoms, channels, *edges_of(senders, atoms), receivers
        elif place == 3 or isinstance(kernel, CudaKernel):
            domain = atoms, channels, *edges_of(receivers, atoms), senders
        else:
            domain = edges, channels, senders, receivers
        run(kernel, *domain, *arrays, found[place])

    if wanted[0]:
        found[0] = like.new_empty(atoms, rows, channels)
        launch("by_features", 0, g, y, w)
    if wanted[1]:
        found[1] = like.new_empty(edges, size)
        launch("by_harmonics", 1, x, g, w)
    if wanted[2]:
        found[2] = like.new_empty(edges, len(paths), channels)
        launch("by_weights", 2, x, y, g)
    if wanted[3]:
        found[3] = like.new_empty(atoms, sums, channels)
        launch("by_sums", 3, x, y, w)
    return found


def _edges_of(index: Int[Tensor, " edges"], atoms: int) -> tuple[Int[Tensor, " atoms_plus_one"], Int[Tensor, " edges"]]:
    """Where the edges of each atom begin in their order, and the edges in this order."""
    counts = torch.bincount(index, minlength=atoms)
    return torch.nn.functional.pad(torch.cumsum(counts, 0), (1, 0)), torch.argsort(index, stable=True)
