"""Fetching from a hub: whole, interrupted, damaged, gated, pinned, without network. The hub runs on this machine."""

from __future__ import annotations

import base64
import errno
import json
import logging
import os
import random
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import pytest
from hub_server import Hub, sha256, wait_for

from vla_ft.errors import UserError
from vla_ft.weights import transfer
from vla_ft.weights.catalogue import Entry, Known, find_entry
from vla_ft.weights.fetching import fetch
from vla_ft.weights.places import read_record, resolve

ROOT = Path(__file__).parents[2]
LARGE = random.Random(0).randbytes(3_000_000)
HUGE = random.Random(1).randbytes(25_000_000)  # the library hands on 10 MiB at a time
PIECE = 10 * 1024**2
FILES = {
    "config.json": b'{"hidden": 8}',
    "checkpoints/policy.pt": LARGE,
    "modeling.py": b"raise SystemExit",
    "README.md": b"words",
}
SECRET = "hf_0123456789abcdef"


def entry(hub: Hub, **about: object) -> Entry:
    """A catalogue entry of lab/policy, pinned to its commit."""
    repository = hub.repositories.get("lab/policy") or hub.add("lab/policy", dict(FILES))
    values: dict[str, object] = {
        "name": "policy", "about": "", "license": "MIT", "source": "test", "repository": "lab/policy",
        "revision": repository.commit, "files": ("config.json", "checkpoints/*.pt"), "load": "checkpoints/policy.pt",
        **about,
    }  # fmt: skip
    return Entry(**values)  # type: ignore[arg-type]


