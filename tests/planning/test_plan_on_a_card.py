"""The forecast of a real step on a card, against the most that torch's allocator gave out. Needs a card."""

from __future__ import annotations

import pytest
import torch

from vla_ft.config import load_run_config
from vla_ft.planning.forecast import Planner
from vla_ft.planning.imagined import collate_one, describe, imagined_run, widen
from vla_ft.policies.registry import load_policy
from vla_ft.training.compatibility import Setup
from vla_ft.training.engines import Engine
from vla_ft.training.preparation import prepare_blocks, prepare_model
from vla_ft.training.update import update

FULL = ("recipe=act", "data.path=mock", "device=cuda")


@pytest.mark.gpu
@pytest.mark.parametrize(
    "words",
    [(), ("precision=bf16",), ("precision=bf16", "activation_checkpointing=true"), ("precision=bf16_kahan",),
     ("optimizer.kernel=foreach", "batch.per_device=1"), ("freeze=[backbone]",)],
)  # fmt: skip
def test_within_five_per_cent(words):
    config = load_run_config([*FULL, *words])
    description, device = describe(config), torch.device("cuda", 0)
    foreseen = Planner(description).forecast(config, Setup.of(config, 1, 1)).peak.total
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    engine = Engine(config, device)
    model = load_policy(config.policy).build_model(config.model, description)
    prepare_model(model, config)
    prepare_blocks(model, config, device)
    engine.wrap(model)
    run = imagined_run(config, description, engine)
    batches = [widen(collate_one(config, description), config.batch.per_device)] * config.batch.accumulation
    for _ in range(2):
        update(run, iter(batches), engine, stop=False)
    assert foreseen == pytest.approx(torch.cuda.max_memory_allocated() - before, rel=0.05)
