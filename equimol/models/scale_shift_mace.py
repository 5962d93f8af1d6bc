"""MACE as mace-torch 0.3.16 has it (`MACE`, `ScaleShiftMACE`): for its weights, and to train the same architecture several times faster.

`mace` is our own form, whose products can be exchanged. This one has all that published models differ in: five kinds of layers, functions
of edges (`scale_shift_mace_edges`), repulsion of nuclei, several heads, charge and spin. Its products are in a minimal basis, in which
published weights are written when they are read.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from ase.data import covalent_radii
from jaxtyping import Float, Int
from torch import Tensor, nn

from equimol.data.graph import AtomicGraph
from equimol.models.base import ConfiguredPotential, data_set_indices, whole_numbers
from equimol.models.scale_shift_mace_edges import EdgeFunctions, InTable
from equimol.nn import DegreeLinear, ElementLinear, ScalarMLP, polynomial_envelope
from equimol.o3 import Block, Layout, natural_layout, spherical_harmonics, split_blocks
from equimol.ops import gather, scatter_sum
from equimol.tensor_products import ClebschGordanConvolution, SymmetricContraction

LAYERS = ("plain", "residual", "density", "density_residual", "nonlinear")
SIGMOID_GAIN = 1.8462285453386054  # 1 / sqrt(E[sigmoid(z)^2]), z standard normal
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
    envelope_on: str = "basis"  # or "weights": what has the envelope; of non-linear layers the latter, else energies jump at the cutoff
    distance_transform: str = "none"  # or "agnesi", "soft"
    readouts: str = "all"  # or "last": layers that energies are read from
    readout_width: int = 16
    last_readout: str = "perceptron"  # or "biased": with two hidden layers, and biases from the second on
    repulsion: bool = False  # of nuclei; counted with the energies of the network, and scaled as they are
    message_channels: int | tuple[int, ...] | None = None  # of what is sent to neighbours, in all layers or in each; None: channels
    lmax_message: int | None = None  # largest degree of it; None: lmax_hidden
    charges: tuple[int, int] | None = None  # smallest and largest charge of a structure, e, that there is an embedding for; None: not asked
    spins: tuple[int, int] | None = None  # the same of multiplicities 2S+1
    embedding_readout: bool = False  # energies from elements, charge and spin alone, too, which are not scaled
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
            "last_readout": ("perceptron", "biased"),
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
        sent = self.channels if self.message_channels is None else self.message_channels
        sent = (sent,) * self.layers if isinstance(sent, int) else tuple(int(n) for n in sent)
        if len(sent) != self.layers or min(sent) < 1:
            raise ValueError(
                f"message_channels must be positive, one for all or for each of {self.layers} layers, got {self.message_channels}"
            )
        object.__setattr__(self, "message_channels", sent)
        if self.lmax_message is None:
            object.__setattr__(self, "lmax_message", self.lmax_hidden)
        if not 0 <= self.lmax_message <= self.lmax_hidden:
            raise ValueError(f"lmax_message must be between 0 and lmax_hidden ({self.lmax_hidden}), got {self.lmax_message}")
        for field in ("charges", "spins"):
            if getattr(self, field) is not None:
                low, high = (int(n) for n in getattr(self, field))
                if low > high:
                    raise ValueError(f"{field} must be the smallest and the largest, got {getattr(self, field)}")
                object.__setattr__(self, field, (low, high))
        if self.embedding_readout and not (self.charges or self.spins):
            raise ValueError("embedding_readout needs charges or spins: energies of elements alone are among the references")
        object.__setattr__(self, "radial_widths", tuple(int(n) for n in self.radial_widths))
        object.__setattr__(self, "elements", tuple(sorted(int(z) for z in self.elements)))
        if not self.elements or not all(0 < z < 119 for z in self.elements):
            raise ValueError(f"elements must be atomic numbers 1..118, at least one, got {self.elements}")
        if self.data_set is not None and not 0 <= self.data_set < self.data_sets:
            raise ValueError(f"data_set must be one of the {self.data_sets} data sets, from 0, got {self.data_set}")

    @property
    def kinds(self) -> tuple[str, ...]:
        """Of each layer, one of LAYERS."""
        return self.first_layer, *(self.other_layers,) * (self.layers - 1)

    @property
    def system_inputs(self) -> dict[str, tuple[int, int]]:
        """What is embedded of a whole structure, with the smallest and the largest that there is."""
        return {name: ends for name, ends in (("charge", self.charges), ("spin", self.spins)) if ends is not None}


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
        self.inputs = (*config.system_inputs, *("data_set",) * (config.data_sets > 0 and config.data_set is None))
        table = torch.full((119,), -1)
        table[list(config.elements)] = torch.arange(len(config.elements))
        self.register_buffer("species_of", table, persistent=False)
        self.embedding = nn.Parameter(torch.randn(len(config.elements), config.channels))
        sizes = {name: high - low + 1 for name, (low, high) in config.system_inputs.items()}
        self.system_embeddings = nn.ParameterDict({name: torch.randn(size, config.channels) for name, size in sizes.items()})
        between = natural_layout(config.lmax_hidden, config.channels)
        hidden = [natural_layout(0, config.channels), *[between] * (config.layers - 1), natural_layout(0, config.channels)]
        self.layers = nn.ModuleList()
        for n, (kind, (before, after)) in enumerate(zip(config.kinds, pairwise(hidden), strict=True)):
            message = natural_layout(min(config.lmax_message, before[-1].l), config.message_channels[n])
            parts = config, config.correlation[n], before, message, after
            self.layers.append(NonLinearLayer(*parts) if kind == "nonlinear" else Layer(kind, *parts))
        self.edges = EdgeFunctions(config, [(layer.convolution.num_weights, layer.convolution.channels) for layer in self.layers])
        heads = max(1, config.data_sets)
        read = config.layers if config.readouts == "all" else 1
        self.readouts = nn.ModuleList(Readout(heads, config.channels) for _ in range(read - 1))
        if config.layers > 1 and config.last_readout == "biased":
            self.readouts.append(BiasedReadout(heads, config.channels, config.readout_width))
        else:
            self.readouts.append(Readout(heads, config.channels, *[config.readout_width] * (config.layers > 1)))
        if config.embedding_readout:
            self.embedding_readout = Readout(heads, config.channels)
        if config.repulsion:
            self.repulsion = Repulsion(config)
        self.register_buffer("scale", torch.ones(heads))

    def indices(self, graph: AtomicGraph, uniform: bool = False) -> dict[str, Tensor]:
        given = {name: whole_numbers(graph, name, low, high + 1) - low for name, (low, high) in self.config.system_inputs.items()}
        return given | data_set_indices(self.config, graph)

    def atomic_energies(self, displacements, numbers, senders, receivers, indices, system):
        species = self.species_of[numbers]
        head = indices["data_set"][system] if "data_set" in indices else torch.zeros_like(species)
        vectors = -displacements.to(self.dtype)  # published: from the sender to the receiver
        harmonics = spherical_harmonics(vectors, self.config.lmax_edge)  # component-normalised
        distances = vectors.norm(dim=-1)
        pairs = species[senders], species[receivers]
        of_edges = self.edges(distances, *pairs)
        features = gather(self.embedding, species)
        if self.config.system_inputs:
            of_systems = sum(gather(table, indices[name]) for name, table in self.system_embeddings.items())
            features = features + gather(nn.functional.silu(of_systems), system)
        alone = self.embedding_readout(features).gather(1, head[:, None])[:, 0] if self.config.embedding_readout else 0
        scalars = []
        for layer, (weights, densities) in zip(self.layers, of_edges, strict=True):
            features = layer(features, species, harmonics, weights, densities, senders, receivers)
            scalars.append(features[:, : self.config.channels])
        energies = sum(readout(x) for readout, x in zip(self.readouts, scalars[-len(self.readouts) :], strict=True))
        energies = energies.gather(1, head[:, None])[:, 0]
        if self.config.repulsion:
            energies = energies + scatter_sum(self.repulsion(distances, self.elements, *pairs), receivers, numbers.shape[0])
        return energies * gather(self.scale, head) + alone, torch.cat(scalars, -1)


class Layer(nn.Module):
    """One round: sum over neighbours, powers of the sum, and a residual that knows the element, or a mixing of the sums that does."""

    def __init__(
        self, kind: str, config: ScaleShiftMACEConfig, correlation: int, hidden_in: Layout, message: Layout, hidden_out: Layout
    ) -> None:
        super().__init__()
        channels, elements = config.channels, len(config.elements)
        self.average_neighbors, self.density = config.average_neighbors, kind.startswith("density")
        self.linear_up = DegreeLinear(hidden_in, message)
        self.convolution = ClebschGordanConvolution(message, config.lmax_edge, config.lmax_edge)
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
        # A_i = sum_j R(r_ij) Y(r_ij) (x) h_j, Batatia 2022, eq. 8-9
        sums = self.linear_sums(_sum_up(self.convolution, self.linear_up(features), harmonics, senders, receivers, weights))
        sums = sums / (1 + scatter_sum(densities, receivers, features.shape[0]) if self.density else self.average_neighbors)
        if self.mixing is not None:
            sums = self.mixing(sums, species)
        new = self.linear_out(self.product(sums, self.product_weights, species))  # B_i, eq. 10-11
        return new if self.residual is None else new + self.residual(features, species)  # eq. 12


class NonLinearLayer(nn.Module):
    """One round of MACE-MH: what a sum over neighbours and the atom's own message make together passes a gate before its powers.

    Nothing in it but the product knows the element; weights of edges know that of either end. Sums are divided by a learned number and by
    how crowded the neighbourhood is, with a learned share.
    """

    def __init__(self, config: ScaleShiftMACEConfig, correlation: int, hidden_in: Layout, message: Layout, hidden_out: Layout) -> None:
        super().__init__()
        channels, elements = config.channels, len(config.elements)
        self.linear_up = DegreeLinear(hidden_in, message)
        self.convolution = ClebschGordanConvolution(message, config.lmax_edge, config.lmax_edge)
        sums = natural_layout(config.lmax_edge, channels)
        self.gate_layout = (Block(0, 1, len(sums) * channels), *sums[1:])  # behind the scalars the gates of each degree
        self.linear_sums = DegreeLinear(self.convolution.out, self.gate_layout)
        self.linear_own = DegreeLinear(message, self.gate_layout)
        self.divisor = nn.Parameter(torch.tensor([20.0, 0.0]))  # a number, and the share of the density
        self.linear_gated = DegreeLinear(sums, sums)
        self.product = SymmetricContraction(sums, [b.l for b in hidden_out], correlation, elements)
        self.product_weights = nn.Parameter(torch.randn(elements, self.product.num_weights, channels))
        self.linear_out = DegreeLinear(self.product.out, hidden_out)
        self.residual = DegreeLinear(hidden_in, hidden_out)

    def forward(
        self,
        features: Float[Tensor, "atoms dim_in"],
        species: Int[Tensor, " atoms"],
        harmonics: Float[Tensor, "edges harmonics"],
        weights: Float[Tensor, "edges paths channels"] | InTable,
        densities: Float[Tensor, "edges 1"],
        senders: Int[Tensor, " edges"],
        receivers: Int[Tensor, " edges"],
    ) -> Float[Tensor, "atoms dim_out"]:
        message = self.linear_up(features)
        sums = self.linear_sums(_sum_up(self.convolution, message, harmonics, senders, receivers, weights))
        number, share = self.divisor
        sums = sums / (number + share * scatter_sum(densities, receivers, features.shape[0])) + self.linear_own(message)
        sums = self.linear_gated(self.gate(sums))
        return self.linear_out(self.product(sums, self.product_weights, species)) + self.residual(features)

    def gate(self, x: Float[Tensor, "atoms dim_gate"]) -> Float[Tensor, "atoms dim_sums"]:
        """silu of scalars, and of each other channel its product with a sigmoid; gains keep the variance."""
        first, *others = split_blocks(x, self.gate_layout)
        scalars, *gates = first[:, 0].chunk(len(self.gate_layout), 1)
        parts = [nn.functional.silu(scalars) * ScalarMLP.SILU_GAIN]
        parts += [(part * (torch.sigmoid(gate) * SIGMOID_GAIN)[:, None]).flatten(1) for part, gate in zip(others, gates, strict=True)]
        return torch.cat(parts, 1)


def _sum_up(
    convolution: ClebschGordanConvolution,
    messages: Float[Tensor, "atoms dim"],
    harmonics: Float[Tensor, "edges harmonics"],
    senders: Int[Tensor, " edges"],
    receivers: Int[Tensor, " edges"],
    weights: Float[Tensor, "edges paths channels"] | InTable,
) -> Float[Tensor, "atoms dim_out"]:
    if isinstance(weights, InTable):
        return convolution.by_table(messages, harmonics, senders, receivers, *weights)
    return convolution(messages, harmonics, senders, receivers, weights)


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


class BiasedReadout(nn.Module):
    """Energies of each head by a perceptron of its own with two hidden layers; the second and the last have biases."""

    def __init__(self, heads: int, channels: int, width: int) -> None:
        super().__init__()
        self.first = ScalarMLP(channels, heads * width)
        self.middle, self.middle_bias = nn.Parameter(torch.randn(heads, width, width)), nn.Parameter(torch.zeros(heads, width))
        self.last, self.last_bias = nn.Parameter(torch.randn(heads, width)), nn.Parameter(torch.zeros(heads))

    def forward(self, scalars: Float[Tensor, "atoms channels"]) -> Float[Tensor, "atoms heads"]:
        width = self.last.shape[1]
        hidden = nn.functional.silu(self.first(scalars)).unflatten(1, self.last.shape) * ScalarMLP.SILU_GAIN
        hidden = torch.einsum("ahi,hij->ahj", hidden, self.middle / width**0.5) + self.middle_bias
        hidden = nn.functional.silu(hidden) * ScalarMLP.SILU_GAIN
        return (hidden * self.last / width**0.5).sum(2) + self.last_bias


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
