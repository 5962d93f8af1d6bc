"""How fast are the tensor products on this machine, next to e3nn on the same numbers? (`equimol bench`)

Every result is compared with the dense Clebsch-Gordan sum in float64 before anything is timed.
"""

import csv as csv_module
import datetime
import importlib.metadata
import os
import platform
import statistics
import subprocess
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from equimol.o3 import Block, coupling_paths, format_irreps, layout_dim, layout_slices, to_e3nn, wigner_3j
from equimol.tensor_products import MANY_BODY_PRODUCTS, TENSOR_PRODUCTS
from equimol.tensor_products.base import TensorProduct

PEER = "e3nn"
COMPILED = "e3nn compiled"  # by torch.compile, whose AOTAutograd has no second derivatives
MODES = ("forward", "forward+backward", "second derivative")
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-11}  # largest error relative to the largest output
CHECKED_ROWS = 32  # the float64 reference is dense; a few rows of the timed batch tell as much as all
SECONDS_PER_TIMING = 20.0  # after so long, a mode has been repeated often enough
PEER_LMAX = 10  # e3nn has couplings up to degree 11 and needs minutes to generate its code for many of them

# name -> degrees of both inputs and of the output; all but the first are those of Xie et al. 2025 (arXiv:2506.13523)
SETTINGS: dict[str, Callable[[int], tuple[Iterable[int], Iterable[int]]]] = {
    "channel-wise": lambda l: (range(l + 1), range(l + 1)),  # as models use them
    "mimo": lambda l: (range(l + 1), range(2 * l + 1)),
    "simo": lambda l: ((l,), range(2 * l + 1)),
    "siso": lambda l: ((l,), (l,)),
}


def tensor_products(
    lmaxes: Iterable[int] = (1, 2, 3, 4),
    *,
    setting: str = "channel-wise",
    channels: int = 64,
    batch: int = 1000,
    products: Iterable[str] | None = None,
    modes: Iterable[str] = MODES,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    quick: bool = False,
    compile_peer: bool = False,
    csv: str | Path | None = None,
) -> list[dict]:
    """Times of products of two features, channel by channel, one row per product, couplings, degree and mode.

    The "second derivative" mode is what training on forces costs: output, gradient, and the gradient of a function of the gradient.
    Each product is compared with e3nn on the same couplings: only even ones for Gaunt products, only odd ones for the bracket.
    ``compile_peer`` adds e3nn under torch.compile, which takes seconds per degree and knows no second derivatives.
    """
    peak = machine_limits(dtype, device)
    rows = []
    for lmax in lmaxes:
        candidates = _candidates(setting, lmax, channels, batch, dtype, device, products, compile_peer)
        for mode in modes:
            steps = {
                key: _step(c.call, c.inputs, mode) for key, c in candidates.items() if (key[0], mode) != (COMPILED, "second derivative")
            }
            times = _alternate(steps, repeats=5 if quick else 25, device=device)
            for (name, couplings), seconds in times.items():
                candidate = candidates[name, couplings]
                row = {
                    "benchmark": "tensor-products",
                    "setting": setting,
                    "product": name,
                    "couplings": couplings,
                    "lmax": lmax,
                    "mode": mode,
                }
                rows.append(row | _figures(seconds, times.get((PEER, couplings)), candidate, mode, batch, dtype, peak))
        if csv is not None:
            described = [row | {"channels": channels, "batch": batch} | describe_surroundings(dtype, device) for row in rows]
            append_rows(csv, [row for row in described if row["lmax"] == lmax])
    return [row | {"channels": channels, "batch": batch} | describe_surroundings(dtype, device) for row in rows]


def quick(lmaxes: Iterable[int] = (1, 2, 3), csv: str | Path | None = None) -> list[dict]:
    """The short measurement of the demo: prints the table of the products that `mace` knows and returns its rows."""
    rows = tensor_products(lmaxes, products=MANY_BODY_PRODUCTS, modes=("forward", "second derivative"), quick=True, csv=csv)
    print_table(rows)
    return rows


def compare_calls(calls: dict, inputs: dict, mode: str, repeats: int = 15, device: str = "cpu") -> dict:
    """Seconds of each call of each name, taking turns, in one of MODES. The results are the caller's to check."""
    return _alternate({name: _step(call, inputs[name], mode) for name, call in calls.items()}, repeats, device)


