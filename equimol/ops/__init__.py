"""Numerical primitives: each has a plain torch definition, differentiable to any order."""

from equimol.ops.convolution import CoupledSum, PathRows, TabulatedSum, coupled_sum, plain_coupled_sum, tabulated_sum
from equimol.ops.coupled_blocks import coupled_sum_by_blocks
from equimol.ops.dense import dense
from equimol.ops.filters import filtered_sum
from equimol.ops.frames import Entry, FramedSum, Rows, framed_sum, plain_framed_sum
from equimol.ops.polynomials import has_polynomials, plain_polynomials, polynomials
from equimol.ops.rings import Polynomial, RingProduct, ring_polynomial, ring_product
from equimol.ops.scatter import gather, scatter_sum
from equimol.ops.signals import Term, signal_product
from equimol.ops.slots import Slots

__all__ = [
    "CoupledSum",
    "Entry",
    "FramedSum",
    "PathRows",
    "Polynomial",
    "RingProduct",
    "Rows",
    "Slots",
    "TabulatedSum",
    "Term",
    "coupled_sum",
    "coupled_sum_by_blocks",
    "dense",
    "filtered_sum",
    "framed_sum",
    "gather",
    "has_polynomials",
    "plain_coupled_sum",
    "plain_framed_sum",
    "plain_polynomials",
    "polynomials",
    "ring_polynomial",
    "ring_product",
    "scatter_sum",
    "signal_product",
    "tabulated_sum",
]
