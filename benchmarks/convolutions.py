"""Where do Gaunt, eSCN and Clebsch-Gordan convolutions cross? Channel-wise convolutions over 1 to 100,000 edges, the same work for each.

    python benchmarks/convolutions.py --lmax 6                 # appends to results/convolutions.csv
    python benchmarks/convolutions.py plot

Every candidate takes the features of the senders, the harmonics of the edges and a weight per edge, path (or degree) and channel, and
sums at the receivers. `so2` is batched eSCN with the weights of `clebsch_gordan`, with paths summed; `so2_gaunt` and `gaunt_grid` give
equal numbers for equal weights, which is checked before anything is timed. Features, edges and channels are the same for all.
"""

import argparse
import csv
import statistics
from pathlib import Path

import torch

from equimol.bench import append_rows, compare_calls, describe_surroundings
from equimol.o3 import layout_dim, natural_layout, spherical_harmonics
from equimol.tensor_products import EDGE_CONVOLUTIONS

RESULTS = Path(__file__).parent / "results"


def measure(lmax: int, channels: int, edges: list[int], names: list[str], path: Path) -> None:
    """Median times, forward and with the second derivative, of each convolution at each number of edges."""
    layout = natural_layout(lmax, channels)
    convolutions = {name: EDGE_CONVOLUTIONS[name](layout, lmax, lmax) for name in names}
    for count in edges:
        random = torch.Generator().manual_seed(count)
        atoms = max(1, count // 20)
        receivers = torch.sort(torch.randint(atoms, (count,), generator=random)).values
        senders = torch.randint(atoms, (count,), generator=random)
        features = torch.randn(atoms, layout_dim(layout), generator=random)
        harmonics = spherical_harmonics(torch.randn(count, 3, generator=random), lmax)
        calls, inputs = {}, {}
        for name, convolution in convolutions.items():
            calls[name] = lambda x, y, w, call=convolution, s=senders, r=receivers: call(x, y, s, r, w)
            inputs[name] = [features, harmonics, torch.randn(count, convolution.num_weights, channels, generator=random)]
        same = [name for name in ("gaunt_grid", "so2_gaunt") if name in names]
        results = [calls[name](*inputs["gaunt_grid"]) for name in same]
        if len(results) == 2:
            torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)
        for mode in ("forward", "second derivative"):
            if mode != "forward" and count > 10_000:
                continue  # graphs of this size do not fit into memory twice
            rows = []
            for name, seconds in compare_calls(calls, inputs, mode).items():
                low, median, high = statistics.quantiles(seconds, n=4)
                row = {"convolution": name, "lmax": lmax, "channels": channels, "edges": count, "atoms": atoms, "mode": mode}
                row |= {"weights_per_edge": convolutions[name].num_weights * channels}
                row |= {"median_ms": round(1e3 * median, 3), "spread_ms": round(1e3 * (high - low), 3)}
                print(row, flush=True)
                rows.append(row | describe_surroundings(torch.float32))
            append_rows(path, rows)


def plot(path: Path) -> None:
    """Microseconds per edge over the number of edges."""
    from matplotlib.figure import Figure

    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    latest = {(r["convolution"], r["edges"], r["mode"]): r for r in rows}.values()
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    for axes, mode in zip(figure.subplots(1, 2), ("forward", "second derivative"), strict=True):
        for name in dict.fromkeys(r["convolution"] for r in latest):
            points = sorted(
                (int(r["edges"]), 1e3 * float(r["median_ms"]) / int(r["edges"]))
                for r in latest
                if (r["convolution"], r["mode"]) == (name, mode)
            )
            if points:
                axes.plot(*zip(*points, strict=True), "o-", ms=3, label=name)
        axes.set(title=mode, xlabel="edges", ylabel="µs per edge", xscale="log", yscale="log")
        axes.grid(alpha=0.3, which="both")
    figure.axes[0].legend(frameon=False)
    figure.savefig(path.with_suffix(".svg"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", nargs="?", choices=("plot",))
    parser.add_argument("--lmax", type=int, default=6)
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--edges", type=int, nargs="+", default=[1, 10, 100, 1_000, 10_000, 100_000])
    parser.add_argument("--convolutions", nargs="+", default=list(EDGE_CONVOLUTIONS))
    parser.add_argument("--csv", type=Path, default=RESULTS / "convolutions.csv")
    options = parser.parse_args()
    if options.command == "plot":
        plot(options.csv)
    else:
        measure(options.lmax, options.channels, options.edges, options.convolutions, options.csv)


if __name__ == "__main__":
    main()
