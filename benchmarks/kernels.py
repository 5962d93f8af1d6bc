"""What do the compiled kernels gain, in whole models and one by one, next to PyTorch's operations and e3nn's `uvu` product with a scatter?

    python benchmarks/kernels.py [--edges 5000 50000] [--quick] [--only "grid product"]      # to results/kernels.csv
    python benchmarks/kernels.py memory [--edges 50000]     # of the convolution's second derivatives, to results/kernels_memory.csv
    python benchmarks/kernels.py first                      # seconds of the first call in a fresh process, to results/kernels_first.csv
    python benchmarks/kernels.py table

The convolution is MACE's: features of degrees 0..l, harmonics to degree 3, a weight per path, channel and edge, 20 edges at an atom, all
couplings with l1+l2+l3 even and l3 <= 3. "second derivative": the sum, its derivatives with respect to features, harmonics and weights,
and those of these again, in given directions: what training on forces costs (of tiles, the matrix is no function of positions). Tiles
are those of DPA3 for water: 192 atoms with 26 close neighbours each, 32 -> 64 + 32 numbers. Grid products are those of two features of
degrees 0..l with 64 channels, with weights. Models take five clusters of 27 atoms: energies and forces of a frozen model, and a training
step, the gradient of a loss of both. Results are compared before anything is timed. float32, as many threads as PyTorch has. Bytes: every
input read once, every output written once, over the median time, beside a large copy on the same machine.
"""

from __future__ import annotations

import argparse
import csv
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import ase.build
import numpy as np
import torch
from torch_geometric.data import Batch

from equimol import build_model
from equimol.bench import append_rows, compare_calls, describe_surroundings, machine_limits
from equimol.data import AtomicGraph
from equimol.o3 import layout_dim, natural_layout, spherical_harmonics, to_e3nn
from equimol.ops.silut import Tail
from equimol.ops.tiles import tiles
from equimol.tensor_products.bracket_grid import BracketGrid
from equimol.tensor_products.clebsch_gordan_convolution import ClebschGordanConvolution
from equimol.tensor_products.complete_grid import CompleteGrid
from equimol.tensor_products.gaunt_grid import GauntGrid
from equimol.tensor_products.so2 import SO2GauntConvolution, SO2MixedConvolution
from equimol.tensor_products.symmetric_contraction import SymmetricContraction

RESULTS = Path(__file__).parent / "results" / "kernels.csv"
MODES = ("forward", "second derivative")
NEIGHBORS = 20
CHOICES = {"kernel": "require", "PyTorch": "off", "e3nn": "auto"}
SIZES = ((64, 1), (128, 2))  # channels, largest degree of the features
GRIDS = {"Gaunt": (GauntGrid, "even"), "bracket": (BracketGrid, "odd"), "complete": (CompleteGrid, "all")}
BATCHES = {1000: (2, 3, 4, 6, 8, 10), 10_000: (2, 3, 4)}  # rows: largest degrees
#: name, preset, product
MODELS = (("mace", "small", "clebsch_gordan"), ("mace", "small", "complete_grid"), ("dpa3", "nano", None), ("escaip", "nano", None))


def with_kernels(choice: str, call: Callable) -> Callable:
    """The call with EQUIMOL_KERNELS set."""

    def chosen(*inputs):
        before = os.environ.get("EQUIMOL_KERNELS")
        os.environ["EQUIMOL_KERNELS"] = choice
        try:
            return call(*inputs)
        finally:
            os.environ.pop("EQUIMOL_KERNELS") if before is None else os.environ.update(EQUIMOL_KERNELS=before)

    return chosen


def second_derivative(call: Callable, inputs: list[torch.Tensor], constants: tuple[int, ...]) -> Callable:
    """Derivatives, in the direction of ones, of those with respect to all inputs that depend on positions: not to the constants."""
    inputs = [tensor.clone().requires_grad_() for tensor in inputs]
    moving = [tensor for n, tensor in enumerate(inputs) if n not in constants]

    def step(*_):
        with torch.enable_grad():
            result = call(*inputs)
            first = torch.autograd.grad(result, moving, torch.ones_like(result), create_graph=True)
            return torch.autograd.grad(first, inputs, [torch.ones_like(tensor) for tensor in moving], allow_unused=True)

    return step


