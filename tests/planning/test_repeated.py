"""Equal blocks counted instead of run: the account is that of running them all, event by event."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from imagined_models import Block, Tower
from torch import Tensor, nn

from vla_ft.config import RunConfig, load_run_config
from vla_ft.planning import repeated
from vla_ft.planning.allocation import AllocationLog
from vla_ft.planning.command import make_plan, read_request
from vla_ft.planning.equal_modules import describe_module
from vla_ft.planning.imagined import describe
from vla_ft.planning.rehearsal import Compute, Trace, rehearse
from vla_ft.planning.states import GIB
from vla_ft.policies.base import Batch, Loss

WORDS = (
    "recipe=act-mock",
    "data.path=mock",
    "batch.per_device=2",
    "model.chunk_size=8",
    "data.mock.image_size=[32,32]",
)
DEPTH = 7


class Elsewhere(Tower):
    """Keeps what every block yields for something that comes after them."""

    def forward(self, batch: Batch) -> Loss:
        """Squared error, and the mean of all states."""
        x = batch["action"].mean(-1, keepdim=True).expand(-1, -1, self.width)
        states = []
        for layer in self.layers:
            x = layer(x)
            states.append(x)
        return Loss((self.head(x) - batch["action"]).square().mean() + torch.stack(states).mean())


class SharedWeight(Tower):
    """All blocks project by one weight, whose gradient is a sum."""

    def __init__(self) -> None:
        super().__init__(DEPTH, 16, 2, 24)
        for layer in self.layers:
            layer.down = self.layers[0].down


class Between(Tower):
    """Does something between one block and the next."""

    def forward(self, batch: Batch) -> Loss:
        """Squared error."""
        x = batch["action"].mean(-1, keepdim=True).expand(-1, -1, self.width)
        for layer in self.layers:
            x = layer(x) * 0.5
        return Loss((self.head(x) - batch["action"]).square().mean())


class InTurn(Tower):
    """Every second block is wider inside."""

    def __init__(self) -> None:
        super().__init__(DEPTH, 16, 2, 24)
        self.layers = nn.ModuleList(Block(16, 2, 24 + 8 * (i % 2)) for i in range(DEPTH))


def tower() -> Tower:
    return Tower(depth=DEPTH, width=16, heads=2, inner=24)


def both(config: RunConfig, build, compute: Compute, card: bool) -> tuple[Trace, Trace]:
    description = describe(config)
    ways = (rehearse(config, description, compute=compute, card=card, build=build, equal_once=o) for o in (True, False))
    return tuple(ways)


def assert_equal(one: Trace, two: Trace) -> None:
    for field in dataclasses.fields(Trace):
        if field.name not in ("events", "seconds"):
            assert getattr(one, field.name) == getattr(two, field.name), field.name
    for name, column in vars(two.events).items():
        np.testing.assert_array_equal(vars(one.events)[name], column, err_msg=name)


@pytest.fixture
def skipped(monkeypatch) -> list[int]:
    """Numbers of the blocks that were counted and not run."""
    found: list[int] = []
    skip = repeated.EqualBlocks._skip

    def counting(self, number, *rest):
        found.append(number)
        return skip(self, number, *rest)

    monkeypatch.setattr(repeated.EqualBlocks, "_skip", counting)
    return found


@pytest.mark.parametrize(
    ("words", "compute", "card"),
    [
        ((), "fp32", False),
        (("batch.accumulation=2", "ema.decay=0.9"), "fp32", True),
        (("precision=bf16", "batch.accumulation=2"), "autocast", True),  # copies wait for the end of the forward pass
        (("precision=bf16", "activation_checkpointing=true", "batch.accumulation=2"), "bf16", True),
        (("activation_checkpointing=true", "optimizer.kernel=foreach"), "fp32", True),
        (("activation_checkpointing=true", "lora.vlm.rank=2", "precision=bf16"), "autocast", True),
    ],
)
def test_the_account_is_that_of_every_block(words, compute, card, skipped):
    config = load_run_config([*WORDS, *words])
    one, two = both(config, tower, compute, card)
    assert_equal(one, two)
    # The first block's input has no gradient. The next three begin a chain, and the last ends it.
    assert skipped == [4, 5] * config.batch.accumulation


def test_frozen_blocks_leave_nothing_behind_and_have_no_way_back(skipped):
    config = load_run_config([*WORDS, "freeze=[vlm]"])
    assert_equal(*both(config, tower, "fp32", True))
    assert skipped == [4, 5]


@pytest.mark.parametrize(
    ("build", "tried"),
    [(lambda: Elsewhere(DEPTH, 16, 2, 24), True), (SharedWeight, True), (lambda: Between(DEPTH, 16, 2, 24), False),
     (InTurn, False)],
    ids=["outputs kept", "a shared weight", "something in between", "two kinds in turn"],
)  # fmt: skip
def test_what_is_not_the_same_is_run(build, tried, skipped):
    config = load_run_config([*WORDS, "batch.accumulation=2"])
    assert_equal(*both(config, build, "fp32", True))
    assert bool(skipped) is tried, "and where only the way back shows it, everything is traced again"


def test_a_region_that_is_computed_again_as_a_whole_runs_its_blocks(skipped):
    class Region(Tower):
        def forward(self, batch: Batch) -> Loss:
            x = batch["action"].mean(-1, keepdim=True).expand(-1, -1, self.width)
            x = torch.utils.checkpoint.checkpoint(nn.Sequential(*self.layers), x, use_reentrant=False)
            return Loss((self.head(x) - batch["action"]).square().mean())

    assert_equal(*both(load_run_config(WORDS), lambda: Region(DEPTH, 16, 2, 24), "fp32", True))
    assert not skipped


def test_blocks_are_as_they_were_afterwards():
    model = tower()
    with repeated.EqualBlocks(model, model.blocks(), AllocationLog()).standing_in():
        assert all("forward" in vars(block) for block in model.blocks())
    assert not any("forward" in vars(block) for block in model.blocks())


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("recipe", "card", "cards", "needs", "largest"),
    [("cogact-base-lora-24gb", "24GiB", 1, 19.44, 46), ("cogact-base-4x22gb", "22GiB", 4, 14.99, 50)],
)
def test_policies_of_seven_billion_weights(recipe, card, cards, needs, largest, skipped):
    found = make_plan(read_request([f"recipe={recipe}", f"card={card}", f"cards={cards}"]))
    assert found.asked is not None and found.recommended is found.asked
    assert found.asked.forecast.needed / GIB == pytest.approx(needs, abs=0.005)
    assert found.largest_batch == largest
    assert len(skipped) >= 154 * 2, "77 of 93 blocks, two micro-batches, two sizes of batch"


class Layer(nn.Module):
    """Something to describe."""

    def __init__(self, width: int = 4, rate: float = 0.1, place: int = 0, **more: object) -> None:
        super().__init__()
        self.inner, self.drop = nn.Linear(width, width), nn.Dropout(rate)
        self.layer_idx = place
        vars(self).update(more)

    def forward(self, x: Tensor) -> Tensor:
        """[B, D] to the same."""
        return self.drop(self.inner(x))


def test_modules_are_equal_but_for_names_and_numbers():
    def look(place: int, **settings: object):
        return describe_module(Layer(place=place, **settings), f"layers.{place}")

    assert look(0) == look(1)
    assert look(0, called="layers.0.") == look(1, called="layers.1.")  # as peft writes it
    assert look(0, options={"a": [1, 2]}) == look(1, options={"a": [1, 2]})
    shared = object()
    assert look(0, other=shared) == look(1, other=shared)
    for changed in ({"width": 5}, {"rate": 0.2}, {"window": 8}, {"other": object()}, {"options": {"a": [1, 3]}}):
        assert look(0, options={"a": [1, 2]}, other=shared) != look(
            1, **({"options": {"a": [1, 2]}, "other": shared} | changed)
        )
    frozen = Layer()
    frozen.inner.weight.requires_grad_(False)
    assert look(0) != describe_module(frozen, "layers.0")
    assert look(0) != describe_module(Layer().half(), "layers.0")
    assert look(0) != describe_module(Layer().eval(), "layers.0")
    assert look(0, flag=True) != look(0, flag=1)
