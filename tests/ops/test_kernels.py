"""Which kernel runs, and what is said where none does."""

import subprocess
import sys

import pytest
import torch

from equimol.ops import kernels
from equimol.ops.function import Function, wanted_inputs
from equimol.ops.kernels import find_kernel, run, why_not


@pytest.mark.parametrize(("choice", "there"), [("off", False), ("auto", True), ("require", True)])
def test_the_variable_chooses(monkeypatch, choice, there):
    monkeypatch.setenv("EQUIMOL_KERNELS", choice)
    assert (find_kernel("tiles", "forward", torch.zeros(1)) is not None) == there


def test_a_missing_kernel_is_named_with_the_reason(monkeypatch):
    half = torch.zeros(1, dtype=torch.float16)
    assert find_kernel("tiles", "forward", half) is None and "float16" in why_not("tiles", "cpu", torch.float16)
    assert why_not("tiles", "cuda", torch.float32) == "there is none for cuda yet"
    monkeypatch.setenv("EQUIMOL_KERNELS", "require")
    with pytest.raises(RuntimeError, match="EQUIMOL_KERNELS=require, but tiles has no kernel: there is none for float16"):
        find_kernel("tiles", "forward", half)
    monkeypatch.setattr(kernels, "_compiler", lambda: "llvmlite cannot be imported (no)")
    with pytest.raises(RuntimeError, match=r"llvmlite cannot be imported \(no\); use EQUIMOL_KERNELS=auto"):
        find_kernel("tiles", "forward", torch.zeros(1))
    monkeypatch.setenv("EQUIMOL_KERNELS", "on")
    with pytest.raises(ValueError, match="EQUIMOL_KERNELS must be one of auto, off, all, require, got 'on'"):
        find_kernel("tiles", "forward", torch.zeros(1))


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_parts_cover_everything_once(monkeypatch, threads):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    counts = torch.zeros(7)

    def kernel(start, stop, place, number):
        assert place == counts.data_ptr() and number == 3
        counts[start:stop] += 1
        return stop - start

    for n in (0, 1, 2, 7):
        counts.zero_()
        assert run(kernel, n, counts, 3) == n
        assert counts.tolist() == [1.0] * n + [0.0] * (7 - n)


def test_only_gradients_that_are_asked_for_are_computed():
    """The slope of an energy needs no derivative of a weight, which PyTorch's flags count all the same."""
    seen = []

    class Product(Function):
        @staticmethod
        def forward(x, weight, number):
            return x * weight * number

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.save_for_backward(*inputs[:2])

        @staticmethod
        def backward(ctx, gradient):
            seen.append(wanted_inputs(ctx))
            x, weight = ctx.saved_tensors
            return gradient * weight, gradient * x, None

    start, weight = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    torch.autograd.grad(Product.apply(start * 1, weight, 1).sum(), start)
    torch.autograd.grad(Product.apply(start * 1, weight[:], 1).sum(), start)
    torch.autograd.grad(Product.apply(start * 1, weight, 1).sum(), (start, weight))
    Product.apply(start * 1, weight, 1).sum().backward()
    Product.apply(start.detach(), weight, 1).sum().backward()
    assert seen == [(True, False, False), (True, False, False), (True, True, False), (True, True, False), (False, True, False)]


def test_nothing_is_compiled_at_import():
    program = """
import equimol, equimol.models, equimol.ops, equimol.tensor_products, sys
from equimol.ops import kernels
assert kernels._compiled.cache_info().currsize == 0, "a kernel was compiled"
assert "equimol.ops.vector_code" not in sys.modules and "llvmlite" not in sys.modules, "the compiler was loaded"
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
