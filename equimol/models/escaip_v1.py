"""EScAIP as the paper had it (Qu and Krishnapriyan 2024, arXiv:2410.24169, "V1"): for its weights.

New models are better off with escaip.py. A fixed number of nearest neighbours, all counting alike: energies jump whenever the set of
neighbours changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from equimol.data.graph import AtomicGraph
from equimol.models.base import Configured, ConfiguredPotential, DirectPotential
from equimol.models.escaip import Attributes, FeedForward, Readout, gaussians
from equimol.nn.groups import by_group, slot_indices
from equimol.nn.neighbor_attention import neighbor_attention
from equimol.o3 import spherical_harmonics
from equimol.ops import gather, scatter_sum


@dataclass(frozen=True)
class EScAIPV1Config:
    """Settings of :class:`EScAIPV1`."""

    elements: tuple[int, ...]  # atomic numbers
    cutoff: float = 12.0  # Å
    neighbors: int = 20  # the nearest, and no others
    width: int = 512
    layers: int = 10
    heads: int = 8
    radial_basis: int = 600
    radial_width: int = 512
    element_width: int = 128
    order_lmax: int = 9
    order_width: int = 64
    feedforward: int = 2
    angles: bool = True  # a learnt multiple of the cosine between neighbours in the logits
    energy: str = "mean"  # or "sum": of the outputs of atoms
    offset: float = 0.0  # added to the energy of a structure, whatever its size
    stress: bool = False  # predicted, where forces are

    def __post_init__(self) -> None:
        if self.energy not in ("mean", "sum"):
            raise ValueError(f"energy must be mean or sum, got {self.energy!r}")
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads, got {self.width} and {self.heads}")
        object.__setattr__(self, "elements", tuple(sorted(int(z) for z in self.elements)))


class NeighborhoodsV1(NamedTuple):
    """What all layers need to know of a structure: slots are the nearest neighbours of each atom, see `slot_indices`."""

    species: Int[Tensor, " atoms"]
    orders: Float[Tensor, "atoms degrees"]  # bond-orientational
    radial: Float[Tensor, "slots radial"]
    directions: Float[Tensor, "slots 3"]
    cosines: list[Float[Tensor, "atoms m m"]]  # by group
    senders: Int[Tensor, " slots"]
    receivers: Int[Tensor, " slots"]
    place: Int[Tensor, " atoms"]  # each atom's number in the order of the slots
    groups: list[list[int]]
    system: Int[Tensor, " atoms"]


class EScAIPV1(ConfiguredPotential):
    """Energy of the paper's model, forces its slope. With energy="mean" it is no sum over atoms and does not grow with the system."""

    name = "escaip_v1"

    def __init__(self, config: EScAIPV1Config) -> None:
        super().__init__()
        if config.stress:
            raise ValueError("stress must be False where forces are derivatives, as stress then is; EScAIPV1Direct predicts both")
        self.config, self.elements, self.cutoff, self.hops = config, config.elements, config.cutoff, config.layers + 1
        self.backbone = BackboneV1(config, edges=False)
        self.energy = OutputV1(config, 1)

    def indices(self, graph: AtomicGraph, uniform: bool = False) -> dict[str, Tensor]:
        return nearest_indices(self.config, graph)

    def atomic_energies(self, displacements, numbers, senders, receivers, indices, system):
        x = self.backbone.neighborhoods(displacements, numbers, receivers, indices, system)
        atoms, _ = self.backbone(x)
        return shares(self.config, self.energy(atoms)[:, 0], system), atoms


