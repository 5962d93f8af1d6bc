"""NequIP: equivariant message passing along edges (Batzner et al. 2022, arXiv:2101.03164), in the form of SevenNet (Park et al. 2024)."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from equimol.data.graph import AtomicGraph
from equimol.models.base import ConfiguredPotential, data_set_indices
from equimol.nn import DegreeLinear, ElementLinear, polynomial_envelope, xplor_envelope
from equimol.nn.cubic_table import CubicWeights, cubic_table, cubic_weights, look_up
from equimol.o3 import Block, Layout, format_irreps, parse_irreps, spherical_harmonics, split_blocks, wigner_3j
from equimol.ops import CoupledSum, PathRows, TabulatedSum, coupled_sum, coupled_sum_by_blocks, gather, tabulated_sum
from equimol.ops.kernels import has_kernel, has_operator

KNOTS = 513  # of each piece of a table over the distance, where splines are as exact as float32
TERMS = ("embedding", "linear_up", "linear_sums", "readout")  # what may have a bias for each data set

ACTIVATIONS = {
    "silu": nn.functional.silu,
    "shifted_softplus": lambda x: nn.functional.softplus(x) - math.log(2),
    "tanh": torch.tanh,
}
#: 1 / sqrt(E[f(z)^2]), z standard normal
GAINS = (("silu", 1.6765324703310909), ("shifted_softplus", 1.8755962561350414), ("tanh", 1.5925374197228312))


@dataclass(frozen=True)
class NequIPConfig:
    """Settings of :class:`NequIP`."""

    elements: tuple[int, ...]  # atomic numbers
    cutoff: float = 5.0  # Å
    hidden: tuple[str, ...] = ("64x0e", "64x0e+32x1o+16x2e", "64x0e+32x1o+16x2e", "64x0e")  # features before and after each layer
    lmax_edge: int = 2  # largest degree of the edge harmonics
    parity: bool = True  # False: all is called even and energies may differ between mirror images, as in most published SevenNets
    normalize_harmonics: bool = True  # False: degree l grows as distance^l
    radial_basis: int = 8
    radial_hidden: tuple[int, ...] = (64, 64)
    envelope: str = "polynomial"  # or "xplor"
    envelope_order: int = 6  # of the polynomial
    envelope_start: float | None = None  # Å, where the other begins to fall; None: 0.9 of the cutoff
    self_connection: tuple[str, ...] = ("element",)  # of each layer, or one for all: "element" has weights for each, "linear" has not
    activation: str = "silu"  # of even scalars and of gates; odd scalars have tanh
    radial_activation: str = "silu"
    gains: tuple[Sequence, ...] = GAINS  # (activation, factor): what keeps the variance, or what a published model was trained with
    readout_width: int = 32
    average_neighbors: float = 16.0  # of the training set: sums over neighbours are first divided by its square root
    train_denominator: bool = False  # and then by what is learned
    data_sets: int = 0  # levels of theory that it tells apart
    data_set: int | None = None  # which one the model is for; None: every structure says to which it belongs
    data_set_terms: tuple[str, ...] = TERMS[1:]  # which linear layers have a bias for each data set

    def __post_init__(self) -> None:
        for field in ("cutoff", "radial_basis", "readout_width", "average_neighbors", "envelope_order"):
            if not getattr(self, field) > 0:
                raise ValueError(f"{field} must be positive, got {getattr(self, field)}")
        if self.lmax_edge < 0:
            raise ValueError(f"lmax_edge must be 0 or more, got {self.lmax_edge}")
        if self.envelope not in ("polynomial", "xplor"):
            raise ValueError(f"envelope must be polynomial or xplor, got {self.envelope!r}")
        start = 0.9 * self.cutoff if self.envelope_start is None else float(self.envelope_start)
        object.__setattr__(self, "envelope_start", start)
        if not 0 < start < self.cutoff:
            raise ValueError(f"envelope_start must be between 0 and the cutoff ({self.cutoff} Å), got {start}")
        object.__setattr__(self, "hidden", tuple(self.hidden))
        _check_hidden(self.layouts, self.parity)
        kinds = (self.self_connection,) if isinstance(self.self_connection, str) else tuple(self.self_connection)
        kinds = kinds * (len(self.hidden) - 1) if len(kinds) == 1 else kinds
        object.__setattr__(self, "self_connection", kinds)
        if len(kinds) != len(self.hidden) - 1 or not set(kinds) <= {"element", "linear"}:
            raise ValueError(f"self_connection must be element or linear for each of {len(self.hidden) - 1} layers, got {kinds}")
        object.__setattr__(self, "gains", tuple((str(name), float(gain)) for name, gain in self.gains))
        for field in ("activation", "radial_activation"):
            if getattr(self, field) not in ACTIVATIONS:
                raise ValueError(f"{field} must be one of {', '.join(ACTIVATIONS)}, got {getattr(self, field)!r}")
        if self.activation == "tanh":
            raise ValueError("activation must be silu or shifted_softplus, got tanh, which is for odd scalars")
        missing = {self.activation, self.radial_activation, "tanh"} - dict(self.gains).keys()
        if missing:
            raise ValueError(f"gains must have a factor for {', '.join(sorted(missing))}, got {self.gains}")
        object.__setattr__(self, "radial_hidden", tuple(int(n) for n in self.radial_hidden))
        object.__setattr__(self, "elements", tuple(sorted(int(z) for z in self.elements)))
        if not self.elements or not all(0 < z < 119 for z in self.elements):
            raise ValueError(f"elements must be atomic numbers 1..118, at least one, got {self.elements}")
        if self.data_set is not None and not 0 <= self.data_set < self.data_sets:
            raise ValueError(f"data_set must be one of the {self.data_sets} data sets, from 0, got {self.data_set}")
        object.__setattr__(self, "data_set_terms", tuple(self.data_set_terms))
        if not set(self.data_set_terms) <= set(TERMS):
            raise ValueError(f"data_set_terms must be among {', '.join(TERMS)}, got {', '.join(self.data_set_terms)}")

    @property
    def layouts(self) -> list[Layout]:
        """``hidden`` as layouts."""
        return [parse_irreps(text) for text in self.hidden]

    def function(self, name: str) -> Activation:
        """An activation with its gain."""
        return Activation(name, dict(self.gains)[name])


def _check_hidden(layouts: list[Layout], parity: bool) -> None:
    """Each begins with even scalars, the first and last have nothing else, no kind comes twice."""
    texts = [format_irreps(layout) for layout in layouts]
    if len(layouts) < 2:
        raise ValueError(f"hidden must list features before and after at least one layer, got {texts}")
    for layout, text in zip(layouts, texts, strict=True):
        if (layout[0].l, layout[0].parity) != (0, 1) or len({block.irrep for block in layout}) < len(layout):
            raise ValueError(f"hidden must begin with even scalars and have each degree and parity once, such as 64x0e+32x1o, got {text}")
        if not parity and any(block.parity == -1 for block in layout):
            raise ValueError(f"hidden must be all even (0e, 1e, 2e) where parity is false, got {text}")
    if len(layouts[0]) > 1 or len(layouts[-1]) > 1:
        raise ValueError(f"hidden must begin and end with scalars alone, such as 64x0e, got {texts[0]} and {texts[-1]}")


PRESETS: dict[str, dict] = {
    "tiny": {"hidden": ("8x0e", "8x0e+4x1o", "8x0e"), "lmax_edge": 1, "radial_hidden": (16,), "readout_width": 8},
    "nano": {"hidden": ("16x0e", "16x0e+16x1o+8x2e", "16x0e+16x1o+8x2e", "16x0e"), "radial_hidden": (32, 32), "readout_width": 16},
    "small": {},
    "medium": {"hidden": ("128x0e", *["128x0e+64x1o+32x2e"] * 4, "128x0e"), "readout_width": 64, "self_connection": ("linear",)},
    "sevennet-0": {
        "hidden": ("128x0e", *["128x0e+64x1e+32x2e"] * 4, "128x0e"),
        "parity": False,
        "envelope": "xplor",
        "self_connection": ("linear",),
        "readout_width": 64,
    },
    "sevennet-l3i5": {
        "hidden": ("128x0e", *["128x0e+64x1e+32x2e+32x3e"] * 4, "128x0e"),
        "lmax_edge": 3,
        "parity": False,
        "self_connection": ("linear",),
        "readout_width": 64,
    },
}


class NequIP(ConfiguredPotential):
    """Energies of order one from a graph. Not yet total energies: wrap it in ``Shifted`` (``build_model`` does).

    ``element_scales`` multiply the energies of atoms by data set and element; where one scale serves all, it is that of ``Shifted``.
    """

    name = "nequip"

    def __init__(self, config: NequIPConfig) -> None:
        super().__init__()
        layouts = config.layouts
        self.config, self.cutoff, self.hops, self.elements = config, config.cutoff, len(layouts) - 1, config.elements
        self.inputs = ("data_set",) * (config.data_sets > 0 and config.data_set is None)
        table = torch.full((119,), -1)
        table[list(config.elements)] = torch.arange(len(config.elements))
        self.register_buffer("species_of", table, persistent=False)
        self.register_buffer("element_scales", torch.ones(max(1, config.data_sets), len(config.elements)))
        self.embedding = nn.Parameter(torch.randn(len(config.elements), layouts[0][0].channels))
        self.embedding_bias = _data_set_bias(config, "embedding", layouts[0])
        self.layers = nn.ModuleList(
            Layer(config, *pair, kind) for pair, kind in zip(pairwise(layouts), config.self_connection, strict=True)
        )
        self.radial = RadialWeights(config, [layer.convolution.weight_shapes for layer in self.layers])
        hidden = (Block(0, 1, config.readout_width),)
        self.readout_hidden, self.readout = DegreeLinear(layouts[-1], hidden), DegreeLinear(hidden, (Block(0, 1, 1),))
        self.readout_bias = _data_set_bias(config, "readout", hidden)

    def indices(self, graph: AtomicGraph, uniform: bool = False) -> dict[str, Tensor]:
        return data_set_indices(self.config, graph)

    def atomic_energies(self, displacements, numbers, senders, receivers, indices, system):
        vectors = displacements.to(self.embedding.dtype)
        species, distances = self.species_of[numbers], vectors.norm(dim=-1)
        data_set = indices["data_set"][system] if self.config.data_sets else torch.zeros_like(species)
        harmonics = spherical_harmonics(vectors, self.config.lmax_edge)  # component-normalised
        if not self.config.normalize_harmonics:
            degrees = [l for l in range(self.config.lmax_edge + 1) for _ in range(2 * l + 1)]
            harmonics = harmonics * distances[:, None] ** distances.new_tensor(degrees)
        features = self.embedding_bias(gather(self.embedding, species), data_set)
        for layer, weights in zip(self.layers, self.radial(distances), strict=True):
            features = layer(features, species, data_set, harmonics, weights, senders, receivers)
        energies = self.readout(self.readout_bias(self.readout_hidden(features), data_set))[:, 0]
        return energies * self.element_scales[data_set, species], features


class Layer(nn.Module):
    """One round: sum over neighbours, a self-connection that may know the element, gates."""

    def __init__(self, config: NequIPConfig, hidden_in: Layout, hidden_out: Layout, self_connection: str) -> None:
        super().__init__()
        self.gate = Gate(config, hidden_out)
        self.linear_up = DegreeLinear(hidden_in, hidden_in)
        self.linear_up_bias = _data_set_bias(config, "linear_up", hidden_in)
        parity = -1 if config.parity else 1
        self.convolution = Convolution(hidden_in, config.lmax_edge, parity, [(b.l, b.parity) for b in hidden_out])
        denominator = torch.tensor(config.average_neighbors**0.5)
        if config.train_denominator:
            self.denominator = nn.Parameter(denominator)
        else:
            self.register_buffer("denominator", denominator)
        self.linear_sums = DegreeLinear(self.convolution.out, self.gate.in_layout)
        self.linear_sums_bias = _data_set_bias(config, "linear_sums", self.gate.in_layout)
        if self_connection == "element":
            self.self_connection = ElementLinear(hidden_in, self.gate.in_layout, len(config.elements))
        else:
            self.self_connection = DegreeLinear(hidden_in, self.gate.in_layout)

    def forward(
        self,
        features: Float[Tensor, "atoms dim_in"],
        species: Int[Tensor, " atoms"],
        data_set: Int[Tensor, " atoms"],
        harmonics: Float[Tensor, "edges harmonics"],
        weights: list[Float[Tensor, "edges _ _"]] | list[Tabulated],
        senders: Int[Tensor, " edges"],
        receivers: Int[Tensor, " edges"],
    ) -> Float[Tensor, "atoms dim_out"]:
        up = self.linear_up_bias(self.linear_up(features), data_set)
        sums = self.convolution(up, harmonics, weights, senders, receivers)
        mixed = self.linear_sums_bias(self.linear_sums(sums) / self.denominator, data_set)
        by_element = isinstance(self.self_connection, ElementLinear)
        own = self.self_connection(features, species) if by_element else self.self_connection(features)
        return self.gate(mixed + own)


class Activation(NamedTuple):
    """A function of ``ACTIVATIONS`` times what keeps the variance."""

    name: str
    gain: float

    def __call__(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return ACTIVATIONS[self.name](x) * self.gain


class Gate(nn.Module):
    """Activations of scalars; other features times activated even scalars, one for each channel, which stand behind the even ones."""

    def __init__(self, config: NequIPConfig, out: Layout) -> None:
        super().__init__()
        self.out, self.gates = out, [block.channels for block in out if block.l > 0]
        self.even, self.odd = config.function(config.activation), config.function("tanh")
        self.in_layout = (Block(0, 1, out[0].channels + sum(self.gates)), *out[1:])

    def forward(self, x: Float[Tensor, "atoms dim_in"]) -> Float[Tensor, "atoms dim_out"]:
        first, *others = split_blocks(x, self.in_layout)
        scalars, *gates = self.even(first[:, 0]).split([self.out[0].channels, *self.gates], -1)
        remaining, parts = iter(gates), [scalars]
        for block, part in zip(self.out[1:], others, strict=True):
            parts.append((part * next(remaining)[:, None] if block.l else self.odd(part)).flatten(1))
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


class Convolution(nn.Module):
    """Sum over neighbours of (feature of the sender) x (harmonics of the edge), a radial weight for each path and channel.

    Blocks of features may have different numbers of channels: those that have the same are one `coupled_sum`. Paths stay apart: the
    block of a kind (degree, parity) in ``out`` has the channels of all paths into it, those of the first group of blocks first.

    Args:
        in_layout: each kind once.
        edge_parity: of the harmonics of degree one; +1 calls all of them even.
        kinds: (degree, parity) of the sums that are wanted; those that nothing leads to are left out.
    """

    def __init__(self, in_layout: Layout, lmax_edge: int, edge_parity: int, kinds: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.in_layout = in_layout
        numbers = dict.fromkeys(block.channels for block in in_layout)
        groups = [_group(in_layout, channels, lmax_edge, edge_parity, kinds) for channels in numbers]
        self.groups = [group for group in groups if group.paths]
        #: of each group, how many weights for how many channels of an edge
        self.weight_shapes = [(len(group.paths), group.channels) for group in self.groups]
        reached = [kind for kind in kinds if any(kind in group.rows for group in self.groups)]
        self.out = tuple(Block(*kind, sum(len(group.paths_into(kind)) * group.channels for group in self.groups)) for kind in reached)

    def forward(
        self,
        features: Float[Tensor, "atoms dim"],
        harmonics: Float[Tensor, "edges harmonics"],
        weights: list[Float[Tensor, "edges _ _"]] | list[Tabulated],
        senders: Int[Tensor, " edges"],
        receivers: Int[Tensor, " edges"],
    ) -> Float[Tensor, "atoms dim_out"]:
        sum_up = coupled_sum if has_operator("convolution", features) else coupled_sum_by_blocks
        blocks, found = split_blocks(features, self.in_layout), []
        for group, of_group in zip(self.groups, weights, strict=True):
            x = torch.cat([blocks[i] for i in group.blocks], 1)
            if isinstance(of_group, Tabulated):
                found.append(tabulated_sum(group.tabulated, x, harmonics, *of_group, senders, receivers))
            else:
                found.append(sum_up(group.form, x, harmonics, of_group, senders, receivers))
        out = []
        for block in self.out:
            kind = block.l, block.parity
            parts = [
                sums[:, group.rows[kind]].reshape(sums.shape[0], 2 * block.l + 1, -1)
                for group, sums in zip(self.groups, found, strict=True)
                if kind in group.rows
            ]
            out.append((parts[0] if len(parts) == 1 else torch.cat(parts, -1)).flatten(1))
        return out[0] if len(out) == 1 else torch.cat(out, -1)


class Coupling(NamedTuple):
    """A path: a block of features with harmonics of degree l2 to the degree l3 and parity p3."""

    block: int
    l2: int
    l3: int
    p3: int


class PathGroup(NamedTuple):
    """Paths from the blocks that have so many channels, and where their sums are: rows of a kind, m for m and path for path."""

    channels: int
    blocks: list[int]
    paths: list[Coupling]
    rows: dict[tuple[int, int], slice]
    form: CoupledSum | None
    tabulated: TabulatedSum | None

    def paths_into(self, kind: tuple[int, int]) -> list[Coupling]:
        return [path for path in self.paths if (path.l3, path.p3) == kind]


def _group(layout: Layout, channels: int, lmax_edge: int, edge_parity: int, kinds: Sequence[tuple[int, int]]) -> PathGroup:
    blocks = [i for i, block in enumerate(layout) if block.channels == channels]
    paths = [
        Coupling(i, l2, l3, p3)
        for l3, p3 in kinds
        for i in blocks
        for l2 in range(lmax_edge + 1)
        if abs(layout[i].l - l2) <= l3 <= layout[i].l + l2 and layout[i].parity * edge_parity**l2 == p3
    ]
    first = dict(zip(blocks, accumulate((2 * layout[i].l + 1 for i in blocks), initial=0), strict=False))
    described, rows, sums = [], {}, 0
    for l3, p3 in kinds:
        members = [path for path in paths if (path.l3, path.p3) == (l3, p3)]
        for n, path in enumerate(members):
            coefficients = (2 * l3 + 1) ** 0.5 * wigner_3j(layout[path.block].l, path.l2, l3)
            entries = tuple((*place, float(coefficients[tuple(place)])) for place in torch.nonzero(coefficients.abs() > 1e-12).tolist())
            described.append(PathRows(first[path.block], path.l2**2, sums + n, len(members), entries))
        if members:
            rows[l3, p3] = slice(sums, sums + (2 * l3 + 1) * len(members))
            sums += (2 * l3 + 1) * len(members)
    height = sum(2 * layout[i].l + 1 for i in blocks)
    forms = (kind(described, height, (lmax_edge + 1) ** 2, sums) if paths else None for kind in (CoupledSum, TabulatedSum))
    return PathGroup(channels, blocks, paths, rows, *forms)


class RadialBasis(nn.Module):
    """Bessel functions 2/c sin(f_n r) / r with frequencies that are learned, times an envelope; zero at and beyond the cutoff."""

    def __init__(self, config: NequIPConfig) -> None:
        super().__init__()
        self.config = config
        self.frequencies = nn.Parameter(torch.pi / config.cutoff * torch.arange(1.0, config.radial_basis + 1))

    def forward(self, distances: Float[Tensor, " edges"]) -> Float[Tensor, "edges basis"]:
        config = self.config
        if config.envelope == "polynomial":
            envelope = polynomial_envelope(distances, config.cutoff, config.envelope_order)
        else:
            envelope = xplor_envelope(distances, config.envelope_start, config.cutoff)
        # 2/c sin(f r) / r, written with sinc, which is smooth at r = 0
        waves = self.frequencies * torch.sinc(self.frequencies * distances[:, None] / torch.pi)
        return (2 / config.cutoff) * envelope[:, None] * waves

    @property
    def bounds(self) -> list[tuple[float, float]]:
        """The pieces, in Å, in which functions of the basis are smooth: the curvature of XPLOR's envelope jumps."""
        middle = [self.config.envelope_start] if self.config.envelope == "xplor" else []
        return list(pairwise([0.0, *middle, self.config.cutoff]))

    def knots(self) -> Float[Tensor, "pieces knots"]:
        """Distances at which tables are filled."""
        device = self.frequencies.device
        return torch.stack([torch.linspace(start, end, KNOTS, dtype=torch.float64, device=device) for start, end in self.bounds])

    def pieces(self, distances: Float[Tensor, " edges"]) -> CubicWeights:
        """What distances pick of tables that were filled at the knots."""
        rows = weights = None
        for n, (start, end) in enumerate(self.bounds):
            here = cubic_weights(distances - start, (end - start) / (KNOTS - 1), KNOTS, distances.dtype)
            beyond = (distances >= start)[:, None]
            rows = here.rows if rows is None else torch.where(beyond, here.rows + n * (KNOTS + 2), rows)
            weights = here.weights if weights is None else torch.where(beyond, here.weights, weights)
        return CubicWeights(rows, weights).inside(distances < self.config.cutoff)


