"""Importing CogACT's weights from published files, and writing them back: what is taken, and what is refused."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
import torch
from cogact_examples import description, model, publish, published, small_config, statistics
from rich.console import Console
from safetensors.torch import save_file
from torch import nn

from vla_ft.config import load_run_config
from vla_ft.deployment.export import ExportConfig, _refuse_incomplete, export
from vla_ft.errors import UserError
from vla_ft.policies.base import TrainedFacts
from vla_ft.policies.cogact import load_weights
from vla_ft.policies.cogact.inference import load_vla
from vla_ft.policies.cogact.layouts import HUGGING_FACE, published_name
from vla_ft.policies.cogact.model import CogAct
from vla_ft.policies.cogact.published_run import write_published
from vla_ft.tensor_stream import TensorReader
from vla_ft.training.trainer import train

TINY = (
    "recipe=cogact-mock", "steps=2", "batch.per_device=2", "data.workers=0", "data.mock.episodes=4", "device=cpu",
    "data.mock.min_length=8", "data.mock.max_length=10", "validation.every=2", "validation.samples=4",
    "logging.every=1", "checkpoint.every=2", "model.repeated_diffusion_steps=2",
)  # fmt: skip


def trained(output: Path, *words: str) -> list[float]:
    """A run in this process; its losses."""
    train(load_run_config([*TINY, f"output={output}", *words]), Console(file=io.StringIO()))
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [line["train/loss"] for line in lines if "train/loss" in line]


def same(one: CogAct, other: CogAct, prefix: str = "") -> bool:
    expected = other.state_dict()
    return all(torch.equal(v, expected[k]) for k, v in one.state_dict().items() if k.startswith(prefix))


def test_a_published_run_from_its_folder_or_file(tmp_path: Path) -> None:
    source = model()
    file = publish(tmp_path / "run", source)
    for path in (file, tmp_path / "run"):
        target = model(seed=1)
        ledger = load_weights(target, str(path))
        assert same(target, source) and not ledger.new and not ledger.unused
        assert len(ledger.renamed) == len(source.state_dict())
    load_weights(model(seed=1), str(file), "cogact")
    with pytest.raises(UserError, match="has the layout 'cogact', not 'prismatic'"):
        load_weights(model(seed=1), str(file), "prismatic")
    (tmp_path / "run/checkpoints/other.pt").write_bytes(file.read_bytes())
    with pytest.raises(UserError, match=r"2 weight files \(CogACT-Tiny\.pt, other\.pt\)\. Name the file"):
        load_weights(model(seed=1), str(tmp_path / "run"))


def test_the_average_of_the_head_is_knowingly_unused(tmp_path: Path) -> None:
    source = model()
    parts = published(source)
    parts["ema_diffusion"] = {key: torch.zeros_like(value) for key, value in parts["action_model"].items()}
    ledger = load_weights(target := model(seed=1), str(publish(tmp_path / "run", source, parts)))
    assert same(target, source) and len(ledger.unused) == len(parts["action_model"])


def test_openvla_starts_with_a_fresh_head(tmp_path: Path) -> None:
    source, target, before = model(), model(seed=1), model(seed=1)
    parts = {name: part for name, part in published(source).items() if name != "action_model"}
    ledger = load_weights(target, str(publish(tmp_path / "run", source, parts)))
    assert same(target, source, "vlm.") and same(target, before, "head.")
    assert ledger.new == sorted(name for name in before.state_dict() if name.startswith("head."))


def test_parts_that_a_file_leaves_out_come_from_the_base(tmp_path: Path) -> None:
    """Prismatic's own code saves what it trained; towers that were frozen lie in another file."""
    trained, base = model(), model(seed=1)
    whole = str(publish(tmp_path / "base", base))
    parts = published(trained)
    del parts["vision_backbone"]
    towerless = str(publish(tmp_path / "towerless", trained, parts))
    with pytest.raises(
        UserError, match=r"holds projector, llm and head and no vision: .*init\.base=\.\.\..*fresh head"
    ):
        load_weights(model(seed=2), towerless)
    ledger = load_weights(target := model(seed=2), towerless, base=whole)
    assert same(target, base, "vlm.vision.") and same(target, trained, "vlm.llm.") and same(target, trained, "head.")
    assert not ledger.new and len(ledger.renamed) == len(target.state_dict())
    told = str(ledger)
    assert f"{towerless} with vision of {whole}" in told and f"vision    from {whole}" in told
    assert f"head      from {towerless}" in told
    vla = load_vla(towerless, tokenizer="stand-in", base=whole)
    assert all(torch.equal(value, target.state_dict()[name]) for name, value in vla.state_dict().items())


