"""Gaunt products in the 2-D Fourier basis of the torus (Luo et al. 2024, arXiv:2401.10216): convolutions of Fourier series."""

from collections.abc import Iterable

import torch
from jaxtyping import Complex
from torch import Tensor

from equimol.o3 import Layout, TorusGrid, lmax_of
from equimol.tensor_products.sphere_convolution import SphereConvolution
from equimol.tensor_products.sphere_power import GauntPower
from equimol.tensor_products.sphere_product import SphereProduct

DIRECT_UP_TO = 0  # of the smaller lmax; benchmarks/tensor_products.py --algorithms


class GauntFourier(SphereProduct):
    """Product of two features as Fourier series: a convolution.

    ``algorithm``: "direct" is its sum, O(lmax^4); "fft" multiplies values on the torus, O(lmax^2 log lmax) and the tables; "auto" takes
    the faster one by measurement, and the attribute says which.
    """

    couples = "even"
    make_grid = TorusGrid

    def __init__(
        self,
        in1: Layout,
        in2: Layout,
        out_degrees: int | Iterable[int],
        *,
        couplings: str = "all",
        sum_paths: bool = True,
        rank: int | None = None,
        algorithm: str = "auto",
    ) -> None:
        super().__init__(in1, in2, out_degrees, couplings=couplings, sum_paths=sum_paths, rank=rank)
        if algorithm not in ("auto", "direct", "fft"):
            raise ValueError(f"algorithm must be auto, direct or fft, got {algorithm!r}")
        self.algorithm = algorithm
        if algorithm == "auto":
            self.algorithm = "direct" if min(lmax_of(in1), lmax_of(in2)) <= DIRECT_UP_TO else "fft"

    def pointwise(self, x: Tensor, y: Tensor) -> Tensor:
        """Coefficients of the product of two functions."""
        if self.algorithm == "fft":
            return super().pointwise(x, y)
        return self.grid.integral(convolve(self.grid.series(x), self.grid.series(y), self.grid.rows - 1, self.grid.lmax_out))

    def flops(self) -> int:
        if self.algorithm == "fft":
            return super().flops()
        l1, l2 = lmax_of(self.in1), lmax_of(self.in2)
        tables = sum(4 * (2 * l + 1) * (l + 1) ** 3 for l in (l1, l2)) + 4 * self.grid.rows * (self.grid.lmax_out + 1) ** 3
        terms = 8 * (2 * l1 + 1) ** 2 * self.grid.rows * (self.grid.lmax_out + 1)
        return self.channels * self.rank * (tables + terms) * len(self.products)


class GauntFourierConvolution(SphereConvolution):
    """Sum over neighbours of products with the filter of their edge, as Fourier series."""

    couplings = "even"
    make_grid = TorusGrid


class GauntFourierPower(GauntPower):
    """Powers of a feature as Fourier series."""

    make_grid = TorusGrid


def convolve(
    f: Complex[Tensor, "... u1 v1 channels"], g: Complex[Tensor, "... u2 v2 channels"], degree: int, lmax_out: int
) -> Complex[Tensor, "... u v channels"]:
    """Sum over u1, v1 of F_u1,v1 G_u-u1,v-v1 for u = 0 .. degree and v = 0 .. lmax_out. The series have v >= 0, of real functions."""
    l1, l2 = f.shape[-2] - 1, g.shape[-2] - 1
    f, g = _with_negative(f), _with_negative(g)
    # zeros around g, so that every term is one window of it
    before = (l1, max(0, degree + l1 - l2)), (l1, max(0, lmax_out + l1 - l2))
    g = torch.nn.functional.pad(g, (0, 0, *before[1], *before[0]))
    total = 0
    for u in range(-l1, l1 + 1):
        for v in range(-l1, l1 + 1):
            window = g.narrow(-3, l1 + l2 - u, degree + 1).narrow(-2, l1 + l2 - v, lmax_out + 1)
            total = total + f[..., l1 + u, None, l1 + v, None, :] * window
    return total


def _with_negative(f: Complex[Tensor, "... u v channels"]) -> Complex[Tensor, "... u all_v channels"]:
    """All v from -l to l."""
    return torch.cat([f[..., 1:, :].flip(-3, -2).conj(), f], dim=-2)
