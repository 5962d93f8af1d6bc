"""The order of the data depends on seed and step, and on nothing else."""

from itertools import chain

import pytest

from equimol.training.batches import StepSampler, train_loader


def test_a_sampler_that_starts_in_the_middle_continues_the_same_order():
    whole = list(StepSampler(10, 3, seed=5, total=17))
    for start in (1, 4, 9, 16):
        assert list(StepSampler(10, 3, seed=5, total=17, start=start)) == whole[start:]


def test_every_epoch_has_each_frame_once_and_its_last_small_batch():
    sampler = StepSampler(10, 3, seed=0, total=8)
    batches = list(sampler)
    assert sampler.steps_per_epoch == 4
    assert [len(batch) for batch in batches] == [3, 3, 3, 1, 3, 3, 3, 1]
    epochs = [list(chain(*batches[:4])), list(chain(*batches[4:]))]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(10))
    assert epochs[0] != epochs[1]


def test_seeds_give_different_orders():
    assert list(StepSampler(20, 5, 0, 4)) != list(StepSampler(20, 5, 1, 4))


def test_the_length_is_that_of_the_whole_run_wherever_it_starts():
    assert len(StepSampler(10, 3, 0, total=17, start=9)) == 17


def test_workers_do_not_change_the_order():
    numbers = list(range(9))
    orders = [[batch.tolist() for batch in train_loader(numbers, StepSampler(9, 2, 3, 10, start=2), workers)] for workers in (0, 2)]
    assert orders[0] == orders[1]


def test_an_empty_set_cannot_be_sampled():
    with pytest.raises(ValueError, match="at least one frame"):
        StepSampler(0, 3, 0, 4)
