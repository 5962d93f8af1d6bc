"""Kernels for CUDA without a device: compiled by NVRTC, and their arithmetic run on the host by g++. With one: tests marked gpu."""

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from equimol.o3 import layout_dim, natural_layout, parse_irreps
from equimol.ops import code_cache, convolution, coupled_sum, cuda_code, kernels, rings, signals
from equimol.ops.convolution import CoupledSum
from equimol.ops.cuda_code import CudaKernel
from equimol.tensor_products import TENSOR_PRODUCTS
from equimol.tensor_products.clebsch_gordan_convolution import ClebschGordanConvolution

HEADER = Path(__file__).parents[2] / "kernels" / "include" / "host.h"
NAMES = ("by_sums", "by_features", "by_weights", "by_harmonics")
BOTH = [(torch.float64, 1e-13), (torch.float32, 1e-5)]
TERMS = ((0, 0, 0, 1), (1, 0, 0, -1), (0, 1, 1, 1))
GUARD = 64  # numbers before and after what a kernel is given


@pytest.fixture(scope="session")
def on_host(tmp_path_factory):
    """A function (operation, name, like, *description) -> the CUDA kernel, compiled for the host: in the place of find_kernel."""
    if sys.platform != "linux" or not shutil.which("g++"):
        pytest.skip("needs g++ on Linux")
    folder, known = tmp_path_factory.mktemp("host"), {}

    class HostKernel(CudaKernel):
        def __init__(self, source, dtype):
            super().__init__(source, dtype)
            stem = folder / f"kernel{len(known)}"
            entry = f'extern "C" void launch(const unsigned* sizes, void** places) {{ host::launch<{source.name}>(sizes, places); }}\n'
            stem.with_suffix(".cpp").write_text(f'#include "{HEADER}"\n{source.typed(dtype)}{entry}')
            command = ["g++", "-std=c++17", "-O1", "-w", "-shared", "-fPIC", "-o", stem.with_suffix(".so"), stem.with_suffix(".cpp")]
            subprocess.run(command, check=True)
            self.library = ctypes.CDLL(str(stem.with_suffix(".so")))

        def __call__(self, n, *arguments):
            """Between NaN, and with whole numbers that are out of range: what is read there shows, what is written there too."""
            guarded = [surrounded(x) if isinstance(x, torch.Tensor) else x for x in arguments]
            inner = [x[GUARD:-GUARD] if isinstance(x, torch.Tensor) else x for x in guarded]
            super().__call__(n, *inner)
            for given, around in zip(arguments, guarded, strict=True):
                if isinstance(given, torch.Tensor):
                    edges = torch.cat([around[:GUARD], around[-GUARD:]])
                    assert bool(edges.isnan().all() if edges.is_floating_point() else (edges == -(2**40)).all())
            arguments[-1].copy_(inner[-1].view_as(arguments[-1]))

        def launch(self, device, blocks, threads, places):
            self.library.launch((ctypes.c_uint * 4)(*blocks, threads[0]), places)

    def find(operation, name, like, *description):
        key = operation, name, like.dtype, description
        if key not in known:
            known[key] = HostKernel(getattr(kernels._sources(operation, "cuda"), name)(*description), like.dtype)
        return known[key]

    return find


def surrounded(x):
    filler = float("nan") if x.is_floating_point() else -(2**40)
    return torch.nn.functional.pad(x.reshape(-1), (GUARD, GUARD), value=filler)


def couplings(lmax=2, channels=1, lmax_edge=2, out=2, kind="even"):
    return ClebschGordanConvolution(natural_layout(lmax, channels), lmax_edge, out, couplings=kind)


