"""DPA3: a network on the series of line graphs, up to bonds and angles (Zhang et al. 2025, arXiv:2506.01686; the form of deepmd-kit)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from equimol.data.graph import AtomicGraph
from equimol.models.base import ConfiguredPotential, Edges, chosen_data_set, data_set_indices, whole_numbers
from equimol.nn.groups import Groups, by_group, joined, slot_indices, slots_within
from equimol.ops import gather
from equimol.ops.silut import Tail, silut
from equimol.ops.tiles import tiles

LENGTH_SCALE = 0.3  # sigma, by which published models divide envelope / distance
NEARLY_ONE = 1 - 1e-6  # of cosines, whose inverse the published form once took
LEAST_THRESHOLD = 2.4  # where SiLU begins to bend down, which a smooth tail goes on with
TINY = 1e-6  # Å, added to lengths of directions
EXPONENTIAL_STEEPNESS = 20.0
GROUP_COST = 24.0  # empty slots that take as long as another group of atoms with equally many neighbours
ONE_GROUP = 1.25  # slots for each bond up to which one group is quicker than several, whose features are cut and joined in every layer


@dataclass(frozen=True)
class DPA3Config:
    """Settings of :class:`DPA3`; the defaults are those that published models share."""

    elements: tuple[int, ...]  # atomic numbers
    layers: int = 6
    width: int = 128  # of the features of atoms,
    bond_width: int = 64  # of bonds,
    angle_width: int = 32  # and of angles
    cutoff: float = 6.0  # Å, of bonds,
    cutoff_start: float | None = None  # where their envelope begins to fall; None: 0.7 Å before
    angle_cutoff: float | None = None  # Å, of bonds that form angles; None: 4, or the cutoff if that is shorter
    angle_cutoff_start: float | None = None  # None: 0.5 Å before
    neighbors: float = 120.0  # sums over neighbours are divided by it,
    angle_neighbors: float = 30.0  # and those over angles of a bond by its square root
    nearest: int | None = None  # published models of "static selection" see that many nearest neighbours, where energies jump; None: all
    angle_nearest: int | None = None
    smooth: bool = True  # envelopes exactly zero at the cutoff and two continuous derivatives everywhere. False: as published
    envelope: Literal["exponential", "polynomial"] = "exponential"  # of the published form
    threshold: float = 10.0  # where SiLU ends; inf: nowhere
    axis: int = 4  # features of the smaller side of the symmetrised products
    message_heads: int = 1
    update: Literal["residual", "average", "increment"] = "residual"
    sequential: bool = False  # angles, then bonds, then atoms; False: at once
    angles: bool = True
    bonds_without_angles: Literal["nothing", "themselves"] = "nothing"  # what stands for the sum over their angles; themselves: a jump
    compress: int = 1  # angles see 1/compress of their width of atoms; 0: all features of atoms and bonds
    compress_bonds: int = 2  # and compress_bonds / 2 compress of bonds
    compress_by: Literal["slice", "matrix"] = "slice"
    bonds_from: Literal["distance", "envelope"] = "distance"
    length_protection: float = 0.0  # Å
    concatenate_elements: bool = False  # features of elements beside those of the last layer
    element_bias: bool = False
    readout: tuple[int, ...] = (240, 240, 240)
    readout_steps: bool = True  # a trainable factor on each hidden number where widths agree
    data_sets: int = 0  # of which an encoding enters the readout
    data_set: int | None = None  # which one the model is for; None: every structure says to which it belongs
    charge_spin: bool = False

    def __post_init__(self) -> None:
        for field in ("layers", "width", "bond_width", "angle_width", "cutoff", "neighbors", "angle_neighbors", "axis"):
            if not getattr(self, field) > 0:
                raise ValueError(f"{field} must be positive, got {getattr(self, field)}")
        for field, default in (("cutoff_start", self.cutoff - 0.7), ("angle_cutoff", min(4.0, self.cutoff))):
            object.__setattr__(self, field, default if getattr(self, field) is None else float(getattr(self, field)))
        if self.angle_cutoff_start is None:
            object.__setattr__(self, "angle_cutoff_start", self.angle_cutoff - 0.5)
        if not 0 < self.angle_cutoff_start < self.angle_cutoff <= self.cutoff or not 0 < self.cutoff_start < self.cutoff:
            raise ValueError(
                "cutoffs must be 0 < cutoff_start < cutoff and 0 < angle_cutoff_start < angle_cutoff <= cutoff, got"
                f" {self.cutoff_start}, {self.cutoff}, {self.angle_cutoff_start}, {self.angle_cutoff}"
            )
        if self.compress < 0 or self.compress_bonds < 1 or (self.compress and self.angle_width % (2 * self.compress)):
            raise ValueError(f"compress must be 0 or a divisor of angle_width / 2 = {self.angle_width / 2:g}, got {self.compress}")
        if max(self.angle_atoms - self.width, self.angle_bonds - self.bond_width) > 0:
            raise ValueError(f"angles would see {self.angle_atoms} features of atoms and {self.angle_bonds} of bonds, which are fewer")
        if self.smooth and not self.threshold > LEAST_THRESHOLD:
            raise ValueError(f"threshold must be above {LEAST_THRESHOLD} where smooth, got {self.threshold}")
        object.__setattr__(self, "elements", tuple(sorted(int(z) for z in self.elements)))
        if not self.elements or not all(0 < z < 119 for z in self.elements):
            raise ValueError(f"elements must be atomic numbers 1..118, at least one, got {self.elements}")
        if self.data_set is not None and not 0 <= self.data_set < self.data_sets:
            raise ValueError(f"data_set must be one of the {self.data_sets} data sets, from 0, got {self.data_set}")
        object.__setattr__(self, "readout", tuple(int(n) for n in self.readout))

    @property
    def tail(self) -> Tail:
        """Of the activation."""
        return Tail(self.threshold, self.smooth)

    @property
    def angle_atoms(self) -> int:
        """How many features of atoms angles see."""
        return self.angle_width // self.compress if self.compress else self.width

    @property
    def angle_bonds(self) -> int:
        """How many features of each of their bonds angles see."""
        return self.angle_width // (2 * self.compress) * self.compress_bonds if self.compress else self.bond_width


PRESETS: dict[str, dict] = {
    "tiny": {"layers": 2, "width": 16, "bond_width": 8, "angle_width": 8, "readout": (24, 24, 24)},
    "nano": {"layers": 3, "width": 64, "bond_width": 32, "angle_width": 16, "readout": (120, 120, 120)},
    "small": {"layers": 3},
    "medium": {"layers": 6},
    "L3": {"layers": 3},
    "L6": {"layers": 6},
    "L12": {"layers": 12},
    "L24": {"layers": 24},
    "3.1-3M": {"layers": 16, "data_sets": 31, "threshold": 3.0},
    "3.2-5M": {"layers": 24, "data_sets": 25, "threshold": 3.0},  # by its number of parameters
}
CHARGES, SPINS = (-100, 100), (0, 100)


class LineGraph(NamedTuple):
    """Bonds and angles of a structure. Bonds are the slots of atoms, angles the pairs of angle slots; see `slot_indices`."""

    place: Int[Tensor, " atoms"]  # where each atom of the graph stands among the atoms as their bonds stand, the order of all features
    groups: Groups  # of bonds
    senders: Int[Tensor, " bonds"]
    lengths: Float[Tensor, "bonds 1"]
    weights: Float[Tensor, "bonds 1"]  # the envelope, zero of empty slots
    vectors: Float[Tensor, "bonds 3"]  # envelope * d / r^2 / sigma
    angle_groups: Groups
    angle_bonds: Int[Tensor, " slots"]  # the bond of each angle slot
    angle_atoms: Int[Tensor, " atoms"]  # the atom of each, as angle slots stand
    angle_of_bond: Int[Tensor, " bonds"]  # the angle slot of a bond plus one; 0: none
    angle_weights: Float[Tensor, "slots 1"]
    cosines: list[Float[Tensor, "atoms m m"]]  # by group


class DPA3(ConfiguredPotential):
    """Energies of order one from a graph. Not yet total energies: wrap it in ``Shifted`` (``build_model`` does)."""

    name = "dpa3"
    traceable = True

    def __init__(self, config: DPA3Config) -> None:
        super().__init__()
        self.config, self.elements = config, config.elements
        self.cutoff, self.hops = config.cutoff, config.layers
        self.inputs = ("charge", "spin") * config.charge_spin + ("data_set",) * (config.data_sets > 0 and config.data_set is None)
        table = torch.full((119,), -1)
        table[list(config.elements)] = torch.arange(len(config.elements))
        self.register_buffer("species_of", table, persistent=False)
        self.element = Table(len(config.elements), config.width, config.element_bias)
        if config.charge_spin:
            self.charge, self.spin = (Table(high - low, config.width, config.element_bias) for low, high in (CHARGES, SPINS))
            self.charge_spin = Dense(2 * config.width, config.width)
        self.bond, self.angle = Dense(1, config.bond_width), Dense(1, config.angle_width, bias=False)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        widths = [config.width * (1 + config.concatenate_elements) + config.data_sets, *config.readout]
        self.readout = nn.ModuleList(Hidden(config, a, b) for a, b in pairwise(widths))
        self.energy = Dense(widths[-1], 1)

    size_names = ("neighbors", "angle_neighbors")

    def indices(self, graph: AtomicGraph, uniform: bool = False) -> dict[str, Tensor]:
        return line_graph_indices(self.config, graph, uniform) | system_inputs(self.config, graph)

    def indices_within(self, edges, sizes):
        found, needed = line_graph_within(self.config, edges, *sizes)
        return found | chosen_data_set(self.config, edges.senders), needed

    def atomic_energies(self, displacements, numbers, senders, receivers, indices, system):
        graph = line_graph(self.config, displacements, indices, self.bond.weight.dtype)
        elements = self.element(self.species_of[numbers][indices["order"]])
        if self.config.charge_spin:
            both = torch.cat([self.charge(indices["charge"] - CHARGES[0]), self.spin(indices["spin"] - SPINS[0])], 1)
            elements = elements + self.act(self.charge_spin(both))[system][indices["order"]]
        atoms = self.act(elements)
        if self.config.bonds_from == "distance":
            bonds = self.bond(graph.lengths)
        else:
            bonds = self.act(self.bond(graph.weights / (graph.lengths + self.config.length_protection) / LENGTH_SCALE))
        angles = [self.angle((cosine / math.sqrt(math.pi)).unsqueeze(-1)) for cosine in graph.cosines]
        for n, layer in enumerate(self.layers, start=1):
            atoms, bonds, angles = layer(graph, atoms, bonds, angles, left=len(self.layers) - n)
        atoms = gather(atoms, graph.place)
        parts = [atoms, gather(elements, graph.place)] if self.config.concatenate_elements else [atoms]
        if self.config.data_sets:
            parts.append(nn.functional.one_hot(indices["data_set"], self.config.data_sets).to(atoms.dtype)[system])
        x = torch.cat(parts, 1)
        for hidden in self.readout:
            x = hidden(x)
        return self.energy(x)[:, 0], atoms

    def act(self, x: Tensor) -> Tensor:
        return silut(x, self.config.tail)


class Layer(nn.Module):
    """Updates of atoms by their bonds, of bonds by their angles, of angles (the paper's RepFlow), all from the same features or in turn."""

    def __init__(self, config: DPA3Config) -> None:
        super().__init__()
        self.config = config
        atom, bond, angle = config.width, config.bond_width, config.angle_width
        self.atom_self, self.symmetric = Dense(atom, atom), Dense(config.axis * (bond + atom), atom)
        self.message = Dense(2 * atom + bond, config.message_heads * atom)  # of receiver, sender, bond
        self.bond_self = Dense(2 * atom + bond, bond)
        if config.angles:
            into = angle + config.angle_atoms + 2 * config.angle_bonds  # of angle, atom, second and first bond
            self.angle_message, self.angle_bond, self.angle_self = Dense(into, bond), Dense(bond, bond), Dense(into, angle)
            if config.compress and config.compress_by == "matrix":
                self.compress_atoms = Dense(atom, config.angle_atoms, bias=False)
                self.compress_bonds = Dense(bond, config.angle_bonds, bias=False)
        self.atom_update = Update(config, atom, 2 + config.message_heads)
        self.bond_update, self.angle_update = Update(config, bond, 1 + config.angles), Update(config, angle, 1) if config.angles else None

    def forward(
        self,
        graph: LineGraph,
        atoms: Float[Tensor, "atoms width"],
        bonds: Float[Tensor, "bonds bond_width"],
        angles: list[Tensor],
        left: int,
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Features after this layer. With ``left`` layers to come, what none of them needs is not computed but given back as it came."""
        if self.config.sequential:
            (_, of_self) = self.from_bonds(graph, atoms, bonds, for_atoms=False, for_bonds=True)
            bonds = self.bond_update(bonds, [of_self])
            if self.config.angles:
                _, angles = self.from_angles(graph, atoms, bonds, angles, for_bonds=False, for_angles=True)
                of_angles, _ = self.from_angles(graph, atoms, bonds, angles, for_bonds=True, for_angles=False)
                bonds = self.bond_update(bonds, [of_angles], first=1)
            atoms, _ = self.from_bonds(graph, atoms, bonds, for_atoms=True, for_bonds=False)
            return atoms, bonds, angles
        new_atoms, of_self = self.from_bonds(graph, atoms, bonds, for_atoms=True, for_bonds=left > 0)
        if not left:
            return new_atoms, bonds, angles
        updates = [of_self]
        if self.config.angles:
            of_angles, angles = self.from_angles(graph, atoms, bonds, angles, for_bonds=True, for_angles=left > 1)
            updates.append(of_angles)
        return new_atoms, self.bond_update(bonds, updates), angles

    def from_bonds(
        self, graph: LineGraph, atoms: Tensor, bonds: Tensor, for_atoms: bool, for_bonds: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """The atoms, updated, and what bonds contribute to themselves, each if it is wanted."""
        config = self.config
        wanted = [layer for layer, want in ((self.message, for_atoms), (self.bond_self, for_bonds)) if want]
        weight, bias = torch.cat([layer.weight for layer in wanted]), torch.cat([layer.bias for layer in wanted])
        of_receiver, of_sender, of_bond = weight.split([config.width, config.width, config.bond_width], 1)
        receiving = by_atom(torch.addmm(bias, atoms, of_receiver.T), graph.groups)
        messages = self.message.out_features if for_atoms else 0
        parts = (by_group(x, graph.groups) for x in (bonds, gather(atoms @ of_sender.T, graph.senders), graph.weights))
        found = [  # tiles of one row
            tiles(bond.unsqueeze(1), mine, sending, of_bond, torch.ones_like(weights[:, 0]), weights[..., 0], messages, config.tail)
            for mine, bond, sending, weights in zip(receiving, *parts, strict=True)
        ]
        of_self = joined([update.flatten(0, 2) for _, update in found]) if for_bonds else None
        if not for_atoms:
            return None, of_self
        vectors = by_group(graph.vectors * graph.weights, graph.groups)
        updates = [self.act(self.atom_self(atoms)), self.act(self.symmetric(self._symmetrized(graph, atoms, bonds, vectors)))]
        message = joined([message[:, 0] for message, _ in found])
        updates += (message / config.neighbors).split(config.width, 1)
        return self.atom_update(atoms, updates), of_self

    def _symmetrized(self, graph: LineGraph, atoms: Tensor, bonds: Tensor, vectors: list[Tensor]) -> Float[Tensor, "atoms width"]:
        """Scalar products of sums of vectors, of the bonds' features and of those of the neighbours: first ``axis`` times all."""
        found = []
        for features in (bonds, gather(atoms, graph.senders)):
            frames = joined([torch.matmul(v.mT, x) for v, x in zip(vectors, by_group(features, graph.groups), strict=True)])
            found.append(torch.matmul(frames[..., : self.config.axis].mT, frames).flatten(1))
        return torch.cat(found, 1) / (3 * self.config.neighbors)

    def from_angles(
        self, graph: LineGraph, atoms: Tensor, bonds: Tensor, angles: list[Tensor], for_bonds: bool, for_angles: bool
    ) -> tuple[Tensor | None, list[Tensor]]:
        """What angles contribute to bonds, and the angles, updated, each if it is wanted."""
        config = self.config
        wanted = [layer for layer, want in ((self.angle_message, for_bonds), (self.angle_self, for_angles)) if want]
        weight, bias = torch.cat([layer.weight for layer in wanted]), torch.cat([layer.bias for layer in wanted])
        of_angle, of_atom, of_second, of_first = weight.split([config.angle_width, config.angle_atoms, *[config.angle_bonds] * 2], 1)
        if config.compress and config.compress_by == "matrix":
            seen_atoms, seen_bonds = self.compress_atoms(atoms), self.compress_bonds(bonds)
        else:
            seen_atoms, seen_bonds = atoms[:, : config.angle_atoms], bonds[:, : config.angle_bonds]
        sides = gather(seen_bonds, graph.angle_bonds)
        centers = by_atom(torch.addmm(bias, gather(seen_atoms, graph.angle_atoms), of_atom.T), graph.angle_groups)
        parts = (by_group(x, graph.angle_groups) for x in (sides @ of_first.T, sides @ of_second.T, graph.angle_weights))
        messages, sums, after = self.angle_message.out_features if for_bonds else 0, [], []
        for angle, center, first, second, weights in zip(angles, centers, *parts, strict=True):
            message, update = tiles(angle, first + center, second, of_angle, weights[..., 0], weights[..., 0], messages, config.tail)
            sums.append(message.flatten(0, 1))
            after.append(self.angle_update(angle, [update]) if for_angles else angle)
        if not for_bonds:
            return None, after
        sums = joined(sums) / math.sqrt(config.angle_neighbors)
        if config.bonds_without_angles == "nothing":  # the same for all of them
            found = torch.cat([self.act(self.angle_bond.bias)[None], self.act(self.angle_bond(sums))])
            return gather(found, graph.angle_of_bond), after
        sums = gather(torch.cat([sums[:1], sums]), graph.angle_of_bond)
        return self.act(self.angle_bond(torch.where(graph.angle_of_bond[:, None] > 0, sums, bonds))), after

    def act(self, x: Tensor) -> Tensor:
        return silut(x, self.config.tail)


def by_atom(x: Float[Tensor, "atoms width"], groups: Groups) -> list[Tensor]:
    """Rows of atoms, cut as their groups: [n, 1, width], to be added to all slots of an atom."""
    return [part.unsqueeze(1) for part in x.split([many for many, _ in groups])]


class Update(nn.Module):
    """Adds updates to features: each times a trainable number per channel (residual), or in fixed shares."""

    def __init__(self, config: DPA3Config, width: int, updates: int) -> None:
        super().__init__()
        self.kind = config.update
        self.steps = nn.ParameterList(nn.Parameter(torch.full((width,), 0.1)) for _ in range(updates * (config.update == "residual")))

    def forward(
        self, x: Float[Tensor, "... width"], updates: Sequence[Float[Tensor, "... width"]], first: int = 0
    ) -> Float[Tensor, "... width"]:
        """``first`` is the number of updates that were added before."""
        if self.kind == "residual":
            for step, update in zip(list(self.steps)[first:], updates, strict=False):
                x = torch.addcmul(x, step, update)
            return x
        if self.kind == "average":
            return sum(updates, x) / math.sqrt(len(updates) + 1)
        return x + sum(updates) / math.sqrt(len(updates))


class Dense(nn.Linear):
    """A linear layer that begins as in deepmd-kit: weights of variance 1 / (in + out), biases of variance one."""

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=(self.in_features + self.out_features) ** -0.5)
        if self.bias is not None:
            nn.init.normal_(self.bias)

    def forward(self, x: Float[Tensor, "... n"]) -> Float[Tensor, "... out"]:
        if self.in_features > 1:
            return super().forward(x)
        y = x * self.weight[:, 0]  # a matrix product of few numbers would be another program for PyTorch's compiler
        return y if self.bias is None else y + self.bias


class Table(nn.Module):
    """A row of numbers per element, charge or spin."""

    def __init__(self, rows: int, width: int, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(rows, width) * (rows + width) ** -0.5)
        self.bias = nn.Parameter(torch.randn(width)) if bias else None

    def forward(self, index: Int[Tensor, " n"]) -> Float[Tensor, "n width"]:
        found = gather(self.weight, index)
        return found if self.bias is None else found + self.bias


class Hidden(nn.Module):
    """A hidden layer of the readout, added to its input where widths agree, or twice beside itself where they double."""

    def __init__(self, config: DPA3Config, width: int, out: int) -> None:
        super().__init__()
        self.config, self.linear = config, Dense(width, out)
        self.copies = out // width if out in (width, 2 * width) else 0
        self.step = nn.Parameter(0.1 + 0.001 * torch.randn(out)) if self.copies and config.readout_steps else None

    def forward(self, x: Float[Tensor, "atoms width"]) -> Float[Tensor, "atoms out"]:
        y = silut(self.linear(x), self.config.tail)
        y = y if self.step is None else y * self.step
        return y + torch.cat([x] * self.copies, 1) if self.copies else y


def line_graph_indices(config: DPA3Config, graph: AtomicGraph, uniform: bool = False) -> dict[str, Tensor]:
    """Which edges are bonds, which bonds form angles, and the slots they get: [atoms, m] of them instead of groups if ``uniform``."""
    with torch.no_grad():
        atoms, lengths = len(graph.numbers), graph.displacements().norm(dim=-1)
        kept = torch.nonzero(_nearest(lengths, graph.receivers, config.nearest, atoms) & (lengths < config.cutoff)).flatten()
        senders, receivers, lengths = graph.senders[kept], graph.receivers[kept], lengths[kept]
        most = int(torch.bincount(receivers).max()) if len(receivers) else 0
        group_cost = math.inf if uniform or atoms * most <= ONE_GROUP * len(receivers) else GROUP_COST
        bonds = slot_indices(senders, receivers, atoms, own=False, group_cost=group_cost)
        of_edge = torch.zeros(len(kept) + 2, dtype=torch.long, device=kept.device)
        of_edge[bonds["edge"]] = torch.arange(len(bonds["edge"]), device=kept.device)
        close = _nearest(lengths, receivers, config.angle_nearest, atoms) & (lengths < config.angle_cutoff)
        close = torch.nonzero(close).flatten()
        angles = slot_indices(senders[close], receivers[close], atoms, own=False, group_cost=math.inf if uniform else GROUP_COST)
        taken = torch.nonzero((angles["edge"] > 0) & (angles["edge"] <= len(close))).flatten()  # the others count nothing
        angle_bonds = torch.zeros_like(angles["edge"])
        angle_bonds[taken] = of_edge[close[angles["edge"][taken] - 1] + 1]
        angle_of_bond = torch.zeros_like(bonds["edge"])
        angle_of_bond[angle_bonds[taken]] = taken + 1
        if uniform:
            for slots in (bonds, angles):
                (many, size), *_ = slots.pop("groups").tolist() or [[0, 1]]
                slots["edge"] = slots["edge"].reshape(many, size)
        return {
            **{name: bonds[name] for name in ("edge", "order", "place", "groups") if name in bonds},
            "kept": kept,
            "sender": bonds["place"][bonds["sender"]],
            "close": close,
            **{f"angle_{name}": angles[name] for name in ("edge", "groups") if name in angles},
            "angle_bonds": angle_bonds,
            "angle_atoms": bonds["place"][angles["order"]],
            "angle_of_bond": angle_of_bond,
        }


def line_graph_within(config: DPA3Config, edges: Edges, neighbors: int, angle_neighbors: int) -> tuple[dict[str, Tensor], list[Tensor]]:
    """`line_graph_indices` of sizes that are given; see ``ConservativePotential.indices_within``."""
    with torch.no_grad():
        lengths, (_, senders, receivers, _, atoms) = edges.displacements.norm(dim=-1), edges
        taken = _nearest(lengths, receivers, config.nearest, atoms) & (lengths < config.cutoff)
        bonds, enough = slots_within(senders, receivers, taken, atoms, neighbors, own=False)
        close = taken & (lengths < config.angle_cutoff)
        close &= _nearest(torch.where(taken, lengths, math.inf), receivers, config.angle_nearest, atoms)
        angles, enough_angles = slots_within(senders, receivers, close, atoms, angle_neighbors, own=False)
        bond, angle = bonds.pop("slot"), angles.pop("slot")
        nothing, everything = bond.new_zeros(1), torch.arange(senders.shape[0], device=senders.device)
        angle_bonds = nothing.expand(atoms * angle_neighbors + 1).scatter(0, angle, bond.clamp(max=atoms * neighbors - 1))
        number = torch.where(angle < atoms * angle_neighbors, angle + 1, 0)
        angle_of_bond = nothing.expand(atoms * neighbors + 1).scatter(0, bond, number)
        found = bonds | {
            "kept": everything,
            "close": everything.clone(),
            "angle_edge": angles["edge"],
            "angle_bonds": angle_bonds[:-1],
            "angle_atoms": angles["order"],
            "angle_of_bond": angle_of_bond[:-1],
        }
        return found, [enough, enough_angles]


def _nearest(lengths: Float[Tensor, " edges"], receivers: Int[Tensor, " edges"], number: int | None, atoms: int) -> Tensor:
    """Whether each edge is one of the shortest of its receiver."""
    if number is None:
        return torch.ones_like(receivers, dtype=torch.bool)
    order = torch.argsort(lengths, stable=True)
    order = order[torch.argsort(receivers[order], stable=True)]
    ones = torch.ones_like(receivers)
    counts = ones.new_zeros(atoms).scatter_add(0, receivers, ones)
    place = torch.arange(order.shape[0], device=order.device) - (torch.cumsum(counts, 0) - counts)[receivers[order]]
    return torch.empty_like(order).scatter(0, order, place) < number


def system_inputs(config: DPA3Config, graph: AtomicGraph) -> dict[str, Tensor]:
    """Charges, spins and data sets as whole numbers. Raises ValueError where they are out of range."""
    ranges = {"charge": CHARGES, "spin": SPINS} if config.charge_spin else {}
    return {name: whole_numbers(graph, name, *limits) for name, limits in ranges.items()} | data_set_indices(config, graph)


def line_graph(config: DPA3Config, displacements: Float[Tensor, "edges 3"], indices: dict[str, Tensor], dtype: torch.dtype) -> LineGraph:
    """Geometry in the precision of the displacements, results in that of the weights."""
    edge, angle_edge = indices["edge"], indices["angle_edge"]
    if "groups" in indices:
        groups, angle_groups = indices["groups"].tolist(), indices["angle_groups"].tolist()
    else:
        groups, angle_groups = [list(edge.shape)], [list(angle_edge.shape)]
    vectors = displacements[indices["kept"]]
    lengths = vectors.norm(dim=-1, keepdim=True)

    def of_slots(values: Tensor, edge: Tensor, otherwise: float = 0.0) -> Tensor:
        one = values.new_full((1, values.shape[1]), otherwise)
        return gather(torch.cat([one, values, one]), edge.flatten())

    weights = envelope(config, lengths, config.cutoff_start, config.cutoff)
    along = weights * vectors / (lengths + config.length_protection).square() / LENGTH_SCALE
    close = indices["close"]
    directions = of_slots(vectors[close] / (lengths[close] + TINY), angle_edge)
    angle_weights = of_slots(envelope(config, lengths[close], config.angle_cutoff_start, config.angle_cutoff), angle_edge)
    cosines = [NEARLY_ONE * torch.matmul(u, u.mT) for u in by_group(directions, angle_groups)] if config.angles else []
    return LineGraph(
        indices["place"],
        groups,
        indices["sender"],
        of_slots(lengths, edge, 1.0).to(dtype),
        of_slots(weights, edge).to(dtype),
        of_slots(along, edge).to(dtype),
        angle_groups,
        indices["angle_bonds"],
        indices["angle_atoms"],
        indices["angle_of_bond"],
        angle_weights.to(dtype),
        [cosine.to(dtype) for cosine in cosines],
    )


def envelope(config: DPA3Config, lengths: Float[Tensor, "n 1"], start: float, end: float) -> Float[Tensor, "n 1"]:
    """1 below ``start``, falling to 0 at ``end``: exactly, with two continuous derivatives, or as published to 1e-7 or so."""
    if config.smooth or config.envelope == "polynomial":
        u = ((lengths - start) / (end - start)).clamp(0, 1)
        return 1 + u**3 * (-6 * u * u + 15 * u - 10)
    return torch.exp(-torch.exp(EXPONENTIAL_STEEPNESS * (lengths - start) / start))
