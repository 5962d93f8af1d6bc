"""MACE of mace-torch: model files, read without mace or e3nn, as our models."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from equimol.convert.archive import ConversionError, Record, read_archive
from equimol.models.base import Potential
from equimol.models.composition import shifted
from equimol.models.scale_shift_mace import (
    SCREENING,
    SIGMOID_GAIN,
    BiasedReadout,
    NonLinearLayer,
    ScaleShiftMACE,
    ScaleShiftMACEConfig,
)
from equimol.models.scale_shift_mace_edges import DENSITY_WIDTH
from equimol.nn import ScalarMLP
from equimol.o3 import Layout, format_irreps, natural_layout, parse_irreps
from equimol.tensor_products import SymmetricContraction
from equimol.tensor_products.symmetric_contraction import symmetric_basis

MODELS = ("MACE", "ScaleShiftMACE")
KNOWN = {
    "node_embedding", "radial_embedding", "pair_repulsion_fn", "spherical_harmonics", "atomic_energies_fn",
    "interactions", "products", "readouts", "scale_shift", "joint_embedding", "embedding_readout",
}  # fmt: skip
LAYERS = {
    "RealAgnosticInteractionBlock": "plain",
    "RealAgnosticResidualInteractionBlock": "residual",
    "RealAgnosticDensityInteractionBlock": "density",
    "RealAgnosticDensityResidualInteractionBlock": "density_residual",
    "RealAgnosticResidualNonLinearInteractionBlock": "nonlinear",
}
RADIAL = {"BesselBasis": "bessel", "GaussianBasis": "gaussian", "ChebychevBasis": "chebyshev"}
TRANSFORMS = {"AgnesiTransform": "agnesi", "SoftTransform": "soft"}
#: what mace-torch can do and this reader does not know, with what a file must say, or nothing
FIXED: dict[str, Any] = {"use_so3": False}
READOUTS = {"NonLinearReadoutBlock": "perceptron", "NonLinearBiasReadoutBlock": "biased"}  # after the last of several layers
EMBEDDINGS = {"total_charge": "charge", "total_spin": "spin"}  # of whole structures


class Gains(NamedTuple):
    """By which e3nn multiplies activations: estimates of its own, of which each file has a copy."""

    silu: float = ScalarMLP.SILU_GAIN
    sigmoid: float = SIGMOID_GAIN


def read_mace(path: str | Path, head: str | None = None) -> Potential:
    """The potential in a ``.model`` file of mace-torch, in the precision of its weights.

    Args:
        path: of torch.save of the whole model, as training with mace-torch ends with and as foundation models are published.
        head: which one, of a file with several; None keeps them all, and structures name theirs as ``data_set``.

    Raises:
        ConversionError: the file, or a part or setting of the model, is not understood; the message says which.
    """
    content = read_archive(path)
    if not isinstance(content, Record) or _name(content) not in MODELS or not content.class_name.startswith("mace."):
        found = content.class_name if isinstance(content, Record) else type(content).__name__
        raise ConversionError(f"{path} must hold a model of mace-torch, {' or '.join(MODELS)}, got {found}; give the .model file")
    modules = dict(_modules(content))
    weights = {f"{place}.{name}".lstrip("."): value for place, module in modules.items() for name, value in _tensors(module)}
    heads = [str(name) for name in getattr(content, "heads", None) or ["Default"]]
    if head is not None and head not in heads:
        raise ConversionError(f"head must be one of {', '.join(heads)}, got {head}")
    chosen = list(range(len(heads))) if head is None else [heads.index(head)]
    config = config_of(modules, weights, len(chosen))
    return model_of(config, weights, heads, chosen, _gains(modules))


def model_of(config: ScaleShiftMACEConfig, weights: Mapping[str, Tensor], heads: list[str], chosen: list[int], gains: Gains) -> Potential:
    """The potential with these weights, which bear mace-torch's names."""
    dtype = weights["node_embedding.linear.weight"].dtype
    exact = {name: value.double() if value.is_floating_point() else value for name, value in weights.items()}
    numbers = [int(z) for z in weights["atomic_numbers"]]
    model = ScaleShiftMACE(config)
    state = translate(model, exact, len(heads), chosen, gains)
    model = model.to(dtype)
    model.load_state_dict(state, strict=True)
    shift = exact.get("scale_shift.shift", torch.zeros((), dtype=torch.float64)).reshape(-1, 1)  # of all heads, or of each
    energies = (torch.atleast_2d(exact["atomic_energies_fn.atomic_energies"]) + shift).expand(len(heads), -1)
    tables = {heads[n]: dict(zip(numbers, energies[n].tolist(), strict=True)) for n in chosen}
    return shifted(model, tables if config.data_sets else tables[heads[chosen[0]]]).eval()


