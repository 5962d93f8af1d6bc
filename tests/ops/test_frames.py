"""Sums of features mixed in the frames of edges: compiled, by their plain form, and by the convolutions' own operations."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from equimol.o3 import layout_dim, natural_layout, spherical_harmonics
from equimol.ops import framed_sum
from equimol.tensor_products.so2 import SO2Convolution, SO2GauntConvolution, SO2MixedConvolution

# all directions at the border of frames, along axes, and at random
SPECIAL = [[1, 0, 0], [0, 1, 0], [0, -3, 0], [0, 0, -1], [1e-9, 1, 0], [0.5**0.5, 0.5**0.5, 0]]


def make(kind, channels=2, lmax=2, dtype=torch.float64):
    if kind is SO2GauntConvolution:
        return kind(natural_layout(lmax, channels), 2, 2, rank=2).to(dtype)
    return kind(natural_layout(lmax, channels), 2, 2, couplings="all").to(dtype)


def inputs(random, convolution, edges=17, atoms=5, dtype=torch.float64):
    vectors = torch.cat([torch.tensor(SPECIAL, dtype=torch.float64), random(20, 3)])[:edges]
    tensors = random(atoms, layout_dim(convolution.in_layout)), vectors, random(edges, convolution.num_weights, convolution.channels)
    generator = torch.Generator().manual_seed(edges)
    senders, receivers = (torch.randint(0, atoms - 1, (edges,), generator=generator) for _ in range(2))  # one atom has no edge
    return [x.to(dtype).requires_grad_() for x in tensors], senders, receivers


def call(convolution, tensors, senders, receivers):
    return convolution(tensors[0], spherical_harmonics(tensors[1], 2), senders, receivers, tensors[2])


@pytest.mark.parametrize(("dtype", "precision"), [(torch.float64, 1e-12), (torch.float32, 3e-5)])
@pytest.mark.parametrize("kind", [SO2Convolution, SO2MixedConvolution, SO2GauntConvolution])
def test_compiled_and_by_operations_are_the_same(random, monkeypatch, kind, dtype, precision):
    """With all first and second derivatives, any number of channels, edges in no order, none, and several threads."""
    for channels, edges, threads in ((1, 17, 1), (17, 17, 3), (3, 1, 1), (5, 0, 2)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        convolution = make(kind, channels, dtype=dtype)
        tensors, senders, receivers = inputs(random, convolution, edges, dtype=dtype)
        found = []
        for choice in ("require", "off"):
            monkeypatch.setenv("EQUIMOL_KERNELS", choice)
            result = call(convolution, tensors, senders, receivers)
            first = torch.autograd.grad(result.sin().sum(), tensors, create_graph=True)
            found.append([result, *first, *torch.autograd.grad(sum(x.sin().sum() for x in first), tensors)])
        for mine, plain in zip(*found, strict=True):
            scale = float(plain.detach().abs().max()) if plain.numel() else 0.0
            torch.testing.assert_close(mine, plain, rtol=precision, atol=precision * scale)


@pytest.mark.parametrize("kind", [SO2Convolution, SO2MixedConvolution, SO2GauntConvolution])
def test_the_plain_form_is_the_convolution_too(random, monkeypatch, kind):
    monkeypatch.setenv("EQUIMOL_KERNELS", "off")
    convolution = make(kind)
    tensors, senders, receivers = inputs(random, convolution)
    features, vectors, weights = tensors
    directions = torch.nn.functional.normalize(vectors, dim=-1)
    plain = convolution._framed(convolution._frames, features, directions, senders, receivers, weights)
    torch.testing.assert_close(plain, call(convolution, tensors, senders, receivers), rtol=0, atol=1e-12)


@pytest.mark.parametrize("choice", ["require", "off"])
def test_derivatives(random, monkeypatch, choice):
    """Of all arguments, the ways in and out of the frame included."""
    monkeypatch.setenv("EQUIMOL_KERNELS", choice)
    convolution = SO2MixedConvolution(natural_layout(1, 2), 1, 1, couplings="all")
    tensors, senders, receivers = inputs(random, convolution, 7)
    form, table = convolution._framed.form, convolution._framed._table(tensors[0])
    rows = tensors[0].detach().unflatten(1, (-1, 2)).requires_grad_()
    arguments = rows, random(7, 3).requires_grad_(), random(7, 3).requires_grad_(), tensors[2]

    def function(*arguments):
        return framed_sum(form, *arguments, senders, receivers, table)

    assert gradcheck(function, arguments) and gradgradcheck(function, arguments, fast_mode=True)


@pytest.mark.parametrize(("name", "bad"), [("senders", -1), ("receivers", 5)])
def test_atoms_that_are_not_there(random, name, bad):
    """Nothing is read or written out of bounds."""
    convolution = SO2MixedConvolution(natural_layout(1, 2), 1, 1)
    (features, _, weights), senders, receivers = inputs(random, convolution, 7)
    (senders if name == "senders" else receivers)[3] = bad
    form, table = convolution._framed.form, convolution._framed._table(features)
    with pytest.raises(ValueError, match=rf"{name} must be in 0\.\.4, got"):
        framed_sum(form, features.unflatten(1, (-1, 2)), random(7, 3), random(7, 3), weights, senders, receivers, table)


def test_what_does_not_fit_is_refused(random):
    convolution = SO2MixedConvolution(natural_layout(1, 2), 1, 1)
    (features, _, weights), senders, receivers = inputs(random, convolution, 7)
    form, table, rows = convolution._framed.form, convolution._framed._table(features), features.unflatten(1, (-1, 2))
    for arguments, message in (
        ((rows, random(7, 3).float(), random(7, 3), weights, senders), r"tilts must be torch.float64 \[7, 3\]"),
        ((rows[:, :3], random(7, 3), random(7, 3), weights, senders), r"features must be torch.float64 \[5, 4, 2\]"),
        ((rows, random(7, 3), random(7, 3), weights[:, :2], senders), r"weights must be torch.float64 \[7, "),
        ((rows, random(7, 3), random(7, 3), weights, senders.int()), "senders must be int64"),
    ):
        with pytest.raises(ValueError, match=message):
            framed_sum(form, *arguments, receivers, table)


def test_high_degrees_with_a_block_for_each_path_have_none(monkeypatch):
    monkeypatch.setenv("EQUIMOL_KERNELS", "require")
    convolution = SO2Convolution(natural_layout(6, 1), 6, 6)
    with pytest.raises(RuntimeError, match="frames has no kernel: it would be too long, at so high degrees"):
        convolution(
            torch.zeros(2, 49), torch.zeros(1, 49), torch.tensor([0]), torch.tensor([1]), torch.zeros(1, convolution.num_weights, 1)
        )
