"""π0, RDT and CogACT on two processes, replicated and sharded: the losses of one process. (ACT: test_engine_runs.)"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from engine_runs import run_cases
from even_noise import even_noise
from rich.console import Console
from tiny_runs import metrics

from vla_ft.config import load_run_config
from vla_ft.training.trainer import train

COMMON = (
    "steps=3", "batch.accumulation=2", "data.workers=0", "device=cpu", "data.mock.episodes=4", "data.mock.min_length=8",
    "data.mock.max_length=10", "validation.every=3", "validation.samples=4", "logging.every=1", "checkpoint.every=3",
)  # fmt: skip
POLICIES = {
    "pizero": ("recipe=pizero-mock", "ema.decay=0.9"),
    "pizero_frozen": ("recipe=pizero-mock", "freeze=[vlm]", "model.adaptive=adaLN-Zero"),
    "rdt": (
        "recipe=rdt-mock", "data.mock.image_size=[16,16]", "model.hidden_size=16", "model.depth=2", "model.heads=2",
        "model.chunk_size=4", "model.vision.hidden_size=8",
    ),
    "cogact": (
        "recipe=cogact-mock", "model.image_size=28", "data.image_size=[28,28]", "model.repeated_diffusion_steps=2",
        "model.num_ddim_steps=2",
    ),
}  # fmt: skip
ENGINES = {"ddp": ("engine=ddp",), "fsdp2": ("engine=fsdp2",)}
OFTEN = ("pizero", "pizero_frozen", "rdt")
RARELY = pytest.param("cogact", marks=pytest.mark.nightly)  # test_cogact_engines compares the two engines in CI


def on_two(output: Path, policies: tuple[str, ...]) -> None:
    cases = {
        f"{policy}_{engine}": (*POLICIES[policy], *COMMON, "batch.per_device=1", *words)
        for policy in policies
        for engine, words in ENGINES.items()
    }
    run_cases(output, cases, processes=2, base=(), even=True)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every policy and engine on two processes, in one launch."""
    output = tmp_path_factory.mktemp("policies")
    on_two(output, OFTEN)
    return output


@pytest.mark.parametrize("policy", [*OFTEN, RARELY])
def test_two_processes_train_like_one(runs: Path, tmp_path: Path, policy: str) -> None:
    if policy not in OFTEN:
        on_two(runs := tmp_path / "two", (policy,))
    words = [*POLICIES[policy], *COMMON, "batch.per_device=2", f"output={tmp_path / 'one'}"]
    with even_noise():
        train(load_run_config(words), Console(quiet=True))
    one = metrics(tmp_path / "one")
    expected = [line["train/loss"] for line in one]
    assert len(expected) == 3 and len(set(expected)) == 3
    for engine in ENGINES:
        two = metrics(runs / f"{policy}_{engine}")
        np.testing.assert_allclose([line["train/loss"] for line in two], expected, rtol=5e-6, err_msg=engine)
        np.testing.assert_allclose(two[-1]["validation/loss"], one[-1]["validation/loss"], rtol=2e-5, err_msg=engine)
