"""The compiled convolution along edges. Its numbers are those of the plain form: tests/tensor_products/test_edge_convolutions.py."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from equimol.o3 import layout_dim, natural_layout
from equimol.ops import convolution as module
from equimol.ops import coupled_sum, coupled_sum_by_blocks, plain_coupled_sum
from equimol.tensor_products.clebsch_gordan_convolution import ClebschGordanConvolution


def inputs(random, convolution, atoms=5, edges=23, dtype=torch.float64):
    sizes = (atoms, layout_dim(convolution.in_layout)), (edges, (convolution.lmax_edge + 1) ** 2)
    tensors = [random(*size) for size in (*sizes, (edges, convolution.num_weights, convolution.channels))]
    generator = torch.Generator().manual_seed(edges)
    senders, receivers = (torch.randint(0, max(1, atoms - 1), (edges,), generator=generator) for _ in range(2))  # one atom has no edge
    return [x.to(dtype).requires_grad_() for x in tensors], senders, receivers


def run(convolution, tensors, senders, receivers):
    return convolution(*tensors[:2], senders, receivers, tensors[2])


@pytest.mark.parametrize("couplings", ["even", "all"])
@pytest.mark.parametrize(("dtype", "precision"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
@pytest.mark.parametrize(("channels", "edges", "threads"), [(1, 23, 1), (16, 23, 3), (21, 1, 1), (5, 0, 2)])
def test_compiled_and_plain_are_the_same(random, monkeypatch, couplings, dtype, precision, channels, edges, threads):
    """With all first and second derivatives, any number of channels, edges in no order, none, and several threads."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    convolution = ClebschGordanConvolution(natural_layout(2, channels), 3, 2, couplings=couplings).to(dtype)
    tensors, senders, receivers = inputs(random, convolution, edges=edges, dtype=dtype)
    found = []
    for choice in ("require", "off"):
        monkeypatch.setenv("EQUIMOL_KERNELS", choice)
        result = run(convolution, tensors, senders, receivers)
        first = torch.autograd.grad(result.sin().sum(), tensors, create_graph=True)
        found.append([result, *first, *torch.autograd.grad(sum(x.sin().sum() for x in first), tensors)])
    for mine, plain in zip(*found, strict=True):
        scale = float(plain.detach().abs().max()) if plain.numel() else 0.0
        torch.testing.assert_close(mine, plain, rtol=precision, atol=precision * scale)


def test_derivatives(random, monkeypatch):
    monkeypatch.setenv("EQUIMOL_KERNELS", "require")
    convolution = ClebschGordanConvolution(natural_layout(1, 2), 1, 1)
    tensors, senders, receivers = inputs(random, convolution, edges=7)

    def function(*tensors):
        return run(convolution, tensors, senders, receivers)

    assert gradcheck(function, tensors) and gradgradcheck(function, tensors, fast_mode=True)


@pytest.mark.parametrize("name", ["senders", "receivers"])
@pytest.mark.parametrize("bad", [-1, 5])
def test_atoms_that_are_not_there(random, name, bad):
    """Nothing is read or written out of bounds."""
    convolution = ClebschGordanConvolution(natural_layout(1, 2), 1, 1)
    tensors, senders, receivers = inputs(random, convolution)
    (senders if name == "senders" else receivers)[3] = bad
    rows = tensors[0].unflatten(-1, (-1, 2))
    with pytest.raises(ValueError, match=f"{name} must be in 0..4, got"):
        coupled_sum(convolution._form, rows, tensors[1], tensors[2], senders, receivers)


def test_mixed_types_are_refused(random):
    convolution = ClebschGordanConvolution(natural_layout(1, 2), 1, 1)
    tensors, senders, receivers = inputs(random, convolution)
    tensors[1] = tensors[1].detach().float()
    with pytest.raises(ValueError, match=r"harmonics must be torch.float64 \[23, 4\] on cpu beside features"):
        run(convolution, tensors, senders, receivers)


def test_couplings_that_are_too_long(random, monkeypatch):
    """They run as PyTorch's operations, and say so where a kernel is required."""
    short = ClebschGordanConvolution(natural_layout(1, 2), 1, 1)
    tensors, senders, receivers = inputs(random, short)
    expected = run(short, tensors, senders, receivers)
    monkeypatch.setattr(module, "LONGEST", 3)
    long = ClebschGordanConvolution(natural_layout(1, 2), 1, 1)
    torch.testing.assert_close(run(long, tensors, senders, receivers), expected)
    monkeypatch.setenv("EQUIMOL_KERNELS", "require")
    rows = tensors[0].unflatten(-1, (-1, 2))
    with pytest.raises(RuntimeError, match="too long to be compiled, 3 are the most"):
        coupled_sum(long._form, rows, tensors[1], tensors[2], senders, receivers)
    with pytest.raises(RuntimeError, match="too long to be compiled, 3 are the most"):
        run(long, tensors, senders, receivers)


