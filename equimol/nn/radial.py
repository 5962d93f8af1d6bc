"""Radial basis functions and the envelope that ends them."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


def polynomial_envelope(distance: Float[Tensor, " edges"], cutoff: float, order: int = 5) -> Float[Tensor, " edges"]:
    """Polynomial that is 1 at distance 0 and 0 from the cutoff on. Its third derivative jumps at the cutoff.

    1 - (p+1)(p+2)/2 x^p + p(p+2) x^(p+1) - p(p+1)/2 x^(p+2) with x = d/cutoff, p = order: Gasteiger et al. 2020, eq. 8.
    Value, first and second derivative are continuous at the cutoff. Exactly 0 beyond it.
    """
    x = distance / cutoff
    series = torch.full_like(x, order * (order + 1) / 2)
    for k in range(order - 2, -1, -1):  # Horner
        series = series * x + (k + 1) * (k + 2) / 2
    # the same polynomial as (1 - x)^3 sum_{k<p} (k+1)(k+2)/2 x^k: no cancellation near the cutoff, where float32 would leave noise
    return torch.where(x < 1, (1 - x) ** 3 * series, 0)


def xplor_envelope(distance: Float[Tensor, " edges"], start: float, cutoff: float) -> Float[Tensor, " edges"]:
    """1 up to ``start``, falling to 0 at the cutoff and beyond. Its first derivative is continuous, its second jumps at both ends.

    (c - s)^2 (c + 2 s - 3 a) / (c - a)^3 of the squares s = d^2, a = start^2, c = cutoff^2: XPLOR's switching function, as in HOOMD-blue.
    """
    s, a, c = distance * distance, start * start, cutoff * cutoff
    falling = (c - s) ** 2 * (c + 2 * s - 3 * a) / (c - a) ** 3
    return torch.where(distance < start, 1, torch.where(distance < cutoff, falling, 0))


class BesselBasis(nn.Module):
    """Radial Bessel functions under a polynomial envelope (Gasteiger et al. 2020, eq. 7): [edges] -> [edges, size].

    Zero at and beyond the cutoff, so edges that are a little too long (a neighbour list with a skin) change nothing.
    """

    def __init__(self, cutoff: float, size: int = 8, envelope_order: int = 5) -> None:
        super().__init__()
        self.cutoff, self.size, self.envelope_order = cutoff, size, envelope_order

    def forward(self, distance: Float[Tensor, " edges"]) -> Float[Tensor, "edges size"]:
        n = torch.arange(1, self.size + 1, device=distance.device, dtype=distance.dtype)
        # sqrt(2/c) sin(n pi r/c) / r, written with sinc, which is smooth at r = 0
        scale = torch.pi * (2 / self.cutoff**3) ** 0.5 * polynomial_envelope(distance, self.cutoff, self.envelope_order)
        return scale[:, None] * n * torch.sinc(n * (distance / self.cutoff)[:, None])
