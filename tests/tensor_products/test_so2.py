"""Convolutions in the frame of each edge: the numbers of their counterparts in the frame of the structure, in every direction."""

import math

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from equimol.o3 import layout_dim, layout_slices, natural_layout, parse_irreps, rotate, spherical_harmonics, split_blocks
from equimol.tensor_products import so2
from equimol.tensor_products.clebsch_gordan_convolution import ClebschGordanConvolution
from equimol.tensor_products.gaunt_grid import GauntGridConvolution
from equimol.tensor_products.so2 import SO2Convolution, SO2GauntConvolution, SO2MixedConvolution, aligned_coupling

BORDER = math.sqrt(0.5)  # where frames jump
AXES = [[1, 0, 0], [-2, 0, 0], [0, 1, 0], [0, -3, 0], [0, 0, 1], [0, 0, -1]]
NEAR_AXES = [[1e-9, 1, 0], [0, -1, 1e-5], [1, 1e-9, 0], [BORDER, BORDER, 0], [0, -BORDER, BORDER]]
SPECIAL = torch.tensor(AXES + NEAR_AXES, dtype=torch.float64)
KINDS = [SO2Convolution, SO2MixedConvolution, SO2GauntConvolution]
DEGREES = [(0, 0, 0), (2, 0, 2), (0, 4, 4), (1, 1, 2), (2, 3, 2), (3, 3, [0]), (3, 2, [1, 4])]  # lmax, lmax_edge, out_degrees


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    """Each case would compile code of its own: the compiled sum is compared with this one in tests/ops/test_frames.py."""
    monkeypatch.setenv("EQUIMOL_KERNELS", "off")


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(params=[(0, 3), (1, 2), (3, 3)], ids=str)
def convolution(request, kind):
    lmax, lmax_edge = request.param
    return kind(natural_layout(lmax, 2), lmax_edge, 2)


def graph(convolution, random, edges=8, atoms=5):
    """Features, vectors along special and random directions, weights, senders and receivers; the last atom receives nothing."""
    generator = torch.Generator().manual_seed(3)
    vectors = torch.cat([SPECIAL, random(edges, 3)])
    senders = torch.randint(atoms, (len(vectors),), generator=generator)
    receivers = torch.randint(atoms - 1, (len(vectors),), generator=generator)
    weights = random(len(vectors), convolution.num_weights, convolution.channels)
    return random(atoms, layout_dim(convolution.in_layout)), vectors, weights, senders, receivers


def apply(convolution, features, vectors, weights, senders, receivers):
    return convolution(features, spherical_harmonics(vectors, convolution.lmax_edge), senders, receivers, weights)


def sum_paths(convolution, features):
    """ClebschGordanConvolution's output with the paths of each block summed."""
    channels = convolution.channels
    return torch.cat([b.unflatten(-1, (-1, channels)).sum(-2).flatten(1) for b in split_blocks(features, convolution.out)], -1)


@pytest.mark.parametrize("couplings", ["even", "all"])
@pytest.mark.parametrize("degrees", [*DEGREES, (4, 4, 4)], ids=str)
def test_it_equals_the_clebsch_gordan_convolution(degrees, couplings, random):
    lmax, lmax_edge, out = degrees
    arguments = natural_layout(lmax, 2), lmax_edge, out
    ours, plain = (kind(*arguments, couplings=couplings) for kind in (SO2Convolution, ClebschGordanConvolution))
    assert (ours.paths, ours.num_weights, ours.out) == (plain.paths, plain.num_weights, plain.out)
    inputs = graph(ours, random)
    torch.testing.assert_close(apply(ours, *inputs), apply(plain, *inputs), rtol=0, atol=1e-12)


def test_it_equals_the_clebsch_gordan_convolution_up_to_degree_six(random):
    ours, plain = (kind(natural_layout(6, 1), 6, 6) for kind in (SO2Convolution, ClebschGordanConvolution))
    inputs = graph(ours, random)
    torch.testing.assert_close(apply(ours, *inputs), apply(plain, *inputs), rtol=0, atol=1e-11)


