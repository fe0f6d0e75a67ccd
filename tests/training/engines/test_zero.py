"""ZeRO on one process and a model with what makes it hard: weights used outside their layer, tied ones, frozen ones."""

from __future__ import annotations

import importlib.util
import sys

import pytest
import torch
from torch import nn

from vla_ft.config import load_run_config
from vla_ft.errors import UserError
from vla_ft.policies.base import Loss, Model
from vla_ft.training.engines import build_engine, zero_access, zero_settings
from vla_ft.training.preparation import prepare_blocks, prepare_model

# Not imported here: the engine says for which device.
pytestmark = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="no deepspeed")
SIZE = 8


class Block(nn.Module):
    def __init__(self, shared):
        super().__init__()
        self.inside = nn.Linear(SIZE, SIZE)
        self.shared = shared  # tied over blocks

    def forward(self, x):
        return x + self.shared(torch.relu(self.inside(x)))


class Awkward(Model):
    """Queries are read from their layer, the frozen table too, and sampling does not go through forward."""

    def __init__(self):
        super().__init__()
        shared = nn.Linear(SIZE, SIZE)
        self.queries = nn.Embedding(4, SIZE)
        self.table = nn.Embedding(4, SIZE)
        self.layers = nn.ModuleList(Block(shared) for _ in range(3))
        self.register_buffer("offset", torch.full((SIZE,), 0.5))

    def forward(self, batch):
        error = (self.sample(batch) - batch["action"]).square().mean()
        return Loss(error, {"mse": error.detach()})

    def sample(self, batch):
        x = batch["proprio"][:, None] + self.queries.weight + self.table.weight + self.offset
        for layer in self.layers:
            x = layer(x)
        return x

    def parameter_groups(self):
        named = list(self.named_parameters())
        first = [(n, p) for n, p in named if n.startswith(("queries", "table"))]
        return {"tokens": first, "body": [(n, p) for n, p in named if not n.startswith(("queries", "table"))]}

    def blocks(self):
        return list(self.layers)


def batch(seed=0):
    numbers = torch.Generator().manual_seed(seed)
    return {"proprio": torch.randn(2, SIZE, generator=numbers), "action": torch.randn(2, 4, SIZE, generator=numbers)}


def held(*words):
    """An engine around the model, with its table frozen, and the optimizer."""
    config = load_run_config(["recipe=act-mock", "device=cpu", "batch.accumulation=1", *words])
    engine = build_engine(config)
    torch.manual_seed(0)
    model = Awkward()
    model.table.weight.requires_grad_(False)
    prepare_model(model, config)
    prepare_blocks(model, config, engine.device)
    engine.wrap(model)
    engine.build_optimizer()
    engine.check()
    return engine


def update(engine, seed, limit=float("inf"), scale=1.0):
    engine.zero_grad()
    with engine.accumulating(last=True):
        result = engine.loss(engine.move(batch(seed)))
        engine.backward(result.loss * scale)
    norm = engine.clip(limit)
    return result.loss.item(), norm


@pytest.fixture(params=["zero1", "zero2", "zero3", "zero3 again", "zero3 offload", "zero2 small", "zero3 small"])
def engine(request, monkeypatch):
    name, _, extra = request.param.partition(" ")
    words = {"again": ("activation_checkpointing=true",), "offload": ("offload=all",)}.get(extra, ())
    if extra == "small":  # buckets that a weight does not fit into, as an embedding of a large model
        for constant in ("REDUCE_BUCKET", "ALLGATHER_BUCKET", "PREFETCH_BUCKET", "MAX_LIVE", "SUB_GROUP"):
            monkeypatch.setattr(zero_settings, constant, 20)
    made = held(f"engine={name}", *words)
    yield made
    made.close()


@pytest.fixture
def plain():
    return held("engine=single")


def test_losses_samples_and_norms_are_those_of_the_plain_model(engine, plain):
    for step in range(4):
        for group in (*engine.optimizer.param_groups, *plain.optimizer.param_groups):
            group["lr"] = 0.05 if group["name"] == "body" else 0.01 * step
        (loss, norm), (expected, expected_norm) = update(engine, step, 0.5), update(plain, step, 0.5)
        assert loss == pytest.approx(expected, rel=1e-5)
        assert norm.item() == pytest.approx(expected_norm.item(), rel=1e-5)
        engine.step()
        plain.step()
        with torch.no_grad():
            torch.testing.assert_close(engine.sample(batch(9)), plain.sample(batch(9)), rtol=1e-4, atol=1e-5)
    assert engine.weights.keys() == plain.weights.keys()
    for name, weight in engine.weights.items():
        torch.testing.assert_close(weight.view(-1), plain.weights[name].view(-1), rtol=1e-4, atol=1e-5)
    state, expected_state = engine.optimizer_state(), plain.optimizer_state()
    assert state.keys() == expected_state.keys()
    assert all(int(entries["step"]) == 4 for entries in state.values())


def test_the_norm_is_seen_before_weights_change(engine):
    update(engine, 0)
    engine.step()
    before = {name: weight.clone() for name, weight in engine.weights.items()}
    _, norm = update(engine, 1, 1.0, scale=float("inf"))
    assert not torch.isfinite(norm)
    assert all(torch.equal(weight, before[name]) for name, weight in engine.weights.items())