def convolution(channels: int, lmax: int, edges: int, check: bool = True) -> tuple[dict[str, Callable], list[torch.Tensor]]:
    from e3nn import o3

    ours = ClebschGordanConvolution(natural_layout(lmax, channels), 3, 3)
    atoms = edges // NEIGHBORS
    generator = torch.Generator().manual_seed(0)
    senders = torch.randint(0, atoms, (edges,), generator=generator)
    receivers = torch.arange(atoms).repeat_interleave(NEIGHBORS)
    sizes = (atoms, layout_dim(ours.in_layout)), (edges, 16), (edges, ours.num_weights, channels)
    inputs = [torch.randn(*size, generator=generator) for size in sizes]

    def plain(x, y, w):
        return ours(x, y, senders, receivers, w)

    irreps = o3.Irreps([(channels, (l, (-1) ** l)) for l in range(lmax + 1)])
    out = [(channels, (p.l3, p.p3)) for p in ours.paths]
    instructions = [(p.l1, p.l2, n, "uvu", True) for n, p in enumerate(ours.paths)]
    product = o3.TensorProduct(irreps, o3.Irreps.spherical_harmonics(3), out, instructions, shared_weights=False, internal_weights=False)

    def peer(x, y, w):
        messages = product(x[senders], y, w.flatten(1))
        return messages.new_zeros(atoms, messages.shape[1]).index_add(0, receivers, messages)

    calls = {"kernel": plain, "PyTorch": plain, "e3nn": peer}
    if not check:
        return calls, inputs
    x, y, w = inputs
    kernel, reference = (with_kernels(CHOICES[who], plain)(*inputs) for who in ("kernel", "PyTorch"))
    theirs = peer(to_e3nn(x, ours.in_layout), y, w)
    scale = float(reference.abs().max())
    if float((kernel - reference).abs().max()) > 1e-5 * scale or abs(float(theirs.norm() / reference.norm()) - 1) > 1e-4:
        raise SystemExit("the convolutions disagree: nothing is timed")
    return calls, inputs


def tile() -> tuple[dict[str, Callable], list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    sizes = (192, 26, 26, 32), (192, 26, 96), (192, 26, 96), (96, 32), (192, 26), (192, 26)
    inputs = [torch.randn(*size, generator=generator) / 4 for size in sizes]

    def both(*tensors):
        summed, rest = tiles(*tensors, 64, Tail(10.0, smooth=True))
        return torch.cat([summed.flatten(), rest.flatten()])

    calls = {"kernel": both, "PyTorch": both}
    results = [with_kernels(CHOICES[who], call)(*inputs) for who, call in calls.items()]
    if float((results[0] - results[1]).abs().max()) > 1e-5 * float(results[1].abs().max()):
        raise SystemExit("the tiles disagree: nothing is timed")
    return calls, inputs


def contraction_of(channels: int, lmax: int) -> tuple[dict[str, Callable], list[torch.Tensor]]:
    """MACE's symmetric contraction of sums to degree 3, correlation 3, for 243 atoms of four elements."""
    module, species = SymmetricContraction(natural_layout(3, channels), lmax, 3, 4), torch.arange(243) % 4
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(*size, generator=generator) for size in ((243, layout_dim(module.in_layout)), (4, module.num_weights, channels))]
    return with_and_without(lambda x, w: module(x, w, species), inputs)


def in_frames(make: type, lmax: int, edges: int) -> tuple[dict[str, Callable], list[torch.Tensor]]:
    """A convolution in the frames of edges, 32 channels."""
    module, atoms = make(natural_layout(lmax, 32), lmax, lmax), edges // NEIGHBORS
    generator = torch.Generator().manual_seed(0)
    senders = torch.randint(0, atoms, (edges,), generator=generator)
    receivers = torch.arange(atoms).repeat_interleave(NEIGHBORS)
    sizes = (atoms, layout_dim(module.in_layout)), (edges, module.num_weights, 32)
    x, w = (torch.randn(*size, generator=generator) for size in sizes)
    y = spherical_harmonics(torch.randn(edges, 3, generator=generator), lmax)
    return with_and_without(lambda x, y, w: module(x, y, senders, receivers, w), [x, y, w])


