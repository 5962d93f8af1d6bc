"""MACE of mace-torch, read into ours: the numbers are its own (benchmarks/peers/mace_golden.py)."""

import itertools
import json
import lzma
import math
import zlib
from pathlib import Path

import pytest
import torch
from ase.data import covalent_radii

from equimol.cli import main
from equimol.convert import ConversionError, read_archive
from equimol.convert.mace import Gains, _gains, _modules, _tensors, config_of, model_of, read_mace
from equimol.data.graph import AtomicGraph
from equimol.models import core, for_data_set, load, save
from equimol.models.scale_shift_mace import NUCLEI, SCREENING, ScaleShiftMACEConfig
from equimol.models.scale_shift_mace_edges import AGNESI, SOFT
from equimol.o3 import wigner_3j

HERE = Path(__file__).parent
GOLDEN = json.loads((HERE / "mace_torch.json").read_text())
GAINS = Gains(silu=1.6791767923989418, sigmoid=1.8467055342154763)  # of e3nn 0.4.4
TOLERANCES = {"energies": 1e-10, "energy": 1e-10, "forces": 1e-9, "stress": 1e-10}  # eV, eV/Å, eV/Å³


def formula(name: str, shape: list[int]) -> torch.Tensor:
    """`fill` of benchmarks/peers/mace_golden.py."""
    t = torch.arange(torch.Size(shape).numel()) + zlib.crc32(name.encode()) % 2**20
    h = t * 1103515245 % 2**31  # whole numbers: a sine differs in its last bit from processor to processor
    h = (h ^ (h >> 15)) * 1664525 % 2**31
    x = (h ^ (h >> 13)).double() / 2**31 - 0.5
    return x.view(shape) * 3.5 / (shape[1] if "symmetric_contractions" in name else 1)


def u_matrix(lmax: int, order: int, l_out: int) -> torch.Tensor:
    """mace-torch's: all ways to couple one copy after the other, natural parity at the end, by degree and parity of what came before."""
    size = (lmax + 1) ** 2
    found = [((l, (-1) ** l), torch.eye(size, dtype=torch.float64)[l * l : (l + 1) ** 2]) for l in range(lmax + 1)]
    for _ in range(order - 1):
        longer = []
        for ((left, parity), tensor), l in itertools.product(found, range(lmax + 1)):
            for joint in range(abs(left - l), left + l + 1):
                turned = sorted((joint, left, l)) == [1, max(left, l), max(left, l)] and max(left, l) > 1  # signs of e3nn 0.4.4
                coupling = wigner_3j(joint, left, l) * (2 * joint + 1) ** 0.5 * (-1) ** turned
                new = torch.zeros(2 * joint + 1, *tensor.shape[1:], size, dtype=torch.float64)
                new[..., l * l : (l + 1) ** 2] = torch.einsum("j...,ijl->i...l", tensor, coupling)
                longer.append(((joint, parity * (-1) ** l), new))
        found = sorted(longer, key=lambda item: item[0])
    matrix = torch.stack([tensor for kind, tensor in found if kind == (l_out, (-1) ** l_out)], -1)
    return matrix if l_out else matrix[0]


def published_weights(name: str) -> dict[str, torch.Tensor]:
    """Parameters and buffers of a variant, under mace-torch's names."""
    variant, double = GOLDEN["variants"][name], torch.float64
    settings, weights = variant["settings"], {key: formula(key, shape) for key, shape in variant["shapes"].items()}
    count, cutoff, several = settings["radial_basis"], settings["cutoff"], settings["data_sets"] > 0
    weights["atomic_numbers"] = torch.tensor(settings["elements"])
    weights["atomic_energies_fn.atomic_energies"] = torch.tensor(GOLDEN["energies"] if several else GOLDEN["energies"][0], dtype=double)
    if name != "without_scale":
        for key, values in (("scale", GOLDEN["scales"]), ("shift", GOLDEN["shifts"])):
            weights[f"scale_shift.{key}"] = torch.tensor(values if several else values[0], dtype=double)
    radial, transform = "radial_embedding.bessel_fn.", "radial_embedding.distance_transform."
    weights[f"{radial}bessel_weights"] = math.pi / cutoff * torch.arange(1, count + 1, dtype=double)
    weights[f"{radial}prefactor"] = torch.tensor(math.sqrt(2 / cutoff), dtype=double)
    weights[f"{radial}gaussian_weights"] = torch.linspace(0, cutoff, count, dtype=double)
    numbers = {f"{transform}{key}": value for key, value in zip(("q", "p", "a", "alpha"), (*AGNESI, SOFT), strict=True)}
    numbers |= {f"pair_repulsion_fn.{key}": value for key, value in zip(("a_exp", "a_prefactor"), NUCLEI, strict=True)}
    weights |= {key: torch.tensor(value, dtype=double) for key, value in numbers.items()}
    for key in (transform, "pair_repulsion_fn."):
        weights[f"{key}covalent_radii"] = torch.as_tensor(covalent_radii)
    for key in list(weights):
        if key.endswith("weights_max"):
            *_, number, _ = key.split(".")
            for order in range(1, 4):
                weights[key.replace("weights_max", f"U_matrix_{order}")] = u_matrix(settings["lmax_edge"], order, int(number))
    return weights


