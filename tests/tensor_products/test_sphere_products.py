"""Products of functions on the sphere are Clebsch-Gordan products of a rank, however functions are sampled."""

import itertools

import pytest
import torch

from equimol.o3 import Block, coupling_paths, layout_dim, layout_slices, natural_layout, parse_irreps
from equimol.o3.sphere import ALGORITHMS
from equimol.tensor_products import EDGE_CONVOLUTIONS, MANY_BODY_PRODUCTS, TENSOR_PRODUCTS, ClebschGordan, CompleteGrid
from equimol.tensor_products.base import balance, sphere_strength
from equimol.tensor_products.sphere_convolution import SumOfMessages, SumOfMoments
from equimol.tensor_products.sphere_power import power_scales

GAUNT = ("gaunt_fourier", "gaunt_grid")
NAMES = (*GAUNT, "bracket_grid", "complete_grid")


def compare(product, plain, random, *batch, tolerance=1e-12):
    assert (product.out, product.num_weights, product.paths) == (plain.out, plain.num_weights, plain.paths)
    x, y = random(*batch, layout_dim(product.in1)), random(*batch, layout_dim(product.in2))
    w = random(*batch, product.num_weights, product.channels)
    torch.testing.assert_close(product(x, y, w), plain(x, y, w), rtol=0, atol=tolerance)


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("channels2", [1, 2])
@pytest.mark.parametrize("degrees", [(1, 3, [1, 2, 3]), (3, 3, [1, 4]), (4, 2, [2, 5])])
@pytest.mark.parametrize("name", NAMES)
def test_it_equals_the_clebsch_gordan_product_of_the_same_rank(name, random, degrees, channels2, rank):
    layouts = natural_layout(degrees[0], 2), natural_layout(degrees[1], channels2), degrees[2]
    couplings = TENSOR_PRODUCTS[name].couples
    gaunt, plain = (kind(*layouts, couplings=couplings, rank=rank) for kind in (TENSOR_PRODUCTS[name], ClebschGordan))
    compare(gaunt, plain, random, 3)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("irreps1", "irreps2"),
    [("2x1o", "2x2e"), ("2x1e", "2x1o+2x3o"), ("2x0e+2x1o+2x1e+2x2o", "2x0o+2x1e+2x2e"), ("2x2o+2x0e+2x1e+2x1o", "1o+2e+1e")],
)
def test_any_parities_and_degrees_are_functions_and_pseudo_functions(name, random, irreps1, irreps2):
    layouts, couplings = (parse_irreps(irreps1), parse_irreps(irreps2)), TENSOR_PRODUCTS[name].couples
    degrees = {path.l3 for path in coupling_paths(*layouts, range(4), couplings)}
    compare(*(kind(*layouts, degrees, couplings=couplings, rank=2) for kind in (TENSOR_PRODUCTS[name], ClebschGordan)), random, 3)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("name", ["gaunt_grid", "bracket_grid", "complete_grid"])
def test_every_algorithm_of_the_grid_gives_the_same(name, algorithm, random):
    layouts = natural_layout(5, 2), natural_layout(4, 2), range(1, 7)
    kind = TENSOR_PRODUCTS[name]
    product = kind(*layouts, couplings=kind.couples, algorithm=algorithm)
    compare(product, ClebschGordan(*layouts, couplings=kind.couples, rank=1), random, 2)


@pytest.mark.parametrize("algorithm", ["direct", "fft"])
@pytest.mark.parametrize("lmaxes", [(1, 1, 2), (1, 3, 2), (3, 1, 4), (2, 2, 1)])
def test_direct_convolution_and_fft_give_the_same(lmaxes, algorithm, random):
    layouts = natural_layout(lmaxes[0], 2), natural_layout(lmaxes[1], 2), lmaxes[2]
    product = TENSOR_PRODUCTS["gaunt_fourier"](*layouts, couplings="even", rank=2, algorithm=algorithm)
    assert product.algorithm == algorithm
    compare(product, ClebschGordan(*layouts, couplings="even", rank=2), random, 2)