def run_fetch(*words: str) -> subprocess.Popen[str]:
    """``vla-ft fetch`` in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "vla_ft", "fetch", *words],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def test_everything_listed_arrives_and_nothing_else(hub: Hub, root: Path, said: list[str]) -> None:
    folder = fetch(entry(hub), say=said.append)
    assert folder == root / "policy"
    assert (folder / "checkpoints/policy.pt").read_bytes() == LARGE
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert names == {"config.json", "checkpoints/policy.pt", "fetched.json", ".lock"}
    record = read_record(folder)
    assert record is not None and record.complete and record.trust == "pinned"
    assert {name: file.sha256 for name, file in record.files.items()} == {
        name: sha256(FILES[name]) for name in ("config.json", "checkpoints/policy.pt")
    }
    assert record.revision == hub.repositories["lab/policy"].commit
    assert "Trusted on first use" not in "\n".join(said)
    assert not hub.asked_for("xet-read-token"), "the bytes came over another protocol than the one that resumes"

    asked = len(hub.requests)
    fetch(entry(hub), say=said.append)
    assert said[-1].startswith("'policy' is here: 2 files, 3 MB, all hashes right.")
    assert len(hub.requests) == asked, "what is here was asked for again"


def test_a_killed_download_continues_where_it_was(hub: Hub, root: Path) -> None:
    commit = hub.add("lab/policy", {**FILES, "checkpoints/policy.pt": HUGE}).commit
    words = ("lab/policy@main", "files=config.json,checkpoints/*.pt")
    folder = root / "lab--policy@main"
    part = folder / "checkpoints/policy.pt.part"
    hub.stop_after = 22_000_000
    process = run_fetch(*words)
    wait_for(lambda: part.is_file() and part.stat().st_size == 2 * PIECE)
    process.kill()
    process.wait()
    record = read_record(folder)
    assert record is not None and not record.complete and record.revision == commit
    with pytest.raises(
        UserError, match=r"not whole: the download was interrupted\. Run `vla-ft fetch lab/policy@main`"
    ):
        resolve("lab/policy@main")

    hub.repositories["lab/policy"].branches = ("other",)  # `main` moves: the commit of the first try is kept
    hub.stop_after = None
    hub.release.set()
    before = hub.sent
    again = run_fetch(*words)
    assert again.wait(60) == 0, again.stdout
    assert (folder / "checkpoints/policy.pt").read_bytes() == HUGE
    assert hub.asked_for("/storage/")[-1].range == f"bytes={2 * PIECE}-"
    assert hub.sent - before == len(HUGE) - 2 * PIECE
    assert not part.exists()


def test_a_connection_that_breaks_is_continued(hub: Hub) -> None:
    hub.add("lab/policy", {**FILES, "checkpoints/policy.pt": HUGE})
    hub.cut_after = PIECE + 1
    folder = fetch(entry(hub), say=lambda line: None)
    assert (folder / "checkpoints/policy.pt").read_bytes() == HUGE
    assert [one.range for one in hub.asked_for("/storage/")] == [None, f"bytes={PIECE}-", f"bytes={2 * PIECE}-"]


def test_a_server_without_ranges_starts_again(hub: Hub, root: Path) -> None:
    part = root / "policy" / "checkpoints" / "policy.pt.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(LARGE[:1000])
    hub.ranges = False
    folder = fetch(entry(hub), say=lambda line: None)
    assert (folder / "checkpoints/policy.pt").read_bytes() == LARGE


def test_a_file_that_was_there_before_is_measured(hub: Hub, root: Path) -> None:
    path = root / "policy" / "checkpoints" / "policy.pt"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"EVIL" * 750_000)
    assert path.stat().st_size == len(LARGE)
    with pytest.raises(UserError, match=r"policy\.pt was not fetched and is 3000000 bytes with sha256 .*Move it away"):
        fetch(entry(hub), say=lambda line: None)
    assert path.read_bytes()[:4] == b"EVIL" and read_record(root / "policy") is None
    path.write_bytes(LARGE)
    record = read_record(fetch(entry(hub), say=lambda line: None))
    assert record is not None and record.files["checkpoints/policy.pt"].sha256 == sha256(LARGE)
    assert not hub.asked_for("/storage/"), "what was right was fetched again"


def test_damaged_in_transit_is_named_and_removed(hub: Hub, root: Path) -> None:
    hub.damage = lambda content: content[:-1] + b"x"
    with pytest.raises(
        UserError, match=rf"policy\.pt arrived as 3000000 bytes with sha256 .*expected .*{sha256(LARGE)}"
    ):
        fetch(entry(hub, files=("checkpoints/*.pt",)), say=lambda line: None)
    assert not list(root.rglob("*.pt*"))
    hub.damage = lambda content: content.replace(b"8", b"9")
    with pytest.raises(UserError, match=r"config\.json arrived as .*expected .*git blob"):
        fetch(entry(hub, name="other", files=("config.json",), load=""), say=lambda line: None)


@pytest.mark.parametrize("how", ["changed", "cut", "gone"])
def test_damaged_on_the_disk_is_named_and_fetched_again(hub: Hub, how: str, said: list[str]) -> None:
    folder = fetch(entry(hub), say=lambda line: None)
    path = folder / "checkpoints/policy.pt"
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(LARGE[:-1] if how == "cut" else LARGE[:-1] + b"x")
    if how != "changed":  # a whole hash takes a minute for 30 GB: only `fetch` takes it
        with pytest.raises(UserError, match=r"policy\.pt is missing or has another size\. Run `vla-ft fetch policy"):
            resolve(folder)
    fetch(entry(hub), say=said.append)
    assert path.read_bytes() == LARGE
    assert str(path) in said[0] and ("missing" in said[0] or "damaged" in said[0])


def test_gated(hub: Hub, root: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    hub.add("lab/policy", dict(FILES), gated=True)
    hub.accounts = {SECRET: True, "hf_other": False}
    asked = r"accept it with your account on https://huggingface\.co/lab/policy, then set HF_TOKEN"
    for known in (True, False):  # by the catalogue, or only by the hub
        with pytest.raises(UserError, match=asked):
            fetch(entry(hub, gated=known), say=said.append)
        shutil.rmtree(root, ignore_errors=True)
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(UserError, match="the account of the token in HF_TOKEN has not"):
        fetch(entry(hub, gated=True), say=said.append)
    monkeypatch.setenv("HF_TOKEN", "hf_unknown")
    shutil.rmtree(root)
    with pytest.raises(UserError, match=r"does not accept the token in HF_TOKEN\. Make a new one"):
        fetch(entry(hub, gated=True), say=said.append)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setenv("HUGGING_FACE_HUB_TOKEN", SECRET)
    folder = fetch(entry(hub, gated=True), say=said.append)
    assert (folder / "checkpoints/policy.pt").read_bytes() == LARGE
    # The token went to the hub alone: not to the storage, the screen or the disk.
    assert {one.authorization for one in hub.asked_for("/storage/")} == {None}
    assert any(one.authorization == f"Bearer {SECRET}" for one in hub.asked_for("/resolve/", "HEAD"))
    kept = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert SECRET.encode() not in kept and SECRET not in "\n".join(said)


def test_nothing_is_left_of_a_refusal(hub: Hub, root: Path) -> None:
    with pytest.raises(UserError, match="accept it"):
        fetch(entry(hub, gated=True), say=lambda line: None)
    assert list(root.iterdir()) == []


def test_pins_are_enforced(hub: Hub, root: Path) -> None:
    wrong = "0" * 40
    with pytest.raises(UserError, match=f"lab/policy has no revision '{wrong}' at .*; no other was taken"):
        fetch(entry(hub, revision=wrong), say=lambda line: None)
    name = "checkpoints/policy.pt"
    with pytest.raises(
        UserError, match=f"policy.pt of 'policy' is .*{sha256(LARGE)} in lab/policy; the catalogue pins"
    ):
        fetch(entry(hub, known={name: Known(sha256="0" * 64)}), say=lambda line: None)
    with pytest.raises(UserError, match="the catalogue pins 7 bytes"):
        fetch(entry(hub, known={name: Known(bytes=7)}), say=lambda line: None)
    assert not list(root.glob("*"))
    with pytest.raises(UserError, match=r"config\.json arrived as .*expected .*sha256 0000"):
        fetch(entry(hub, known={"config.json": Known(sha256="0" * 64)}), say=lambda line: None)


def test_the_first_use_is_said_recorded_and_then_enforced(hub: Hub, root: Path, said: list[str]) -> None:
    loose = entry(hub, revision=None, unverified="no commit was found")
    folder = fetch(loose, say=said.append)
    assert any(line.startswith("Trusted on first use: no commit was found. ") for line in said)
    record = read_record(folder)
    assert record is not None and record.trust == "first use"
    (folder / "config.json").unlink()
    # The repository moves on: what is fetched again is still the commit of the first time, and it is gone.
    hub.add("lab/policy", {**FILES, "config.json": b"{}"}).commit = "1" * 40
    with pytest.raises(UserError, match=r"no longer has|has no revision"):
        fetch(loose, say=said.append)
    # Another commit in the catalogue than in the folder.
    with pytest.raises(UserError, match=r"holds commit .* 'policy' is pinned to 1{40}\. Remove the folder"):
        fetch(entry(hub), say=said.append)
    with pytest.raises(UserError, match=r"holds lab/policy, not lab/other\. Name another folder"):
        fetch(entry(hub, repository="lab/other"), say=said.append)


def test_names_that_are_not_there(hub: Hub, root: Path) -> None:
    with pytest.raises(UserError, match=r"Unknown weights 'cogact-bas'\. Did you mean 'cogact-base'"):
        find_entry("cogact-bas")
    with pytest.raises(UserError, match=r"has no repository lab/nothing that you may see\. It is mistyped, or it is"):
        fetch(find_entry("lab/nothing"), say=lambda line: None)
    with pytest.raises(UserError, match=r"has none of \*\.bin\. Name others with files="):
        fetch(entry(hub, files=("*.bin",)), say=lambda line: None)
    with pytest.raises(UserError, match=r"files=\*\.py is not taken"):
        find_entry("lab/policy", ["*.py"])
    with pytest.raises(UserError, match="The catalogue says which files 'rdt-1b' consists of"):
        find_entry("rdt-1b", ["*.json"])
    assert list(root.iterdir()) == []


def test_a_hostile_listing_writes_nowhere_else(hub: Hub, tmp_path: Path) -> None:
    hub.add("lab/policy", {"../../outside.json": b"{}", "/tmp/outside.json": b"{}", "config.json": b"{}"})
    folder = fetch(entry(hub, files=("*",), load=""), say=lambda line: None)
    assert {path.name for path in folder.rglob("*.json")} == {"config.json", "fetched.json"}
    assert not list(tmp_path.glob("outside*"))


@pytest.mark.parametrize("key", ["files", "load"])
@pytest.mark.parametrize("name", ["../victim.json", "/victim.json", "run.py", "fetched.json"])
def test_a_record_that_names_files_elsewhere_is_refused(hub: Hub, root: Path, key: str, name: str) -> None:
    folder = fetch(entry(hub), say=lambda line: None)
    victim = root / "victim.json"
    victim.write_text("mine")
    values = json.loads((folder / "fetched.json").read_text())
    values[key] = {name: {"bytes": 1, "sha256": "0" * 64}} if key == "files" else name
    (folder / "fetched.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"fetched\.json cannot be read \(it lists '.*', which is no file of weights"):
        fetch(entry(hub), say=lambda line: None)
    assert victim.read_text() == "mine"


def test_a_repository_with_a_file_of_the_records_name(hub: Hub, root: Path) -> None:
    hub.add("lab/policy", {"fetched.json": b"{}", "fetched.json/a.json": b"{}", "config.json": b"{}"})
    folder = fetch(entry(hub, files=("*",), load=""), say=lambda line: None)
    record = read_record(folder)
    assert record is not None and record.complete and set(record.files) == {"config.json"}


def test_the_password_of_an_endpoint_is_never_printed(
    hub: Hub, root: Path, said: list[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.address.replace("://", "://me:s3cret@"))
    hub.accounts["Basic " + base64.b64encode(b"me:s3cret").decode()] = True
    with pytest.raises(UserError) as failure:
        fetch(find_entry("lab/nothing"), say=said.append)
    said.append(str(failure.value))
    hub.add("lab/policy", dict(FILES))
    other = SimpleNamespace(commit_hash="x", etag="y")
    monkeypatch.setattr("vla_ft.weights.hub.get_hf_file_metadata", lambda *_, **__: other)
    with pytest.raises(UserError, match="answers with another file") as failure:
        fetch(entry(hub), say=said.append)
    said.append(str(failure.value))
    for address in ("http://me:s3cret@127.0.0.1:9", "me:s3cret@127.0.0.1:9", "ftp://me:s3cret@127.0.0.1"):
        monkeypatch.setenv("HF_ENDPOINT", address)
        with pytest.raises(UserError, match=r"127\.0\.0\.1") as failure:
            fetch(entry(hub, name="other"), say=said.append)
        said.append(str(failure.value))
    logging.getLogger("huggingface_hub.utils._http").warning("thrown while requesting http://me:s3cret@127.0.0.1:9/api")
    assert "requesting http://127.0.0.1:9/api" in caplog.text
    assert "s3cret" not in "\n".join(said) + caplog.text


@pytest.mark.parametrize("page", [b"<html>Welcome to the airport", b"{}"])
def test_a_captive_portal_is_named(hub: Hub, page: bytes) -> None:
    hub.page = page
    with pytest.raises(UserError, match=r"127\.0\.0\.1:\d+ does not answer as a hub does .*A page to log in"):
        fetch(entry(hub), say=lambda line: None)


@pytest.mark.parametrize("address", ["hub.local", "https://", "http://hub.local:port", "ftp://hub.local"])
def test_an_endpoint_that_is_no_address(hub: Hub, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", address)
    with pytest.raises(UserError, match=r"HF_ENDPOINT is '.*', which is no address\. Give it whole"):
        fetch(entry(hub), say=lambda line: None)


def test_names_and_folders_that_cannot_be(hub: Hub) -> None:
    with pytest.raises(UserError, match=r"'\.\./etc' cannot be a repository's name"):
        fetch(find_entry("../etc"), say=lambda line: None)
    with pytest.raises(UserError, match=r"Cannot write /proc/x \(.*\)\. Name a folder of yours"):
        fetch(entry(hub), to=Path("/proc/x"), say=lambda line: None)


def test_a_full_disk_is_told_before_and_during(hub: Hub, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda path: namedtuple("Usage", "free")(1000))
        with pytest.raises(
            UserError, match=r"'policy' needs 3 MB more in .*policy, and 1 kB are free there\. Free some"
        ):
            fetch(entry(hub), say=lambda line: None)
        assert not hub.asked_for("/resolve/", "HEAD")

    def full(url: str, file: object, **_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(transfer, "http_get", full)
        with pytest.raises(UserError, match=r"The disk of .*policy is full\. What has arrived is kept"):
            fetch(entry(hub), say=lambda line: None)
    fetch(entry(hub), say=lambda line: None)


def test_without_network(hub: Hub, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = fetch(entry(hub), to=tmp_path / "disk", say=lambda line: None)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError) as failure:
        fetch(entry(hub), say=lambda line: None)
    sentence = str(failure.value)
    assert sentence.startswith("Cannot reach 127.0.0.1:9 (ConnectError") and "\n" not in sentence
    assert f"copy DIR here as {root / 'policy'}" in sentence
    shutil.copytree(elsewhere, root / "policy")  # what the sentence says
    folder = fetch(entry(hub), say=lambda line: None)
    assert resolve(folder) == root / "policy" / "checkpoints" / "policy.pt"

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    fetch(entry(hub), say=lambda line: None)
    (folder / "config.json").write_bytes(b"{}")
    with pytest.raises(UserError, match=r"HF_HUB_OFFLINE forbids the network, and here it is: config\.json is 2 bytes"):
        fetch(entry(hub), say=lambda line: None)
    assert (folder / "config.json").exists(), "what cannot be replaced was removed"
    with pytest.raises(UserError, match=r"not whole in .*other"):
        fetch(entry(hub, name="other"), say=lambda line: None)


def test_a_second_process_waits_and_finds_it(hub: Hub, root: Path) -> None:
    commit = hub.add("lab/policy", dict(FILES)).commit
    words = (f"lab/policy@{commit}", "files=checkpoints/*.pt")
    hub.stop_after = 1_000_000
    first = run_fetch(*words)
    wait_for(lambda: hub.sent >= 1_000_000)
    second = run_fetch(*words)
    assert second.stdout is not None
    waited = second.stdout.readline()
    assert waited.startswith("Another process fetches into"), waited
    hub.release.set()
    assert first.wait(60) == 0 and second.wait(60) == 0
    assert "is here: 1 files" in second.stdout.read()
    assert len(hub.asked_for("/storage/")) == 1


def test_a_file_of_a_plain_address(hub: Hub, root: Path) -> None:
    hub.plain["resnet.pth"] = LARGE
    about = {"repository": None, "revision": None, "url": f"{hub.address}/plain/resnet.pth", "files": ("resnet.pth",)}
    whole = entry(hub, **about, load="resnet.pth", known={"resnet.pth": Known(len(LARGE), sha256(LARGE))})
    assert whole.pinned
    assert resolve(fetch(whole, say=lambda line: None)).read_bytes() == LARGE
    begin = entry(hub, **about, name="begin", load="resnet.pth", known={"resnet.pth": Known(sha256=sha256(LARGE)[:8])})
    assert not begin.pinned
    record = read_record(fetch(begin, say=lambda line: None))
    assert record is not None and record.files["resnet.pth"].sha256 == sha256(LARGE)
    wrong = entry(hub, **about, name="wrong", load="resnet.pth", known={"resnet.pth": Known(sha256="0" * 8)})
    with pytest.raises(UserError, match=r"resnet\.pth arrived as .*expected .*sha256 00000000"):
        fetch(wrong, say=lambda line: None)
    del hub.plain["resnet.pth"]
    with pytest.raises(UserError, match="answered 404"):
        fetch(entry(hub, **about, name="gone", load="resnet.pth"), say=lambda line: None)
    by_hand = entry(hub, repository=None, revision=None, by_hand="https://drive.example/x")
    with pytest.raises(UserError, match=r"page for browsers alone: https://drive\.example/x"):
        fetch(by_hand, say=lambda line: None)


def test_the_command(hub: Hub, root: Path) -> None:
    hub.add("lab/policy", {"model.safetensors": b"x" * 10, "config.json": b"{}", "modeling.py": b"x"})
    done = run_fetch("lab/policy")
    assert done.wait(60) == 0
    assert {path.name for path in (root / "lab--policy").iterdir()} >= {"model.safetensors", "config.json"}
    assert not (root / "lab--policy" / "modeling.py").exists()
    assert json.loads((root / "lab--policy" / "fetched.json").read_text())["trust"] == "first use"
    wrong = run_fetch("lab/policy", "too=x")
    assert wrong.wait(60) == 2 and wrong.stdout is not None
    assert "takes one NAME, to=DIR and files=PATTERN,PATTERN; it was given 'too='" in wrong.stdout.read()
