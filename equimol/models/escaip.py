"""EScAIP: attention among the neighbours of each atom (Qu and Krishnapriyan 2024, arXiv:2410.24169; the form of fairchem-core, "V2")."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from equimol.data.graph import AtomicGraph
from equimol.models.base import Configured, ConfiguredPotential, DirectPotential
from equimol.nn.neighbor_attention import by_group, legendre_products, neighbor_attention, own_attention, slot_indices
from equimol.nn.soft_neighbors import SoftNeighbors, log_envelope, reverse_edges
from equimol.o3 import spherical_harmonics
from equimol.ops import gather, scatter_sum

ORDER_FLOOR = 1e-6  # below the square root of bond-orientational orders


@dataclass(frozen=True)
class EScAIPConfig:
    """Settings of :class:`EScAIP`."""

    elements: tuple[int, ...]  # atomic numbers
    cutoff: float = 6.0  # Å
    neighbors: int = 30  # nearest atoms that are seen, softly
    rank_width: float = 0.2  # Å; nearer than pi times this, two atoms share their ranks
    softness: float = 0.1  # of the maximum over distance and ranks
    width: int = 512  # of the features of atoms and of their neighbours
    layers: int = 10
    heads: int = 8
    legendre: tuple[int, ...] = (20, 10, 4, 10, 20)  # of the width of a head, what each Legendre degree of the angle has
    radial_basis: int = 600  # Gaussians
    radial_width: int = 512
    element_width: int = 128
    order_lmax: int = 9  # of the bond-orientational orders of an atom
    order_width: int = 64
    feedforward: int = 2  # width of hidden layers over that of features
    stochastic_depth: float = 0.0  # probability of leaving out a layer's update of a structure, in training
    smooth: bool = True  # False: as published, where the energy jumps as a neighbour enters

    def __post_init__(self) -> None:
        positive = ("cutoff", "neighbors", "rank_width", "softness", "width", "layers", "heads", "radial_width", "element_width")
        for field in (*positive, "order_width", "feedforward"):
            if not getattr(self, field) > 0:
                raise ValueError(f"{field} must be positive, got {getattr(self, field)}")
        if self.radial_basis < 2 or self.order_lmax < 0:
            raise ValueError(f"radial_basis must be 2 or more and order_lmax 0 or more, got {self.radial_basis} and {self.order_lmax}")
        if not 0 <= self.stochastic_depth < 1:
            raise ValueError(f"stochastic_depth must be in [0, 1), got {self.stochastic_depth}")
        object.__setattr__(self, "legendre", tuple(int(n) for n in self.legendre))
        if self.width % self.heads or sum(self.legendre) != self.width // self.heads or min(self.legendre) < 0:
            raise ValueError(
                f"legendre must sum to width / heads = {self.width / self.heads:g}, got {self.legendre} with sum {sum(self.legendre)}"
            )
        object.__setattr__(self, "elements", tuple(sorted(int(z) for z in self.elements)))
        if not self.elements or not all(0 < z < 119 for z in self.elements):
            raise ValueError(f"elements must be atomic numbers 1..118, at least one, got {self.elements}")


_ONE_MACHINE = {"radial_basis": 128, "element_width": 32, "order_width": 16}
PRESETS: dict[str, dict] = {
    "tiny": {**_ONE_MACHINE, "width": 32, "layers": 2, "heads": 2, "legendre": (6, 4, 2, 2, 2), "radial_width": 32, "radial_basis": 32},
    "nano": {**_ONE_MACHINE, "width": 64, "layers": 2, "heads": 4, "legendre": (6, 4, 2, 2, 2), "radial_width": 64},
    "small": {**_ONE_MACHINE, "width": 128, "layers": 4, "heads": 4, "legendre": (10, 6, 4, 6, 6), "radial_width": 128},
    "medium": {**_ONE_MACHINE, "width": 256, "layers": 6, "heads": 8, "legendre": (10, 6, 4, 6, 6), "radial_width": 256},
    "83M": {},
    "146M": {"width": 768, "layers": 8, "heads": 12},
    "317M": {"width": 1024, "heads": 16},
}


class Neighborhoods(NamedTuple):
    """What all layers need to know of a structure: slots are the neighbours of each atom and the atom itself, see `slot_indices`."""

    species: Int[Tensor, " atoms"]
    orders: Float[Tensor, "atoms degrees"]  # bond-orientational
    radial: Float[Tensor, "slots radial"]
    directions: Float[Tensor, "slots 3"]  # zero for the atom itself
    log_envelope: Float[Tensor, " slots"]
    legendre: list[Float[Tensor, "atoms degrees m m"]]
    bias: list[Float[Tensor, "atoms 1 m"]]  # the same weights, by group
    senders: Int[Tensor, " slots"]
    receivers: Int[Tensor, " slots"]
    first: Int[Tensor, " atoms"]  # the slot of the atom itself
    order: Int[Tensor, " atoms"]  # the atoms as their slots stand
    place: Int[Tensor, " atoms"]  # each atom's number in that order
    groups: list[list[int]]
    system: Int[Tensor, " atoms"]


class EScAIP(ConfiguredPotential):
    """Energies of order one from a graph. Not yet total energies: wrap it in ``Shifted`` (``build_model`` does)."""

    name = "escaip"

    def __init__(self, config: EScAIPConfig) -> None:
        super().__init__()
        self.config, self.elements = config, config.elements
        self.graph = soft_neighbors(config)
        # ranks at the sender depend on its own neighbours: one more edge than there are layers
        self.cutoff, self.hops = self.graph.reach, config.layers + 1
        self.backbone = Backbone(config, edges=False)
        self.energy = Output(config, 1)

    def indices(self, graph: AtomicGraph) -> dict[str, Tensor]:
        return neighborhood_indices(self.graph, graph)

    def atomic_energies(self, displacements, numbers, senders, receivers, indices, system):
        neighborhoods = self.backbone.neighborhoods(self.graph, displacements, numbers, senders, receivers, indices, system)
        atoms, _ = self.backbone(neighborhoods)
        return self.energy(atoms)[:, 0], atoms


class EScAIPDirect(Configured, DirectPotential):
    """Energies and forces of order one, the forces predicted: for pre-training, where they cost a third. Wrapped like EScAIP.

    Smooth: F_i = sum over neighbours of w_ij s_ij d_ij with a scalar s and the direction d, equivariant by construction. As published
    (``smooth=False``) a vector of three numbers multiplies the direction, component by component, which is not.
    """

    name = "escaip_direct"

    def __init__(self, config: EScAIPConfig) -> None:
        super().__init__()
        self.config, self.elements = config, config.elements
        self.graph = soft_neighbors(config)
        self.cutoff, self.hops = self.graph.reach, config.layers + 1
        self.backbone = Backbone(config, edges=True)
        self.energy_norm = nn.RMSNorm(config.width)
        self.energy = Output(config, 1)
        self.force_norm_atoms, self.force_norm_slots = nn.RMSNorm(config.width), nn.RMSNorm(config.width)
        self.force_direction = Output(config, 1 if config.smooth else 3)
        self.force_magnitude = Output(config, 1)

    def indices(self, graph: AtomicGraph) -> dict[str, Tensor]:
        return neighborhood_indices(self.graph, graph)

    def atomic_outputs(self, displacements, numbers, senders, receivers, indices, system):
        x = self.backbone.neighborhoods(self.graph, displacements, numbers, senders, receivers, indices, system)
        atoms, slots = self.backbone(x)
        along = self.force_direction(self.force_norm_slots(slots)) * x.directions
        if self.config.smooth:
            along = along * torch.exp(x.log_envelope)[:, None]
        forces = scatter_sum(along, x.receivers, len(numbers)) * self.force_magnitude(self.force_norm_atoms(atoms))
        return self.energy(self.energy_norm(atoms))[:, 0], forces


class Backbone(nn.Module):
    """Features of atoms, and of their neighbours where ``edges`` asks for them."""

    def __init__(self, config: EScAIPConfig, edges: bool) -> None:
        super().__init__()
        self.config, self.edges = config, edges
        table = torch.full((119,), -1)
        table[list(config.elements)] = torch.arange(len(config.elements))
        self.register_buffer("species_of", table, persistent=False)
        self.input = InputBlock(config)
        self.blocks = nn.ModuleList(Block(config, last=n == config.layers - 1 and not edges) for n in range(config.layers))
        self.readouts = nn.ModuleList(Readout(config) for _ in range(config.layers + 1))
        self.projection = Projection(config)
        if edges:
            self.edge_readouts = nn.ModuleList(Readout(config) for _ in range(config.layers + 1))
            self.edge_projection = Projection(config)
        for module in self.modules():
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, x: Neighborhoods) -> tuple[Float[Tensor, "atoms width"], Float[Tensor, "slots width"] | None]:
        atoms, slots = self.input(x)
        of_atoms, of_slots = [self.readouts[0](atoms)], [self.edge_readouts[0](slots)] if self.edges else []
        for n, block in enumerate(self.blocks, start=1):
            atoms, slots = block(x, atoms, slots)
            of_atoms.append(self.readouts[n](atoms))
            if self.edges:
                of_slots.append(self.edge_readouts[n](slots))
        return self.projection(of_atoms), self.edge_projection(of_slots) if self.edges else None

    def neighborhoods(
        self,
        graph: SoftNeighbors,
        displacements: Float[Tensor, "edges 3"],
        numbers: Int[Tensor, " atoms"],
        senders: Int[Tensor, " edges"],
        receivers: Int[Tensor, " edges"],
        indices: dict[str, Tensor],
        system: Int[Tensor, " atoms"],
    ) -> Neighborhoods:
        """Geometry in the precision of the displacements, results in that of the weights."""
        config, dtype = self.config, self.input.attributes.mix.weight.dtype
        atoms, kept = len(numbers), indices["kept"]
        distances = displacements.norm(dim=-1)
        envelope = log_envelope(graph.ranks(distances, indices))
        distances, vectors, receivers = distances[kept], displacements[kept], receivers[kept]
        degrees = [2 * l + 1 for l in range(max(config.order_lmax + 1, len(config.legendre)))]
        harmonics = spherical_harmonics(vectors, len(degrees) - 1)  # component-normalised
        harmonics = torch.cat([y / math.sqrt(n) for n, y in zip(degrees, harmonics.split(degrees, 1), strict=True)], 1)
        orders = self._orders(harmonics, envelope, receivers, atoms)

        def of_slots(values: Tensor, own: Tensor) -> Tensor:
            """A row per slot, cast; ``own`` for the atom itself."""
            return torch.cat([own[None], values])[indices["edge"]].to(dtype)

        zero = distances.new_zeros(())
        own = torch.zeros_like(harmonics[0]) if len(harmonics) else harmonics.new_zeros(harmonics.shape[1])
        own = torch.cat([torch.ones_like(own[:1]), own[1:]])  # Y_0 is one, the others have no direction to point in
        used = sum(degrees[: len(config.legendre)])
        groups = indices["groups"].tolist()
        legendre = legendre_products(of_slots(harmonics[:, :used], own[:used]).split(degrees[: len(config.legendre)], 1), groups)
        radial = gaussians(of_slots(distances, zero), config.cutoff, config.radial_basis)
        directions, log_weights = of_slots(vectors / distances[:, None], vectors.new_zeros(3)), of_slots(envelope, zero)
        return Neighborhoods(
            self.species_of[numbers],
            orders.to(dtype),
            radial,
            directions,
            log_weights,
            legendre,
            [part.unsqueeze(1) for part in by_group(log_weights, groups)],
            indices["sender"],
            indices["receiver"],
            indices["first"],
            indices["order"],
            indices["place"],
            groups,
            system,
        )

    def _orders(self, harmonics: Tensor, envelope: Tensor, receivers: Tensor, atoms: int) -> Float[Tensor, "atoms degrees"]:
        """sqrt(sum over m of the mean over neighbours of Y_lm, squared): Steinhardt 1983. The atom itself counts in the mean."""
        lmax = self.config.order_lmax
        harmonics = harmonics[:, : (lmax + 1) ** 2]
        weights = torch.exp(envelope) if self.config.smooth else torch.ones_like(envelope)
        total = scatter_sum(harmonics * weights[:, None], receivers, atoms)
        own = torch.zeros_like(total[:, :1]) + 1
        mean = torch.cat([total[:, :1] + own, total[:, 1:]], 1) / (scatter_sum(weights, receivers, atoms) + 1)[:, None]
        squares = torch.stack([part.square().sum(1) for part in mean.split([2 * l + 1 for l in range(lmax + 1)], 1)], 1)
        # published: a floor, whose kink the smooth form must not have
        return (squares + ORDER_FLOOR).sqrt() if self.config.smooth else squares.clamp(min=ORDER_FLOOR).sqrt()


class Attributes(nn.Module):
    """What is known of a neighbour before any message: distance, elements, and the orders of both atoms."""

    def __init__(self, config: Any) -> None:  # EScAIPConfig, or another with its fields
        super().__init__()
        elements, orders = len(config.elements), config.order_lmax + 1
        self.distance = nn.Linear(config.radial_basis, config.radial_width)
        self.sender_order, self.receiver_order = (nn.Linear(orders, config.order_width) for _ in range(2))
        self.sender_element, self.receiver_element = (
            nn.Parameter(torch.empty(elements, config.element_width).uniform_(-1e-3, 1e-3)) for _ in range(2)
        )
        self.mix = nn.Linear(config.radial_width + 2 * (config.order_width + config.element_width), config.width)

    def forward(self, x: Neighborhoods) -> Float[Tensor, "slots width"]:
        # a linear layer of a concatenation is a sum of linear layers: those of the atoms are applied once per atom
        per_atom = self.sender_order.out_features + self.sender_element.shape[1]
        of_distance, of_sender, of_receiver = self.mix.weight.split([self.distance.out_features, per_atom, per_atom], dim=1)
        senders = torch.cat([gelu(self.sender_order(x.orders)), gather(self.sender_element, x.species)], 1) @ of_sender.T
        receivers = torch.cat([gelu(self.receiver_order(x.orders)), gather(self.receiver_element, x.species)], 1) @ of_receiver.T
        mixed = torch.addmm(self.mix.bias, gelu(self.distance(x.radial)), of_distance.T)
        return gelu(mixed + gather(senders, x.senders) + gather(receivers, x.receivers))


class InputBlock(nn.Module):
    """First features: attributes through one residual perceptron; an atom starts with those of its own slot."""

    def __init__(self, config: EScAIPConfig) -> None:
        super().__init__()
        self.attributes, self.norm_attributes = Attributes(config), nn.RMSNorm(config.width)
        self.feedforward = FeedForward(config.width, 1)
        self.norm_atoms, self.norm_slots = nn.RMSNorm(config.width), nn.RMSNorm(config.width)

    def forward(self, x: Neighborhoods) -> tuple[Tensor, Tensor]:
        slots = self.norm_attributes(self.attributes(x))
        slots = slots + self.feedforward(slots)
        return self.norm_atoms(gather(slots, x.first)), self.norm_slots(slots)


class Block(nn.Module):
    """Attention, then perceptrons, each added to the features of atoms and slots. The last one may leave the slots alone."""

    def __init__(self, config: EScAIPConfig, last: bool) -> None:
        super().__init__()
        self.stochastic_depth, self.last = config.stochastic_depth, last
        self.norm_atoms, self.norm_slots = nn.RMSNorm(config.width), nn.RMSNorm(config.width)
        self.attention = GraphAttention(config)
        self.norm_feedforward_atoms = nn.RMSNorm(config.width)
        self.feedforward_atoms = FeedForward(config.width, config.feedforward)
        if not last:
            self.norm_feedforward_slots = nn.RMSNorm(config.width)
            self.feedforward_slots = FeedForward(config.width, config.feedforward)

    def forward(self, x: Neighborhoods, atoms: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        update = self.attention(x, self.norm_atoms(atoms), self.norm_slots(slots), own=self.last)
        if self.last:
            atoms = atoms + self._survive(update, x.system)
        else:
            atoms = atoms + self._survive(gather(update, x.first), x.system)
            slots = slots + self._survive(update, x.system[x.receivers])
            slots = slots + self._survive(self.feedforward_slots(self.norm_feedforward_slots(slots)), x.system[x.receivers])
        return atoms + self._survive(self.feedforward_atoms(self.norm_feedforward_atoms(atoms)), x.system), slots

    def _survive(self, update: Float[Tensor, "rows width"], system: Int[Tensor, " rows"]) -> Float[Tensor, "rows width"]:
        """Stochastic depth: in training, the update of a structure is dropped now and then, and larger otherwise."""
        if not self.training or not self.stochastic_depth:
            return update
        keep = 1 - self.stochastic_depth
        return update * (torch.bernoulli(update.new_full((int(system.max()) + 1,), keep)) / keep)[system][:, None]


class GraphAttention(nn.Module):
    """A message per slot from attributes, slot and atoms; attention among the slots of each atom (the paper's Fig. 2)."""

    def __init__(self, config: EScAIPConfig) -> None:
        super().__init__()
        width = config.width
        self.heads, self.parts = config.heads, config.legendre
        # the published form repeats each number of a head 2l+1 times, pads to a multiple of 8 and scales as usual
        repeated = sum((2 * l + 1) * n for l, n in enumerate(config.legendre))
        self.scale = (8 * math.ceil(repeated / 8)) ** -0.5
        self.attributes, self.norm_attributes = Attributes(config), nn.RMSNorm(width)
        self.slots = nn.Linear(width, width)
        self.atoms = nn.Linear(2 * width, width)  # of the sender and the receiver
        self.message = nn.Linear(3 * width, width)  # of attributes, slot and atoms
        self.norm = nn.RMSNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Neighborhoods, atoms: Tensor, slots: Tensor, own: bool) -> Float[Tensor, "rows width"]:
        """Updates of all slots, or of the atoms alone where ``own``."""
        of_sender, of_receiver = self.atoms.weight.chunk(2, dim=1)
        pair = gather(atoms @ of_sender.T, x.senders) + gather(torch.addmm(self.atoms.bias, atoms, of_receiver.T), x.receivers)
        parts = self.norm_attributes(self.attributes(x)), gelu(self.slots(slots)), gelu(pair)
        message = self.norm(gelu(self.message(torch.cat(parts, dim=1))))
        key, value = self.key(message), self.value(message)
        if not own:
            arguments = key, value, x.legendre, x.bias, x.groups, self.heads, self.parts, self.scale
            return self.out(neighbor_attention(self.query(message), *arguments))
        query = self.query(gather(message, x.first[x.order]))
        mixed = own_attention(query, key, value, x.bias, x.groups, self.heads, self.parts, self.scale)
        return self.out(gather(mixed, x.place))


