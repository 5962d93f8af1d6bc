"""Products of signals: the fused form is the plain one, and so are its derivatives, however the rows are cut."""

import pytest
import torch

from equimol.ops import signal_product, signals

TERMS = ((0, 0, 0, 1), (1, 2, 1, -1), (2, 1, 1, 1), (2, 0, 0, -1), (0, 1, 2, -1))  # of two, one and one terms; one begins negative


@pytest.fixture(params=[None, 1, 3])
def case(request, random):
    """Tables, and inputs with factors of a rank or without."""
    tables = random(3, 5, 4), random(3, 5, 6), random(3, 5, 7)
    inputs = [random(9, 4, 2), random(9, 6, 2)]
    if request.param:
        inputs += [random(request.param, size, 2) for size in (4, 6, 7)]
    return tables, [t.requires_grad_() for t in inputs]


def call(function, tables):
    return lambda x, y, *factors: function(x, y, factors or None, tables, TERMS)


@pytest.mark.parametrize("numbers", [2**19, 500, 1])
def test_it_is_the_plain_product_in_blocks_of_any_size(case, numbers, random, monkeypatch):
    monkeypatch.setattr(signals, "BLOCK_NUMBERS", numbers)
    tables, inputs = case
    back = random(9, 7, 2)
    of_x = random(9, 4, 2)
    results = []
    for function in (signal_product, signals.plain_signal_product):
        z = call(function, tables)(*inputs)
        first = torch.autograd.grad(z, inputs, back, create_graph=True)
        results.append((z, *first, *torch.autograd.grad([z, first[0]], inputs, [back, of_x])))
    torch.testing.assert_close(*results, rtol=0, atol=1e-11)


def test_derivatives_of_both_modes(case):
    tables, inputs = case
    assert torch.autograd.gradcheck(call(signal_product, tables), inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(call(signal_product, tables), inputs)


def test_leading_dimensions_broadcast_and_may_be_strided(random):
    tables = random(3, 5, 4), random(3, 5, 6), random(3, 5, 7)
    x, y = random(4, 1, 2, 2).permute(3, 1, 0, 2), random(3, 6, 2)  # [2, 1, 4, 2]
    expected = torch.stack([torch.stack([signal_product(x[i, 0], y[j], None, tables, TERMS) for j in range(3)]) for i in range(2)])
    torch.testing.assert_close(signal_product(x, y, None, tables, TERMS), expected, rtol=0, atol=1e-12)


def test_no_rows_give_no_rows(random):
    tables = random(3, 5, 4), random(3, 5, 6), random(3, 5, 7)
    x, y, a = random(0, 4, 2).requires_grad_(), random(0, 6, 2), random(1, 4, 2).requires_grad_()
    z = signal_product(x, y, (a, random(1, 6, 2), random(1, 7, 2)), tables, TERMS)
    assert z.shape == (0, 7, 2)
    of_x, of_a = torch.autograd.grad(z.sum(), [x, a])
    assert of_x.shape == x.shape
    assert not of_a.any()


def test_mapped_over_rows_or_over_factors(random):
    tables = random(3, 5, 4), random(3, 5, 6), random(3, 5, 7)
    x, y, factors = random(3, 9, 4, 2), random(9, 6, 2), [random(2, size, 2) for size in (4, 6, 7)]
    product = call(signal_product, tables)
    mapped = torch.func.vmap(product, in_dims=(0, None, None, None, None))(x, y, *factors)
    torch.testing.assert_close(mapped, torch.stack([product(row, y, *factors) for row in x]))

    def of_factor(a):
        return product(x[0], y, a, *factors[1:]).square().sum()

    hessian = torch.func.jacfwd(torch.func.jacrev(of_factor))(factors[0])
    torch.testing.assert_close(hessian, torch.autograd.functional.hessian(of_factor, factors[0]))
