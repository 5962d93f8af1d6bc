"""What holds for every many-body product of the table."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from equimol.o3 import layout_dim, natural_layout, parse_irreps, rotate
from equimol.tensor_products import MANY_BODY_PRODUCTS

SPECIES = torch.tensor([1, 0, 2, 0, 1, 1])


@pytest.fixture(params=sorted(MANY_BODY_PRODUCTS))
def kind(request):
    return MANY_BODY_PRODUCTS[request.param]


@pytest.fixture(params=[1, 2, 3], ids=lambda n: f"correlation{n}")
def product(request, kind):
    return kind(natural_layout(2, 2), 1, request.param, 3)


def arguments(product, random):
    return random(len(SPECIES), layout_dim(product.in_layout)), random(product.num_elements, product.num_weights, product.channels)


def test_rotating_the_input_rotates_the_output(product, random, rotation):
    x, w = arguments(product, random)
    rotated = product(rotate(x, product.in_layout, rotation), w, SPECIES)
    torch.testing.assert_close(rotated, rotate(product(x, w, SPECIES), product.out, rotation), rtol=1e-11, atol=1e-11)


def test_a_batch_is_its_atoms_one_by_one(product, random):
    x, w = arguments(product, random)
    one_by_one = torch.cat([product(x[n : n + 1], w, SPECIES[n : n + 1]) for n in range(len(SPECIES))])
    torch.testing.assert_close(product(x, w, SPECIES), one_by_one, rtol=1e-12, atol=1e-12)


def test_each_atom_uses_the_weights_of_its_element(product, random):
    x, w = arguments(product, random)
    other = w.clone()
    other[1] += 1
    changed = (product(x, other, SPECIES) != product(x, w, SPECIES)).any(-1)
    assert changed.tolist() == (SPECIES == 1).tolist()


def test_it_is_linear_in_the_weights(product, random):
    (x, w), v = arguments(product, random), random(3, product.num_weights, 2)
    expected = 2 * product(x, w, SPECIES) + product(x, v, SPECIES)
    torch.testing.assert_close(product(x, 2 * w + v, SPECIES), expected, rtol=1e-11, atol=1e-11)


def test_it_is_a_polynomial_of_the_stated_degree_without_constant(product, random):
    x, w = arguments(product, random)
    order = product.correlation
    points = torch.arange(-order - 1, order + 2, dtype=torch.float64)  # 2 order + 3 points
    values = torch.stack([product(t * x, w, SPECIES).flatten() for t in points])
    powers = points[:, None] ** torch.arange(1, order + 1)
    coefficients = torch.linalg.lstsq(powers, values).solution
    torch.testing.assert_close(powers @ coefficients, values, rtol=1e-9, atol=1e-9)
    assert (coefficients.abs().amax(1) > 1e-3).all()


def test_first_and_second_derivatives_are_right(kind, random):
    product = kind(natural_layout(1, 1), 1, 3, 2)
    species = torch.tensor([0, 1, 1])
    inputs = random(3, 4).requires_grad_(), random(2, product.num_weights, 1).requires_grad_()
    assert gradcheck(lambda x, w: product(x, w, species), inputs)
    assert gradgradcheck(lambda x, w: product(x, w, species), inputs)


def test_float32_agrees_with_float64(product, random):
    x, w = arguments(product, random)
    single = product(x.float(), w.float(), SPECIES)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), product(x, w, SPECIES), rtol=1e-4, atol=1e-4)


def test_no_atoms_give_no_output(product, random):
    _, w = arguments(product, random)
    assert product(random(0, 18), w, SPECIES[:0]).shape == (0, layout_dim(product.out))


@pytest.mark.parametrize("wrong", ["x", "weights"])
def test_a_wrong_shape_is_named(product, random, wrong):
    x, w = arguments(product, random)
    with pytest.raises(ValueError, match=f"{wrong} must be"):
        product(x[:, 1:] if wrong == "x" else x, w[:, 1:] if wrong == "weights" else w, SPECIES)


def test_species_of_other_atoms_are_refused(product, random):
    x, w = arguments(product, random)
    with pytest.raises(ValueError, match="species must be"):
        product.check(x, w, SPECIES[1:])


@pytest.mark.parametrize(
    ("layout", "out", "correlation", "message"),
    [
        ("2x0o+2x1e", 1, 2, "natural parity"),
        ("2x0e+2x1o", 3, 2, "cannot be reached"),
        ("2x0e+2x1o", 1, 0, "correlation"),
    ],
)
def test_what_cannot_be_represented_raises_when_built(kind, layout, out, correlation, message):
    with pytest.raises(ValueError, match=message):
        kind(parse_irreps(layout), out, correlation, 2)
