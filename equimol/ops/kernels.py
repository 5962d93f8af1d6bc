"""Which kernel an operation runs, and why: EQUIMOL_KERNELS=off, auto (the default), all or require. Compiled at first use, never at import.

``auto`` leaves out kernels for devices on which none has run yet, which ``all`` takes too.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from equimol.ops import cuda_code
from equimol.ops.cuda_code import CudaKernel

VARIABLE, CHOICES = "EQUIMOL_KERNELS", ("auto", "off", "all", "require")
UNTRIED = ("cuda",)  # devices on which no kernel has run yet
BOTH = (torch.float32, torch.float64)
#: what has a kernel there: a source in kernels/cpu, or oneDNN
CPU = {
    "tiles": BOTH,
    "convolution": BOTH,
    "filters": BOTH,
    "frames": BOTH,
    "signals": BOTH,
    "polynomials": BOTH,
    "linear": (torch.float32,),
}
CUDA = {"convolution": BOTH, "signals": BOTH}  # sources in kernels/cuda
KERNELS = {"cpu": CPU, "cuda": CUDA}


def find_kernel(operation: str, name: str, like: Tensor, *description) -> Callable[..., int] | CudaKernel | None:
    """A compiled function of an operation for such tensors, or None where PyTorch's operations are to be used. See `run`.

    One that is written from a description, such as a list of couplings, is compiled for each; it must be hashable.

    Raises:
        RuntimeError: a kernel is required and there is none; the message says why.
        ValueError: the variable is none of its choices.
    """
    return _compiled(operation, name, like.device.type, like.dtype, description) if has_kernel(operation, like) else None


def wanted() -> str:
    """The choice of the environment."""
    choice = os.environ.get(VARIABLE, "auto")
    if choice not in CHOICES:
        raise ValueError(f"{VARIABLE} must be one of {', '.join(CHOICES)}, got {choice!r}")
    return choice


def has_operator(operation: str, like: Tensor, obstacle: str = "") -> bool:
    """Whether an operation is to be called as one, which finds its kernel itself, for such tensors.

    Programs of PyTorch's compiler hold it on a CPU. Raises as `find_kernel` does.
    """
    if torch.compiler.is_compiling():
        return like.device.type == "cpu" and not is_traced() and not obstacle
    return has_kernel(operation, like, obstacle)


def is_traced() -> bool:
    """Whether a program is traced or exported, which is to be made of PyTorch's operations alone, for any sizes."""
    return torch.compiler.is_exporting() or (not torch.compiler.is_dynamo_compiling() and get_proxy_mode() is not None)


def has_kernel(operation: str, like: Tensor, obstacle: str = "") -> bool:
    """Whether `find_kernel` has one for such tensors. While a program is traced there is none: it is made of PyTorch's operations.

    ``obstacle`` is what else keeps this call from one, if anything does. Raises as `find_kernel` does.
    """
    if torch.compiler.is_compiling() or is_traced():
        return False
    choice = wanted()
    reason = why_not(operation, like.device.type, like.dtype) or obstacle
    if reason and choice == "require":
        raise RuntimeError(f"{VARIABLE}=require, but {operation} has no kernel: {reason}; use {VARIABLE}=auto")
    return choice != "off" and not reason


def why_not(name: str, device: str, dtype: torch.dtype) -> str:
    """Why an operation runs as PyTorch's operations there; empty where it has a kernel."""
    if name not in KERNELS.get(device, ()):
        return f"there is none for {device} yet"
    if dtype not in KERNELS[device][name]:
        return f"there is none for {str(dtype).removeprefix('torch.')}"
    if device in UNTRIED and wanted() in ("auto", "off"):
        return f"it has not run on a device yet, {VARIABLE}=all takes it"
    if device == "cuda":
        return cuda_code.why_not()
    if name == "linear":
        return "" if torch.backends.mkldnn.is_available() else "this PyTorch was built without oneDNN"
    return _compiler()


def run(kernel: Callable[..., int] | CudaKernel, n: int, *arguments: Tensor | float | int) -> int:
    """kernel(start, stop, *arguments) for parts of 0..n, one for each thread that PyTorch may use. Returns the sum of what they return.

    One for CUDA is launched for all of 0..n and not waited for. Tensors must be contiguous and large enough: a kernel does not look.
    """
    if isinstance(kernel, CudaKernel):
        kernel(n, *arguments)
        return 0
    places = [x.data_ptr() if isinstance(x, Tensor) else x for x in arguments]
    threads = min(torch.get_num_threads(), n)
    if threads < 2:
        return kernel(0, n, *places)
    if getattr(kernel, "team", 0):
        return kernel.by_team(threads, n, *places)
    bounds = [n * part // threads for part in range(threads + 1)]
    pool = _pool(torch.get_num_threads() - 1)
    others = [pool.submit(kernel, start, stop, *places) for start, stop in zip(bounds[1:-1], bounds[2:], strict=True)]
    return kernel(bounds[0], bounds[1], *places) + sum(other.result() for other in others)


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="equimol")


@cache
def _compiler() -> str:
    """Why there is none; empty where there is one."""
    try:
        import llvmlite.binding  # noqa: F401
    except ImportError as error:  # none for this Python or machine
        return f"llvmlite cannot be imported ({error})"
    return ""


@cache
def _compiled(operation: str, name: str, device: str, dtype: torch.dtype, description: tuple) -> Callable[..., int] | CudaKernel:
    write = getattr(_sources(operation, device), name)
    if device == "cuda":
        return CudaKernel(write(*description), dtype)
    from equimol.ops.vector_code import compiled

    key = "\0".join((operation, name, repr(description), _digest()))
    return compiled(write(*description) if description else write, dtype, key)


@cache
def _sources(operation: str, device: str) -> ModuleType:
    """The module with the kernels of an operation: in kernels/ beside the package of a checkout, or in equimol/_kernels of a wheel."""
    places = [folder / device / f"{operation}.py" for folder in _folders()]
    path = next((path for path in places if path.exists()), None)
    if path is None:
        raise RuntimeError(f"kernels must be beside the package, found none of {', '.join(map(str, places))}; install EquiMol again")
    spec = importlib.util.spec_from_file_location(f"equimol_kernels_{device}_{operation}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _folders() -> tuple[Path, Path]:
    package = Path(__file__).parents[1]
    return package / "_kernels", package.parent / "kernels"


@cache
def _digest() -> str:
    """Of all that writes kernels for the CPU, or is imported by what does: code kept on disk is not used after a change of it."""
    package = Path(__file__).parents[1]
    files = [path for folder in (*_folders(), package / "ops", package / "o3") for path in sorted(folder.rglob("*.py"))]
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()
