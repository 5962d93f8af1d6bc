"""One interface, many ways: products on the sphere with weights per degree, against the Clebsch-Gordan sum with the same weights."""

import torch

from equimol.o3 import format_irreps, natural_layout, rotate
from equimol.tensor_products import TENSOR_PRODUCTS, ClebschGordan


def main() -> None:
    torch.manual_seed(0)
    layout = natural_layout(lmax=2, channels=4)
    print("features:", format_irreps(layout))
    x, y = torch.randn(2, 5, 4 * 9, dtype=torch.float64)
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))  # proper or improper: both must hold

    for name, cls in TENSOR_PRODUCTS.items():
        product = cls(layout, layout, [1, 2], couplings=cls.couples, rank=1).double()
        plain = ClebschGordan(layout, layout, [1, 2], couplings=cls.couples, rank=1).double()
        weights = torch.ones(product.num_weights, 4, dtype=torch.float64)
        out = product(x, y, weights)
        rotated = product(rotate(x, layout, rotation), rotate(y, layout, rotation), weights)
        error = (rotated - rotate(out, product.out, rotation)).abs().max()
        same = torch.allclose(out, plain(x, y, weights), atol=1e-12)  # vector_signal and matrix weigh couplings in their own way
        like = "as" if same else "unlike"
        print(f"{name:16}{cls.couples:6}{format_irreps(product.out):28}{like} Clebsch-Gordan, equivariant to {error:.0e}")


if __name__ == "__main__":
    main()