class EScAIPV1Direct(Configured, DirectPotential):
    """Energy, predicted forces and, where the settings ask for it, stress of the paper's model; the forces are not equivariant."""

    name = "escaip_v1_direct"

    def __init__(self, config: EScAIPV1Config) -> None:
        super().__init__()
        self.config, self.elements, self.cutoff, self.hops = config, config.elements, config.cutoff, config.layers + 1
        self.backbone = BackboneV1(config, edges=True)
        self.energy, self.force_magnitude, self.force_direction = (OutputV1(config, size) for size in (1, 1, 3))
        if config.stress:
            self.outputs = (*self.outputs, "stress")
            self.stress_isotropic, self.stress_anisotropic = (OutputV1(config, 1) for _ in range(2))

    def indices(self, graph: AtomicGraph, uniform: bool = False) -> dict[str, Tensor]:
        return nearest_indices(self.config, graph)

    def atomic_outputs(self, displacements, numbers, senders, receivers, indices, system):
        x = self.backbone.neighborhoods(displacements, numbers, receivers, indices, system)
        atoms, slots = self.backbone(x)
        forces = scatter_sum(self.force_direction(slots) * -x.directions, x.receivers, len(numbers))  # published: towards the receiver
        energies, forces = shares(self.config, self.energy(atoms)[:, 0], system), forces * self.force_magnitude(atoms)
        return (energies, forces, self._stress(x, atoms, slots)) if self.config.stress else (energies, forces)

    def _stress(self, x: NeighborhoodsV1, atoms: Tensor, slots: Tensor) -> Float[Tensor, "systems 3 3"]:
        """A multiple of the unit matrix, and five of traceless ones whose factors come from moments of the slots' directions."""
        harmonics = spherical_harmonics(x.directions, 2, "integral")[:, 4:]
        moments = mean_of_slots((harmonics[:, :, None] * slots[:, None]).flatten(1), x).unflatten(1, (5, -1))
        factors = torch.cat([self.stress_isotropic(atoms), self.stress_anisotropic(moments)[..., 0]], 1)
        count = torch.bincount(x.system)
        mean = scatter_sum(factors, x.system, len(count)) / count[:, None]
        return torch.einsum("sm,mab->sab", mean, _symmetric_matrices(mean))


class BackboneV1(nn.Module):
    """Features of atoms, and of their neighbours where ``edges`` asks for them."""

    def __init__(self, config: EScAIPV1Config, edges: bool) -> None:
        super().__init__()
        self.config, self.edges = config, edges
        table = torch.full((119,), -1)
        table[list(config.elements)] = torch.arange(len(config.elements))
        self.register_buffer("species_of", table, persistent=False)
        width = config.width
        self.attributes, self.norm_input = Attributes(config), nn.RMSNorm(width)
        self.feedforward = FeedForward(width, 1)
        self.norm_atoms = nn.RMSNorm(width)
        self.blocks = nn.ModuleList(BlockV1(config, edges) for _ in range(config.layers))
        self.readouts = nn.ModuleList(Readout(config) for _ in range(config.layers + 1))
        self.projection = ProjectionV1(config)
        if edges:
            self.norm_slots = nn.RMSNorm(width)
            self.edge_readouts = nn.ModuleList(Readout(config) for _ in range(config.layers + 1))
            self.edge_projection = ProjectionV1(config)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: NeighborhoodsV1) -> tuple[Tensor, Tensor | None]:
        slots = attributes_of_slots(self.attributes, x)
        slots = slots + self.feedforward(self.norm_input(slots))
        atoms = self.norm_atoms(mean_of_slots(slots, x))
        slots = self.norm_slots(slots) if self.edges else None
        of_atoms, of_slots = [self.readouts[0](atoms)], [self.edge_readouts[0](slots)] if self.edges else []
        for n, block in enumerate(self.blocks, start=1):
            atoms, slots = block(x, atoms, slots)
            of_atoms.append(self.readouts[n](atoms))
            if self.edges:
                of_slots.append(self.edge_readouts[n](slots))
        return self.projection(of_atoms), self.edge_projection(of_slots) if self.edges else None

    def neighborhoods(self, displacements, numbers, receivers, indices, system) -> NeighborhoodsV1:
        """Slots of the nearest neighbours; an atom without any is its own, in direction x and at no distance."""
        config, dtype, atoms = self.config, self.attributes.mix.weight.dtype, len(numbers)
        kept = indices["kept"]
        vectors = displacements[kept]
        distances = vectors.norm(dim=-1)
        harmonics = spherical_harmonics(vectors, config.order_lmax)  # component-normalised
        count = torch.bincount(receivers[kept], minlength=atoms).clamp(min=1)
        mean = scatter_sum(harmonics, receivers[kept], atoms) / count[:, None]
        squares = torch.stack([part.square().sum(1) for part in mean.split([2 * l + 1 for l in range(config.order_lmax + 1)], 1)], 1)
        orders = torch.where(squares > 0, torch.where(squares > 0, squares, 1.0).sqrt(), 0.0)

        def of_slots(values: Tensor, own: Tensor) -> Tensor:
            return torch.cat([own[None], values])[indices["edge"]].to(dtype)

        radial = gaussians(distances.to(dtype), config.cutoff, config.radial_basis)
        groups = indices["groups"].tolist()
        directions = of_slots(vectors / distances[:, None], vectors.new_tensor([-1.0, 0, 0]))
        return NeighborhoodsV1(
            self.species_of[numbers],
            orders.to(dtype),
            of_slots(radial, radial.new_zeros(config.radial_basis)),
            directions,
            [d @ d.mT for d in by_group(directions, groups)],
            indices["sender"],
            indices["receiver"],
            indices["place"],
            groups,
            system,
        )


