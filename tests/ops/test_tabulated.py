"""Sums over neighbours with weights from a table, by blocks: those of `plain_coupled_sum` with the weights looked up."""

import pytest
import torch

from equimol.nn.cubic_table import cubic_table, cubic_weights, look_up
from equimol.o3 import natural_layout
from equimol.ops import plain_coupled_sum, tabulated
from equimol.ops.tabulated import edge_blocks, tabulated_sum
from equimol.tensor_products.clebsch_gordan_convolution import ClebschGordanConvolution

CHANNELS, KNOTS = 5, 9


def inputs(random, edges, atoms=6):
    form = ClebschGordanConvolution(natural_layout(1, CHANNELS), 2, 2)._form
    generator = torch.Generator().manual_seed(edges)
    senders, receivers = (torch.randint(0, atoms - 1, (edges,), generator=generator) for _ in range(2))  # one atom has no edge
    table = cubic_table(random(KNOTS, len(form.paths) * CHANNELS))
    leaves = random(atoms, form.rows, CHANNELS), random(edges, form.harmonics), random(edges).abs().clamp(max=1.5)
    return form, table, [x.requires_grad_() for x in leaves], senders, receivers.sort().values


@pytest.mark.parametrize(("edges", "rows", "threads"), [(40, 7, 1), (40, 1, 3), (40, 1000, 2), (1, 7, 1), (0, 7, 1)])
def test_blocks_of_edges_give_the_same_and_the_same_slopes(random, monkeypatch, edges, rows, threads):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    form, table, (x, y, distances), senders, receivers = inputs(random, edges)
    monkeypatch.setattr(tabulated, "BLOCK_NUMBERS", rows * table.shape[1])
    at = cubic_weights(distances, 1.5 / (KNOTS - 1), KNOTS, torch.float64)
    blocks = edge_blocks(senders, receivers, len(x), table.shape[1])
    assert [i for block in blocks for i in range(block.edges.start, block.edges.stop)] == list(range(edges))
    assert [i for block in blocks for i in range(block.atoms.start, block.atoms.stop)] == list(range(len(x)))
    weights = look_up(table, at).unflatten(1, (len(form.paths), CHANNELS))
    expected = plain_coupled_sum(form, x, y, weights, senders, receivers)
    found = tabulated_sum(form, x, y, table, *at, blocks)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    gradient = random(*found.shape)
    slopes = (torch.autograd.grad(result, (x, y, distances), gradient, retain_graph=True) for result in (found, expected))
    for ours, plain in zip(*slopes, strict=True):
        torch.testing.assert_close(ours, plain, rtol=0, atol=1e-11)


def test_a_block_has_all_edges_of_its_atoms(random, monkeypatch):
    monkeypatch.setattr(tabulated, "BLOCK_NUMBERS", 10)
    senders, receivers = torch.zeros(9, dtype=torch.long), torch.tensor([0, 0, 0, 0, 1, 3, 3, 3, 3])
    blocks = edge_blocks(senders, receivers, 5, 5 // torch.get_num_threads())
    assert len(blocks) > 2 and all(
        set(a.receivers.tolist()).isdisjoint(b.receivers.tolist()) for a, b in zip(blocks, blocks[1:], strict=False)
    )


def test_what_a_kernel_would_not_notice_is_refused(random):
    form, table, (x, y, distances), senders, receivers = inputs(random, 8)
    with pytest.raises(ValueError, match="receivers must be ascending"):
        edge_blocks(senders, receivers.flip(0), len(x), 5)
    with pytest.raises(ValueError, match=r"senders must be in 0\.\.0"):
        edge_blocks(senders, receivers, 1, 5)
    at = cubic_weights(distances, 1.0, KNOTS, torch.float64)
    with pytest.raises(ValueError, match=f"table must have {len(form.paths)} paths x {CHANNELS} channels for columns"):
        tabulated_sum(form, x, y, table[:, :-1], *at, edge_blocks(senders, receivers, len(x), 5))
