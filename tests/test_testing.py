"""The public battery can fail: each broken law is found and named."""

import pytest
import torch

from equimol.models.base import ConfiguredPotential
from equimol.models.lennard_jones import LennardJonesConfig
from equimol.nn import polynomial_envelope
from equimol.o3 import natural_layout
from equimol.ops import scatter_sum
from equimol.testing import assert_equivariant, assert_is_potential


class PairPotential(ConfiguredPotential):
    """Healthy; the tests break it."""

    name, hops = "pair", 1

    def __init__(self) -> None:
        super().__init__()
        self.config, self.cutoff, self.elements = LennardJonesConfig(cutoff=3.9), 3.9, (6, 8)

    def pair_energy(self, displacements, distance, numbers, senders, receivers):
        return torch.exp(-distance) * polynomial_envelope(distance, self.cutoff)

    def atomic_energies(self, displacements, numbers, senders, receivers, indices, system):
        distance = displacements.norm(dim=-1)
        pair = self.pair_energy(displacements, distance, numbers, senders, receivers)
        energies = scatter_sum(pair, receivers, len(numbers))
        return energies, energies[:, None]


class DirectionDependent(PairPotential):
    def pair_energy(self, displacements, distance, numbers, senders, receivers):
        return super().pair_energy(displacements, distance, numbers, senders, receivers) * (1 + displacements[:, 0] ** 2)


class HandednessDependent(PairPotential):
    """Sees the difference between a structure and its mirror image, and nothing else that is wrong."""

    def atomic_energies(self, displacements, numbers, senders, receivers, indices, system):
        weight = (polynomial_envelope(displacements.norm(dim=-1), self.cutoff) * (1 + 0.3 * numbers[senders]))[:, None]
        sums = [
            scatter_sum(weight * displacements * displacements.norm(dim=-1, keepdim=True) ** p, receivers, len(numbers)) for p in (0, 1, 2)
        ]
        energies = (torch.linalg.cross(sums[0], sums[1]) * sums[2]).sum(-1)
        return energies, energies[:, None]


class OrderDependent(PairPotential):
    def pair_energy(self, displacements, distance, numbers, senders, receivers):
        return super().pair_energy(displacements, distance, numbers, senders, receivers) * (1 + 0.1 * receivers)


class Abrupt(PairPotential):
    def pair_energy(self, displacements, distance, numbers, senders, receivers):
        return torch.where(distance < self.cutoff, torch.exp(-distance), 0.0)


class WrongForces(PairPotential):
    def forward(self, graph):
        out = super().forward(graph)
        return {**out, "forces": 1.01 * out["forces"]}


class WrongStress(PairPotential):
    def forward(self, graph):
        out = super().forward(graph)
        return {**out, "stress": -out["stress"]}


class BatchDependent(PairPotential):
    def forward(self, graph):
        out = super().forward(graph)
        return {**out, "energies": out["energies"] + 0.01 * (graph.num_systems - 1)}


class NaNOnIsolatedAtoms(PairPotential):
    def atomic_energies(self, displacements, numbers, senders, receivers, indices, system):
        energies, features = super().atomic_energies(displacements, numbers, senders, receivers, indices, system)
        return energies + (torch.nan if len(senders) == 0 else 0.0), features


def test_a_healthy_potential_passes():
    assert_is_potential(PairPotential())


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (DirectionDependent, "the energy under rotation"),
        (HandednessDependent, "the energy under rotation"),
        (OrderDependent, "under permutation"),
        (Abrupt, "across the cutoff"),
        (WrongForces, "the force on atom"),
        (WrongStress, "stress component"),
        (BatchDependent, "energies of a batch"),
        (NaNOnIsolatedAtoms, "must be finite"),
    ],
)
def test_a_broken_law_is_named(broken, message):
    with pytest.raises(AssertionError, match=message):
        assert_is_potential(broken())


def test_single_precision_is_refused_rather_than_judged():
    class Single(PairPotential):
        dtype = torch.float32

    with pytest.raises(ValueError, match="call model.double"):
        assert_is_potential(Single())


def test_a_function_that_is_not_equivariant_is_found():
    layout = natural_layout(1, 2)
    assert_equivariant(lambda x: 2 * x, [layout], layout)
    with pytest.raises(AssertionError, match="rotation of the inputs"):
        assert_equivariant(lambda x: x.abs(), [layout], layout)
    with pytest.raises(AssertionError, match="inversion and rotation"):  # right under rotations alone
        vector = natural_layout(1, 1)[1:]
        assert_equivariant(lambda x, y: torch.linalg.cross(x, y), [vector, vector], vector)
