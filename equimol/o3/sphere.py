"""Spherical functions as values on quadrature grids."""

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from equimol.o3.harmonics import spherical_harmonics
from equimol.o3.tables import Table

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
    """Expansion coefficients to values on a grid of the sphere, and back, by matrix products with tables of all points.

    With band = (sum of the degrees multiplied) + lmax_out, the analysis of a product is exact, although degrees above lmax_out
    may be aliased. Harmonics have normalisation "integral", so that analysis undoes synthesis. A Lebedev grid ("lebedev") contains
    -r with every r: degrees of even and of odd l are summed apart, over half of the points, which halves the matrix products.

    Gradients are tangential, in a right-handed frame of two directions at each point. They and the coefficients of a bracket
    have each degree scaled by `gradient_scale`. For a grid with antipodes gradients are mirrored: at the second half of its points
    the bracket A_1 B_2 - A_2 B_1 has the wrong sign, which `analysis_of_bracket` knows.
    """

    def __init__(self, lmaxes_in: tuple[int, ...], lmax_out: int, band: int, quadrature: str = "lebedev"):
        super().__init__()
        check_band(lmaxes_in, lmax_out, band)
        if quadrature not in QUADRATURES:
            raise ValueError(f"quadrature must be one of {', '.join(QUADRATURES)}, got {quadrature!r}")
        points, weights = QUADRATURES[quadrature](band)
        self.points, self.quadrature = len(weights), quadrature
        self.lmax_in, self.lmax_out = max(lmaxes_in), lmax_out
        self.antipodal = quadrature == "lebedev"
        if self.antipodal:
            half = _one_of_each_pair(points)
            points, weights = points[half], weights[half]
        harmonics = spherical_harmonics(points, max(self.lmax_in, lmax_out), "integral")
        gradients = [_derivative(points, e, self.lmax_in) * _gradient_scales(self.lmax_in) for e in _tangents(points)]
        size_in, size_out = (self.lmax_in + 1) ** 2, (lmax_out + 1) ** 2
        signals = torch.stack([harmonics[:, :size_in], *gradients])  # [value and two gradients, points, size_in]
        analysis = (weights[:, None] * harmonics[:, :size_out]).T
        self._signals = nn.ModuleList(Table(signals[..., rows]) for rows in self._parities(self.lmax_in))
        parities = self._parities(lmax_out)
        self._analyses = nn.ModuleList(Table(analysis[rows]) for rows in parities)
        self._analyses_of_bracket = nn.ModuleList(Table((analysis * _gradient_scales(lmax_out)[:, None])[rows]) for rows in parities)

    def synthesis(self, x: Float[Tensor, "... harmonics channels"]) -> Float[Tensor, "... points channels"]:
        """Values of functions given by coefficients `[..., (l+1)**2, channels]`, with any l up to the largest of lmaxes_in."""
        return self._sample(x, slice(0, 1)).squeeze(-3)

    def gradient(self, x: Float[Tensor, "... harmonics channels"]) -> Float[Tensor, "... 2 points channels"]:
        """The two components of the gradient."""
        return self._sample(x, slice(1, 3))

    def synthesis_and_gradient(self, x: Float[Tensor, "... harmonics channels"]) -> Float[Tensor, "... 3 points channels"]:
        """Values, then both components of the gradient, in one go."""
        return self._sample(x, slice(0, 3))

    def analysis(self, values: Float[Tensor, "... points channels"]) -> Float[Tensor, "... harmonics channels"]:
        """Coefficients of degrees 0 to lmax_out of functions given by values."""
        sums, differences = self._fold(values)
        return self._analyse(sums, differences, self._analyses)

    def analysis_of_bracket(self, values: Float[Tensor, "... points channels"]) -> Float[Tensor, "... harmonics channels"]:
        """The same of A_1 B_2 - A_2 B_1, products of gradients on this grid."""
        sums, differences = self._fold(values)
        return self._analyse(differences, sums, self._analyses_of_bracket)

    def flops(self, synthesised: int, signals: int, analysed: int) -> int:
        """Multiplications and additions, one channel: this many coefficients in, signals of them, analyses."""
        tables = self.points // 2 if self.antipodal else self.points
        butterflies = self.points if self.antipodal else 0
        coefficients_out = (self.lmax_out + 1) ** 2
        return signals * (2 * tables * synthesised + butterflies) + analysed * (2 * tables * coefficients_out + butterflies)

    def _sample(self, x: Tensor, signals: slice) -> Tensor:
        l = degree_of(x, self.lmax_in)
        if not self.antipodal:
            return _stacked_product(self._signals[0](x)[signals, :, : x.shape[-2]], x)
        even, odd = _split_parities(x, l)
        table_even, table_odd = (table(x)[signals] for table in self._signals)
        plus = _stacked_product(table_even[..., : even.shape[-2]], even)
        if not l:
            return torch.cat([plus, plus], dim=-2)
        minus = _stacked_product(table_odd[..., : odd.shape[-2]], odd)
        return torch.cat([plus + minus, plus - minus], dim=-2)

    def _fold(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Sums and differences over pairs of antipodes, which hold the even and the odd degrees; without antipodes the values, twice."""
        check_points(values, self.points)
        if not self.antipodal:
            return values, values
        here, there = values.chunk(2, dim=-2)
        return here + there, here - there

    def _analyse(self, even: Tensor, odd: Tensor, tables: nn.ModuleList) -> Tensor:
        z = torch.matmul(tables[0](even), even)
        if not self.antipodal or not self.lmax_out:
            return z
        return _join_parities(z, torch.matmul(tables[1](odd), odd), self.lmax_out)

    def _parities(self, lmax: int) -> list[list[int]]:
        """Rows of the tables: of even degrees and of odd ones where they are summed apart, otherwise all of them."""
        parities = (0, 1) if self.antipodal else (None,)
        return [[m for l in range(lmax + 1) if parity in (None, l % 2) for m in range(l * l, (l + 1) ** 2)] for parity in parities]

    def extra_repr(self) -> str:
        return f"lmax_in={self.lmax_in}, lmax_out={self.lmax_out}, {self.quadrature}, points={self.points}"


class SeparableGrid(nn.Module):
    """The same interface on rings and meridians: a Legendre transform along each order m, then a Fourier transform along the ring.

    O(lmax^3) per transform where `SphereGrid` has O(lmax^4). The Fourier transform is a matrix product: its lengths, 3*lmax + 1, are
    too short for an FFT to gain anything.
    """

    def __init__(self, lmaxes_in: tuple[int, ...], lmax_out: int, band: int):
        super().__init__()
        check_band(lmaxes_in, lmax_out, band)
        self.lmax_in, self.lmax_out = max(lmaxes_in), lmax_out
        self.rings, self.steps = band // 2 + 1, band + 1
        self.points = self.rings * self.steps
        points, weights = gauss_legendre_grid(band)
        meridian = points.view(self.rings, self.steps, 3)[:, 0]  # azimuth 0: sin b, cos b in z and y
        weights = weights.view(self.rings, self.steps)[:, 0]
        south = torch.stack([torch.zeros_like(weights), -meridian[:, 2], meridian[:, 1]], dim=-1)  # along b
        values = spherical_harmonics(meridian, max(self.lmax_in, lmax_out), "integral")
        size_in = (self.lmax_in + 1) ** 2
        scales = _gradient_scales(self.lmax_in)
        polar = [
            values[:, :size_in],
            _derivative(meridian, south, self.lmax_in) * scales,
            values[:, :size_in] / meridian[:, 2:] * scales,
        ]
        self._legendre = nn.ModuleList(Table(_by_order(table, self.lmax_in)) for table in polar)  # [m, rings, l] each
        angle = torch.arange(self.steps, dtype=torch.float64) * (2 * math.pi / self.steps)
        self._ring = Table(_trigonometric(angle, self.lmax_in))  # [steps, m]
        self._ring_slope = Table(_trigonometric_slope(angle, self.lmax_in))
        self._ring_out = Table(_trigonometric(angle, lmax_out).T)
        polar_out = weights[:, None] * values[:, : (lmax_out + 1) ** 2]
        self._legendre_out = Table(_by_order(polar_out, lmax_out).mT)  # [m, l, rings]
        self._legendre_of_bracket = Table(_by_order(polar_out * _gradient_scales(lmax_out), lmax_out).mT)

    def synthesis(self, x: Float[Tensor, "... harmonics channels"]) -> Float[Tensor, "... points channels"]:
        """Values of functions given by coefficients `[..., (l+1)**2, channels]`, with any l up to the largest of lmaxes_in."""
        return self._sample(self._orders(x), 0)

    def gradient(self, x: Float[Tensor, "... harmonics channels"]) -> Float[Tensor, "... 2 points channels"]:
        """The two components of the gradient, along b and along a."""
        orders = self._orders(x)
        return torch.stack([self._sample(orders, k) for k in (1, 2)], dim=-3)

    def synthesis_and_gradient(self, x: Float[Tensor, "... harmonics channels"]) -> Float[Tensor, "... 3 points channels"]:
        """Values, then both components of the gradient, in one go."""
        orders = self._orders(x)
        return torch.stack([self._sample(orders, k) for k in range(3)], dim=-3)

    def analysis(self, values: Float[Tensor, "... points channels"]) -> Float[Tensor, "... harmonics channels"]:
        """Coefficients of degrees 0 to lmax_out of functions given by values."""
        return self._analyse(values, self._legendre_out)

    def analysis_of_bracket(self, values: Float[Tensor, "... points channels"]) -> Float[Tensor, "... harmonics channels"]:
        """The same of A_1 B_2 - A_2 B_1, products of gradients on this grid."""
        return self._analyse(values, self._legendre_of_bracket)

    def _analyse(self, values: Tensor, legendre: Table) -> Tensor:
        check_points(values, self.points)
        channels = values.shape[-1]
        along = torch.matmul(self._ring_out(values), values.unflatten(-2, (self.steps, self.rings)).flatten(-2))
        orders = torch.matmul(legendre(values), along.unflatten(-1, (self.rings, channels)))  # [..., m, l, channels]
        l, by_degree = self.lmax_out, orders.unbind(-2)
        return torch.cat([by_degree[k][..., l - k : l + k + 1, :] for k in range(l + 1)], dim=-2)

    def flops(self, synthesised: int, signals: int, analysed: int) -> int:
        """Multiplications and additions, one channel: this many coefficients in, signals of them, analyses. Zeros that are padded count."""
        l = math.isqrt(synthesised) - 1
        costs = [2 * self.rings * (2 * k + 1) * (k + 1 + self.steps) for k in (l, self.lmax_out)]
        return signals * costs[0] + analysed * costs[1]

    def _orders(self, x: Tensor) -> Tensor:
        """Coefficients as [..., m, l, channels], zero where |m| > l."""
        l = degree_of(x, self.lmax_in)
        degrees = x.split([2 * k + 1 for k in range(l + 1)], dim=-2)
        padded = [nn.functional.pad(part, (0, 0, l - k, l - k)) for k, part in enumerate(degrees)]
        return torch.stack(padded, dim=-2)

    def _sample(self, orders: Tensor, signal: int) -> Tensor:
        l, channels = orders.shape[-2] - 1, orders.shape[-1]
        kept = slice(self.lmax_in - l, self.lmax_in + l + 1)
        table = self._legendre[signal](orders)[kept, :, : l + 1]
        rings = torch.matmul(table, orders).flatten(-2)  # [..., m, rings * channels]
        ring = (self._ring if signal < 2 else self._ring_slope)(orders)[:, kept]
        return torch.matmul(ring, rings).unflatten(-1, (self.rings, channels)).flatten(-3, -2)

    def extra_repr(self) -> str:
        return f"lmax_in={self.lmax_in}, lmax_out={self.lmax_out}, points={self.steps}x{self.rings}"


class Rings(NamedTuple):
    """A quadrature grid of rings that mirror each other, 4 ``quarter`` points each, where kernels transform: see `mirrored_rings`.

    Functions of a ring stand for the northern one of each pair, per harmonic, to be multiplied with the cosine or sine of its order.
    """

    signals: tuple[Float[Tensor, "pairs harmonics"], ...]  # values, and gradients along the meridian and along the ring
    analyses: tuple[Float[Tensor, "pairs harmonics"], ...]  # of products, and of brackets
    quarter: int

    def waves(self, most: int) -> Float[Tensor, "orders quarter"]:
        """sin(|m| a) for m = -most .. -1, then cos(m a), at the angles of a quarter of a ring."""
        angle = (torch.arange(self.quarter, dtype=torch.float64) + 0.5) * (math.pi / 2 / self.quarter)
        return _trigonometric(angle, most).T


def mirrored_rings(lmax_in: int, lmax_out: int, band: int) -> Rings:
    """Rings that integrate degrees <= band exactly. Gradients are scaled as in `SphereGrid`; those along a ring belong to order -m."""
    rings, steps = band // 2 + 1, 4 * (band // 4 + 1)
    y, weights = np.polynomial.legendre.leggauss(rings)
    north = np.arange(rings // 2, rings)
    y, weights = torch.from_numpy(y[north]), torch.from_numpy(weights[north] * 2 * math.pi / steps)
    if rings % 2:  # the equator is both rings of its pair
        weights[0] /= 2
    radius = ((1 - y) * (1 + y)).sqrt()
    zero = torch.zeros_like(y)
    meridian, south = torch.stack([zero, y, radius], dim=-1), torch.stack([zero, -radius, y], dim=-1)
    values, scales = spherical_harmonics(meridian, max(lmax_in, lmax_out), "integral"), _gradient_scales(max(lmax_in, lmax_out))
    slopes = _derivative(meridian, south, lmax_in)
    size_in, size_out = (lmax_in + 1) ** 2, (lmax_out + 1) ** 2
    degree = torch.tensor([l for l in range(max(lmax_in, lmax_out) + 1) for _ in range(2 * l + 1)])
    order = torch.arange(len(degree)) - degree * (degree + 1)
    cosines = degree * (degree + 1) + order.abs()  # at azimuth 0 the sines are zero: theirs is the function of the cosines
    values = values[:, cosines]
    signals = values[:, :size_in], slopes[:, cosines[:size_in]], values[:, :size_in] / radius[:, None] * -order[:size_in]
    analysis = weights[:, None] * values[:, :size_out]
    scaled = signals[0], signals[1] * scales[:size_in], signals[2] * scales[:size_in]
    return Rings(scaled, (analysis, analysis * scales[:size_out]), steps // 4)


QUADRATURES = {"gauss_legendre": gauss_legendre_grid, "lebedev": lebedev_grid}
ALGORITHMS = ("lebedev", "gauss_legendre", "separable")


def sphere_grid(lmaxes_in: tuple[int, ...], lmax_out: int, band: int, algorithm: str = "auto") -> SphereGrid | SeparableGrid:
    """The grid of an algorithm; "auto" takes the fastest by measurement: see `fastest_algorithm`."""
    if algorithm == "auto":
        algorithm = fastest_algorithm(band)
    if algorithm not in ALGORITHMS:
        raise ValueError(f"algorithm must be one of auto, {', '.join(ALGORITHMS)}, got {algorithm!r}")
    if algorithm == "separable":
        return SeparableGrid(lmaxes_in, lmax_out, band)
    return SphereGrid(lmaxes_in, lmax_out, band, algorithm)


def fastest_algorithm(band: int) -> str:
    """By `benchmarks/tensor_products.py --algorithms`: dense Lebedev while tables are small, separable where O(lmax^4) tells."""
    return "lebedev" if band < SEPARABLE_FROM_BAND else "separable"


SEPARABLE_FROM_BAND = 60  # dense wins by 1.8x at 48, separable by 1.5x at 72


def gradient_scale(l: int) -> float:
    """What gradients and brackets of grids are scaled by: it keeps brackets about as large as pointwise products, for every degree."""
    return 3.75 ** (1 / 3) * (2 * l + 1) ** -0.6


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


def _one_of_each_pair(points: Tensor) -> Tensor:
    """Row numbers of one half of the points, without any two that are antipodes: first those, their partners share their tables."""
    first = torch.zeros(len(points))
    for axis in (0, 2, 1):  # the sign of y decides, then that of z, then that of x
        coordinate = points[:, axis]
        first = torch.where(coordinate.abs() > 1e-9, coordinate.sign().to(first), first)
    return torch.nonzero(first > 0).flatten()


def _tangents(points: Tensor) -> tuple[Tensor, Tensor]:
    """Two directions at each point that make a right-handed frame with it."""
    axis = torch.nn.functional.one_hot(points.abs().argmin(-1), 3).to(points)  # never close to the point
    first = torch.nn.functional.normalize(torch.linalg.cross(axis, points), dim=-1)
    return first, torch.linalg.cross(points, first)


def _derivative(points: Tensor, directions: Tensor, lmax: int) -> Float[Tensor, "points harmonics"]:
    """Of the harmonics along a tangent at each point."""
    return torch.func.jvp(lambda p: spherical_harmonics(p, lmax, "integral"), (points,), (directions,))[1]


def _gradient_scales(lmax: int) -> Float[Tensor, " harmonics"]:
    return torch.tensor([gradient_scale(l) for l in range(lmax + 1) for _ in range(2 * l + 1)], dtype=torch.float64)


def _stacked_product(tables: Float[Tensor, "signals points k"], x: Float[Tensor, "... k channels"]) -> Tensor:
    """All tables with x in one matrix product: [..., signals, points, channels]."""
    signals, points, _ = tables.shape
    return torch.matmul(tables.flatten(0, 1), x).unflatten(-2, (signals, points))


def _split_parities(x: Tensor, l: int) -> tuple[Tensor, Tensor]:
    """Rows of even and of odd degrees. Splits and concatenations: the derivative of indexing is slow on a CPU."""
    degrees = x.split([2 * k + 1 for k in range(l + 1)], dim=-2)
    even, odd = degrees[::2], degrees[1::2]
    return torch.cat(even, dim=-2), torch.cat(odd, dim=-2) if odd else x[..., :0, :]


def _join_parities(even: Tensor, odd: Tensor, l: int) -> Tensor:
    parts = [part.split([2 * k + 1 for k in range(start, l + 1, 2)], dim=-2) for start, part in enumerate((even, odd))]
    return torch.cat([parts[k % 2][k // 2] for k in range(l + 1)], dim=-2)


def _by_order(table: Float[Tensor, "rings harmonics"], lmax: int) -> Float[Tensor, "orders rings degrees"]:
    """A function of the meridian at azimuth 0 as [m, rings, l]; -m has the same one as m, zero where |m| > l."""
    out = table.new_zeros(2 * lmax + 1, len(table), lmax + 1)
    for l in range(lmax + 1):
        for m in range(-l, l + 1):
            out[lmax + m, :, l] = table[:, l * l + l + abs(m)]
    return out


def _trigonometric(angle: Tensor, lmax: int) -> Float[Tensor, "steps orders"]:
    """sin(|m| a) for m < 0, cos(m a) otherwise."""
    return torch.stack([torch.sin(-m * angle) if m < 0 else torch.cos(m * angle) for m in range(-lmax, lmax + 1)], dim=-1)


def _trigonometric_slope(angle: Tensor, lmax: int) -> Float[Tensor, "steps orders"]:
    """The derivatives of `_trigonometric` along a."""
    slopes = [-m * torch.cos(-m * angle) if m < 0 else -m * torch.sin(m * angle) for m in range(-lmax, lmax + 1)]
    return torch.stack(slopes, dim=-1)


def _check_not_negative(band: int) -> None:
    if band < 0:
        raise ValueError(f"band must be 0 or more, got {band}; pass the highest degree to be integrated")
