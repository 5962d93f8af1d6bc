"""Gaunt products are Clebsch-Gordan products with Gaunt weights, however functions are sampled."""

import pytest
import torch

from equimol.o3 import gaunt_coefficient, layout_dim, layout_slices, natural_layout, parse_irreps
from equimol.tensor_products import EDGE_CONVOLUTIONS, MANY_BODY_PRODUCTS, TENSOR_PRODUCTS, ClebschGordan
from equimol.tensor_products.gaunt import power_scales


@pytest.fixture(params=["gaunt_fourier", "gaunt_grid"])
def name(request):
    return request.param


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("channels2", [1, 2])
@pytest.mark.parametrize("degrees", [(1, 3, 3), (3, 3, 4), (4, 2, [0, 2, 5])])
def test_it_equals_the_clebsch_gordan_product_of_the_same_rank(name, random, degrees, channels2, rank):
    layouts = natural_layout(degrees[0], 2), natural_layout(degrees[1], channels2), degrees[2]
    gaunt, plain = (kind(*layouts, couplings="even", rank=rank) for kind in (TENSOR_PRODUCTS[name], ClebschGordan))
    assert (gaunt.out, gaunt.num_weights, gaunt.paths) == (plain.out, plain.num_weights, plain.paths)
    x, y, w = random(3, layout_dim(gaunt.in1)), random(3, layout_dim(gaunt.in2)), random(3, gaunt.num_weights, 2)
    torch.testing.assert_close(gaunt(x, y, w), plain(x, y, w), rtol=0, atol=1e-12)


def test_it_equals_the_clebsch_gordan_product_with_gaunt_path_weights(name, random):
    layouts = natural_layout(3, 2), natural_layout(3, 2), 3
    gaunt, plain = TENSOR_PRODUCTS[name](*layouts, couplings="even"), ClebschGordan(*layouts, couplings="even")
    t, free = gaunt.coefficients(), plain.coefficients()
    path_weights = torch.tensor([[t[p] / free[p]] for p in plain.paths], dtype=torch.float64).expand(-1, 2)
    x, y = random(3, layout_dim(gaunt.in1)), random(3, layout_dim(gaunt.in2))
    ones = torch.ones(gaunt.num_weights, 2, dtype=torch.float64)
    torch.testing.assert_close(gaunt(x, y, ones), plain(x, y, path_weights), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("in1", "couplings", "sum_paths", "message"),
    [
        ("2x0e+2x1o", "all", True, "pass couplings='even'"),
        ("2x0e+2x1o", "even", False, "pass sum_paths=True"),
        ("2x0e+2x1e", "even", True, "needs natural parity"),
        ("2x1o", "even", True, "needs natural parity"),
    ],
)
def test_what_a_pointwise_product_cannot_represent_raises_when_built(name, in1, couplings, sum_paths, message):
    with pytest.raises(ValueError, match=message):
        TENSOR_PRODUCTS[name](parse_irreps(in1), parse_irreps("0e+1o"), 1, couplings=couplings, sum_paths=sum_paths)


def test_fourier_equals_grid(random):
    layouts = natural_layout(4, 3), natural_layout(3, 3), 5
    fourier, grid = (TENSOR_PRODUCTS[n](*layouts, couplings="even", rank=2) for n in ("gaunt_fourier", "gaunt_grid"))
    x, y, w = random(4, layout_dim(grid.in1)), random(4, layout_dim(grid.in2)), random(4, grid.num_weights, 3)
    torch.testing.assert_close(fourier(x, y, w), grid(x, y, w), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("lmax", "lmax_edge", "out"), [(0, 3, 3), (1, 3, [0, 1]), (3, 2, 2)])