def inputs(random, module, atoms=5, edges=23, channels=1, dtype=torch.float64, device="cpu"):
    size = (module.lmax_edge + 1) ** 2
    tensors = [random(atoms, layout_dim(module.in_layout) // module.channels, channels), random(edges, size)]
    tensors.append(random(edges, module.num_weights, channels))
    generator = torch.Generator().manual_seed(edges)
    index = [torch.randint(0, max(1, atoms - 1), (edges,), generator=generator).to(device) for _ in range(2)]  # one atom has no edge
    return [x.to(device, dtype).requires_grad_() for x in tensors], *index


def plain(form, features, harmonics, weights, senders, receivers):
    """As in the definition, path by path and entry by entry."""
    rows = [features.new_zeros(len(features), features.shape[2]) for _ in range(form.sums)]
    for p, path in enumerate(form.paths):
        for m1, m2, m3, c in path.entries:
            term = c * weights[:, p] * features[senders, path.features + m1] * harmonics[:, path.harmonics + m2, None]
            row = path.sums + m3 * path.step
            rows[row] = rows[row].index_add(0, receivers, term)
    return torch.stack(rows, 1)


def with_derivatives(function, tensors):
    """The result, all first derivatives, and all second ones in a direction."""
    result = function(*tensors)
    first = torch.autograd.grad(result.sin().sum(), tensors, create_graph=True)
    return [result, *first, *torch.autograd.grad(sum(x.sin().sum() for x in first), tensors)]


def assert_same(mine, reference, precision):
    for a, b in zip(mine, reference, strict=True):
        scale = float(b.detach().abs().max()) if b.numel() else 0.0
        torch.testing.assert_close(a, b, rtol=precision, atol=precision * scale)


@pytest.mark.parametrize(("dtype", "precision"), BOTH)
@pytest.mark.parametrize(
    ("channels", "atoms", "edges"), [(1, 5, 23), (5, 3, 1), (33, 5, 23), (64, 2, 7), (150, 3, 7), (5, 4, 0), (5, 0, 0)]
)
def test_convolution_on_the_host(random, monkeypatch, on_host, dtype, precision, channels, atoms, edges):
    """All derivatives to the second; 150 channels are more than a block has threads."""
    module = couplings(kind="all")
    monkeypatch.setattr(convolution, "find_kernel", on_host)
    tensors, *index = inputs(random, module, atoms, edges, channels, dtype)
    mine, reference = (with_derivatives(lambda *t, f=f: f(module._form, *t, *index), tensors) for f in (coupled_sum, plain))
    assert_same(mine, reference, precision)


def test_paths_of_several_blocks(random, monkeypatch, on_host):
    """More sums than a thread keeps, more harmonics than a warp has lanes, and rows that no path reaches."""
    module = couplings(3, lmax_edge=6, out=4)
    monkeypatch.setattr(convolution, "find_kernel", on_host)
    tensors, *index = inputs(random, module, 3, 5, 3)
    form = CoupledSum(module._form.paths[1:], 16, 49, module._form.sums)
    tensors[2] = tensors[2].detach()[:, 1:].requires_grad_()
    assert on_host("convolution", "by_sums", tensors[0], *form.settings).source.grid(3, 3)[0] > (3, 1, 1)
    mine, reference = (with_derivatives(lambda *t, f=f: f(form, *t, *index), tensors) for f in (coupled_sum, plain))
    assert_same(mine, reference, 1e-12)


def launched(terms, components, arguments, tables, wanted):
    """As on a device."""
    sizes = [table.shape[2] for table in tables]
    return signals.derivatives_by_launches(
        "product", terms, [len(table) for table in tables], sizes, tables[0].shape[1:2], arguments, tables, wanted
    )


def tables(random, dtype=torch.float64, device="cpu", points=70):
    return tuple((random(2, points, dim) / points**0.5).to(device, dtype) for dim in (4, 9, 5))


@pytest.mark.parametrize(("dtype", "precision"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
@pytest.mark.parametrize(("rows", "channels"), [(1, 1), (7, 5), (3, 33), (4, 64), (0, 5)])
@pytest.mark.parametrize("rank", [0, 2])
def test_signals_on_the_host(random, monkeypatch, on_host, dtype, precision, rows, channels, rank):
    monkeypatch.setattr(signals, "find_kernel", on_host)
    monkeypatch.setattr(signals, "_derivatives", launched)
    constants = tables(random, dtype)
    tensors = [random(rows, dim, channels).to(dtype).requires_grad_() for dim in (4, 9)]
    tensors += [random(rank, dim, channels).to(dtype).requires_grad_() for dim in (4, 9, 5) if rank]
    mine, reference = (
        with_derivatives(lambda x, y, *factors, f=f: f(x, y, factors or None, constants, TERMS), tensors)
        for f in (signals.signal_product, signals.plain_signal_product)
    )
    assert_same(mine, reference, precision)


@pytest.mark.parametrize(("dtype", "precision"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
@pytest.mark.parametrize(
    ("kind", "lmax", "rows", "channels", "rank"), [("all", 2, 3, 5, 1), ("even", 1, 2, 33, 2), ("odd", 3, 0, 4, 1), ("all", 3, 1, 2, 1)]
)
def test_rings_on_the_host(random, monkeypatch, on_host, dtype, precision, kind, lmax, rows, channels, rank):
    """All derivatives to the second, of functions and pseudo-functions; a component that no order reaches is zero."""
    layout = parse_irreps("+".join(f"{channels}x{l}{p}" for l in range(lmax + 1) for p in "eo"))
    name = {"all": "complete_grid", "even": "gaunt_grid", "odd": "bracket_grid"}[kind]
    product = TENSOR_PRODUCTS[name](layout, natural_layout(2, channels), range(kind == "odd", lmax + 1), couplings=kind, rank=rank)._rings
    monkeypatch.setattr(signals, "find_kernel", on_host)
    monkeypatch.setattr(rings, "derivatives_by_kernel", signals.derivatives_by_launches)
    constants = [table.exact.to(dtype) for table in product.constants]
    tensors = [random(rows, size, channels).to(dtype).requires_grad_() for size in product.form.sizes[:2]]
    tensors += [random(rank, size, channels).to(dtype).requires_grad_() for size in product.form.sizes]
    form = product.form
    mine = with_derivatives(lambda x, y, *factors: rings.ring_product(form, x, y, factors, constants), tensors)
    plain = rings.at_points(form.entries, form.sizes, constants)
    reference = with_derivatives(lambda x, y, *factors: signals.plain_signal_product(x, y, factors, plain, form.terms), tensors)
    assert_same(mine, reference, precision)


@pytest.mark.skipif(sys.platform != "linux", reason="there is no NVRTC to install")
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sources_compile(monkeypatch, tmp_path, architecture, dtype):
    monkeypatch.setenv(code_cache.FOLDER, str(tmp_path))
    module = couplings(kind="all")
    sources = [getattr(kernels._sources("convolution", "cuda"), name)(*module._form.settings) for name in NAMES]
    sources.append(kernels._sources("signals", "cuda").product(TERMS, (2, 2, 2), (4, 9, 5), 70))
    product = TENSOR_PRODUCTS["complete_grid"](natural_layout(4, 1), natural_layout(4, 1), 4)._rings
    form, shape = product.form, (len(product.constants[0].exact), product.constants[3].exact.shape[1])
    sources.append(kernels._sources("signals", "cuda").ring_product(form.terms, form.entries, form.sizes, *shape))
    for source in sources:
        code = cuda_code.compiled(source.typed(dtype), architecture)
        assert code.startswith(b"\x7fELF") and source.name.encode() in code


@pytest.mark.skipif(sys.platform != "linux", reason="there is no NVRTC to install")
def test_code_is_kept_and_damage_is_repaired(monkeypatch, tmp_path):
    monkeypatch.setenv(code_cache.FOLDER, str(tmp_path / "new"))
    text, compile, count = 'extern "C" __global__ void nothing() {}', cuda_code._compile, []
    monkeypatch.setattr(cuda_code, "_compile", lambda *arguments: count.append(1) or compile(*arguments))
    code = cuda_code.compiled(text, "sm_80")
    assert cuda_code.compiled(text, "sm_80") == code and len(count) == 1
    (kept,) = (tmp_path / "new").iterdir()
    kept.write_bytes(kept.read_bytes()[:-1])
    assert cuda_code.compiled(text, "sm_80") == code and len(count) == 2
    assert cuda_code.compiled(text, "sm_80") == code and len(count) == 2
    cuda_code.compiled(text, "sm_90")
    assert len(count) == 3 and len(list((tmp_path / "new").iterdir())) == 2
    monkeypatch.setenv(code_cache.FOLDER, str(kept))  # no folder: nothing is kept
    assert cuda_code.compiled(text, "sm_80") == code and len(count) == 4


@pytest.mark.skipif(sys.platform != "linux", reason="there is no NVRTC to install")
def test_what_does_not_compile_says_why():
    with pytest.raises(RuntimeError, match=r"(?s)NVRTC gave error .* for --gpu-architecture=sm_80.*identifier \"nobody\""):
        cuda_code.compiled('extern "C" __global__ void wrong() { nobody; }', "sm_80")


@pytest.mark.skipif(torch.version.cuda is not None, reason="this PyTorch was built with CUDA")
def test_without_cuda_the_reason_is_said(monkeypatch):
    assert "has not run on a device yet" in kernels.why_not("convolution", "cuda", torch.float32)
    monkeypatch.setenv(kernels.VARIABLE, "all")
    assert kernels.why_not("convolution", "cuda", torch.float32) == "this PyTorch was built without CUDA"
    assert kernels.why_not("convolution", "cuda", torch.float16) == "there is none for float16"


DRIVER = r"""
#include <cstring>
static int depth;
static unsigned seen[8];  // grid, block, shared bytes, launches
extern "C" {
int cuCtxPushCurrent_v2(void* context) { ++depth; return context != (void*)5; }
int cuCtxPopCurrent_v2(void** context) { --depth; *context = nullptr; return 0; }
int cuModuleLoadData(void** module, const char* image) { *module = (void*)6; return std::memcmp(image, "\x7f" "ELF", 4) != 0; }
int cuModuleGetFunction(void** function, void* module, const char* name)
{
    *function = (void*)7;
    return module != (void*)6 || std::strcmp(name, "add") != 0;
}
int cuGetErrorString(int, const char** text) { *text = "refused"; return 0; }
int cuLaunchKernel(void* function, unsigned a, unsigned b, unsigned c, unsigned d, unsigned e, unsigned f, unsigned shared, void* stream,
                   void** arguments, void** extra)
{
    if (function != (void*)7 || stream != (void*)0x123456789a || extra || depth != 1 || shared || a == 4)
        return 1;
    const unsigned sizes[8] = {a, b, c, d, e, f, shared, seen[7] + 1};
    std::memcpy(seen, sizes, sizeof(seen));
    **(double**)arguments[1] += *(long long*)arguments[0];
    return 0;
}
int balance() { return depth; }
const unsigned* sizes() { return seen; }
}
"""


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("g++"), reason="needs g++ on Linux")
def test_what_the_driver_is_asked(monkeypatch, tmp_path):
    """A driver that only looks at its arguments: addresses of the values, the stream, and the context given back, after an error too."""
    (tmp_path / "driver.cpp").write_text(DRIVER)
    subprocess.run(["g++", "-shared", "-fPIC", "-w", "-o", tmp_path / "driver.so", tmp_path / "driver.cpp"], check=True)
    driver = ctypes.CDLL(str(tmp_path / "driver.so"))
    driver.sizes.restype = ctypes.POINTER(ctypes.c_uint)
    monkeypatch.setenv(code_cache.FOLDER, str(tmp_path))
    monkeypatch.setattr(cuda_code, "_driver", lambda: driver)
    monkeypatch.setattr(cuda_code, "_context", lambda index: ctypes.c_void_p(5))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=0x123456789A))
    text = 'extern "C" __global__ void add(long long n, T* x) { *x += n; }'
    kernel = CudaKernel(cuda_code.Source("add", text, lambda n, *_: ((n, 2, 1), (32, 1, 1))), torch.float64)
    number = torch.zeros(1, dtype=torch.float64)
    assert kernels.run(kernel, 3, 2**40, number) == 0
    kernel(0, 2**40, number)  # nothing to do
    assert float(number) == 2**40 and driver.sizes()[:8] == [3, 2, 1, 32, 1, 1, 0, 1]
    with pytest.raises(RuntimeError, match="CUDA's driver must accept cuLaunchKernel, got error 1: refused"):
        kernel(4, 1, number)
    assert driver.balance() == 0


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "precision"), BOTH)
@pytest.mark.parametrize(("channels", "atoms", "edges"), [(1, 5, 23), (33, 5, 23), (64, 2, 1), (150, 3, 7), (5, 4, 0)])
@pytest.mark.parametrize("side", [False, True])
def test_convolution_on_a_device(random, monkeypatch, dtype, precision, channels, atoms, edges, side):
    monkeypatch.setenv(kernels.VARIABLE, "all")
    module = couplings(kind="all")
    tensors, *index = inputs(random, module, atoms, edges, channels, dtype, "cuda")
    stream = torch.cuda.Stream() if side else torch.cuda.current_stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        mine = with_derivatives(lambda *t: coupled_sum(module._form, *t, *index), tensors)
        again = with_derivatives(lambda *t: coupled_sum(module._form, *t, *index), tensors)
    torch.cuda.current_stream().wait_stream(stream)
    for a, b in zip(mine[:4], again[:4], strict=True):
        assert torch.equal(a, b)
    assert_same(mine, with_derivatives(lambda *t: plain(module._form, *t, *index), tensors), precision)


@pytest.mark.gpu
def test_derivatives_on_a_device(random, monkeypatch):
    monkeypatch.setenv(kernels.VARIABLE, "all")
    module = couplings(1, lmax_edge=1, out=1)
    tensors, *index = inputs(random, module, edges=7, channels=2, device="cuda")

    def function(*tensors):
        return coupled_sum(module._form, *tensors, *index)

    assert gradcheck(function, tensors) and gradgradcheck(function, tensors, fast_mode=True)


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "precision"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
@pytest.mark.parametrize("rank", [0, 2])
def test_signals_on_a_device(random, monkeypatch, dtype, precision, rank):
    monkeypatch.setenv(kernels.VARIABLE, "all")
    constants = tables(random, dtype, "cuda")
    tensors = [random(7, dim, 33).to("cuda", dtype).requires_grad_() for dim in (4, 9)]
    tensors += [random(rank, dim, 33).to("cuda", dtype).requires_grad_() for dim in (4, 9, 5) if rank]
    mine, reference = (
        with_derivatives(lambda x, y, *factors, f=f: f(x, y, factors or None, constants, TERMS), tensors)
        for f in (signals.signal_product, signals.plain_signal_product)
    )
    assert_same(mine, reference, precision)


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "precision"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
@pytest.mark.parametrize("lmax", [2, 4])
def test_rings_on_a_device(random, monkeypatch, dtype, precision, lmax):
    monkeypatch.setenv(kernels.VARIABLE, "all")
    product = TENSOR_PRODUCTS["complete_grid"](natural_layout(lmax, 1), natural_layout(lmax, 1), lmax)._rings
    form, constants = product.form, [table.exact.to("cuda", dtype) for table in product.constants]
    tensors = [random(7, size, 33).to("cuda", dtype).requires_grad_() for size in form.sizes[:2]]
    assert rings.has_rings(tensors[0], form.entries)
    mine = with_derivatives(lambda x, y: rings.ring_product(form, x, y, None, constants), tensors)
    plain = rings.at_points(form.entries, form.sizes, constants)
    assert_same(mine, with_derivatives(lambda x, y: signals.plain_signal_product(x, y, None, plain, form.terms), tensors), precision)