def test_a_head_alone_with_openvla_below(tmp_path: Path) -> None:
    trained, below = model(), model(seed=1)
    head = str(publish(tmp_path / "head", trained, {"action_model": published(trained)["action_model"]}))
    flat = {theirs + name.removeprefix(ours): value.clone() for name, value in below.state_dict().items()
            for ours, theirs in HUGGING_FACE if name.startswith(ours)}  # fmt: skip
    save_file(flat, tmp_path / "model.safetensors")
    load_weights(target := model(seed=2), head, base=str(tmp_path))
    assert same(target, trained, "head.") and same(target, below, "vlm.")
    del flat["language_model.model.norm.weight"]
    save_file(flat | {"extra": torch.zeros(1)}, tmp_path / "model.safetensors")
    before = model(seed=2)
    with pytest.raises(UserError, match=r"missing .*'vlm\.llm\.model\.norm\.weight'.*unknown tensor '\(base\) extra'"):
        load_weights(target := model(seed=2), head, base=str(tmp_path))
    assert same(target, before)


def test_a_base_that_does_not_help_is_refused(tmp_path: Path) -> None:
    trained = model()
    whole = str(publish(tmp_path / "whole", trained))
    head = str(publish(tmp_path / "head", trained, {"action_model": published(trained)["action_model"]}))
    with pytest.raises(UserError, match="holds every part, nothing is left for"):
        load_weights(model(), whole, base=whole)
    with pytest.raises(UserError, match=r"Neither .* holds vision, projector and llm"):
        load_weights(model(), head, base=head)
    small = str(publish(tmp_path / "small", model(image_size=42)))
    with pytest.raises(UserError, match=r"'\(base\) vision_backbone\.dino_featurizer\.pos_embed' has shape"):
        load_weights(model(), head, base=small)


def test_an_export_without_its_frozen_parts(tmp_path: Path) -> None:
    """The head that cached features trained, small enough to hand on, back together with what it was trained from."""
    base = str(publish(tmp_path / "base", model(image_size=56, future_action_window_size=7)))
    frozen = ("freeze=[vision,projector,llm]", "frozen_features.parts=[vlm]", f"init.path={base}")
    trained(tmp_path / "run", *frozen, "data.mock.action_dim=7")
    out, own = tmp_path / "out", tmp_path / "own.safetensors"
    run = {"checkpoint": str(tmp_path / "run"), "frozen": "leave_out"}
    said = export(ExportConfig(output=str(out), format="cogact", **run))
    assert "without vision, projector, llm" in said
    saved = torch.load(out / "checkpoints/step-000002.pt", weights_only=True)
    assert set(saved["model"]) == {"action_model"} and saved["start"] == base
    with pytest.raises(UserError, match=re.escape(f"It was trained from '{base}': init.base={base}")):
        load_vla(out, tokenizer="stand-in")
    vla = load_vla(out, tokenizer="stand-in", base=base).state_dict()
    export(ExportConfig(output=str(own), **run))
    load_weights(again := CogAct(small_config(image_size=56, future_action_window_size=7), 7), str(own), base=base)
    with TensorReader(tmp_path / "run/checkpoints/step_00000002", "model") as reader:
        assert reader.entries.keys() == vla.keys()
        for name in reader.entries:
            assert torch.equal(vla[name], reader.tensor(name)) and torch.equal(again.state_dict()[name], vla[name]), (
                name
            )
    whole = str(tmp_path / "whole")
    export(ExportConfig(checkpoint=str(tmp_path / "run"), output=whole, format="cogact"))
    words = ("data.mock.action_dim=7", "seed=1")
    first = trained(tmp_path / "from_two", f"init.path={out}", f"init.base={base}", *words)
    assert first == trained(tmp_path / "from_one", f"init.path={whole}", *words)
    assert load_vla(tmp_path / "whole", tokenizer="stand-in").config.horizon == 8


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("freeze=[llm]",), "began with random weights"),
        (("init.path=a",), r"nothing was frozen \(freeze=\[\]\)"),
        (("freeze=[vision]", "init.path=a", "init.base=b"), r"two files \(init\.path=a, init\.base=b\)"),
        (("recipe=act-mock", "freeze=[backbone]", "init.path=a"), "policy 'act' cannot complete a file"),
    ],
)
def test_frozen_parts_that_would_be_lost_are_not_left_out(words: tuple[str, ...], message: str) -> None:
    config = ExportConfig(checkpoint="run", output="out", frozen="leave_out")
    with pytest.raises(UserError, match=message):
        _refuse_incomplete(config, load_run_config(["recipe=cogact-mock", *words]))