def with_and_without(call: Callable, inputs: list[torch.Tensor]) -> tuple[dict[str, Callable], list[torch.Tensor]]:
    """The kernel and PyTorch's operations, which must agree."""
    with torch.no_grad():
        kernel, reference = (with_kernels(CHOICES[who], call)(*inputs) for who in ("kernel", "PyTorch"))
    if float((kernel - reference).abs().max()) > 1e-5 * float(reference.abs().max()):
        raise SystemExit("kernel and PyTorch disagree: nothing is timed")
    return {"kernel": call, "PyTorch": call}, inputs


def grid_product(which: str, lmax: int, batch: int) -> tuple[dict[str, Callable], list[torch.Tensor]]:
    make, couplings = GRIDS[which]
    layout = natural_layout(lmax, 64)
    product = make(layout, layout, range(which == "bracket", lmax + 1), couplings=couplings)
    generator = torch.Generator().manual_seed(0)
    sizes = *[(batch, layout_dim(layout))] * 2, (product.num_weights, product.channels)
    inputs = [torch.randn(*size, generator=generator) for size in sizes]
    calls = {"kernel": product, "PyTorch": product}
    with torch.no_grad():
        results = [with_kernels(CHOICES[who], call)(*inputs) for who, call in calls.items()]
    if float((results[0] - results[1]).abs().max()) > 1e-5 * float(results[1].abs().max()):
        raise SystemExit("the grid products disagree: nothing is timed")
    return calls, inputs


def whole_model(name: str, preset: str, product: str | None) -> dict[str, Callable]:
    """By mode: a frozen model's energies and forces, and a training step of another."""
    random = np.random.default_rng(0)
    frames = []
    for _ in range(5):
        atoms = ase.build.molecule("C60")[:27]
        positions, numbers = atoms.positions + random.normal(scale=0.05, size=(27, 3)), random.choice([1, 6, 8], 27)
        frames.append({"positions": positions, "numbers": numbers, "cell": np.zeros((3, 3)), "pbc": (False,) * 3})
    torch.manual_seed(0)
    frozen, trained = (build_model(name, preset=preset, elements=[1, 6, 8], **({"product": product} if product else {})) for _ in range(2))
    graph = Batch.from_data_list([AtomicGraph.build(**frame, cutoff=frozen.cutoff) for frame in frames])
    frozen.freeze()
    trained.train()
    weights = list(trained.parameters())

    def predict() -> torch.Tensor:
        found = frozen(graph)
        return torch.cat([found["energy"], found["forces"].flatten()])

    @torch.enable_grad()
    def step() -> torch.Tensor:
        found = trained(graph)
        loss = found["energy"].square().mean() + found["forces"].square().mean()
        return torch.cat([slope.flatten() for slope in torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)])

    calls = {"energies and forces": predict, "training step": step}
    for call in calls.values():
        kernel, plain = (with_kernels(choice, call)() for choice in ("auto", "off"))
        if float((kernel - plain).norm()) > 1e-4 * float(plain.norm()):
            raise SystemExit(f"{name} with and without kernels disagree: nothing is timed")
    return calls


def measure_models(quick: bool, only: str) -> list[dict]:
    rows = []
    for words in MODELS:
        case = "model " + " ".join(filter(None, words))
        if only not in case:
            continue
        for mode, call in whole_model(*words).items():
            chosen = {"kernel": with_kernels("auto", call), "PyTorch": with_kernels("off", call)}
            seconds = compare_calls(chosen, {who: [] for who in chosen}, "forward", 5 if quick else 15)
            medians = {who: statistics.median(times) for who, times in seconds.items()}
            for who, median in medians.items():
                row = {"case": case, "mode": mode, "by": who, "median_ms": round(1e3 * median, 3)}
                row |= {"kernel_times_faster": round(median / medians["kernel"], 2), "share_of_bandwidth": ""}
                rows.append(row | describe_surroundings(torch.float32))
                print(row, flush=True)
    return rows


