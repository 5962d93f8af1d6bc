"""What MACE as mace-torch has it makes of the length of an edge and its two elements: weights of the sums, and densities.

Bases, transformed distances and envelopes; the networks on them; and the tables that stand for networks at inference.
"""

from __future__ import annotations

import copy
import math
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from ase.data import covalent_radii
from jaxtyping import Float, Int
from torch import Tensor, nn

from equimol.nn import ScalarMLP, polynomial_envelope
from equimol.nn.cubic_table import cubic_table, cubic_weights, look_up
from equimol.nn.linear import Linear
from equimol.ops import gather
from equimol.ops.kernels import has_kernel
from equimol.ops.linear import linear

KNOTS = 513  # of tables over the distance, where splines are as exact as float32
PAIRS = 21  # of species, that of six elements: for more, tables would outgrow what they save; twice as many where their order counts
KEPT = 4  # times as many are kept of structures before
AGNESI = (0.9183, 4.5791, 1.0805)  # q, p, a of the transform
SOFT = 4.0  # steepness of the transform
DENSITY_WIDTH = 64  # of the network of densities in a non-linear layer


class OfEdges(NamedTuple):
    """What the sums of one layer need to know of lengths."""

    weights: Float[Tensor, "edges paths channels"] | InTable
    densities: Float[Tensor, "edges 1"] | None


class InTable(NamedTuple):
    """Where weights are found: four rows of a table from the first one on, and what of each."""

    table: Float[Tensor, "rows columns"]
    first_rows: Int[Tensor, " edges"]
    blend: Float[Tensor, "edges 4"]


