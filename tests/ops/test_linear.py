"""Linear layers by oneDNN against PyTorch's own."""

import gc
import time

import pytest
import torch

from equimol.ops import linear as module
from equimol.ops.linear import linear, plain_linear

CASES = [(67, 256, 300), (2, 512, 128), (65, 260, 256)]


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("parts", ["", "bias", "plus", "bias plus"])
@pytest.mark.parametrize(("rows", "n", "out"), CASES)
def test_values_and_two_derivatives(rows, n, out, parts, frozen):
    generator = torch.Generator().manual_seed(rows)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    x = normal(rows, n).requires_grad_()
    weight = torch.nn.Parameter(normal(out, n) / n**0.5, requires_grad=not frozen)
    bias = torch.nn.Parameter(normal(out), requires_grad=not frozen) if "bias" in parts else None
    plus = normal(rows, out).requires_grad_() if "plus" in parts else None
    factors = normal(rows, out)
    wanted = [t for t in (x, weight, bias, plus) if t is not None and t.requires_grad]
    found = []
    for function in (linear, plain_linear):
        result = function(x, weight, bias, plus)
        first = torch.autograd.grad((factors * result).sin().sum(), wanted, create_graph=True)
        found.append([result, *first, *torch.autograd.grad(sum(t.square().mean() for t in first), wanted)])
    ran = found[0][0].grad_fn.name().startswith("_Linear")
    assert ran == (frozen or rows > 64), "the kernel must have run, or this compares nothing"
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, atol=2e-5 * float(plain.detach().abs().max()), rtol=0)


def test_a_frozen_parameter_that_changes_in_place_is_arranged_again():
    x, weight = torch.randn(8, 256), torch.nn.Parameter(torch.randn(512, 256), requires_grad=False)
    before = linear(x, weight[:256])
    with torch.no_grad():
        weight.mul_(2)
    torch.testing.assert_close(linear(x, weight[:256]), 2 * before)
    torch.testing.assert_close(linear(x, weight[256:]), x @ weight[256:].T, atol=1e-3, rtol=0)


@pytest.mark.parametrize("transposed", [False, True])
def test_parts_of_weights_are_not_a_thousand_times_slower(transposed):
    """As they are for oneDNN, whose reference product takes rows with gaps."""
    x, whole = torch.randn(64, 512), torch.randn(512, 1536, requires_grad=True)
    part = whole[:, 512:1024].T if transposed else whole[:, 512:1024]
    seconds = []
    for weight in (part, part.detach().contiguous()):
        linear(x, weight)
        begin = time.process_time()
        for _ in range(5):
            linear(x, weight)
        seconds.append(time.process_time() - begin)
    assert seconds[0] < 30 * seconds[1]
    torch.testing.assert_close(linear(x, part), x @ part.T, atol=1e-3, rtol=0)


def test_arranged_parameters_are_forgotten_with_their_parameter():
    before = len(module._packed)
    weight = torch.nn.Parameter(torch.randn(256, 256), requires_grad=False)
    linear(torch.randn(8, 256), weight)
    assert len(module._packed) == before + 1
    del weight
    gc.collect()
    assert len(module._packed) == before


def test_only_parameters_are_kept():
    before = len(module._packed)
    linear(torch.randn(8, 256), torch.randn(256, 256))
    assert len(module._packed) == before


def test_weights_of_another_precision_are_named():
    with pytest.raises(ValueError, match=r"weight must be torch.float32 on cpu as x is, got torch.float64"):
        linear(torch.randn(80, 256), torch.randn(256, 256).double())


def test_small_weights_and_other_precisions_are_pytorchs_own(monkeypatch):
    monkeypatch.setattr(module, "_Linear", None)
    for x, weight in ((torch.randn(8, 16), torch.randn(4, 16)), (torch.randn(8, 256).double(), torch.randn(256, 256).double())):
        torch.testing.assert_close(linear(x, weight), x @ weight.T)
    monkeypatch.setenv("EQUIMOL_KERNELS", "off")
    linear(torch.randn(8, 256), torch.randn(256, 256))
