"""AllScAIP: attention among neighbours on either side of each edge, then among all atoms (arXiv:2603.06567; the form of fairchem-core)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from equimol.data.graph import AtomicGraph
from equimol.models.base import Configured, ConfiguredPotential, DirectPotential
from equimol.models.escaip import ORDER_FLOOR, FeedForward, gaussians, neighborhood_indices
from equimol.nn.groups import by_group
from equimol.nn.neighbor_attention import legendre_products, neighbor_attention
from equimol.nn.soft_neighbors import SoftNeighbors, log_envelope, reverse_edges
from equimol.o3 import spherical_harmonics
from equimol.ops import gather, scatter_sum

EVERYWHERE = 10**6  # hops: attention among all atoms knows no distance
CHARGES, SPINS = (-100, 100), (0, 100)  # of which there are embeddings; a spin of 0 is one that is not known


@dataclass(frozen=True)
class AllScAIPConfig:
    """Settings of :class:`AllScAIP`."""

    elements: tuple[int, ...]  # atomic numbers
    cutoff: float = 6.0  # Å
    neighbors: int = 30  # nearest atoms that are seen, softly
    rank_width: float = 0.2  # Å; nearer than four times this, two atoms share their ranks
    softness: float = 0.1  # of the maximum over distance and ranks
    width: int = 512
    layers: int = 6
    heads: int = 8
    legendre: tuple[int, ...] = (20, 10, 4, 10, 20)  # of the width of a head, what each Legendre degree of the angle has
    radial_basis: int = 512  # Gaussians
    direction_lmax: int = 5  # of the harmonics of a neighbour's direction
    order_lmax: int = 9  # of the bond-orientational orders of an atom
    feedforward: int = 2  # width of hidden layers over that of features
    all_to_all: bool = True  # attention among all atoms of a structure

    def __post_init__(self) -> None:
        for field in ("cutoff", "neighbors", "rank_width", "softness", "width", "layers", "heads", "feedforward"):
            if not getattr(self, field) > 0:
                raise ValueError(f"{field} must be positive, got {getattr(self, field)}")
        object.__setattr__(self, "legendre", tuple(int(n) for n in self.legendre))
        if self.width % self.heads or sum(self.legendre) != self.width // self.heads:
            raise ValueError(f"legendre must sum to width / heads = {self.width / self.heads:g}, got {self.legendre}")
        object.__setattr__(self, "elements", tuple(sorted(int(z) for z in self.elements)))


PRESETS: dict[str, dict] = {
    "tiny": {"width": 32, "layers": 2, "heads": 2, "legendre": (6, 4, 2, 2, 2), "radial_basis": 32},
    "small": {},
    "medium": {"width": 640, "layers": 10, "heads": 10, "legendre": (64,)},
}


class Slots(NamedTuple):
    """What all layers need to know of a structure: slots are the neighbours of each atom after the atom itself, see `slot_indices`."""

    species: Int[Tensor, " atoms"]
    orders: Float[Tensor, "atoms degrees"]  # bond-orientational
    geometry: Float[Tensor, "slots features"]  # Gaussians of the distance and harmonics of the direction
    legendre: Sequence[Tensor | None]  # by group
    bias: list[Float[Tensor, "atoms 1 m"]]
    receivers: Int[Tensor, " slots"]
    reverse: Int[Tensor, " slots"]  # the slot of the edge that runs the other way
    own: Bool[Tensor, "slots 1"]  # of atoms themselves
    first: Int[Tensor, " atoms"]  # the slot of the atom itself
    groups: list[list[int]]
    structures: list[list[int]]  # n structures of m atoms, one after the other
    charge: Int[Tensor, " systems"]
    spin: Int[Tensor, " systems"]
    system: Int[Tensor, " atoms"]


class AllScAIP(ConfiguredPotential):
    """Energies of order one from a graph, forces their slope. Not invariant under rotation: directions enter as they are.

    Turned structures have other energies, by how much is up to training. Nor do distant parts of a structure add up: attention among all
    atoms knows no distance. Wanted of every structure: its charge and spin.
    """

    name = "allscaip"
    inputs = ("charge", "spin")

    def __init__(self, config: AllScAIPConfig) -> None:
        super().__init__()
        self.config, self.elements = config, config.elements
        self.backbone = Backbone(config)
        self.cutoff, self.hops = self.backbone.graph.reach, EVERYWHERE if config.all_to_all else 2 * config.layers + 1
        self.energy = Head(config, 1)

    def indices(self, graph: AtomicGraph, uniform: bool = False) -> dict[str, Tensor]:
        return slots_and_inputs(self.backbone.graph, graph)

    def atomic_energies(self, displacements, numbers, senders, receivers, indices, system):
        atoms = self.backbone(self.backbone.slots(displacements, numbers, receivers, indices, system))
        return self.energy(atoms)[:, 0], atoms


class AllScAIPDirect(Configured, DirectPotential):
    """Energies and forces of order one, the forces predicted atom by atom. They do not turn with the structure."""

    name = "allscaip_direct"
    inputs = ("charge", "spin")

    def __init__(self, config: AllScAIPConfig) -> None:
        super().__init__()
        self.config, self.elements = config, config.elements
        self.backbone = Backbone(config)
        self.cutoff, self.hops = self.backbone.graph.reach, EVERYWHERE if config.all_to_all else 2 * config.layers + 1
        self.energy, self.forces = Head(config, 1), Head(config, 3)

    def indices(self, graph: AtomicGraph, uniform: bool = False) -> dict[str, Tensor]:
        return slots_and_inputs(self.backbone.graph, graph)

    def atomic_outputs(self, displacements, numbers, senders, receivers, indices, system):
        atoms = self.backbone(self.backbone.slots(displacements, numbers, receivers, indices, system))
        return self.energy(atoms)[:, 0], self.forces(atoms)


class BumpNeighbors(SoftNeighbors):
    """The graph of EScAIP with another step between ranks: infinitely smooth, and wider."""

    __slots__ = ()

    @property
    def reach(self) -> float:
        return self.cutoff + 4 * self.width

    def step(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return bump_step(x)


class Backbone(nn.Module):
    """Features of atoms."""

    def __init__(self, config: AllScAIPConfig) -> None:
        super().__init__()
        self.config = config
        self.graph = BumpNeighbors(config.cutoff, config.neighbors, config.rank_width, config.softness, smooth=False)
        table = torch.full((119,), -1)
        table[list(config.elements)] = torch.arange(len(config.elements))
        self.register_buffer("species_of", table, persistent=False)
        self.input = InputBlock(config)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, x: Slots) -> Float[Tensor, "atoms width"]:
        features = self.input(x)
        for layer in self.layers:
            features = layer(x, features)
        return gather(features, x.first)

    def slots(
        self,
        displacements: Float[Tensor, "edges 3"],
        numbers: Int[Tensor, " atoms"],
        receivers: Int[Tensor, " edges"],
        indices: dict[str, Tensor],
        system: Int[Tensor, " atoms"],
    ) -> Slots:
        """Geometry in the precision of the displacements, results in that of the weights."""
        config, dtype = self.config, self.input.edge.weight.dtype
        atoms, kept = len(numbers), indices["kept"]
        distances = displacements.norm(dim=-1)
        envelope = log_envelope(self.graph.ranks(distances, indices))
        distances, vectors = distances[kept], displacements[kept]
        degrees = [2 * l + 1 for l in range(max(config.order_lmax, config.direction_lmax, len(config.legendre) - 1) + 1)]
        harmonics = spherical_harmonics(vectors, len(degrees) - 1)  # component-normalised
        unit = torch.cat([y / math.sqrt(n) for n, y in zip(degrees, harmonics.split(degrees, 1), strict=True)], 1)

        def of_slots(values: Tensor, own: float = 0.0) -> Tensor:
            """A row per slot, cast; ``own`` in the first column and zeros for the atom itself."""
            first = torch.zeros_like(values[:1]) if len(values) else values.new_zeros(1, *values.shape[1:])
            first = torch.cat([first[:, :1] + own, first[:, 1:]], 1)
            return gather(torch.cat([first, values]), indices["edge"]).to(dtype)

        groups = indices["groups"].tolist()
        radial = gaussians(of_slots(distances[:, None])[:, 0], config.cutoff, config.radial_basis)
        direction = of_slots(harmonics[:, : (config.direction_lmax + 1) ** 2], own=1.0)  # Y_0 is one, the others have nowhere to point
        angular = of_slots(unit[:, 1 : len(config.legendre) ** 2]).split(degrees[1 : len(config.legendre)], 1)
        return Slots(
            self.species_of[numbers],
            _orders(unit[:, : (config.order_lmax + 1) ** 2], receivers[kept], atoms).to(dtype),
            torch.cat([radial, direction], 1),
            legendre_products(angular, groups) if angular else [None] * len(groups),
            [part.mT for part in by_group(of_slots(envelope[:, None]), groups)],
            indices["receiver"],
            indices["reverse"],
            indices["edge"][:, None] == 0,
            indices["first"],
            groups,
            torch.stack(torch.unique_consecutive(torch.bincount(system), return_counts=True), 1).flip(1).tolist(),
            indices["charge"],
            indices["spin"],
            system,
        )


class InputBlock(nn.Module):
    """First features of slots: of the receiving atom and its structure, and of the edge. Those of the sender come by attention."""

    def __init__(self, config: AllScAIPConfig) -> None:
        super().__init__()
        width, edge = config.width, config.radial_basis + (config.direction_lmax + 1) ** 2
        self.element = nn.Parameter(torch.empty(len(config.elements), width).uniform_(-1e-3, 1e-3))
        self.orders, self.norm = nn.Linear(config.order_lmax + 1, width), nn.RMSNorm(2 * width)
        self.atom, self.edge, self.mix = nn.Linear(2 * width, width), nn.Linear(edge, width), nn.Linear(2 * width, width)
        self.charge, self.spin = (nn.Embedding(last - first + 1, width) for first, last in (CHARGES, SPINS))
        self.charge_and_spin = nn.Linear(2 * width, width)

    def forward(self, x: Slots) -> Float[Tensor, "slots width"]:
        atoms = torch.cat([gather(self.element, x.species), nn.functional.gelu(self.orders(x.orders))], 1)
        atoms = nn.functional.gelu(self.atom(self.norm(atoms)))
        structures = torch.cat([self.charge(x.charge - CHARGES[0]), self.spin(x.spin - SPINS[0])], 1)
        atoms = atoms + nn.functional.gelu(self.charge_and_spin(structures))[x.system]
        of_atoms, of_edges = self.mix.weight.chunk(2, dim=1)
        edges = torch.addmm(self.mix.bias, nn.functional.gelu(self.edge(x.geometry)), of_edges.T)
        return nn.functional.gelu(edges + gather(atoms @ of_atoms.T, x.receivers))


class Layer(nn.Module):
    """Attention among the edges that end at an atom, among those that start there, among all atoms; then perceptrons."""

    def __init__(self, config: AllScAIPConfig) -> None:
        super().__init__()
        self.receiving, self.sending = Attention(config, config.legendre), Attention(config, config.legendre)
        self.all_to_all = Attention(config, (config.width // config.heads,)) if config.all_to_all else None
        self.atoms, self.slots = Residual(config), Residual(config)

    def forward(self, x: Slots, slots: Float[Tensor, "slots width"]) -> Float[Tensor, "slots width"]:
        slots = self.receiving(slots, x.legendre, x.bias, x.groups)
        # both atoms of an edge have it among as many others, with the same angles and weights: only the rows change places
        slots = gather(self.sending(gather(slots, x.reverse), x.legendre, x.bias, x.groups), x.reverse)
        atoms = gather(slots, x.first)
        if self.all_to_all is not None:
            equal = [atoms.new_zeros(many, 1, size) for many, size in x.structures]
            atoms = self.all_to_all(atoms, [None] * len(equal), equal, x.structures)
        return torch.where(x.own, gather(self.atoms(atoms), x.receivers), self.slots(slots))


class Attention(nn.Module):
    """x + a learnt multiple of attention among normalised rows of a group."""

    def __init__(self, config: AllScAIPConfig, parts: tuple[int, ...]) -> None:
        super().__init__()
        self.heads, self.parts, self.scale = config.heads, parts, (config.width // config.heads) ** -0.5
        self.norm, self.share = nn.RMSNorm(config.width), nn.Parameter(torch.tensor(1 / config.layers))
        self.query_key_value, self.out = nn.Linear(config.width, 3 * config.width), nn.Linear(config.width, config.width)

    def forward(
        self, x: Float[Tensor, "rows width"], legendre: Sequence[Tensor | None], bias: Sequence[Tensor], groups: Sequence[Sequence[int]]
    ) -> Float[Tensor, "rows width"]:
        rows = self.query_key_value(self.norm(x))
        return x + self.share * self.out(neighbor_attention(rows, legendre, bias, groups, self.heads, self.parts, self.scale))


class Residual(nn.Module):
    """x + a learnt multiple of a perceptron of normalised x."""

    def __init__(self, config: AllScAIPConfig) -> None:
        super().__init__()
        self.norm, self.share = nn.RMSNorm(config.width), nn.Parameter(torch.tensor(1 / config.layers))
        self.feedforward = FeedForward(config.width, config.feedforward)

    def forward(self, x: Float[Tensor, "rows width"]) -> Float[Tensor, "rows width"]:
        return x + self.share * self.feedforward(self.norm(x))


class Head(nn.Module):
    """A perceptron of normalised features, initialised by Glorot and Bengio's rule."""

    def __init__(self, config: AllScAIPConfig, size: int) -> None:
        super().__init__()
        hidden = config.feedforward * config.width
        self.norm = nn.RMSNorm(config.width)
        self.feedforward = nn.Sequential(nn.Linear(config.width, hidden), nn.GELU(), nn.Linear(hidden, size))
        for layer in self.feedforward[::2]:
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Float[Tensor, "atoms width"]) -> Float[Tensor, "atoms size"]:
        return self.feedforward(self.norm(x))


