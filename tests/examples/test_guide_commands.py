"""Every command, snippet, key and file name of the ACT guide, after the committed table of substitutions."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from guide_project import PROJECT, TINY, script
from guide_text import GUIDE, Substitutions, blocks, commands, inline_code
from narrow_trunk import narrow_trunk
from omegaconf import OmegaConf

from policy.act.translator import Flags, guide_config, read_guide_config, translate
from vla_ft.data.formats.registry import open_dataset

pytestmark = pytest.mark.skipif(not GUIDE.is_file(), reason=f"the guide is not here: {GUIDE}")


def write_guide_dataset(source: Path, folder: Path) -> None:
    """A dataset in the guide's documented layout: an object array of dicts, 14 actions, lengths as int64."""
    reader = open_dataset(source)
    observations: list[dict[str, np.ndarray]] = []
    actions: list[np.ndarray] = []
    for episode, length in enumerate(reader.lengths):
        read = reader.read(episode, np.arange(length), ("image_left", "image_right", "proprio", "action"))
        actions.append(read["action"])
        observations += [
            {"image_left": left, "image_right": right, "state": state}
            for left, right, state in zip(read["image_left"], read["image_right"], read["proprio"], strict=True)
        ]
    folder.mkdir()
    np.save(folder / "observations.npy", np.array(observations, dtype=object), allow_pickle=True)
    np.save(folder / "actions.npy", np.concatenate(actions))
    np.save(folder / "rollout_length.npy", np.asarray(reader.lengths, dtype=np.int64))