def test_any_parities_and_repeated_degrees_are_allowed_with_paths(random):
    arguments = parse_irreps("2x1e+2x0e+2x1o+2x2o"), 2, 2
    ours, plain = (kind(*arguments, couplings="all") for kind in (SO2Convolution, ClebschGordanConvolution))
    assert ours.out == plain.out
    inputs = graph(ours, random)
    torch.testing.assert_close(apply(ours, *inputs), apply(plain, *inputs), rtol=0, atol=1e-12)


@pytest.mark.parametrize("couplings", ["even", "all"])
@pytest.mark.parametrize("degrees", [(0, 3, 3), (1, 2, 2), (2, 4, 2), (3, 3, [0]), (4, 4, [1, 4]), (6, 6, 6)], ids=str)
def test_weights_from_paths_give_the_sum_over_paths(degrees, couplings, random):
    lmax, lmax_edge, out = degrees
    arguments = natural_layout(lmax, 2), lmax_edge, out
    mixed, plain = (kind(*arguments, couplings=couplings) for kind in (SO2MixedConvolution, ClebschGordanConvolution))
    assert mixed.paths == plain.paths
    assert [(b.l, b.parity) for b in mixed.out] == [(b.l, b.parity) for b in plain.out]
    features, vectors, weights, *edges = graph(plain, random)
    expected = sum_paths(plain, apply(plain, features, vectors, weights, *edges))
    result = apply(mixed, features, vectors, mixed.weights_from_paths(weights), *edges)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-11)


def test_there_are_as_many_mixing_weights_as_paths_once_all_harmonics_are_there():
    for couplings in ("even", "all"):
        mixed = SO2MixedConvolution(natural_layout(3, 1), 6, 3, couplings=couplings)
        assert mixed.num_weights == len(mixed.paths)
        assert torch.linalg.matrix_rank(mixed.weights_from_paths(torch.eye(len(mixed.paths), dtype=torch.float64))) == mixed.num_weights


@pytest.mark.parametrize("couplings", ["even", "all"])
@pytest.mark.parametrize("degrees", [(0, 3), (2, 3), (3, 1)], ids=str)
def test_mixed_messages_have_unit_variance(degrees, couplings, random):
    mixed = SO2MixedConvolution(natural_layout(degrees[0], 16), 3, degrees[1], couplings=couplings)
    edges = 2000
    one_each = torch.arange(edges)
    features = random(edges, layout_dim(mixed.in_layout))
    z = apply(mixed, features, random(edges, 3), random(edges, mixed.num_weights, 16), one_each, one_each)
    for block, part in zip(mixed.out, layout_slices(mixed.out), strict=True):
        assert z[:, part].square().mean().item() == pytest.approx(1, abs=0.08), block


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("degrees", [*DEGREES, (6, 6, 6)], ids=str)
def test_it_equals_the_gaunt_convolution(degrees, rank, random):
    lmax, lmax_edge, out = degrees
    arguments = natural_layout(lmax, 2), lmax_edge, out, rank
    ours, plain = (kind(*arguments) for kind in (SO2GauntConvolution, GauntGridConvolution))
    assert (ours.num_weights, ours.out) == (plain.num_weights, plain.out)
    inputs = graph(ours, random)
    torch.testing.assert_close(apply(ours, *inputs), apply(plain, *inputs), rtol=0, atol=1e-12)


def test_a_coupling_keeps_m_or_exchanges_it_with_minus_m():
    for p in SO2Convolution(natural_layout(3, 1), 4, 3, couplings="all").paths:
        factors, sign = aligned_coupling(p), (-1) ** (p.l1 + p.l2 + p.l3)
        torch.testing.assert_close(factors.flip(0), sign * factors, rtol=0, atol=1e-14)


