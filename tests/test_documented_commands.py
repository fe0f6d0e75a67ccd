"""Every `invoke ...` of the documents and workflows is read by invoke's own parser: no option that does not exist."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
from invoke import Program

from vla_ft.config import load_run_config
from vla_ft.environment.table import load_table

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
