"""Functions of one variable as cubic splines: a network of a distance becomes a look-up of four rows."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class CubicWeights(NamedTuple):
    """What a distance picks of any table with the same knots: rows of it, and their weights."""

    rows: Int[Tensor, "points 4"]
    weights: Float[Tensor, "points 4"]

    def inside(self, mask: Bool[Tensor, " points"]) -> CubicWeights:
        """Zero elsewhere."""
        return CubicWeights(self.rows, torch.where(mask[:, None], self.weights, 0))

    def split(self, sizes: list[int]) -> list[CubicWeights]:
        return [CubicWeights(*parts) for parts in zip(self.rows.split(sizes), self.weights.split(sizes), strict=True)]


def cubic_table(values: Float[Tensor, "knots columns"]) -> Float[Tensor, "knots_plus_two columns"]:
    """Coefficients of B-splines that pass through values at equidistant knots: two continuous derivatives, natural ends not assumed."""
    from scipy.interpolate import make_interp_spline  # here: it takes a quarter of a second, which most models need not wait

    knots = torch.arange(len(values), dtype=torch.float64)
    spline = make_interp_spline(knots.numpy(), values.double().cpu().numpy(), k=3)
    at, curve = (torch.from_numpy(spline(knots.numpy(), order)) for order in (0, 2))
    middle = at - curve / 6  # coefficients c have the value (c- + 4 c + c+) / 6 and the curvature c- - 2 c + c+ at their knot
    before, after = curve[0] + 2 * middle[0] - middle[1], curve[-1] + 2 * middle[-1] - middle[-2]
    return torch.cat([before[None], middle, after[None]]).to(values)


def cubic_weights(x: Float[Tensor, " points"], step: float, knots: int, dtype: torch.dtype) -> CubicWeights:
    """Of points x in [0, (knots - 1) step]; beyond, the last piece goes on."""
    scaled = x / step
    first = scaled.detach().floor().clamp(0, knots - 2)
    t = scaled - first
    s = 1 - t
    weights = torch.stack([s**3, 4 - 6 * t**2 + 3 * t**3, 4 - 6 * s**2 + 3 * s**3, t**3], 1) / 6
    return CubicWeights(first.long()[:, None] + torch.arange(4, device=x.device), weights.to(dtype))


def look_up(table: Float[Tensor, "rows columns"], at: CubicWeights) -> Float[Tensor, "points columns"]:
    """Values of the spline; differentiable once in the point, by its weights."""
    return torch.nn.functional.embedding_bag(at.rows, table, per_sample_weights=at.weights, mode="sum")
