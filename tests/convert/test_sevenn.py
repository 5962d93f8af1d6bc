"""SevenNet's checkpoints, read into ours: the numbers are its own (benchmarks/peers/sevenn_golden.py)."""

import json
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from equimol.convert import ConversionError
from equimol.convert.sevenn import model_of, read_sevenn
from equimol.data.graph import AtomicGraph
from equimol.models import core, load
from equimol.o3 import wigner_3j

GOLDEN = json.loads((Path(__file__).parent / "sevenn.json").read_text())
VARIANTS = GOLDEN["variants"]
CASES = [(name, modal) for name, variant in VARIANTS.items() for modal in variant["results"]]
VOIGT = ((0, 1, 2, 1, 0, 0), (0, 1, 2, 2, 2, 1))


def formula(name: str, shape: list[int]) -> torch.Tensor:
    """That of benchmarks/peers/sevenn_golden.py."""
    t = torch.arange(torch.Size(shape).numel()) + zlib.crc32(name.encode()) % 2**20
    h = t * 1103515245 % 2**31
    h = (h ^ (h >> 15)) * 1664525 % 2**31
    x = (h ^ (h >> 13)).double() / 2**31 - 0.5
    if name.endswith(("denominator", "denumerator")):
        return (x + 3.0).float().double().view(shape)
    if name.endswith("coeffs"):
        return ((x / 5 + torch.arange(1, len(x) + 1)) * 0.7853981633974483).float().double().view(shape)
    return (3.5 * x).float().double().view(shape)


def published(name: str) -> tuple[dict, dict[str, torch.Tensor]]:
    """Settings and weights of a variant, as a file has them, in float64."""
    settings, weights = dict(VARIANTS[name]["settings"]), {}
    settings["_type_map"] = {int(z): n for z, n in settings["_type_map"].items()}
    for key, shape in VARIANTS[name]["weights"].items():
        last = key.rsplit(".", 1)[1]
        if last.startswith("_w3j"):
            sign = -1 if name == "release_0.9" and last in GOLDEN["flipped"] else 1
            weights[key] = sign * wigner_3j(*map(int, last.split("_")[2:]))
        elif key.startswith("rescale"):
            kind = key.rsplit(".", 1)[1]
            values = torch.tensor(settings[kind], dtype=torch.float64).float().double()
            weights[key] = values.expand(shape).clone() if values.ndim < len(shape) else values
        else:
            weights[key] = formula(key, shape)
    return settings, weights


def graph(structure: dict, cutoff: float) -> AtomicGraph:
    cell = structure["cell"]
    return AtomicGraph.build(np.array(structure["positions"]), structure["numbers"], cell, cell is not None, cutoff)


@pytest.fixture
def checkpoint(tmp_path: Path):
    """Writes a file of a variant, some settings or weights of it changed (None: left out)."""

    def write(name: str, settings: dict | None = None, weights: dict | None = None) -> Path:
        all_settings, all_weights = published(name)
        parts = {"config": all_settings | (settings or {}), "model_state_dict": all_weights | (weights or {})}
        content = {part: {key: value for key, value in items.items() if value is not None} for part, items in parts.items()}
        torch.save({**content, "epoch": 3}, tmp_path / f"{name}.pth")
        return tmp_path / f"{name}.pth"

    return write


@pytest.mark.parametrize(("name", "modal"), CASES)
def test_energies_forces_and_stress_are_those_of_sevenn(name, modal, checkpoint):
    """Float64: energies of atoms to 1e-10 eV, forces to 1e-9 eV/Å, stress to 1e-10 eV/Å³, or of the largest where that is more than 1."""
    model = read_sevenn(checkpoint(name), modal or None)
    assert model.dtype == torch.float64
    for structure, expected in zip(GOLDEN["structures"], VARIANTS[name]["results"][modal], strict=True):
        found = model(graph(structure, model.cutoff))
        results = {"energies": found["energies"], "forces": found["forces"], "stress": found["stress"][0][VOIGT]}
        assert np.abs(expected["forces"]).max() > 0.01, "such forces would hide a mistake"
        for key, values in expected.items():
            atol = (1e-9 if key == "forces" else 1e-10) * max(1.0, float(np.abs(values).max()))
            np.testing.assert_allclose(results[key], values, rtol=0, atol=atol, err_msg=key)


@pytest.mark.parametrize("name", ["even_linear_unequal", "solid_harmonics", "release_0.9"])
def test_a_frozen_model_in_single_precision_gives_the_same(name):
    """Its radial networks are tables, of two pieces where the envelope is XPLOR's."""
    exact, frozen = model_of(*published(name)), model_of(*published(name)).float().freeze()
    for structure in GOLDEN["structures"]:
        theirs, ours = exact(graph(structure, exact.cutoff)), frozen(graph(structure, exact.cutoff))
        for key in ("energies", "forces"):
            size = 1 + float(theirs[key].abs().max())
            np.testing.assert_allclose(ours[key], theirs[key], rtol=0, atol=1e-5 * size)