def slots_and_inputs(soft: SoftNeighbors, graph: AtomicGraph) -> dict[str, Tensor]:
    """Which edges count, the slots they get, the slots of their reverse edges; charges and spins."""
    found = neighborhood_indices(soft, graph, group_cost=0.0)
    edge, kept = found["edge"], found["kept"]
    reverse = reverse_edges(graph.senders, graph.receivers, graph.shifts, len(graph.numbers))
    slot_of = torch.full((len(reverse),), -1, device=edge.device)
    neighbors = torch.nonzero(edge).flatten()
    slot_of[kept[edge[neighbors] - 1]] = neighbors
    other = torch.arange(len(edge), device=edge.device)  # an atom's own slot is its own reverse
    other[neighbors] = slot_of[reverse[kept[edge[neighbors] - 1]]]
    return found | {"reverse": other, "charge": _whole(graph, "charge", *CHARGES), "spin": _whole(graph, "spin", *SPINS)}


def _whole(graph: AtomicGraph, name: str, first: int, last: int) -> Int[Tensor, " systems"]:
    values = graph[name]
    wrong = ~((values == values.round()) & (values >= first) & (values <= last))  # true of NaN, which stands for what was not stated
    if bool(wrong.any()):
        raise ValueError(f"{name} must be a whole number {first}..{last} for every structure, got {values[wrong][0]:g}; state it")
    return values.long()


def _orders(unit: Float[Tensor, "edges harmonics"], receivers: Int[Tensor, " edges"], atoms: int) -> Float[Tensor, "atoms degrees"]:
    """sqrt(sum over m of the mean of Y_lm, squared), all neighbours counting alike, and the atom itself with Y_0 = 1."""
    total = scatter_sum(unit, receivers, atoms)
    mean = torch.cat([total[:, :1] + 1, total[:, 1:]], 1) / (torch.bincount(receivers, minlength=atoms) + 1)[:, None]
    lmax = math.isqrt(unit.shape[1]) - 1
    squares = torch.stack([part.square().sum(1) for part in mean.split([2 * l + 1 for l in range(lmax + 1)], 1)], 1)
    return squares.clamp(min=ORDER_FLOOR).sqrt()


def bump_step(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """0 below -4, 1 above 4, between with all derivatives: for t = x / 4, the logistic function of 4 t / (1 - t^2)."""
    t = x / 4
    inside = t.abs() < 1
    t_inside = torch.where(inside, t, 0.0)
    return torch.where(inside, torch.sigmoid(4 * t_inside / (1 - t_inside.square())), (t > 0).to(x.dtype))
