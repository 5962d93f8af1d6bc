"""Products of weighted features through signals at points."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from equimol.o3 import Layout, Rings, Table
from equimol.ops import RingProduct, Term, ring_product, signal_product
from equimol.ops.rings import Entries, as_entries, has_rings
from equimol.ops.signals import is_compiled

Factors = Sequence[Tensor]  # a, b and c of a product of a rank: [..., rank, components, channels] each


class SignalTables(nn.Module):
    """The constants of a `signal_product`: tables [signals, points, components] of in1, in2 and out, and which signals to multiply."""

    def __init__(self, tables: Sequence[Tensor], terms: Sequence[Term]) -> None:
        super().__init__()
        self.tables = nn.ModuleList(map(Table, tables))
        self.terms = tuple(terms)
        self.points = tables[0].shape[1]
        halves, self._terms_of_halves = halved(tables, self.terms)
        self._halves = nn.ModuleList(map(Table, halves))
        self._components = tuple(tuple(tuple(used.nonzero()[:, 0].tolist()) for used in (table != 0).any(1)) for table in halves)

    def forward(
        self,
        x: Float[Tensor, "*batch1 dim1 channels1"],
        y: Float[Tensor, "*batch2 dim2 channels2"],
        factors: Factors | None = None,
    ) -> Float[Tensor, "*batch dim_out channels1"]:
        """Products of all channels of x with those of y, or with its only one. Factors without batch dimensions cost next to nothing."""
        y = y.expand(*y.shape[:-1], x.shape[-1])
        if is_compiled(x, self._components):
            return signal_product(x, y, factors, tuple(table(x) for table in self._halves), self._terms_of_halves, self._components)
        return signal_product(x, y, factors, tuple(table(x) for table in self.tables), self.terms)

    def flops(self) -> int:
        """For one pair of channels, zeros of the tables included."""
        return sum(2 * table.exact.numel() for table in self.tables) + 2 * len(self.terms) * self.points


class RingSignal(NamedTuple):
    """A signal on `Rings`: its functions of the ring per harmonic, and where the components of each of its degrees begin.

    One along the ring is a slope, which belongs to order -m and has no order 0; one that is mirrored changes sign under the equator where
    harmonics do not.
    """

    functions: Float[Tensor, "pairs harmonics"]
    starts: dict[int, int]
    along: bool = False
    mirrored: bool = False


class RingTables(nn.Module):
    """The same on rings of points that mirror each other, for kernels.

    Args:
        roles: the signals of in1, in2 and out.
        terms: which to multiply.
        sizes: how many components each role has.
        rings: those that the signals are on.
    """

    def __init__(self, roles: Sequence[Sequence[RingSignal]], terms: Sequence[Term], sizes: Sequence[int], rings: Rings) -> None:
        super().__init__()
        entries, constants = on_rings(roles, rings)
        self.form = RingProduct(terms, entries, sizes)
        self.constants = nn.ModuleList(map(Table, constants))

    def has_kernel(self, like: Tensor) -> bool:
        """Whether there is one for such tensors; without, other grids are faster."""
        return has_rings(like, self.form.entries)

    def forward(
        self,
        x: Float[Tensor, "*batch1 dim1 channels1"],
        y: Float[Tensor, "*batch2 dim2 channels2"],
        factors: Factors | None = None,
    ) -> Float[Tensor, "*batch dim_out channels1"]:
        """As of `SignalTables`."""
        y = y.expand(*y.shape[:-1], x.shape[-1])
        return ring_product(self.form, x, y, factors, [table(x) for table in self.constants])


def on_rings(roles: Sequence[Sequence[RingSignal]], rings: Rings) -> tuple[Entries, list[Tensor]]:
    """What kernels take: the entries of each role, their functions of the ring, and last the waves."""
    entries, constants = [], []
    for signals in roles:
        of_role, columns = [], []
        for signal in signals:
            places = [(l, m) for l in signal.starts for m in range(-l, l + 1) if not (signal.along and m == 0)]
            columns += [signal.functions[:, l * (l + 1) + m] for l, m in places]
            of_role.append([(signal.starts[l] + l + m, -m if signal.along else m, (l + m) % 2 == signal.mirrored) for l, m in places])
        entries.append(of_role)
        constants.append(torch.stack(columns, dim=1))
    most = max(abs(m) for role in entries for signal in role for _, m, _ in signal)
    return as_entries(entries), [*constants, rings.waves(most)]


def halved(tables: Sequence[Tensor], terms: tuple[Term, ...]) -> tuple[Sequence[Tensor], tuple[Term, ...]]:
    """The same product from half of the points, where each component has the same values at the other half, or their negatives.

    So it is on a grid with antipodes. Even and odd components of a signal become two signals, with zeros for the others, which only pays
    for who skips them. Other tables are returned as they are.
    """
    half = tables[0].shape[1] // 2
    if tables[0].shape[1] % 2:
        return tables, terms
    found = []
    for table in tables:
        here, there = table.split(half, dim=1)
        even, odd = (here * (there == sign * here).all(1, keepdim=True) for sign in (1, -1))
        if not torch.equal(even + odd, here):
            return tables, terms
        found.append(torch.stack([even, odd], dim=1).flatten(0, 1))
    found[2] = 2 * found[2]  # both halves of the points give the same to a component, or cancel
    return found, tuple((2 * i + m, 2 * j + n, 2 * k + (m + n) % 2, sign) for i, j, k, sign in terms for m in (0, 1) for n in (0, 1))


def ranked(multiply: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor, factors: Factors) -> Float[Tensor, "... dim_out"]:
    """mean over r of c_r multiply(a_r x, b_r y), of features as products take them. The factors have the channels of x."""
    a, b, c = factors
    z = multiply(x.unflatten(-1, (1, a.shape[-2], -1)) * a, y.unflatten(-1, (1, b.shape[-2], -1)) * b) * c
    return (z.squeeze(-3) if z.shape[-3] == 1 else z.mean(-3)).flatten(-2)


def ranked_by_tables(multiply: Callable[..., Tensor], x: Tensor, y: Tensor, factors: Factors) -> Float[Tensor, "... dim_out"]:
    """The same by `SignalTables`, which take factors that all rows share."""
    a, b, c = factors
    if any(f.ndim > 3 for f in factors):
        return ranked(multiply, x, y, factors)
    return multiply(x.unflatten(-1, (a.shape[-2], -1)), y.unflatten(-1, (b.shape[-2], -1)), (a, b, c / len(c))).flatten(-2)


def spread(factors: Float[Tensor, "... blocks channels"], layout: Layout) -> Float[Tensor, "... components channels"]:
    """A factor per block as one per component."""
    parts = [
        part.unsqueeze(-2).expand(*part.shape[:-1], 2 * block.l + 1, part.shape[-1])
        for part, block in zip(factors.unbind(-2), layout, strict=True)
    ]
    return torch.cat(parts, dim=-2)