@pytest.mark.parametrize("name", NAMES)
def test_coefficients_are_those_of_wigner_3j_up_to_degree_eight(name, random):
    """One path at a time: the product of single degrees, all with all, against t_p wigner_3j."""
    lmax = 8
    kind = TENSOR_PRODUCTS[name]
    for l1, l2 in itertools.combinations_with_replacement(range(lmax + 1), 2):
        odd = {"even": (0,), "odd": (1,), "all": (0, 1)}[kind.couples]
        degrees = [l3 for l3 in range(l2 - l1, min(l1 + l2, lmax) + 1) if (l1 + l2 + l3) % 2 in odd]
        if degrees:
            layouts = (Block(l1, (-1) ** l1, 1),), (Block(l2, (-1) ** l2, 1),), degrees
            compare(*(k(*layouts, couplings=kind.couples, rank=1) for k in (kind, ClebschGordan)), random, 2)


@pytest.mark.parametrize(("lmax", "even", "odd"), [(3, 1.22, 1.1), (4, 1.29, 1.13), (6, 1.39, 1.22)])
def test_path_weights_of_the_complete_product_are_nearly_uniform(lmax, even, odd):
    strengths = ([], [])
    for l1, l2, l3 in itertools.product(range(lmax + 1), repeat=3):
        if abs(l1 - l2) <= l3 <= l1 + l2:
            strengths[(l1 + l2 + l3) % 2].append(sphere_strength(l1, l2, l3))
    assert max(strengths[0]) / min(strengths[0]) < even
    assert max(strengths[1]) / min(strengths[1]) < odd
    assert 0.95 < sum(strengths[1]) / len(strengths[1]) / (sum(strengths[0]) / len(strengths[0])) < 1.05


@pytest.mark.parametrize("name", GAUNT)
def test_it_equals_the_clebsch_gordan_product_with_gaunt_path_weights(name, random):
    layouts = natural_layout(3, 2), natural_layout(3, 2), 3
    gaunt, plain = TENSOR_PRODUCTS[name](*layouts, couplings="even"), ClebschGordan(*layouts, couplings="even")
    t, free = gaunt.coefficients(), plain.coefficients()
    path_weights = torch.tensor([[t[p] / free[p]] for p in plain.paths], dtype=torch.float64).expand(-1, 2)
    x, y = random(3, layout_dim(gaunt.in1)), random(3, layout_dim(gaunt.in2))
    ones = torch.ones(gaunt.num_weights, 2, dtype=torch.float64)
    torch.testing.assert_close(gaunt(x, y, ones), plain(x, y, path_weights), rtol=0, atol=1e-12)


def test_a_large_batch_is_its_rows_one_by_one(random):
    product = CompleteGrid(natural_layout(3, 16), natural_layout(3, 16), 3)
    x, y = random(700, layout_dim(product.in1)), random(700, layout_dim(product.in2))
    w = random(700, product.num_weights, 16)
    rows = slice(300, 303)
    torch.testing.assert_close(product(x, y, w)[rows], product(x[rows], y[rows], w[rows]), rtol=0, atol=1e-12)
    torch.testing.assert_close(product(x, y, w[0])[rows], product(x[rows], y[rows], w[0]), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "in1", "couplings", "sum_paths", "message"),
    [
        ("gaunt_grid", "2x0e+2x1o", "all", True, "pass couplings='even'"),
        ("gaunt_fourier", "2x0e+2x1o", "all", True, "pass couplings='even'"),
        ("bracket_grid", "2x0e+2x1o", "all", True, "pass couplings='odd'"),
        ("complete_grid", "2x0e+2x1o", "all", False, "pass sum_paths=True"),
        ("complete_grid", "2x0e+2x1o+2x1o", "all", True, "must have each irrep once"),
    ],
)
def test_what_a_product_of_functions_cannot_represent_raises_when_built(name, in1, couplings, sum_paths, message):
    with pytest.raises(ValueError, match=message):
        TENSOR_PRODUCTS[name](parse_irreps(in1), parse_irreps("0e+1o"), 1, couplings=couplings, sum_paths=sum_paths)


def test_the_bracket_of_two_vectors_is_their_cross_product(random):
    product = TENSOR_PRODUCTS["bracket_grid"](parse_irreps("1o"), parse_irreps("1o"), [1], couplings="odd")
    assert product.out == parse_irreps("1e")
    x, y = random(5, 3), random(5, 3)
    expected = torch.linalg.cross(x, y) / 2**0.5  # unit variance
    torch.testing.assert_close(product(x, y, torch.ones(3, 1, dtype=torch.float64)), expected)


