"""Real spherical harmonics of directions."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

NORMALIZATIONS = ("component", "integral", "norm")


def spherical_harmonics(vectors: Float[Tensor, "... 3"], lmax: int, normalization: str = "component") -> Float[Tensor, "... harmonics"]:
    """Harmonics of degrees 0 to lmax of the direction of each vector, `[..., (lmax+1)**2]`; the length of a vector plays no part.

    Polar axis y, order m = -l..l, no Condon-Shortley sign: with y = cos b, z + ix = sin b exp(ia),
    Y_l,m ~ P_l^m(cos b) cos(ma) and Y_l,-m ~ P_l^m(cos b) sin(ma), so that degree 1 is (x, y, z).
    Normalisation of degree l: "component" |Y_l|² = 2l+1, "integral" ∫ Y_lm² = 1, "norm" |Y_l| = 1.
    The zero vector has no direction: it gets the mean over all of them (0 above degree 0) and gradients of zero.
    """
    if vectors.shape[-1:] != (3,):
        raise ValueError(f"vectors must be [..., 3], got {tuple(vectors.shape)}; put x, y, z on the last axis")
    if lmax < 0:
        raise ValueError(f"lmax must be 0 or more, got {lmax}; pass the highest degree wanted")
    if normalization not in NORMALIZATIONS:
        raise ValueError(f"normalization must be one of {NORMALIZATIONS}, got {normalization!r}; 'component' is the one for features")
    unit = _direction(vectors)
    harmonics = _explicit(unit, lmax) if lmax <= 3 else _recurrence(unit, lmax)
    if normalization == "integral":
        return harmonics / math.sqrt(4 * math.pi)
    if normalization == "norm":
        return harmonics / harmonics.new_tensor([math.sqrt(2 * l + 1) for l in range(lmax + 1) for _ in range(2 * l + 1)])
    return harmonics


def _direction(vectors: Tensor) -> Tensor:
    squared = (vectors * vectors).sum(-1, keepdim=True)
    present = squared > 0
    # Two `where`: 1/sqrt has no finite slope at 0, and 0 times that would be NaN in the gradient.
    return vectors * torch.where(present, torch.where(present, squared, 1).rsqrt(), 0)


def _explicit(unit: Tensor, lmax: int) -> Tensor:
    """Degrees up to 3 as polynomials of the unit vector, "component".

    Few operations, because there are many edges and training differentiates twice. Homogeneous, so that the zero vector gives 0.
    """
    x, y, z = unit.unbind(-1)
    columns = [torch.ones_like(x)]
    if lmax >= 1:
        columns += (math.sqrt(3) * unit).unbind(-1)
    if lmax >= 2:
        x2, y2, z2 = (unit * unit).unbind(-1)
        across = x2 + z2  # sin² b
        sin2 = (math.sqrt(15) * x) * z  # √15/2 sin² b sin 2a
        cos2 = (math.sqrt(15) / 2) * (z2 - x2)  # √15/2 sin² b cos 2a
        tilt = math.sqrt(15) * y
        columns += [sin2, tilt * x, torch.sub(math.sqrt(5) * y2, across, alpha=math.sqrt(5) / 2), tilt * z, cos2]
    if lmax >= 3:
        turn_x, turn_y, turn_z = (math.sqrt(7 / 6) * unit).unbind(-1)
        lift = math.sqrt(6) * turn_y  # √7 y
        saddle = torch.sub(math.sqrt(42) * y2, across, alpha=math.sqrt(21 / 8))
        columns += [
            torch.addcmul(sin2 * turn_z, cos2, turn_x),
            sin2 * lift,
            saddle * x,
            torch.sub(y2, across, alpha=1.5) * lift,
            saddle * z,
            cos2 * lift,
            torch.addcmul(cos2 * turn_z, sin2, turn_x, value=-1),
        ]
    return torch.stack(columns, dim=-1)


def _recurrence(unit: Tensor, lmax: int) -> Tensor:
    """Any degree, "component", by the three-term recurrence in l of the normalised associated Legendre functions.

    P_l^m = A_l (y P_{l-1}^m - P_{l-2}^m / A_{l-1}), A_l² = (4l² - 1) / (l² - m²), without their factor sin^m b, which
    (z + ix)^m carries.
    """
    x, y, z = unit.unbind(-1)
    present = (unit != 0).any(-1).to(unit.dtype)
    columns = [present] * (lmax + 1) ** 2
    cosine, sine, diagonal = torch.ones_like(x), torch.zeros_like(x), 1.0  # (z + ix)^m, and the constant P_m^m
    for m in range(lmax + 1):
        if m > 0:
            cosine, sine = z * cosine - x * sine, z * sine + x * cosine
            diagonal *= math.sqrt((2 * m + 1) / (2 * m)) * (math.sqrt(2) if m == 1 else 1)
        before, legendre, last = None, diagonal * present, 0.0
        for l in range(m, lmax + 1):
            if l > m:
                factor = math.sqrt((4 * l * l - 1) / (l * l - m * m))
                after = (factor * y) * legendre
                if before is not None:
                    after = torch.sub(after, before, alpha=factor / last)
                before, legendre, last = legendre, after, factor
            columns[l * l + l + m] = legendre * cosine
            if m > 0:
                columns[l * l + l - m] = legendre * sine
    columns[0] = torch.ones_like(x)
    return torch.stack(columns, dim=-1)
