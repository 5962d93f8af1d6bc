"""MACE of mace-torch: model files, read without mace or e3nn, as our models."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from equimol.convert.archive import ConversionError, Record, read_archive
from equimol.models.base import Potential
from equimol.models.composition import shifted
from equimol.models.scale_shift_mace import SCREENING, ScaleShiftMACE, ScaleShiftMACEConfig
from equimol.nn import ScalarMLP
from equimol.o3 import Layout, format_irreps, natural_layout, parse_irreps
from equimol.tensor_products import SymmetricContraction
from equimol.tensor_products.symmetric_contraction import symmetric_basis

MODELS = ("MACE", "ScaleShiftMACE")
KNOWN = {
    "node_embedding", "radial_embedding", "pair_repulsion_fn", "spherical_harmonics", "atomic_energies_fn",
    "interactions", "products", "readouts", "scale_shift",
}  # fmt: skip
LAYERS = {
    "RealAgnosticInteractionBlock": "plain",
    "RealAgnosticResidualInteractionBlock": "residual",
    "RealAgnosticDensityInteractionBlock": "density",
    "RealAgnosticDensityResidualInteractionBlock": "density_residual",
}
RADIAL = {"BesselBasis": "bessel", "GaussianBasis": "gaussian", "ChebychevBasis": "chebyshev"}
TRANSFORMS = {"AgnesiTransform": "agnesi", "SoftTransform": "soft"}
#: what mace-torch can do and this reader does not know, with what a file must say, or nothing
FIXED: dict[str, Any] = {"use_so3": False, "embedding_specs": None}


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
    return model_of(config, weights, heads, chosen, _silu_gain(modules))


def model_of(config: ScaleShiftMACEConfig, weights: Mapping[str, Tensor], heads: list[str], chosen: list[int], gain: float) -> Potential:
    """The potential with these weights, which bear mace-torch's names; ``gain``: by which e3nn multiplies silu."""
    dtype = weights["node_embedding.linear.weight"].dtype
    exact = {name: value.double() if value.is_floating_point() else value for name, value in weights.items()}
    numbers = [int(z) for z in weights["atomic_numbers"]]
    model = ScaleShiftMACE(config)
    state = translate(model, exact, len(heads), chosen, gain)
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
    for n, layer in enumerate(layers):
        inputs = natural_layout(lmax_hidden if n else 0, channels)
        _require_layout(layer, n, "node_feats_irreps", inputs)
        _require_layout(layer, n, "edge_irreps", inputs)
        _require_layout(layer, n, "target_irreps", natural_layout(lmax_edge, channels))
        if n < count - 1:
            _require_layout(layer, n, "hidden_irreps", natural_layout(lmax_hidden, channels))
    readouts, last = _check_readouts(modules, count)
    cutoffs = {int(weights[name]) for name in ("radial_embedding.cutoff_fn.p", "pair_repulsion_fn.p") if name in weights}
    if len(cutoffs) > 1:
        raise ConversionError(f"envelopes of radial functions and repulsion must be of one order, got {sorted(cutoffs)}")
    transform = radial._modules.get("distance_transform")
    neighbors = {float(layer.avg_num_neighbors) for layer in layers}
    if len(neighbors) > 1:
        raise ConversionError(f"avg_num_neighbors must be one number, got {sorted(neighbors)}")
    sizes = [[int(n) for n in modules[f"interactions.{n}.conv_tp_weights"].hs] for n in range(count)]
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
        readout_width=last,
        repulsion="pair_repulsion_fn" in modules,
        data_sets=heads if heads > 1 else 0,
    )