def measure(edges: list[int], quick: bool, only: str) -> None:
    warnings.filterwarnings("ignore", module="e3nn")
    limit = machine_limits(torch.float32)[1]
    cases = {f"convolution, {c} channels, degrees 0..{l}, {e} edges": (convolution, c, l, e) for e in edges for c, l in SIZES}
    cases |= {
        f"{which} grid product, degrees 0..{l}, {batch} rows": (grid_product, which, l, batch)
        for batch, degrees in BATCHES.items()
        for which in GRIDS
        for l in degrees
    }
    cases |= {f"symmetric contraction, {c} channels, degrees 0..{l}": (contraction_of, c, l) for c, l in SIZES}
    frames = {"so2_mixed": SO2MixedConvolution, "so2_gaunt": SO2GauntConvolution}
    cases |= {f"{name}, degrees 0..6, 10000 edges": (in_frames, make, 6, 10_000) for name, make in frames.items()}
    if models := measure_models(quick, only):
        append_rows(RESULTS, models)
    for name, (make, *arguments) in {"tiles": (tile,), **cases}.items():
        if only not in name:
            continue
        begin, rows = time.perf_counter(), []
        calls, inputs = make(*arguments)
        for mode in MODES:
            constants = (3,) if make is tile else ()
            chosen = calls if mode == "forward" else {who: second_derivative(call, inputs, constants) for who, call in calls.items()}
            chosen = {who: with_kernels(CHOICES[who], call) for who, call in chosen.items()}
            seconds = compare_calls(chosen, dict.fromkeys(chosen, inputs), "forward", 5 if quick else 15)
            medians = {who: statistics.median(times) for who, times in seconds.items()}
            moved = 4 * (sum(x.numel() for x in inputs) + calls["kernel"](*inputs).numel())
            for who, median in medians.items():
                row = {"case": name, "mode": mode, "by": who, "median_ms": round(1e3 * median, 3)}
                row |= {"kernel_times_faster": round(median / medians["kernel"], 2)}
                row |= {"share_of_bandwidth": round(moved / median / limit, 3) if mode == "forward" else ""}
                rows.append(row | describe_surroundings(torch.float32))
                print(row, flush=True)
        append_rows(RESULTS, rows)
        print(f"{name}: {time.perf_counter() - begin:.0f} s")


def memory(edges: list[int]) -> None:
    """How far the peak of a process rises by the convolution and its second derivatives, each contender in one of its own."""
    rows = []
    for count in edges:
        for channels, lmax in SIZES:
            found = {}
            for who in ("kernel", "e3nn"):
                command = [sys.executable, "-W", "ignore", __file__, "peak", "--case", who, str(channels), str(lmax), str(count)]
                found[who] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            case = f"convolution, {channels} channels, degrees 0..{lmax}, {count} edges"
            for who, megabytes in found.items():
                rows.append({"case": case, "by": who, "peak_mb": megabytes, "share_of_e3nn": round(megabytes / found["e3nn"], 3)})
                print(rows[-1], flush=True)
    append_rows(RESULTS.with_name("kernels_memory.csv"), [row | describe_surroundings(torch.float32) for row in rows])


def peak(who: str, channels: int, lmax: int, edges: int) -> None:
    """Prints the rise in MB, by the second call: the first compiles."""
    calls, inputs = convolution(channels, lmax, NEIGHBORS)
    step = with_kernels(CHOICES[who], second_derivative(calls[who], inputs, ()))
    step(*inputs)
    calls, inputs = convolution(channels, lmax, edges, check=False)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with_kernels(CHOICES[who], second_derivative(calls[who], inputs, ()))(*inputs)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


def first() -> None:
    """Seconds of an operation with its first derivatives, without imports: compiled, in a later process, and called again."""
    rows = []
    for case in FIRST:
        command, found = [sys.executable, "-W", "ignore", __file__, "once", "--only", case], []
        with tempfile.TemporaryDirectory() as folder:
            for _ in range(2):
                environment = os.environ | {"EQUIMOL_CACHE": folder}
                found += map(float, subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout.split())
        rows.append({"case": case, "first_s": found[0], "later_process_s": found[2], "second_call_s": found[1]})
        print(rows[-1], flush=True)
    append_rows(RESULTS.with_name("kernels_first.csv"), [row | describe_surroundings(torch.float32) for row in rows])


def once(case: str) -> None:
    """Prints the seconds of two calls."""
    make, *arguments = FIRST[case]
    call, inputs = make(*arguments)
    inputs = [x.requires_grad_() for x in inputs]
    os.environ["EQUIMOL_KERNELS"] = "require"
    for _ in range(2):
        begin = time.perf_counter()
        result = call(*inputs)
        torch.autograd.grad(result, inputs, torch.ones_like(result))
        print(round(time.perf_counter() - begin, 3))


