"""Numerical primitives: each has a plain torch definition, differentiable to any order."""

from equimol.ops.dense import dense
from equimol.ops.scatter import gather, scatter_sum
from equimol.ops.slots import Slots

__all__ = ["Slots", "dense", "gather", "scatter_sum"]
