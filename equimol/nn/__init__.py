"""Layers that several models share."""

from equimol.nn.linear import DegreeLinear, ElementLinear, ScalarMLP
from equimol.nn.radial import BesselBasis, polynomial_envelope, xplor_envelope

__all__ = ["BesselBasis", "DegreeLinear", "ElementLinear", "ScalarMLP", "polynomial_envelope", "xplor_envelope"]
