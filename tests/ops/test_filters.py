"""Sums of filtered signals: the form in blocks of edges is the plain one, and so are its derivatives."""

import pytest
import torch

from equimol.ops import filtered_sum
from equimol.ops.filters import plain_filtered_sum

TERMS = ((0, 0, 0, 1), (1, 2, 1, -1), (2, 1, 1, 1), (0, 1, 2, -1))
SENDERS, RECEIVERS = torch.tensor([0, 2, 1, 1, 3, 0, 2]), torch.tensor([1, 1, 0, 3, 1, 3, 3])


@pytest.fixture(params=[1, 2])
def case(request, random):
    """A table, and samples, harmonics and weights of a rank."""
    shapes = (4, 3, 5, 2), (7, 4), (7, 3, request.param, 2)
    return random(4, 3, 5, 3), [random(*shape).requires_grad_() for shape in shapes]


def call(function, table):
    return lambda samples, harmonics, weights: function(samples, harmonics, weights, SENDERS, RECEIVERS, table, TERMS)


@pytest.mark.parametrize(("choice", "numbers"), [("off", 2**19), ("off", 200), ("off", 1), ("require", 1)])
def test_it_is_the_plain_sum_in_blocks_of_any_size(case, choice, numbers, random, monkeypatch):
    """And by a kernel."""
    monkeypatch.setenv("EQUIMOL_KERNELS", choice)
    monkeypatch.setattr("equimol.ops.filters.BLOCK_NUMBERS", numbers)
    table, inputs = case
    results = []
    for function in (filtered_sum, plain_filtered_sum):
        generator = torch.Generator().manual_seed(3)
        z = call(function, table)(*inputs)
        back = torch.randn(z.shape, generator=generator, dtype=z.dtype)
        first = torch.autograd.grad(z, inputs, back, create_graph=True)
        others = [torch.randn(t.shape, generator=generator, dtype=z.dtype) for t in first]
        results.append((z, *first, *torch.autograd.grad([z, *first], inputs, [back, *others])))
    torch.testing.assert_close(*results, rtol=0, atol=1e-11)


@pytest.mark.parametrize("choice", ["off", "require"])
def test_derivatives(case, choice, monkeypatch):
    monkeypatch.setenv("EQUIMOL_KERNELS", choice)
    table, inputs = case
    assert torch.autograd.gradcheck(call(filtered_sum, table), inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(call(filtered_sum, table), inputs)


@pytest.mark.parametrize("choice", ["off", "require"])
def test_without_edges_the_sums_are_zero(random, choice, monkeypatch):
    monkeypatch.setenv("EQUIMOL_KERNELS", choice)
    none = torch.zeros(0, dtype=torch.int64)
    weights = random(0, 3, 1, 2).requires_grad_()
    z = filtered_sum(random(4, 3, 5, 2), random(0, 4), weights, none, none, random(4, 3, 5, 3), TERMS)
    assert z.shape == (4, 3, 5, 1, 2)
    assert not z.any()
    assert torch.autograd.grad(z.sum(), weights)[0].shape == weights.shape


def test_mapped_over_weights(case):
    table, (samples, harmonics, weights) = case
    product = call(filtered_sum, table)
    many = torch.stack([weights, 2 * weights])
    mapped = torch.func.vmap(product, in_dims=(None, None, 0))(samples, harmonics, many)
    torch.testing.assert_close(mapped, torch.stack([product(samples, harmonics, w) for w in many]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kernels_of_several_vectors_of_channels(random, dtype, monkeypatch):
    """37 channels are two vectors and a part of one, or four; an atom without edges has zeros; nothing outside is written."""
    monkeypatch.setenv("EQUIMOL_KERNELS", "require")
    table = random(4, 3, 5, 3).to(dtype)
    shapes = (5, 3, 5, 37), (7, 4), (7, 3, 2, 37)
    results = []
    inputs = [random(*shape).to(dtype).requires_grad_() for shape in shapes]
    for function in (filtered_sum, plain_filtered_sum):
        z = call(function, table)(*inputs)
        results.append((z, *torch.autograd.grad(z.square().sum(), inputs)))
    for mine, plain in zip(*results, strict=True):
        torch.testing.assert_close(
            mine, plain, rtol=0, atol=(1e-13 if dtype == torch.float64 else 2e-5) * float(plain.detach().abs().max())
        )
    assert not results[0][0][4].any()


def test_an_edge_to_an_atom_that_is_not_there_is_refused(random):
    table, weights = random(4, 3, 5, 3), random(7, 3, 1, 2)
    with pytest.raises(ValueError, match=r"senders must be in 0\.\.2, got 0\.\.3"):
        filtered_sum(random(3, 3, 5, 2), random(7, 4), weights, SENDERS, RECEIVERS.clamp(max=2), table, TERMS)
