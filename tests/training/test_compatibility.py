"""The table: every refusal can be met and says what to do, and what it lets through is not refused by accident."""

from __future__ import annotations

import dataclasses

import pytest

from vla_ft.config import load_run_config
from vla_ft.errors import UserError
from vla_ft.training.compatibility import RULES, Setup, refusals, refuse, resolve_engine

# Words for a run, processes, and a piece of the sentence. One for every rule, in the table's order.
REFUSED = [
    (("engine=single",), 2, "engine=single runs in one process, this run has 2"),
    (("engine=fsdp2", "shard_group=2"), 4, "shard_group=2 is for engine=hsdp"),
    (("engine=hsdp", "shard_group=3"), 4, "needs shard_group to divide the 4 processes"),
    (("engine=ddp", "offload=all"), 2, "offload=all would do nothing"),
    (("engine=fsdp2", "offload=optimizer"), 2, "moves weights, gradients and optimizer state to the host together"),
    (("engine=zero2", "offload=all"), 2, "keeps whole weights on the card"),
    (("engine=zero3", "precision=bf16_kahan"), 2, "precision=bf16_kahan does not apply"),
    (("engine=zero1", "optimizer.name=adamw8bit"), 2, "could not be saved by parameter"),
    (("engine=zero2", "precision=bf16", "freeze=[backbone]"), 2, "holds frozen weights in bfloat16"),
    (("engine=zero1", "precision=bf16", "batch.accumulation=2"), 2, "gradients of batch.accumulation=2 micro-batches"),
    (("engine=zero3", "compile=true"), 2, "torch.compile breaks"),
    (("engine=fsdp2", "optimizer.name=adamw8bit", "offload=all"), 2, "shrinks what offload=all takes off"),
    (("optimizer.name=adamw8bit", "optimizer.kernel=fused"), 1, "optimizer.kernel=fused is for optimizer.name=adamw"),
    (("precision=bf16_stochastic", "optimizer.kernel=foreach"), 1, "rounds each weight's update itself"),
    (("precision=bf16_kahan", "lora.action.rank=2"), 1, "Adapters are few and train in float32"),
    (("precision=bf16", "frozen_dtype=bf16"), 1, "nothing is frozen"),
    (("frozen_dtype=bf16", "freeze=[backbone]"), 1, "would compute in two types"),
    (("frozen_features.parts=[backbone]",), 1, "nothing is frozen. Freeze them with freeze=[backbone]"),
]
ALLOWED = [
    ((), 1), ((), 2), (("engine=fsdp2",), 1), (("engine=fsdp2", "offload=all"), 1), (("engine=zero3",), 1),
    (("freeze=[backbone]", "frozen_features.parts=[backbone]"), 1),
    (("engine=hsdp", "shard_group=2"), 4), (("engine=zero3", "offload=all"), 2),
    (("engine=zero1", "precision=bf16", "batch.accumulation=1"), 2), (("engine=zero2", "compile=true"), 2),
    (("engine=zero1", "precision=bf16", "batch.accumulation=2", "offload=optimizer"), 2),
    (("engine=fsdp2", "precision=bf16_kahan", "optimizer.name=adamw8bit", "activation_checkpointing=true"), 4),
    (("engine=fsdp2", "precision=bf16", "frozen_dtype=bf16", "lora.action.rank=2", "compile=true"), 4),
]  # fmt: skip


def setup(words, processes):
    return Setup.of(load_run_config(["recipe=act-mock", *words]), processes, processes)


def test_every_rule_has_a_run_that_meets_it():
    assert len(REFUSED) == len(RULES)
    met = [[rule for rule in RULES if rule.applies(setup(words, n))] for words, n, _ in REFUSED]
    assert all(rule in found for rule, found in zip(RULES, met, strict=True)), "out of order, or unreachable"


@pytest.mark.parametrize(("words", "processes", "piece"), REFUSED)
def test_a_refusal_says_what_and_what_to_do(words, processes, piece):
    with pytest.raises(UserError) as refused:
        refuse(setup(words, processes))
    sentence = next(line for line in str(refused.value).splitlines() if piece in line)
    assert "{" not in sentence
    assert sentence.count(". ") >= 1, "no second sentence that says what to do"


@pytest.mark.parametrize(("words", "processes"), ALLOWED)
def test_what_works_is_not_refused(words, processes):
    assert refusals(setup(words, processes)) == []


def test_auto_is_one_process_or_copies():
    assert [resolve_engine("auto", n) for n in (1, 2)] == ["single", "ddp"]
    assert resolve_engine("fsdp2", 1) == "fsdp2"


def test_several_reasons_are_all_said():
    both = dataclasses.replace(setup(("engine=ddp",), 2), offload="all", precision="fp32", frozen_dtype="bf16")
    assert len(refusals(both)) == 3
