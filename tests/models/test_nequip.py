"""NequIP: its convolution of unequal channels, parity, tables, data sets, published sizes. Numbers of sevenn are in tests/convert."""

import copy

import numpy as np
import pytest
import torch

from equimol.data.graph import AtomicGraph
from equimol.models import build_model, core, for_data_set
from equimol.models.nequip import PRESETS, Convolution, NequIP, NequIPConfig
from equimol.o3 import layout_dim, natural_layout, parse_irreps, rotate, spherical_harmonics, split_blocks, wigner_3j
from equimol.testing import assert_equivariant, assert_is_potential, example_structures, random_rotation

UNEQUAL = parse_irreps("5x0e+3x1o+3x1e+2x2e")
KINDS = [(0, 1), (0, -1), (1, -1), (1, 1), (2, 1)]
SENDERS, RECEIVERS = torch.tensor([0, 2, 1, 0, 2, 1]), torch.tensor([0, 0, 1, 2, 2, 2])


def model_of(preset="tiny", **settings):
    torch.manual_seed(0)
    return NequIP(NequIPConfig(elements=(1, 6, 8), **{**PRESETS[preset], **settings})).double().eval()


def graph_of(model, number=1, skin=0.0, **more):
    return AtomicGraph.build(**example_structures(model.elements)[number], cutoff=model.cutoff + skin, **more)


def convolution_and_inputs(random, edge_parity=-1):
    layout = UNEQUAL if edge_parity == -1 else parse_irreps("5x0e+3x1e+2x2e")
    convolution = Convolution(layout, 2, edge_parity, KINDS if edge_parity == -1 else [(0, 1), (1, 1), (2, 1)])
    weights = [random(len(SENDERS), *shape) for shape in convolution.weight_shapes]
    return convolution, (random(3, layout_dim(layout)), random(len(SENDERS), 9), weights, SENDERS, RECEIVERS)


@pytest.mark.parametrize("edge_parity", [-1, 1])
@pytest.mark.parametrize("kernels", ["auto", "off"])
def test_a_convolution_is_the_sum_of_its_paths(random, monkeypatch, edge_parity, kernels):
    monkeypatch.setenv("EQUIMOL_KERNELS", kernels)
    convolution, (x, y, weights, senders, receivers) = convolution_and_inputs(random, edge_parity)
    blocks = split_blocks(x, convolution.in_layout)
    expected = {(b.l, b.parity): [] for b in convolution.out}
    for group, w in zip(convolution.groups, weights, strict=True):
        for n, p in enumerate(group.paths):
            assert convolution.in_layout[p.block].parity * edge_parity**p.l2 == p.p3
            source = blocks[p.block][senders]
            coupling = (2 * p.l3 + 1) ** 0.5 * wigner_3j(convolution.in_layout[p.block].l, p.l2, p.l3)
            message = torch.einsum("eac,eb,abm,ec->emc", source, y[:, p.l2**2 : (p.l2 + 1) ** 2], coupling, w[:, n])
            expected[p.l3, p.p3].append(torch.zeros(3, 2 * p.l3 + 1, group.channels).double().index_add(0, receivers, message))
    expected = torch.cat([torch.cat(parts, -1).flatten(1) for parts in expected.values()], -1)
    torch.testing.assert_close(convolution(x, y, weights, senders, receivers), expected, rtol=0, atol=1e-12)


def test_a_convolution_turns_with_its_inputs(random):
    convolution, (_, _, weights, senders, receivers) = convolution_and_inputs(random)

    def sums(x, vectors):
        return convolution(x, spherical_harmonics(vectors, 2), weights, senders, receivers)

    x, vectors = random(3, layout_dim(UNEQUAL)), random(len(SENDERS), 3)
    for improper in (False, True):
        rotation = random_rotation(torch.Generator().manual_seed(1), improper=improper)
        turned = sums(rotate(x, UNEQUAL, rotation), vectors @ rotation.T)
        torch.testing.assert_close(turned, rotate(sums(x, vectors), convolution.out, rotation), rtol=0, atol=1e-11)


@pytest.mark.parametrize("kernels", ["auto", "off"])
def test_first_and_second_derivatives_of_a_convolution(random, monkeypatch, kernels):
    monkeypatch.setenv("EQUIMOL_KERNELS", kernels)
    layout = parse_irreps("2x0e+1x1o")
    convolution = Convolution(layout, 1, -1, [(0, 1), (1, -1)])
    weights = [random(len(SENDERS), *shape) for shape in convolution.weight_shapes]
    inputs = [x.requires_grad_() for x in (random(3, layout_dim(layout)), random(len(SENDERS), 4), *weights)]

    def sums(x, y, *w):
        return convolution(x, y, list(w), SENDERS, RECEIVERS)

    assert torch.autograd.gradcheck(sums, inputs)
    assert torch.autograd.gradgradcheck(sums, inputs)


