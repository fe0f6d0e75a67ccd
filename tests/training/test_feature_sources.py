"""Cached features of another camera, or of words that another tokenizer read, are refused, whatever the policy. So are
features of one wording where wordings are drawn."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from vla_ft.config import load_run_config
from vla_ft.errors import UserError
from vla_ft.policies.cogact.prompts import StandIn
from vla_ft.training.trainer import train

SHORT = (
    "steps=1", "batch.per_device=2", "data.workers=0", "data.mock.episodes=2", "data.mock.min_length=8",
    "data.mock.max_length=9", "validation.every=1", "validation.samples=1", "checkpoint.every=1", "device=cpu",
    "data.mock.cameras=[front,wrist]",
)  # fmt: skip
COGACT = ("recipe=cogact-mock", "model.image_size=28", "data.image_size=[28,28]", "model.num_ddim_steps=1",
          "freeze=[vision,projector,llm]", "frozen_features.parts=[vlm]")  # fmt: skip
POLICIES = {
    "cogact": (COGACT, "model.camera={}"),
    "pizero": (("recipe=pizero-mock", "freeze=[vlm]", "frozen_features.parts=[vlm]"), "data.cameras=[{}]"),
    "act": (("recipe=act-mock", "freeze=[backbone]", "frozen_features.parts=[backbone]"), "data.cameras=[{}]"),
}


def run(folder: Path, name: str, *words: str) -> str:
    console = Console(file=io.StringIO(), width=200)
    words = (*words, f"output={folder / name}", f"frozen_features.path={folder / 'features'}")
    train(load_run_config([*words]), console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("policy", POLICIES)
def test_another_camera(policy: str, tmp_path: Path) -> None:
    words, camera = POLICIES[policy]
    words = (*words, *SHORT)
    run(tmp_path, "front", *words, camera.format("front"))
    with pytest.raises(UserError, match=r"of something else: .*front.*wrist.*Delete"):
        run(tmp_path, "wrist", *words, camera.format("wrist"))
    if policy == "cogact":
        assert "reused" in run(tmp_path, "again", *words, camera.format("front"))


def test_another_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = (*COGACT, *SHORT, "model.camera=front")
    run(tmp_path, "first", *words)
    usual = StandIn.__call__
    monkeypatch.setattr(StandIn, "__call__", lambda self, text: [5, *usual(self, text)])
    with pytest.raises(UserError, match=r"the numbers that instructions become \(another tokenizer\) differ"):
        run(tmp_path, "second", *words)


def test_drawn_wordings_have_no_one_feature(tmp_path: Path) -> None:
    words = (*COGACT, *SHORT, "model.camera=front", "data.instructions=vary")
    with pytest.raises(UserError, match=r"of 'vlm' cannot be cached: data.instructions=vary.*data.instructions=first"):
        run(tmp_path, "varied", *words)
    assert not (tmp_path / "features").exists()


def test_a_tower_that_reads_one_frame_is_cached_whatever_the_wording(tmp_path: Path) -> None:
    words, camera = POLICIES["act"]
    assert "made" in run(tmp_path, "varied", *words, *SHORT, camera.format("front"), "data.instructions=vary")