def test_a_base_needs_a_file_and_a_policy_that_takes_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"init\.path names none"):
        load_run_config([*TINY, "init.base=cogact-base"])
    words = ("recipe=act-mock", f"init.path={tmp_path}", f"init.base={tmp_path}", f"output={tmp_path / 'a'}")
    with pytest.raises(UserError, match="'act' takes whole files alone"):
        train(load_run_config(words))


def test_openvla_of_hugging_face(tmp_path: Path) -> None:
    source, target = model(), model(seed=1)
    flat = {}
    for name, value in source.state_dict().items():
        for ours, theirs in HUGGING_FACE:
            if name.startswith(ours):
                flat[theirs + name.removeprefix(ours).replace(".gamma", ".scale_factor")] = value.clone()
    save_file(flat, tmp_path / "model.safetensors")
    ledger = load_weights(target, str(tmp_path))
    assert same(target, source, "vlm.") and all(name.startswith("head.") for name in ledger.new)
    prismatic = {key: {n.replace(".gamma", ".scale_factor"): t for n, t in part.items()}
                 for key, part in published(source).items()}  # fmt: skip
    load_weights(again := model(seed=2), str(publish(tmp_path / "run", source, prismatic)))
    assert same(again, source)


def test_own_weights(tmp_path: Path) -> None:
    source, target = model(), model(seed=1)
    save_file(source.state_dict(), tmp_path / "own.safetensors")
    assert len(load_weights(target, str(tmp_path / "own.safetensors")).loaded) == len(source.state_dict())
    assert same(target, source)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"action_model_type": "DiT-S"},
            "holds the head DiT-mock, the configuration DiT-S. Set model.action_model_type",
        ),
        ({"future_action_window_size": 7}, r"predicts 4 actions, the configuration 8\. .*action_window_size=3"),
    ],
)
def test_another_head_is_named(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    file = publish(tmp_path / "run", model())
    with pytest.raises(UserError, match=message):
        load_weights(model(**changes), str(file))


def test_what_does_not_fit_changes_nothing(tmp_path: Path) -> None:
    file = publish(tmp_path / "run", source := model())
    narrow = CogAct(small_config(), 6)
    with pytest.raises(UserError, match=r"moves 7 dimensions, the dataset 6\. .*checkpoint without a head"):
        load_weights(narrow, str(file))
    parts = published(source)
    parts["llm_backbone"]["llm.model.norm.weight"] = torch.zeros(3)
    del parts["projector"]["projector.4.bias"]
    parts["vision_backbone"]["extra"] = torch.zeros(1)
    target, before = model(seed=1), model(seed=1)
    with pytest.raises(UserError) as refused:
        load_weights(target, str(publish(tmp_path / "odd", source, parts)))
    for words in ("'llm_backbone.llm.model.norm.weight' has shape (3,)", "unknown tensor 'vision_backbone.extra'",
                  "missing tensor 'vlm.projector.projector.4.bias'"):  # fmt: skip
        assert words in str(refused.value)
    assert same(target, before)
    torch.save({"model": {"a": torch.zeros(1)}}, tmp_path / "other.pt")
    with pytest.raises(UserError, match="no CogACT, OpenVLA or Prismatic checkpoint"):
        load_weights(target, str(tmp_path / "other.pt"))
    save_file({"head.weight": torch.zeros(1), "blocks.0.attn.qkv.weight": torch.zeros(1)}, tmp_path / "vit.safetensors")
    with pytest.raises(UserError, match=r"holds blocks\.0.*, head\.weight.*no CogACT, OpenVLA or Prismatic checkpoint"):
        load_weights(target, str(tmp_path / "vit.safetensors"))
    with pytest.raises(UserError, match="Choose policy 'cogact'"):
        load_weights(nn.Linear(1, 1), str(file))
    with pytest.raises(UserError, match="Did you mean 'cogact'"):
        load_weights(target, str(file), "cogat")


def test_written_as_published_and_read_back(tmp_path: Path) -> None:
    source = model()
    (tmp_path / "out").mkdir()
    facts = TrainedFacts(config=source.config, description=description(), statistics=statistics(), step=7)
    assert write_published(tmp_path / "out", source.state_dict().items(), facts) == len(source.state_dict())
    saved = torch.load(tmp_path / "out/checkpoints/step-000007.pt", weights_only=True)["model"]
    expected = published(source)
    assert {part: set(names) for part, names in saved.items()} == {part: set(names) for part, names in expected.items()}
    entry = json.loads((tmp_path / "out/dataset_statistics.json").read_text())["arm"]
    assert entry["action"]["mask"] == [True] * 6 + [False] and entry["action"]["q99"] == [3.0] * 7
    told = json.loads((tmp_path / "out/config.json").read_text())
    assert told["action_dim"] == 7 and told["future_action_window_size"] == 3
    again = load_vla(tmp_path / "out", tokenizer="stand-in")
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in again.state_dict().items())
    assert published_name("head.blocks.0.attn.qkv.weight") == "action_model.net.blocks.0.attn.qkv.weight"


