"""Sums over edges and their rectangle of slots."""

import pytest
import torch

from equimol.ops import Slots, gather, scatter_sum


def test_rows_with_one_index_are_added_and_unnamed_rows_are_zero():
    out = scatter_sum(torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([2, 0, 2]), 4)
    assert out[:, 0].tolist() == [2.0, 0.0, 5.0, 0.0]


def test_gather_is_the_adjoint_of_scatter_sum():
    torch.manual_seed(0)
    index = torch.randint(0, 5, (9,))
    x, y = torch.randn(5, 3), torch.randn(9, 3)
    torch.testing.assert_close((gather(x, index) * y).sum(), (x * scatter_sum(y, index, 5)).sum())


def test_sum_over_slots_is_the_sum_over_edges():
    torch.manual_seed(0)
    receivers, values = torch.randint(0, 6, (20,)), torch.randn(20, 3)
    slots = Slots(receivers, 7)
    torch.testing.assert_close(slots.fill(values).view(7, slots.width, 3).sum(1), scatter_sum(values, receivers, 7))
    assert sorted(slots.index(torch.arange(1, 21)).tolist())[-20:] == list(range(1, 21))


def test_filling_slots_is_differentiable_twice():
    slots = Slots(torch.tensor([1, 0, 1]), 3)
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: slots.fill(v) ** 2, x)
    assert torch.autograd.gradgradcheck(lambda v: slots.fill(v) ** 2, x)


def test_no_edges_make_no_slots():
    slots = Slots(torch.zeros(0, dtype=torch.long), 4)
    assert slots.width == 0 and slots.fill(torch.zeros(0, 2)).shape == (0, 2)


def test_a_receiver_out_of_range_is_an_error():
    with pytest.raises(ValueError, match="below the number of atoms"):
        Slots(torch.tensor([3]), 3)
