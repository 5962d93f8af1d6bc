"""`coupled_sum` by few products of matrices, for programs that are traced: in each of them an operation costs a kernel to compile."""

from __future__ import annotations

from itertools import groupby

import torch
from jaxtyping import Float, Int
from torch import Tensor

from equimol.ops.convolution import CoupledSum, PathRows
from equimol.ops.scatter import gather, scatter_sum


def coupled_sum_by_blocks(
    form: CoupledSum,
    features: Float[Tensor, "atoms rows channels"],
    harmonics: Float[Tensor, "edges size"],
    weights: Float[Tensor, "edges paths channels"],
    senders: Int[Tensor, " edges"],
    receivers: Int[Tensor, " edges"],
) -> Float[Tensor, "atoms sums channels"]:
    """The numbers of `plain_coupled_sum`: all paths from the same rows of features are one product for each edge."""
    columns = weights.unbind(1)  # not selected one by one, whose derivatives would be as many arrays of all weights
    neighbours = gather(features, senders)
    parts, rows = [], []
    for (first, height), paths in _blocks(form):
        x = neighbours[:, first : first + height]
        table = torch.tensor(_coefficients(form, paths, height), dtype=torch.float64).to(harmonics)
        coupled = torch.bmm(torch.matmul(harmonics, table).unflatten(1, (-1, height)), x)
        groups = [(size, list(members)) for size, members in groupby(paths, key=lambda p: _size(form.paths[p], 2))]
        for (size, members), part in zip(groups, coupled.split([size * len(members) for size, members in groups], 1), strict=True):
            weighted = part.unflatten(1, (len(members), size)) * torch.stack([columns[p] for p in members], 1).unsqueeze(2)
            parts.append(weighted.flatten(1, 2))
            rows += [form.paths[p].sums + m * form.paths[p].step for p in members for m in range(size)]
    sums = scatter_sum(torch.cat(parts, 1), receivers, features.shape[0])
    return sums if rows == sorted(rows) else sums[:, torch.tensor(rows).argsort()]


def _size(path: PathRows, which: int) -> int:
    """How many m1, m2 or m3 a path has."""
    return 1 + max(entry[which] for entry in path.entries)


def _blocks(form: CoupledSum) -> list[tuple[tuple[int, int], list[int]]]:
    """The rows (first, how many) of features that have paths, and those paths, by the number of their sums."""
    found: dict[tuple[int, int], list[int]] = {}
    for p, path in enumerate(form.paths):
        found.setdefault((path.features, _size(path, 0)), []).append(p)
    return [(block, sorted(paths, key=lambda p: _size(form.paths[p], 2))) for block, paths in sorted(found.items())]


def _coefficients(form: CoupledSum, paths: list[int], height: int) -> list[list[float]]:
    """[harmonics, rows of sums times m1]: what the harmonics of an edge make of its features."""
    width = height * sum(_size(form.paths[p], 2) for p in paths)
    table, start = [[0.0] * width for _ in range(form.harmonics)], 0
    for p in paths:
        for m1, m2, m3, coefficient in form.paths[p].entries:
            table[form.paths[p].harmonics + m2][start + m3 * height + m1] = coefficient
        start += height * _size(form.paths[p], 2)
    return table
