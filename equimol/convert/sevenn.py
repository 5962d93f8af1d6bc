"""SevenNet's checkpoints (sevenn 0.9 to 0.13), as our models."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from equimol.convert.archive import ConversionError, read_archive
from equimol.convert.names import plain, require
from equimol.models import for_data_set
from equimol.models.base import Potential
from equimol.models.composition import shifted
from equimol.models.nequip import ACTIVATIONS, NequIP, NequIPConfig
from equimol.o3 import Block, Layout, format_irreps, parse_irreps, wigner_3j

#: what the published code can do and this reader does not know, with what it must say
_FIXED: dict[str, Any] = {
    "_model_type": "E3_equivariant_model",
    "interaction_type": "nequip",
    "readout_as_fcn": False,
    "use_bias_in_linear": False,
    "optimize_by_reduce": True,
}
ACTIVATION_NAMES = {"silu": "silu", "ssp": "shifted_softplus", "tanh": "tanh"}
#: 1 / sqrt(mean of f(z)^2) as e3nn estimates it, from a million random numbers of seed 0; the models were trained with these
GAINS = (("silu", 1.6791767923989418), ("shifted_softplus", 1.878204668541552), ("tanh", 1.5937334472592695))
SELF_CONNECTIONS = {"nequip": "element", "linear": "linear"}
MODAL_TERMS = {
    "embedding": "use_modal_node_embedding",
    "linear_up": "use_modal_self_inter_intro",
    "linear_sums": "use_modal_self_inter_outro",
    "readout": "use_modal_output_block",
}
#: what 0.9 and before called some of the modules; others had spaces where there are underscores now
OLD_NAMES = {
    "EdgeEmbedding": "edge_embedding",
    "reducing_nn_input_to_hidden": "reduce_input_to_hidden",
    "reducing_nn_hidden_to_energy": "reduce_hidden_to_energy",
}
_NO_WEIGHTS = re.compile(r"\.(output_mask|_w3j_\d+_\d+_\d+|gate\.mul\.weight|convolution\.weight|linear\.bias)$")


def read_sevenn(path: str | Path, modal: str | None = None) -> Potential:
    """The potential in a checkpoint of SevenNet.

    Args:
        path: of ``sevenn train`` (``.pth``), or one that the package carries.
        modal: for which of the fidelities, of a file with several; without, the model has them all as data sets.

    Raises:
        ConversionError: the file, or an option of the model, is not understood; the message says which.
    """
    content = read_archive(path)
    if not (isinstance(content, dict) and isinstance(content.get("model_state_dict"), dict) and isinstance(content.get("config"), dict)):
        raise ConversionError(f"{path} is no checkpoint of SevenNet: it lacks 'model_state_dict' and 'config'; give one of `sevenn train`")
    model = model_of(content["config"], content["model_state_dict"])
    if modal is None:
        return model
    try:
        return for_data_set(model, modal)
    except ValueError as error:
        raise ConversionError(f"{path}: {str(error).replace('data_set', 'modal')}") from None


def model_of(settings: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Potential:
    """The potential with these settings and weights, in the precision of the weights."""
    published = _Published(settings, weights)
    model = NequIP(published.config)
    ours = {name: value for name, value in model.state_dict().items() if name == "element_scales"} | published.state(model)
    scale = published.scales()
    if not isinstance(scale, float):
        ours["element_scales"], scale = scale, 1.0
    references = published.references()
    published.require_all_taken()
    model = model.to(ours["embedding"].dtype)
    model.load_state_dict(ours, strict=True)
    return shifted(model, references, scale).eval()


class _Way(NamedTuple):
    """A path of the published convolution: kinds (degree, parity) of features and sums, degree of the harmonics, its channels."""

    source: tuple[int, int]
    l2: int
    target: tuple[int, int]
    channels: int


class _Published:
    """A published model: settings that were checked, and weights that are given out once."""

    def __init__(self, settings: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
        self.settings, self.weights, self.taken = settings, {_current(name): value for name, value in weights.items()}, set()
        require(settings, _FIXED, "SevenNet")
        if (plain(settings.get("cuequivariance_config")) or {}).get("use"):
            raise ConversionError("cuequivariance_config.use must be false, got true; write the file again with `sevenn cp` without it")
        self.modals = self._modals()
        self.numbers = {int(z): int(n) for z, n in self._get("_type_map").items()}
        self.elements = sorted(self.numbers)
        self.order = torch.tensor([self.numbers[z] for z in self.elements])  # ours go by atomic number
        self.parity = bool(self._get("is_parity"))
        lmax, lmax_edge = int(self._get("lmax")), int(settings.get("lmax_edge", -1))
        self.lmax_edge = lmax_edge if lmax_edge > 0 else lmax
        lmax_node = int(settings.get("lmax_node", -1))
        self.hidden = self._hidden(lmax_node if lmax_node > 0 else lmax)
        self.kinds = self._self_connections()
        self.config = self._config()

    # --- settings ----------------------------------------------------------------------------------------------------------------

    def _get(self, name: str) -> Any:
        if name not in self.settings:
            raise ConversionError(f"the settings of the file must have {name!r}, got {', '.join(map(str, self.settings))}")
        return self.settings[name]

    def _modals(self) -> list[str]:
        if not self.settings.get("use_modality", False):
            return []
        names = sorted(self._get("_modal_map"), key=self._get("_modal_map").__getitem__)
        if len(names) < 2:
            raise ConversionError(f"a model of several fidelities must have two or more, got {names}")
        return names

    def _self_connections(self) -> list[str]:
        given, layers = self.settings.get("self_connection_type", "nequip"), len(self.hidden) - 1
        given = [given] * layers if isinstance(given, str) else list(given)
        unknown = [kind for kind in given if kind not in SELF_CONNECTIONS]
        if unknown or len(given) != layers:
            raise ConversionError(f"self_connection_type must be nequip or linear for each of {layers} layers, got {given}")
        return [SELF_CONNECTIONS[kind] for kind in given]

    def _hidden(self, lmax: int) -> list[Layout]:
        """Irreps of the features in the published order: as stated, or those that the harmonics lead to."""
        layers, stated = int(self._get("num_convolution_layer")), self.settings.get("irreps_manual", False)
        if stated:
            hidden = [parse_irreps(str(text)) for text in stated]
            if len(hidden) != layers + 1:
                raise ConversionError(f"irreps_manual must list {layers + 1} features, got {len(hidden)}")
        else:
            channels = int(self._get("channel"))
            hidden = [(Block(0, 1, channels),)]
            for layer in range(layers):
                reached = self._reached(hidden[-1], 0 if layer == layers - 1 else lmax, only_even=layer == layers - 1)
                hidden.append(tuple(Block(*kind, channels) for kind in reached))
        for layout in hidden:
            degrees = [block.l for block in layout]
            if degrees != sorted(degrees, key=bool):
                raise ConversionError(f"irreps must have scalars before all else, got {format_irreps(layout)}")
        return hidden

    def _reached(self, layout: Layout, lmax: int, only_even: bool) -> list[tuple[int, int]]:
        """Kinds of the sums over neighbours up to a degree, in e3nn's order: by degree, odd before even."""
        found = {(l3, self._parity_of(block, l2)) for block in layout for l2 in range(self.lmax_edge + 1) for l3 in _couple(block.l, l2)}
        return sorted(kind for kind in found if kind[0] <= lmax and (kind[1] == 1 or not only_even))

    def _parity_of(self, block: Block, l2: int) -> int:
        return block.parity * ((-1) ** l2 if self.parity else 1)

    def _config(self) -> NequIPConfig:
        settings = self.settings
        basis, envelope = dict(self._get("radial_basis")), dict(self._get("cutoff_function"))
        if basis.get("radial_basis_name") != "bessel":
            raise ConversionError(f"radial_basis_name must be bessel, got {basis.get('radial_basis_name')!r}")
        name = envelope.get("cutoff_function_name")
        if name not in ("poly_cut", "XPLOR"):
            raise ConversionError(f"cutoff_function_name must be poly_cut or XPLOR, got {name!r}")
        scalars, gates = settings.get("act_scalar", {"e": "silu", "o": "tanh"}), settings.get("act_gate", {"e": "silu", "o": "tanh"})
        if scalars["e"] != gates["e"]:
            raise ConversionError(f"even scalars and gates must have one activation, got {scalars['e']} and {gates['e']}")
        has_odd = any((block.l, block.parity) == (0, -1) for layout in self.hidden for block in layout)
        if has_odd and scalars["o"] != "tanh":
            raise ConversionError(f"odd scalars must have the activation tanh, got {scalars['o']}: it makes them even")
        try:
            return NequIPConfig(
                elements=tuple(self.elements),
                cutoff=float(self._get("cutoff")),
                hidden=tuple(format_irreps(tuple(sorted(layout, key=lambda b: (b.l, b.parity) != (0, 1)))) for layout in self.hidden),
                lmax_edge=self.lmax_edge,
                parity=self.parity,
                normalize_harmonics=bool(settings.get("_normalize_sph", _version(settings) >= (0, 10, 0))),
                radial_basis=int(basis.get("bessel_basis_num", 8)),
                radial_hidden=tuple(settings.get("weight_nn_hidden_neurons", (64, 64))),
                envelope="xplor" if name == "XPLOR" else "polynomial",
                envelope_order=int(envelope.get("poly_cut_p_value", 6)),
                envelope_start=float(envelope["cutoff_on"]) if name == "XPLOR" else None,
                self_connection=tuple(self.kinds),
                activation=_activation(scalars["e"]),
                radial_activation=_activation(settings.get("act_radial", "silu")),
                gains=GAINS,
                readout_width=sum(block.dim for block in self.hidden[-1]) // 2,
                train_denominator=bool(settings.get("train_denominator", settings.get("train_avg_num_neigh", False))),
                data_sets=len(self.modals),
                data_set_terms=tuple(term for term, option in MODAL_TERMS.items() if self.modals and settings.get(option, False)),
            )
        except ConversionError:
            raise
        except ValueError as error:
            raise ConversionError(f"the model has no counterpart here: {error}") from None

    # --- weights -----------------------------------------------------------------------------------------------------------------

    def take(self, name: str) -> Tensor:
        if name not in self.weights:
            raise ConversionError(f"the file has no weight {name!r}; it holds another model than its settings say")
        self.taken.add(name)
        return self.weights[name]

    def require_all_taken(self) -> None:
        left = [name for name, value in self.weights.items() if name not in self.taken and value.numel() and not _NO_WEIGHTS.search(name)]
        if left:
            raise ConversionError(f"weights of the file must all be known, got {', '.join(left)}; its settings do not speak of them")

    def state(self, model: NequIP) -> dict[str, Tensor]:
        """Our state dict, without the scales of elements."""
        basis = self.settings["radial_basis"]
        if basis.get("trainable_coeff", True):
            found = {"radial.basis.frequencies": self.take("edge_embedding.basis_function.coeffs")}
        else:  # float32 there, whatever the dtype of the model
            exact = [n * math.pi / self.config.cutoff for n in range(1, self.config.radial_basis + 1)]
            found = {"radial.basis.frequencies": torch.tensor(exact, dtype=torch.float32)}
        species = (Block(0, 1, len(self.elements)),)
        (table,), bias = self.linear("onehot_to_feature_x", species, self.hidden[0], "embedding")
        found |= {"embedding": table[self.order] / len(self.elements) ** 0.5} | _named("embedding_bias.bias", bias)
        for n, layer in enumerate(model.layers):
            found |= self._layer(n, layer)
        hidden = (Block(0, 1, self.config.readout_width),)
        (found["readout_hidden.weights.0"],), bias = self.linear("reduce_input_to_hidden", self.hidden[-1], hidden, "readout")
        (found["readout.weights.0"],), _ = self.linear("reduce_hidden_to_energy", hidden, (Block(0, 1, 1),))
        return found | _named("readout_bias.bias", bias)

    def _layer(self, n: int, layer: Any) -> dict[str, Tensor]:
        hidden_in, hidden_out = self.hidden[n], self.hidden[n + 1]
        inside = layer.gate.in_layout
        before_gate = tuple(sorted(inside, key=lambda block: (block.l, block.parity)))  # as e3nn has it
        up, up_bias = self.linear(f"{n}_self_interaction_1", hidden_in, hidden_in, "linear_up", layer.linear_up.out_layout)
        targets = self._reached(hidden_in, max(block.l for block in hidden_out), only_even=n == len(self.hidden) - 2)
        ways = self._ways(hidden_in, targets)
        sums = [way for kind in targets for way in ways if way.target == kind]  # as they stand there, block after block
        between = tuple(Block(*kind, sum(way.channels for way in sums if way.target == kind)) for kind in targets)
        mixing, mixing_bias = self.linear(f"{n}_self_interaction_2", between, before_gate, "linear_sums", inside)
        kinds = [(block.l, block.parity) for block in inside if (block.l, block.parity) in targets]
        mixing = [
            _rows(matrix, [way for way in sums if way.target == kind], _our_ways(layer, kind))
            for kind, matrix in zip(kinds, mixing, strict=True)
        ]
        if self.kinds[n] == "linear":
            own, _ = self.linear(f"{n}_self_connection_intro", hidden_in, before_gate, ours=inside)
        else:
            own = self._by_element(f"{n}_self_connection_intro.fc_tensor_product.weight", hidden_in, before_gate, inside)
        found = {"denominator": self.take(f"{n}_convolution.denominator").reshape(())}
        for name, matrices in (("linear_up", up), ("linear_sums", mixing), ("self_connection", own)):
            found |= {f"{name}.weights.{k}": matrix for k, matrix in enumerate(matrices)}
        found |= _named("linear_up_bias.bias", up_bias) | _named("linear_sums_bias.bias", mixing_bias)
        found = {f"layers.{n}.{name}": value for name, value in found.items()}
        return found | self._radial(n, layer, ways if _is_unsorted(self.settings) else sums)

    def _ways(self, layout: Layout, targets: list[tuple[int, int]]) -> list[_Way]:
        """Paths in the order in which the published code lists them."""
        return [
            _Way((block.l, block.parity), l2, (l3, self._parity_of(block, l2)), block.channels)
            for block in layout
            for l2 in range(self.lmax_edge + 1)
            for l3 in _couple(block.l, l2)
            if (l3, self._parity_of(block, l2)) in targets
        ]

    def linear(
        self, name: str, into: Layout, out: Layout, term: str = "", ours: Layout | None = None
    ) -> tuple[list[Tensor], Tensor | None]:
        """Matrices of a linear layer in the order of our layout, and what it adds to even scalars for each modal."""
        flat = self.take(f"{name}.linear.weight")
        modals = len(self.modals) if term and term in self.config.data_set_terms else 0
        blocks = [*into, Block(0, 1, modals)] if modals else list(into)
        found, start, bias = {}, 0, None
        for n, a in enumerate(blocks):
            for b in out:
                if (a.l, a.parity) != (b.l, b.parity):
                    continue
                matrix = flat[start : start + a.channels * b.channels].view(a.channels, b.channels)
                start += a.channels * b.channels
                if n == len(into):
                    bias = matrix
                else:
                    found[b.l, b.parity] = matrix
        if start != len(flat):
            raise ConversionError(f"{name}.linear.weight must have {start} numbers, got {len(flat)}: other features than the settings say")
        if modals:  # divided there by the square root of channels and modals, here of channels
            channels = next(block.channels for block in into if (block.l, block.parity) == (0, 1))
            found[0, 1] = found[0, 1] * (channels / (channels + modals)) ** 0.5
            bias = bias / (channels + modals) ** 0.5
        return [found[block.l, block.parity] for block in ours or out if (block.l, block.parity) in found], bias

    def _by_element(self, name: str, into: Layout, out: Layout, ours: Layout) -> list[Tensor]:
        flat, elements, found, start = self.take(name), len(self.elements), {}, 0
        for a in into:
            for b in out:
                if (a.l, a.parity) == (b.l, b.parity):
                    size = a.channels * elements * b.channels
                    weight = flat[start : start + size].view(a.channels, elements, b.channels).transpose(0, 1)
                    found[b.l, b.parity] = weight[self.order] / elements**0.5
                    start += size
        if start != len(flat):
            raise ConversionError(f"{name} must have {start} numbers, got {len(flat)}: other features than the settings say")
        return [found[block.l, block.parity] for block in ours if (block.l, block.parity) in found]

    def _radial(self, n: int, layer: Any, ways: list[_Way]) -> dict[str, Tensor]:
        depth = len(self.config.radial_hidden)
        theirs, own = f"{n}_convolution.weight_nn.layer", f"radial.networks.{n}"
        found = {f"{own}.hidden.{k}": self.take(f"{theirs}{k}.weight") for k in range(depth)}
        last = self.take(f"{theirs}{depth}.weight")
        width = sum(way.channels for way in ways)
        if last.shape[1] != width:
            got = last.shape[1]
            raise ConversionError(f"{theirs}{depth}.weight must have {width} columns, got {got}: other paths than the settings say")
        columns = dict(zip(ways, last.split([way.channels for way in ways], 1), strict=True))
        for k, group in enumerate(layer.convolution.groups):
            ours = [_way(layer, path) for path in group.paths]
            found[f"{own}.last.{k}"] = torch.cat([self._sign(n, way) * columns[way] for way in ours], 1)
        return found

    def _sign(self, n: int, way: _Way) -> float:
        """Of the published coupling by ours: it changed between releases of e3nn, and files carry theirs."""
        degrees = way.source[0], way.l2, way.target[0]
        name = "{}_convolution.convolution._compiled_main_left_right._w3j_{}_{}_{}".format(n, *degrees)
        if name not in self.weights:
            if min(degrees) > 0 and _is_unsorted(self.settings):
                raise ConversionError(f"the file has no {name!r}, without which the signs of its weights are unknown")
            return 1.0
        theirs, ours = self.weights[name].double(), wigner_3j(*degrees)
        for sign in (1.0, -1.0):
            if torch.allclose(theirs, sign * ours, atol=1e-5):
                return sign
        raise ConversionError(f"{name} must be the Wigner 3j symbol or its negative, got another: this file has another basis")

    # --- energies ----------------------------------------------------------------------------------------------------------------

    def scales(self) -> float | Tensor:
        """One for all, or [data sets or 1, elements]."""
        scale = self.take("rescale_atomic_energy.scale")
        if bool((scale == scale.flatten()[0]).all()):
            return float(scale.flatten()[0])
        scale = scale[..., self.order] if scale.shape[-1] == len(self.elements) else scale
        return scale.expand(max(1, len(self.modals)), len(self.elements)).clone()

    def references(self) -> dict:
        """eV by atomic number, of each modal where there are several."""
        shift = self.take("rescale_atomic_energy.shift").double()
        shift = shift[..., self.order] if shift.shape[-1] == len(self.elements) else shift
        tables = shift.expand(max(1, len(self.modals)), len(self.elements)).tolist()
        tables = [dict(zip(self.elements, table, strict=True)) for table in tables]
        return dict(zip(self.modals, tables, strict=True)) if self.modals else tables[0]


