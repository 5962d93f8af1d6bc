"""How two degrees couple to a third: Wigner 3j, Gaunt coefficients, and the list of allowed paths."""

import math
from collections.abc import Iterable
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from equimol.o3.layout import Layout

COUPLINGS = ("all", "even", "odd")


class Path(NamedTuple):
    """One way to couple a block of a first feature with a block of a second.

    Even paths (l1+l2+l3 even) are those a pointwise product of functions contains; odd ones are antisymmetric, as a cross product.
    """

    l1: int
    l2: int
    l3: int
    i1: int  # the block of the first layout
    i2: int  # the block of the second layout
    p3: int  # parity of the result, the product of the two


def coupling_paths(in1: Layout, in2: Layout, out_degrees: Iterable[int], couplings: str = "all") -> list[Path]:
    """Paths between two layouts with |l1-l2| <= l3 <= l1+l2 among the degrees wanted, ordered by i1, then i2, then l3."""
    if couplings not in COUPLINGS:
        raise ValueError(f"couplings must be one of {COUPLINGS}, got {couplings!r}; 'even' is what pointwise products contain")
    degrees = sorted(set(out_degrees))
    return [
        Path(first.l, second.l, l3, i1, i2, first.parity * second.parity)
        for i1, first in enumerate(in1)
        for i2, second in enumerate(in2)
        for l3 in degrees
        if _triangle(first.l, second.l, l3) and (couplings == "all" or (first.l + second.l + l3) % 2 == COUPLINGS[1:].index(couplings))
    ]


def wigner_3j(l1: int, l2: int, l3: int) -> Float[Tensor, "m1 m2 m3"]:
    """Real Wigner 3j symbol, `[2l1+1, 2l2+1, 2l3+1]` in float64 with Frobenius norm 1.

    Invariant under D_l1 x D_l2 x D_l3 of the basis of `spherical_harmonics`; basis and sign are those of e3nn.
    A permutation of the degrees permutes the axes up to the sign (-1)^(l1+l2+l3) of odd ones.
    """
    if min(l1, l2, l3) < 0 or not _triangle(l1, l2, l3):
        raise ValueError(f"degrees must satisfy |l1 - l2| <= l3 <= l1 + l2, got {(l1, l2, l3)}; they do not couple")
    return _wigner_3j(l1, l2, l3).clone()  # the kept table must not be written to


def gaunt_coefficient(l1: int, l2: int, l3: int) -> float:
    """The factor g >= 0 in ∫ Y_l1 Y_l2 Y_l3 = g * wigner_3j(l1, l2, l3), for harmonics of normalisation "integral".

    g = sqrt((2l1+1)(2l2+1)(2l3+1) / 4π) |3j(l1 l2 l3; 0 0 0)|; zero where l1+l2+l3 is odd or the degrees do not couple.
    """
    total = l1 + l2 + l3
    if total % 2 or not _triangle(l1, l2, l3):
        return 0.0
    half, f = total // 2, math.factorial
    multinomial = f(half) // (f(half - l1) * f(half - l2) * f(half - l3))
    numerator = (2 * l1 + 1) * (2 * l2 + 1) * (2 * l3 + 1) * multinomial**2 * f(total - 2 * l1) * f(total - 2 * l2) * f(total - 2 * l3)
    return math.sqrt(numerator / f(total + 1) / (4 * math.pi))


def bracket_coefficient(l1: int, l2: int, l3: int) -> float:
    """The factor h >= 0 in ∫ r·(∇Y_l1 × ∇Y_l2) Y_l3 = h * wigner_3j(l1, l2, l3), for harmonics of normalisation "integral".

    h = sqrt((2l1+1)(2l2+1)(2l3+1) / 4π) sqrt(l1(l1+1) l2(l2+1)) |3j(l1 l2 l3; 1 -1 0)|; zero where l1+l2+l3 is even, or a degree
    is 0, or the degrees do not couple. The surface Poisson bracket holds exactly the couplings that the pointwise product lacks.
    """
    if (l1 + l2 + l3) % 2 == 0 or min(l1, l2, l3) == 0 or not _triangle(l1, l2, l3):
        return 0.0
    symbol = abs(_clebsch_gordan(l1, l2, l3)[l1 + 1, l2 - 1, l3])  # |3j(l1 l2 l3; 1 -1 0)|
    factors = (2 * l1 + 1) * (2 * l2 + 1) * (2 * l3 + 1) * l1 * (l1 + 1) * l2 * (l2 + 1)
    return float(symbol) * math.sqrt(factors / (4 * math.pi))


