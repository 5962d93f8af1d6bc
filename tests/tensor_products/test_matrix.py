"""Matrix products: 6j symbols in place of the sphere's coefficients, every coupling, no accidental zero."""

import itertools
import math

import pytest
import torch

from equimol.o3 import layout_dim, layout_slices, natural_layout, parse_irreps, wigner_3j, wigner_6j
from equimol.tensor_products import ClebschGordan
from equimol.tensor_products.matrix import MatrixProduct


def triples(lmax):
    """All (l1, l2, l3) up to lmax that couple."""
    return [ls for ls in itertools.product(range(lmax + 1), repeat=3) if abs(ls[0] - ls[1]) <= ls[2] <= ls[0] + ls[1]]


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


def test_6j_symbols_have_known_values():
    assert wigner_6j(1, 1, 1, 1, 1, 1) == pytest.approx(1 / 6, rel=1e-15)
    assert wigner_6j(2, 2, 2, 2, 2, 2) == pytest.approx(-3 / 70, rel=1e-15)
    for l, j in itertools.product(range(1, 9), range(5, 9)):
        assert wigner_6j(l, l, 0, j, j, j) == pytest.approx((-1) ** l / math.sqrt((2 * l + 1) * (2 * j + 1)), rel=1e-15)
    assert wigner_6j(1, 1, 3, 2, 2, 2) == wigner_6j(1, 1, 2, 2, 2, 4) == 0


def test_6j_symbols_have_their_symmetries_and_are_orthogonal():
    symbol = wigner_6j(1, 2, 3, 4, 3, 2)
    assert symbol != 0
    assert wigner_6j(2, 1, 3, 3, 4, 2) == wigner_6j(4, 3, 3, 1, 2, 2) == pytest.approx(symbol, rel=1e-15)
    rows = [[math.sqrt((2 * x + 1) * (2 * y + 1)) * wigner_6j(3, 2, x, 2, 3, y) for x in range(1, 6)] for y in range(5)]
    table = torch.tensor(rows, dtype=torch.float64)
    torch.testing.assert_close(table @ table.T, torch.eye(5, dtype=torch.float64), rtol=0, atol=1e-14)


@pytest.mark.parametrize("degrees", [(1, 1, 1, 1, 1, 1), (1, 2, 2, 3, 2, 1), (2, 3, 4, 3, 2, 3), (3, 4, 5, 4, 5, 2)])
def test_a_6j_symbol_is_the_contraction_of_four_3j_symbols(degrees):
    a, b, c, d, e, f = degrees
    tetrahedron = torch.einsum("abc,aef,dbf,dec->", wigner_3j(a, b, c), wigner_3j(a, e, f), wigner_3j(d, b, f), wigner_3j(d, e, c))
    assert tetrahedron.item() == pytest.approx(wigner_6j(*degrees), abs=1e-14)


@pytest.mark.parametrize("j", [1, 2, 3, 4])
def test_tensor_operators_multiply_with_6j_symbols(j):
    operators = [wigner_3j(j, l, j) for l in range(2 * j + 1)]
    for l1, l2, l3 in triples(2 * j):
        contracted = torch.einsum("axb,byc,azc->xyz", operators[l1], operators[l2], operators[l3])
        expected = (-1) ** (l1 + l2) * wigner_6j(l1, l2, l3, j, j, j) * wigner_3j(l1, l2, l3)
        torch.testing.assert_close(contracted, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("couplings", ["all", "even", "odd"])
@pytest.mark.parametrize("lmax", [1, 4, 8])
def test_it_holds_the_couplings_of_its_coefficients_and_no_others(lmax, couplings):
    layout = natural_layout(lmax, 1)
    product = MatrixProduct(layout, layout, range(1 if couplings == "odd" else 0, lmax + 1), couplings=couplings)
    torch.testing.assert_close(couplings_of(product), expected_couplings(product), rtol=0, atol=1e-12)


@pytest.mark.parametrize("couplings", ["all", "even", "odd"])
@pytest.mark.parametrize(
    ("in1", "in2"),
    [
        ("0e+0o+1o+1e+2e+2o", "2o+0e+1e+1o"),
        ("0e+1o+2e", "1o+1e+0o"),
        ("0o+1e", "1o+2e"),
        ("1e+2o", "0o+1e+2o"),
    ],
)
def test_features_of_both_parities_keep_even_and_odd_couplings_apart(in1, in2, couplings):
    product = MatrixProduct(parse_irreps(in1), parse_irreps(in2), [1, 2], couplings=couplings)
    torch.testing.assert_close(couplings_of(product), expected_couplings(product), rtol=0, atol=1e-12)


def test_accidental_zeros_are_avoided():
    assert wigner_6j(3, 5, 5, 3, 3, 3) == wigner_6j(5, 6, 7, 4, 4, 4) == 0
    spins = []
    for lmax in range(9):
        product = MatrixProduct(natural_layout(lmax, 1), natural_layout(lmax, 1), lmax)
        assert all(product.coefficients().values())
        spins.append(product.spin)
    assert spins == [0, 1, 1, 2, 2, 4, 4, 5, 5]
    assert MatrixProduct(natural_layout(6, 1), natural_layout(6, 1), 6, couplings="even").spin == 3


@pytest.mark.parametrize("channels2", [1, 2])
def test_it_equals_the_clebsch_gordan_product_with_its_strengths_as_path_weights(random, channels2):
    layouts = parse_irreps("2x0e+2x1o+2x1e+2x2e"), natural_layout(3, channels2), 3
    matrix, plain = MatrixProduct(*layouts, rank=2), ClebschGordan(*layouts)
    t, free = matrix.coefficients(), plain.coefficients()
    x, y, w = random(3, layout_dim(matrix.in1)), random(3, layout_dim(matrix.in2)), random(3, matrix.num_weights, 2)
    ratios = torch.tensor([[t[p] / free[p]] for p in plain.paths], dtype=torch.float64)
    torch.testing.assert_close(matrix(x, y, w), plain(x, y, matrix.path_weights(w) * ratios), rtol=0, atol=1e-12)


def test_the_cross_product_of_two_vectors_is_found(random):
    product = MatrixProduct(parse_irreps("2x1o"), parse_irreps("2x1o"), [1])
    x, y = random(5, 6), random(5, 6)
    cross = torch.linalg.cross(x.view(5, 3, 2), y.view(5, 3, 2), dim=1).flatten(1)
    assert product.out == parse_irreps("2x1e")
    torch.testing.assert_close(product(x, y, torch.ones(3, 2, dtype=torch.float64)), cross / math.sqrt(2), rtol=0, atol=1e-14)


def test_a_scalar_multiplies_without_changing_signs(random):
    product = MatrixProduct(parse_irreps("0e"), natural_layout(3, 1), 3)
    y = random(16)
    torch.testing.assert_close(product(y.new_tensor([2.0]), y, torch.ones(9, 1, dtype=torch.float64)), 2 * y, rtol=0, atol=1e-14)


# Spread of the strengths within one block of the output, at worst, which is what free path weights would have to make up for.
@pytest.mark.parametrize(("lmax", "spread"), [(1, 1.01), (2, 1.8), (3, 3.3), (4, 3.7), (5, 15), (6, 23), (7, 53), (8, 53)])
def test_strengths_within_a_block_are_similar_as_long_as_degrees_are_small(lmax, spread):
    product = MatrixProduct(natural_layout(lmax, 1), natural_layout(lmax, 1), lmax)
    for n in range(len(product.out)):
        strengths = [abs(t) for t, block in zip(product.coefficients().values(), product.out_blocks, strict=True) if block == n]
        assert max(strengths) < spread * min(strengths)
