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
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from equimol.o3 import format_irreps, layout_slices, natural_layout, to_e3nn, wigner_3j
from equimol.tensor_products import TENSOR_PRODUCTS
from equimol.tensor_products.base import TensorProduct

PEER = "e3nn"
MODES = ("forward", "second derivative")
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-11}  # largest error relative to the largest output
CHECKED_ROWS = 32  # the float64 reference is dense; a few rows of the timed batch tell as much as all


def tensor_products(
    lmaxes: Iterable[int] = (1, 2, 3, 4),
    *,
    channels: int = 64,
    batch: int = 1000,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    quick: bool = False,
    csv: str | Path | None = None,
) -> list[dict]:
    """Times of channel-wise products of degrees 0..lmax with 0..lmax, even couplings, one row per product, degree and mode.

    The "second derivative" mode is what training on forces costs: output, gradient, and the gradient of a function of the gradient.
    """
    rows = []
    for lmax in lmaxes:
        candidates = _candidates(lmax, channels, batch, dtype, device)
        for mode in MODES:
            steps = {name: _step(call, inputs, mode) for name, (call, inputs, _) in candidates.items()}
            times = _alternate(steps, repeats=5 if quick else 25, device=device)
            for name, seconds in times.items():
                rows.append(_row(name, lmax, mode, seconds, times.get(PEER), candidates[name][2]))
    described = [row | {"channels": channels, "batch": batch} | describe_surroundings(dtype, device) for row in rows]
    if csv is not None:
        append_rows(csv, described)
    return described


def quick(lmaxes: Iterable[int] = (1, 2, 3, 4), csv: str | Path | None = None) -> list[dict]:
    """The short measurement of the demo: prints the table and returns its rows."""
    rows = tensor_products(lmaxes, quick=True, csv=csv)
    print_table(rows)
    return rows


def print_table(rows: list[dict]) -> None:
    """Print one line per degree and mode: milliseconds of each product and how many times faster than the peer it is."""
    products = list(dict.fromkeys(row["product"] for row in rows))
    first = rows[0]
    print(
        f"channel-wise products, {first['channels']} channels x {first['batch']}, {first['dtype']}, even couplings, "
        f"{first['threads']} threads: median ms ± half the spread between quartiles (times faster than {PEER})"
    )
    print(f"{'lmax':>4}  {'mode':<18}" + "".join(f"{name:>28}" for name in products))
    for lmax, mode in dict.fromkeys((row["lmax"], row["mode"]) for row in rows):
        cells = {row["product"]: row for row in rows if (row["lmax"], row["mode"]) == (lmax, mode)}
        print(f"{lmax:>4}  {mode:<18}" + "".join(f"{_cell(cells[name]):>28}" for name in products))


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


def _candidates(lmax: int, channels: int, batch: int, dtype: torch.dtype, device: str) -> dict[str, tuple[Callable, list[Tensor], float]]:
    """Name -> (function, its inputs, its error), each checked. The peer gets the same numbers in its own order."""
    layout = natural_layout(lmax, channels)
    random = torch.Generator().manual_seed(lmax)
    x, y = (torch.randn(batch, channels * (lmax + 1) ** 2, generator=random, dtype=dtype).to(device) for _ in range(2))
    candidates = {}
    for name, cls in TENSOR_PRODUCTS.items():
        product = cls(layout, layout, lmax, couplings="even").to(device=device, dtype=dtype)
        inputs = [x, y, torch.ones(product.num_weights, channels, dtype=dtype, device=device)]
        reference = dense_product(product, x[:CHECKED_ROWS], y[:CHECKED_ROWS])
        candidates[name] = (product, inputs, _checked_error(name, lmax, product(*inputs)[:CHECKED_ROWS], reference))
    peer = _peer(lmax, channels, TENSOR_PRODUCTS["clebsch_gordan"](layout, layout, lmax, couplings="even"))
    if peer is not None:
        module, weights = peer
        inputs = [to_e3nn(x, layout), to_e3nn(y, layout), weights.to(x)]
        module = module.to(device=device, dtype=dtype)
        product = TENSOR_PRODUCTS["clebsch_gordan"](layout, layout, lmax, couplings="even")
        reference = to_e3nn(dense_product(product, x[:CHECKED_ROWS], y[:CHECKED_ROWS]), layout)
        candidates[PEER] = (module, inputs, _checked_error(PEER, lmax, module(*inputs)[:CHECKED_ROWS], reference))
    return candidates


def _peer(lmax: int, channels: int, product: TensorProduct) -> tuple[torch.nn.Module, Tensor] | None:
    """e3nn's TensorProduct with the same even paths, one weight per path and channel, and the weights that give the same output."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # e3nn compiles with TorchScript, which newer PyTorch calls deprecated
            from e3nn import o3

            irreps = format_irreps(natural_layout(lmax, channels))
            paths = list(product.coefficients())
            module = o3.TensorProduct(
                irreps,
                irreps,
                irreps,
                [(path.i1, path.i2, path.l3, "uuu", True) for path in paths],
                irrep_normalization="none",
                path_normalization="none",
                internal_weights=False,
                shared_weights=True,
            )
    except Exception as error:  # e3nn 0.4.4 under PyTorch >= 2.6 fails with an unpickling error, not an ImportError
        print(f"{PEER} is left out: {type(error).__name__}: {str(error).splitlines()[0]}")
        return None
    coefficients = torch.tensor(list(product.coefficients().values()))
    return module, coefficients.repeat_interleave(channels)


def _checked_error(name: str, lmax: int, output: Tensor, reference: Tensor) -> float:
    """Largest error relative to the largest output; raises where it is beyond rounding, because a wrong result has no speed."""
    error = float((output.double() - reference).abs().max() / reference.abs().max())
    if not error < TOLERANCE[output.dtype]:
        raise RuntimeError(f"{name} at lmax {lmax} differs from the float64 reference by {error:.1e} (relative); it is not timed")
    return error


def _step(call: Callable, inputs: list[Tensor], mode: str) -> Callable[[], object]:
    """One timed call. The derivatives are taken with respect to both features, the second ones to the weights as well."""
    if mode == "forward":
        return lambda: _without_gradient(call, inputs)
    inputs = [tensor.clone().requires_grad_() for tensor in inputs]

    def energy_and_force_step():
        forces = torch.autograd.grad(call(*inputs).square().sum(), inputs[:2], create_graph=True)
        return torch.autograd.grad(sum(force.square().sum() for force in forces), inputs)

    return energy_and_force_step


@torch.no_grad()
def _without_gradient(call: Callable, inputs: list[Tensor]) -> Tensor:
    return call(*inputs)


def _alternate(steps: dict[str, Callable], repeats: int, device: str, warmup: int = 3) -> dict[str, list[float]]:
    """Seconds of each call, the candidates taking turns."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(warmup + repeats):
        for name, step in steps.items():
            _synchronize(device)
            start = time.perf_counter()
            step()
            _synchronize(device)
            if round_ >= warmup:
                times[name].append(time.perf_counter() - start)
    return times


def _synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def _row(name: str, lmax: int, mode: str, seconds: list[float], peer: list[float] | None, error: float) -> dict:
    low, median, high = statistics.quantiles(seconds, n=4)
    return {
        "benchmark": "tensor-products",
        "product": name,
        "lmax": lmax,
        "mode": mode,
        "median_ms": round(1e3 * median, 4),
        "spread_ms": round(1e3 * (high - low), 4),
        f"{PEER}_over_this": round(statistics.median(peer) / median, 3) if peer else "",
        "max_error": f"{error:.1e}",
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