class Tabulated(NamedTuple):
    """Weights of edges for a group of paths that are not looked up yet: four rows of a table, from the first one on, and their shares."""

    table: Float[Tensor, "knots paths channels"]
    first_rows: Int[Tensor, " edges"]
    blend: Float[Tensor, "edges 4"]


class RadialWeights(nn.Module):
    """The weights of edges for every layer, functions of the distance: perceptrons, or tables once frozen, but not in float64."""

    def __init__(self, config: NequIPConfig, shapes: Sequence[Sequence[tuple[int, int]]]) -> None:
        super().__init__()
        self.basis = RadialBasis(config)
        self.networks = nn.ModuleList(RadialNetwork(config, of_layer) for of_layer in shapes)
        self.is_frozen = False

    def forward(self, distances: Float[Tensor, " edges"]) -> Iterator[list[Float[Tensor, "edges _ _"]] | list[Tabulated]]:
        if not self.is_frozen or distances.dtype == torch.float64:  # which a table does not reach
            radial = self.basis(distances)
            for network in self.networks:
                yield network(radial)
            return
        at = self.basis.pieces(distances)
        later, first_rows = distances.device.type == "cpu" and has_kernel("convolution", distances), at.rows[:, 0].contiguous()
        for network in self.networks:
            if later:
                tables = (table.unflatten(1, shape) for table, shape in zip(network.tables, network.shapes, strict=True))
                yield [Tabulated(table, first_rows, at.weights) for table in tables]
            else:
                yield network.look_up(at)

    @torch.no_grad()
    def freeze(self) -> None:
        basis = copy.deepcopy(self.basis).double()
        for network in self.networks:
            network.tabulate([basis(at) for at in self.basis.knots()])
        self.is_frozen = True