def test_a_run_is_exported_loaded_and_continued_from(tmp_path: Path) -> None:
    first = trained(tmp_path / "first")
    said = export(ExportConfig(checkpoint=str(tmp_path / "first"), output=str(tmp_path / "out"), format="cogact"))
    assert "in cogact's form" in said and "step 2" in said
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "checkpoints", "config.json", "dataset_statistics.json",
    ]  # fmt: skip
    vla = load_vla(tmp_path / "out", tokenizer="stand-in")
    with TensorReader(tmp_path / "first/checkpoints/step_00000002", "model") as reader:
        assert all(torch.equal(vla.state_dict()[name], reader.tensor(name)) for name in reader.entries)
    export(ExportConfig(checkpoint=str(tmp_path / "first"), output=str(tmp_path / "own.safetensors")))
    starts = [trained(tmp_path / f"from_{number}", f"init.path={path}", "seed=1")
              for number, path in enumerate((tmp_path / "out", tmp_path / "own.safetensors"))]  # fmt: skip
    assert starts[0] == starts[1] != first
    with pytest.raises(UserError, match="exists already"):
        export(ExportConfig(checkpoint=str(tmp_path / "first"), output=str(tmp_path / "out"), format="cogact"))
    with pytest.raises(UserError, match="format=cogact is a folder"):
        export(ExportConfig(checkpoint=str(tmp_path / "first"), output=str(tmp_path / "a.pt"), format="cogact"))
    with pytest.raises(UserError, match="Did you mean 'cogact'"):
        export(ExportConfig(checkpoint=str(tmp_path / "first"), output=str(tmp_path / "b"), format="cogat"))
