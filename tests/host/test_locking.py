"""Making locks, with a stand-in for uv, and the loopback index that real uv resolves torch from."""

from __future__ import annotations

import hashlib
import re
import shutil
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from vla_ft.environment.locks import parse_lock
from vla_ft.environment.table import ENVIRONMENTS, load_table
from vla_ft.errors import UserError
from vla_ft.host import locking
from vla_ft.host.locking import refresh
from vla_ft.host.shadow_index import METADATA, has_shadow, shadow_index

UV = """#!{python}
# Copies the lock named ANSWER over the output and notes its own command line and constraints.
import pathlib, sys
words = sys.argv[1:]
notes = pathlib.Path({notes!r})
constraints = pathlib.Path(words[words.index("--constraint") + 1]).read_text()
with notes.open("a") as file:
    file.write(" ".join(words) + "\\n" + constraints)
answer = pathlib.Path({answer!r}) / (pathlib.Path(words[2]).parent.name + "-" + pathlib.Path(words[2]).stem)
if not answer.exists():
    sys.exit("no solution found")
pathlib.Path(words[words.index("--output-file") + 1]).write_text(answer.read_text())
"""


@pytest.fixture
def envs(tmp_path, monkeypatch):
    """A copy of envs/, and a uv that answers with the present locks until a test changes its answers."""
    root, answers, notes = tmp_path / "envs", tmp_path / "answers", tmp_path / "notes"
    shutil.copytree(ENVIRONMENTS, root)
    answers.mkdir()
    for name in ("cpu", "cu118", "cu126", "cu128"):
        shutil.copy(root / name / "requirements.lock", answers / f"{name}-requirements")
    cpu = (root / "cpu" / "requirements.lock").read_text()
    (answers / "cpu-sim").write_text(cpu + (root / "cpu" / "sim.lock").read_text())
    uv = tmp_path / "uv"
    uv.write_text(UV.format(python=sys.executable, notes=str(notes), answer=str(answers)))
    uv.chmod(0o755)
    monkeypatch.setattr(locking, "_uv", lambda: str(uv))
    return root


def answer(envs: Path, name: str, old: str, new: str) -> None:
    path = envs.parent / "answers" / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_nothing_moved_leaves_the_files_alone(envs):
    before = {path: path.stat().st_mtime_ns for path in envs.glob("*/*.lock")}
    done = refresh(load_table(envs))
    assert [one.changes for one in done] == [()] * 5
    assert {path: path.stat().st_mtime_ns for path in envs.glob("*/*.lock")} == before


def test_one_environment_is_held_to_the_others_versions(envs):
    (done,) = refresh(load_table(envs), ["cu128"])
    words = (envs.parent / "notes").read_text()
    assert "numpy==2.4.6" in words and "pydantic==" in words and "deepspeed==" in words
    assert "--only-binary :all: --no-binary deepspeed" in words, "it publishes no wheel"
    assert not re.search(r"^(torch|triton|nvidia-c\w+)", words, flags=re.MULTILINE), "CUDA differs by design"
    assert "--index" not in words, "the default index has this build of torch"
    assert done.lock == envs / "cu128" / "requirements.lock"


def test_builds_from_torchs_own_index_resolve_on_loopback(envs):
    refresh(load_table(envs), ["cu118"])
    assert re.search(r"--index http://127\.0\.0\.1:\d+/simple", (envs.parent / "notes").read_text())


def test_changes_are_told_and_written(envs):
    answer(envs, "cu126-requirements", "psutil==7.2.2", "psutil==7.3.0")
    (done,) = refresh(load_table(envs), ["cu126"])
    assert done.changes == ("~ psutil 7.2.2 -> 7.3.0",)
    assert "psutil==7.3.0" in (envs / "cu126" / "requirements.lock").read_text()
    assert not list(envs.glob("*/*.new"))