# --- weights of a table ----------------------------------------------------------------------------------------------------------


def tabulated_inputs(random, channels, edges, dtype=torch.float64):
    convolution = ClebschGordanConvolution(natural_layout(2, channels), 3, 2).to(dtype)
    tensors, senders, receivers = inputs(random, convolution, edges=edges, dtype=dtype)
    table = random(9, convolution.num_weights * channels).to(dtype)
    blend, first_rows = random(edges, 4).to(dtype).requires_grad_(), torch.arange(edges) * 5 % 6
    return convolution, [*tensors[:2], blend], table, first_rows, senders, receivers


def by_table(convolution, tensors, table, first_rows, senders, receivers):
    return convolution.by_table(tensors[0], tensors[1], senders, receivers, table, first_rows, tensors[2])


@pytest.mark.parametrize(("dtype", "precision"), [(torch.float64, 1e-13), (torch.float32, 2e-5)])
@pytest.mark.parametrize(("channels", "edges", "threads"), [(1, 23, 1), (16, 23, 3), (21, 1, 1), (5, 0, 2)])
def test_weights_of_a_table_are_those_that_are_looked_up(random, monkeypatch, dtype, precision, channels, edges, threads):
    """With all first and second derivatives, compiled and by PyTorch's operations."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    convolution, tensors, table, first_rows, senders, receivers = tabulated_inputs(random, channels, edges, dtype)

    def looked_up(tensors):
        weights = sum(tensors[2][:, k, None] * table[first_rows + k] for k in range(4))
        return run(convolution, [*tensors[:2], weights.unflatten(1, (-1, channels))], senders, receivers)

    found = []
    for choice, function in (("require", None), ("off", None), ("off", looked_up)):
        monkeypatch.setenv("EQUIMOL_KERNELS", choice)
        result = function(tensors) if function else by_table(convolution, tensors, table, first_rows, senders, receivers)
        first = torch.autograd.grad(result.sin().sum(), tensors, create_graph=True)
        found.append([result, *first, *torch.autograd.grad(sum(x.sin().sum() for x in first), tensors)])
    for mine, plain, expected in zip(*found, strict=True):
        scale = float(expected.detach().abs().max()) if expected.numel() else 0.0
        torch.testing.assert_close(mine, expected, rtol=precision, atol=precision * scale)
        torch.testing.assert_close(plain, expected, rtol=precision, atol=precision * scale)


def test_rows_that_are_not_in_the_table(random):
    convolution, tensors, table, first_rows, senders, receivers = tabulated_inputs(random, 2, 7)
    first_rows[3] = 6
    with pytest.raises(ValueError, match=r"first_rows must be in 0\.\.5, got 0\.\.6"):
        by_table(convolution, tensors, table, first_rows, senders, receivers)
    with pytest.raises(ValueError, match="table must be a constant"):
        by_table(convolution, tensors, table.requires_grad_(), first_rows, senders, receivers)


@pytest.mark.parametrize("couplings", ["even", "all"])
@pytest.mark.parametrize(("lmax", "lmax_edge", "edges"), [(0, 3, 23), (1, 2, 23), (2, 2, 1), (2, 3, 0)])
def test_blocks_give_the_numbers_of_the_plain_form(random, couplings, lmax, lmax_edge, edges):
    form = ClebschGordanConvolution(natural_layout(lmax, 3), lmax_edge, 2, couplings=couplings)._form
    x, y, w = random(5, form.rows, 3), random(edges, form.harmonics), random(edges, len(form.paths), 3)
    senders, receivers = (torch.randint(0, 4, (edges,), generator=torch.Generator().manual_seed(n)) for n in range(2))
    found = []
    for sum_up in (plain_coupled_sum, coupled_sum_by_blocks):
        tensors = [tensor.clone().requires_grad_() for tensor in (x, y, w)]
        result = sum_up(form, *tensors, senders, receivers)
        found.append([result, *torch.autograd.grad(result.sin().sum(), tensors)])
    for mine, plain in zip(*found, strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-12, atol=1e-12)