def print_table(rows: list[dict]) -> None:
    """Print a line per degree, product and couplings: milliseconds in each mode and how many times faster than the peer that is."""
    first = rows[0]
    modes = list(dict.fromkeys(row["mode"] for row in rows))
    print(
        f"{first['setting']} products, {first['channels']} channels x {first['batch']}, {first['dtype']}, {first['threads']} threads: "
        f"median ms ± half the spread between quartiles (times faster than {PEER} with the same couplings)"
    )
    print(f"{'lmax':>4}  {'product':<16}{'couplings':<10}" + "".join(f"{mode:>28}" for mode in modes))
    for lmax, name, couplings in dict.fromkeys((row["lmax"], row["product"], row["couplings"]) for row in rows):
        cells = {row["mode"]: row for row in rows if (row["lmax"], row["product"], row["couplings"]) == (lmax, name, couplings)}
        print(f"{lmax:>4}  {name:<16}{couplings:<10}" + "".join(f"{_cell(cells[mode]) if mode in cells else '':>28}" for mode in modes))


def machine_limits(dtype: torch.dtype, device: str = "cpu") -> tuple[float, float]:
    """Measured here and now: FLOP/s of a large matrix product, bytes/s of a large copy. What a roofline is made of."""
    n = 1024 if device == "cpu" else 8192
    a = torch.randn(n, n, dtype=dtype, device=device)
    source = torch.empty((1 << 26) if device == "cpu" else (1 << 29), dtype=torch.uint8, device=device).zero_()
    target = torch.empty_like(source)
    steps = {"flops": lambda: a @ a, "bytes": lambda: target.copy_(source)}
    times = {name: min(seconds) for name, seconds in _alternate(steps, repeats=7, device=device).items()}
    return 2 * n**3 / times["flops"], 2 * source.numel() / times["bytes"]


def append_rows(path: str | Path, rows: list[dict]) -> None:
    """Append rows to a CSV, with a header when the file is new. A file with other columns is refused, not mixed."""
    path = Path(path)
    columns = list(rows[0])
    new = not path.exists() or path.stat().st_size == 0
    if not new:
        with path.open(newline="") as file:
            header = next(csv_module.reader(file))
        if header != columns:
            raise ValueError(f"{path} has the columns {header}, the rows have {columns}; move the file away or name another")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="") as file:
        writer = csv_module.DictWriter(file, columns)
        if new:
            writer.writeheader()
        writer.writerows(rows)


def dense_product(product: TensorProduct, x: Float[Tensor, "batch dim1"], y: Float[Tensor, "batch dim2"]) -> Float[Tensor, "batch dim"]:
    """What `product` gives with all weights one, from dense Wigner 3j symbols in float64: z = Σ_p t_p (x ⊗ y)_p. The reference."""
    x, y = x.double(), y.double()
    blocks1 = [x[:, s].unflatten(-1, (2 * b.l + 1, b.channels)) for s, b in zip(layout_slices(product.in1), product.in1, strict=True)]
    blocks2 = [y[:, s].unflatten(-1, (2 * b.l + 1, b.channels)) for s, b in zip(layout_slices(product.in2), product.in2, strict=True)]
    out = {(b.l, b.parity): x.new_zeros(len(x), 2 * b.l + 1, product.channels) for b in product.out}
    for path, t in product.coefficients().items():
        symbol = wigner_3j(path.l1, path.l2, path.l3).to(x)
        term = torch.einsum("ijk,bic,bjc->bkc", symbol, blocks1[path.i1], blocks2[path.i2])
        out[path.l3, path.p3] = out[path.l3, path.p3] + t * term
    return torch.cat([out[b.l, b.parity].flatten(1) for b in product.out], dim=-1)


@dataclass
class _Candidate:
    call: Callable[..., Tensor]
    inputs: list[Tensor]
    error: float
    product: TensorProduct  # of the peer: what it computes


