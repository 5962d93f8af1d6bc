"""Lennard-Jones: the potential with analytic answers, for tests, examples and first steps with an interface."""

from __future__ import annotations

from dataclasses import dataclass

from equimol.models.base import ConfiguredPotential
from equimol.nn.radial import polynomial_envelope
from equimol.ops import scatter_sum


@dataclass(frozen=True)
class LennardJonesConfig:
    """Settings of :class:`LennardJones`; the defaults are argon's."""

    elements: tuple[int, ...] = (18,)
    cutoff: float = 8.5  # Å
    epsilon: float = 0.0104  # eV, depth of the well
    sigma: float = 3.4  # Å, where the pair energy is zero
    envelope_order: int = 12  # high: the envelope leaves short distances alone


class LennardJones(ConfiguredPotential):
    """4 epsilon ((sigma/r)^12 - (sigma/r)^6) times a smooth envelope. All elements are alike; float64 always."""

    name = "lennard_jones"
    hops = 1

    def __init__(self, config: LennardJonesConfig) -> None:
        super().__init__()
        self.config, self.cutoff, self.elements = config, config.cutoff, tuple(config.elements)

    def atomic_energies(self, displacements, numbers, senders, receivers, indices, system):
        distance = displacements.double().norm(dim=-1)
        x6 = (self.config.sigma / distance) ** 6
        pair = 4 * self.config.epsilon * (x6 * x6 - x6) * polynomial_envelope(distance, self.cutoff, self.config.envelope_order)
        energies = scatter_sum(0.5 * pair, receivers, len(numbers))
        return energies, energies[:, None][:, :0]  # nothing is learned
