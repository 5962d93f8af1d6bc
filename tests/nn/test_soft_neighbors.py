"""Soft ranks against their definition over all pairs; what they promise at the edges of the graph."""

import math

import numpy as np
import pytest
import torch

from equimol.data.graph import AtomicGraph
from equimol.nn.soft_neighbors import SoftNeighbors, log_envelope, reverse_edges, sine_step, smooth_step


def cluster(atoms: int, density: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.uniform(size=(atoms, 3)) * (atoms / density) ** (1 / 3)


def graph_of(positions: np.ndarray, cutoff: float) -> AtomicGraph:
    return AtomicGraph.build(positions, np.full(len(positions), 6), None, False, cutoff)


def ranks_by_definition(soft: SoftNeighbors, positions: torch.Tensor) -> torch.Tensor:
    """[receiver, sender], of all pairs; the receiver itself is among those that are counted."""
    d = (positions[:, None] - positions).norm(dim=-1)
    step = smooth_step if soft.smooth else sine_step
    ranks = step((d[:, :, None] - d[:, None, :]) / soft.width).sum(-1)
    three = torch.stack([ranks / soft.neighbors, ranks.T / soft.neighbors, d / soft.cutoff])
    return soft.softness * torch.logsumexp(three / soft.softness, 0)


@pytest.mark.parametrize("smooth", [True, False])
@pytest.mark.parametrize(("atoms", "density"), [(60, 0.02), (90, 0.1), (5, 0.001)])
def test_ranks_are_those_of_all_pairs(smooth, atoms, density):
    soft = SoftNeighbors(cutoff=5.0, neighbors=12, smooth=smooth, spare=40)  # so many spare ones that nothing is cut off
    graph = graph_of(cluster(atoms, density), soft.reach)
    distances = graph.displacements().norm(dim=-1)
    reverse = reverse_edges(graph.senders, graph.receivers, graph.shifts, atoms)
    found = soft.indices(distances, graph.receivers, reverse, atoms)
    expected = ranks_by_definition(soft, graph.positions)
    kept = found["kept"]
    torch.testing.assert_close(soft.ranks(distances, found), expected[graph.receivers[kept], graph.senders[kept]], rtol=0, atol=1e-12)
    inside = (expected < 1) & ~torch.eye(atoms, dtype=torch.bool)
    assert len(kept) == int(inside.sum())
    assert bool(inside[graph.receivers[kept], graph.senders[kept]].all())


def test_a_weight_falls_smoothly_to_zero_as_an_atom_is_crowded_out():
    soft = SoftNeighbors(cutoff=5.0, neighbors=6)
    rng = np.random.default_rng(1)
    shell = rng.normal(size=(9, 3))
    shell *= 2.0 / np.linalg.norm(shell, axis=1, keepdims=True)
    weights = []
    for x in np.linspace(1.5, 3.5, 1000):
        positions = np.concatenate([[[0, 0, 0]], shell, [[x, 0, 0]]])
        graph = graph_of(positions, soft.reach)
        distances = graph.displacements().norm(dim=-1)
        found = soft.indices(distances, graph.receivers, reverse_edges(graph.senders, graph.receivers, graph.shifts, 11), 11)
        rank = soft.ranks(distances, found)
        edge = (graph.receivers[found["kept"]] == 0) & (graph.senders[found["kept"]] == 10)
        weights.append(float(torch.exp(log_envelope(rank))[edge].sum()))
    weights = np.array(weights)
    assert weights[0] > 0.3
    assert weights[-1] == 0
    assert np.abs(np.diff(weights)).max() < 0.015
    assert np.abs(np.diff(weights, 2)).max() < 1e-3


@pytest.mark.parametrize("step", [smooth_step, sine_step])
def test_steps_are_continuous_and_antisymmetric(step):
    x = torch.linspace(-5, 5, 1001, dtype=torch.float64)
    y = step(x)
    torch.testing.assert_close(y + step(-x), torch.ones_like(x))
    assert (y[1:] >= y[:-1] - 1e-12).all()
    assert y[0] == 0
    assert y[-1] == 1
    edge = torch.tensor([math.pi], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(step(edge - 1e-7).sum(), edge)
    assert abs(slope.item()) < 1e-6


def test_the_envelope_and_its_slope_vanish_at_one_without_nan():
    rank = torch.tensor([0.0, 0.5, 1 - 1e-9, 1.0, 2.0], dtype=torch.float64, requires_grad=True)
    weight = torch.exp(log_envelope(rank))
    (slope,) = torch.autograd.grad(weight.sum(), rank)
    assert weight[0] == 1
    assert (weight[2:] == 0).all()
    assert slope.isfinite().all()
    assert (slope[2:] == 0).all()


def test_reverse_edges_run_the_other_way_and_missing_ones_raise():
    rng = np.random.default_rng(0)
    graph = AtomicGraph.build(rng.uniform(size=(4, 3)) * 3, [6] * 4, np.diag([3.0, 3.2, 3.4]), True, 5.0)
    reverse = reverse_edges(graph.senders, graph.receivers, graph.shifts, 4)
    torch.testing.assert_close(graph.displacements()[reverse], -graph.displacements())
    with pytest.raises(ValueError, match="edges must come in pairs"):
        reverse_edges(graph.senders[1:], graph.receivers[1:], graph.shifts[1:], 4)


def test_the_smooth_step_and_its_derivatives_are_those_of_its_polynomial():
    x = torch.linspace(-4, 4, 33, dtype=torch.float64, requires_grad=True)
    t = (x.detach() / (2 * math.pi) + 0.5).clamp(0, 1).numpy()
    polynomial = np.polynomial.Polynomial([0, 0, 0, 0, 35, -84, 70, -20])
    value = smooth_step(x)
    for order in range(4):
        expected = polynomial.deriv(order)(t) / (2 * math.pi) ** order if order else polynomial(t)
        np.testing.assert_allclose(value.detach().numpy(), expected, atol=1e-13)
        (value,) = torch.autograd.grad(value.sum(), x, create_graph=True)
