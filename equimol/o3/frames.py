"""Frames whose polar axis lies along given directions, as Wigner matrices."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from equimol.o3.tables import Table
from equimol.o3.wigner import wigner_d


class PolarFrames(nn.Module):
    """Wigner matrices D_l(Q), degree by degree, of a rotation Q that turns each direction onto the polar axis y.

    Q is one of many, since a turn about y may follow it, and the choice jumps where |y| crosses sqrt(1/2): only what commutes with
    turns about y may stand between there and back, and there the jump cancels. On either side of it Q is smooth, at the poles too.

    With the angles b from y and a about y, Q = R_x(-b) R_y(-a). D(R_y) mixes m with -m only, and D(R_x(-b)) is a constant matrix
    for each cos(mb) and sin(mb), so that one matrix product makes all degrees of all directions. Towards the poles, where a has no
    meaning, directions are first turned by a right angle about x.

    Args:
        lmax: degrees 0..lmax.
        orders: rows |m| <= orders are made, the others left out.
    """

    def __init__(self, lmax: int, orders: int) -> None:
        super().__init__()
        self.lmax = lmax
        self.rows = [2 * min(l, orders) + 1 for l in range(lmax + 1)]
        self._sizes = [rows * (2 * l + 1) for l, rows in enumerate(self.rows)]
        tilts = [_tilts(l, lmax)[:, l - rows // 2 : l + rows // 2 + 1] for l, rows in enumerate(self.rows)]
        self._tilts = Table(torch.cat([t.flatten(1) for t in tilts], dim=1))
        right_angle = torch.tensor([[1, 0, 0], [0, 0, -1], [0, 1, 0]], dtype=torch.float64)  # (x, y, z) -> (x, -z, y)
        self._right_angle = nn.ModuleList(Table(_clean(wigner_d(right_angle, l))) for l in range(lmax + 1))

    def forward(self, directions: Float[Tensor, "edges 3"]) -> list[Float[Tensor, "edges rows columns"]]:
        """A matrix per degree for unit vectors. The zero vector gets something finite that is no rotation, and no NaN in gradients."""
        tilt, turn, polar = self.angles(directions)
        sines = turn[:, : self.lmax]  # of lmax..1
        cosine = torch.cat([turn[:, self.lmax + 1 :].flip(1), turn[:, self.lmax :]], 1).unsqueeze(1)  # cos(ma), m = -lmax..lmax
        sine = torch.cat([-sines, torch.zeros_like(turn[:, :1]), sines.flip(1)], 1).unsqueeze(1)
        polar = polar[:, None, None]
        frames = []
        for l, d in enumerate((tilt @ self._tilts(tilt)).split(self._sizes, dim=-1)):
            d = d.unflatten(-1, (self.rows[l], 2 * l + 1))
            columns = slice(self.lmax - l, self.lmax + l + 1)
            d = torch.addcmul(d * cosine[..., columns], d.flip(-1), sine[..., columns], value=-1)  # times D(R_y(-a))
            frames.append(torch.where(polar, d @ self._right_angle[l](d), d))
        return frames

    def angles(
        self, directions: Float[Tensor, "edges 3"]
    ) -> tuple[Float[Tensor, "edges angles"], Float[Tensor, "edges angles"], Bool[Tensor, " edges"]]:
        """sin(mb) for m = lmax..1 and cos(mb) for m = 0..lmax, the same of a, and which directions are turned by the right angle first."""
        x, y, z = directions.unbind(-1)
        polar = y * y > 0.5
        y, z = torch.where(polar, -z, y), torch.where(polar, y, z)  # now x² + z² >= 1/2
        across = x * x + z * z
        radius = torch.where(across > 0, across, 1).sqrt()
        tilt, turn = (_multiples(*pair, self.lmax) for pair in ((y, radius), (z / radius, x / radius)))
        return *(torch.stack([*sines[:0:-1], *cosines], dim=-1) for cosines, sines in (tilt, turn)), polar

    def turn_right(
        self, l: int, x: Float[Tensor, "... components channels"], back: bool = False
    ) -> Float[Tensor, "... components channels"]:
        """Components of a degree after the turn by a right angle, or before it."""
        table = self._right_angle[l](x)
        return (table.mT if back else table) @ x

    def tilt_elements(self) -> Float[Tensor, "angles elements"]:
        """What D_l(R_x(-b)) is made of, for sines and cosines as `angles` gives them: of each degree the elements [rows, l] between
        components below 0, then those of the others [rows, l + 1]; none of the other elements is different from zero."""
        found = []
        for l, tilts in enumerate(self._tilts.exact.split(self._sizes, dim=1)):
            half, tilts = self.rows[l] // 2, tilts.unflatten(1, (self.rows[l], 2 * l + 1))
            found += [tilts[:, :half, :l].flatten(1), tilts[:, half:, l:].flatten(1)]
        return torch.cat(found, 1)


def _multiples(cosine: Float[Tensor, " edges"], sine: Float[Tensor, " edges"], lmax: int) -> tuple[list[Tensor], list[Tensor]]:
    """cos(mb) and sin(mb) for m = 0..lmax, by the addition theorem."""
    cosines, sines = [torch.ones_like(cosine)], [torch.zeros_like(sine)]
    for _ in range(lmax):
        c, s = cosines[-1], sines[-1]
        cosines.append(cosine * c - sine * s)
        sines.append(sine * c + cosine * s)
    return cosines, sines


def _tilts(l: int, lmax: int) -> Float[Tensor, "terms components components"]:
    """D_l(R_x(-b)) as one matrix for each cos(mb), m = 0..lmax, preceded by one for each sin(mb), m = lmax..1.

    The rotation x -> z -> y -> x carries turns about y, whose matrices are cos(mb) and sin(mb) themselves, over to turns about x.
    """
    cycle = torch.tensor([[0, 1, 0], [0, 0, 1], [1, 0, 0]], dtype=torch.float64)
    d = wigner_d(cycle, l)
    table = torch.zeros(2 * lmax + 1, 2 * l + 1, 2 * l + 1, dtype=torch.float64)
    for m in range(-l, l + 1):
        table[lmax + abs(m)] += torch.outer(d[:, l + m], d[:, l + m])
    for m in range(1, l + 1):
        swap = torch.outer(d[:, l + m], d[:, l - m])
        table[lmax - m] = swap - swap.T
    return _clean(table)


def _clean(table: Tensor) -> Tensor:
    """Without the rounding errors of numbers that are zero."""
    return torch.where(table.abs() < 1e-13, 0, table)