def edges_of(convolution: torch.nn.Module, edges: int = 20) -> tuple[Callable, list[torch.Tensor]]:
    """A convolution of few edges, and its inputs."""
    ends = torch.arange(edges)
    sizes = (edges, layout_dim(convolution.in_layout)), (edges, (convolution.lmax_edge + 1) ** 2)
    inputs = [torch.randn(*size) for size in (*sizes, (edges, convolution.num_weights, convolution.channels))]
    return lambda x, y, w: convolution(x, y, ends, ends, w), inputs


def product_of(lmax: int, couplings: str) -> tuple[Callable, list[torch.Tensor]]:
    make, _ = GRIDS[couplings]
    layout = natural_layout(lmax, 64)
    product = make(layout, layout, lmax, couplings=GRIDS[couplings][1])
    return product, [torch.randn(10, layout_dim(layout)), torch.randn(10, layout_dim(layout)), torch.randn(product.num_weights, 64)]


def small_tile() -> tuple[Callable, list[torch.Tensor]]:
    shapes = (2, 3, 3, 32), (2, 3, 96), (2, 3, 96), (96, 32), (2, 3), (2, 3)
    return lambda *x: torch.cat([y.flatten() for y in tiles(*x, 64, Tail(10.0, smooth=True))]), [torch.randn(*shape) for shape in shapes]


#: of each case, what makes a call and its inputs
def contraction() -> tuple[Callable, list[torch.Tensor]]:
    """Of MACE's large models, for ten atoms of three elements."""
    module, species = SymmetricContraction(natural_layout(3, 128), 2, 3, 3), torch.arange(10) % 3
    inputs = [torch.randn(10, layout_dim(module.in_layout)), torch.randn(3, module.num_weights, 128)]
    return lambda x, w: module(x, w, species), inputs


FIRST = {
    "convolution, degrees 0..1": (lambda: edges_of(ClebschGordanConvolution(natural_layout(1, 64), 3, 3)),),
    "convolution, degrees 0..2": (lambda: edges_of(ClebschGordanConvolution(natural_layout(2, 128), 3, 3)),),
    "so2_mixed, degrees 0..3": (lambda: edges_of(SO2MixedConvolution(natural_layout(3, 32), 3, 3)),),
    "so2_mixed, degrees 0..6": (lambda: edges_of(SO2MixedConvolution(natural_layout(6, 32), 6, 6)),),
    "so2_gaunt, degrees 0..6": (lambda: edges_of(SO2GauntConvolution(natural_layout(6, 32), 6, 6)),),
    "Gaunt grid product, degrees 0..4": (product_of, 4, "Gaunt"),
    "complete grid product, degrees 0..4": (product_of, 4, "complete"),
    "Gaunt grid product, degrees 0..8": (product_of, 8, "Gaunt"),
    "symmetric contraction, degrees 0..2": (contraction,),
    "tiles": (small_tile,),
}


def table() -> None:
    """The last row of each case, mode and contender, as Markdown."""
    with open(RESULTS, newline="") as file:
        last = {(row["case"], row["mode"], row["by"]): row for row in csv.DictReader(file)}
    print("| | | kernel, ms | share of bandwidth | PyTorch, ms | e3nn, ms |\n|---|---|---|---|---|---|")
    for case, mode in dict.fromkeys(key[:2] for key in last):
        rows = {by: row for (c, m, by), row in last.items() if (c, m) == (case, mode)}
        others = [f"{rows[by]['median_ms']} ({rows[by]['kernel_times_faster']}x)" if by in rows else "" for by in ("PyTorch", "e3nn")]
        print(f"| {case} | {mode} | {rows['kernel']['median_ms']} | {rows['kernel']['share_of_bandwidth']} | {' | '.join(others)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", nargs="?", choices=("measure", "memory", "first", "once", "table", "peak"), default="measure")
    parser.add_argument("--edges", type=int, nargs="+", default=[5000, 50000])
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    parser.add_argument("--only", default="", help="cases whose names contain this")
    parser.add_argument("--case", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    match args.command:
        case "table":
            table()
        case "memory":
            memory(args.edges)
        case "first":
            first()
        case "once":
            once(args.only)
        case "peak":
            peak(args.case[0], *map(int, args.case[1:]))
        case _:
            measure(args.edges, args.quick, args.only)


if __name__ == "__main__":
    main()