def _candidates(
    setting: str,
    lmax: int,
    channels: int,
    batch: int,
    dtype: torch.dtype,
    device: str,
    products: Iterable[str] | None,
    compile_peer: bool = False,
) -> dict[tuple[str, str], _Candidate]:
    """(name, couplings) -> what is timed, each checked. The peer gets the same numbers in its own order."""
    degrees, out_degrees = SETTINGS[setting](lmax)
    layout = tuple(Block(l, (-1) ** l, channels) for l in degrees)
    random = torch.Generator().manual_seed(lmax)
    x, y = (torch.randn(batch, layout_dim(layout), generator=random, dtype=dtype).to(device) for _ in range(2))
    candidates: dict[tuple[str, str], _Candidate] = {}
    wanted: dict[str, TensorProduct] = {}  # couplings -> the Clebsch-Gordan product that the peer is to compute
    for name in products or TENSOR_PRODUCTS:
        cls = TENSOR_PRODUCTS[name]
        for couplings in ("even", "all") if name == "clebsch_gordan" else (cls.couples,):
            reached = sorted({path.l3 for path in coupling_paths(layout, layout, out_degrees, couplings)})
            if not reached:
                continue  # a single degree may have only even or only odd couplings
            product = cls(layout, layout, reached, couplings=couplings).to(device=device, dtype=dtype)
            inputs = [x, y, torch.ones(product.num_weights, channels, dtype=dtype, device=device)]
            reference = dense_product(product, x[:CHECKED_ROWS], y[:CHECKED_ROWS])
            error = _checked_error(name, lmax, product(x[:CHECKED_ROWS], y[:CHECKED_ROWS], inputs[2]), reference)
            candidates[name, couplings] = _Candidate(product, inputs, error, product)
            wanted.setdefault(couplings, TENSOR_PRODUCTS["clebsch_gordan"](layout, layout, reached, couplings=couplings))
    for couplings, product in wanted.items():
        module = _peer(product) if lmax <= PEER_LMAX else None
        if module is None:
            continue
        module = module.to(device=device, dtype=dtype)
        weights = torch.tensor(list(product.coefficients().values())).repeat_interleave(channels)
        inputs = [to_e3nn(x, layout), to_e3nn(y, layout), weights.to(x)]
        reference = to_e3nn(dense_product(product, x[:CHECKED_ROWS], y[:CHECKED_ROWS]), product.out)
        error = _checked_error(PEER, lmax, module(*(part[:CHECKED_ROWS] for part in inputs[:2]), inputs[2]), reference)
        candidates[PEER, couplings] = _Candidate(module, inputs, error, product)
        if compile_peer:
            torch._dynamo.config.recompile_limit = 64  # e3nn's modules share their code, and each would count as a recompilation
            candidates[COMPILED, couplings] = _Candidate(torch.compile(module, dynamic=False), inputs, error, product)
    return candidates