def settings_of(name: str) -> ScaleShiftMACEConfig:
    settings = GOLDEN["variants"][name]["settings"]
    return ScaleShiftMACEConfig(**{key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()})


def published_model(name: str):
    config = settings_of(name)
    heads = GOLDEN["heads"] if config.data_sets else ["Default"]
    return model_of(config, published_weights(name), heads, list(range(len(heads))), GAINS)


def graph_of(model, result: dict) -> AtomicGraph:
    structure = GOLDEN["structures"][result["structure"]]
    given = {name: structure[name] for name in model.inputs if name != "data_set"}
    if "data_set" in model.inputs:
        given["data_set"] = GOLDEN["heads"].index(result["head"])
    return AtomicGraph.build(structure["positions"], structure["numbers"], structure["cell"], structure["pbc"], model.cutoff, **given)


def assert_same(model, results: list[dict], factor: float = 1.0) -> None:
    for result in results:
        found = model(graph_of(model, result))
        for key in result.keys() & TOLERANCES.keys():
            theirs = torch.tensor(result[key], dtype=torch.float64)
            ours = found[key][0] if key == "stress" else found[key]
            assert float((ours - theirs).abs().max()) <= TOLERANCES[key] * factor, key


@pytest.mark.parametrize("name", list(GOLDEN["variants"]))
def test_energies_forces_and_stress_are_those_of_mace_torch(name: str):
    assert_same(published_model(name), GOLDEN["variants"][name]["results"])


@pytest.fixture
def file_of(tmp_path: Path):
    """A function that unpacks a model file of mace-torch."""

    def unpack(name: str) -> Path:
        path = tmp_path / f"{name}.model"
        path.write_bytes(lzma.decompress((HERE / f"{name}.model.xz").read_bytes()))
        return path

    return unpack


def test_a_trained_model_is_read_from_its_file(file_of, tmp_path: Path):
    model = read_mace(file_of("mace_trained"))
    config = model.inner.config
    assert (config.first_layer, config.other_layers, config.distance_transform) == ("density", "density_residual", "agnesi")
    assert_same(model, GOLDEN["files"]["mace_trained"])
    assert_same(load(save(model, tmp_path / "model.equimol")), GOLDEN["files"]["mace_trained"])


def test_a_file_in_single_precision_with_heads_and_features_that_nobody_reads(file_of):
    """Its U matrices are rounded, and with them mace-torch's energies in float64, by 1e-7 or so. One of its numbers is one of numpy."""
    model = read_mace(file_of("mace_heads"))
    assert core(model).config.average_neighbors == 1.5
    assert model.dtype == torch.float32 and model.data_sets == ("first", "second") and model.inputs == ("data_set",)
    assert_same(model.double(), GOLDEN["files"]["mace_heads"], factor=1e4)


def test_a_model_with_nonlinear_layers_is_read_from_its_file(file_of, tmp_path: Path):
    """As MACE-MH: heads, fewer channels to neighbours and degrees that nothing fills, charge and spin. Its first gate is e3nn's."""
    path = file_of("mace_nonlinear")
    model = read_mace(path)
    config = core(model).config
    assert (config.first_layer, config.other_layers, config.last_readout) == ("nonlinear", "nonlinear", "biased")
    assert (config.message_channels, config.lmax_message, config.charges, config.spins) == ((1, 1), 1, (-2, 3), (0, 2))
    assert model.inputs == ("charge", "spin", "data_set") and _gains(dict(_modules(read_archive(path)))) == GAINS
    assert_same(model, GOLDEN["files"]["mace_nonlinear"])
    assert_same(load(save(model, tmp_path / "model.equimol")), GOLDEN["files"]["mace_nonlinear"])
    alone = read_mace(path, head="second")
    assert_same(alone, [result for result in GOLDEN["files"]["mace_nonlinear"] if result["head"] == "second"])
    graph = AtomicGraph.build([[0.0, 0, 0], [1.0, 0, 0]], [1, 1], None, False, alone.cutoff, charge=4, spin=1)
    with pytest.raises(ValueError, match=r"charge must be a whole number from -2 to 3, got \[4\.0\]"):
        alone(graph)