class BlockV1(nn.Module):
    """Attention on messages of attributes and atoms; the slots take its output but are not asked for theirs."""

    def __init__(self, config: EScAIPV1Config, edges: bool) -> None:
        super().__init__()
        width = config.width
        self.config, self.edges = config, edges
        self.norm, self.norm_feedforward = nn.RMSNorm(width), nn.RMSNorm(width)
        self.attributes, self.atoms, self.message = Attributes(config), nn.Linear(2 * width, width), nn.Linear(2 * width, width)
        self.query_key_value, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        if config.angles:
            self.angle = nn.Parameter(torch.ones(()))
        self.feedforward = FeedForward(width, config.feedforward)
        if edges:
            self.norm_feedforward_slots, self.feedforward_slots = nn.RMSNorm(width), FeedForward(width, config.feedforward)

    def forward(self, x: NeighborhoodsV1, atoms: Tensor, slots: Tensor | None) -> tuple[Tensor, Tensor | None]:
        hidden = self.norm(atoms)
        of_sender, of_receiver = self.atoms.weight.chunk(2, dim=1)
        pair = gather(hidden @ of_sender.T, x.senders) + gather(torch.addmm(self.atoms.bias, hidden, of_receiver.T), x.receivers)
        message = nn.functional.gelu(self.message(torch.cat([attributes_of_slots(self.attributes, x), nn.functional.gelu(pair)], dim=1)))
        config = self.config
        part = config.width // config.heads
        bias = [cosines * self.angle if config.angles else torch.zeros_like(cosines) for cosines in x.cosines]
        mixed = neighbor_attention(self.query_key_value(message), [None] * len(bias), bias, x.groups, config.heads, (part,), part**-0.5)
        update = self.out(mixed)
        atoms = atoms + mean_of_slots(update, x)
        atoms_after = atoms + self.feedforward(self.norm_feedforward(atoms))
        if not self.edges:
            return atoms_after, None
        slots = slots + update
        return atoms_after, slots + self.feedforward_slots(self.norm_feedforward_slots(slots))


class ProjectionV1(nn.Module):
    """All readouts, side by side and normalised together, to one width."""

    def __init__(self, config: EScAIPV1Config) -> None:
        super().__init__()
        together = config.width * (config.layers + 1)
        self.norm_readouts, self.linear, self.norm = nn.RMSNorm(together), nn.Linear(together, config.width), nn.RMSNorm(config.width)

    def forward(self, readouts: list[Float[Tensor, "rows width"]]) -> Float[Tensor, "rows width"]:
        return self.norm(nn.functional.gelu(self.linear(self.norm_readouts(torch.cat(readouts, dim=1)))))


