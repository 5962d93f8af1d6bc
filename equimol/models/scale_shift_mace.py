"""MACE as mace-torch 0.3.16 has it (`MACE`, `ScaleShiftMACE`): for its weights, and to train the same architecture several times faster.

`mace` is our own form, whose products can be exchanged. This one has all that published models differ in: four kinds of layers, radial
functions, transformed distances, repulsion of nuclei, several heads. Their products are in a minimal basis here, in which published weights
are written when they are read.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from ase.data import covalent_radii
from jaxtyping import Float, Int
from torch import Tensor, nn

from equimol.data.graph import AtomicGraph
from equimol.models.base import ConfiguredPotential, data_set_indices
from equimol.nn import DegreeLinear, ElementLinear, ScalarMLP, polynomial_envelope
from equimol.nn.cubic_table import cubic_table, cubic_weights, look_up
from equimol.o3 import Layout, natural_layout, spherical_harmonics
from equimol.ops import gather, scatter_sum
from equimol.ops.kernels import has_kernel
from equimol.tensor_products import ClebschGordanConvolution, SymmetricContraction

KNOTS = 513  # of tables over the distance, where splines are as exact as float32
PAIRS = 21  # of species, that of six elements: for more, tables of transformed distances would outgrow what they save
KEPT = 4  # times as many are kept of structures before
LAYERS = ("plain", "residual", "density", "density_residual")
AGNESI = (0.9183, 4.5791, 1.0805)  # q, p, a of the transform
SOFT = 4.0  # steepness of the transform
NUCLEI = (0.300, 0.4543)  # exponent and prefactor of the screening length
COULOMB, BOHR = 14.3996, 0.529  # eV Å and Å, with the digits of mace-torch
SCREENING = ((0.1818, 3.2), (0.5099, 0.9423), (0.2802, 0.4028), (0.02817, 0.2016))


@dataclass(frozen=True)
class ScaleShiftMACEConfig:
    """Settings of :class:`ScaleShiftMACE`; the defaults are those of mace-torch's command line."""

    elements: tuple[int, ...]  # atomic numbers
    cutoff: float = 5.0  # Å
    channels: int = 128
    lmax_hidden: int = 1  # largest degree of the features between layers; only scalars leave the last
    lmax_edge: int = 3  # largest degree of the edge harmonics and of the sums over neighbours
    correlation: int | tuple[int, ...] = 3  # body order of a layer, minus one; of all or of each
    layers: int = 2
    first_layer: str = "residual"  # one of LAYERS
    other_layers: str = "residual"
    average_neighbors: float = 16.0  # of the training set: sums over neighbours are divided by it where a layer has no density
    radial: str = "bessel"  # or "gaussian", "chebyshev"
    radial_basis: int = 8
    radial_widths: tuple[int, ...] = (64, 64, 64)
    envelope_order: int = 5
    envelope_on: str = "basis"  # or "weights": what is multiplied by the envelope
    distance_transform: str = "none"  # or "agnesi", "soft"
    readouts: str = "all"  # or "last": layers that energies are read from
    readout_width: int = 16
    repulsion: bool = False  # of nuclei; counted with the energies of the network, and scaled as they are
    data_sets: int = 0  # heads, each with readouts of its own; 0: one that nobody needs to name
    data_set: int | None = None  # which one the model is for; None: every structure says to which it belongs

    def __post_init__(self) -> None:
        positive = ("cutoff", "channels", "layers", "average_neighbors", "radial_basis", "envelope_order", "readout_width")
        for field in positive:
            if not getattr(self, field) > 0:
                raise ValueError(f"{field} must be positive, got {getattr(self, field)}")
        choices = {
            "first_layer": LAYERS,
            "other_layers": LAYERS,
            "radial": ("bessel", "gaussian", "chebyshev"),
            "envelope_on": ("basis", "weights"),
            "distance_transform": ("none", "agnesi", "soft"),
            "readouts": ("all", "last"),
        }
        for field, words in choices.items():
            if getattr(self, field) not in words:
                raise ValueError(f"{field} must be one of {', '.join(words)}, got {getattr(self, field)!r}")
        if not 0 <= self.lmax_hidden <= self.lmax_edge:
            raise ValueError(f"lmax_hidden must be between 0 and lmax_edge ({self.lmax_edge}), got {self.lmax_hidden}")
        orders = (self.correlation,) * self.layers if isinstance(self.correlation, int) else tuple(int(n) for n in self.correlation)
        if len(orders) != self.layers or min(orders) < 1:
            raise ValueError(f"correlation must be at least 1, one for all or for each of {self.layers} layers, got {self.correlation}")
        object.__setattr__(self, "correlation", orders)
        object.__setattr__(self, "radial_widths", tuple(int(n) for n in self.radial_widths))
        object.__setattr__(self, "elements", tuple(sorted(int(z) for z in self.elements)))
        if not self.elements or not all(0 < z < 119 for z in self.elements):
            raise ValueError(f"elements must be atomic numbers 1..118, at least one, got {self.elements}")
        if self.data_set is not None and not 0 <= self.data_set < self.data_sets:
            raise ValueError(f"data_set must be one of the {self.data_sets} data sets, from 0, got {self.data_set}")


