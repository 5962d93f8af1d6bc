"""Gaunt products in the 2-D Fourier basis of the torus: convolutions of Fourier series, carried out by FFT."""

from equimol.o3 import TorusGrid
from equimol.tensor_products.gaunt import GauntConvolution, GauntPower, GauntProduct


class GauntFourier(GauntProduct):
    """Product of two features as Fourier series."""

    Sampling = TorusGrid


class GauntFourierConvolution(GauntConvolution):
    """Sum over neighbours of products with the filter of their edge, as Fourier series."""

    Sampling = TorusGrid


class GauntFourierPower(GauntPower):
    """Powers of a feature as Fourier series."""

    Sampling = TorusGrid
