"""How long does one channel-wise tensor product take, per basis and degree, against e3nn? Appends rows to results/tensor_products.csv."""

import argparse
from pathlib import Path

from equimol.bench import print_table, tensor_products


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    parser.add_argument("--lmax", type=int, nargs="+", default=[1, 2, 3, 4], help="degrees to measure")
    parser.add_argument("--batch", type=int, default=1000)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--csv", type=Path, default=Path(__file__).parent / "results" / "tensor_products.csv")
    options = parser.parse_args()
    rows = tensor_products(
        options.lmax, channels=options.channels, batch=options.batch, device=options.device, quick=options.quick, csv=options.csv
    )
    print_table(rows)


if __name__ == "__main__":
    main()
