"""Every `invoke ...` and `vla-ft ...` of the documents is read by the command's own parser, word by word."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from invoke import Program

from vla_ft.cli import COMMANDS, DATA_VERBS, RECIPE_VERBS
from vla_ft.cli.entry import USAGE
from vla_ft.cli.words import without_dashes
from vla_ft.config import from_arguments, load_run_config, recipe_names
from vla_ft.data.convert import ConvertConfig
from vla_ft.data.mock import MockConfig
from vla_ft.deployment.evaluation import EvaluationConfig
from vla_ft.deployment.export import LEROBOT, ExportConfig
from vla_ft.environment.table import load_table
from vla_ft.errors import UserError
from vla_ft.inspection.check import CheckConfig
from vla_ft.inspection.draft import DraftConfig
from vla_ft.inspection.overview import InspectConfig
from vla_ft.inspection.words import path_first
from vla_ft.planning.command import read_request
from vla_ft.policies.registry import POLICIES, load_policy
from vla_ft.weights.catalogue import find_entry
from vla_ft.weights.datasets import dataset_entry

ROOT = Path(__file__).parents[1]
SHELL = [ROOT / ".ci" / "run", *sorted((ROOT / ".github" / "workflows").glob("*.yml"))]
PROSE = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(path: Path) -> list[str]:
    """Command lines that begin with `invoke`: in code spans (which may break a line), indented blocks and scripts."""
    text = path.read_text(encoding="utf-8")
    if path in SHELL:
        return re.findall(r"^[^#\n]*?\b(invoke .*)$", text, re.MULTILINE)
    blocks = re.findall(r"^    .*?\b(invoke .*)$", text, re.MULTILINE)
    prose = re.sub(r"^    .*$", "", text, flags=re.MULTILINE)
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]
    return blocks + [span for span in spans if span.startswith("invoke ")]


FOUND = [(path.name, line) for path in (*PROSE, *SHELL) if path.is_file() for line in commands(path)]


def parse(line: str) -> tuple[Program, list[str]]:
    """The program after parsing, and the words behind ``--``. Nothing is run."""
    sys.path.insert(0, str(ROOT))
    try:
        import tasks
    finally:
        sys.path.remove(str(ROOT))
    words = shlex.split(line.split(">")[0], comments=True)
    program = Program(namespace=tasks.ns)
    program.create_config()
    program.parse_core(words)
    program.parse_collection()
    program.parse_tasks()
    return program, shlex.split(program.core.remainder)


def test_commands_are_found_everywhere() -> None:
    assert len(FOUND) > 25
    assert {"README.md", "environments.md", "training.md", "record.md", "images.yml", "run"} <= {
        name for name, _ in FOUND
    }


@pytest.mark.parametrize(("name", "line"), FOUND, ids=[f"{name}: {line}" for name, line in FOUND])
def test_a_documented_command_is_understood(name: str, line: str) -> None:
    program, rest = parse(line)
    (task,) = program.tasks
    given = {argument.name: argument.value for argument in task.args.values() if argument.got_value}
    gpu = str(given.get("gpu", "auto"))
    if not gpu.startswith("$") and gpu not in ("auto", "NAME", "X"):
        load_table().environment_for(gpu)
    for environment in given.get("env") or []:
        assert environment == "NAME" or load_table().environment(environment)
    if task.name == "train" and "…" not in rest:
        load_run_config(rest)
    if task.name in ("train", "record"):
        assert all(re.fullmatch(r"[a-z_.]+=\S+|…", word) for word in rest), rest


@pytest.mark.parametrize("line", ["invoke biuld", "invoke build --gpus a100", "invoke smoke --gpu", "invoke train x=1"])
def test_a_wrong_command_would_be_noticed(line: str) -> None:
    with pytest.raises(BaseException, match=r"(?i)no idea|did you|expects|not find|needed value"):
        parse(line)


def tool_commands(path: Path) -> list[tuple[str, bool]]:
    """Words behind `vla-ft` in indented blocks, which are whole commands, and in code spans, which may be parts."""
    text = path.read_text(encoding="utf-8")
    blocks = re.findall(r"^    (?:[^#\n]*&& )?vla-ft (.*)$", text, re.MULTILINE)
    prose = re.sub(r"^    .*$", "", text, flags=re.MULTILINE)
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]
    named = [(span.removeprefix("vla-ft "), False) for span in spans if span.startswith("vla-ft ")]
    return [(block, True) for block in blocks] + named


TYPED = [(path.name, *found) for path in PROSE if path.is_file() for found in tool_commands(path)]
ELLIPSES = ("…", "...")
FULL: dict[str, Callable[[Sequence[str]], object]] = {
    "train": load_run_config,
    "plan": read_request,
    "evaluate": lambda words: from_arguments(EvaluationConfig, words, "evaluate"),
    "export": lambda words: from_arguments(ExportConfig, without_dashes(words), "export"),
    "data check": lambda words: from_arguments(CheckConfig, path_first(words, "check"), "check"),
    "data inspect": lambda words: from_arguments(InspectConfig, path_first(words, "inspect"), "inspect"),
    "data convert": lambda words: from_arguments(ConvertConfig, without_dashes(words), "convert"),
    "data mock": lambda words: from_arguments(
        MockConfig, [word for word in without_dashes(words) if not word.startswith("output=")], "mock"
    ),
    "recipe from-data": lambda words: from_arguments(DraftConfig, path_first(without_dashes(words), "draft"), "draft"),
    "fetch": lambda words: words and find_entry(words[0]),
    "fetch dataset": lambda words: dataset_entry(words[0]),
}
"""Command, with its verb -> what reads its words before anything is done."""
NAMES = {"NAME", "owner/name", "owner/name@revision", "OWNER/NAME@REVISION"}
"""Stand for a name of the reader's own."""
WRITTEN = {"recipe=mine.yaml": ("recipe=act", "data.path=datasets/mine")}
"""A file that the line before has written, and what it says."""