PRESETS: dict[str, dict] = {
    "tiny": {"channels": 8, "lmax_edge": 2, "correlation": 2, "radial_widths": (16, 16)},
    "small": {"channels": 64},  # 64x0e+64x1o
    "medium": {"channels": 128},  # as MACE-OFF and MACE-MP "medium"
    "large": {"channels": 128, "lmax_hidden": 2},
}


class ScaleShiftMACE(ConfiguredPotential):
    """Energies above those of isolated atoms, a scale for each head. Not yet totals: wrap it in ``Shifted`` (``build_model`` does)."""

    name = "scale_shift_mace"

    def __init__(self, config: ScaleShiftMACEConfig) -> None:
        super().__init__()
        self.config, self.cutoff, self.hops, self.elements = config, config.cutoff, config.layers, config.elements
        self.inputs = ("data_set",) * (config.data_sets > 0 and config.data_set is None)
        table = torch.full((119,), -1)
        table[list(config.elements)] = torch.arange(len(config.elements))
        self.register_buffer("species_of", table, persistent=False)
        self.embedding = nn.Parameter(torch.randn(len(config.elements), config.channels))
        between = natural_layout(config.lmax_hidden, config.channels)
        hidden = [natural_layout(0, config.channels), *[between] * (config.layers - 1), natural_layout(0, config.channels)]
        kinds = [config.first_layer, *[config.other_layers] * (config.layers - 1)]
        parts = zip(kinds, config.correlation, pairwise(hidden), strict=True)
        self.layers = nn.ModuleList(Layer(config, kind, order, *layouts) for kind, order, layouts in parts)
        self.edges = EdgeFunctions(config, [(layer.convolution.num_weights, layer.density) for layer in self.layers])
        heads = max(1, config.data_sets)
        read = config.layers if config.readouts == "all" else 1
        self.readouts = nn.ModuleList(Readout(heads, config.channels) for _ in range(read - 1))
        self.readouts.append(Readout(heads, config.channels, *[config.readout_width] * (config.layers > 1)))
        if config.repulsion:
            self.repulsion = Repulsion(config)
        self.register_buffer("scale", torch.ones(heads))

    def indices(self, graph: AtomicGraph, uniform: bool = False) -> dict[str, Tensor]:
        return data_set_indices(self.config, graph)

    def atomic_energies(self, displacements, numbers, senders, receivers, indices, system):
        species = self.species_of[numbers]
        head = indices["data_set"][system] if indices else torch.zeros_like(species)
        vectors = -displacements.to(self.dtype)  # published: from the sender to the receiver
        harmonics = spherical_harmonics(vectors, self.config.lmax_edge)  # component-normalised
        distances = vectors.norm(dim=-1)
        pairs = species[senders], species[receivers]
        of_edges = self.edges(distances, *pairs)
        features = gather(self.embedding, species)
        scalars = []
        for layer, (weights, densities) in zip(self.layers, of_edges, strict=True):
            features = layer(features, species, harmonics, weights, densities, senders, receivers)
            scalars.append(features[:, : self.config.channels])
        energies = sum(readout(x) for readout, x in zip(self.readouts, scalars[-len(self.readouts) :], strict=True))
        energies = energies.gather(1, head[:, None])[:, 0]
        if self.config.repulsion:
            energies = energies + scatter_sum(self.repulsion(distances, self.elements, *pairs), receivers, numbers.shape[0])
        return energies * gather(self.scale, head), torch.cat(scalars, -1)


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
    """Networks of each layer on radial functions: of the distance alone, or where it is transformed, of the two elements too.

    Args:
        layers: of each the number of weights for a channel, and whether sums are divided by a density.
    """

    def __init__(self, config: ScaleShiftMACEConfig, layers: list[tuple[int, bool]]) -> None:
        super().__init__()
        self.config, self.radial = config, RadialBasis(config)
        sizes = (config.radial_basis, *config.radial_widths)
        self.weights = nn.ModuleList(ScalarMLP(*sizes, paths * config.channels) for paths, _ in layers)
        self.densities = nn.ModuleList(ScalarMLP(config.radial_basis, 1) if density else None for _, density in layers)
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
            if len(pairs) <= PAIRS:
                return self.look_up(distances, pairs, number)
        return [OfEdges(self._by_path(weights), *(density or [None])) for weights, *density in self.compute(distances, senders, receivers)]

    def pairs(self, senders: Tensor, receivers: Tensor) -> tuple[list[tuple[int, int]], Int[Tensor, " edges"]]:
        """Which pairs of species there are that functions tell apart, and the number of each edge's among them."""
        if self.config.distance_transform == "none":
            return [(0, 0)], torch.zeros_like(senders)
        count = len(self.config.elements)
        codes, number = torch.unique(torch.minimum(senders, receivers) * count + torch.maximum(senders, receivers), return_inverse=True)
        return [divmod(code, count) for code in codes.tolist() or [0]], number  # without edges any will do

    def look_up(self, distances: Tensor, pairs: list[tuple[int, int]], number: Int[Tensor, " edges"]) -> list[OfEdges]:
        """What `compute` gives, from tables."""
        inside = distances < self.config.cutoff
        at = cubic_weights(distances, self.config.cutoff / (KNOTS - 1), KNOTS, distances.dtype).inside(inside)
        at = at._replace(rows=at.rows + number[:, None] * (KNOTS + 2))  # a table has a row more at either end
        first, tables = at.rows[:, 0].contiguous(), self.tables(pairs, distances)
        if has_kernel("convolution", distances) and distances.device.type == "cpu":
            return [OfEdges(InTable(table, first, at.weights), *([look_up(x, at) for x in more] or [None])) for table, *more in tables]
        return [OfEdges(self._by_path(look_up(table, at)), *([look_up(x, at) for x in more] or [None])) for table, *more in tables]

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

    def _by_path(self, weights: Float[Tensor, "edges columns"]) -> Float[Tensor, "edges paths channels"]:
        return weights.unflatten(1, (-1, self.config.channels))

    def compute(self, distances: Tensor, senders: Tensor, receivers: Tensor) -> list[list[Float[Tensor, "edges _"]]]:
        """Weights of paths and, of a layer that has them, densities; zero from the cutoff on."""
        radial, envelope = self.radial(distances, senders, receivers)
        radial = radial * envelope if self.config.envelope_on == "basis" else radial
        found = []
        for network, density in zip(self.weights, self.densities, strict=True):
            values = [network(radial)] if density is None else [network(radial), torch.tanh(density(radial) ** 2)]
            found.append(values if self.config.envelope_on == "basis" else [x * envelope for x in values])
        return found