@cache
def wigner_6j(l1: int, l2: int, l3: int, l4: int, l5: int, l6: int) -> float:
    """Wigner 6j symbol {l1 l2 l3; l4 l5 l6} of integer degrees: how two ways to couple three features are related.

    Exactly zero where one of the four triads (l1 l2 l3), (l1 l5 l6), (l4 l2 l6), (l4 l5 l3) does not couple, and at accidental zeros
    such as {3 5 5; 3 3 3}: Racah's sum is one of integers, multinomial coefficients times k + 1.
    """
    triads = ((l1, l2, l3), (l1, l5, l6), (l4, l2, l6), (l4, l5, l3))
    if not all(_triangle(*triad) for triad in triads):
        return 0.0
    f = math.factorial
    lower = [sum(triad) for triad in triads]
    upper = [l1 + l2 + l4 + l5, l2 + l3 + l5 + l6, l3 + l1 + l6 + l4]
    racah = 0
    for k in range(max(lower), min(upper) + 1):
        parts = [k - s for s in lower] + [s - k for s in upper]  # they sum to k
        racah += (-1) ** k * (f(k + 1) // math.prod(f(part) for part in parts))
    numerator = math.prod(f(a + b - c) * f(a - b + c) * f(b + c - a) for a, b, c in triads)
    denominator = math.prod(f(s + 1) for s in lower)
    return math.copysign(math.sqrt(racah**2 * numerator / denominator), racah)


def _triangle(l1: int, l2: int, l3: int) -> bool:
    return abs(l1 - l2) <= l3 <= l1 + l2


@cache
def _wigner_3j(l1: int, l2: int, l3: int) -> Tensor:
    q1, q2, q3 = (_real_to_complex(l) for l in (l1, l2, l3))
    coupled = np.einsum("ij,kl,nm,ikn->jlm", q1, q2, q3.conj(), _clebsch_gordan(l1, l2, l3), optimize=True).real
    coupled[abs(coupled) < 1e-14] = 0  # leave no rounding where the basis forbids a coupling: sparse products count on it
    return torch.from_numpy(np.ascontiguousarray(coupled))


def _clebsch_gordan(l1: int, l2: int, l3: int) -> np.ndarray:
    """⟨l1 m1 l2 m2 | l3 m3⟩ / sqrt(2l3+1) in the complex basis, Condon-Shortley phase.

    Racah's sum with its factorials gathered into binomials is a sum of integers; one rounding happens at the very end.
    """
    f = math.factorial
    a, b, c = l1 + l2 - l3, l1 - l2 + l3, -l1 + l2 + l3
    denominator = f(l1 + l2 + l3 + 1) * f(a) * f(b) * f(c)
    table = np.zeros((2 * l1 + 1, 2 * l2 + 1, 2 * l3 + 1))
    for m1 in range(-l1, l1 + 1):
        for m2 in range(max(-l2, -l3 - m1), min(l2, l3 - m1) + 1):
            m3 = m1 + m2
            terms = range(min(a, l1 - m1, l2 + m2) + 1)
            racah = sum((-1) ** k * math.comb(a, k) * math.comb(b, l1 - m1 - k) * math.comb(c, l2 + m2 - k) for k in terms)
            weight = f(l1 + m1) * f(l1 - m1) * f(l2 + m2) * f(l2 - m2) * f(l3 + m3) * f(l3 - m3)
            table[l1 + m1, l2 + m2, l3 + m3] = math.copysign(math.sqrt(racah**2 * weight / denominator), racah)
    return table


def _real_to_complex(l: int) -> np.ndarray:
    """Columns: real basis functions in the complex basis; the phase (-i)^l makes the couplings real."""
    q = np.zeros((2 * l + 1, 2 * l + 1), dtype=complex)
    q[l, l] = 1
    for m in range(1, l + 1):
        q[l - m, l + m] = math.sqrt(0.5)
        q[l - m, l - m] = -1j * math.sqrt(0.5)
        q[l + m, l + m] = (-1) ** m * math.sqrt(0.5)
        q[l + m, l - m] = 1j * (-1) ** m * math.sqrt(0.5)
    return (1, -1j, -1, 1j)[l % 4] * q
