"""Vector signals: the generalised Gaunt formula, every odd coupling, small grids."""

import itertools
import math

import pytest
import torch

from equimol.o3 import (
    bracket_coefficient,
    gaunt_coefficient,
    gauss_legendre_grid,
    layout_dim,
    layout_slices,
    natural_layout,
    parse_irreps,
    spherical_harmonics,
    wigner_3j,
    wigner_6j,
)
from equimol.tensor_products import ClebschGordan
from equimol.tensor_products.vector_signal import VectorSignal, half_sphere, vector_signals, vector_strength


def odd_triples(lmax):
    """All (l1, l2, l3) up to lmax that couple and have an odd sum."""
    for l1, l2, l3 in itertools.product(range(lmax + 1), repeat=3):
        if abs(l1 - l2) <= l3 <= l1 + l2 and (l1 + l2 + l3) % 2:
            yield l1, l2, l3


def wigner_9j(a, b, c, d, e, f, g, h, i):
    """Of the rows (a b c), (d e f), (g h i)."""
    return sum((2 * x + 1) * wigner_6j(a, d, g, h, i, x) * wigner_6j(b, e, h, d, x, f) * wigner_6j(c, f, i, x, a, b) for x in range(30))


def couplings_of(product):
    """The product of all pairs of components, with weights one: [dim1, dim2, dim_out]."""
    x, y = (torch.eye(layout_dim(layout), dtype=torch.float64) for layout in (product.in1, product.in2))
    return product(x[:, None], y, torch.ones(product.num_weights, 1, dtype=torch.float64))


def expected_couplings(product):
    """The same as the coefficients have it."""
    z = torch.zeros(layout_dim(product.in1), layout_dim(product.in2), layout_dim(product.out), dtype=torch.float64)
    slices = [layout_slices(layout) for layout in (product.in1, product.in2, product.out)]
    for (path, t), n in zip(product.coefficients().items(), product.out_blocks, strict=True):
        z[slices[0][path.i1], slices[1][path.i2], slices[2][n]] += t * wigner_3j(*path[:3])
    return z


def test_vector_signals_are_normalised_gradients_of_solid_harmonics(random):
    lmax, points = 5, torch.nn.functional.normalize(random(7, 3), dim=-1)
    powers = torch.tensor([l for l in range(lmax + 1) for _ in range(2 * l + 1)])

    def solid(r):
        return spherical_harmonics(r, lmax, "integral") * r.square().sum(-1, keepdim=True) ** (powers / 2)

    gradients = torch.func.vmap(torch.func.jacfwd(solid))(points)  # [points, harmonics, 3]
    for l in range(1, lmax + 1):
        expected = gradients[:, l * l : (l + 1) ** 2].permute(2, 0, 1).flatten(0, 1) / math.sqrt(l * (2 * l + 1))
        torch.testing.assert_close(vector_signals(points, lmax)[l] * (2 * l + 1) ** 0.125, expected, rtol=0, atol=1e-12)


def test_vector_signals_are_orthonormal():
    points, weights = gauss_legendre_grid(8)
    signals = torch.cat([signal * (2 * l + 1) ** 0.125 for l, signal in enumerate(vector_signals(points, 4)[1:], start=1)], dim=1)
    gram = signals.T @ (weights.repeat(3)[:, None] * signals)
    torch.testing.assert_close(gram, torch.eye(24, dtype=torch.float64), rtol=0, atol=1e-13)


def test_9j_symbols_have_known_values():
    assert wigner_9j(1, 1, 0, 1, 1, 0, 0, 0, 0) == pytest.approx(1 / 3)
    assert wigner_9j(1, 1, 1, 1, 1, 1, 1, 1, 1) == pytest.approx(0, abs=1e-15)  # it changes its sign when rows are swapped
    for a, b, c, d, e, f in [(1, 2, 3, 3, 2, 2), (2, 2, 1, 3, 4, 3)]:
        expected = (-1) ** (b + c + d + f) / math.sqrt((2 * c + 1) * (2 * f + 1)) * wigner_6j(a, b, c, e, d, f)
        assert wigner_9j(a, b, c, d, e, c, f, f, 0) == pytest.approx(expected, rel=1e-13)


def test_strengths_follow_the_generalised_gaunt_formula():
    for l1, l2, l3 in odd_triples(8):
        gaunt = gaunt_coefficient(l1 - 1, l2 - 1, l3 - 1)
        symbol = wigner_9j(l1 - 1, l2 - 1, l3 - 1, 1, 1, 1, l1, l2, l3)
        expected = math.sqrt(6 * (2 * l1 + 1) * (2 * l2 + 1) * (2 * l3 + 1)) * gaunt * symbol
        assert vector_strength(l1, l2, l3) / strength_scale(l1, l2, l3) == pytest.approx(expected, abs=1e-12)