def test_an_add_on_holds_only_what_the_lock_lacks(envs):
    refresh(load_table(envs), ["cpu"])
    names = {pin.name for pin in parse_lock((envs / "cpu" / "sim.lock").read_text())}
    assert "mujoco" in names and "numpy" not in names


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("torch==2.7.1", "torch==2.7.0", "pins 2.7.1 with sha256"),
        ("06eea61f859436622e78dd0cdd51dbc8f8c6d76917a9cf0555a333f9eac31ec1", "0" * 64, "without that hash"),
        ("psutil==7.2.2", "psutil>=7", "no exact pin"),
        ("numpy==2.4.6", "# https://example.org\nnumpy==2.4.6", "holds an address"),
    ],
)
def test_a_wrong_answer_leaves_the_old_lock(envs, old, new, message):
    before = (envs / "cu126" / "requirements.lock").read_text()
    answer(envs, "cu126-requirements", old, new)
    with pytest.raises(UserError, match=message):
        refresh(load_table(envs), ["cu126"])
    assert (envs / "cu126" / "requirements.lock").read_text() == before


def test_no_solution_is_uvs_own_words(envs):
    (envs.parent / "answers" / "cu128-requirements").unlink()
    with pytest.raises(UserError, match=r"could not resolve requirements\.lock of 'cu128':\nno solution found"):
        refresh(load_table(envs), ["cu128"])


def test_without_uv_the_sentence_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"pip install -e \.\[lock\]"):
        refresh(load_table(), ["cpu"])


@pytest.mark.parametrize("name", ["cpu", "cu118"])
def test_the_loopback_index_serves_metadata_and_hash_but_no_wheel(name):
    environment = load_table().environment(name)
    with shadow_index(environment) as index:
        page = urllib.request.urlopen(f"{index}/torch/").read().decode()
        href = re.search(r'href="([^"#]+)#sha256=([0-9a-f]+)"', page)
        assert href and href[2] == environment.torch_sha256
        root = index.removesuffix("/simple")
        metadata = urllib.request.urlopen(f"{root}{href[1]}.metadata").read()
        assert hashlib.sha256(metadata).hexdigest() in page
        assert f"Version: {environment.torch}" in metadata.decode()
        for missing in (f"{root}{href[1]}", f"{index}/numpy/"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(missing)
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{index}/torch/")


def test_only_builds_off_the_default_index_have_a_shadow():
    assert [one.name for one in load_table().environments if has_shadow(one)] == ["cpu", "cu118"]


def test_metadata_of_another_torch_is_refused(envs):
    path = envs / "cu118" / METADATA
    path.write_text(path.read_text().replace("2.7.1+cu118", "2.7.0+cu118"))
    with pytest.raises(UserError, match=r"describes torch 2\.7\.0\+cu118, environment\.toml pins 2\.7\.1\+cu118"):
        refresh(load_table(envs), ["cu118"])


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["cpu", "cu118", "cu126", "cu128"])
def test_uv_still_resolves_every_lock(name, tmp_path):
    if shutil.which("uv") is None:
        pytest.skip("uv is not installed")
    root = tmp_path / "envs"
    shutil.copytree(ENVIRONMENTS, root)
    done = refresh(load_table(root), [name])
    moved = [line for one in done for line in one.changes if not line.startswith("#")]
    assert not moved, "the pins still fit, so none may move; new files of a pinned version are no move"


def test_a_full_disk_leaves_the_old_lock(envs, monkeypatch):
    before = (envs / "cu126" / "requirements.lock").read_text()
    answer(envs, "cu126-requirements", "psutil==7.2.2", "psutil==7.3.0")

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(locking.os, "replace", full)
    with pytest.raises(UserError, match=r"No space left on device\. The old lock is untouched"):
        refresh(load_table(envs), ["cu126"])
    assert (envs / "cu126" / "requirements.lock").read_text() == before
    assert not list(envs.glob("*/*.new"))
