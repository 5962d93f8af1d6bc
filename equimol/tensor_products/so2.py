"""Edge convolutions in a frame whose polar axis lies along the edge (eSCN: Passaro and Zitnick 2023, arXiv:2302.03655).

The harmonics of an edge have m = 0 alone there, so that a coupling leaves m as it is (l1+l2+l3 even) or mixes m with -m (odd):
O(lmax^3) per edge and channel for all degrees with all. The features of the sender are turned into that frame once, the messages
back once. Directions are read from the harmonics of degree 1 and nothing from those above: harmonics must be `spherical_harmonics`
of vectors, and a derivative has a meaning with respect to these, not to single harmonics.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from equimol.o3 import (
    Block,
    Layout,
    Path,
    Table,
    coupling_paths,
    layout_dim,
    layout_slices,
    lmax_of,
    natural_layout,
    spherical_harmonics,
    split_blocks,
    wigner_3j,
)
from equimol.o3.frames import PolarFrames
from equimol.ops import Entry, Rows, Slots, gather, scatter_sum
from equimol.ops.kernels import has_operator
from equimol.tensor_products.base import EdgeConvolution, balance, require_natural, sphere_strength
from equimol.tensor_products.framed import FramedConvolution

BLOCK_NUMBERS = 2**21  # numbers that enter and leave at a time: what is made of them then mostly stays in the cache of one core


class SO2Convolution(EdgeConvolution):
    """The Clebsch-Gordan convolution, computed in the frame of each edge: same paths, weights, layouts and numbers.

    Paths stay apart in ``out``, and turning them back costs more than coupling them; :class:`SO2MixedConvolution` sums them before.
    Turning back and the sum over neighbours are one matrix product per atom, so that no message exists in the frame of the structure.

    Args:
        in_layout: blocks of equal channels.
        lmax_edge: degrees 0..lmax_edge of the harmonics.
        out_degrees: l3 kept, or the largest of them.
        couplings: "even" keeps l1+l2+l3 even (natural parity from natural parity), "all" also the pseudotensors.
    """

    def __init__(self, in_layout: Layout, lmax_edge: int, out_degrees: int | Iterable[int], *, couplings: str = "even") -> None:
        super().__init__(in_layout, lmax_edge, out_degrees)
        self.paths = edge_paths(in_layout, lmax_edge, self.out_degrees, couplings)  # weights in this order
        self.num_weights = len(self.paths)
        kinds = sorted({(p.l3, -p.p3) for p in self.paths})  # even parity first, as e3nn sorts
        self._columns = {kind: [n for n, p in enumerate(self.paths) if (p.l3, -p.p3) == kind] for kind in kinds}
        self.out = tuple(Block(l, -minus, self.channels * len(columns)) for (l, minus), columns in self._columns.items())
        self._frames = make_frames(in_layout, self.out_degrees)
        # odd paths multiply the component -m of the feature: their table and the rows of the frame stand in reverse instead
        factors = [aligned_coupling(p).flip(0) if is_odd(p) else aligned_coupling(p) for p in self.paths]
        self._tables = nn.ModuleList(Table(f.unsqueeze(-1)) for f in factors)
        self._framed = self._compile()

    def forward(
        self,
        features: Float[Tensor, "atoms dim"],
        harmonics: Float[Tensor, "edges harmonics"],
        senders: Int[Tensor, " edges"],
        receivers: Int[Tensor, " edges"],
        weights: Float[Tensor, "edges num_weights channels"],
    ) -> Float[Tensor, "atoms dim_out"]:
        self.check(features, harmonics, senders, receivers, weights)
        if has_operator("frames", features, self._framed.form.obstacle):
            return self._framed(self._frames, features, edge_directions(harmonics), senders, receivers, weights)
        slots = Slots(receivers, len(features))
        sent = gather(features, slots.index(senders))
        filled = (sent, slots.fill(edge_directions(harmonics)), slots.fill(weights))
        neighbours = [a.unflatten(0, (len(features), slots.width)) for a in filled]
        per_atom = slots.width * (layout_dim(self.in_layout) + self.num_weights * self.channels)
        return in_blocks(self._sums, per_atom, *neighbours)

    def _sums(
        self,
        sent: Float[Tensor, "atoms neighbours dim"],
        directions: Float[Tensor, "atoms neighbours 3"],
        weights: Float[Tensor, "atoms neighbours num_weights channels"],
    ) -> Float[Tensor, "atoms dim_out"]:
        atoms, neighbours = directions.shape[:2]
        frames = self._frames(directions.flatten(0, 1))
        aligned = turn_into(frames, sent.flatten(0, 1), self.in_layout)
        # One view for all paths that need it: its derivative is a full tensor of mostly zeros.
        sources = {(i1, m): _middle_rows(aligned[i1], m) for i1, m in {(p.i1, min(p.l1, p.l3)) for p in self.paths}}
        targets = {(l3, m): _middle_rows(frames[l3], m) for l3, m in {(p.l3, min(p.l1, p.l3)) for p in self.paths}}
        coupled = []  # [atoms, 2*l3+1, channels] of each path
        for p, w, table in zip(self.paths, weights.flatten(0, 1).unbind(1), self._tables, strict=True):
            m = min(p.l1, p.l3)
            frame = targets[p.l3, m]
            back = (frame.flip(1) if is_odd(p) else frame) * table(w)  # constant factors cost less here than on all channels
            messages = sources[p.i1, m] * w.unsqueeze(1)
            rows = neighbours * (2 * m + 1)
            coupled.append(torch.bmm(back.reshape(atoms, rows, 2 * p.l3 + 1).mT, messages.reshape(atoms, rows, self.channels)))
        return torch.cat([torch.cat([coupled[n] for n in columns], -1).flatten(1) for columns in self._columns.values()], -1)

    def _compile(self) -> FramedConvolution:
        """A target for each path, in one order with its weight; paths of a kind stand side by side."""
        targets, row = {}, 0
        for (l, _), columns in self._columns.items():
            targets |= {n: Rows(l, row + column, len(columns)) for column, n in enumerate(columns)}
            row += (2 * l + 1) * len(columns)
        combinations, entries = [], []
        for n, p in enumerate(self.paths):
            factors, odd = aligned_coupling(p), is_odd(p)
            for m in range(int(odd), min(p.l1, p.l3) + 1):
                entries += [Entry(len(combinations), p.i1, source, n, order, sign) for source, order, sign in _pairs(m, odd)]
                combinations.append(((n, float(_of_order(factors, m))),))
        return FramedConvolution(
            self._frames, self.in_layout, self.out, [targets[n] for n in range(len(self.paths))], combinations, entries, self.num_weights
        )


class SummedMessages(EdgeConvolution):
    """Messages edge by edge in the frame of the structure, then their sum: for convolutions with few channels out of each edge."""

    _frames: PolarFrames
    _framed: FramedConvolution

    def forward(
        self,
        features: Float[Tensor, "atoms dim"],
        harmonics: Float[Tensor, "edges harmonics"],
        senders: Int[Tensor, " edges"],
        receivers: Int[Tensor, " edges"],
        weights: Float[Tensor, "edges num_weights channels"],
    ) -> Float[Tensor, "atoms dim_out"]:
        self.check(features, harmonics, senders, receivers, weights)
        if has_operator("frames", features, self._framed.form.obstacle):
            return self._framed(self._frames, features, edge_directions(harmonics), senders, receivers, weights)
        per_edge = layout_dim(self.in_layout) + layout_dim(self.out)
        messages = in_blocks(self.messages, per_edge, gather(features, senders), edge_directions(harmonics), weights)
        return scatter_sum(messages, receivers, len(features))

    @abstractmethod
    def messages(
        self,
        sent: Float[Tensor, "edges dim"],
        directions: Float[Tensor, "edges 3"],
        weights: Float[Tensor, "edges num_weights channels"],
    ) -> Float[Tensor, "edges dim_out"]:
        """What each edge brings, from the feature of its sender and its unit vector."""


class SO2MixedConvolution(SummedMessages):
    """What eSCN learns: in the frame of the edge a weight for each l1, l3 and |m|, channel by channel, summed over l1.

    Weights of even couplings multiply the components m and -m alike, those of odd ones exchange them with opposite signs. This holds
    every coupling with harmonics of any degree: ``lmax_edge`` only says which paths :meth:`weights_from_paths` takes.
    Each message has unit variance for features and weights of unit variance.

    Args:
        in_layout: natural parity, degrees 0..lmax, equal channels.
        lmax_edge: degrees 0..lmax_edge of the harmonics, at least 1.
        out_degrees: l3 kept, or the largest of them.
        couplings: "even" keeps l1+l2+l3 even (natural parity), "all" also the pseudotensors.
    """

    def __init__(self, in_layout: Layout, lmax_edge: int, out_degrees: int | Iterable[int], *, couplings: str = "even") -> None:
        super().__init__(in_layout, lmax_edge, out_degrees)
        require_natural(type(self).__name__, "in_layout", in_layout)
        if lmax_edge < 1:
            raise ValueError(f"lmax_edge must be at least 1, got {lmax_edge}; harmonics of degree 1 say which way an edge points")
        lmax = lmax_of(in_layout)
        self.paths = edge_paths(in_layout, lmax_edge, self.out_degrees, couplings)
        parities = [odd for odd, excluded in ((False, "odd"), (True, "even")) if couplings != excluded]
        kinds = [(l, odd) for l in self.out_degrees for odd in parities if not odd or min(l, lmax) > 0]
        self._kinds = sorted(kinds, key=lambda kind: (kind[0], -_parity(*kind)))  # even parity first
        self.out = tuple(Block(l, _parity(l, odd), self.channels) for l, odd in self._kinds)
        self._mixings = [
            Mixing(odd, m, tuple(range(m, lmax + 1)), tuple(l for l in self.out_degrees if l >= m))
            for odd in parities
            for m in range(int(odd), min(lmax, max(self.out_degrees)) + 1)
        ]
        self._sizes = [len(mix.degrees_out) * len(mix.degrees_in) for mix in self._mixings]
        self.num_weights = sum(self._sizes)
        self._frames = make_frames(in_layout, self.out_degrees)
        scales = {kind: _mixing_scales(lmax, *kind) for kind in self._kinds}
        self._scales = nn.ModuleList(Table(scales[kind].unsqueeze(-1)) for kind in self._kinds)
        self._from_paths = Table(self._path_table(scales))
        self._framed = self._compile(scales)

    def messages(
        self,
        sent: Float[Tensor, "edges dim"],
        directions: Float[Tensor, "edges 3"],
        weights: Float[Tensor, "edges num_weights channels"],
    ) -> Float[Tensor, "edges dim_out"]:
        frames = self._frames(directions)
        rows = split_orders(turn_into(frames, sent, self.in_layout))
        mixed: dict[tuple[int, bool, int], Tensor] = {(l, True, 0): torch.zeros_like(rows[0][0]) for l in self.out_degrees}
        for (odd, m, degrees_in, degrees_out), w in zip(self._mixings, weights.split(self._sizes, 1), strict=True):
            orders = (m, -m) if m else (0,)
            sources = orders[::-1] if odd else orders  # the signs of odd ones are in the scales
            x = torch.stack([rows[l][source] for source in sources for l in degrees_in], 1)
            x = x.unflatten(1, (len(orders), 1, len(degrees_in)))
            y = (x * w.unflatten(1, (1, len(degrees_out), len(degrees_in)))).sum(3)  # [edges, orders, degrees out, channels]
            for order, by_degree in zip(orders, y.unbind(1), strict=True):
                mixed |= {(l, odd, order): row for l, row in zip(degrees_out, by_degree.unbind(1), strict=True)}
        messages = []
        for (l, odd), scale in zip(self._kinds, self._scales, strict=True):
            largest = self._frames.rows[l] // 2
            z = torch.stack([mixed[l, odd, m] for m in range(-largest, largest + 1)], 1)
            messages.append(torch.bmm((frames[l] * scale(z)).mT, z).flatten(1))
        return torch.cat(messages, -1)

    def weights_from_paths(self, path_weights: Float[Tensor, "... paths channels"]) -> Float[Tensor, "... num_weights channels"]:
        """The weights that stand for those of ``paths``: they give the sum over paths into each degree and parity."""
        return self._from_paths(path_weights) @ path_weights

    def _compile(self, scales: dict[tuple[int, bool], Tensor]) -> FramedConvolution:
        targets = [Rows(block.l, first // self.channels, 1) for block, (first, _) in zip(self.out, _bounds(self.out), strict=True)]
        combinations, entries = [], []
        for odd, m, degrees_in, degrees_out in self._mixings:
            for l3 in degrees_out:
                target = self._kinds.index((l3, odd))
                for l1 in degrees_in:
                    entries += [Entry(len(combinations), l1, source, target, order, sign) for source, order, sign in _pairs(m, odd)]
                    combinations.append(((len(combinations), float(_of_order(scales[l3, odd], m))),))
        return FramedConvolution(self._frames, self.in_layout, self.out, targets, combinations, entries, self.num_weights)

    def _path_table(self, scales: dict[tuple[int, bool], Tensor]) -> Float[Tensor, "num_weights paths"]:
        couplings = [aligned_coupling(p) for p in self.paths]
        table = torch.zeros(self.num_weights, len(self.paths), dtype=torch.float64)
        row = 0
        for odd, m, degrees_in, degrees_out in self._mixings:
            for l3 in degrees_out:
                scale = _of_order(scales[l3, odd], m)
                for l1 in degrees_in:
                    for n, p in enumerate(self.paths):
                        if (p.l1, p.l3, is_odd(p)) == (l1, l3, odd):
                            table[row, n] = _of_order(couplings[n], m) / scale
                    row += 1
        return table


class SO2GauntConvolution(SummedMessages):
    """The Gaunt convolution, computed in the frame of each edge: same weights, layouts and numbers as ``GauntGridConvolution``.

    The filter depends on the polar angle alone there, so that functions are sampled along it, each order m by itself, and never
    around the edge.
    """

    def __init__(self, in_layout: Layout, lmax_edge: int, out_degrees: int | Iterable[int], rank: int | None = None) -> None:
        super().__init__(in_layout, lmax_edge, out_degrees, rank=1 if rank is None else rank)
        require_natural(type(self).__name__, "in_layout", in_layout)
        lmax, lmax_out = lmax_of(in_layout), max(self.out_degrees)
        self.num_weights = self.rank * (lmax_edge + 1)
        self.out = tuple(Block(l, (-1) ** l, self.rank * self.channels) for l in self.out_degrees)
        self._frames = make_frames(in_layout, self.out_degrees)
        y, quadrature = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss((lmax + lmax_edge + lmax_out) // 2 + 1))
        meridian = torch.stack([torch.zeros_like(y), y, ((1 - y) * (1 + y)).sqrt()], dim=-1)  # where cos(ma) = 1
        legendre = spherical_harmonics(meridian, max(lmax, lmax_edge, lmax_out), "integral")

        def column(l: int, m: int) -> Tensor:
            return legendre[:, l * l + l + m] * balance(l)

        self.nodes = len(y)
        self._zonal = Table(torch.stack([column(l, 0) * math.sqrt(2 * l + 1) for l in range(lmax_edge + 1)], 1))
        self._degrees_out = [tuple(l for l in self.out_degrees if l >= m) for m in range(min(lmax, lmax_out) + 1)]
        synthesis, analysis = [], []
        for m, degrees_out in enumerate(self._degrees_out):
            synthesis.append(torch.stack([column(l, m) for l in range(m, lmax + 1)], 1))
            around = math.pi if m else 2 * math.pi  # the integral of cos² (ma)
            rows = [around * _gaunt_norm(lmax, lmax_edge, l) * quadrature * column(l, m) for l in degrees_out]
            analysis.append(torch.stack(rows))
        self._synthesis = nn.ModuleList(Table(t) for t in synthesis)  # [nodes, l1] for each m
        self._analysis = nn.ModuleList(Table(t) for t in analysis)  # [l3, nodes]
        self._framed = self._compile()

    def messages(
        self,
        sent: Float[Tensor, "edges dim"],
        directions: Float[Tensor, "edges 3"],
        weights: Float[Tensor, "edges num_weights channels"],
    ) -> Float[Tensor, "edges dim_out"]:
        edges, channels = len(sent), self.channels
        frames = self._frames(directions)
        rows = split_orders(turn_into(frames, sent, self.in_layout))
        # Nodes and degrees in front, edges behind: every transform is one matrix product for all edges.
        mixing = weights.unflatten(1, (self.rank, self.lmax_edge + 1)).permute(2, 0, 1, 3).flatten(1)
        filters = (self._zonal(mixing) @ mixing).view(self.nodes, 1, edges, self.rank, channels)
        projected: dict[tuple[int, int], Tensor] = {}  # [edges, rank * channels] of each degree and order
        for m, degrees_out in enumerate(self._degrees_out):
            orders = (m, -m) if m else (0,)
            x = torch.stack([rows[l][order] for l in range(m, len(rows)) for order in orders])
            x = x.view(len(rows) - m, len(orders) * edges * channels)
            samples = (self._synthesis[m](x) @ x).view(self.nodes, len(orders), edges, 1, channels)
            z = (self._analysis[m](x) @ (samples * filters).flatten(1)).view(len(degrees_out), len(orders), edges, self.rank * channels)
            for l, by_order in zip(degrees_out, z.unbind(0), strict=True):
                projected |= {(l, order): row for order, row in zip(orders, by_order.unbind(0), strict=True)}
        messages = []
        for l in self.out_degrees:
            largest = self._frames.rows[l] // 2
            z = torch.stack([projected[l, m] for m in range(-largest, largest + 1)], 1)
            messages.append(torch.bmm(frames[l].mT, z).flatten(1))
        return torch.cat(messages, -1)

    def _compile(self) -> FramedConvolution:
        """The same by what the nodes add up to: a factor for each l1, l2, l3 and |m|."""
        targets = [
            Rows(block.l, first // self.channels + r, self.rank)
            for block, (first, _) in zip(self.out, _bounds(self.out), strict=True)
            for r in range(self.rank)
        ]
        combinations, entries, zonal = [], [], self._zonal.exact
        for m, degrees_out in enumerate(self._degrees_out):
            factors = torch.einsum("op,pi,pk->oik", self._analysis[m].exact, self._synthesis[m].exact, zonal)
            for l3, by_source in zip(degrees_out, factors, strict=True):
                for l1, by_degree in enumerate(by_source.tolist(), start=m):
                    for r in range(self.rank):
                        target = self.out_degrees.index(l3) * self.rank + r
                        used = [(r * len(by_degree) + l2, factor) for l2, factor in enumerate(by_degree) if abs(factor) > 1e-12]
                        if used:
                            entries += [Entry(len(combinations), l1, a, target, b, sign) for a, b, sign in _pairs(m, False)]
                            combinations.append(tuple(used))
        return FramedConvolution(self._frames, self.in_layout, self.out, targets, combinations, entries, self.num_weights)


def in_blocks(function: Callable[..., Tensor], numbers_per_row: int, *tensors: Float[Tensor, "rows ..."]) -> Float[Tensor, "rows ..."]:
    """A function that treats each row by itself, on a CPU with as many rows at a time as its cache holds."""
    rows = max(1, BLOCK_NUMBERS // max(1, numbers_per_row))
    if len(tensors[0]) <= rows or tensors[0].device.type != "cpu" or torch.compiler.is_compiling():
        return function(*tensors)
    return torch.cat([function(*block) for block in zip(*(t.split(rows) for t in tensors), strict=True)])


class Mixing(NamedTuple):
    """Weights of one order, [degrees_out, degrees_in]."""

    odd: bool
    m: int
    degrees_in: tuple[int, ...]
    degrees_out: tuple[int, ...]


def edge_paths(in_layout: Layout, lmax_edge: int, out_degrees: tuple[int, ...], couplings: str) -> tuple[Path, ...]:
    """Couplings with the harmonics of an edge, in the order of ``ClebschGordanConvolution``."""
    paths = coupling_paths(in_layout, natural_layout(lmax_edge, 1), out_degrees, couplings)
    return tuple(sorted(paths, key=lambda p: (p.l2, p.i1, p.l3)))


def is_odd(path: Path) -> bool:
    """Whether the path mixes m with -m."""
    return (path.l1 + path.l2 + path.l3) % 2 == 1


def aligned_coupling(path: Path) -> Float[Tensor, " orders"]:
    """Factors c_m, |m| <= min(l1, l3), in z_m = c_m x_m (even) or z_m = c_m x_{-m} (odd), for harmonics of the polar axis.

    Component-normalised, as ``ClebschGordanConvolution``. c_-m is c_m for even paths, -c_m for odd ones.
    """
    l1, l2, l3 = path.l1, path.l2, path.l3
    orders = min(l1, l3)
    coupling = wigner_3j(l1, l2, l3)[l1 - orders : l1 + orders + 1, l2, l3 - orders : l3 + orders + 1]
    diagonal = coupling.flip(0).diagonal() if is_odd(path) else coupling.diagonal()
    return math.sqrt((2 * l2 + 1) * (2 * l3 + 1)) * diagonal  # Y_l2 of the polar axis is sqrt(2*l2+1) at m = 0


def _pairs(m: int, odd: bool) -> list[tuple[int, int, int]]:
    """Orders ±m that a coupling takes, those that it gives, and the sign."""
    orders = (m, -m) if m else (0,)
    return [(-order if odd else order, order, -1 if odd and order < 0 else 1) for order in orders]


def _bounds(layout: Layout) -> list[tuple[int, int]]:
    """Where each block begins and ends."""
    return [(part.start, part.stop) for part in layout_slices(layout)]


def make_frames(in_layout: Layout, out_degrees: tuple[int, ...]) -> PolarFrames:
    """With the orders that both sides have: m is conserved up to its sign."""
    lmax, lmax_out = lmax_of(in_layout), max(out_degrees)
    return PolarFrames(max(lmax, lmax_out), min(lmax, lmax_out))


def edge_directions(harmonics: Float[Tensor, "edges harmonics"]) -> Float[Tensor, "edges 3"]:
    """Unit vectors from component-normalised harmonics."""
    if harmonics.shape[1] == 1:  # the constant harmonic couples the same in every frame
        return harmonics.new_tensor([0.0, 1.0, 0.0]).expand(len(harmonics), 3)
    return harmonics[:, 1:4] / math.sqrt(3)


def turn_into(frames: list[Tensor], features: Float[Tensor, "edges dim"], layout: Layout) -> list[Float[Tensor, "edges m channels"]]:
    """Each block in the frame of its edge: the components that the frames have."""
    return [torch.bmm(frames[block.l], x) for block, x in zip(layout, split_blocks(features, layout), strict=True)]


def split_orders(aligned: list[Float[Tensor, "edges _ channels"]]) -> list[dict[int, Tensor]]:
    """For each block its components by order, {-m: .., .. m: ..}."""
    return [dict(zip(range(-(x.shape[1] // 2), x.shape[1] // 2 + 1), x.unbind(1), strict=True)) for x in aligned]


def _middle_rows(x: Float[Tensor, "edges m columns"], orders: int) -> Float[Tensor, "edges rows columns"]:
    return x.narrow(1, x.shape[1] // 2 - orders, 2 * orders + 1)


def _of_order(x: Float[Tensor, " orders"], m: int) -> Tensor:
    return x[len(x) // 2 + m]


def _parity(l: int, odd: bool) -> int:
    return (-1) ** (l + odd)


def _mixing_scales(lmax: int, l3: int, odd: bool) -> Float[Tensor, " orders"]:
    """For each m what divides the variance of a sum over l1 evenly among the m that occur; the sign of odd couplings at m < 0."""
    orders = min(lmax, l3)
    occurring = 2 * orders if odd else 2 * orders + 1
    scales = [math.sqrt((2 * l3 + 1) / occurring / (lmax + 1 - abs(m))) for m in range(-orders, orders + 1)]
    signs = [(m > 0) - (m < 0) if odd else 1 for m in range(-orders, orders + 1)]
    return torch.tensor([s * sign for s, sign in zip(scales, signs, strict=True)], dtype=torch.float64)


def _gaunt_norm(lmax: int, lmax_edge: int, l3: int) -> float:
    """What makes the degree l3 of a pointwise product a unit-variance feature."""
    pairs = [(l1, l2) for l1 in range(lmax + 1) for l2 in range(lmax_edge + 1) if (l1 + l2 + l3) % 2 == 0 and abs(l1 - l2) <= l3 <= l1 + l2]
    return math.sqrt((2 * l3 + 1) / sum(sphere_strength(l1, l2, l3) ** 2 for l1, l2 in pairs))