def test_a_convolution_is_the_product_with_harmonics_then_the_sum(name, random, lmax, lmax_edge, out):
    convolution = EDGE_CONVOLUTIONS[name](natural_layout(lmax, 2), lmax_edge, out)
    product = TENSOR_PRODUCTS[name](natural_layout(lmax, 2), natural_layout(lmax_edge, 1), out, couplings="even")
    senders, receivers = torch.tensor([0, 2, 1, 1, 3]), torch.tensor([1, 1, 0, 3, 1])
    x, y, w = random(4, layout_dim(convolution.in_layout)), random(5, (lmax_edge + 1) ** 2), random(5, lmax_edge + 1, 2)
    expected = torch.zeros(4, layout_dim(product.out), dtype=torch.float64)
    for e in range(5):  # degree weights of the filter alone
        weights = torch.cat([torch.ones(lmax + 1, 2), w[e], torch.ones(len(product.out), 2)])
        expected[receivers[e]] += product(x[senders[e]], y[e], weights)
    assert convolution.out == product.out
    torch.testing.assert_close(convolution(x, y, senders, receivers, w), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("rank", [1, 2])
def test_summing_before_or_after_sampling_is_the_same(name, random, rank):
    convolution = EDGE_CONVOLUTIONS[name](natural_layout(2, 3), 3, 2, rank)
    senders, receivers = torch.tensor([0, 2, 1, 1, 3, 0]), torch.tensor([1, 1, 0, 3, 1, 4])
    inputs = random(5, 9, 3), random(6, 16), senders, receivers, random(6, rank, 4, 3)
    after, before = convolution.samples_of_messages(*inputs), convolution.samples_of_moments(*inputs)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-12)


def test_each_filter_of_a_rank_has_its_own_output_channels(name, random):
    one, two = (EDGE_CONVOLUTIONS[name](natural_layout(1, 3), 2, 2, rank) for rank in (1, 2))
    senders, receivers = torch.tensor([0, 1, 1]), torch.tensor([1, 0, 1])
    x, y, w = random(2, 12), random(3, 9), random(3, 6, 3)
    together = two(x, y, senders, receivers, w).view(2, 9, 2, 3)
    for r in range(2):
        alone = one(x, y, senders, receivers, w[:, 3 * r : 3 * r + 3]).view(2, 9, 3)
        torch.testing.assert_close(together[:, :, r], alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("nu", [1, 2, 3])
def test_a_power_is_a_repeated_product(name, random, nu):
    power = MANY_BODY_PRODUCTS[name](natural_layout(2, 2), 2, 3, 1)
    x = random(4, 18)
    y = x  # the full power, every degree of it, without any scale
    for n in range(1, nu):
        product = ClebschGordan(natural_layout(2 * n, 2), natural_layout(2, 2), 2 * n + 2, couplings="even", rank=1)
        scale = torch.cat([x.new_full((b.dim,), component_scale(product, b.l)) for b in product.out])
        y = product(y, x, torch.ones(product.num_weights, 2, dtype=torch.float64)) / scale
    weights = torch.zeros(1, 3, 3, 2, dtype=torch.float64)
    weights[:, nu - 1] = 1
    z = power(x, weights.flatten(1, 2), torch.zeros(4, dtype=torch.long))
    for l, part in enumerate(layout_slices(power.out)):
        scale = power_scales(2, nu, (l,)).item() / 3**0.5
        torch.testing.assert_close(z[:, part], y[:, part] * scale, rtol=0, atol=1e-11)


def component_scale(product, l):
    """The component normalisation of one degree, sqrt((2l+1) / sum of squared Gaunt coefficients)."""
    path = next(p for p in product.paths if p.l3 == l)
    return product.coefficients()[path] / gaunt_coefficient(path.l1, path.l2, l)


@pytest.mark.parametrize("nu", [1, 2, 3, 4])
def test_powers_of_gaussian_features_have_unit_mean_square(name, random, nu):
    power = MANY_BODY_PRODUCTS[name](natural_layout(2, 16), 1, nu, 1)
    weights = torch.zeros(1, nu, 2, 16, dtype=torch.float64)
    weights[:, -1] = nu**0.5  # undoes the average over powers
    z = power(random(3000, 9 * 16), weights.flatten(1, 2), torch.zeros(3000, dtype=torch.long))
    for part in layout_slices(power.out):
        assert z[:, part].square().mean().item() == pytest.approx(1, abs=0.12)
