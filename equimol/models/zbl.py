"""Screened nuclear repulsion: what keeps atoms apart where no data were."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from ase.data import covalent_radii

from equimol.models.base import ConfiguredPotential
from equimol.nn.radial import polynomial_envelope
from equimol.ops import scatter_sum

COULOMB = 14.399645478425668  # e^2 / (4 pi epsilon_0), eV Å (CODATA 2018)
EXPONENTS = (3.2, 0.9423, 0.4029, 0.2016)
FACTORS = (0.1818, 0.5099, 0.2802, 0.02817)


@dataclass(frozen=True)
class ZBLConfig:
    """Settings of :class:`ZBL`."""

    elements: tuple[int, ...] = tuple(range(1, 97))
    envelope_order: int = 6


class ZBL(ConfiguredPotential):
    """Ziegler-Biersack-Littmark repulsion, ended at the sum of two covalent radii: bonded atoms feel next to nothing of it.

    E_ij = k Z_i Z_j / r phi(r/a) u(r), with a = 0.46850 Å / (Z_i^0.23 + Z_j^0.23), u the polynomial envelope;
    half to each atom. No parameters; float64 always.
    """

    name = "zbl"
    hops = 1

    def __init__(self, config: ZBLConfig) -> None:
        super().__init__()
        self.config, self.elements = config, tuple(config.elements)
        self.cutoff = float(2 * max(covalent_radii[z] for z in self.elements))

    def atomic_energies(self, displacements, numbers, senders, receivers, indices, system):
        radii = torch.as_tensor(covalent_radii, dtype=torch.float64, device=numbers.device)[numbers]
        reach = radii[senders] + radii[receivers]
        near = torch.nonzero(displacements.detach().square().sum(-1) < reach * reach)[:, 0]
        i, j = receivers[near], senders[near]
        distance = displacements[near].double().norm(dim=-1)
        zi, zj = numbers[i].double(), numbers[j].double()
        x = distance * (zi**0.23 + zj**0.23) / 0.46850
        screening = sum(c * torch.exp(-b * x) for c, b in zip(FACTORS, EXPONENTS, strict=True))
        pair = COULOMB * zi * zj / distance * screening * polynomial_envelope(distance / reach[near], 1.0, self.config.envelope_order)
        energies = scatter_sum(0.5 * pair, i, len(numbers))
        return energies, energies[:, None]
