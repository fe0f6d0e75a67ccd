"""The mock fine-tuning document's setting on its own cards: refused with its numbers, and what is recommended."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vla_ft.cli import main
from vla_ft.planning.output import PLAN

GIB = 2**30


@pytest.mark.nightly
def test_the_documents_setting_does_not_fit_and_is_told_what_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["recipe=custom-finetune", "card=22GiB", "cards=4", f"output={tmp_path}"]
    assert main(["plan", *words]) == 0, "something that keeps the maths fits"
    said = " ".join(capsys.readouterr().out.split())
    for sentence in (
        "7,455,803,303 trained weights, 174,420,768 frozen. As asked it does not fit",
        "need 27.9 GiB on each of 4 card(s) before the first sample is seen (weights 7.1, gradients 6.9, optimizer",
        "a smaller batch.per_device frees activations alone, so it cannot help",
        "Recommended: engine=zero3 offload=optimizer. The maths stays.",
    ):
        assert sentence in said
    plan = json.loads((tmp_path / PLAN).read_text())
    options = {" ".join(option["overrides"]): option for option in plan["options"]}
    assert not options[""]["fits"] and options[""]["needed"] > 27.9 * GIB
    assert plan["recommended"] == "engine=zero3 offload=optimizer"
    for line in ("engine=zero3 offload=optimizer", "offload=all", "optimizer.name=adamw8bit"):
        assert options[line]["fits"] and options[line]["needed"] < 22 * GIB