class RadialBasis(nn.Module):
    """Functions of a distance, which a transform may have measured by the covalent radii of the two atoms, and an envelope."""

    def __init__(self, config: ScaleShiftMACEConfig) -> None:
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


class Layer(nn.Module):
    """One round: sum over neighbours, powers of the sum, and a residual that knows the element, or a mixing of the sums that does."""

    def __init__(self, config: ScaleShiftMACEConfig, kind: str, correlation: int, hidden_in: Layout, hidden_out: Layout) -> None:
        super().__init__()
        channels, elements = config.channels, len(config.elements)
        self.average_neighbors, self.density = config.average_neighbors, kind.startswith("density")
        self.linear_up = DegreeLinear(hidden_in, hidden_in)
        self.convolution = ClebschGordanConvolution(hidden_in, config.lmax_edge, config.lmax_edge)
        sums = natural_layout(config.lmax_edge, channels)
        self.linear_sums = DegreeLinear(self.convolution.out, sums)
        residual = kind.endswith("residual")
        self.mixing = None if residual else ElementLinear(sums, sums, elements)
        self.product = SymmetricContraction(sums, [b.l for b in hidden_out], correlation, elements)
        self.product_weights = nn.Parameter(torch.randn(elements, self.product.num_weights, channels))
        self.linear_out = DegreeLinear(self.product.out, hidden_out)
        self.residual = ElementLinear(hidden_in, hidden_out, elements) if residual else None

    def forward(
        self,
        features: Float[Tensor, "atoms dim_in"],
        species: Int[Tensor, " atoms"],
        harmonics: Float[Tensor, "edges harmonics"],
        weights: Float[Tensor, "edges paths channels"] | InTable,
        densities: Float[Tensor, "edges 1"] | None,
        senders: Int[Tensor, " edges"],
        receivers: Int[Tensor, " edges"],
    ) -> Float[Tensor, "atoms dim_out"]:
        given = weights if isinstance(weights, InTable) else (weights,)
        convolution = self.convolution.by_table if isinstance(weights, InTable) else self.convolution
        # A_i = sum_j R(r_ij) Y(r_ij) (x) h_j, Batatia 2022, eq. 8-9
        sums = self.linear_sums(convolution(self.linear_up(features), harmonics, senders, receivers, *given))
        sums = sums / (1 + scatter_sum(densities, receivers, features.shape[0]) if self.density else self.average_neighbors)
        if self.mixing is not None:
            sums = self.mixing(sums, species)
        new = self.linear_out(self.product(sums, self.product_weights, species))  # B_i, eq. 10-11
        return new if self.residual is None else new + self.residual(features, species)  # eq. 12


