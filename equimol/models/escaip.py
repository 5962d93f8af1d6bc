"""EScAIP: attention among the neighbours of each atom (Qu and Krishnapriyan 2024, arXiv:2410.24169; the form of fairchem-core, "V2")."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import gelu

from equimol.data.graph import AtomicGraph
from equimol.models.base import Configured, ConfiguredPotential, DirectPotential
from equimol.nn.cubic_table import CubicWeights, cubic_table, cubic_weights, look_up
from equimol.nn.groups import Groups, blocks_of, by_group, joined, slot_indices, slots_within
from equimol.nn.linear import Linear
from equimol.nn.neighbor_attention import legendre_polynomials, neighbor_attention, own_attention
from equimol.nn.rms_norm import RMSNorm
from equimol.nn.soft_neighbors import SoftNeighbors, log_envelope, reverse_edges
from equimol.ops import gather
from equimol.ops.linear import linear
from equimol.ops.recomputed import recomputed

BLOCK_NUMBERS = 2**19  # of a feature of a block of slots: two megabytes in float32, which products of matrices want and caches hold
GROUP_COST = 24.0  # slots that take as long as another group of atoms with equally many neighbours
NOTHING = 1e-20  # Gaussians below are zero: processors take a hundred times longer for products with numbers near the smallest
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


class Block(NamedTuple):
    """Some atoms with their slots, so few that what a layer makes of them stays in the cache."""

    atoms: slice  # as their slots stand
    groups: Groups
    radial: Float[Tensor, "slots radial"] | CubicWeights
    legendre: list[Float[Tensor, "atoms degrees m m"]]  # by group
    bias: list[Float[Tensor, "atoms 1 m"]]

    @property
    def slots(self) -> int | torch.SymInt:
        return sum(many * size for many, size in self.groups)

    def over_slots(self, values: Float[Tensor, "slots width"], of_atoms: Float[Tensor, "atoms width"]) -> Float[Tensor, "slots width"]:
        """Adds the rows of atoms to those of all their slots."""
        counts = [many for many, _ in self.groups]
        parts = zip(by_group(values, self.groups), of_atoms.split(counts), strict=True)
        return joined([(part + mine.unsqueeze(1)).flatten(0, 1) for part, mine in parts])

    def own(self, values: Float[Tensor, "slots width"]) -> Float[Tensor, "atoms width"]:
        """The slots of the atoms themselves: the first of each."""
        return joined([part[:, 0] for part in by_group(values, self.groups)])


class Neighborhoods(NamedTuple):
    """What all layers need to know of a structure: slots are the neighbours of each atom and the atom itself, see `slot_indices`.

    Atoms are ordered as their slots stand; ``place`` brings them back.
    """

    species: Int[Tensor, " atoms"]
    orders: Float[Tensor, "atoms degrees"]  # bond-orientational
    senders: Int[Tensor, " slots"]
    system: Int[Tensor, " atoms"]
    place: Int[Tensor, " atoms"]  # where each atom of the graph stands
    directions: Float[Tensor, "slots 3"]  # zero for the atom itself
    log_envelope: Float[Tensor, " slots"]
    blocks: list[Block]

    def by_block(self, values: Float[Tensor, "slots ..."]) -> Sequence[Tensor]:
        """Views of the rows of each block."""
        return values.split([block.slots for block in self.blocks])


class EScAIP(ConfiguredPotential):
    """Energies of order one from a graph. Not yet total energies: wrap it in ``Shifted`` (``build_model`` does)."""

    name = "escaip"
    traceable = True
    recompute = False

    def __init__(self, config: EScAIPConfig) -> None:
        super().__init__()
        self.config, self.elements = config, config.elements
        self.graph = soft_neighbors(config)
        # orders of a sender depend on its neighbours, and these on theirs by their ranks: two more edges than there are layers
        self.cutoff, self.hops = self.graph.reach, config.layers + 2
        self.backbone = Backbone(config, edges=False)
        self.energy = Output(config, 1)

    size_names = ("nearest", "slots")

    def indices(self, graph: AtomicGraph, uniform: bool = False) -> dict[str, Tensor]:
        return neighborhood_indices(self.graph, graph, math.inf if uniform else GROUP_COST)

    def indices_within(self, edges, sizes):
        with torch.no_grad():
            nearest, slots = sizes
            distances = edges.displacements.norm(dim=-1)
            found, taken, enough = self.graph.indices_within(distances, edges.receivers, edges.reverse, edges.atoms, nearest)
            of_slots, enough_slots = slots_within(edges.senders, edges.receivers, taken, edges.atoms, slots, own=True)
            of_slots.pop("slot")
            return found | of_slots, [enough, enough_slots]

    def atomic_energies(self, displacements, numbers, senders, receivers, indices, system):
        neighborhoods = self.backbone.neighborhoods(self.graph, displacements, numbers, indices, system)
        atoms, _ = self.backbone(neighborhoods, self.recompute and self.training)
        atoms = gather(atoms, neighborhoods.place)
        return self.energy(atoms)[:, 0], atoms


class EScAIPDirect(Configured, DirectPotential):
    """Energies and forces of order one, the forces predicted: for pre-training, where they cost a third. Wrapped like EScAIP.

    Smooth: F_i = sum over neighbours of w_ij s_ij d_ij with a scalar s and the direction d, equivariant by construction. As published
    (``smooth=False``) a vector of three numbers multiplies the direction, component by component, which is not.
    """

    name = "escaip_direct"
    recompute = False

    def __init__(self, config: EScAIPConfig) -> None:
        super().__init__()
        self.config, self.elements = config, config.elements
        self.graph = soft_neighbors(config)
        self.cutoff, self.hops = self.graph.reach, config.layers + 2
        self.backbone = Backbone(config, edges=True)
        self.energy_norm = RMSNorm(config.width)
        self.energy = Output(config, 1)
        self.force_norm_atoms, self.force_norm_slots = RMSNorm(config.width), RMSNorm(config.width)
        self.force_direction = Output(config, 1 if config.smooth else 3)
        self.force_magnitude = Output(config, 1)

    def indices(self, graph: AtomicGraph, uniform: bool = False) -> dict[str, Tensor]:
        return neighborhood_indices(self.graph, graph, math.inf if uniform else GROUP_COST)

    def atomic_outputs(self, displacements, numbers, senders, receivers, indices, system):
        x = self.backbone.neighborhoods(self.graph, displacements, numbers, indices, system)
        atoms, slots = self.backbone(x, self.recompute and self.training)
        forces = []
        for block, features, directions, weights in zip(x.blocks, slots, x.by_block(x.directions), x.by_block(x.log_envelope), strict=True):
            along = self.force_direction(self.force_norm_slots(features)) * directions
            along = along * torch.exp(weights)[:, None] if self.config.smooth else along
            forces += [part.sum(1) for part in by_group(along, block.groups)]
        forces = torch.cat(forces) * self.force_magnitude(self.force_norm_atoms(atoms))
        return gather(self.energy(self.energy_norm(atoms)), x.place)[:, 0], gather(forces, x.place)


class Backbone(nn.Module):
    """Features of atoms, and of their neighbours where ``edges`` asks for them."""

    def __init__(self, config: EScAIPConfig, edges: bool) -> None:
        super().__init__()
        self.config, self.edges, self.frozen = config, edges, False
        table = torch.full((119,), -1)
        table[list(config.elements)] = torch.arange(len(config.elements))
        self.register_buffer("species_of", table, persistent=False)
        self.input = InputBlock(config)
        self.layers = nn.ModuleList(Layer(config, last=n == config.layers - 1 and not edges) for n in range(config.layers))
        self.readouts = nn.ModuleList(Readout(config) for _ in range(config.layers + 1))
        self.projection = Projection(config)
        if edges:
            self.edge_readouts = nn.ModuleList(Readout(config) for _ in range(config.layers + 1))
            self.edge_projection = Projection(config)
        for module in self.modules():
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, x: Neighborhoods, recompute: bool) -> tuple[Float[Tensor, "atoms width"], list[Tensor]]:
        """Features of the atoms as their slots stand, and those of the slots of each block, or none."""
        atoms, slots = self.input(x)
        of_atoms, of_slots = [self.readouts[0](atoms)], [[self.edge_readouts[0](part)] for part in slots] if self.edges else []
        for n, layer in enumerate(self.layers, start=1):
            arguments = x, atoms, slots, layer.survival(x, atoms)
            atoms, slots = recomputed(layer, *arguments) if recompute else layer(*arguments)
            of_atoms.append(self.readouts[n](atoms))
            for found, part in zip(of_slots, slots, strict=False):
                found.append(self.edge_readouts[n](part))
        return self.projection(of_atoms), [self.edge_projection(found) for found in of_slots]

    def freeze(self) -> None:
        """Attributes look up what they need of distances in tables, from now on; not in float64, for which the tables are not exact."""
        self.frozen = True

    def neighborhoods(
        self,
        graph: SoftNeighbors,
        displacements: Float[Tensor, "edges 3"],
        numbers: Int[Tensor, " atoms"],
        indices: dict[str, Tensor],
        system: Int[Tensor, " atoms"],
    ) -> Neighborhoods:
        """Geometry in the precision of the displacements, results in that of the weights."""
        config, dtype = self.config, self.input.attributes.mix.weight.dtype
        kept = indices["kept"]
        distances = displacements.norm(dim=-1)
        envelope = log_envelope(graph.ranks(distances, indices))
        distances, vectors = distances[kept], displacements[kept]

        def of_slots(values: Tensor, empty: float = 0.0) -> Tensor:
            """A row per slot; zero for the atom itself."""
            one = (1, *values.shape[1:])
            return gather(torch.cat([values.new_zeros(one), values, values.new_full(one, empty)]), edge)

        edge, order, place = indices["edge"].flatten(), indices["order"], indices["place"]
        lengths, directions, envelope = of_slots(distances), of_slots(vectors / distances[:, None]), of_slots(envelope, -math.inf)
        if "groups" in indices:
            cut = blocks_of(indices["groups"].tolist(), max(1, BLOCK_NUMBERS // config.width))
        else:
            cut = [(slice(None), [list(indices["edge"].shape)])]
        sizes = [sum(many * size for many, size in part) for _, part in cut]
        log_weights = envelope.to(dtype)
        if self.frozen and dtype != torch.float64:
            radial = cubic_weights(lengths, config.cutoff / (knots(config) - 1), knots(config), dtype).split(sizes)
        else:
            radial = [gaussians(part, config.cutoff, config.radial_basis) for part in lengths.to(dtype).split(sizes)]
        blocks, orders = [], []
        parts = zip(cut, radial, *(values.split(sizes) for values in (directions, envelope, log_weights)), strict=True)
        for (mine, part), basis, pointing, exponents, bias in parts:
            legendre = []
            for to, exponent in zip(by_group(pointing, part), by_group(exponents, part), strict=True):
                polynomials = legendre_polynomials(to[:, 1:] @ to[:, 1:].mT, max(config.order_lmax, len(config.legendre) - 1))
                orders.append(self._orders(polynomials, exponent[:, 1:]).to(dtype))
                # the atom itself has no direction: zero for all degrees but 0
                legendre.append(nn.functional.pad(polynomials[:, : len(config.legendre) - 1].to(dtype), (1, 0, 1, 0)))
            blocks.append(Block(mine, part, basis, legendre, [values.unsqueeze(1) for values in by_group(bias, part)]))
        return Neighborhoods(
            self.species_of[numbers][order],
            torch.cat(orders),
            place[indices["sender"]],
            system[order],
            place,
            directions.to(dtype),
            log_weights,
            blocks,
        )

    def _orders(
        self, polynomials: Float[Tensor, "atoms degrees m m"], log_envelope: Float[Tensor, "atoms m"]
    ) -> Float[Tensor, "atoms degrees_and_0"]:
        """sqrt(sum over m of the mean over neighbours of Y_lm, squared): Steinhardt 1983. The atom itself counts in the mean, as Y_0 = 1.

        By the addition theorem a double mean of P_l(cos jk).
        """
        lmax = self.config.order_lmax
        weights = torch.exp(log_envelope) if self.config.smooth else (log_envelope > -math.inf).to(log_envelope.dtype)
        shares = weights / (weights.sum(1, keepdim=True) + 1)
        pairs = (shares[:, :, None] * shares[:, None]).flatten(1)
        squares = torch.matmul(polynomials[:, :lmax].flatten(2), pairs[:, :, None])[..., 0]
        squares = torch.cat([torch.ones_like(pairs.sum(1, keepdim=True)), squares], 1)
        # published: a floor, whose kink the smooth form must not have
        return (squares + ORDER_FLOOR).sqrt() if self.config.smooth else squares.clamp(min=ORDER_FLOOR).sqrt()


class Attributes(nn.Module):
    """What is known of a neighbour before any message: distance, elements, and the orders of both atoms."""

    def __init__(self, config: Any) -> None:  # EScAIPConfig, or another with its fields
        super().__init__()
        elements, orders = len(config.elements), config.order_lmax + 1
        self.config = config
        self.distance = Linear(config.radial_basis, config.radial_width)
        self.sender_order, self.receiver_order = (Linear(orders, config.order_width) for _ in range(2))
        self.sender_element, self.receiver_element = (
            nn.Parameter(torch.empty(elements, config.element_width).uniform_(-1e-3, 1e-3)) for _ in range(2)
        )
        self.mix = Linear(config.radial_width + 2 * (config.order_width + config.element_width), config.width)
        self.register_buffer("table", None, persistent=False)

    def of_atoms(self, x: Neighborhoods) -> tuple[Float[Tensor, "atoms width"], Float[Tensor, "atoms width"]]:
        """The part of each atom as a sender and as a receiver: a linear layer of a concatenation is a sum of linear layers."""
        of_distance = self.distance.out_features
        of_sender, of_receiver = self.mix.weight[:, of_distance:].chunk(2, dim=1)
        senders = torch.cat([gelu(self.sender_order(x.orders)), gather(self.sender_element, x.species)], 1)
        receivers = torch.cat([gelu(self.receiver_order(x.orders)), gather(self.receiver_element, x.species)], 1)
        return linear(senders, of_sender), linear(receivers, of_receiver)

    def forward(
        self, block: Block, senders: Float[Tensor, "slots width"], receivers: Float[Tensor, "atoms width"]
    ) -> Float[Tensor, "slots width"]:
        return gelu(block.over_slots(self.of_distances(block.radial) + senders, receivers))

    def of_distances(self, radial: Float[Tensor, "slots radial"] | CubicWeights) -> Float[Tensor, "slots width"]:
        if isinstance(radial, CubicWeights):
            return look_up(self.table, radial)
        return linear(gelu(self.distance(radial)), self.mix.weight[:, : self.distance.out_features], self.mix.bias)

    @torch.no_grad()
    def freeze(self) -> None:
        """Tabulate what distances contribute."""
        weight = self.mix.weight
        distances = torch.linspace(0, self.config.cutoff, knots(self.config), dtype=torch.float64, device=weight.device)
        exact = copy.deepcopy(self).double()
        self.table = cubic_table(exact.of_distances(gaussians(distances, self.config.cutoff, self.config.radial_basis))).to(weight)


class InputBlock(nn.Module):
    """First features: attributes through one residual perceptron; an atom starts with those of its own slot."""

    def __init__(self, config: EScAIPConfig) -> None:
        super().__init__()
        self.attributes, self.norm_attributes = Attributes(config), RMSNorm(config.width)
        self.feedforward = FeedForward(config.width, 1)
        self.norm_atoms, self.norm_slots = RMSNorm(config.width), RMSNorm(config.width)

    def forward(self, x: Neighborhoods) -> tuple[Tensor, list[Tensor]]:
        senders, receivers = self.attributes.of_atoms(x)
        atoms, slots = [], []
        for block, sending in zip(x.blocks, x.by_block(gather(senders, x.senders)), strict=True):
            features = self.norm_attributes(self.attributes(block, sending, receivers[block.atoms]))
            features = features + self.feedforward(features)
            atoms.append(block.own(features))
            slots.append(self.norm_slots(features))
        return self.norm_atoms(torch.cat(atoms)), slots


class Layer(nn.Module):
    """Attention, then perceptrons, each added to the features of atoms and slots. The last one may leave the slots alone."""

    def __init__(self, config: EScAIPConfig, last: bool) -> None:
        super().__init__()
        self.stochastic_depth, self.last = config.stochastic_depth, last
        self.norm_atoms, self.norm_slots = RMSNorm(config.width), RMSNorm(config.width)
        self.attention = GraphAttention(config)
        self.norm_feedforward_atoms = RMSNorm(config.width)
        self.feedforward_atoms = FeedForward(config.width, config.feedforward)
        if not last:
            self.norm_feedforward_slots = RMSNorm(config.width)
            self.feedforward_slots = FeedForward(config.width, config.feedforward)

    def forward(
        self, x: Neighborhoods, atoms: Tensor, slots: list[Tensor], survival: tuple[Tensor, Tensor] | tuple[None, None]
    ) -> tuple[Tensor, list[Tensor]]:
        attended, fed = survival
        updates, after = [], []
        for block, features, messages in zip(x.blocks, slots, self.attention.of_atoms(x, self.norm_atoms(atoms)), strict=True):
            update = self.attention(block, self.norm_slots(features), messages, own=self.last)
            if self.last:
                updates.append(update)
                continue
            updates.append(block.own(update))
            features = features + _kept(update, attended, block)
            features = features + _kept(self.feedforward_slots(self.norm_feedforward_slots(features)), fed, block)
            after.append(features)
        update = torch.cat(updates)
        atoms = atoms + (update if attended is None else update * attended)
        update = self.feedforward_atoms(self.norm_feedforward_atoms(atoms))
        return atoms + (update if fed is None else update * fed), after

    def survival(self, x: Neighborhoods, atoms: Tensor) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """Stochastic depth: in training, the two updates of a structure are dropped now and then, and larger otherwise. [atoms, 1] each."""
        if not self.training or not self.stochastic_depth:
            return None, None
        keep = 1 - self.stochastic_depth
        attended, fed = (torch.bernoulli(atoms.new_full((2, int(x.system.max()) + 1, 1), keep)) / keep)[:, x.system]
        return attended, fed


class Messages(NamedTuple):
    """What atoms contribute to the messages of a block: to attributes and to pairs, as senders (by slot) and as receivers (by atom)."""

    attributes_senders: Float[Tensor, "slots width"]
    attributes_receivers: Float[Tensor, "atoms width"]
    pair_senders: Float[Tensor, "slots width"]
    pair_receivers: Float[Tensor, "atoms width"]


class GraphAttention(nn.Module):
    """A message per slot from attributes, slot and atoms; attention among the slots of each atom (the paper's Fig. 2)."""

    def __init__(self, config: EScAIPConfig) -> None:
        super().__init__()
        width = config.width
        self.heads, self.parts = config.heads, config.legendre
        # the published form repeats each number of a head 2l+1 times, pads to a multiple of 8 and scales as usual
        repeated = sum((2 * l + 1) * n for l, n in enumerate(config.legendre))
        self.scale = (8 * math.ceil(repeated / 8)) ** -0.5
        self.attributes, self.norm_attributes = Attributes(config), RMSNorm(width)
        self.slots = Linear(width, width)
        self.atoms = Linear(2 * width, width)  # of the sender and the receiver
        self.message = Linear(3 * width, width)  # of attributes, slot and atoms
        self.norm = RMSNorm(width)
        self.query_key_value, self.out = Linear(width, 3 * width), Linear(width, width)

    def of_atoms(self, x: Neighborhoods, atoms: Float[Tensor, "atoms width"]) -> list[Messages]:
        """What is done once per atom and not once per slot, for each block."""
        of_sender, of_receiver = self.atoms.weight.chunk(2, dim=1)
        senders, receivers = self.attributes.of_atoms(x)
        pair_senders, pair_receivers = linear(atoms, of_sender), linear(atoms, of_receiver, self.atoms.bias)
        sending = zip(*(x.by_block(gather(values, x.senders)) for values in (senders, pair_senders)), strict=True)
        return [
            Messages(attributes, receivers[block.atoms], pair, pair_receivers[block.atoms])
            for block, (attributes, pair) in zip(x.blocks, sending, strict=True)
        ]

    def forward(self, block: Block, slots: Float[Tensor, "slots width"], atoms: Messages, own: bool) -> Float[Tensor, "rows width"]:
        """Updates of all slots, or of the atoms alone where ``own``."""
        attributes = self.norm_attributes(self.attributes(block, atoms.attributes_senders, atoms.attributes_receivers))
        pair = gelu(block.over_slots(atoms.pair_senders, atoms.pair_receivers))
        # a concatenation would cost more than this: its second derivative fills and adds matrices of zeros
        of_attributes, of_slots, of_pair = self.message.weight.split(slots.shape[1], dim=1)
        message = linear(attributes, of_attributes, self.message.bias)
        message = linear(pair, of_pair, plus=linear(gelu(self.slots(slots)), of_slots, plus=message))
        message = self.norm(gelu(message))
        arguments = block.bias, block.groups, self.heads, self.parts, self.scale
        if not own:
            return self.out(neighbor_attention(self.query_key_value(message), block.legendre, *arguments))
        width = message.shape[1]
        weight, bias = self.query_key_value.weight, self.query_key_value.bias
        query = linear(block.own(message), weight[:width], bias[:width])
        return self.out(own_attention(query, linear(message, weight[width:], bias[width:]), *arguments))


class FeedForward(nn.Sequential):
    """Two linear layers with gelu between."""

    def __init__(self, width: int, multiple: int) -> None:
        super().__init__(Linear(width, multiple * width), nn.GELU(), Linear(multiple * width, width))


class Readout(nn.Module):
    """x + perceptron(norm(x)), taken before the first and after every block."""

    def __init__(self, config: Any) -> None:  # EScAIPConfig, or another with its fields
        super().__init__()
        self.norm, self.feedforward = RMSNorm(config.width), FeedForward(config.width, config.feedforward)

    def forward(self, x: Float[Tensor, "rows width"]) -> Float[Tensor, "rows width"]:
        return x + self.feedforward(self.norm(x))


class Projection(nn.Module):
    """All readouts, side by side, to one width."""

    def __init__(self, config: EScAIPConfig) -> None:
        super().__init__()
        self.linear, self.norm = Linear(config.width * (config.layers + 1), config.width), RMSNorm(config.width)

    def forward(self, readouts: Sequence[Float[Tensor, "rows width"]]) -> Float[Tensor, "rows width"]:
        return self.norm(gelu(self.linear(torch.cat(list(readouts), dim=1))))


class Output(nn.Module):
    """A perceptron and a last linear layer without bias, initialised by Glorot and Bengio's rule."""

    def __init__(self, config: EScAIPConfig, size: int) -> None:
        super().__init__()
        self.feedforward, self.last = FeedForward(config.width, config.feedforward), Linear(config.width, size, bias=False)
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


def neighborhood_indices(soft: SoftNeighbors, graph: AtomicGraph, group_cost: float) -> dict[str, Tensor]:
    """Which edges count, and the slots they get; ``edge`` [atoms, m] instead of groups if ``group_cost`` is infinite."""
    with torch.no_grad():
        distances = graph.displacements().norm(dim=-1)
        atoms = len(graph.numbers)
        reverse = reverse_edges(graph.senders, graph.receivers, graph.shifts, atoms)
        found = soft.indices(distances, graph.receivers, reverse, atoms)
        senders, receivers = graph.senders[found["kept"]], graph.receivers[found["kept"]]
        slots = slot_indices(senders, receivers, atoms, own=True, group_cost=group_cost)
        if group_cost == math.inf:
            (many, size), *_ = slots.pop("groups").tolist() or [[0, 1]]
            slots["edge"] = slots["edge"].reshape(many, size)
        return found | slots


def knots(config: Any) -> int:
    """Of tables over the distance: 16 to a width of the Gaussians, where splines are as exact as float32."""
    return 8 * (config.radial_basis - 1) + 1


def _kept(update: Float[Tensor, "slots width"], survival: Tensor | None, block: Block) -> Float[Tensor, "slots width"]:
    """The update of slots, or none of it, by atom."""
    if survival is None:
        return update
    parts = zip(by_group(update, block.groups), survival[block.atoms].split([many for many, _ in block.groups]), strict=True)
    return joined([(part * factor.unsqueeze(1)).flatten(0, 1) for part, factor in parts])


def gaussians(distance: Float[Tensor, " slots"], cutoff: float, size: int) -> Float[Tensor, "slots size"]:
    """exp(-(d - d_k)^2 / 2 w^2) for d_k from 0 to the cutoff, with w twice their spacing."""
    offsets = torch.linspace(0, cutoff, size, dtype=distance.dtype, device=distance.device)
    values = torch.exp(-0.5 * ((distance[:, None] - offsets) / (2 * cutoff / (size - 1))).square())
    return nn.functional.threshold(values, NOTHING, 0.0)