@pytest.mark.parametrize(("name", "tells_apart"), [("gaunt_grid", False), ("complete_grid", True)])
def test_a_pseudoscalar_tells_a_molecule_from_its_mirror_image_only_with_odd_couplings(name, tells_apart, random):
    """a.(b x c) of three vectors is the simplest pseudoscalar: even couplings of natural features have no block for it."""
    kind = TENSOR_PRODUCTS[name]
    first = kind(parse_irreps("1o"), parse_irreps("1o"), [0, 1, 2] if tells_apart else [0, 2], couplings=kind.couples)
    degrees = [0] if tells_apart else [1]
    second = kind(first.out, parse_irreps("1o"), degrees, couplings=kind.couples)

    def invariants(a, b, c):
        ones = [torch.ones(product.num_weights, 1, dtype=torch.float64) for product in (first, second)]
        z = second(first(a, b, ones[0]), c, ones[1])
        return [z[..., part] for block, part in zip(second.out, layout_slices(second.out), strict=True) if block.irrep == "0o"]

    a, b, c = random(3), random(3), random(3)
    pseudoscalars = invariants(a, b, c)
    assert bool(pseudoscalars) == tells_apart
    for value, mirrored in zip(pseudoscalars, invariants(-a, -b, -c), strict=True):
        torch.testing.assert_close(mirrored, -value)
        assert value.abs() > 1e-3


def layer(convolution):
    """The product that a convolution sums over neighbours, and its degree weights with the others one."""
    couplings = type(convolution).couplings
    single = natural_layout(convolution.lmax_edge, 1)
    return ClebschGordan(convolution.in_layout, single, convolution.out_degrees, couplings=couplings, rank=1)