def test_a_file_with_several_modals_is_read_whole_or_for_one(checkpoint):
    path = checkpoint("modal")
    model = read_sevenn(path)
    assert model.inputs == ("data_set",) and model.data_sets == ("PBE", "R2SCAN", "other")
    structure = GOLDEN["structures"][0]
    arguments = np.array(structure["positions"]), structure["numbers"], None, False, model.cutoff
    for n, modal in enumerate(model.data_sets):
        energies = model(AtomicGraph.build(*arguments, data_set=n))["energies"]
        np.testing.assert_allclose(energies, VARIANTS["modal"]["results"][modal][0]["energies"], rtol=0, atol=1e-10)
    with pytest.raises(ConversionError, match="modal must be one of PBE, R2SCAN, other, got 'HSE'"):
        read_sevenn(path, "HSE")
    with pytest.raises(ConversionError, match="the model is for one level of theory; leave modal out"):
        read_sevenn(checkpoint("release_0.9"), "PBE")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"readout_as_fcn": True}, "readout_as_fcn must be False, got True"),
        ({"use_bias_in_linear": True}, "use_bias_in_linear must be False, got True"),
        ({"interaction_type": "mace"}, "interaction_type must be 'nequip', got 'mace'"),
        ({"self_connection_type": "none"}, r"self_connection_type must be nequip or linear for each of 3 layers, got \['none'"),
        ({"radial_basis": {"radial_basis_name": "gauss"}}, "radial_basis_name must be bessel, got 'gauss'"),
        ({"cutoff_function": {"cutoff_function_name": "cos"}}, "cutoff_function_name must be poly_cut or XPLOR, got 'cos'"),
        ({"act_scalar": {"e": "silu", "o": "tanh"}, "act_gate": {"e": "ssp", "o": "tanh"}}, "must have one activation, got silu and ssp"),
        ({"act_radial": "relu"}, "activations must be among silu, ssp, tanh, got 'relu'"),
        ({"irreps_manual": ["6x0e", "4x1e+6x0e", "6x0e+4x1e", "6x0e"]}, r"scalars before all else, got 4x1e\+6x0e"),
        ({"irreps_manual": ["6x0e", "6x0e+4x1e", "6x0e"]}, "irreps_manual must list 4 features, got 3"),
        ({"cuequivariance_config": {"use": True}}, "cuequivariance_config.use must be false"),
        ({"version": None}, "version must be that of sevenn"),
        ({"_type_map": None}, "the settings of the file must have '_type_map'"),
        ({"channel": 5, "irreps_manual": False}, "must have 15 numbers, got 18"),
    ],
)
def test_what_is_not_understood_is_refused(settings, message, checkpoint):
    with pytest.raises(ConversionError, match=message):
        read_sevenn(checkpoint("even_linear_unequal", settings))


def test_missing_and_unknown_weights_are_named(checkpoint):
    missing = "1_self_interaction_1.linear.weight"
    with pytest.raises(ConversionError, match=rf"the file has no weight '{missing}'"):
        read_sevenn(checkpoint("even_linear_unequal", weights={missing: None}))
    with pytest.raises(ConversionError, match="weights of the file must all be known, got extra.weight"):
        read_sevenn(checkpoint("even_linear_unequal", weights={"extra.weight": torch.ones(2)}))
    coupling = "1 convolution.convolution._compiled_main_left_right._w3j_1_1_1"
    with pytest.raises(ConversionError, match="without which the signs of its weights are unknown"):
        read_sevenn(checkpoint("release_0.9", weights={coupling: None}))
    with pytest.raises(ConversionError, match="must be the Wigner 3j symbol or its negative"):
        read_sevenn(checkpoint("release_0.9", weights={coupling: 2 * wigner_3j(1, 1, 1)}))


def test_other_files_are_refused(tmp_path):
    torch.save({"weights": torch.ones(2)}, tmp_path / "other.pth")
    with pytest.raises(ConversionError, match=r"other\.pth is no checkpoint of SevenNet: it lacks 'model_state_dict' and 'config'"):
        read_sevenn(tmp_path / "other.pth")


class Trap:
    """Would make a folder if a reader called what a pickle names."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_nothing_in_a_file_is_run(checkpoint, tmp_path):
    path = checkpoint("even_linear_unequal", {"shift_cp": Trap(tmp_path / "made")})
    assert core(read_sevenn(path)).name == "nequip" and not (tmp_path / "made").exists()


def test_the_command_line_converts_and_names_what_is_wrong(checkpoint, tmp_path, capsys):
    from equimol.cli import main

    path = checkpoint("modal")
    assert main(["convert", "sevenn", str(path), str(tmp_path / "one.equimol"), "--branch", "R2SCAN"]) == 0
    model = load(tmp_path / "one.equimol")
    assert model.elements == (1, 6, 8) and model.inputs == () and "nequip" in capsys.readouterr().out
    expected = VARIANTS["modal"]["results"]["R2SCAN"][0]["energies"]
    np.testing.assert_allclose(model(graph(GOLDEN["structures"][0], model.cutoff))["energies"], expected, rtol=0, atol=1e-10)
    assert main(["convert", "sevenn", str(path), str(tmp_path / "two.equimol"), "--settings", "x.yaml"]) == 2
    assert "--settings is for files of fairchem, got sevenn" in capsys.readouterr().err


FOLDER = os.environ.get("EQUIMOL_SEVENN")
PARAMETERS = {
    "SevenNet_0__11Jul2024/checkpoint_sevennet_0.pth": 842_440,
    "SevenNet_0__22May2024/checkpoint_sevennet_0.pth": 842_440,
    "SevenNet_MF_0/checkpoint_sevennet_mf_0.pth": 845_896,
    "SevenNet_l3i5/checkpoint_l3i5.pth": 1_171_144,
}


@pytest.mark.parametrize("file", PARAMETERS)
def test_the_published_models_are_read(file):
    """Their numbers are compared by benchmarks/sevenn.py, beside the package itself."""
    if not FOLDER or not Path(FOLDER, file).exists():
        pytest.skip(f"EQUIMOL_SEVENN names no folder with {file}: pretrained_potentials of the package sevenn 0.13.0")
    model = read_sevenn(Path(FOLDER, file))
    assert len(model.elements) == 89 and model.cutoff == 5.0
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[file]
