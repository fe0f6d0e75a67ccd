"""ACT trains from every format, and where images are lossless the numbers are the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_runs import TINY, metrics

from vla_ft.cli import main
from vla_ft.data.formats.registry import WRITERS


def losses(output: Path, format: str) -> list[dict[str, float]]:
    words = [*TINY, "steps=3", "validation.every=3", "checkpoint.every=3", f"output={output}", "device=cpu"]
    assert main(["train", *words, f"data.mock.format={format}"]) == 0
    return metrics(output)


@pytest.fixture(scope="module")
def from_aloha(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, float]]:
    return losses(tmp_path_factory.mktemp("aloha"), "aloha")


@pytest.mark.parametrize("format", sorted(WRITERS.keys() - {"aloha"}))
def test_the_same_losses_from_every_format(tmp_path: Path, from_aloha: list[dict[str, float]], format: str) -> None:
    found = losses(tmp_path, format)
    assert [line["step"] for line in found if "train/loss" in line] == [1, 2, 3]
    assert found == from_aloha
