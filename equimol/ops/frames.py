"""Sums over neighbours of features that are mixed in the frame of each edge: no feature of an edge ever reaches the memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from equimol.ops.convolution import edges_of, require_beside, require_edges, require_within
from equimol.ops.kernels import find_kernel, has_kernel, run
from equimol.ops.multilinear import Form, form_derivatives, form_operator, plain_derivatives
from equimol.ops.scatter import gather, scatter_sum

LONGEST = 700  # entries and components of all blocks, up to which there is a kernel: 1.5 s to compile, and far longer beyond
TOO_LONG = "it would be too long, at so high degrees"
PADDING = 16  # numbers of which the columns of a table are a multiple: no vector of a kernel is longer


#: arguments of a form with its roles as they are, and exchanged
_FORTH, _BACK = (0, 1, 2, 3, 4, 5, 6), (6, 4, 5, 3, 1, 2, 0)


class Rows(NamedTuple):
    """Where the components -l..l of a degree stand: rows of channels, ``step`` apart from the ``first`` on."""

    l: int
    first: int
    step: int


class Entry(NamedTuple):
    """What is added in the frame: sign times a combination of weights times the component of an order of a block, to one of another."""

    combination: int
    source: int
    source_order: int
    target: int
    target_order: int
    sign: int


class FramedSum(Form):
    """sum_e g_r(e) D_e^T M(w_e) D_e x_s(e), with the rotation D = T(b) Z(a) of each edge, in and out of its frame, and a mixing M.

    Z turns about the polar axis: components c and -c by cos(ca) and sin(ca). T tilts: a constant matrix for each cos(mb) and sin(mb), whose
    elements between components below 0 and others are zero. Linear in features x, in what T and Z are made of, each twice, for the way
    in and the way out, in weights w, and in g, by which its derivative is the sum.

    Args:
        lmax: of the rotations.
        orders: |m| up to which there are rows of T.
        sources, targets: the blocks of x and of g, as `Rows`.
        combinations: of weights, each as pairs of the number of a weight and its factor.
        entries: as `Entry`; orders of source and target are the same but for the sign, at most ``orders``.
        sizes: rows of x, rows of g, weights.
    """

    count = 7

    def __init__(
        self,
        lmax: int,
        orders: int,
        sources: Sequence[Sequence[int]],
        targets: Sequence[Sequence[int]],
        combinations: Sequence[Sequence[Sequence]],
        entries: Sequence[Sequence[int]],
        sizes: Sequence[int],
    ) -> None:
        self.lmax, self.orders, self.sizes = lmax, orders, tuple(sizes)
        self.sources, self.targets = (tuple(Rows(*block) for block in blocks) for blocks in (sources, targets))
        self.combinations = tuple(tuple(map(tuple, combination)) for combination in combinations)
        self.entries = tuple(Entry(*entry) for entry in entries)
        super().__init__(lmax, orders, self.sources, self.targets, self.combinations, self.entries, self.sizes)
        back = tuple(Entry(c, t, t_order, s, s_order, sign) for c, s, s_order, t, t_order, sign in self.entries)
        rows, sums, weights = self.sizes
        self.reversed = lmax, orders, self.targets, self.sources, self.combinations, back, (sums, rows, weights)
        components = sum(2 * block.l + 1 for block in self.sources + self.targets)
        self.obstacle = TOO_LONG if len(self.entries) + components > LONGEST else ""
        self._kernels: dict[tuple, Callable[..., int]] = {}  # found by the description, which takes long to compare

    def shapes(self, arguments, constants):
        (x, *_, g), (senders, *_) = arguments, constants
        rows = x if x is not None else g
        atoms, channels, edges, (first, last, weights) = len(rows), rows.shape[2], len(senders), self.sizes
        angles = (edges, 2 * self.lmax + 1)
        return (atoms, first, channels), angles, angles, (edges, weights, channels), angles, angles, (atoms, last, channels)

    def derivatives(self, arguments, constants, wanted):
        like = next(a for a in arguments if a is not None)
        if not has_kernel("frames", like, self.obstacle):
            return self.plain_derivatives(arguments, constants, wanted)
        senders, receivers, table = constants
        shapes, found = self.shapes(arguments, constants), [None] * self.count
        (atoms, _, channels), edges = shapes[0], len(senders)
        require_within(atoms, senders=senders, receivers=receivers)
        for n, want in enumerate(wanted):
            found[n] = like.new_empty(shapes[n]) if want else None
        # The way back is the same sum with the roles of sources and targets exchanged.
        for back, places, source, target in ((False, _FORTH, senders, receivers), (True, _BACK, receivers, senders)):
            x, tilts, turns, w, tilts_out, turns_out, g = (arguments[n] for n in places)
            of_tilts, of_turns, of_sums = (found[n] for n in places[4:])
            if of_sums is not None:
                kernel = self._kernel("by_sums", back, like)
                run(kernel, atoms, channels, *edges_of(target, atoms), source, table, x, tilts, turns, w, tilts_out, turns_out, of_sums)
            if of_tilts is not None or of_turns is not None:
                of_tilts, of_turns = (like.new_empty(shapes[1]) if part is None else part for part in (of_tilts, of_turns))
                kernel = self._kernel("by_angles", back, like)
                run(kernel, edges, channels, source, target, table, x, tilts, turns, w, tilts_out, turns_out, g, of_tilts, of_turns)
        if found[3] is not None:
            x, tilts, turns, _, tilts_out, turns_out, g = arguments
            kernel = self._kernel("by_weights", False, like)
            run(kernel, edges, channels, senders, receivers, table, x, tilts, turns, tilts_out, turns_out, g, found[3])
        return found

    def plain_derivatives(self, arguments, constants, wanted):
        """The same by PyTorch's operations: the reference."""
        return plain_derivatives(self, plain_framed_sum, arguments, constants, wanted)

    def _kernel(self, name: str, back: bool, like: Tensor) -> Callable[..., int]:
        key = name, back, like.dtype
        if key not in self._kernels:
            self._kernels[key] = find_kernel("frames", name, like, *(self.reversed if back else self.settings))
        return self._kernels[key]


