from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from vla_ft.config import EmaConfig, GroupConfig, OptimizerConfig, ScheduleConfig
from vla_ft.errors import UserError
from vla_ft.training.averages import Ema
from vla_ft.training.optimizers import build_optimizer, freeze_parts, schedule_factor, set_learning_rates


class TwoParts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.head = nn.Linear(2, 2), nn.Linear(2, 1)

    def parameter_groups(self):
        return {
            "backbone": list(self.trunk.named_parameters("trunk")),
            "action": list(self.head.named_parameters("head")),
        }


def test_every_part_has_its_own_rate_and_decay():
    optimizer = build_optimizer(
        TwoParts(), OptimizerConfig(lr=1e-3, weight_decay=0.1, groups={"backbone": GroupConfig(lr=1e-5)})
    )
    assert [(g["name"], g["lr"], g["weight_decay"]) for g in optimizer.param_groups] == [
        ("backbone", 1e-5, 0.1),
        ("action", 1e-3, 0.1),
    ]
    half, config = ScheduleConfig(warmup_steps=2), OptimizerConfig()
    for _ in range(2):  # the factor must not compound
        assert set_learning_rates(optimizer, half, config, 0, 10) == {"backbone": 5e-6, "action": 5e-4}


def test_a_part_may_follow_a_schedule_of_its_own():
    own = GroupConfig(lr=1e-2, schedule=ScheduleConfig(name="cosine_restarts", cycle_steps=4, final_fraction=0.5))
    config = OptimizerConfig(lr=1e-3, groups={"backbone": own})
    optimizer = build_optimizer(TwoParts(), config)
    rates = [set_learning_rates(optimizer, ScheduleConfig(), config, step, 10) for step in range(6)]
    assert [r["action"] for r in rates] == [1e-3] * 6
    cosine = [0.5 + 0.5 * 0.5 * (1 + math.cos(math.pi * k / 4)) for k in range(4)]
    expected = [1e-2 * factor for factor in (0.5, *cosine, 1.0)]  # the first update counts for no cycle
    assert [r["backbone"] for r in rates] == pytest.approx(expected)


def test_unknown_parts_are_refused_with_the_nearest_name():
    with pytest.raises(UserError, match="Did you mean 'backbone'"):
        build_optimizer(TwoParts(), OptimizerConfig(groups={"backbon": GroupConfig(lr=1e-5)}))
    with pytest.raises(UserError, match="Did you mean 'action'"):
        freeze_parts(TwoParts(), ("actions",))


def test_a_frozen_part_has_no_gradient_and_no_optimizer_state():
    model = TwoParts()
    freeze_parts(model, ("backbone",))
    optimizer = build_optimizer(model, OptimizerConfig())
    model.head(model.trunk(torch.ones(1, 2))).sum().backward()
    optimizer.step()
    assert [g["name"] for g in optimizer.param_groups] == ["action"]
    assert all(p.grad is None for p in model.trunk.parameters())
    assert set(optimizer.state) == set(model.head.parameters())


@pytest.mark.parametrize(
    ("config", "step", "factor"),
    [
        (ScheduleConfig(), 99, 1.0),
        (ScheduleConfig(warmup_steps=10), 0, 0.1),
        (ScheduleConfig(warmup_steps=10), 9, 1.0),
        (ScheduleConfig(name="linear", warmup_steps=10), 10, 1.0),
        (ScheduleConfig(name="linear", warmup_steps=10), 55, 0.5),
        (ScheduleConfig(name="linear", final_fraction=0.2), 100, 0.2),
        (ScheduleConfig(name="cosine"), 50, 0.5),
        (ScheduleConfig(name="cosine"), 25, 0.5 * (1 + math.cos(math.pi / 4))),
        (ScheduleConfig(name="cosine", final_fraction=0.1), 100, 0.1),
    ],
)
def test_schedule(config, step, factor):
    assert schedule_factor(config, step, 101) == pytest.approx(factor)


def test_cycles_grow_and_their_peaks_fall():
    config = ScheduleConfig(
        name="cosine_restarts", cycle_steps=6, warmup_steps=2, cycle_growth=2.0, cycle_decay=0.5, final_fraction=0.1
    )
    factors = [schedule_factor(config, step, 99) for step in range(18)]
    assert factors[0] == factors[1] == 0.1
    assert factors[3] == 1.0
    # The second cycle has 2 steps of warm-up and twice the 4 steps of decay; its peak is half as high.
    assert factors[7] == 0.1 and factors[9] == 0.5 and max(factors[7:17]) == 0.5
    assert factors[17] == 0.1


def test_cycles_are_for_restarts_alone():
    with pytest.raises(UserError, match="name=cosine_restarts, not cosine"):
        ScheduleConfig(name="cosine", cycle_steps=10)
    with pytest.raises(UserError, match="longer than its warm-up"):
        ScheduleConfig(name="cosine_restarts", cycle_steps=10, warmup_steps=10)


def test_ema_follows_its_formula():
    model = TwoParts()
    weights = {name: p.detach() for name, p in model.named_parameters()}
    ema = Ema(weights, EmaConfig(decay=0.9, start_step=1))
    expected = None
    for step in range(4):
        with torch.no_grad():
            model.head.weight.add_(1.0)
        weight = model.head.weight.detach().clone()
        expected = weight if step < 1 else 0.9 * expected + 0.1 * weight
        ema.update(weights, step)
    torch.testing.assert_close(ema.average["head.weight"], expected)