class OutputV1(nn.Module):
    """x + perceptron(x), then a linear layer without bias."""

    def __init__(self, config: EScAIPV1Config, size: int) -> None:
        super().__init__()
        self.feedforward, self.last = FeedForward(config.width, config.feedforward), nn.Linear(config.width, size, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, gain=0.01 if size == 1 else 1.0)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Float[Tensor, "... width"]) -> Float[Tensor, "... size"]:
        return self.last(x + self.feedforward(x))


def attributes_of_slots(layer: Attributes, x: NeighborhoodsV1) -> Float[Tensor, "slots width"]:
    """What is known of each slot before any message. A linear layer of a concatenation is a sum of linear layers, most of them of atoms."""
    of_distance, of_atoms = layer.mix.weight.split([layer.distance.out_features, layer.mix.in_features - layer.distance.out_features], 1)
    of_sender, of_receiver = of_atoms.chunk(2, dim=1)
    senders = torch.cat([nn.functional.gelu(layer.sender_order(x.orders)), gather(layer.sender_element, x.species)], 1) @ of_sender.T
    receivers = (
        torch.cat([nn.functional.gelu(layer.receiver_order(x.orders)), gather(layer.receiver_element, x.species)], 1) @ of_receiver.T
    )
    mixed = torch.addmm(layer.mix.bias, nn.functional.gelu(layer.distance(x.radial)), of_distance.T)
    return nn.functional.gelu(mixed + gather(senders, x.senders) + gather(receivers, x.receivers))


def mean_of_slots(values: Float[Tensor, "slots width"], x: NeighborhoodsV1) -> Float[Tensor, "atoms width"]:
    """Over the slots of each atom; a mean of one is a little less than one, as published."""
    means = torch.cat([part.sum(1) / (part.shape[1] + 1e-5) for part in by_group(values, x.groups)])
    return gather(means, x.place)


def shares(config: EScAIPV1Config, outputs: Float[Tensor, " atoms"], system: Tensor) -> Float[Tensor, " atoms"]:
    """What each atom adds to the energy of its structure."""
    atoms, outputs = torch.bincount(system)[system].double(), outputs.double()
    return (outputs if config.energy == "sum" else outputs / atoms) + config.offset / atoms


def _symmetric_matrices(like: Tensor) -> Float[Tensor, "6 3 3"]:
    """An orthonormal basis: the multiple of the unit matrix, then d.M.d ~ Y_2m(d) for m = -2..2."""
    x, y, z = torch.eye(3, dtype=like.dtype, device=like.device)

    def product(a: Tensor, b: Tensor) -> Tensor:
        return (torch.outer(a, b) + torch.outer(b, a)) / 2

    xx, yy, zz = product(x, x), product(y, y), product(z, z)
    quadratic = [xx + yy + zz, product(x, z), product(x, y), 2 * yy - xx - zz, product(y, z), zz - xx]
    return torch.stack([matrix / matrix.norm() for matrix in quadratic])


def nearest_indices(config: EScAIPV1Config, graph: AtomicGraph) -> dict[str, Tensor]:
    """The nearest edges of each receiver, ascending, and their slots."""
    with torch.no_grad():
        distances, receivers, atoms = graph.displacements().norm(dim=-1), graph.receivers, len(graph.numbers)
        counts = torch.bincount(receivers, minlength=atoms)
        order = torch.argsort(distances, stable=True)
        order = order[torch.argsort(receivers[order], stable=True)]
        place = torch.arange(len(order), device=order.device) - (torch.cumsum(counts, 0) - counts)[receivers]
        kept = torch.sort(order[(place < config.neighbors) & (distances[order] < config.cutoff)]).values
        return {"kept": kept} | slot_indices(graph.senders[kept], receivers[kept], atoms, own=False)
