"""One interface, three bases: the same Gaunt product on a sphere's grid, in Fourier space, and as a Clebsch-Gordan sum."""

import torch

from equimol.o3 import format_irreps, natural_layout, rotate
from equimol.tensor_products import TENSOR_PRODUCTS


def main() -> None:
    torch.manual_seed(0)
    layout = natural_layout(lmax=2, channels=4)
    print("features:", format_irreps(layout))
    x, y = torch.randn(2, 5, 4 * 9, dtype=torch.float64)
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))  # proper or improper: both must hold

    for name, cls in TENSOR_PRODUCTS.items():
        product = cls(layout, layout, 2, couplings="even", rank=1).double()
        weights = torch.ones(product.num_weights, 4, dtype=torch.float64)
        out = product(x, y, weights)
        rotated = product(rotate(x, layout, rotation), rotate(y, layout, rotation), weights)
        error = (rotated - rotate(out, product.out, rotation)).abs().max()
        print(f"{name:16} first numbers {out[0, :3].tolist()}  equivariant to {error:.0e}")


if __name__ == "__main__":
    main()
