"""How long does one tensor product take, per algorithm and degree, against e3nn on the same couplings?

python benchmarks/tensor_products.py                  # channel-wise, as models use them; appends to results/tensor_products.csv
python benchmarks/tensor_products.py --settings mimo simo siso --lmax 2 4 6 8 --batch 10000 --channels 1
python benchmarks/tensor_products.py --algorithms     # which grid and which convolution "auto" should take
python benchmarks/tensor_products.py plot             # results/tensor_products.csv -> .svg: runtime, per degree of freedom, roofline
python benchmarks/tensor_products.py table            # the same rows as Markdown
"""

import argparse
import csv
import statistics
from pathlib import Path

import torch

from equimol.bench import SETTINGS, append_rows, compare_calls, describe_surroundings, print_table, tensor_products
from equimol.o3 import layout_dim, natural_layout
from equimol.o3.sphere import ALGORITHMS
from equimol.tensor_products import TENSOR_PRODUCTS, CompleteGrid, GauntFourier, GauntGrid

RESULTS = Path(__file__).parent / "results"


def algorithms(lmaxes: list[int], channels: int, batch: int) -> None:
    """Times of every algorithm of the grids and of the Fourier product, channel-wise; prints and appends them."""
    rows = []
    for lmax in lmaxes:
        layout = natural_layout(lmax, channels)
        products = {("gaunt_grid", name): GauntGrid(layout, layout, lmax, couplings="even", algorithm=name) for name in ALGORITHMS}
        products |= {("complete_grid", name): CompleteGrid(layout, layout, lmax, algorithm=name) for name in ALGORITHMS}
        fourier = ("direct", "fft") if lmax <= 3 else ("fft",)  # the derivatives of the direct sum take seconds
        products |= {("gaunt_fourier", name): GauntFourier(layout, layout, lmax, couplings="even", algorithm=name) for name in fourier}
        x, y = torch.randn(batch, layout_dim(layout)), torch.randn(batch, layout_dim(layout))
        inputs = {key: [x, y, torch.ones(product.num_weights, channels)] for key, product in products.items()}
        for mode in ("forward", "second derivative"):
            for (product, algorithm), seconds in compare_calls(products, inputs, mode).items():
                row = {"product": product, "algorithm": algorithm, "lmax": lmax, "channels": channels, "batch": batch, "mode": mode}
                row |= {"points": products[product, algorithm].grid.points, "median_ms": round(1e3 * statistics.median(seconds), 3)}
                print(row, flush=True)
                rows.append(row | describe_surroundings(torch.float32))
    append_rows(RESULTS / "algorithms.csv", rows)


def plot(path: Path) -> None:
    """Forward time and second-derivative time over lmax; time per degree of freedom; fraction of the roofline."""
    from matplotlib.figure import Figure

    latest = read_latest(path)
    panels = [
        ("forward", "median_ms", "forward, µs per product of 64 channels"),
        ("second derivative", "median_ms", "forward + backward + double backward, µs"),
        ("forward", "us_per_degree_of_freedom", "forward, ns per degree of freedom"),
        ("forward", "roofline_fraction", "fraction of this machine's roofline"),
    ]
    figure = Figure(figsize=(11, 7), layout="constrained")
    for axes, (mode, column, title) in zip(figure.subplots(2, 2).flat, panels, strict=True):
        for name, couplings in dict.fromkeys((r["product"], r["couplings"]) for r in latest):
            points = sorted(
                (int(r["lmax"]), float(r[column]) * (1 if column == "roofline_fraction" else 1000 / int(r["batch"])))
                for r in latest
                if (r["product"], r["couplings"], r["mode"]) == (name, couplings, mode) and r[column]
            )
            if points:
                color = {"e3nn": "black", "e3nn compiled": "0.6"}.get(name) or f"C{list(TENSOR_PRODUCTS).index(name)}"
                dashes = {"even": "-", "all": "--", "odd": ":"}[couplings]
                axes.plot(*zip(*points, strict=True), "o", ls=dashes, ms=3, color=color, label=f"{name}, {couplings}")
        axes.set(title=title, xlabel="lmax", yscale="log")
        axes.grid(alpha=0.3, which="both")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8)
    figure.savefig(path.with_suffix(".svg"))


def table(path: Path) -> None:
    """µs per pair of features, and how many times faster than e3nn with the same couplings that is, a table per mode."""
    latest = read_latest(path)
    lmaxes = sorted({int(r["lmax"]) for r in latest})
    for mode in ("forward", "forward+backward", "second derivative"):
        print(f"\n{mode}\n\n| | couplings | " + " | ".join(f"lmax {l}" for l in lmaxes) + " |\n|---|---|" + "---|" * len(lmaxes))
        for name, couplings in sorted({(r["product"], r["couplings"]) for r in latest}, key=lambda key: (key[1], key[0])):
            cells = {int(r["lmax"]): r for r in latest if (r["product"], r["couplings"], r["mode"]) == (name, couplings, mode)}
            print(f"| `{name}` | {couplings} | " + " | ".join(_cell(cells.get(l)) for l in lmaxes) + " |")


def _cell(row: dict | None) -> str:
    if row is None:
        return ""
    ratio = "" if row["product"] == "e3nn" or not row["e3nn_over_this"] else f" ({float(row['e3nn_over_this']):.1f}x)"
    return f"{1000 * float(row['median_ms']) / int(row['batch']):.3g}{ratio}"


def read_latest(path: Path) -> list[dict]:
    """The channel-wise rows of a file of results, later ones in the place of earlier ones."""
    with open(path, newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["setting"] == "channel-wise"]
    return list({(r["product"], r["couplings"], r["lmax"], r["mode"]): r for r in rows}.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", nargs="?", choices=("plot", "table"))
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    parser.add_argument("--algorithms", action="store_true", help="time the algorithms of the grids against each other instead")
    parser.add_argument("--compile-peer", action="store_true", help="e3nn under torch.compile as well")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=["channel-wise"])
    parser.add_argument("--products", nargs="+", metavar="NAME", help="only these")
    parser.add_argument("--lmax", type=int, nargs="+", default=[1, 2, 3, 4, 6], help="degrees to measure")
    parser.add_argument("--batch", type=int, default=1000)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--csv", type=Path, default=RESULTS / "tensor_products.csv")
    options = parser.parse_args()
    if options.command == "plot":
        return plot(options.csv)
    if options.command == "table":
        return table(options.csv)
    if options.algorithms:
        return algorithms(options.lmax, options.channels, options.batch)
    more = {"quick": options.quick, "compile_peer": options.compile_peer, "csv": options.csv}
    size = {"channels": options.channels, "batch": options.batch, "device": options.device}
    for setting in options.settings:
        rows = tensor_products(options.lmax, setting=setting, products=options.products, **size, **more)
        print_table(rows)


if __name__ == "__main__":
    main()
