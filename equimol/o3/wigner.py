"""Rotations and inversions acting on harmonics and features."""

from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from equimol.o3.harmonics import spherical_harmonics
from equimol.o3.layout import Layout, check_dim, layout_slices
from equimol.o3.sphere import gauss_legendre_grid


def wigner_d(rotation: Float[Tensor, "... 3 3"], l: int, parity: int | None = None) -> Float[Tensor, "... components components"]:
    """Matrices D, `[..., 2l+1, 2l+1]`, with Y_l(R v) = D(R) Y_l(v), of orthogonal matrices R, proper or improper.

    An improper R acts as parity * D(-R); the parity left out is that of the harmonics, (-1)^l.
    No Euler angles, hence no direction at which values or gradients degrade: D_ij = ∫ Y_i(R r) Y_j(r) dr by a quadrature
    that is exact for it.
    """
    if rotation.shape[-2:] != (3, 3):
        raise ValueError(f"rotation must be [..., 3, 3], got {tuple(rotation.shape)}; pass matrices that act on columns (x, y, z)")
    if parity not in (None, 1, -1):
        raise ValueError(f"parity must be 1 (even), -1 (odd) or None (that of the harmonics), got {parity!r}")
    points, weighted = (table.to(rotation) for table in _projection(l))
    turned = spherical_harmonics(points @ rotation.mT, l, "integral")[..., l * l :]
    d = turned.mT @ weighted
    if parity in (None, (-1) ** l):
        return d
    a, b, c = rotation.unbind(-2)
    handedness = torch.sign((torch.linalg.cross(a, b) * c).sum(-1))
    return d * handedness[..., None, None]


def rotate(x: Float[Tensor, "... dim"], layout: Layout, rotation: Float[Tensor, "... 3 3"]) -> Float[Tensor, "... dim"]:
    """The feature as seen after the rotation (or rotoinversion) of the whole structure.

    Leading axes of `rotation` broadcast against those of x: one matrix for all, or one for each feature.
    """
    check_dim(x, layout)
    blocks = []
    for block, part in zip(layout, layout_slices(layout), strict=True):
        d = wigner_d(rotation, block.l, block.parity).to(x)
        blocks.append((d @ x[..., part].unflatten(-1, (2 * block.l + 1, block.channels))).flatten(-2))
    return torch.cat(blocks, dim=-1)


@cache
def _projection(l: int) -> tuple[Tensor, Tensor]:
    points, weights = gauss_legendre_grid(2 * l)
    return points, weights[:, None] * spherical_harmonics(points, l, "integral")[:, l * l :]