@pytest.fixture
def root(tmp_path: Path, demos: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the project with the guide's ``your_dataset`` in it, as the working folder."""
    folder = tmp_path / "act_guide"
    shutil.copytree(PROJECT, folder, ignore=shutil.ignore_patterns("__pycache__", "runs"))
    write_guide_dataset(demos, folder / "your_dataset")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    return folder


class Shell:
    """Runs command lines in this process; ``python`` of a shell script only notes what it was asked to run."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, device: str) -> None:
        self._folder, self._patch, self._device = folder, monkeypatch, device

    @staticmethod
    def variables(name: str, value: str) -> tuple[str, str]:
        """A variable that a line sets."""
        return name, value

    def run(self, line: str) -> int:
        """Run one line; its exit code."""
        words = shlex.split(line)
        with self._patch.context() as patch:
            while re.fullmatch(r"[A-Z_]+=\S*", words[0]):
                patch.setenv(*self.variables(*words.pop(0).split("=", 1)))
            if words[:2] == ["python", "scripts/train_act.py"]:
                return script().main(words[2:])
            if words[:2] == ["python", "-c"]:
                exec(compile(words[2], "<guide>", "exec"), {})
                return 0
            if words[0] == "./demo_training.sh":
                return self._script(words)
            return subprocess.run(words, check=False, stdout=subprocess.DEVNULL).returncode

    def _script(self, words: list[str]) -> int:
        called, stand_in = self._folder / "called", self._folder / "bin" / "python"
        stand_in.parent.mkdir(exist_ok=True)
        stand_in.write_text(f'#!/bin/sh\n[ "$1" = -c ] || printf "%s\\n" "$@" >"{called}"\n')
        stand_in.chmod(stand_in.stat().st_mode | stat.S_IXUSR)
        path = f"{stand_in.parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(words, env={**os.environ, "PATH": path, "DEVICE": self._device}, check=False)
        return done.returncode or self.run("python " + shlex.join(called.read_text().splitlines()))


def walk(table: Substitutions, shell: Shell, size: Sequence[str], capfd: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Type everything in the guide's order, but its evaluation last; how much was typed, and what was printed."""
    blocks_ = re.findall(r"^```(bash|python)\n(.*?)^```", GUIDE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    blocks_.sort(key=lambda block: "act-train-1000" in block[1] or "create_temporal_dataloader" in block[1])
    namespace: dict[str, Any] = {}
    typed, said = 0, ""
    for language, body in blocks_:
        for documented in commands(body) if language == "bash" else [body]:
            line = table.typed(documented, size)
            typed += bool(line)
            if language == "python":
                exec(compile(line, "<guide>", "exec"), namespace)
            elif line:
                assert shell.run(line) == 0, f"{documented}\n  typed as: {line}\n{''.join(capfd.readouterr())}"
        said += capfd.readouterr().out
    assert "Environment ready!" in said and "Dataset valid!" in said and "Policy loaded!" in said
    assert 0 < float(re.search(r"Mean Absolute Error: ([\d.]+)", said)[1]) < 1
    return typed, said


def test_every_command_and_snippet_works_in_the_guides_order(root, monkeypatch, capfd):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    table = Substitutions(on_card=False)
    with narrow_trunk():
        typed, said = walk(table, Shell(root, monkeypatch, "cpu"), [*TINY, "--num_epochs=2"], capfd)
    assert typed == 17, "the guide has gained or lost a command: look at it, and at the table"
    assert not list(table.stale()), "rows of the table that no line of the guide needs"
    documented_tree_is_there(root)
    lines_have_the_documented_form(said)


@pytest.mark.gpu
def test_every_command_and_snippet_works_on_a_card_as_typed(root, monkeypatch, capfd):
    from vla_ft.weights.catalogue import find_entry
    from vla_ft.weights.places import is_here

    monkeypatch.setenv("WANDB_MODE", "offline")
    if torch.cuda.device_count() < 2:  # the second card of the guide's machine
        monkeypatch.setattr(Shell, "variables", staticmethod(lambda name, value: (name, "0")))
    short = ["--num_epochs=2", "--checkpoint_frequency=1", "--log_frequency=1"]
    if not is_here(find_entry("clip-vit-b-32")):
        short += ["--encoder.pretrained=null", "--encoder.freeze=false"]
    typed, _ = walk(Substitutions(on_card=True), Shell(root, monkeypatch, "cuda"), short, capfd)
    assert typed == 18


def documented_tree_is_there(root: Path) -> None:
    """The guide's "Output Directory Structure", but for the numbers of epochs."""
    (tree,) = (block for block in blocks("") if block.startswith("runs/my_experiment/"))
    names = re.findall(r"[├└]── (\w[\w.\-]*)", tree)
    assert names == ["config.yaml", "checkpoint", "act-train-10.pth", "act-train-20.pth", "wandb"]
    run = root / "runs" / "exp1"
    assert (run / "config.yaml").is_file() and any((run / "wandb").glob("offline-run-*"))
    assert sorted(path.name for path in (run / "checkpoint").glob("*.pth")) == ["act-train-1.pth", "act-train-2.pth"]


def lines_have_the_documented_form(said: str) -> None:
    """Every line of the guide's "Terminal Output" but the dots has its like among what was printed."""
    (shown,) = (block for block in blocks("") if block.startswith("=== ACT Training ==="))
    documented = [line for line in shown.splitlines() if line not in ("", "...")]
    assert len(documented) == 13
    for line in documented:
        form = re.sub(r"\d[\d,]*(\\\.\d{3})?", r"\\d[\\d,]*\1", re.escape(line))
        form = re.sub(r"(\\\.)\d{3}", r"\1\\d{3}", form)
        assert re.search(f"^{form}", said, re.MULTILINE), f"nothing printed looks like: {line}"


def yaml_blocks() -> list[str]:
    """The guide's YAML; empty where it is not here, so that collection works."""
    return blocks("yaml") if GUIDE.is_file() else []


@pytest.mark.parametrize("block", [b for b in yaml_blocks() if "program:" not in b], ids=lambda b: b.split(":")[0])
def test_every_documented_section_is_understood_and_translated(block, demos, tmp_path):
    section = OmegaConf.create(block)
    shipped = OmegaConf.load(PROJECT / "configs" / "policy_act.yaml")
    # The section stands in place of the shipped one, as in a file of the user's own.
    merged = {**OmegaConf.to_container(shipped), **OmegaConf.to_container(section)}
    translation = translate(guide_config(merged), Flags(output_dir=str(tmp_path), device="cpu", dataset_dir=str(demos)))
    assert translation.run.policy == "act"
    example = any(word in block for word in ("pri3d", "null", "temporal_ensemble"))
    if not example:
        assert OmegaConf.merge(shipped, section) == shipped, "the shipped file has the documented values"


def test_advice_in_the_text_names_keys_that_exist(demos):
    advice = [code for code in inline_code() if re.fullmatch(r"[a-z_.]+: \S+", code)]
    assert {"hidden_dim: 256", "chunk_size: 100", "lr: 5e-6", "encoder.freeze: true"} <= set(advice)
    for code in advice:
        key, value = code.split(": ")
        config = read_guide_config(PROJECT / "configs" / "policy_act.yaml", [f"{key}={value}"])
        for part in key.split("."):
            config = getattr(config, part)
        assert config == OmegaConf.create(f"x: {value}").x or config == float(value)


def test_named_files_exist():
    text = GUIDE.read_text(encoding="utf-8")
    section = text[text.index("### Important Files") :].split("###")[1]
    names = re.findall(r"^- `([^`]+)`", section, re.MULTILINE)
    assert len(names) == 5
    assert all((PROJECT / name).exists() for name in names)


def test_the_sweep_file_is_the_documented_one_and_its_agents_line_trains(root, monkeypatch):
    (documented,) = (block for block in blocks("yaml") if "program:" in block)
    sweep = OmegaConf.load(PROJECT / "sweep.yaml")
    assert sweep == OmegaConf.create(documented)
    for name, value in {"WANDB_SWEEP_ID": "abc", "WANDB_RUN_ID": "trial7", "WANDB_MODE": "offline",
                        "ACT_DATASET_DIR": "your_dataset", "WANDB_SILENT": "true"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    # W&B's agent types the parameters in alphabetical order, as ${args}.
    trial = {"batch_size": 4, "kl_weight": 5.0, "lr": 3.2e-05}
    assert sorted(sweep.parameters) == sorted(trial)
    words = [f"--{name}={value}" for name, value in trial.items()]
    with narrow_trunk():
        assert script().main([*words, "--device=cpu", *TINY[:-3], "--num_epochs=1", "--log_frequency=1"]) == 0
    run = root / "runs" / "sweep-abc" / "trial7"
    saved = OmegaConf.load(run / "config.yaml")
    assert {name: saved[name] for name in trial} == trial
    metrics = (run / "metrics.jsonl").read_text()
    assert f'"{sweep.metric.name}"' in metrics
    assert any(path.name.endswith("trial7") for path in (run / "wandb").glob("offline-run-*"))


def test_the_demo_asks_before_it_starts(root):
    words = ["./demo_training.sh", "your_dataset", "runs/x"]
    stand_in = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    usage = subprocess.run(words[:2], env=stand_in, capture_output=True, text=True)
    assert usage.returncode == 2 and "Usage" in usage.stderr
    (root / "bin").mkdir()
    (root / "bin" / "python").write_text("#!/bin/sh\nexit 0\n")
    (root / "bin" / "python").chmod(0o755)
    path = {"PATH": f"{root / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    asked = subprocess.run(words, env=path, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert asked.returncode == 2 and "--yes" in asked.stderr


def test_the_demo_reads_paths_where_it_is_called(root, tmp_path):
    (root / "bin").mkdir()
    (root / "bin" / "python").write_text('#!/bin/sh\n[ "$1" = -c ] || printf "%s\\n" "$@"\n')
    (root / "bin" / "python").chmod(0o755)
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    path = {"PATH": f"{root / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    for dataset, place in {"my set": f"{elsewhere}/my set", "/data/x": "/data/x", "hub:a/b@c": "hub:a/b@c"}.items():
        words = [root / "demo_training.sh", dataset, "runs/x", "--yes", "--lr=1e-4"]
        said = subprocess.run(words, env=path, cwd=elsewhere, capture_output=True, text=True, check=True).stdout
        typed = said.splitlines()[said.splitlines().index("scripts/train_act.py") :]
        assert typed[typed.index("--dataset_dir") + 1] == place
        assert typed[typed.index("--output_dir") + 1] == f"{elsewhere}/runs/x"
        assert typed[-1] == "--lr=1e-4"
