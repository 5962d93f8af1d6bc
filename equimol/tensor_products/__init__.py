"""Equivariant products: of two features, along edges, and of many copies of a feature. One table of each kind."""

from equimol.tensor_products.base import EdgeConvolution, ManyBodyProduct, TensorProduct
from equimol.tensor_products.bracket_grid import BracketGrid
from equimol.tensor_products.clebsch_gordan import ClebschGordan
from equimol.tensor_products.clebsch_gordan_convolution import ClebschGordanConvolution
from equimol.tensor_products.complete_grid import CompleteGrid, CompleteGridConvolution, CompleteGridPower
from equimol.tensor_products.from_irreps import IrrepsProduct, from_irreps
from equimol.tensor_products.gaunt_fourier import GauntFourier, GauntFourierConvolution, GauntFourierPower
from equimol.tensor_products.gaunt_grid import GauntGrid, GauntGridConvolution, GauntGridPower
from equimol.tensor_products.matrix import MatrixProduct
from equimol.tensor_products.so2 import SO2Convolution, SO2GauntConvolution, SO2MixedConvolution
from equimol.tensor_products.symmetric_contraction import SymmetricContraction
from equimol.tensor_products.vector_signal import VectorSignal

TENSOR_PRODUCTS: dict[str, type[TensorProduct]] = {
    "clebsch_gordan": ClebschGordan,
    "gaunt_fourier": GauntFourier,
    "gaunt_grid": GauntGrid,
    "bracket_grid": BracketGrid,
    "complete_grid": CompleteGrid,
    "vector_signal": VectorSignal,
    "matrix": MatrixProduct,
}
EDGE_CONVOLUTIONS: dict[str, type[EdgeConvolution]] = {
    "clebsch_gordan": ClebschGordanConvolution,
    "gaunt_fourier": GauntFourierConvolution,
    "gaunt_grid": GauntGridConvolution,
    "complete_grid": CompleteGridConvolution,
    "so2": SO2Convolution,
    "so2_mixed": SO2MixedConvolution,
    "so2_gaunt": SO2GauntConvolution,
}
MANY_BODY_PRODUCTS: dict[str, type[ManyBodyProduct]] = {
    "clebsch_gordan": SymmetricContraction,
    "gaunt_fourier": GauntFourierPower,
    "gaunt_grid": GauntGridPower,
    "complete_grid": CompleteGridPower,
}

__all__ = [
    "EDGE_CONVOLUTIONS",
    "MANY_BODY_PRODUCTS",
    "TENSOR_PRODUCTS",
    "BracketGrid",
    "ClebschGordan",
    "ClebschGordanConvolution",
    "CompleteGrid",
    "CompleteGridConvolution",
    "CompleteGridPower",
    "EdgeConvolution",
    "GauntFourier",
    "GauntFourierConvolution",
    "GauntFourierPower",
    "GauntGrid",
    "GauntGridConvolution",
    "GauntGridPower",
    "IrrepsProduct",
    "ManyBodyProduct",
    "MatrixProduct",
    "SO2Convolution",
    "SO2GauntConvolution",
    "SO2MixedConvolution",
    "SymmetricContraction",
    "TensorProduct",
    "VectorSignal",
    "from_irreps",
]