def tilt_places(lmax: int, orders: int) -> tuple[list[tuple[int, int]], int]:
    """Of each degree, where elements of T of rows below 0 begin, [rows, l], and those of others, [rows, l + 1]; and how many there are."""
    rows = [min(l, orders) for l in range(lmax + 1)]
    ends = list(accumulate((h * l + (h + 1) * (l + 1) for l, h in enumerate(rows)), initial=0))
    return [(ends[l], ends[l] + h * l) for l, h in enumerate(rows)], ends[-1]


def framed_sum(
    form: FramedSum,
    features: Float[Tensor, "atoms rows channels"],
    tilts: Float[Tensor, "edges angles"],
    turns: Float[Tensor, "edges angles"],
    weights: Float[Tensor, "edges weights channels"],
    senders: Int[Tensor, " edges"],
    receivers: Int[Tensor, " edges"],
    table: Float[Tensor, "angles elements"],
) -> Float[Tensor, "atoms sums channels"]:
    """Turns the features of senders into the frames of their edges, mixes them there, turns back and sums at receivers: see `FramedSum`.

    Of any order of derivative; nothing of edges and channels is kept.

    Args:
        tilts, turns: sin(mb) for m = lmax..1 and cos(mb) for m = 0..lmax; the same of a.
        table: the elements of T for each of ``tilts``, in the order of `tilt_places`, zeros up to a multiple of ``PADDING``.
    """
    edges, angles = len(senders), 2 * form.lmax + 1
    elements = -(-tilt_places(form.lmax, form.orders)[1] // PADDING) * PADDING
    require_edges(edges, senders=senders, receivers=receivers)
    shapes = [("features", features, (len(features), form.sizes[0], features.shape[2])), ("tilts", tilts, (edges, angles))]
    shapes += [("turns", turns, (edges, angles)), ("weights", weights, (edges, form.sizes[2], features.shape[2]))]
    require_beside(features, edges, [*shapes, ("table", table, (angles, elements))])
    derivatives = form_operator if torch.compiler.is_compiling() else form_derivatives
    arguments, constants = (features, tilts, turns, weights, tilts, turns, None), (senders.contiguous(), receivers.contiguous(), table)
    return derivatives(form, arguments, constants, (False,) * 6 + (True,))[6]


def plain_framed_sum(
    form: FramedSum,
    features: Tensor,
    tilts: Tensor,
    turns: Tensor,
    weights: Tensor,
    tilts_out: Tensor,
    turns_out: Tensor,
    senders: Tensor,
    receivers: Tensor,
    table: Tensor,
) -> Float[Tensor, "atoms sums channels"]:
    """`framed_sum` edge by edge, as it reads: the reference. The ways into the frame and out of it may differ."""
    neighbours = gather(features, senders)
    into, out = (_rotations(form, *angles, table) for angles in ((tilts, turns), (tilts_out, turns_out)))
    aligned = []
    for l, first, step in form.sources:
        aligned.append(torch.matmul(into[l], neighbours[:, first : first + (2 * l + 1) * step : step]))
    mixed: list[dict[int, Tensor]] = [{} for _ in form.targets]
    for combination, source, source_order, target, target_order, sign in form.entries:
        weight = sum(sign * factor * weights[:, k] for k, factor in form.combinations[combination])
        term = weight * aligned[source][:, aligned[source].shape[1] // 2 + source_order]
        mixed[target][target_order] = mixed[target][target_order] + term if target_order in mixed[target] else term
    nothing = torch.zeros_like(neighbours[:, 0])
    messages: list[Tensor] = [nothing] * form.sizes[1]
    for (l, first, step), rows in zip(form.targets, mixed, strict=True):
        most = out[l].shape[1] // 2
        z = torch.stack([rows.get(m, nothing) for m in range(-most, most + 1)], 1)
        for c, row in enumerate(torch.matmul(out[l].mT, z).unbind(1)):
            messages[first + c * step] = row
    return scatter_sum(torch.stack(messages, 1), receivers, len(features))


def _rotations(form: FramedSum, tilts: Tensor, turns: Tensor, table: Tensor) -> list[Float[Tensor, "edges rows columns"]]:
    """D of each degree."""
    elements, lmax, found = tilts @ table, form.lmax, []
    for l, (below, above) in enumerate(tilt_places(lmax, form.orders)[0]):
        h = min(l, form.orders)
        tilt = elements.new_zeros(len(elements), 2 * h + 1, 2 * l + 1)
        tilt[:, :h, :l] = elements[:, below:above].unflatten(1, (h, l)) if h else 0
        tilt[:, h:, l:] = elements[:, above : above + (h + 1) * (l + 1)].unflatten(1, (h + 1, l + 1))
        cosine = torch.cat([turns[:, lmax + 1 : lmax + l + 1].flip(1), turns[:, lmax : lmax + l + 1]], 1).unsqueeze(1)
        sines = turns[:, lmax - l : lmax]  # of l..1
        sine = torch.cat([-sines, torch.zeros_like(turns[:, :1]), sines.flip(1)], 1).unsqueeze(1)
        found.append(tilt * cosine - tilt.flip(-1) * sine)
    return found