class EdgeFunctions(nn.Module):
    """Networks of each layer on radial functions. A transformed distance depends on the two elements, too, and so does a non-linear layer.

    Args:
        shapes: of each layer the number of paths, and of channels, that there are weights for.
    """

    def __init__(self, config: Any, shapes: list[tuple[int, int]]) -> None:
        super().__init__()
        self.config, self.radial, self.shapes = config, RadialBasis(config), shapes
        nonlinear = [kind == "nonlinear" for kind in config.kinds]
        self.is_ordered = any(nonlinear)  # a sender is not the same as a receiver
        size, elements = config.radial_basis, len(config.elements)
        self.weights, self.densities = nn.ModuleList(), nn.ModuleList()
        for kind, (paths, channels) in zip(config.kinds, shapes, strict=True):
            widths = *config.radial_widths, paths * channels
            self.weights.append(PairMLP(config.channels, size, *widths) if kind == "nonlinear" else ScalarMLP(size, *widths))
        for kind in config.kinds:
            density = PairMLP(config.channels, size, DENSITY_WIDTH, 1) if kind == "nonlinear" else ScalarMLP(size, 1)
            self.densities.append(density if kind.startswith(("density", "nonlinear")) else None)
        #: of each non-linear layer what is known of the element of a sender, and of a receiver; small, so that radial functions come first
        self.elements = nn.ModuleList(
            nn.ParameterList(1e-3 * torch.randn(elements, config.channels) for _ in range(2)) if wanted else None for wanted in nonlinear
        )
        self._exact: tuple[EdgeFunctions, ...] = ()  # once frozen, these functions in float64, of which tables are made
        self._tables: dict[tuple[int, int], list[list[Tensor]]] = {}  # by pair of species, those of each layer
        self._joined: tuple[list[tuple[int, int]], list[list[Tensor]]] = ([], [])  # of the pairs of the last structure, one below the other

    def freeze(self) -> None:
        """Look values up in tables over the distance, made at first use. In float64, for which they are not exact, networks are used."""
        self._exact = (copy.deepcopy(self).double().cpu(),)

    def _apply(self, fn, recurse=True):
        self._tables, self._joined = {}, ([], [])
        return super()._apply(fn, recurse)

    def forward(
        self, distances: Float[Tensor, " edges"], senders: Int[Tensor, " edges"], receivers: Int[Tensor, " edges"]
    ) -> list[OfEdges]:
        """For each layer; of edges between atoms of two species."""
        if self._exact and distances.dtype != torch.float64:
            pairs, number = self.pairs(senders, receivers)
            if len(pairs) <= PAIRS * (1 + self.is_ordered):
                return self.look_up(distances, pairs, number)
        return self._of_edges(self.compute(distances, senders, receivers))

    def pairs(self, senders: Tensor, receivers: Tensor) -> tuple[list[tuple[int, int]], Int[Tensor, " edges"]]:
        """Which pairs of species there are that functions tell apart, and the number of each edge's among them."""
        if self.config.distance_transform == "none" and not self.is_ordered:
            return [(0, 0)], torch.zeros_like(senders)
        count = len(self.config.elements)
        if not self.is_ordered:
            senders, receivers = torch.minimum(senders, receivers), torch.maximum(senders, receivers)
        codes, number = torch.unique(senders * count + receivers, return_inverse=True)
        return [divmod(code, count) for code in codes.tolist() or [0]], number  # without edges any will do

    def look_up(self, distances: Tensor, pairs: list[tuple[int, int]], number: Int[Tensor, " edges"]) -> list[OfEdges]:
        """What `compute` gives, from tables."""
        inside = distances < self.config.cutoff
        at = cubic_weights(distances, self.config.cutoff / (KNOTS - 1), KNOTS, distances.dtype).inside(inside)
        at = at._replace(rows=at.rows + number[:, None] * (KNOTS + 2))  # a table has a row more at either end
        first, tables = at.rows[:, 0].contiguous(), self.tables(pairs, distances)
        if has_kernel("convolution", distances) and distances.device.type == "cpu":
            return [OfEdges(InTable(table, first, at.weights), *([look_up(x, at) for x in more] or [None])) for table, *more in tables]
        return self._of_edges([[look_up(x, at) for x in layer] for layer in tables])

    @torch.no_grad()
    def tables(self, pairs: list[tuple[int, int]], like: Tensor) -> list[list[Float[Tensor, "rows columns"]]]:
        """Of each layer, those of the pairs one below the other."""
        distances = torch.linspace(0, self.config.cutoff, KNOTS, dtype=torch.float64)
        for pair in pairs:
            if pair not in self._tables:
                species = (torch.full((KNOTS,), one) for one in pair)
                self._tables[pair] = [[cubic_table(x).to(like) for x in layer] for layer in self._exact[0].compute(distances, *species)]
        if len(self._tables) > KEPT * PAIRS:
            self._tables = {pair: self._tables[pair] for pair in pairs}
        if self._joined[0] != pairs:
            layers = zip(*(self._tables[pair] for pair in pairs), strict=True)
            self._joined = pairs, [[torch.cat(parts) for parts in zip(*layer, strict=True)] for layer in layers]
        return self._joined[1]

    def _of_edges(self, layers: list[list[Float[Tensor, "edges _"]]]) -> list[OfEdges]:
        pairs = zip(layers, self.shapes, strict=True)
        return [OfEdges(weights.unflatten(1, shape), *(density or [None])) for (weights, *density), shape in pairs]

    def compute(self, distances: Tensor, senders: Tensor, receivers: Tensor) -> list[list[Float[Tensor, "edges _"]]]:
        """Weights of paths and, of a layer that has them, densities; zero beyond the cutoff.

        A non-linear layer has biases: with the envelope on the basis its weights end at the cutoff with a jump, as they do in mace-torch.
        """
        radial, envelope = self.radial(distances, senders, receivers)
        if self.config.envelope_on == "basis":
            radial, factor = radial * envelope, (distances <= self.config.cutoff)[:, None]
        else:
            factor = envelope
        found = []
        for network, density, elements in zip(self.weights, self.densities, self.elements, strict=True):
            known = (radial,) if elements is None else (radial, *elements, senders, receivers)
            values = [network(*known)] if density is None else [network(*known), torch.tanh(density(*known) ** 2)]
            found.append(values if elements is None and self.config.envelope_on == "basis" else [x * factor for x in values])
        return found