@pytest.mark.parametrize("name", [*GAUNT, "complete_grid"])
@pytest.mark.parametrize("sums", [None, SumOfMoments, SumOfMessages])
@pytest.mark.parametrize(("lmax", "lmax_edge", "out"), [(0, 3, 3), (1, 3, [0, 1]), (3, 2, 2)])
def test_a_convolution_is_the_product_with_harmonics_then_the_sum(name, random, lmax, lmax_edge, out, sums):
    convolution = EDGE_CONVOLUTIONS[name](natural_layout(lmax, 2), lmax_edge, out)
    product = layer(convolution)
    if sums is not None:  # else as chosen by size
        single = ClebschGordan(natural_layout(lmax, 1), natural_layout(lmax_edge, 1), out, couplings=type(convolution).couplings, rank=1)
        lmax_out = max(convolution.out_degrees)
        grid = convolution.make_grid((lmax, lmax_edge), lmax_out, lmax + lmax_edge + lmax_out)
        convolution.sum = SumOfMoments(single, lmax_edge, 1) if sums is SumOfMoments else SumOfMessages(single, (lmax, lmax_edge), grid)
    senders, receivers = torch.tensor([0, 2, 1, 1, 3]), torch.tensor([1, 1, 0, 3, 1])
    x, y, w = random(4, layout_dim(convolution.in_layout)), random(5, (lmax_edge + 1) ** 2), random(5, lmax_edge + 1, 2)
    expected = torch.zeros(4, layout_dim(product.out), dtype=torch.float64)
    for e in range(5):  # degree weights of the filter alone
        weights = torch.cat([torch.ones(lmax + 1, 2), w[e], torch.ones(len(product.out), 2)])
        expected[receivers[e]] += product(x[senders[e]], y[e], weights)
    assert convolution.out == product.out
    torch.testing.assert_close(convolution(x, y, senders, receivers, w), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", [*GAUNT, "complete_grid"])
def test_each_filter_of_a_rank_has_its_own_output_channels(name, random):
    one, two = (EDGE_CONVOLUTIONS[name](natural_layout(1, 3), 2, 2, rank) for rank in (1, 2))
    senders, receivers = torch.tensor([0, 1, 1]), torch.tensor([1, 0, 1])
    x, y, w = random(2, 12), random(3, 9), random(3, 6, 3)
    together = two(x, y, senders, receivers, w).unflatten(1, (-1, 2, 3))
    for r in range(2):
        alone = one(x, y, senders, receivers, w[:, 3 * r : 3 * r + 3]).unflatten(1, (-1, 3))
        torch.testing.assert_close(together[:, :, r], alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", GAUNT)
@pytest.mark.parametrize("nu", [1, 2, 3, 4])
def test_a_power_is_a_repeated_product(name, random, nu):
    power = MANY_BODY_PRODUCTS[name](natural_layout(2, 2), 2, 4, 1)
    x = random(4, 18)
    y = x  # the full power, every degree of it
    for n in range(1, nu):
        product = ClebschGordan(natural_layout(2 * n, 2), natural_layout(2, 2), 2 * n + 2, couplings="even", rank=1)
        y = product(y, x, pointwise_weights(product))
    weights = torch.zeros(1, 4, 3, 2, dtype=torch.float64)
    weights[:, nu - 1] = 1
    z = power(x, weights.flatten(1, 2), torch.zeros(4, dtype=torch.long))
    for l, part in enumerate(layout_slices(power.out)):
        scale = power_scales(2, nu, (l,)).item() / 4**0.5
        torch.testing.assert_close(z[:, part], y[:, part] * scale, rtol=0, atol=1e-11)


def pointwise_weights(product):
    """Weights per block that undo balance and normalisation, so that a rank-1 product is the bare product of functions."""
    a, b, c = ([1 / balance(block.l) for block in layout] for layout in (product.in1, product.in2, product.out))
    norms = {
        n: product.coefficients()[p] / sphere_strength(p.l1, p.l2, p.l3) for p, n in zip(product.paths, product.out_blocks, strict=True)
    }
    c = [value / norms[n] for n, value in enumerate(c)]
    return torch.tensor([*a, *b, *c], dtype=torch.float64)[:, None].expand(-1, product.channels)


@pytest.mark.parametrize("nu", [1, 2, 3, 4])
@pytest.mark.parametrize("name", GAUNT)
def test_powers_of_gaussian_features_have_unit_mean_square(name, random, nu):
    power = MANY_BODY_PRODUCTS[name](natural_layout(2, 16), 1, nu, 1)
    weights = torch.zeros(1, nu, 2, 16, dtype=torch.float64)
    weights[:, -1] = nu**0.5  # undoes the average over powers
    z = power(random(3000, 9 * 16), weights.flatten(1, 2), torch.zeros(3000, dtype=torch.long))
    for part in layout_slices(power.out):
        assert z[:, part].square().mean().item() == pytest.approx(1, abs=0.12)


def test_terms_of_the_complete_power_are_those_of_natural_parity():
    power = MANY_BODY_PRODUCTS["complete_grid"](parse_irreps("0e+1o+1e+2e+2o"), 1, 3, 1)
    assert set(power.terms) == {(1, 0, 0), (2, 0, 0), (0, 2, 0), (0, 0, 1), (3, 0, 0), (1, 2, 0), (1, 0, 1)}


def test_terms_of_the_complete_power_have_unit_mean_square_or_less_with_a_bracket(random):
    power = MANY_BODY_PRODUCTS["complete_grid"](parse_irreps("16x0e+16x1o+16x1e+16x2e+16x2o"), [0, 1], 3, 1)
    x, species = random(2000, layout_dim(power.in_layout)), torch.zeros(2000, dtype=torch.long)
    for n, term in enumerate(power.terms):
        weights = torch.zeros(1, len(power.terms), 2, 16, dtype=torch.float64)
        weights[:, n] = len(power.terms) ** 0.5
        z = power(x, weights.flatten(1, 2), species)
        for block, part in zip(power.out, layout_slices(power.out), strict=True):
            if block.l or not term[2]:  # the means over the sphere of brackets and of f {f, g} are zero or nearly so
                square = z[:, part].square().mean().item()
                assert 0.1 < square < 1.15 if term[2] else square == pytest.approx(1, abs=0.15), (term, block)


def test_a_complete_power_of_functions_alone_is_the_gaunt_power(random):
    complete, gaunt = (MANY_BODY_PRODUCTS[name](natural_layout(2, 3), 2, 3, 2) for name in ("complete_grid", "gaunt_grid"))
    x, w, species = random(5, 27), random(2, complete.num_weights, 3), torch.tensor([0, 1, 1, 0, 1])
    torch.testing.assert_close(complete(x, w, species), gaunt(x, w, species), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("algorithm", "parts"), [("lebedev", 2), ("gauss_legendre", 1)])
def test_a_kernel_takes_half_of_the_points_of_a_grid_with_antipodes(algorithm, parts):
    product = CompleteGrid(natural_layout(2, 1), natural_layout(2, 1), 2, algorithm=algorithm)
    for whole, half in zip(product._dense.tables, product._dense._halves, strict=True):
        assert whole.exact.shape[1] == parts * half.exact.shape[1]
        assert parts * len(whole.exact) == len(half.exact)