def test_one_head_is_read_alone_or_chosen_later(file_of):
    path = file_of("mace_heads")
    alone, both = read_mace(path, head="second").double(), read_mace(path).double()
    assert alone.inputs == () and not alone.data_sets
    results = [result for result in GOLDEN["files"]["mace_heads"] if result["head"] == "second"]
    for model in (alone, for_data_set(both, "second")):
        assert_same(model, results, factor=1e4)
    with pytest.raises(ConversionError, match="head must be one of first, second, got third"):
        read_mace(path, head="third")


def test_the_command_writes_a_model_file(file_of, tmp_path: Path, capsys):
    out = tmp_path / "model.equimol"
    assert main(["convert", "mace", str(file_of("mace_heads")), str(out), "--branch", "first"]) == 0
    assert "scale_shift_mace" in capsys.readouterr().out
    assert load(out).elements == (1, 6, 8)


@pytest.mark.parametrize("l_out", [0, 1])
def test_u_matrices_of_the_file_are_those_of_the_formula(file_of, l_out: int):
    content = read_archive(file_of("mace_trained"))
    contraction = dict(_modules(content))[f"products.0.symmetric_contractions.contractions.{l_out}"]
    for order in (1, 2):
        torch.testing.assert_close(dict(_tensors(contraction))[f"U_matrix_{order}"], u_matrix(2, order, l_out), atol=1e-12, rtol=0)


def changed(content, place: str, **attributes):
    modules = dict(_modules(content))
    for name, value in attributes.items():
        setattr(modules[place], name, value)
    return modules


@pytest.mark.parametrize(
    ("place", "attributes", "message"),
    [
        (
            "interactions.1",
            {"class_name": "mace.modules.blocks.RealAgnosticAttResidualInteractionBlock"},
            "interactions.1 must be .* got mace.modules.blocks.RealAgnosticAttResidualInteractionBlock, which has no counterpart here",
        ),
        (
            "readouts.1",
            {"class_name": "mace.modules.blocks.GeneralNonLinearBiasReadoutBlock"},
            "readouts.1 must be NonLinearReadoutBlock or NonLinearBiasReadoutBlock, got mace",
        ),
        ("readouts.1", {"hidden_irreps": "3x0e+3x1o"}, r"MLP_irreps must be scalars, got 3x0e\+3x1o"),
        ("", {"use_so3": True}, "use_so3 must be False, got True"),
        ("interactions.1", {"edge_irreps": "1x0e+2x1o"}, r"edge_irreps of interactions.1 must be of degrees 0, 1, .* got 1x0e\+2x1o"),
        ("interactions.1", {"node_feats_irreps": "2x0e+2x2e"}, r"node_feats_irreps of interactions.1 must be 2x0e\+2x1o, got 2x0e\+2x2e"),
        ("products.0.symmetric_contractions", {"class_name": "cuequivariance_torch.SymmetricContraction_"}, "got cuequivariance_torch"),
        ("interactions.1", {"avg_num_neighbors": 3.0}, "avg_num_neighbors must be one number"),
    ],
)
def test_what_is_not_understood_is_refused(file_of, place: str, attributes: dict, message: str):
    modules = changed(read_archive(file_of("mace_trained")), place, **attributes)
    weights = {f"{at}.{name}".lstrip("."): value for at, module in modules.items() for name, value in _tensors(module)}
    with pytest.raises(ConversionError, match=message):
        config_of(modules, weights, 1)


NONLINEAR_REFUSALS = {
    "activations that are not e3nn's": (
        lambda m: setattr(m["interactions.1.equivariant_nonlin"], "_act_gate", m["interactions.1.equivariant_nonlin"]._act_scalar),
        r"the activation of interactions.1.equivariant_nonlin must be sigmoid, got torch.nn.functional.silu",
    ),
    "another gain": (
        lambda m: setattr(m["interactions.1.equivariant_nonlin"], "_gate_cst", 1.8),
        r"e3nn's factor of sigmoid must be the same everywhere, got \[1.8, 1.8467",
    ),
    "another order": (
        lambda m: setattr(m["interactions.1.equivariant_nonlin"], "_layout_is_ir_mul", True),
        r"interactions.1.equivariant_nonlin must have e3nn's order of numbers \(mul_ir\), got ir_mul",
    ),
    "another gate": (
        lambda m: m.update({"interactions.1.equivariant_nonlin": m["interactions.1.linear_up"]}),
        "interactions.1.equivariant_nonlin must be GatedEquivariantBlock or Gate, got e3nn.o3._linear.Linear",
    ),
    "another density": (
        lambda m: setattr(m["interactions.0.density_fn"], "hs", [9, 32, 1]),
        r"interactions.0.density_fn must have the widths \[64, 1\], got \[32, 1\]",
    ),
    "an embedding of something else": (
        lambda m: m["joint_embedding"].specs.update({"elec_temp": m["joint_embedding"].specs["total_spin"]}),
        "embedding_specs must be of total_charge or total_spin, got elec_temp",
    ),
    "an embedding of a continuous number": (
        lambda m: m["joint_embedding"].specs["total_charge"].update({"type": "continuous"}),
        "type of the embedding total_charge must be categorical, got continuous",
    ),
    "another embedding": (
        lambda m: m.update({"joint_embedding": m["node_embedding"]}),
        "joint_embedding must be GenericJointEmbedding, got mace.modules.blocks.LinearNodeEmbeddingBlock",
    ),
    "an embedding of atoms": (
        lambda m: m["joint_embedding"].specs["total_spin"].update({"per": "atom"}),
        "per of the embedding total_spin must be graph, got atom",
    ),
}