def test_strengths_are_those_of_the_bracket_times_the_sum_of_the_degrees():
    for ls in odd_triples(6):
        norms = math.prod(math.sqrt(l * (2 * l + 1)) for l in ls)
        assert vector_strength(*ls) / strength_scale(*ls) * norms == pytest.approx(sum(ls) * bracket_coefficient(*ls), rel=1e-13)


def strength_scale(*degrees):
    return math.prod((2 * l + 1) ** -0.125 for l in degrees) / math.sqrt(2)


def test_no_strength_within_a_block_is_accidentally_small():
    product = VectorSignal(natural_layout(8, 1), natural_layout(8, 1), 8)
    for n in range(len(product.out)):
        strengths = [t for t, block in zip(product.coefficients().values(), product.out_blocks, strict=True) if block == n]
        assert 0 < max(strengths) < 1.7 * min(strengths)


@pytest.mark.parametrize("band", [0, 1, 2, 5, 8, 13, 24])
def test_half_a_sphere_integrates_even_polynomials(band):
    points, weights = half_sphere(band)
    harmonics = spherical_harmonics(points, band, "integral")
    for l in range(0, band + 1, 2):
        integral = weights @ harmonics[:, l * l : (l + 1) ** 2]
        expected = torch.zeros_like(integral) if l else integral.new_tensor([math.sqrt(4 * math.pi)])
        torch.testing.assert_close(integral, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("couplings", ["all", "even", "odd"])
@pytest.mark.parametrize("lmax", [1, 4, 8])
def test_it_holds_the_couplings_of_its_coefficients_and_no_others(lmax, couplings):
    layout = natural_layout(lmax, 1)
    product = VectorSignal(layout, layout, range(1 if couplings == "odd" else 0, lmax + 1), couplings=couplings)
    torch.testing.assert_close(couplings_of(product), expected_couplings(product), rtol=0, atol=1e-12)


@pytest.mark.parametrize("couplings", ["all", "even", "odd"])
@pytest.mark.parametrize(
    ("in1", "in2"), [("0e+0o+1o+1e+2e+2o", "2o+0e+1e+1o"), ("0e+1o+2e", "1o+1e+0o"), ("0o+1e", "1o+2e"), ("1e+2o", "0o+1e+2o")]
)
def test_features_of_both_parities_keep_even_and_odd_couplings_apart(in1, in2, couplings):
    product = VectorSignal(parse_irreps(in1), parse_irreps(in2), [1, 2], couplings=couplings)
    torch.testing.assert_close(couplings_of(product), expected_couplings(product), rtol=0, atol=1e-12)


@pytest.mark.parametrize("channels2", [1, 2])
def test_it_equals_the_clebsch_gordan_product_with_its_strengths_as_path_weights(random, channels2):
    layouts = parse_irreps("2x0e+2x1o+2x1e+2x2e"), natural_layout(3, channels2), 3
    signal, plain = VectorSignal(*layouts, rank=2), ClebschGordan(*layouts)
    t, free = signal.coefficients(), plain.coefficients()
    x, y, w = random(3, layout_dim(signal.in1)), random(3, layout_dim(signal.in2)), random(3, signal.num_weights, 2)
    ratios = torch.tensor([[t[p] / free[p]] for p in plain.paths], dtype=torch.float64)
    torch.testing.assert_close(signal(x, y, w), plain(x, y, signal.path_weights(w) * ratios), rtol=0, atol=1e-12)


def test_even_couplings_are_those_of_the_sphere(random):
    layouts = natural_layout(3, 2), natural_layout(2, 2), 3
    signal, plain = VectorSignal(*layouts, couplings="even", rank=2), ClebschGordan(*layouts, couplings="even", rank=2)
    x, y, w = random(3, layout_dim(signal.in1)), random(3, layout_dim(signal.in2)), random(3, signal.num_weights, 2)
    torch.testing.assert_close(signal(x, y, w), plain(x, y, w), rtol=0, atol=1e-12)


def test_two_vectors_need_one_point_for_their_cross_product(random):
    product = VectorSignal(parse_irreps("2x1o"), parse_irreps("2x1o"), [1])
    x, y = random(5, 6), random(5, 6)
    cross = torch.linalg.cross(x.view(5, 3, 2), y.view(5, 3, 2), dim=1).flatten(1)
    assert product.out == parse_irreps("2x1e")
    assert [signals.points for signals in product.products] == [1]
    torch.testing.assert_close(product(x, y, torch.ones(3, 2, dtype=torch.float64)), cross / math.sqrt(2), rtol=0, atol=1e-14)


def test_odd_couplings_need_fewer_points_than_even_ones():
    even, odd = VectorSignal(natural_layout(4, 1), natural_layout(4, 1), 4).products
    assert (even.points, odd.points) == (37, 19)