def _peer(product: TensorProduct) -> torch.nn.Module | None:
    """e3nn's TensorProduct with the same paths, one weight per path and channel."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # e3nn compiles with TorchScript, which newer PyTorch calls deprecated
            from e3nn import o3

            instructions = [(p.i1, p.i2, block, "uuu", True) for p, block in zip(product.paths, product.out_blocks, strict=True)]
            return o3.TensorProduct(
                format_irreps(product.in1),
                format_irreps(product.in2),
                format_irreps(product.out),
                instructions,
                irrep_normalization="none",
                path_normalization="none",
                internal_weights=False,
                shared_weights=True,
            )
    except Exception as error:  # e3nn 0.4.4 under PyTorch >= 2.6 fails with an unpickling error, not an ImportError
        print(f"{PEER} is left out: {type(error).__name__}: {str(error).splitlines()[0]}")
        return None


def _checked_error(name: str, lmax: int, output: Tensor, reference: Tensor) -> float:
    """Largest error relative to the largest output; raises where it is beyond rounding, because a wrong result has no speed."""
    error = float((output.double() - reference).abs().max() / reference.abs().max())
    if not error < TOLERANCE[output.dtype]:
        raise RuntimeError(f"{name} at lmax {lmax} differs from the float64 reference by {error:.1e} (relative); it is not timed")
    return error


def _step(call: Callable, inputs: list[Tensor], mode: str) -> Callable[[], object]:
    """One timed call. The derivatives are those with respect to both features, the second ones also to the weights.

    What comes back from the layers behind is given: a gradient for the output, and for the second derivative gradients for the output
    and for both first derivatives. These are the calls that training on forces makes, without what it does elsewhere.
    """
    if mode == "forward":
        return lambda: _without_gradient(call, inputs)
    inputs = [tensor.clone().requires_grad_() for tensor in inputs]
    random = torch.Generator().manual_seed(0)
    back = _without_gradient(call, inputs)
    back, of_x, of_y = (torch.randn(t.shape, generator=random, dtype=t.dtype).to(t.device) for t in (back, *inputs[:2]))
    if mode == "forward+backward":
        return lambda: torch.autograd.grad(call(*inputs), inputs[:2], back)
    back.requires_grad_()

    def energy_and_force_step():
        z = call(*inputs)
        first = torch.autograd.grad(z, inputs[:2], back, create_graph=True)
        return torch.autograd.grad([z, *first], [*inputs, back], [back.detach(), of_x, of_y])

    return energy_and_force_step


@torch.no_grad()
def _without_gradient(call: Callable, inputs: list[Tensor]) -> Tensor:
    return call(*inputs)


def _alternate(steps: dict, repeats: int, device: str, warmup: int = 3) -> dict:
    """Seconds of each call, the candidates taking turns; fewer turns where they are long."""
    times: dict = {name: [] for name in steps}
    begin = time.perf_counter()
    for round_ in range(warmup + repeats):
        for name, step in steps.items():
            _synchronize(device)
            start = time.perf_counter()
            step()
            _synchronize(device)
            if round_ >= min(warmup, 1) or time.perf_counter() - begin > SECONDS_PER_TIMING:
                times[name].append(time.perf_counter() - start)
        if time.perf_counter() - begin > SECONDS_PER_TIMING and all(len(seconds) > 2 for seconds in times.values()):
            break
    return times


def _synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def _figures(
    seconds: list[float],
    peer: list[float] | None,
    candidate: _Candidate,
    mode: str,
    batch: int,
    dtype: torch.dtype,
    peak: tuple[float, float],
) -> dict:
    """Columns of one timing. Work and roofline are those of the forward product: what a fused kernel of this algorithm would need."""
    low, median, high = statistics.quantiles(seconds, n=4)
    product = candidate.product
    flops, moved = batch * product.flops(), batch * product.bytes(dtype)
    shown = mode == "forward" and candidate.call is product  # the peer's algorithm is its own
    return {
        "median_ms": round(1e3 * median, 4),
        "spread_ms": round(1e3 * (high - low), 4),
        f"{PEER}_over_this": round(statistics.median(peer) / median, 3) if peer else "",
        "max_error": f"{candidate.error:.1e}",
        "degrees_of_freedom": product.degrees_of_freedom,
        "us_per_degree_of_freedom": round(1e6 * median / product.degrees_of_freedom, 3),
        "megaflop": round(flops / 1e6, 3) if shown else "",
        "megabyte": round(moved / 1e6, 3) if shown else "",
        "roofline_fraction": round(max(flops / peak[0], moved / peak[1]) / median, 4) if shown else "",
        "machine_gflop_per_s": round(peak[0] / 1e9, 1),
        "machine_gbyte_per_s": round(peak[1] / 1e9, 1),
    }


def _cell(row: dict) -> str:
    ratio = row[f"{PEER}_over_this"]
    suffix = f" ({ratio:.2f}x)" if ratio != "" and row["product"] != PEER else ""
    return f"{row['median_ms']:.2f} ± {row['spread_ms'] / 2:.2f}{suffix}"


def describe_surroundings(dtype: torch.dtype, device: str = "cpu") -> dict:
    """What a row needs to be understood later: dtype, machine, versions, commit, date."""
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else _processor(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "equimol": _version("equimol"),
        "torch": torch.__version__,
        PEER: _version(PEER),
        "python": platform.python_version(),
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M"),
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _commit() -> str:
    """Short commit of the checkout this file runs from; empty for an installed wheel, which may lie inside a foreign checkout."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return ""
    try:
        answer = subprocess.run(["git", "-C", str(root), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    except OSError:  # no git here
        return ""
    return answer.stdout.strip()
