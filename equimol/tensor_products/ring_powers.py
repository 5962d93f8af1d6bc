"""Products of several copies of a feature as functions on the sphere, at rings of points: one kernel for each derivative."""

import itertools
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from equimol.o3 import Layout, Table, lmax_of, mirrored_rings
from equimol.ops import Polynomial, ring_polynomial
from equimol.ops.rings import has_ring_polynomials
from equimol.tensor_products.signal_tables import RingSignal, on_rings
from equimol.tensor_products.sphere_product import kind_of

Exponents = tuple[int, int, int]  # a, b, c of f^a g^b {f,g}^c
Signal = tuple[int, int]  # of f (1) or g (-1): its value (0), or its gradient along the meridian (1) or the ring (2)


class RingPowers(nn.Module):
    """Coefficients of f^a g^b {f,g}^c, for f of natural parity and g of the other, as the grids of `CompletePower` find them.

    f itself is not projected: it is there already.
    """

    def __init__(self, in_layout: Layout, lmax_out: int, terms: Sequence[Exponents]) -> None:
        super().__init__()
        starts = list(itertools.accumulate((2 * block.l + 1 for block in in_layout), initial=0))
        places = {kind: {b.l: start for start, b in zip(starts, in_layout, strict=False) if kind_of(b) == kind} for kind in (1, -1)}
        self._of_f, self.lmax_out, self.terms = places[1], lmax_out, tuple(terms)
        self._powers = [term for term in terms if term != (1, 0, 0)]
        lmax = lmax_of(in_layout)
        rings = mirrored_rings(lmax, lmax_out, max(a + b + 2 * c for a, b, c in terms) * lmax + lmax_out)
        known: list[Signal] = []
        monomials = []
        for number, term in enumerate(self._powers):
            for sign, factors in _expanded(*term):
                for signal in factors:
                    if signal not in known:
                        known.append(signal)
                monomials.append((sign, tuple((0, known.index(signal)) for signal in factors), number))
        size = (lmax_out + 1) ** 2
        of_x = [RingSignal(rings.signals[n], places[kind], along=n == 2, mirrored=n == 1) for kind, n in known]
        blocks = [{l: n * size + l * l for l in range(lmax_out + 1)} for n in range(len(self._powers))]
        of_z = [RingSignal(rings.analyses[c % 2], starts) for (_, _, c), starts in zip(self._powers, blocks, strict=True)]
        self._polynomial, self._sizes = Polynomial(tuple(monomials), (0,), 1), (starts[-1], len(self._powers) * size)
        self._entries, constants = on_rings([of_x, of_z], rings) if self._powers else ((), [])
        self._constants = nn.ModuleList(map(Table, constants))

    def has_kernel(self, like: Tensor) -> bool:
        """Whether there is one for such features; without, other grids are faster."""
        return has_ring_polynomials(like, self._entries)

    def forward(self, x: Float[Tensor, "atoms components channels"]) -> Float[Tensor, "atoms terms harmonics channels"]:
        """Degrees 0 to lmax_out of each term."""
        found = {}
        if self._powers:
            constants = [table(x) for table in self._constants]
            z = ring_polynomial(self._polynomial, self._entries, self._sizes, [x], constants)
            found = dict(zip(self._powers, z.unflatten(1, (len(self._powers), -1)).unbind(1), strict=True))
        rows = [
            x[:, self._of_f[l] : self._of_f[l] + 2 * l + 1] if l in self._of_f else x.new_zeros(len(x), 2 * l + 1, x.shape[2])
            for l in range(self.lmax_out + 1)
        ]
        found[1, 0, 0] = torch.cat(rows, dim=1)
        return torch.stack([found[term] for term in self.terms], dim=1)


def _expanded(a: int, b: int, c: int) -> list[tuple[int, tuple[Signal, ...]]]:
    """f^a g^b {f,g}^c as a sum of products of signals, with signs: {f,g} is a difference of two."""
    halves = (1, ((1, 1), (-1, 2))), (-1, ((1, 2), (-1, 1)))
    found = []
    for chosen in itertools.product(halves, repeat=c):
        sign, factors = 1, [(1, 0)] * a + [(-1, 0)] * b
        for half_sign, pair in chosen:
            sign, factors = sign * half_sign, [*factors, *pair]
        found.append((sign, tuple(factors)))
    return found
