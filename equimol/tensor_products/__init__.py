"""Equivariant products: of two features, along edges, and of many copies of a feature. One table of each kind."""

from equimol.tensor_products.base import EdgeConvolution, ManyBodyProduct, TensorProduct
from equimol.tensor_products.clebsch_gordan import ClebschGordan
from equimol.tensor_products.clebsch_gordan_convolution import ClebschGordanConvolution
from equimol.tensor_products.gaunt_fourier import GauntFourier, GauntFourierConvolution, GauntFourierPower
from equimol.tensor_products.gaunt_grid import GauntGrid, GauntGridConvolution, GauntGridPower
from equimol.tensor_products.symmetric_contraction import SymmetricContraction

TENSOR_PRODUCTS: dict[str, type[TensorProduct]] = {
    "clebsch_gordan": ClebschGordan,
    "gaunt_fourier": GauntFourier,
    "gaunt_grid": GauntGrid,
}
EDGE_CONVOLUTIONS: dict[str, type[EdgeConvolution]] = {
    "clebsch_gordan": ClebschGordanConvolution,
    "gaunt_fourier": GauntFourierConvolution,
    "gaunt_grid": GauntGridConvolution,
}
MANY_BODY_PRODUCTS: dict[str, type[ManyBodyProduct]] = {
    "clebsch_gordan": SymmetricContraction,
    "gaunt_fourier": GauntFourierPower,
    "gaunt_grid": GauntGridPower,
}

__all__ = [
    "EDGE_CONVOLUTIONS",
    "MANY_BODY_PRODUCTS",
    "TENSOR_PRODUCTS",
    "ClebschGordan",
    "ClebschGordanConvolution",
    "EdgeConvolution",
    "GauntFourier",
    "GauntFourierConvolution",
    "GauntFourierPower",
    "GauntGrid",
    "GauntGridConvolution",
    "GauntGridPower",
    "ManyBodyProduct",
    "SymmetricContraction",
    "TensorProduct",
]
