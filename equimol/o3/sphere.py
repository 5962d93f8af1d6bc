"""Spherical functions as values on quadrature grids."""

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from equimol.o3.harmonics import spherical_harmonics
from equimol.o3.tables import Table

QUADRATURES = ("auto", "lebedev", "gauss_legendre")
LEBEDEV_ORDERS = (*range(3, 32, 2), *range(35, 132, 6))


def gauss_legendre_grid(band: int) -> tuple[Float[Tensor, "points 3"], Float[Tensor, "points"]]:
    """Unit vectors and weights that integrate polynomials of degree <= band over the sphere exactly; the weights sum to 4π.

    Gauss-Legendre nodes in y = cos b times equal steps in the angle a about the y axis, with b in the outer loop.
    """
    _check_not_negative(band)
    rings, steps = band // 2 + 1, band + 1
    y, ring_weights = np.polynomial.legendre.leggauss(rings)
    radius, angle = np.sqrt((1 - y) * (1 + y)), 2 * math.pi * np.arange(steps) / steps
    x, z = np.outer(radius, np.sin(angle)), np.outer(radius, np.cos(angle))
    points = np.stack([x, np.broadcast_to(y[:, None], x.shape), z], axis=-1).reshape(-1, 3)
    return torch.from_numpy(points), torch.from_numpy(np.repeat(ring_weights * 2 * math.pi / steps, steps))


def lebedev_grid(band: int) -> tuple[Float[Tensor, "points 3"], Float[Tensor, "points"]]:
    """Unit vectors and weights of the smallest Lebedev rule exact for polynomials of degree <= band; the weights sum to 4π.

    About a third fewer points than Gauss-Legendre, but not separable, and some rules have negative weights.
    """
    _check_not_negative(band)
    if band > LEBEDEV_ORDERS[-1]:
        raise ValueError(f"Lebedev rules are known up to band {LEBEDEV_ORDERS[-1]}, got {band}; use 'gauss_legendre' above that")
    from scipy.integrate import lebedev_rule

    points, weights = lebedev_rule(next(order for order in LEBEDEV_ORDERS if order >= band))
    return torch.from_numpy(np.ascontiguousarray(points.T)), torch.from_numpy(weights)


class SphereGrid(nn.Module):
    """Expansion coefficients to values on a grid of the sphere, and back.

    With band = (sum of the degrees multiplied) + lmax_out, the analysis of a pointwise product is exact, although degrees above
    lmax_out may be aliased. Harmonics have normalisation "integral", so that analysis undoes synthesis.
    """

    def __init__(self, lmaxes_in: tuple[int, ...], lmax_out: int, band: int, quadrature: str = "auto"):
        super().__init__()
        check_band(lmaxes_in, lmax_out, band)
        points, weights = _grid(band, quadrature)
        self.points = len(weights)
        self.lmax_in, self.lmax_out = max(lmaxes_in), lmax_out
        harmonics = spherical_harmonics(points, max(self.lmax_in, lmax_out), "integral")
        self._synthesis = Table(harmonics[:, : (self.lmax_in + 1) ** 2])
        self._analysis = Table((weights[:, None] * harmonics[:, : (lmax_out + 1) ** 2]).T)

    def synthesis(self, x: Float[Tensor, "... harmonics channels"]) -> Float[Tensor, "... points channels"]:
        """Values of functions given by coefficients `[..., (l+1)**2, channels]`, with any l up to the largest of lmaxes_in."""
        degree_of(x, self.lmax_in)
        return torch.matmul(self._synthesis(x)[:, : x.shape[-2]], x)

    def analysis(self, values: Float[Tensor, "... points channels"]) -> Float[Tensor, "... harmonics channels"]:
        """Coefficients of degrees 0 to lmax_out of functions given by values."""
        check_points(values, self.points)
        return torch.matmul(self._analysis(values), values)

    def extra_repr(self) -> str:
        return f"lmax_in={self.lmax_in}, lmax_out={self.lmax_out}, points={self.points}"


def check_band(lmaxes_in: tuple[int, ...], lmax_out: int, band: int) -> None:
    """Raises where a grid of this band would alias a product of its inputs into its output."""
    if not lmaxes_in or min(*lmaxes_in, lmax_out) < 0:
        raise ValueError(f"lmaxes_in and lmax_out must be degrees of 0 or more, got {lmaxes_in} and {lmax_out}; pass one lmax per factor")
    needed = sum(lmaxes_in) + lmax_out
    if band < needed:
        raise ValueError(f"band must be at least sum(lmaxes_in) + lmax_out = {needed}, got {band}; a smaller grid aliases the product")


def check_points(values: Tensor, points: int) -> None:
    """Raises where values do not come from a grid of so many points."""
    if values.ndim < 2 or values.shape[-2] != points:
        raise ValueError(f"values must be [..., {points}, channels], got {tuple(values.shape)}; pass what synthesis of this grid gave")


def degree_of(x: Tensor, lmax: int) -> int:
    """The highest degree l of coefficients `[..., (l+1)**2, channels]`; raises where there is none or it exceeds lmax."""
    rows = x.shape[-2] if x.ndim > 1 else 0
    l = math.isqrt(rows) - 1
    if (l + 1) ** 2 != rows or not 0 <= l <= lmax:
        raise ValueError(
            f"coefficients must be [..., (l+1)**2, channels] with l <= {lmax}, got {tuple(x.shape)}; "
            "unflatten a natural layout into rows of channels, or build the grid for a higher degree"
        )
    return l


def _grid(band: int, quadrature: str) -> tuple[Tensor, Tensor]:
    if quadrature == "gauss_legendre":
        return gauss_legendre_grid(band)
    if quadrature == "lebedev":
        return lebedev_grid(band)
    if quadrature != "auto":
        raise ValueError(f"quadrature must be one of {QUADRATURES}, got {quadrature!r}; 'auto' takes the one with fewer points")
    grids = [gauss_legendre_grid(band)]
    if band <= LEBEDEV_ORDERS[-1]:
        grids.append(lebedev_grid(band))
    return min(grids, key=lambda grid: len(grid[1]))


def _check_not_negative(band: int) -> None:
    if band < 0:
        raise ValueError(f"band must be 0 or more, got {band}; pass the highest degree to be integrated")
