"""A potential that knows how far its energy may be off: last-layer uncertainty (LLPR), at the price of one small matrix product."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from equimol.data.graph import AtomicGraph
from equimol.models.base import ConservativePotential
from equimol.ops import scatter_sum

ENERGY_UNCERTAINTY = "energy_uncertainty"  # eV, one standard deviation of the energy of each system


class WithUncertainty(ConservativePotential):
    """The same energies and forces, and for each system one standard deviation of its energy, `energy_uncertainty` (eV).

    It speaks of energies alone, and of the kind of error that the calibration frames showed: far from them it is a warning, no measure.

    The last layer is seen as a linear regression on the last features (Bigi, Chong, Ceriotti, Grasselli 2024, arXiv:2403.02251):

        sigma^2 = alpha^2 F^T (C + r I)^-1 F,   C = sum over training frames of m m^T

    with F the sum of the features over the atoms of a system, and m their mean over those of a training frame: the loss of training
    counts energies per atom. Copies of a system in one are uncertain in the same way: sigma grows with their number.
    :func:`equimol.training.uncertainty.fit_uncertainty` finds C, r and alpha.

    Args:
        inner: a model with features.
        features: how many it has for each atom.
        calibration: how `factor` was found, as `equimol info` shows it. JSON-able.
    """

    factor: Float[Tensor, "features features"]  # alpha (C + r I)^-1/2, up to a rotation from the left; sigma is the length of factor F

    def __init__(self, inner: ConservativePotential, features: int, calibration: dict[str, Any]) -> None:
        super().__init__()
        self.inner, self.calibration = inner, calibration
        self.cutoff, self.hops, self.elements, self.inputs = inner.cutoff, inner.hops, inner.elements, inner.inputs
        self.outputs = (*inner.outputs, ENERGY_UNCERTAINTY)
        self.register_buffer("factor", torch.zeros(features, features, dtype=torch.float64))

    def indices(self, graph: AtomicGraph, uniform: bool = False) -> dict[str, Tensor]:
        return self.inner.indices(graph, uniform)

    def atomic_energies(self, displacements, numbers, senders, receivers, indices, system):
        return self.inner.atomic_energies(displacements, numbers, senders, receivers, indices, system)

    def forward(self, graph: AtomicGraph) -> dict[str, Tensor]:
        results, features = self.inner.results_and_features(graph)
        sums = sum_features(features, graph.system, len(graph.cell))
        return results | {ENERGY_UNCERTAINTY: (sums @ self.factor.mT).norm(dim=1)}

    def description(self) -> dict[str, Any]:
        calibration = {"features": len(self.factor), "calibration": self.calibration}
        return {"name": "with_uncertainty", "inner": self.inner.description(), **calibration}

    def _apply(self, fn, recurse=True):
        """In float64 whatever the dtype of the model: its rows differ by many orders of magnitude."""
        exact = self.factor
        super()._apply(fn, recurse)
        self.factor = exact.to(self.factor.device)
        return self


def sum_features(features: Tensor, system: Int[Tensor, " atoms"], systems: int) -> Float[Tensor, "systems features"]:
    """Last features of atoms, [atoms, ...], summed over each system in float64."""
    return scatter_sum(features.detach().flatten(1).double(), system, systems)