@pytest.mark.parametrize("name", list(NONLINEAR_REFUSALS))
def test_what_is_not_understood_of_nonlinear_layers_and_embeddings_is_refused(file_of, name: str):
    change, message = NONLINEAR_REFUSALS[name]
    modules = dict(_modules(read_archive(file_of("mace_nonlinear"))))
    weights = {f"{at}.{name}".lstrip("."): value for at, module in modules.items() for name, value in _tensors(module)}
    change(modules)
    with pytest.raises(ConversionError, match=message):
        config_of(modules, weights, 2)
        _gains(modules)


def test_other_parts_and_other_files_are_refused(file_of, tmp_path: Path):
    content = read_archive(file_of("mace_trained"))
    content._modules["field_embedding"] = content._modules["node_embedding"]
    modules = dict(_modules(content))
    with pytest.raises(ConversionError, match=r"field_embedding \(mace\.modules\.blocks\.LinearNodeEmbeddingBlock\) is no part"):
        config_of(modules, {}, 1)
    torch.save({"model": {}}, tmp_path / "checkpoint.pt")
    with pytest.raises(ConversionError, match="must hold a model of mace-torch, MACE or ScaleShiftMACE, got dict"):
        read_mace(tmp_path / "checkpoint.pt")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "other.pt")
    with pytest.raises(ConversionError, match=r"got torch\.nn\.modules\.linear\.Linear"):
        read_mace(tmp_path / "other.pt")


def test_weights_of_no_known_couplings_are_refused():
    weights = published_weights("vectors")
    name = "interactions.1.conv_tp_weights.layer2.weight"
    weights[name] = weights[name][:, :-4]
    with pytest.raises(
        ConversionError, match="weights must be of all couplings of degrees 0, 1, ... with harmonics up to 2, got 6 couplings"
    ):
        model_of(settings_of("vectors"), weights, ["Default"], [0], GAINS)


def test_a_smaller_basis_of_polynomials_is_read_as_well():
    """As use_reduced_cg has it: each polynomial once."""
    name = "correlation_by_layer"
    weights = published_weights(name)
    for key in [key for key in weights if "products.0" in key and "U_matrix_3" in key]:
        matrix, place = weights[key], key.replace("U_matrix_3", "weights_max")
        axes = range(matrix.ndim - 4, matrix.ndim - 1)
        turned = [matrix.permute(*range(axes[0]), *order, matrix.ndim - 1) for order in itertools.permutations(axes)]
        left, values, right = torch.linalg.svd((sum(turned) / 6).flatten(0, -2), full_matrices=False)
        kept = values > 1e-9
        assert int(kept.sum()) < len(values)
        weights[key] = left[:, kept].unflatten(0, matrix.shape[:-1])
        weights[place] = torch.einsum("nk,ekc->enc", values[kept, None] * right[kept], weights[place])
    model = model_of(settings_of(name), weights, ["Default"], [0], GAINS)
    assert_same(model, GOLDEN["variants"][name]["results"])


def test_damaged_polynomials_are_refused():
    weights = published_weights("vectors")
    name = "products.0.symmetric_contractions.contractions.1.U_matrix_2"
    weights[name] = weights[name] + 0.01 * torch.linspace(0, 1, weights[name].numel(), dtype=torch.float64).view_as(weights[name])
    with pytest.raises(ConversionError, match="U_matrix_2 must be of equivariant polynomials"):
        model_of(settings_of("vectors"), weights, ["Default"], [0], GAINS)


def test_constants_are_those_of_the_file(file_of):
    content = read_archive(file_of("mace_trained"))
    tensors = dict(_tensors(content._modules["pair_repulsion_fn"]))
    assert tensors["c"].tolist() == [factor for factor, _ in SCREENING]