def read_tool(line: str, complete: bool = True) -> None:
    """Let the command's own parser read its words. Raises what it raises."""
    words = [said for word in shlex.split(line, comments=True) for said in WRITTEN.get(word, (word,))]
    command, rest = words[0], words[1:]
    assert command in COMMANDS or command == "--help", f"there is no vla-ft {command}"
    verbs = {"data": DATA_VERBS, "recipe": RECIPE_VERBS, "fetch": {"dataset": None}}.get(command, {})
    if rest and rest[0] in verbs:
        command, rest = f"{command} {rest[0]}", rest[1:]
    elif command in ("data", "recipe"):
        assert not rest, f"there is no vla-ft {command} {rest[0]}"
    if command == "recipes":
        assert set(rest) <= set(recipe_names())
    # A part of a command, or one whose rest is the reader's own, is checked no further; a fetch has no parts.
    whole = (
        rest
        and (complete or command == "fetch")
        and not any(word.endswith(ELLIPSES) for word in rest)
        and not NAMES & set(rest)
    )
    if command in FULL and whole:
        FULL[command](rest)


def test_commands_of_the_tool_are_found() -> None:
    assert sum(name == "act.md" for name, *_ in TYPED) >= 9
    assert {"act.md", "data.md", "planning.md", "training.md", "weights.md"} <= {name for name, *_ in TYPED}


@pytest.mark.parametrize(("name", "line", "complete"), TYPED, ids=[f"{name}: {line}" for name, line, _ in TYPED])
def test_a_documented_command_of_the_tool_is_understood(name: str, line: str, complete: bool) -> None:
    read_tool(line, complete)


@pytest.mark.parametrize(
    "line",
    ["trian recipe=act", "data chekc x", "train recipe=act_guide", "plan recipe=act model.chunk=4", "fetch clip",
     "evaluate checkpoint=a data=b devcie=cuda", "data check a alow_pickle=true"],
)  # fmt: skip
def test_a_wrong_command_of_the_tool_would_be_noticed(line: str) -> None:
    with pytest.raises((UserError, AssertionError)):
        read_tool(line)


def test_the_help_names_published_weights_and_every_form_of_export() -> None:
    policies = [load_policy(name) for name in POLICIES]
    kinds = ("EXPORTS", "EXPORT_FOLDERS")
    forms = {form for policy in policies for kind in kinds for form in getattr(policy, kind, {})}
    assert forms == {"open-pi-zero", "cogact", "rdt"}
    export = USAGE.partition("\n  export ")[2].partition("\n  fetch ")[0]
    assert [form for form in (*LEROBOT, *sorted(forms)) if not re.search(rf"\b{form}\b", export)] == []
    evaluate = USAGE.partition("\n  evaluate ")[2].partition("\n  embed-language ")[0]
    assert all(words in " ".join(evaluate.split()) for words in ("published weights", "step*.pt", "statistics="))