class FeedForward(nn.Sequential):
    """Two linear layers with gelu between."""

    def __init__(self, width: int, multiple: int) -> None:
        super().__init__(nn.Linear(width, multiple * width), nn.GELU(), nn.Linear(multiple * width, width))


class Readout(nn.Module):
    """x + perceptron(norm(x)), taken before the first and after every block."""

    def __init__(self, config: Any) -> None:  # EScAIPConfig, or another with its fields
        super().__init__()
        self.norm, self.feedforward = nn.RMSNorm(config.width), FeedForward(config.width, config.feedforward)

    def forward(self, x: Float[Tensor, "rows width"]) -> Float[Tensor, "rows width"]:
        return x + self.feedforward(self.norm(x))


class Projection(nn.Module):
    """All readouts, side by side, to one width."""

    def __init__(self, config: EScAIPConfig) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(config.width * (config.layers + 1), config.width), nn.RMSNorm(config.width)

    def forward(self, readouts: Sequence[Float[Tensor, "rows width"]]) -> Float[Tensor, "rows width"]:
        return self.norm(gelu(self.linear(torch.cat(list(readouts), dim=1))))


class Output(nn.Module):
    """A perceptron and a last linear layer without bias, initialised by Glorot and Bengio's rule."""

    def __init__(self, config: EScAIPConfig, size: int) -> None:
        super().__init__()
        self.feedforward, self.last = FeedForward(config.width, config.feedforward), nn.Linear(config.width, size, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Float[Tensor, "rows width"]) -> Float[Tensor, "rows size"]:
        return self.last(self.feedforward(x))