class Readout(nn.Module):
    """Energies of each head: a linear function of scalars, or a perceptron with one hidden layer."""

    def __init__(self, heads: int, channels: int, width: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.first = None if width is None else ScalarMLP(channels, heads * width)
        self.last = nn.Parameter(torch.randn(heads, width or channels))

    def forward(self, scalars: Float[Tensor, "atoms channels"]) -> Float[Tensor, "atoms heads"]:
        weight = self.last / self.last.shape[1] ** 0.5
        if self.first is None:
            return scalars @ weight.T
        hidden = nn.functional.silu(self.first(scalars)) * ScalarMLP.SILU_GAIN
        return (hidden.unflatten(1, weight.shape) * weight).sum(2)


class Repulsion(nn.Module):
    """Screened repulsion of nuclei (Ziegler, Biersack, Littmark) with the constants of mace-torch, zero from the sum of covalent radii."""

    def __init__(self, config: ScaleShiftMACEConfig) -> None:
        super().__init__()
        self.cutoff, self.envelope_order = config.cutoff, config.envelope_order
        self.register_buffer("screening", torch.tensor(NUCLEI))
        self.register_buffer("radii", torch.as_tensor(covalent_radii[list(config.elements)], dtype=torch.get_default_dtype()))

    def forward(
        self,
        distances: Float[Tensor, " edges"],
        elements: tuple[int, ...],
        senders: Int[Tensor, " edges"],
        receivers: Int[Tensor, " edges"],
    ) -> Float[Tensor, " edges"]:
        """Half the energy of each pair, eV; each pair is two edges."""
        z = torch.tensor(elements, dtype=distances.dtype, device=distances.device)
        exponent, prefactor = self.screening
        powers = z**exponent
        x = distances * (gather(powers, senders) + gather(powers, receivers)) / (prefactor * BOHR)
        screening = sum(c * torch.exp(-b * x) for c, b in SCREENING)
        reach = gather(self.radii, senders) + gather(self.radii, receivers)
        envelope = polynomial_envelope(distances / reach, 1.0, self.envelope_order)
        pairs = 0.5 * COULOMB * gather(z, senders) * gather(z, receivers) / distances * screening * envelope
        return torch.where(distances < self.cutoff, pairs, 0)
