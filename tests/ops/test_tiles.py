"""Activated tiles by blocks, compiled and not, against the plain form."""

import jaxtyping
import numpy as np
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.fx.experimental.proxy_tensor import make_fx

from equimol.ops import tiles as module
from equimol.ops.silut import Tail
from equimol.ops.tiles import plain_tiles, tiles

PLACES = (0, 1, 2, 4, 5)  # of all but the weight, as derivatives by displacements need them


@pytest.fixture(params=[0, 3, 5])
def messages(request) -> int:
    return request.param


def arguments_of(random, n=3, j=2, k=4, width=6, out=5, dtype=torch.float64) -> list[torch.Tensor]:
    shapes = (n, j, k, width), (n, j, out), (n, k, out), (out, width), (n, j), (n, k)
    return [random(*shape).to(dtype).requires_grad_() for shape in shapes]


@pytest.fixture(params=["off", "require"])
def kernels(request, monkeypatch) -> str:
    monkeypatch.setenv("EQUIMOL_KERNELS", request.param)
    return request.param


@pytest.fixture(params=[1, 2**18], ids=["a block for each", "one block"])
def block(request, monkeypatch) -> None:
    monkeypatch.setitem(module.BLOCK, "cpu", request.param)


def slopes_and_bends(function, arguments, messages, tail, directions):
    """Results, slopes of features and weights, and gradients of everything, as training takes them."""
    results = function(*arguments, messages, tail)
    outer = [torch.linspace(-1, 1, x.numel(), dtype=x.dtype).reshape(x.shape).requires_grad_() for x in results]
    slopes = torch.autograd.grad(results, [arguments[n] for n in PLACES], outer, create_graph=True)
    bends = torch.autograd.grad(slopes, [*arguments, *outer], directions, materialize_grads=True)
    return [*results, *slopes, *bends]


@pytest.mark.parametrize("threshold", [0.7, float("inf")])
@pytest.mark.usefixtures("block", "kernels")
def test_tiles_are_the_plain_form_with_its_derivatives(random, messages, threshold):
    """Below 2.4 the tail is the published one."""
    arguments = arguments_of(random)

    def blocked(*tensors):
        return tiles(*tensors, messages, Tail(threshold, smooth=False))

    for mine, plain in zip(blocked(*arguments), plain_tiles(*arguments, messages, Tail(threshold, smooth=False)), strict=True):
        torch.testing.assert_close(mine, plain, rtol=0, atol=1e-14)
    assert gradcheck(blocked, arguments) and gradgradcheck(blocked, arguments, fast_mode=True)


@pytest.mark.parametrize("threshold", [2.5, float("inf")])
@pytest.mark.usefixtures("block", "kernels")
def test_second_derivatives_as_training_takes_them(random, messages, threshold):
    arguments = arguments_of(random)
    directions = [random(*arguments[n].shape) for n in PLACES]
    found = [slopes_and_bends(form, arguments, messages, Tail(threshold, smooth=True), directions) for form in (tiles, plain_tiles)]
    for mine, plain in zip(*found, strict=True):
        torch.testing.assert_close(mine, plain, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("messages", "out"), [(64, 96), (32, 32), (37, 71), (0, 33), (1, 1)])
@pytest.mark.parametrize("threads", [1, 3])
def test_the_kernel_in_single_precision(random, monkeypatch, messages, out, threads):
    """Chunks of any length, a single row as for bonds, and several threads."""
    monkeypatch.setenv("EQUIMOL_KERNELS", "require")
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    for n, j, k in ((5, 3, 3), (2, 1, 7), (1, 1, 1)):
        arguments = arguments_of(random, n, j, k, 8, out, torch.float32)
        directions = [random(*arguments[place].shape).float() for place in PLACES]
        found = [slopes_and_bends(form, arguments, messages, Tail(10.0, smooth=True), directions) for form in (tiles, plain_tiles)]
        for mine, plain in zip(*found, strict=True):
            torch.testing.assert_close(mine, plain, rtol=1e-5, atol=1e-5 * float(plain.detach().abs().max()) if plain.numel() else 0.0)


@pytest.mark.usefixtures("kernels")
def test_empty_and_strided_tensors(random):
    for n, j, k in ((0, 2, 2), (2, 0, 3), (2, 3, 0)):
        summed, rest = tiles(*arguments_of(random, n, j, k), 3, Tail(10.0, smooth=True))
        assert summed.shape == (n, j, 3) and rest.shape == (n, j, k, 2) and not summed.any()
    arguments = arguments_of(random)
    strided = [x.detach().mT.contiguous().mT for x in arguments]
    for mine, plain in zip(tiles(*strided, 3, Tail(10.0, True)), plain_tiles(*arguments, 3, Tail(10.0, True)), strict=True):
        torch.testing.assert_close(mine, plain, rtol=0, atol=1e-14)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_stays_so(random, monkeypatch, bad):
    monkeypatch.setenv("EQUIMOL_KERNELS", "require")
    arguments = [x.detach().float() for x in arguments_of(random, out=64)]
    arguments[1][0, 0, :] = bad
    summed, rest = tiles(*arguments, 32, Tail(float("inf"), smooth=True))
    assert not summed[0, 0].isfinite().any() and not rest[0, 0].isfinite().any() and rest[1].isfinite().all()


def test_in_a_compiled_program_they_are_one_operator(random, monkeypatch):
    """With first derivatives; an operator by PyTorch's rules; a traced program has none."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # its checks are no part of a program
    arguments, tail, seen = arguments_of(random), Tail(2.5, smooth=True), []
    torch.library.opcheck(torch.ops.equimol.tiles, (*arguments, 3, tail.threshold, tail.smooth))

    def function(*tensors):
        return tiles(*tensors, 3, tail)

    def look(graph, _):
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    expected = function(*arguments)
    slopes = torch.autograd.grad([x.sin().sum() for x in expected], arguments)
    for backend in (look, "aot_eager"):
        results = torch.compile(function, fullgraph=True, backend=backend)(*arguments)
        torch.testing.assert_close(results, expected)
        torch.testing.assert_close(torch.autograd.grad([x.sin().sum() for x in results], arguments), slopes)
    assert any("equimol.tiles" in name for name in seen)
    traced = make_fx(function, tracing_mode="symbolic")(*(x.detach() for x in arguments))
    assert not [node for node in traced.graph.nodes if "equimol" in str(node.target)]


def test_third_derivatives(random):
    arguments = arguments_of(random)

    def blocked(*tensors):
        summed, rest = tiles(*tensors, *arguments[3:], 3, Tail(2.5, smooth=True))
        (slope,) = torch.autograd.grad((summed.sin().sum(), rest.sin().sum()), tensors[0], create_graph=True)
        return slope

    assert gradgradcheck(blocked, arguments[:3], fast_mode=True)
