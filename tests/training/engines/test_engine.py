"""The interface on one process: validation on averages, norms, checks, and steps of uneven batches."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from engine_runs import QUIET
from narrow_trunk import DESCRIPTION, batch, narrow_trunk

from vla_ft.config import load_run_config
from vla_ft.policies.registry import load_policy
from vla_ft.training.engines.base import Engine, local_norm
from vla_ft.training.preparation import prepare_blocks, prepare_model
from vla_ft.training.resume import _harmless
from vla_ft.training.validation import _in_step


def engine(*words):
    config = load_run_config([*QUIET, "output=unused", *words])
    torch.manual_seed(0)
    made = Engine(config, torch.device("cpu"))
    with narrow_trunk():
        model = load_policy("act").build_model(config.model, DESCRIPTION)
    prepare_model(model, config)
    prepare_blocks(model, config, made.device)
    made.wrap(model)
    made.build_optimizer()
    return made


@pytest.mark.parametrize("precision", ["fp32", "bf16_kahan"])
def test_the_average_is_held_and_given_back_to_the_bit(precision):
    made = engine(f"precision={precision}")
    average = {name: torch.rand_like(made.weights[name], dtype=torch.float32) for name in made.trained}
    weights = {name: value.clone() for name, value in made.weights.items()}
    kept = {name: value.clone() for name, value in average.items()}
    with made.holding(average):
        for name in average:
            assert torch.equal(made.weights[name], kept[name].to(made.weights[name].dtype))
    assert all(torch.equal(made.weights[name], value) for name, value in weights.items())
    assert all(torch.equal(average[name], value) for name, value in kept.items())


def test_clipping_gives_the_norm_before_it():
    made = engine()
    made.backward(made.loss(batch()).loss)
    norm = local_norm([p.grad for p in made.trained.values() if p.grad is not None], made.device)
    expected = torch.nn.utils.get_total_norm([p.grad for p in made.trained.values() if p.grad is not None])
    assert torch.equal(norm, expected)
    assert torch.equal(made.clip(0.01), norm)
    after = local_norm([p.grad for p in made.trained.values() if p.grad is not None], made.device)
    assert after.item() == pytest.approx(0.01, rel=1e-3)


def test_the_norm_of_bfloat16_gradients_is_summed_in_float32():
    gradients = [torch.full((4096,), 1.0, dtype=torch.bfloat16) for _ in range(3)]
    assert local_norm(gradients, torch.device("cpu")).item() == pytest.approx((3 * 4096) ** 0.5)


@pytest.mark.parametrize(
    ("words", "changes"),
    [
        ((), {"precision": "bf16_kahan"}),
        (("precision=bf16_kahan",), {"precision": "fp32"}),
        ((), {"activation_checkpointing": True}),
        (("activation_checkpointing=true",), {"activation_checkpointing": False}),
        (("lora.action.rank=2",), {"lora": {}}),
    ],
)
def test_a_field_that_left_no_mark_is_an_error_of_ours(words, changes):
    made = engine(*words)
    made.check()
    made.config = dataclasses.replace(made.config, **changes)
    with pytest.raises(RuntimeError, match="not as configured"):
        made.check()


def test_a_process_without_batches_goes_along():
    """Two processes acted out: this one has one batch, the other two."""

    class Other(Engine):
        rounds = 0

        def gather(self, value):
            if isinstance(value, bool):
                self.rounds += 1
                return [value, self.rounds <= 2]
            return [value, batch(1)]

    made = Other(load_run_config([*QUIET, "output=unused"]), torch.device("cpu"))
    seen = [(len(b["action"]), counts) for b, counts in _in_step(iter([batch(2)]), made)]
    assert seen == [(2, True), (2, False)]
    made.rounds = 0
    seen = [(len(b["action"]), counts) for b, counts in _in_step(iter([]), made)]
    assert seen == [(1, False), (1, False)]


@pytest.mark.parametrize(
    ("key", "harmless"),
    [
        ("engine", True), ("shard_group", True), ("offload", True), ("activation_checkpointing", True),
        ("compile", True), ("optimizer.kernel", True), ("precision", False), ("frozen_dtype", False),
        ("optimizer.name", False), ("lora.action.rank", False), ("lora", False), ("freeze", False),
    ],
)  # fmt: skip
def test_what_may_change_on_resume(key, harmless):
    assert _harmless(key) == harmless
