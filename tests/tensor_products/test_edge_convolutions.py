"""What holds for every edge convolution of the table."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from equimol.o3 import layout_dim, natural_layout, parse_irreps, rotate, spherical_harmonics, wigner_3j
from equimol.tensor_products import EDGE_CONVOLUTIONS

SENDERS = torch.tensor([0, 3, 2, 0, 4, 1, 2, 2, 3, 1, 0])
RECEIVERS = torch.tensor([1, 1, 0, 4, 3, 4, 1, 0, 3, 0, 4])  # atom 2 receives nothing, atom 3 has an edge to itself


@pytest.fixture(params=sorted(EDGE_CONVOLUTIONS))
def kind(request):
    return EDGE_CONVOLUTIONS[request.param]


@pytest.fixture(params=[(0, 3), (1, 2), (3, 3)], ids=str)
def convolution(request, kind):
    lmax, lmax_edge = request.param
    return kind(natural_layout(lmax, 2), lmax_edge, 2)


def graph(convolution, random):
    vectors = random(len(SENDERS), 3)
    features = random(5, layout_dim(convolution.in_layout))
    return features, vectors, random(len(SENDERS), convolution.num_weights, convolution.channels)


def apply(convolution, features, vectors, weights, senders=SENDERS, receivers=RECEIVERS):
    return convolution(features, spherical_harmonics(vectors, convolution.lmax_edge), senders, receivers, weights)


def test_rotating_atoms_and_features_rotates_the_output(convolution, random, rotation):
    features, vectors, weights = graph(convolution, random)
    rotated = apply(convolution, rotate(features, convolution.in_layout, rotation), vectors @ rotation.T, weights)
    expected = rotate(apply(convolution, features, vectors, weights), convolution.out, rotation)
    torch.testing.assert_close(rotated, expected, rtol=1e-11, atol=1e-11)


def test_the_order_of_edges_does_not_matter(convolution, random):
    features, vectors, weights = graph(convolution, random)
    order = torch.randperm(len(SENDERS), generator=torch.Generator().manual_seed(2))
    shuffled = apply(convolution, features, vectors[order], weights[order], SENDERS[order], RECEIVERS[order])
    torch.testing.assert_close(shuffled, apply(convolution, features, vectors, weights), rtol=1e-12, atol=1e-12)


def test_the_order_of_atoms_is_the_order_of_the_output(convolution, random):
    features, vectors, weights = graph(convolution, random)
    order = torch.tensor([3, 0, 4, 1, 2])
    new = torch.argsort(order)
    permuted = apply(convolution, features[order], vectors, weights, new[SENDERS], new[RECEIVERS])
    torch.testing.assert_close(permuted, apply(convolution, features, vectors, weights)[order], rtol=1e-12, atol=1e-12)


def test_messages_of_single_edges_add_up_at_their_receivers(convolution, random):
    features, vectors, weights = graph(convolution, random)
    expected = torch.zeros(5, layout_dim(convolution.out), dtype=torch.float64)
    for e in range(len(SENDERS)):  # the sender's feature alone, on a graph of one edge between two atoms
        pair = torch.stack([features[SENDERS[e]], features[RECEIVERS[e]]])
        message = apply(convolution, pair, vectors[e : e + 1], weights[e : e + 1], torch.tensor([0]), torch.tensor([1]))
        assert not message[0].any()
        expected[RECEIVERS[e]] += message[1]
    torch.testing.assert_close(apply(convolution, features, vectors, weights), expected, rtol=1e-12, atol=1e-12)
    assert not expected[2].any()


def test_clebsch_gordan_is_the_product_of_each_path_then_the_sum(random):
    convolution = EDGE_CONVOLUTIONS["clebsch_gordan"](parse_irreps("2x0e+2x1o"), 3, 2)
    features, vectors, weights = graph(convolution, random)
    harmonics = spherical_harmonics(vectors, 3)
    blocks = {}
    for number, p in enumerate(convolution.paths):
        x = features[SENDERS].unflatten(-1, (-1, 2))[:, p.l1**2 : (p.l1 + 1) ** 2]
        y = harmonics[:, p.l2**2 : (p.l2 + 1) ** 2]
        messages = (2 * p.l3 + 1) ** 0.5 * torch.einsum("ijk,eic,ej->ekc", wigner_3j(p.l1, p.l2, p.l3), x, y) * weights[:, number, None]
        total = torch.zeros(5, 2 * p.l3 + 1, 2, dtype=torch.float64)
        for e, receiver in enumerate(RECEIVERS):
            total[receiver] += messages[e]
        blocks.setdefault((p.l3, p.p3), []).append(total)
    expected = torch.cat([torch.cat(blocks[b.l, b.parity], -1).flatten(1) for b in convolution.out], -1)
    torch.testing.assert_close(apply(convolution, features, vectors, weights), expected, rtol=0, atol=1e-12)


def test_first_and_second_derivatives_are_right(kind, random):
    convolution = kind(natural_layout(1, 1), 1, 1)
    senders, receivers = torch.tensor([0, 2, 1, 1]), torch.tensor([1, 1, 2, 2])
    inputs = tuple(a.requires_grad_() for a in (random(3, 4), random(4, 4), random(4, convolution.num_weights, 1)))

    def function(features, harmonics, weights):
        return convolution(features, harmonics, senders, receivers, weights)

    assert gradcheck(function, inputs)
    assert gradgradcheck(function, inputs)


def test_derivatives_are_right_where_many_degrees_meet(kind, random):
    convolution = kind(natural_layout(3, 1), 3, 0)
    inputs = tuple(a.requires_grad_() for a in (random(2, 16), random(1, 16), random(1, convolution.num_weights, 1)))
    senders, receivers = torch.tensor([0]), torch.tensor([1])
    assert gradgradcheck(lambda x, y, w: convolution(x, y, senders, receivers, w), inputs)


def test_float32_agrees_with_float64(convolution, random):
    features, vectors, weights = graph(convolution, random)
    single = apply(convolution, features.float(), vectors.float(), weights.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), apply(convolution, features, vectors, weights), rtol=1e-5, atol=5e-5)


@pytest.mark.parametrize("atoms", [0, 3])
def test_without_edges_the_sums_are_zero(convolution, random, atoms):
    features, none = random(atoms, layout_dim(convolution.in_layout)), torch.zeros(0, dtype=torch.long)
    z = apply(convolution, features, random(0, 3), random(0, convolution.num_weights, 2), none, none)
    assert z.shape == (atoms, layout_dim(convolution.out))
    assert not z.any()


@pytest.mark.parametrize("wrong", ["features", "harmonics", "weights"])
def test_a_wrong_shape_is_named(convolution, random, wrong):
    features, vectors, weights = graph(convolution, random)
    inputs = {"features": features, "harmonics": spherical_harmonics(vectors, convolution.lmax_edge), "weights": weights}
    inputs[wrong] = inputs[wrong][:, 1:]
    with pytest.raises(ValueError, match=f"{wrong} must be"):
        convolution(inputs["features"], inputs["harmonics"], SENDERS, RECEIVERS, inputs["weights"])


def test_unequal_numbers_of_edges_are_counted_in_the_message(convolution, random):
    features, vectors, weights = graph(convolution, random)
    harmonics = spherical_harmonics(vectors, convolution.lmax_edge)
    with pytest.raises(ValueError, match="one row per edge, got harmonics 11, senders 11, receivers 10, weights 11"):
        convolution.check(features, harmonics, SENDERS, RECEIVERS[1:], weights)


def test_degrees_out_of_reach_raise_when_built(kind):
    with pytest.raises(ValueError, match="cannot be reached"):
        kind(natural_layout(1, 2), 2, 4)
    with pytest.raises(ValueError, match="lmax_edge must be"):
        kind(natural_layout(1, 2), -1, 1)
