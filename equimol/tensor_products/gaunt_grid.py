"""Gaunt products on a grid of points on the sphere: all couplings with l1+l2+l3 even, in fixed proportions within a degree."""

from equimol.o3 import sphere_grid
from equimol.tensor_products.sphere_convolution import SphereConvolution
from equimol.tensor_products.sphere_power import GauntPower
from equimol.tensor_products.sphere_product import SphereProduct


class GauntGrid(SphereProduct):
    """Pointwise product of two functions on the sphere.

    ``algorithm``: "lebedev", "gauss_legendre" or "separable"; "auto" takes the fastest by measurement: rings of points where there is a
    kernel (kernels/cpu/signals.py), otherwise what ``grid`` says.
    """

    couples = "even"
    make_grid = staticmethod(sphere_grid)


class GauntGridConvolution(SphereConvolution):
    """Sum over neighbours of products with the filter of their edge, on the sphere."""

    couplings = "even"
    make_grid = staticmethod(sphere_grid)


class GauntGridPower(GauntPower):
    """Powers of a feature as a function on the sphere: one synthesis, one analysis."""

    make_grid = staticmethod(sphere_grid)