def config_of(modules: Mapping[str, Record], weights: Mapping[str, Tensor], heads: int) -> ScaleShiftMACEConfig:
    """Our settings for those of the file. Raises ConversionError for what is not ours."""
    root, radial = modules[""], modules["radial_embedding"]
    for name in root._modules:
        if name not in KNOWN:
            raise ConversionError(
                f"{name} ({modules[name].class_name}) is no part of a model that is understood; nothing stands for it here"
            )
    for option, wanted in FIXED.items():
        if getattr(root, option, wanted) != wanted:
            raise ConversionError(f"{option} must be {wanted}, got {getattr(root, option)}")
    if "pair_repulsion_fn" in modules and not torch.allclose(weights["pair_repulsion_fn.c"].double(), _screening(), atol=1e-6):
        raise ConversionError(f"pair_repulsion_fn.c must be {_screening().tolist()}, got {weights['pair_repulsion_fn.c'].tolist()}")
    count = sum(1 for name in modules if name.startswith("interactions.") and name.count(".") == 1)
    layers = [modules[f"interactions.{n}"] for n in range(count)]
    products = [modules[f"products.{n}.symmetric_contractions"] for n in range(count)]
    for n, product in enumerate(products):
        _known(product, {"SymmetricContraction": None}, f"products.{n}.symmetric_contractions")
    kinds = [_known(layer, LAYERS, f"interactions.{n}") for n, layer in enumerate(layers)]
    if len(set(kinds[1:])) > 1:
        raise ConversionError(f"layers after the first must be of one kind, got {', '.join(kinds)}")
    target = _layout(layers[0].target_irreps)
    channels, lmax_edge, lmax_hidden = target[0].channels, len(target) - 1, len(_layout(layers[-1].node_feats_irreps)) - 1
    sent = []
    for n, layer in enumerate(layers):
        _require_layout(layer, n, "node_feats_irreps", natural_layout(lmax_hidden if n else 0, channels))
        _require_layout(layer, n, "target_irreps", natural_layout(lmax_edge, channels))
        if n < count - 1:
            _require_layout(layer, n, "hidden_irreps", natural_layout(lmax_hidden, channels))
        sent.append(_layout(getattr(layer, "edge_irreps", layer.node_feats_irreps)))
        if sent[-1] != natural_layout(len(sent[-1]) - 1, sent[-1][0].channels):
            got = format_irreps(sent[-1])
            raise ConversionError(f"edge_irreps of interactions.{n} must be of degrees 0, 1, ... with as many channels each, got {got}")
    lmax_sent = {min(lmax_hidden, len(layout) - 1) for layout in sent[1:]} or {lmax_hidden}
    if len(lmax_sent) > 1:
        raise ConversionError(f"edge_irreps of layers after the first must reach the same degree, got {sorted(lmax_sent)}")
    readouts, last_readout, width = _check_readouts(modules, count)
    cutoffs = {int(weights[name]) for name in ("radial_embedding.cutoff_fn.p", "pair_repulsion_fn.p") if name in weights}
    if len(cutoffs) > 1:
        raise ConversionError(f"envelopes of radial functions and repulsion must be of one order, got {sorted(cutoffs)}")
    transform = radial._modules.get("distance_transform")
    neighbors = {float(layer.avg_num_neighbors) for layer in layers}
    if len(neighbors) > 1:
        raise ConversionError(f"avg_num_neighbors must be one number, got {sorted(neighbors)}")
    sizes = [_radial_sizes(modules, f"interactions.{n}.", 2 * channels * (kind == "nonlinear")) for n, kind in enumerate(kinds)]
    if len({tuple(size[:-1]) for size in sizes}) > 1:
        raise ConversionError(f"radial networks of all layers must have the same widths, got {sizes}")
    return ScaleShiftMACEConfig(
        elements=tuple(int(z) for z in weights["atomic_numbers"]),
        cutoff=float(weights["r_max"]),
        channels=channels,
        lmax_hidden=lmax_hidden,
        lmax_edge=lmax_edge,
        correlation=tuple(int(modules[f"products.{n}.symmetric_contractions.contractions.0"].correlation) for n in range(count)),
        layers=count,
        first_layer=kinds[0],
        other_layers=kinds[-1],
        average_neighbors=neighbors.pop(),
        radial=_known(radial._modules["bessel_fn"], RADIAL, "radial_embedding.bessel_fn"),
        radial_basis=sizes[0][0],
        radial_widths=tuple(sizes[0][1:-1]),
        envelope_order=cutoffs.pop(),
        envelope_on="basis" if getattr(radial, "apply_cutoff", True) else "weights",
        distance_transform="none" if transform is None else _known(transform, TRANSFORMS, "radial_embedding.distance_transform"),
        readouts=readouts,
        readout_width=width,
        last_readout=last_readout,
        repulsion="pair_repulsion_fn" in modules,
        message_channels=tuple(layout[0].channels for layout in sent),
        lmax_message=lmax_sent.pop(),
        **_embedded_systems(modules),
        embedding_readout="embedding_readout" in modules,
        data_sets=heads if heads > 1 else 0,
    )


