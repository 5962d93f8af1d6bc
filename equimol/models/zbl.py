"""Screened nuclear repulsion: what keeps atoms apart where no data were."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from ase.data import covalent_radii
from torch import Tensor

from equimol.data.graph import AtomicGraph
from equimol.models.base import ConfiguredPotential
from equimol.nn.radial import polynomial_envelope
from equimol.o3 import Table
from equimol.ops import scatter_sum

COULOMB = 14.399645478425668  # e^2 / (4 pi epsilon_0), eV Å (CODATA 2018)
EXPONENTS = (3.2, 0.9423, 0.4029, 0.2016)
FACTORS = (0.1818, 0.5099, 0.2802, 0.02817)


@dataclass(frozen=True)
class ZBLConfig:
    """Settings of :class:`ZBL`."""

    elements: tuple[int, ...] = tuple(range(1, 97))
    envelope_order: int = 6
    reach: tuple[Sequence, ...] = ()  # (Z, Z', Å) where the repulsion of a pair ends; others: sum of covalent radii

    def __post_init__(self) -> None:
        reach = tuple((int(a), int(b), float(r)) for a, b, r in self.reach)
        for a, b, r in reach:
            if not (0 < a < 97 and 0 < b < 97 and 0 < r < 10):
                raise ValueError(f"reach must be (Z, Z', Å) with atomic numbers 1..96 and below 10 Å, got {(a, b, r)}")
        object.__setattr__(self, "elements", tuple(int(z) for z in self.elements))
        object.__setattr__(self, "reach", reach)


class ZBL(ConfiguredPotential):
    """Ziegler-Biersack-Littmark repulsion, ended at the sum of two covalent radii: bonded atoms feel next to nothing of it.

    Atoms that are not bonded stay farther apart, and a network knows nothing of what lies between: `core_reach` of the training data
    ends the repulsion of such pairs just below the closest approach there, so that no hole opens at, say, 0.9 Å between hydrogens.

    E_ij = k Z_i Z_j / r phi(r/a) u(r), with a = 0.46850 Å / (Z_i^0.23 + Z_j^0.23), u the polynomial envelope;
    half to each atom. No parameters; float64 always.
    """

    name = "zbl"
    traceable = True
    hops = 1

    def __init__(self, config: ZBLConfig) -> None:
        super().__init__()
        self.config, self.elements = config, tuple(config.elements)
        radii = torch.as_tensor(covalent_radii[:97], dtype=torch.float64)
        reach = radii[:, None] + radii
        for a, b, r in config.reach:
            reach[a, b] = reach[b, a] = r
        self._reach = Table(reach)
        present = torch.tensor(self.elements)
        self.cutoff = float(reach[present][:, present].max())

    def indices(self, graph: AtomicGraph, uniform: bool = False) -> dict[str, Tensor]:
        """The edges that are short enough, of the many that are not; all where ``uniform``."""
        squares = graph.displacements().detach().square().sum(-1)
        reach = self._reach(squares)[graph.numbers[graph.senders], graph.numbers[graph.receivers]]
        return {"near": torch.nonzero((squares < reach * reach) | uniform)[:, 0]}

    def indices_within(self, edges, sizes):
        return {"near": torch.arange(edges.senders.shape[0], device=edges.senders.device)}, []

    def atomic_energies(self, displacements, numbers, senders, receivers, indices, system):
        near = indices["near"]
        i, j = receivers[near], senders[near]
        reach = self._reach(displacements.double())[numbers[j], numbers[i]]
        distance = displacements[near].double().norm(dim=-1)
        zi, zj = numbers[i].double(), numbers[j].double()
        x = distance * (zi**0.23 + zj**0.23) / 0.46850
        screening = sum(c * torch.exp(-b * x) for c, b in zip(FACTORS, EXPONENTS, strict=True))
        pair = COULOMB * zi * zj / distance * screening * polynomial_envelope(distance / reach, 1.0, self.config.envelope_order)
        energies = scatter_sum(0.5 * pair, i, numbers.shape[0])
        return energies, energies[:, None][:, :0]  # nothing is learned