def test_an_average_is_held_and_given_back_to_the_bit(engine):
    with torch.no_grad():
        before, kept = engine.sample(batch()).clone(), {n: w.clone() for n, w in engine.weights.items()}
        with engine.holding({name: torch.zeros_like(engine.weights[name]) for name in engine.trained}):
            inside = engine.sample(batch())
        after = engine.sample(batch())
    bare = batch()["proprio"][:, None] + kept["table.weight"].view(4, SIZE) + 0.5
    torch.testing.assert_close(inside, bare)
    assert torch.equal(before, after)
    assert all(torch.equal(weight, kept[name]) for name, weight in engine.weights.items())


def test_a_weight_without_gradient_is_not_stepped_by_an_old_one(engine):
    """Weights of one part share a flat master: what got no gradient is stepped with zeros."""
    for group in engine.optimizer.param_groups:
        group["lr"], group["weight_decay"] = 0.1, 0.0
    for group in engine._masters.base.param_groups:
        group["betas"], group["weight_decay"] = (0.0, 0.0), 0.0
    update(engine, 0)
    engine.step()
    queries = engine.weights["queries.weight"].clone()
    engine.zero_grad()
    with engine.accumulating(last=True):
        x = engine.model.layers
        original, engine.model.sample = engine.model.sample, lambda b: x[0](b["action"])
        engine.backward(engine.loss(batch()).loss)
        engine.model.sample = original
    engine.clip(float("inf"))
    engine.step()
    assert torch.equal(engine.weights["queries.weight"], queries)


def test_without_deepspeed_the_other_engine_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    monkeypatch.setitem(sys.modules, "deepspeed.ops", None)
    with pytest.raises(UserError, match=r"no module 'deepspeed'.*engine=fsdp2"):
        held("engine=zero2")
    assert not torch.distributed.is_initialized()


def test_another_version_is_refused(monkeypatch):
    import deepspeed

    monkeypatch.setattr(deepspeed, "__version__", "0.30.0")
    with pytest.raises(UserError, match=r"DeepSpeed 0\.30\.0 is installed"):
        held("engine=zero2")
    assert not torch.distributed.is_initialized()


def test_insides_that_are_not_there_are_an_internal_error():
    with pytest.raises(RuntimeError, match="has no cpu_offload"):
        zero_access.require(torch.zeros(1), ("shape", "cpu_offload"))


def test_steps_that_differ_within_a_part_are_refused():
    made = held("engine=zero2")
    entries = {name: {"exp_avg": w, "exp_avg_sq": w} for name, w in made.weights.items() if name in made.trained}
    state = {n: {**e, "step": torch.tensor(1.0 + n.endswith("bias"))} for n, e in entries.items()}
    try:
        with pytest.raises(UserError, match=r"stepped \[1, 2\] times"):
            made.load_optimizer_state(state)
    finally:
        made.close()


@pytest.mark.parametrize(
    ("trained", "largest", "expected"),
    [(83_894, 2_000, 20_974), (100, 80, 80), (7_600_000_000, 131_072_000, 50_000_000), (3, 1, 2)],
)
def test_buckets_fit_the_model(trained, largest, expected):
    assert zero_settings.bucket(zero_settings.REDUCE_BUCKET, trained, largest) == expected


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_bytes_are_those_of_the_tensors_that_are_there(stage, precision):
    made = held(f"engine=zero{stage}", f"precision={precision}")
    update(made, 0)
    made.step()
    masters, zero = made._masters, made.module.optimizer
    trained = sum(piece.numel for name, piece in made.pieces.items() if name in made.trained)
    frozen = sum(piece.numel for piece in made.pieces.values()) - trained
    counted = zero_settings.state_bytes(stage, 1, precision, "none", trained, frozen)
    assert sum(flat.nbytes for flat in masters.flats) == pytest.approx(counted["masters"], abs=64)
    state = [entry for entries in masters.base.state.values() for entry in entries.values() if entry.dim()]
    assert sum(entry.nbytes for entry in state) == pytest.approx(counted["optimizer"], abs=128)
    own = [p.ds_tensor if stage == 3 else p for p in made.model.parameters()]
    assert sum(p.nbytes for p in own) == counted["weights"]
    if stage == 3:
        assert zero.grad_partitions_flat_buffer.nbytes == counted["gradients"]
    made.close()


def test_bytes_of_a_large_model_by_stage():
    """7.6 billion trained weights on four cards, in GB: 16 bytes a weight cut ever finer, and what is whole."""
    count = 7_600_000_000
    total = {
        stage: zero_settings.state_bytes(stage, 4, "bf16", "none", count, 0) for stage in (1, 2, 3)
    }  # fmt: skip
    assert total[1]["weights"] == total[2]["weights"] == 2 * count
    assert total[3]["weights"] == 2 * count / 4
    assert all(kinds["masters"] + kinds["optimizer"] == 12 * count / 4 for kinds in total.values())
    sums = [sum(total[stage].values()) for stage in (1, 2, 3)]
    assert sums[0] > sums[1] > sums[2] > 16 * count / 4
    assert zero_settings.host_bytes(3, 4, "bf16", "all", count, 0) == 22 * count / 4