def test_gates_and_self_connections_turn_with_their_inputs():
    model = model_of(hidden=("5x0e", "5x0e+2x0o+3x1o+3x1e+2x2e", "4x0e"), lmax_edge=2)
    gate = model.layers[0].gate
    assert_equivariant(gate, [gate.in_layout], gate.out)


@pytest.mark.parametrize(
    "settings",
    [
        {"hidden": ("4x0e", "4x0e+4x1o+2x2e", "4x0e+2x0o+3x1o+3x1e+2x2e+2x2o", "4x0e+1x1o", "4x0e"), "lmax_edge": 2},
        {"envelope": "xplor", "self_connection": ("linear", "element"), "train_denominator": True},
        {"normalize_harmonics": False, "activation": "shifted_softplus", "radial_activation": "tanh"},
        {"data_sets": 3, "data_set": 1},
    ],
    ids=["pseudoscalars", "xplor", "solid", "data_set"],
)
def test_it_is_a_potential(settings):
    assert_is_potential(model_of(**settings))


def test_without_parity_rotations_count_nothing_but_mirror_images_may_differ():
    model = model_of(hidden=("6x0e", "6x0e+4x1e+2x2e", "6x0e+4x1e+2x2e", "6x0e"), lmax_edge=2, parity=False)
    structure = example_structures(model.elements)[0]
    positions, cell = np.array(structure["positions"]), np.array(structure["cell"])
    energies = []
    for improper in (False, True):
        rotation = random_rotation(torch.Generator().manual_seed(2), improper=improper).numpy()
        turned = {**structure, "positions": positions @ rotation.T, "cell": cell @ rotation.T}
        energies.append(float(model(AtomicGraph.build(**turned, cutoff=model.cutoff))["energy"]))
    here = float(model(AtomicGraph.build(**structure, cutoff=model.cutoff))["energy"])
    assert abs(energies[0] - here) < 1e-10 < 1e-6 < abs(energies[1] - here)


@pytest.mark.parametrize("envelope", ["polynomial", "xplor"])
def test_tables_are_as_exact_as_float32(envelope):
    """At the joint of two pieces too, where the curvature of XPLOR's envelope jumps."""
    exact = model_of("nano", envelope=envelope)
    frozen = copy.deepcopy(exact).float().freeze()
    distances = torch.tensor([0.7, 1.3, 2.9, 4.49, 4.5, 4.500001, 4.51, 4.97, 4.999, 5.0, 5.4]).double()
    at = frozen.radial.basis.pieces(distances.float())
    for network, expected in zip(frozen.radial.networks, exact.radial(distances), strict=True):
        for ours, theirs in zip(network.look_up(at), expected, strict=True):
            torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=3e-6 * float(theirs.detach().abs().max()))
            assert not ours[-2:].any()
    for number in range(3):
        ours, theirs = frozen(graph_of(exact, number)), exact(graph_of(exact, number))
        for name in ("energies", "forces"):
            size = 1 + float(theirs[name].abs().max())
            torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-5 * size)


def test_edges_beyond_the_cutoff_count_nothing_for_a_frozen_model():
    model = model_of().float().freeze()
    near, far = (model(graph_of(model, 0, skin)) for skin in (0.0, 1.5))
    torch.testing.assert_close(near["forces"], far["forces"], atol=1e-6, rtol=1e-6)


def test_float64_keeps_the_networks():
    model = model_of()
    frozen = copy.deepcopy(model).freeze()
    torch.testing.assert_close(frozen(graph_of(model))["forces"], model(graph_of(model))["forces"], atol=1e-13, rtol=1e-12)


