"""Gaunt products on a grid of points on the sphere (Gauss-Legendre or Lebedev, whichever needs fewer points)."""

from equimol.o3 import SphereGrid
from equimol.tensor_products.gaunt import GauntConvolution, GauntPower, GauntProduct


class GauntGrid(GauntProduct):
    """Product of two features as functions on the sphere."""

    Sampling = SphereGrid


class GauntGridConvolution(GauntConvolution):
    """Sum over neighbours of products with the filter of their edge, on the sphere."""

    Sampling = SphereGrid


class GauntGridPower(GauntPower):
    """Powers of a feature as a function on the sphere."""

    Sampling = SphereGrid
