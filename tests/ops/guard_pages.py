"""Runs the kernels of one operation on arrays that lie between pages of memory which nobody may touch, flush against one of them.

    python tests/ops/guard_pages.py CASE start|end float32|float64 [touch]

A program of its own, as reading beyond an array ends it with SIGSEGV; ``touch`` does that by intention. See test_guard_pages.py.
"""

import ctypes
import math
import mmap
import os
import sys

import torch

from equimol.o3 import layout_dim, natural_layout, spherical_harmonics
from equimol.ops import convolution, filters, frames, kernels, rings, signals, tiles
from equimol.ops.silut import Tail
from equimol.tensor_products.clebsch_gordan_convolution import ClebschGordanConvolution
from equimol.tensor_products.complete_grid import CompleteGrid
from equimol.tensor_products.so2 import SO2MixedConvolution

TERMS = ((0, 0, 0, 1), (1, 0, 1, -1))
polynomials = sys.modules["equimol.ops.polynomials"]  # the room itself has a function of this name
LIBC = ctypes.CDLL(None, use_errno=True)
held: list[tuple[mmap.mmap, int]] = []
ran: list[int] = []


def guarded(x: torch.Tensor, at_end: bool) -> torch.Tensor:
    """A copy, whose first or last byte is beside a page that cannot be read or written."""
    size = x.numel() * x.element_size()
    if not size:
        return x
    pages = math.ceil(size / mmap.PAGESIZE)
    area = mmap.mmap(-1, (pages + 2) * mmap.PAGESIZE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(area))
    for page in (0, pages + 1):
        if LIBC.mprotect(ctypes.c_void_p(start + page * mmap.PAGESIZE), ctypes.c_size_t(mmap.PAGESIZE), 0):
            raise OSError(ctypes.get_errno(), "mprotect")
    held.append((area, start))
    offset = mmap.PAGESIZE + (pages * mmap.PAGESIZE - size if at_end else 0)
    return torch.frombuffer(area, dtype=x.dtype, count=x.numel(), offset=offset).view(x.shape).copy_(x.detach())


def guarded_run(at_end: bool):
    """As `kernels.run`, with all arrays between guards; what is found goes back to where it belongs."""

    def run(kernel, n: int, *arguments) -> int:
        copies = [guarded(x, at_end) if isinstance(x, torch.Tensor) else x for x in arguments]
        result = kernels.run(kernel, n, *copies)
        for x, copy in zip(arguments, copies, strict=True):
            if isinstance(x, torch.Tensor):
                x.data.copy_(copy)
        ran.append(n)
        return result

    return run


def ends(edges: int) -> torch.Tensor:
    return torch.arange(edges) * 3 % 4  # of 4 atoms, the first and the last too


def convolve(make, channels: int, edges: int):
    layer = make(natural_layout(1, channels), 1, 1)
    inputs = torch.randn(4, layout_dim(layer.in_layout)), torch.randn(edges, 3), torch.randn(edges, layer.num_weights, channels)
    return lambda x, v, w: layer(x, spherical_harmonics(v, 1), ends(edges), 3 - ends(edges), w), inputs


def tabulate(channels: int, edges: int):
    layer = ClebschGordanConvolution(natural_layout(1, channels), 1, 1)
    table, rows = torch.randn(9, layer.num_weights * channels), 5 - ends(edges)
    inputs = torch.randn(4, layout_dim(layer.in_layout)), torch.randn(edges, 4), torch.randn(edges, 4)
    return lambda x, y, b: layer.by_table(x, y, ends(edges), 3 - ends(edges), table, rows, b), inputs


def filter_sum(channels: int, edges: int):
    table = torch.randn(4, 1, 5, 2)
    inputs = torch.randn(4, 2, 5, channels), torch.randn(edges, 4), torch.randn(edges, 2, 1, channels)
    return lambda f, y, w: filters.filtered_sum(f, y, w, ends(edges), 3 - ends(edges), table, TERMS), inputs


def signal(channels: int, rows: int):
    tables = tuple(torch.randn(n, 6, size) for n, size in ((2, 4), (1, 5), (2, 7)))
    factors = [torch.randn(2, size, channels) for size in (4, 5, 7)]
    inputs = torch.randn(rows, 4, channels), torch.randn(rows, 5, channels), *factors
    return lambda x, y, *factors: signals.signal_product(x, y, factors, tables, TERMS), inputs


def ring(channels: int, rows: int):
    layout = natural_layout(2, channels)
    product = CompleteGrid(layout, layout, 2, couplings="all")
    return product, (
        torch.randn(rows, layout_dim(layout)),
        torch.randn(rows, layout_dim(layout)),
        torch.randn(product.num_weights, channels),
    )


def polynomial(channels: int, atoms: int):
    terms, species = ((0, (0,)), (0, (1, 1)), (2, (0, 1)), (2, (1, 2, 2))), torch.arange(atoms) % 2
    coefficients = torch.randn(2, len(terms), channels)
    return lambda x: polynomials.polynomials(terms, x, coefficients, species), (torch.randn(atoms, 3, channels),)


def tile(channels: int, n: int):
    shapes = (n, 2, 3, 4), (n, 2, channels), (n, 3, channels), (channels, 4), (n, 2), (n, 3)
    tail = Tail(2.5, smooth=True)
    return lambda *x: torch.cat([y.flatten() for y in tiles.tiles(*x, channels // 2, tail)]), [torch.randn(shape) for shape in shapes]


CASES = {
    "convolution": lambda channels, edges: convolve(ClebschGordanConvolution, channels, edges),
    "tabulated": tabulate,
    "filters": filter_sum,
    "frames": lambda channels, edges: convolve(SO2MixedConvolution, channels, edges),
    "signals": signal,
    "rings": ring,
    "polynomials": polynomial,
    "tiles": tile,
}


def main(case: str, side: str, dtype: str, touch: bool) -> None:
    os.environ["EQUIMOL_KERNELS"] = "require"
    torch.set_default_dtype(getattr(torch, dtype))
    torch.manual_seed(0)
    for module in (convolution, filters, frames, polynomials, rings, signals, tiles):
        if hasattr(module, "run"):
            module.run = guarded_run(side == "end")
    for channels in (1, 3, 17):
        for many in (0, 1, 7):
            function, inputs = CASES[case](channels, many)
            inputs = [x.requires_grad_() for x in inputs]
            result = function(*inputs)
            first = torch.autograd.grad(result.sin().sum(), inputs, create_graph=True)
            second = torch.autograd.grad(sum(x.sin().sum() for x in first), inputs, allow_unused=True)
            if not all(x is None or x.isfinite().all() for x in (result, *first, *second)):
                raise SystemExit(f"{case} gave what is not finite")
    print(len(ran), flush=True)
    if touch:
        ctypes.memset(held[-1][1], 0, 1)


if __name__ == "__main__":
    main(*sys.argv[1:4], touch="touch" in sys.argv[4:])