def soft_neighbors(config: EScAIPConfig) -> SoftNeighbors:
    """The graph of a configuration."""
    return SoftNeighbors(config.cutoff, config.neighbors, config.rank_width, config.softness, config.smooth)


def neighborhood_indices(soft: SoftNeighbors, graph: AtomicGraph) -> dict[str, Tensor]:
    """Which edges count, and the slots they get."""
    with torch.no_grad():
        distances = graph.displacements().norm(dim=-1)
        atoms = len(graph.numbers)
        reverse = reverse_edges(graph.senders, graph.receivers, graph.shifts, atoms)
        found = soft.indices(distances, graph.receivers, reverse, atoms)
        return found | slot_indices(graph.senders[found["kept"]], graph.receivers[found["kept"]], atoms, own=True)


def gaussians(distance: Float[Tensor, " slots"], cutoff: float, size: int) -> Float[Tensor, "slots size"]:
    """exp(-(d - d_k)^2 / 2 w^2) for d_k from 0 to the cutoff, with w twice their spacing."""
    offsets = torch.linspace(0, cutoff, size, dtype=distance.dtype, device=distance.device)
    return torch.exp(-0.5 * ((distance[:, None] - offsets) / (2 * cutoff / (size - 1))).square())


gelu = nn.functional.gelu
