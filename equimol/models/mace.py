"""MACE: message passing with many-body products (Batatia et al. 2022), its tensor products exchangeable by one word."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from equimol.models.base import ConfiguredPotential
from equimol.nn import BesselBasis, DegreeLinear, ElementLinear, ScalarMLP
from equimol.nn.cubic_table import CubicWeights, cubic_table, cubic_weights, look_up
from equimol.o3 import Block, Layout, natural_layout, spherical_harmonics
from equimol.ops import gather
from equimol.tensor_products import EDGE_CONVOLUTIONS, MANY_BODY_PRODUCTS

KNOTS = 513  # of tables over the distance, where splines are as exact as float32


@dataclass(frozen=True)
class MACEConfig:
    """Settings of :class:`MACE`."""

    elements: tuple[int, ...]  # atomic numbers
    cutoff: float = 5.0  # Å
    product: str = "clebsch_gordan"  # a name in EDGE_CONVOLUTIONS and MANY_BODY_PRODUCTS
    channels: int = 64
    lmax_hidden: int = 1  # largest degree of the features between layers
    lmax_edge: int = 3  # largest degree of the edge harmonics and of the sums over neighbours
    rank: int = 1  # of products with weights per degree: so many filters, and products of so many channel mixes
    correlation: int = 3  # body order of one layer, minus one
    layers: int = 2
    radial_basis: int = 8
    radial_width: int = 64
    readout_width: int = 16
    average_neighbors: float = 16.0  # of the training set: sums over neighbours are divided by its square root

    def __post_init__(self) -> None:
        products = [name for name in EDGE_CONVOLUTIONS if name in MANY_BODY_PRODUCTS]
        if self.product not in products:
            raise ValueError(f"product must be one of {', '.join(products)}, got {self.product!r}")
        positive = ("cutoff", "channels", "rank", "correlation", "layers", "radial_basis", "radial_width", "readout_width")
        for field in (*positive, "average_neighbors"):
            if not getattr(self, field) > 0:
                raise ValueError(f"{field} must be positive, got {getattr(self, field)}")
        if self.rank > 1 and self.product == "clebsch_gordan":
            raise ValueError(
                f"rank belongs to products with weights per degree; clebsch_gordan has one per path, leave out rank={self.rank}"
            )
        if not 0 <= self.lmax_hidden <= self.lmax_edge:
            raise ValueError(f"lmax_hidden must be between 0 and lmax_edge ({self.lmax_edge}), got {self.lmax_hidden}")
        object.__setattr__(self, "elements", tuple(sorted(int(z) for z in self.elements)))
        if not self.elements or not all(0 < z < 119 for z in self.elements):
            raise ValueError(f"elements must be atomic numbers 1..118, at least one, got {self.elements}")


PRESETS: dict[str, dict] = {
    "tiny": {"channels": 8, "lmax_edge": 2, "correlation": 2, "layers": 2, "radial_width": 16},
    "nano": {"channels": 16, "lmax_edge": 2, "correlation": 2, "layers": 2, "radial_width": 32},
    "small": {},
    "medium": {"channels": 128},
}


class MACE(ConfiguredPotential):
    """Energies of order one from a graph. Not yet total energies: wrap it in ``Shifted`` (``build_model`` does)."""

    name = "mace"

    def __init__(self, config: MACEConfig) -> None:
        super().__init__()
        self.config, self.cutoff, self.hops, self.elements = config, config.cutoff, config.layers, config.elements
        table = torch.full((119,), -1)
        table[list(config.elements)] = torch.arange(len(config.elements))
        self.register_buffer("species_of", table, persistent=False)
        self.embedding = nn.Parameter(torch.randn(len(config.elements), config.channels))
        self.radial = BesselBasis(config.cutoff, config.radial_basis)
        hidden = [natural_layout(0, config.channels)]
        hidden += [natural_layout(config.lmax_hidden, config.channels)] * (config.layers - 1)
        hidden += [natural_layout(0, config.channels)]  # only scalars are read from the last layer
        self.layers = nn.ModuleList(Layer(config, self.radial, a, b) for a, b in zip(hidden, hidden[1:], strict=False))
        self.readouts = nn.ModuleList(ScalarMLP(config.channels, 1) for _ in range(config.layers - 1))
        self.readouts.append(ScalarMLP(config.channels, config.readout_width, 1))

    def atomic_energies(self, displacements, numbers, senders, receivers, indices, system):
        vectors = displacements.to(self.embedding.dtype)
        species = self.species_of[numbers]
        harmonics = spherical_harmonics(vectors, self.config.lmax_edge)  # component-normalised
        distances = vectors.norm(dim=-1)
        if self.layers[0].table is not None and self.dtype != torch.float64:  # frozen; for float64 the table is not exact
            radial = cubic_weights(distances, self.cutoff / (KNOTS - 1), KNOTS, self.dtype).inside(distances < self.cutoff)
        else:
            radial = self.radial(distances)
        features = gather(self.embedding, species)
        energies, scalars = 0, []
        for layer, readout in zip(self.layers, self.readouts, strict=True):
            features = layer(features, species, harmonics, radial, senders, receivers)
            scalars.append(features[:, : self.config.channels])
            energies = energies + readout(scalars[-1])[:, 0]
        return energies, torch.cat(scalars, -1)


class Layer(nn.Module):
    """One round: sum over neighbours, powers of the sum, a residual that knows the element."""

    def __init__(self, config: MACEConfig, radial: BesselBasis, hidden_in: Layout, hidden_out: Layout) -> None:
        super().__init__()
        channels, elements = config.channels, len(config.elements)
        self.average_neighbors, self.radial = config.average_neighbors, radial
        self.linear_up = DegreeLinear(hidden_in, hidden_in)
        rank = {} if config.product == "clebsch_gordan" else {"rank": config.rank}
        self.convolution = EDGE_CONVOLUTIONS[config.product](hidden_in, config.lmax_edge, config.lmax_edge, **rank)
        width = config.radial_width
        self.radial_weights = ScalarMLP(config.radial_basis, width, width, width, self.convolution.num_weights * channels)
        sums = tuple(Block(b.l, b.parity, config.rank * channels) for b in self.convolution.out)
        self.linear_sums = DegreeLinear(self.convolution.out, sums)
        self.product = MANY_BODY_PRODUCTS[config.product](sums, [b.l for b in hidden_out], config.correlation, elements)
        self.product_weights = nn.Parameter(torch.randn(elements, self.product.num_weights, config.rank * channels))
        self.linear_out = DegreeLinear(self.product.out, hidden_out)
        self.residual = ElementLinear(hidden_in, hidden_out, elements)
        self.register_buffer("table", None, persistent=False)  # of the weights over the distance, once frozen

    @torch.no_grad()
    def freeze(self) -> None:
        """Tabulate the weights of edges over the distance; but in float64 the network is used."""
        exact, cutoff = copy.deepcopy(self.radial_weights).double(), self.radial.cutoff
        distances = torch.linspace(0, cutoff, KNOTS, dtype=torch.float64, device=self.product_weights.device)
        self.table = cubic_table(exact(self.radial(distances))).to(self.product_weights)

    def forward(
        self,
        features: Float[Tensor, "atoms dim_in"],
        species: Int[Tensor, " atoms"],
        harmonics: Float[Tensor, "edges harmonics"],
        radial: Float[Tensor, "edges radial"] | CubicWeights,
        senders: Int[Tensor, " edges"],
        receivers: Int[Tensor, " edges"],
    ) -> Float[Tensor, "atoms dim_out"]:
        weights = look_up(self.table, radial) if isinstance(radial, CubicWeights) else self.radial_weights(radial)
        weights = weights.unflatten(-1, (self.convolution.num_weights, -1))
        # A_i = sum_j R(r_ij) Y(r_ij) (x) h_j, Batatia 2022, eq. 8-9; divided by sqrt(<neighbours>), not by <neighbours> as there:
        # messages differ, so this is what keeps the variance, and on 3BPA it learns faster
        sums = self.convolution(self.linear_up(features), harmonics, senders, receivers, weights) / self.average_neighbors**0.5
        products = self.product(self.linear_sums(sums), self.product_weights, species)  # B_i, eq. 10
        return self.linear_out(products) + self.residual(features, species)  # h_i', eq. 11-12
