"""The average of the weights, the learning rate and what decays."""

import pytest
from torch import nn

from equimol.training.config import load_config
from equimol.training.module import SCHEDULES, TrainingModule, make_optimizer, rate_factor


def test_the_average_forgets_the_initial_weights_and_follows_the_last_tenth_of_a_short_run():
    model = nn.Linear(2, 1)
    module = TrainingModule(model, {"energy": 1.0}, load_config(None, ["ema=0.99"]), 100)
    nn.init.constant_(module.averaged.weight, 1e9)
    for step in range(1, 101):
        nn.init.constant_(model.weight, float(step))
        module.update_average(step)
    assert 85 < float(module.averaged.weight.detach()[0, 0]) < 95


def test_the_average_is_exponential_later_on_and_off_at_decay_zero():
    for decay, expected in ((0.9, 0.9 * 2 + 0.1 * 12), (0.0, 12.0)):
        model = nn.Linear(1, 1)
        module = TrainingModule(model, {}, load_config(None, [f"ema={decay}"]), 100)
        nn.init.constant_(module.averaged.weight, 2.0)
        nn.init.constant_(model.weight, 12.0)
        module.update_average(1000)
        assert float(module.averaged.weight) == pytest.approx(expected)


def test_the_average_stays_in_evaluation_mode_and_learns_nothing():
    module = TrainingModule(nn.Linear(1, 1), {}, load_config(), 100).train()
    assert module.model.training and not module.averaged.training
    assert not any(p.requires_grad for p in module.averaged.parameters())


@pytest.mark.parametrize(("schedule", "end"), [("cosine", 0.0), ("exponential", 0.01), ("wsd", 0.0)])
def test_the_rate_rises_to_one_and_falls_as_the_schedule_says(schedule, end):
    shape = SCHEDULES[schedule]
    factors = [rate_factor(step, 1000, 100, shape) for step in range(1000)]
    assert factors[0] == pytest.approx(0.01) and max(factors) == 1.0
    assert factors.index(1.0) in (99, 100)
    assert factors[100:] == sorted(factors[100:], reverse=True)
    assert factors[-1] == pytest.approx(end, abs=0.006)
    assert factors.count(1.0) == (721 if schedule == "wsd" else 1 + (factors[99] == 1.0))
    assert all(rate_factor(step, total, 100, shape) <= 1 for total in (1, 2, 5) for step in range(total + 1))


def test_only_matrices_decay():
    groups = make_optimizer(nn.Linear(3, 2), load_config(None, ["weight_decay=0.5"])).param_groups
    assert [(group["weight_decay"], [p.ndim for p in group["params"]]) for group in groups] == [(0.5, [2]), (0.0, [1])]