@pytest.mark.parametrize(("preset", "parameters"), [("sevennet-0", 842_440), ("sevennet-l3i5", 1_171_144)])
def test_published_sizes(preset, parameters):
    with torch.device("meta"):
        model = NequIP(NequIPConfig(elements=tuple(range(1, 90)), **PRESETS[preset]))
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_a_structure_says_its_data_set_or_the_model_is_for_one():
    torch.manual_seed(0)
    references = {name: {1: 0.0, 8: float(n)} for n, name in enumerate(("pbe", "scan"))}
    model = build_model("nequip", "tiny", elements=[1, 8], references=references, zbl=False, data_sets=2).double().eval()
    core(model).layers[0].linear_sums_bias.bias.data[1] += 0.5
    water = [[0.0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]], [8, 1, 1], None, False, model.cutoff
    energies = [float(model(AtomicGraph.build(*water, data_set=n))["energy"]) for n in range(2)]
    assert abs(energies[1] - energies[0] - 1.0) > 1e-3, "the bias counts beside the reference energies"
    for n, name in enumerate(references):
        one = for_data_set(model, name)
        assert one.inputs == () and abs(float(one(AtomicGraph.build(*water))["energy"]) - energies[n]) < 1e-12
    with pytest.raises(ValueError, match=r"data_set must be a whole number from 0 to 1, got \[2\.0\]"):
        model(AtomicGraph.build(*water, data_set=2))


def test_scales_of_elements_multiply_energies_of_atoms():
    model = model_of()
    before = model(graph_of(model))["energies"]
    model.element_scales[0, 1] = 2.0  # of carbon
    after = model(graph_of(model))["energies"]
    carbon = graph_of(model).numbers == 6
    torch.testing.assert_close(after, torch.where(carbon, 2 * before, before))


def test_it_learns_energies_and_forces():
    torch.manual_seed(0)
    teacher, student = build_model("lennard_jones", elements=[18]), build_model("nequip", "tiny", elements=[18], zbl=False)
    random = np.random.default_rng(0)
    grid = 3.8 * np.array([[a, b, c] for a in range(2) for b in range(2) for c in range(2)])
    frames = [grid + random.normal(scale=0.15, size=grid.shape) for _ in range(4)]
    graphs = [AtomicGraph.build(positions, [18] * 8, None, False, student.cutoff) for positions in frames]
    far = [AtomicGraph.build(positions, [18] * 8, None, False, teacher.cutoff) for positions in frames]
    targets = [10 * teacher(graph)["forces"].detach() for graph in far]
    optimizer, losses = torch.optim.Adam(student.train().parameters(), lr=0.01), []
    for _ in range(40):
        loss = sum((student(graph)["forces"] - forces).square().mean() for graph, forces in zip(graphs, targets, strict=True))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.2 * losses[0], losses[::10]


def test_bad_settings_say_the_rule():
    for settings, message in (
        ({"hidden": ("8x0e",)}, "hidden must list features before and after at least one layer"),
        ({"hidden": ("8x0e", "4x1o+8x0e", "8x0e")}, r"hidden must begin with even scalars .* got 4x1o\+8x0e"),
        ({"hidden": ("8x0e", "8x0e+4x1o+2x1o", "8x0e")}, "have each degree and parity once"),
        ({"hidden": ("8x0e", "8x0e+4x1o", "8x0e+4x1o")}, "hidden must begin and end with scalars alone"),
        ({"parity": False}, r"hidden must be all even .* got 8x0e\+4x1o"),
        ({"self_connection": ("linear", "none")}, "self_connection must be element or linear for each of 2 layers"),
        ({"envelope_start": 5.0}, r"envelope_start must be between 0 and the cutoff \(5\.0 Å\), got 5\.0"),
        ({"envelope": "cosine"}, "envelope must be polynomial or xplor, got 'cosine'"),
        ({"activation": "tanh"}, "activation must be silu or shifted_softplus, got tanh"),
        ({"radial_activation": "relu"}, "radial_activation must be one of silu, shifted_softplus, tanh, got 'relu'"),
        ({"gains": (("silu", 1.7),)}, "gains must have a factor for tanh"),
        ({"data_sets": 2, "data_set": 2}, "data_set must be one of the 2 data sets, from 0, got 2"),
        ({"data_set_terms": ("gate",)}, "data_set_terms must be among embedding, linear_up, linear_sums, readout, got gate"),
        ({"cutoff": 0.0}, r"cutoff must be positive, got 0\.0"),
    ):
        with pytest.raises(ValueError, match=message):
            NequIPConfig(elements=(1,), **{**PRESETS["tiny"], **settings})


def test_a_convolution_without_paths_into_a_kind_leaves_it_out():
    convolution = Convolution(natural_layout(0, 4), 1, -1, [(0, 1), (1, -1), (1, 1), (2, 1)])
    assert [(b.l, b.parity) for b in convolution.out] == [(0, 1), (1, -1)]
