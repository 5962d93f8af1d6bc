"""CUDA C++ compiled at first use by NVRTC, which PyTorch's CUDA wheels carry, and launched on PyTorch's current stream.

Nothing checks bounds: the caller of a kernel does. Not yet run on a device: sources are compiled in tests, and their arithmetic is run on
the host (kernels/include/host.h).
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from equimol.ops.code_cache import cached_code

Sizes = tuple[int, int, int]
SCALARS = {torch.float32: "float", torch.float64: "double"}
LIBRARIES = {13: "nvidia/cu13/lib/libnvrtc.so.13", 12: "nvidia/cuda_nvrtc/lib/libnvrtc.so.12"}  # by CUDA's version, in site-packages
OPTIONS = ("--std=c++17", "--restrict")


class Source(NamedTuple):
    """A kernel as text, and how it is launched; what is called T in it is float or double.

    Its parameters are whole numbers (``long long``) and addresses, those of the call in the same order.
    """

    name: str
    text: str
    grid: Callable[..., tuple[Sizes, Sizes]]  # of n and the arguments: blocks, and threads of each

    def typed(self, dtype: torch.dtype) -> str:
        """The text for a type of numbers."""
        return f"typedef {SCALARS[dtype]} T;\n{self.text}"


class CudaKernel:
    """A kernel for one type of numbers: called with n, whole numbers and tensors of one device. Compiled for a device at its first call.

    Tensors must be contiguous and large enough: a kernel does not look.
    """

    def __init__(self, source: Source, dtype: torch.dtype) -> None:
        self.source, self.dtype = source, dtype
        self._functions: dict[int, ctypes.c_void_p] = {}

    def __call__(self, n: int, *arguments: Tensor | int) -> None:
        blocks, threads = self.source.grid(n, *arguments)
        if 0 in blocks:
            return
        device = next(x.device for x in arguments if isinstance(x, Tensor))
        values = [ctypes.c_void_p(x.data_ptr()) if isinstance(x, Tensor) else ctypes.c_int64(x) for x in arguments]
        places = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        self.launch(device, blocks, threads, places)

    def launch(self, device: torch.device, blocks: Sizes, threads: Sizes, places: ctypes.Array) -> None:
        """``places``: the addresses of the arguments."""
        driver, context = _driver(), _context(device.index)
        _ask(driver, "cuCtxPushCurrent_v2", context)  # a thread of the autograd engine may have none, or that of another device
        try:
            if device.index not in self._functions:
                capability = "sm_{}{}".format(*torch.cuda.get_device_capability(device))
                self._functions[device.index] = _load(driver, compiled(self.source.typed(self.dtype), capability), self.source.name)
            stream = ctypes.c_void_p(torch.cuda.current_stream(device).cuda_stream)
            _ask(driver, "cuLaunchKernel", self._functions[device.index], *map(ctypes.c_uint, (*blocks, *threads, 0)), stream, places, None)
        finally:
            _ask(driver, "cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))


def why_not() -> str:
    """Why kernels for CUDA cannot be compiled and launched here; empty where they can."""
    if torch.version.cuda is None:
        return "this PyTorch was built without CUDA"
    try:
        _nvrtc()
        _driver()
    except (OSError, RuntimeError) as error:
        return str(error)
    return ""


def compiled(text: str, architecture: str) -> bytes:
    """The machine code of CUDA C++ for an architecture such as ``sm_90``: from the cache, or by NVRTC, which needs no device.

    Raises:
        RuntimeError: it does not compile; the message is NVRTC's.
    """
    library = _nvrtc()
    options = (f"--gpu-architecture={architecture}", *OPTIONS)
    major, minor = ctypes.c_int(), ctypes.c_int()
    library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    key = "\0".join((text, *options, f"{major.value}.{minor.value}"))
    return cached_code(key, "cubin", lambda: _compile(library, text, options))


def _compile(library: ctypes.CDLL, text: str, options: tuple[str, ...]) -> bytes:
    program = ctypes.c_void_p()
    if library.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"equimol.cu", 0, None, None):
        raise RuntimeError("NVRTC must be able to begin a program, and was not; is its library damaged? Install PyTorch again")
    try:
        words = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        failed = library.nvrtcCompileProgram(program, len(options), words)
        if failed:
            log = _read(library, program, "nvrtcGetProgramLog").rstrip(b"\0").decode(errors="replace")
            raise RuntimeError(
                f"CUDA kernels must compile, NVRTC gave error {failed} for {' '.join(options)}; EQUIMOL_KERNELS=off does without.\n{log}"
            )
        return _read(library, program, "nvrtcGetCUBIN")
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _read(library: ctypes.CDLL, program: ctypes.c_void_p, name: str) -> bytes:
    size = ctypes.c_size_t()
    getattr(library, f"{name}Size")(program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    getattr(library, name)(program, buffer)
    return buffer.raw


@cache
def _nvrtc() -> ctypes.CDLL:
    """The NVRTC of PyTorch's version of CUDA, whose code its driver can load; of any version where PyTorch has none."""
    versions = [int(torch.version.cuda.split(".")[0])] if torch.version.cuda else list(LIBRARIES)
    spec = importlib.util.find_spec("nvidia")
    roots = [Path(folder).parent for folder in (spec.submodule_search_locations if spec else None) or ()]
    names = [str(root / LIBRARIES[version]) for root in roots for version in versions if version in LIBRARIES]
    names += [f"libnvrtc.so.{version}" for version in versions]  # loaded by PyTorch before, or installed by the system
    for name in names:
        with suppress(OSError):
            return ctypes.CDLL(name)
    raise OSError(f"NVRTC must be installed, found none of {', '.join(names)}; PyTorch's wheels for CUDA bring it, or nvidia-cuda-nvrtc")


@cache
def _driver() -> ctypes.CDLL:
    driver = ctypes.CDLL("libcuda.so.1")
    _ask(driver, "cuInit", 0)
    return driver


@cache
def _context(index: int) -> ctypes.c_void_p:
    """That of PyTorch: the primary one of the device."""
    device, context = ctypes.c_int(), ctypes.c_void_p()
    _ask(_driver(), "cuDeviceGet", ctypes.byref(device), index)
    _ask(_driver(), "cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    return context


def _load(driver: ctypes.CDLL, code: bytes, name: str) -> ctypes.c_void_p:
    """The module stays loaded: PyTorch's work on a stream may end after the last reference here."""
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    _ask(driver, "cuModuleLoadData", ctypes.byref(module), code)
    _ask(driver, "cuModuleGetFunction", ctypes.byref(function), module, name.encode())
    return function


def _ask(driver: ctypes.CDLL, name: str, *arguments) -> None:
    error = getattr(driver, name)(*arguments)
    if error:
        text = ctypes.c_char_p()
        driver.cuGetErrorString(error, ctypes.byref(text))
        raise RuntimeError(
            f"CUDA's driver must accept {name}, got error {error}: {(text.value or b'unknown').decode()}; EQUIMOL_KERNELS=off does without"
        )