def translate(model: ScaleShiftMACE, weights: Mapping[str, Tensor], heads: int, chosen: list[int], gain: float) -> dict[str, Tensor]:
    """Our state dict from mace-torch's weights, in float64, of the chosen of so many heads."""
    config, state = model.config, {}
    numbers, channels = [int(z) for z in weights["atomic_numbers"]], config.channels
    order, elements = torch.tensor(sorted(range(len(numbers)), key=numbers.__getitem__)), len(numbers)  # ours go by atomic number
    ratio = gain / ScalarMLP.SILU_GAIN
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

    def matrices(name: str, count: int, *shape: int) -> list[Tensor]:
        """The first matrices of a flat weight; of a last layer that keeps more than scalars the others are not used."""
        size = math.prod(shape)
        return list(weights[name][: count * size].view(count, *shape))

    def by_element(name: str, count: int) -> list[Tensor]:
        return [x.transpose(0, 1)[order] / elements**0.5 for x in matrices(name, count, channels, elements, channels)]

    def put(ours: str, values: Iterable[Tensor]) -> None:
        state.update({f"{ours}.weights.{n}": value for n, value in enumerate(values)})

    for n, layer in enumerate(model.layers):
        ours, theirs, product = f"layers.{n}.", f"interactions.{n}.", f"products.{n}."
        degrees_in, degrees_out = len(layer.linear_up.out_layout), len(layer.linear_out.out_layout)
        paths = layer.convolution.paths
        published = sorted(range(len(paths)), key=lambda p: (paths[p].l3, paths[p].i1, paths[p].l2))
        place = [published.index(p) for p in range(len(paths))]
        put(f"{ours}linear_up", matrices(f"{theirs}linear_up.weight", degrees_in, channels, channels))
        radial = [weights[f"{theirs}conv_tp_weights.layer{k}.weight"] for k in range(len(config.radial_widths) + 1)]
        radial[-1] = radial[-1].unflatten(1, (len(paths), channels))[:, place].flatten(1)
        put(f"edges.weights.{n}", [value * (ratio if k else height) for k, value in enumerate(radial)])
        if layer.density:
            put(f"edges.densities.{n}", [weights[f"{theirs}density_fn.layer0.weight"] * height])
        sums = matrices(f"{theirs}linear.weight", len(paths), channels, channels)
        degrees = [b.l for b in layer.linear_sums.out_layout]
        put(f"{ours}linear_sums", [torch.cat([sums[place[p]] for p in range(len(paths)) if paths[p].l3 == l]) for l in degrees])
        if layer.mixing is not None:
            put(f"{ours}mixing", by_element(f"{theirs}skip_tp.weight", len(degrees)))
        else:
            put(f"{ours}residual", by_element(f"{theirs}skip_tp.weight", min(degrees_in, degrees_out)))
        state[f"{ours}product_weights"] = product_weights(layer.product, weights, f"{product}symmetric_contractions.", elements)[order]
        put(f"{ours}linear_out", matrices(f"{product}linear.weight", degrees_out, channels, channels))
    for n, readout in enumerate(model.readouts):
        ours, theirs = f"readouts.{n}.", f"readouts.{n}."
        if readout.first is None:
            state[f"{ours}last"] = weights[f"{theirs}linear.weight"].view(channels, heads).T[chosen]
        else:
            first = weights[f"{theirs}linear_1.weight"].view(channels, heads, config.readout_width)
            state[f"{ours}first.weights.0"] = first[:, chosen].flatten(1)
            last = weights[f"{theirs}linear_2.weight"].view(heads, config.readout_width, heads)
            state[f"{ours}last"] = torch.stack([last[h, :, h] for h in chosen]) * (ratio / heads**0.5)  # others are masked
    scale = weights.get("scale_shift.scale", torch.ones((), dtype=torch.float64))
    state["scale"] = (scale.expand(heads) if scale.numel() == 1 else scale)[chosen]
    return state


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


def _check_readouts(modules: Mapping[str, Record], layers: int) -> tuple[str, int]:
    """Which layers are read from, and the width of the last readout. Raises ConversionError for other kinds of readouts."""
    count = sum(1 for name in modules if name.startswith("readouts.") and name.count(".") == 1)
    if count not in (1, layers):
        raise ConversionError(f"readouts must be of the last layer or of each of {layers}, got {count}")
    for n in range(count):
        linear = n < count - 1 or layers == 1
        _known(modules[f"readouts.{n}"], {"LinearReadoutBlock" if linear else "NonLinearReadoutBlock": None}, f"readouts.{n}")
    width = 16
    if layers > 1:
        last = modules[f"readouts.{count - 1}"]
        hidden = _layout(last.hidden_irreps)
        if [block.irrep for block in hidden] != ["0e"]:
            raise ConversionError(f"MLP_irreps must be scalars, got {format_irreps(hidden)}")
        width = hidden[0].channels // int(getattr(last, "num_heads", 1))
    return ("last" if count == 1 and layers > 1 else "all"), width


def _silu_gain(modules: Mapping[str, Record]) -> float:
    """By which e3nn multiplies silu, an estimate of its own. Raises ConversionError for other activations."""
    found = {}
    for place, module in modules.items():
        if _name(module) == "normalize2mom":
            if getattr(module.f, "class_name", "") != "torch.nn.functional.silu":
                raise ConversionError(f"the activation of {place} must be silu, got {getattr(module.f, 'class_name', module.f)}")
            found[place] = float(module.cst)
    if len(set(found.values())) > 1:
        raise ConversionError(f"e3nn's factor of silu must be the same everywhere, got {sorted(set(found.values()))}")
    return next(iter(found.values()), ScalarMLP.SILU_GAIN)


def _screening() -> Tensor:
    return torch.tensor([factor for factor, _ in SCREENING], dtype=torch.float64)