def test_rotating_atoms_and_features_rotates_the_output(convolution, random, rotation):
    features, vectors, weights, *edges = graph(convolution, random)
    rotated = apply(convolution, rotate(features, convolution.in_layout, rotation), vectors @ rotation.T, weights, *edges)
    expected = rotate(apply(convolution, features, vectors, weights, *edges), convolution.out, rotation)
    torch.testing.assert_close(rotated, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("kind", [SO2Convolution, SO2MixedConvolution])
def test_pseudotensors_turn_and_keep_their_sign(kind, random, rotation):
    convolution = kind(natural_layout(3, 2), 3, 3, couplings="all")
    features, vectors, weights, *edges = graph(convolution, random)
    rotated = apply(convolution, rotate(features, convolution.in_layout, rotation), vectors @ rotation.T, weights, *edges)
    expected = rotate(apply(convolution, features, vectors, weights, *edges), convolution.out, rotation)
    torch.testing.assert_close(rotated, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("lmax_edge", [1, 2])
def test_mixed_weights_are_equivariant_with_few_harmonics_too(lmax_edge, random, rotation):
    convolution = SO2MixedConvolution(natural_layout(3, 2), lmax_edge, 3, couplings="all")
    features, vectors, weights, *edges = graph(convolution, random)
    rotated = apply(convolution, rotate(features, convolution.in_layout, rotation), vectors @ rotation.T, weights, *edges)
    expected = rotate(apply(convolution, features, vectors, weights, *edges), convolution.out, rotation)
    torch.testing.assert_close(rotated, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("pair", [(SO2Convolution, ClebschGordanConvolution), (SO2GauntConvolution, GauntGridConvolution)])
def test_forces_and_their_derivatives_are_those_of_the_counterpart_in_special_directions(pair, random):
    """Where frames are singular or jump, against convolutions that know no frames: far sharper than finite differences."""
    convolutions = [kind(natural_layout(3, 2), 3, 3) for kind in pair]
    features, vectors, weights, senders, receivers = graph(convolutions[0], random)
    probe = random(len(features), layout_dim(convolutions[0].out))
    second_probe = random(*vectors.shape)
    results = []
    for convolution in convolutions:
        inputs = [a.clone().requires_grad_() for a in (features, vectors, weights)]
        energy = (apply(convolution, *inputs, senders, receivers) * probe).square().sum()
        first = torch.autograd.grad(energy, inputs, create_graph=True)
        second = torch.autograd.grad((first[1] * second_probe).sum(), inputs)
        results.append([energy, *first, *second])
    for ours, theirs in zip(*results, strict=True):
        scale = theirs.abs().max().item()
        torch.testing.assert_close(ours / scale, theirs / scale, rtol=0, atol=1e-11)


@pytest.mark.parametrize("vector", [[0.4, -0.3, 0.9], [0.0, 1.0, 0.0], [0.0, -0.8, 0.0], [1.0, 0.0, 0.0], [BORDER, BORDER, 0.0]], ids=str)
def test_first_and_second_derivatives_are_right(kind, vector, random):
    convolution = kind(natural_layout(1, 1), 1, 1)
    senders, receivers = torch.tensor([0, 2, 1]), torch.tensor([1, 1, 2])
    vectors = torch.cat([torch.tensor([vector], dtype=torch.float64), random(2, 3)])
    inputs = tuple(a.requires_grad_() for a in (random(3, 4), vectors, random(3, convolution.num_weights, 1)))

    def function(features, vectors, weights):
        return apply(convolution, features, vectors, weights, senders, receivers)

    assert gradcheck(function, inputs)
    assert gradgradcheck(function, inputs)


@pytest.mark.parametrize("couplings", ["even", "all"])
@pytest.mark.parametrize("kind", [SO2Convolution, SO2MixedConvolution])
def test_derivatives_are_right_where_many_degrees_meet(kind, couplings, random):
    convolution = kind(natural_layout(2, 1), 2, 1, couplings=couplings)
    inputs = tuple(a.requires_grad_() for a in (random(2, 9), random(1, 3), random(1, convolution.num_weights, 1)))
    senders, receivers = torch.tensor([0]), torch.tensor([1])
    assert gradgradcheck(lambda x, v, w: apply(convolution, x, v, w, senders, receivers), inputs)


def test_messages_of_single_edges_add_up_at_their_receivers(convolution, random):
    features, vectors, weights, senders, receivers = graph(convolution, random)
    expected = torch.zeros(5, layout_dim(convolution.out), dtype=torch.float64)
    for e in range(len(senders)):
        pair = torch.stack([features[senders[e]], features[receivers[e]]])
        message = apply(convolution, pair, vectors[e : e + 1], weights[e : e + 1], torch.tensor([0]), torch.tensor([1]))
        assert not message[0].any()
        expected[receivers[e]] += message[1]
    torch.testing.assert_close(apply(convolution, features, vectors, weights, senders, receivers), expected, rtol=1e-12, atol=1e-12)
    assert not expected[4].any()


def test_a_few_rows_at_a_time_give_the_same(convolution, random, monkeypatch):
    features, vectors, weights, *edges = graph(convolution, random)
    inputs = [a.requires_grad_() for a in (features, vectors, weights)]
    results = []
    for numbers in (so2.BLOCK_NUMBERS, 1):
        monkeypatch.setattr(so2, "BLOCK_NUMBERS", numbers)
        z = apply(convolution, *inputs, *edges)
        results.append([z, *torch.autograd.grad(z.square().sum(), inputs)])
    for at_once, one_by_one in zip(*results, strict=True):
        torch.testing.assert_close(one_by_one, at_once, rtol=0, atol=1e-11)


def test_padding_edges_without_length_or_weight_change_nothing(convolution, random):
    features, vectors, weights, senders, receivers = graph(convolution, random)
    inputs = [a.requires_grad_() for a in (features, vectors, weights)]
    plain = apply(convolution, *inputs, senders, receivers)
    padding = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    none = torch.zeros(2, *weights.shape[1:], dtype=torch.float64)
    both = torch.tensor([0, 4])
    vectors, weights = torch.cat([vectors, padding]), torch.cat([weights, none])
    padded = apply(convolution, features, vectors, weights, torch.cat([senders, both]), torch.cat([receivers, both]))
    torch.testing.assert_close(padded, plain, rtol=1e-12, atol=1e-12)
    (slope,) = torch.autograd.grad(padded.square().sum(), padding)
    assert not slope.any()


def test_float32_agrees_with_float64(convolution, random):
    features, vectors, weights, *edges = graph(convolution, random)
    single = apply(convolution, features.float(), vectors.float(), weights.float(), *edges)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), apply(convolution, features, vectors, weights, *edges), rtol=1e-5, atol=5e-5)


@pytest.mark.parametrize("atoms", [0, 3])
def test_without_edges_the_sums_are_zero(convolution, random, atoms):
    features, none = random(atoms, layout_dim(convolution.in_layout)).requires_grad_(), torch.zeros(0, dtype=torch.long)
    z = apply(convolution, features, random(0, 3), random(0, convolution.num_weights, 2), none, none)
    assert z.shape == (atoms, layout_dim(convolution.out))
    assert not z.any()
    (slope,) = torch.autograd.grad(z.sum(), features)
    assert not slope.any()


@pytest.mark.parametrize("wrong", ["features", "harmonics", "weights"])
def test_a_wrong_shape_is_named(convolution, random, wrong):
    features, vectors, weights, senders, receivers = graph(convolution, random)
    inputs = {"features": features, "harmonics": spherical_harmonics(vectors, convolution.lmax_edge), "weights": weights}
    inputs[wrong] = inputs[wrong][:, 1:]
    with pytest.raises(ValueError, match=f"{wrong} must be"):
        convolution(inputs["features"], inputs["harmonics"], senders, receivers, inputs["weights"])


def test_arguments_that_do_not_fit_raise_when_built(kind):
    with pytest.raises(ValueError, match="cannot be reached"):
        kind(natural_layout(1, 2), 2, 4)
    with pytest.raises(ValueError, match="lmax_edge must be"):
        kind(natural_layout(1, 2), -1, 1)


@pytest.mark.parametrize("kind", [SO2MixedConvolution, SO2GauntConvolution])
def test_other_than_natural_parity_is_refused(kind):
    with pytest.raises(ValueError, match="needs natural parity"):
        kind(parse_irreps("2x0e+2x1e"), 2, 1)


def test_weights_per_order_need_the_direction_of_the_edge():
    with pytest.raises(ValueError, match="lmax_edge must be at least 1, got 0"):
        SO2MixedConvolution(natural_layout(2, 1), 0, 2)


def test_the_state_dict_is_empty(convolution):
    assert not convolution.state_dict()