class PairMLP(nn.Module):
    """Perceptron of radial functions and of the elements of an edge: with biases, and with layer norms before silu, which has no gain.

    What elements add to the first hidden layer is computed for each of them, not for each edge.
    """

    def __init__(self, channels: int, radial: int, *widths: int) -> None:
        super().__init__()
        self.parts = radial, channels, channels
        self.linears = nn.ModuleList(Linear(a, b) for a, b in pairwise((sum(self.parts), *widths)))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in widths[:-1])

    def forward(
        self,
        radial: Float[Tensor, "edges radial"],
        as_sender: Float[Tensor, "elements channels"],
        as_receiver: Float[Tensor, "elements channels"],
        senders: Int[Tensor, " edges"],
        receivers: Int[Tensor, " edges"],
    ) -> Float[Tensor, "edges width_out"]:
        """``senders`` and ``receivers``: the species."""
        first, *others = self.linears
        of_radial, of_sender, of_receiver = first.weight.split(self.parts, 1)
        x = linear(radial, of_radial, first.bias)
        x = x + gather(as_sender @ of_sender.T, senders) + gather(as_receiver @ of_receiver.T, receivers)
        for norm, layer in zip(self.norms, others, strict=True):
            x = layer(nn.functional.silu(norm(x)))
        return x


class RadialBasis(nn.Module):
    """Functions of a distance, which a transform may have measured by the covalent radii of the two atoms, and an envelope."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config, size = config, config.radial_basis
        if config.radial == "bessel":  # frequencies
            self.register_buffer("points", math.pi / config.cutoff * torch.arange(1, size + 1))
        elif config.radial == "gaussian":  # centres, Å
            self.register_buffer("points", torch.linspace(0, config.cutoff, size))
        if config.distance_transform != "none":
            self.register_buffer("transform", torch.tensor(AGNESI if config.distance_transform == "agnesi" else SOFT))
            self.register_buffer("radii", torch.as_tensor(covalent_radii[list(config.elements)], dtype=torch.get_default_dtype()))

    def forward(
        self, distances: Float[Tensor, " edges"], senders: Int[Tensor, " edges"], receivers: Int[Tensor, " edges"]
    ) -> tuple[Float[Tensor, "edges radial"], Float[Tensor, "edges 1"]]:
        """Functions and envelope, of edges between atoms of two species."""
        config = self.config
        envelope = polynomial_envelope(distances, config.cutoff, config.envelope_order)[:, None]
        x = distances
        if config.distance_transform != "none":
            both = gather(self.radii, senders) + gather(self.radii, receivers)
            x = agnesi(x / (0.5 * both), self.transform) if config.distance_transform == "agnesi" else soft(x, both, self.transform)
        x = x[:, None]
        if config.radial == "bessel":  # sqrt(2/c) sin(w x) / x, written with sinc, which is smooth at x = 0
            basis = math.sqrt(2 / config.cutoff) * self.points * torch.sinc(self.points * x / math.pi)
        elif config.radial == "gaussian":
            width = config.cutoff / (config.radial_basis - 1)
            basis = torch.exp(-0.5 * ((x - self.points) / width) ** 2)
        else:
            basis = chebyshev(x, config.radial_basis)
        return basis, envelope


def agnesi(x: Float[Tensor, " edges"], parameters: Float[Tensor, "3"]) -> Float[Tensor, " edges"]:
    """1 / (1 + a x^q / (1 + x^(q - p))): from 1 at contact to 0 far away. J. Chem. Phys. 159, 164101 (2023)."""
    q, p, a = parameters
    return 1 / (1 + a * x**q / (1 + x ** (q - p)))


def soft(x: Float[Tensor, " edges"], contact: Float[Tensor, " edges"], steepness: Tensor) -> Float[Tensor, " edges"]:
    """x itself beyond the sum of covalent radii, and near 3/4 of that sum below it."""
    low, high = 0.75 * contact, 4 / 3 * contact
    step = 0.5 * (1 + torch.tanh(steepness / (high - low) * (x - 0.5 * (low + high))))
    return low + (x - low) * step


def chebyshev(x: Float[Tensor, "edges 1"], size: int) -> Float[Tensor, "edges size"]:
    """T_1 to T_size. In mace-torch their slope is missing from the forces; here forces are the derivative of the energy."""
    values = [torch.ones_like(x), x]
    while len(values) <= size:
        values.append(2 * x * values[-1] - values[-2])
    return torch.cat(values[1 : size + 1], 1)