class RadialNetwork(nn.Module):
    """Weights for each group of paths of a layer: a perceptron of the radial basis, without biases, so that they end with it."""

    def __init__(self, config: NequIPConfig, shapes: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.shapes, self.activation = list(shapes), config.function(config.radial_activation)
        widths = [config.radial_basis, *config.radial_hidden]
        self.hidden = nn.ParameterList(torch.randn(a, b) for a, b in pairwise(widths))
        self.last = nn.ParameterList(torch.randn(widths[-1], paths * channels) for paths, channels in self.shapes)
        for n in range(len(self.last)):
            self.register_buffer(f"table_{n}", None, persistent=False)

    @property
    def tables(self) -> list[Float[Tensor, "knots columns"]]:
        """Of each group, once they are filled."""
        return [getattr(self, f"table_{n}") for n in range(len(self.last))]

    def forward(self, x: Float[Tensor, "edges basis"]) -> list[Float[Tensor, "edges _ _"]]:
        for weight in self.hidden:
            x = self.activation(x @ (weight / len(weight) ** 0.5))
        return [(x @ (weight / len(weight) ** 0.5)).unflatten(-1, shape) for weight, shape in zip(self.last, self.shapes, strict=True)]

    def look_up(self, at: CubicWeights) -> list[Float[Tensor, "edges _ _"]]:
        """The same from tables."""
        return [look_up(table, at).unflatten(-1, shape) for table, shape in zip(self.tables, self.shapes, strict=True)]

    def tabulate(self, pieces: list[Float[Tensor, "knots basis"]]) -> None:
        """Fill tables from the basis at the knots of each piece, in float64."""
        exact = copy.deepcopy(self).double()
        tables = [[cubic_table(values.flatten(1)) for values in exact(at)] for at in pieces]
        for n, of_group in enumerate(zip(*tables, strict=True)):
            setattr(self, f"table_{n}", torch.cat(of_group).to(self.last[n]))


class DataSetBias(nn.Module):
    """Adds to the even scalars, which stand first, what is learned for each data set."""

    def __init__(self, data_sets: int, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(data_sets, channels))

    def forward(self, x: Float[Tensor, "atoms dim"], data_set: Int[Tensor, " atoms"]) -> Float[Tensor, "atoms dim"]:
        scalars, others = x.split([self.bias.shape[1], x.shape[1] - self.bias.shape[1]], 1)
        return torch.cat([scalars + gather(self.bias, data_set), others], 1)


class NoBias(nn.Module):
    """What stands in its place in a model of one level of theory."""

    def forward(self, x: Float[Tensor, "atoms dim"], data_set: Int[Tensor, " atoms"]) -> Float[Tensor, "atoms dim"]:
        return x


def _data_set_bias(config: NequIPConfig, term: str, layout: Layout) -> DataSetBias | NoBias:
    return DataSetBias(config.data_sets, layout[0].channels) if config.data_sets and term in config.data_set_terms else NoBias()