def translate(model: ScaleShiftMACE, weights: Mapping[str, Tensor], heads: int, chosen: list[int], gains: Gains) -> dict[str, Tensor]:
    """Our state dict from mace-torch's weights, in float64, of the chosen of so many heads."""
    config, state = model.config, {}
    numbers, channels = [int(z) for z in weights["atomic_numbers"]], config.channels
    order, elements = torch.tensor(sorted(range(len(numbers)), key=numbers.__getitem__)), len(numbers)  # ours go by atomic number
    ratio = gains.silu / ScalarMLP.SILU_GAIN
    state["embedding"] = weights["node_embedding.linear.weight"].view(elements, channels)[order] / elements**0.5
    basis = "radial_embedding.bessel_fn."
    height = 1.0
    if config.radial != "chebyshev":
        state["edges.radial.points"] = weights[basis + {"bessel": "bessel_weights", "gaussian": "gaussian_weights"}[config.radial]]
    if config.radial == "bessel":
        height = float(weights[basis + "prefactor"]) / math.sqrt(2 / config.cutoff)  # one but for rounding
    if config.distance_transform != "none":
        names = ("q", "p", "a") if config.distance_transform == "agnesi" else ("alpha",)
        values = torch.stack([weights[f"radial_embedding.distance_transform.{name}"].reshape(()) for name in names])
        state["edges.radial.transform"] = values if len(names) > 1 else values[0]
        state["edges.radial.radii"] = weights["radial_embedding.distance_transform.covalent_radii"][list(config.elements)]
    if config.repulsion:
        state["repulsion.screening"] = torch.stack([weights[f"pair_repulsion_fn.{name}"] for name in ("a_exp", "a_prefactor")])
        state["repulsion.radii"] = weights["pair_repulsion_fn.covalent_radii"][list(config.elements)]

    if config.system_inputs:
        state |= _system_embeddings(weights)
    if config.embedding_readout:
        state["embedding_readout.last"] = weights["embedding_readout.linear.weight"].view(channels, heads).T[chosen]

    def matrices(name: str, count: int, *shape: int) -> list[Tensor]:
        """The first matrices of a flat weight; of a last layer that keeps more than scalars the others are not used."""
        return _split(weights[name], [shape] * count)

    def by_element(name: str, count: int) -> list[Tensor]:
        return [x.transpose(0, 1)[order] / elements**0.5 for x in matrices(name, count, channels, elements, channels)]

    def put(ours: str, values: Iterable[Tensor]) -> None:
        state.update({f"{ours}.weights.{n}": value for n, value in enumerate(values)})

    for n, layer in enumerate(model.layers):
        ours, theirs, product = f"layers.{n}.", f"interactions.{n}.", f"products.{n}."
        degrees_in, degrees_out, sent = len(layer.linear_up.in_layout), len(layer.linear_out.out_layout), layer.convolution.channels
        nonlinear = isinstance(layer, NonLinearLayer)
        put(f"{ours}linear_up", matrices(f"{theirs}linear_up.weight", len(layer.linear_up.out_layout), channels, sent))
        widths = [block.channels for block in layer.linear_sums.out_layout]
        last = f"net.{3 * len(config.radial_widths)}.bias" if nonlinear else f"layer{len(config.radial_widths)}.weight"
        published = _paths(config.lmax_edge, weights[f"{theirs}conv_tp_weights.{last}"].shape[-1] // sent)
        paths = [(p.l3, p.l1, p.l2) for p in layer.convolution.paths]
        place = [published.index(path) for path in paths]
        sums = _split(weights[f"{theirs}linear{'_1' * nonlinear}.weight"], [(sent, widths[l3]) for l3, _, _ in published])
        for l in range(len(widths)):
            found = [sums[at] for at, path in zip(place, paths, strict=True) if path[0] == l]
            share = len(found) / sum(1 for path in published if path[0] == l)  # others carry zeros: features have no such degree
            state[f"{ours}linear_sums.weights.{l}"] = torch.cat(found) * share**0.5
        if nonlinear:
            state |= {f"edges.{key}": value for key, value in _pair_networks(config, weights, n, order, place, sent, height).items()}
            state[f"{ours}divisor"] = torch.stack([weights[f"{theirs}alpha"], weights[f"{theirs}beta"]])
            shapes = [(sent, width) for width in widths[: len(layer.linear_up.out_layout)]]
            put(f"{ours}linear_own", _split(weights[f"{theirs}linear_res.weight"], shapes))
            gated = matrices(f"{theirs}linear_2.weight", len(widths), channels, channels)
            factors = [ratio] + [gains.sigmoid / SIGMOID_GAIN] * (len(widths) - 1)
            put(f"{ours}linear_gated", [value * factor for value, factor in zip(gated, factors, strict=True)])
            put(f"{ours}residual", matrices(f"{theirs}skip_tp.weight", min(degrees_in, degrees_out), channels, channels))
        else:
            radial = [weights[f"{theirs}conv_tp_weights.layer{k}.weight"] for k in range(len(config.radial_widths) + 1)]
            radial[-1] = radial[-1].unflatten(1, (len(published), sent))[:, place].flatten(1)
            put(f"edges.weights.{n}", [value * (ratio if k else height) for k, value in enumerate(radial)])
            if layer.density:
                put(f"edges.densities.{n}", [weights[f"{theirs}density_fn.layer0.weight"] * height])
            own = "residual" if layer.mixing is None else "mixing"
            put(f"{ours}{own}", by_element(f"{theirs}skip_tp.weight", len(widths) if layer.mixing else min(degrees_in, degrees_out)))
        state[f"{ours}product_weights"] = product_weights(layer.product, weights, f"{product}symmetric_contractions.", elements)[order]
        put(f"{ours}linear_out", matrices(f"{product}linear.weight", degrees_out, channels, channels))
    for n, readout in enumerate(model.readouts):
        name, width = f"readouts.{n}.", config.readout_width
        if readout.first is None:
            state[f"{name}last"] = weights[f"{name}linear.weight"].view(channels, heads).T[chosen]
            continue
        among = ratio / heads**0.5  # divided by the root of all channels; those of other heads are masked
        first = weights[f"{name}linear_1.weight"].view(channels, heads, width)
        state[f"{name}first.weights.0"] = first[:, chosen].flatten(1)
        last = weights[f"{name}linear_2.weight"].view(heads, width, heads)
        state[f"{name}last"] = torch.stack([last[h, :, h] for h in chosen]) * among
        if isinstance(readout, BiasedReadout):
            middle = weights[f"{name}linear_mid.weight"].view(heads, width, heads, width)
            state[f"{name}middle"] = torch.stack([middle[h, :, h] for h in chosen]) * among
            state[f"{name}middle_bias"] = weights[f"{name}linear_mid.bias"].view(heads, width)[chosen]
            state[f"{name}last_bias"] = weights[f"{name}linear_2.bias"][chosen]
    scale = weights.get("scale_shift.scale", torch.ones((), dtype=torch.float64))
    state["scale"] = (scale.expand(heads) if scale.numel() == 1 else scale)[chosen]
    return state


def _system_embeddings(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tables of a matrix times what is joined of several tables: a sum of rows of one for each."""
    place = "joint_embedding.embedders."
    names = [key.removeprefix(place).removesuffix(".weight") for key in weights if key.startswith(place)]  # in the order they are joined in
    tables = [weights[f"{place}{name}.weight"] for name in names]
    parts = weights["joint_embedding.project.0.weight"].split([table.shape[1] for table in tables], 1)
    return {f"system_embeddings.{EMBEDDINGS[name]}": table @ part.T for name, table, part in zip(names, tables, parts, strict=True)}


def _pair_networks(
    config: ScaleShiftMACEConfig, weights: Mapping[str, Tensor], n: int, order: Tensor, place: list[int], sent: int, height: float
) -> dict[str, Tensor]:
    """Those of a non-linear layer, of which only the paths in ``place`` are wanted."""
    theirs, elements, state = f"interactions.{n}.", len(order), {}
    for end, name in enumerate(("source_embedding", "target_embedding")):
        state[f"elements.{n}.{end}"] = weights[f"{theirs}{name}.weight"].view(elements, config.channels)[order] / elements**0.5
    for kind, name, hidden in (("weights", "conv_tp_weights", len(config.radial_widths)), ("densities", "density_fn", 1)):
        for part in ("weight", "bias"):
            values = [weights[f"{theirs}{name}.net.{3 * k}.{part}"] for k in range(hidden + 1)]
            if kind == "weights":
                values[-1] = values[-1].unflatten(0, (-1, sent))[place].flatten(0, 1)
            if part == "weight":
                values[0] = torch.cat([values[0][:, : config.radial_basis] * height, values[0][:, config.radial_basis :]], 1)
            state |= {f"{kind}.{n}.linears.{k}.{part}": value for k, value in enumerate(values)}
            state |= {f"{kind}.{n}.norms.{k}.{part}": weights[f"{theirs}{name}.net.{3 * k + 1}.{part}"] for k in range(hidden)}
    return state


def _paths(lmax_edge: int, count: int) -> list[tuple[int, int, int]]:
    """So many couplings (l3, l1, l2) of features of degrees up to the one that makes their number, in mace-torch's order."""
    degrees = range(lmax_edge + 1)
    for lmax in range(2 * lmax_edge + 1):
        triples = itertools.product(degrees, range(lmax + 1), degrees)
        found = [(l3, l1, l2) for l3, l1, l2 in triples if abs(l1 - l2) <= l3 <= l1 + l2 and (l1 + l2 + l3) % 2 == 0]
        if len(found) == count:
            return found
    raise ConversionError(f"weights must be of all couplings of degrees 0, 1, ... with harmonics up to {lmax_edge}, got {count} couplings")


def _split(flat: Tensor, shapes: list[tuple[int, ...]]) -> list[Tensor]:
    """Matrices of a flat weight, one behind the other; what is left over is of no use here."""
    sizes = [math.prod(shape) for shape in shapes]
    return [part.view(shape) for part, shape in zip(flat[: sum(sizes)].split(sizes), shapes, strict=True)]


def product_weights(
    product: SymmetricContraction, weights: Mapping[str, Tensor], name: str, elements: int
) -> Float[Tensor, "elements num_weights channels"]:
    """Weights of our minimal basis of polynomials for those of the file's, whose polynomials are in its U matrices."""
    lmax, found = len(product.in_layout) - 1, []
    for number, l in enumerate(product.out_degrees):
        for order in range(1, product.correlation + 1):
            basis = symmetric_basis(lmax, order, l)
            if not len(basis):
                continue
            contraction = f"{name}contractions.{number}."
            place = "weights_max" if order == product.correlation else f"weights.{product.correlation - order - 1}"
            polynomials = collect(weights[f"{contraction}U_matrix_{order}"], order, l)
            change = _in_basis(polynomials, basis / len(basis) ** 0.5, f"{contraction}U_matrix_{order}")
            new = torch.einsum("kp,ekc->epc", change, weights[contraction + place])
            found.append(new.expand(elements, -1, -1))  # of a product that knows no elements: one for all
    return torch.cat(found, 1)


def collect(matrix: Tensor, order: int, l: int) -> Float[Tensor, "paths components monomials"]:
    """Polynomials of a U matrix [2l+1, size, ..., size, paths], without its first axis where l is 0: like terms are put together."""
    matrix = matrix if l else matrix.unsqueeze(0)
    size = matrix.shape[1]
    place = {t: n for n, t in enumerate(itertools.combinations_with_replacement(range(size), order))}
    columns = torch.tensor([place[tuple(sorted(t))] for t in itertools.product(range(size), repeat=order)])
    terms = matrix.flatten(1, order)  # [components, tuples, paths]
    return terms.new_zeros(len(terms), len(place), terms.shape[2]).index_add_(1, columns, terms).permute(2, 0, 1)


def _in_basis(polynomials: Tensor, basis: Tensor, name: str) -> Float[Tensor, "paths ours"]:
    """Coefficients of polynomials in our basis. Raises ConversionError where they are not in its span."""
    wanted = polynomials.flatten(1).T
    coefficients = torch.linalg.lstsq(basis.flatten(1).T, wanted).solution
    error = float((basis.flatten(1).T @ coefficients - wanted).abs().max())
    if error > 1e-5:  # single precision
        raise ConversionError(f"{name} must be of equivariant polynomials, got one that is off by {error:.1e}: the file is damaged")
    return coefficients.T


def _modules(record: Record, place: str = "") -> Iterator[tuple[str, Record]]:
    yield place, record
    for name, module in vars(record).get("_modules", {}).items():
        if isinstance(module, Record):
            yield from _modules(module, f"{place}.{name}".lstrip("."))


def _tensors(module: Record) -> Iterator[tuple[str, Tensor]]:
    for kind in ("_parameters", "_buffers"):
        for name, value in vars(module).get(kind, {}).items():
            if isinstance(value, Tensor):
                yield name, value.detach()


def _name(record: Any) -> str:
    return record.class_name.rpartition(".")[2]


def _known(module: Record, names: Mapping[str, Any], place: str) -> Any:
    if _name(module) not in names:
        raise ConversionError(f"{place} must be {' or '.join(names)}, got {module.class_name}, which has no counterpart here")
    return names[_name(module)]


def _layout(irreps: Any) -> Layout:
    """Of e3nn's Irreps as read: text, or records of (channels, (l, parity))."""
    if isinstance(irreps, str):
        return parse_irreps(irreps)
    found = []
    for block in irreps.arguments[0]:
        channels, irrep = block.arguments[0]
        l, parity = irrep.arguments[0]
        found.append(f"{channels}x{l}{'e' if parity == 1 else 'o'}")
    return parse_irreps("+".join(found))


def _require_layout(layer: Record, n: int, name: str, wanted: Layout) -> None:
    if hasattr(layer, name) and _layout(getattr(layer, name)) != wanted:
        got = format_irreps(_layout(getattr(layer, name)))
        raise ConversionError(f"{name} of interactions.{n} must be {format_irreps(wanted)}, got {got}")


def _radial_sizes(modules: Mapping[str, Record], place: str, known: int) -> list[int]:
    """Widths of the network of weights, of whose inputs so many are no radial functions. Raises ConversionError for other densities."""
    first, *others = (int(n) for n in modules[f"{place}conv_tp_weights"].hs)
    if known and list(modules[f"{place}density_fn"].hs)[1:] != [DENSITY_WIDTH, 1]:
        raise ConversionError(
            f"{place}density_fn must have the widths {[DENSITY_WIDTH, 1]}, got {list(modules[f'{place}density_fn'].hs)[1:]}"
        )
    return [first - known, *others]


def _embedded_systems(modules: Mapping[str, Record]) -> dict[str, tuple[int, int]]:
    """Our settings for charges and spins. Raises ConversionError where something else is embedded, or otherwise."""
    found = {}
    if "joint_embedding" not in modules:
        return found
    _known(modules["joint_embedding"], {"GenericJointEmbedding": None}, "joint_embedding")
    if "embedding_readout" in modules:
        _known(modules["embedding_readout"], {"LinearReadoutBlock": None}, "embedding_readout")
    for name, of_name in modules["joint_embedding"].specs.items():
        if name not in EMBEDDINGS:
            raise ConversionError(f"embedding_specs must be of {' or '.join(EMBEDDINGS)}, got {name}, which structures do not have here")
        for option, wanted in (("type", "categorical"), ("per", "graph")):
            if of_name[option] != wanted:
                raise ConversionError(f"{option} of the embedding {name} must be {wanted}, got {of_name[option]}")
        low = -int(of_name.get("offset", 0))
        found[EMBEDDINGS[name] + "s"] = low, low + int(of_name["num_classes"]) - 1
    return found


def _check_readouts(modules: Mapping[str, Record], layers: int) -> tuple[str, str, int]:
    """Which layers are read from, the kind of the last readout and its width. Raises ConversionError for other kinds of readouts."""
    count = sum(1 for name in modules if name.startswith("readouts.") and name.count(".") == 1)
    if count not in (1, layers):
        raise ConversionError(f"readouts must be of the last layer or of each of {layers}, got {count}")
    for n in range(count if layers == 1 else count - 1):
        _known(modules[f"readouts.{n}"], {"LinearReadoutBlock": None}, f"readouts.{n}")
    kind, width = "perceptron", 16
    if layers > 1:
        last = modules[f"readouts.{count - 1}"]
        kind, hidden = _known(last, READOUTS, f"readouts.{count - 1}"), _layout(last.hidden_irreps)
        if [block.irrep for block in hidden] != ["0e"]:
            raise ConversionError(f"MLP_irreps must be scalars, got {format_irreps(hidden)}")
        width = hidden[0].channels // int(getattr(last, "num_heads", 1))
    return ("last" if count == 1 and layers > 1 else "all"), kind, width


def _gains(modules: Mapping[str, Record]) -> Gains:
    """By which activations are multiplied. Raises ConversionError for other activations."""
    found: dict[str, dict[str, float]] = {"silu": {}, "sigmoid": {}}
    for place, module in modules.items():
        activations = []
        if _name(module) == "normalize2mom":
            activations = [("sigmoid" if ".act_gates." in place else "silu", module.f, module.cst)]
        elif place.endswith(".equivariant_nonlin"):
            kind = _known(module, {"GatedEquivariantBlock": "mace", "Gate": "e3nn"}, place)
            if kind == "mace":  # e3nn's, which mace-torch had before, is made of normalize2mom
                activations = [("silu", module._act_scalar, module._scalar_cst), ("sigmoid", module._act_gate, module._gate_cst)]
                if module._layout_is_ir_mul:
                    raise ConversionError(
                        f"{place} must have e3nn's order of numbers (mul_ir), got ir_mul; write the file without cuequivariance"
                    )
        for wanted, function, gain in activations:
            if function is None and wanted == "sigmoid":  # a gate of scalars alone
                continue
            if getattr(function, "class_name", "") != f"torch.nn.functional.{wanted}":
                raise ConversionError(f"the activation of {place} must be {wanted}, got {getattr(function, 'class_name', function)}")
            found[wanted][place] = float(gain)
    for name, gains in found.items():
        if len(set(gains.values())) > 1:
            raise ConversionError(f"e3nn's factor of {name} must be the same everywhere, got {sorted(set(gains.values()))}")
    return Gains(**{name: next(iter(gains.values())) for name, gains in found.items() if gains})


def _screening() -> Tensor:
    return torch.tensor([factor for factor, _ in SCREENING], dtype=torch.float64)