def _current(name: str) -> str:
    """The name of a weight since 0.10."""
    module, dot, rest = name.partition(".")
    module = module.replace(" ", "_")
    return OLD_NAMES.get(module, module) + dot + rest.replace("denumerator", "denominator")


def _couple(l1: int, l2: int) -> range:
    return range(abs(l1 - l2), l1 + l2 + 1)


def _version(settings: Mapping[str, Any]) -> tuple[int, ...]:
    numbers = re.findall(r"\d+", str(settings.get("version", "")))[:3]
    if len(numbers) < 3:
        raise ConversionError(f"version must be that of sevenn, such as 0.11.0, got {settings.get('version')!r}")
    return tuple(map(int, numbers))


def _is_unsorted(settings: Mapping[str, Any]) -> bool:
    """Whether weights of paths stand as the paths were listed, which ended with 0.11.0."""
    return _version(settings) < (0, 11, 0) or str(settings["version"]) == "0.11.0.dev0"


def _activation(name: str) -> str:
    if ACTIVATION_NAMES.get(name) not in ACTIVATIONS:
        raise ConversionError(f"activations must be among {', '.join(ACTIVATION_NAMES)}, got {name!r}")
    return ACTIVATION_NAMES[name]


def _way(layer: Any, path: Any) -> _Way:
    block = layer.convolution.in_layout[path.block]
    return _Way((block.l, block.parity), path.l2, (path.l3, path.p3), block.channels)


def _our_ways(layer: Any, kind: tuple[int, int]) -> list[_Way]:
    """Paths into a kind as their channels stand in our sums."""
    return [_way(layer, path) for group in layer.convolution.groups for path in group.paths_into(kind)]


def _rows(matrix: Tensor, theirs: list[_Way], ours: list[_Way]) -> Tensor:
    """The rows of a matrix, path by path, in our order."""
    parts = dict(zip(theirs, matrix.split([way.channels for way in theirs]), strict=True))
    return torch.cat([parts[way] for way in ours])


def _named(name: str, value: Tensor | None) -> dict[str, Tensor]:
    return {} if value is None else {name: value}
