"""How well do R sets of weights per degree stand for free path weights? Fits W_p = t_p sum_r a_r(l1) b_r(l2) c_r(l3) to random W.

    python benchmarks/rank.py          # appends to results/rank.csv

Random Clebsch-Gordan path weights (standard normal, one per path) are fitted by alternating least squares from several starts; the
error is the norm of what is left, relative to the norm of the weights: 0 is a perfect fit, 1 is none. The table t_p of the sphere
products is nearly uniform, but it is part of the fit, as it is part of the product.
"""

import argparse
import statistics
from pathlib import Path

import torch

from equimol.bench import append_rows, describe_surroundings
from equimol.o3 import natural_layout
from equimol.tensor_products import ClebschGordan

RESULTS = Path(__file__).parent / "results"


def fit_error(product: ClebschGordan, weights: torch.Tensor, generator: torch.Generator, starts: int = 6, sweeps: int = 300) -> float:
    """The smallest relative error found."""
    blocks = [torch.tensor(column) for column in zip(*[(p.i1, p.i2) for p in product.paths], strict=True)] + [
        torch.tensor(product.out_blocks)
    ]
    sizes = [len(product.in1), len(product.in2), len(product.out)]
    strengths = torch.tensor(list(product.coefficients().values()), dtype=torch.float64)
    best = 1.0
    for _ in range(starts):
        factors = [torch.randn(n, product.rank, generator=generator, dtype=torch.float64) for n in sizes]
        for _ in range(sweeps):
            for k in range(3):  # the weights of one side enter linearly
                others = torch.ones(len(weights), product.rank, dtype=torch.float64) * strengths[:, None]
                for j in range(3):
                    if j != k:
                        others = others * factors[j][blocks[j]]
                matrix = torch.zeros(len(weights), sizes[k], product.rank, dtype=torch.float64)
                matrix[torch.arange(len(weights)), blocks[k]] = others
                ridge = 1e-9 * torch.eye(sizes[k] * product.rank, dtype=torch.float64)
                flat = matrix.flatten(1)
                factors[k] = torch.linalg.solve(flat.T @ flat + ridge, flat.T @ weights).view(sizes[k], product.rank)
        fitted = strengths * (factors[0][blocks[0]] * factors[1][blocks[1]] * factors[2][blocks[2]]).sum(-1)
        best = min(best, float((fitted - weights).norm() / weights.norm()))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lmax", type=int, nargs="+", default=[2, 3])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--draws", type=int, default=10)
    options = parser.parse_args()
    rows = []
    for lmax in options.lmax:
        for couplings in ("even", "all"):
            for rank in options.ranks:
                layout = natural_layout(lmax, 1)
                product = ClebschGordan(layout, layout, lmax, couplings=couplings, rank=rank)
                generator = torch.Generator().manual_seed(0)
                draws = [torch.randn(len(product.paths), generator=generator, dtype=torch.float64) for _ in range(options.draws)]
                errors = [fit_error(product, weights, generator) for weights in draws]
                row = {"lmax": lmax, "couplings": couplings, "paths": len(product.paths), "rank": rank, "draws": options.draws}
                row |= {"degrees_of_freedom": product.degrees_of_freedom}
                row |= {"median_error": round(statistics.median(errors), 4), "largest_error": round(max(errors), 4)}
                print(row, flush=True)
                rows.append(row | describe_surroundings(torch.float64))
    append_rows(RESULTS / "rank.csv", rows)


if __name__ == "__main__":
    main()
