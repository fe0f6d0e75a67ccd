"""What a build is told, from the table alone, and how its failures are put into words."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import docker.errors
import pytest
import requests

from vla_ft.environment.facts import Gpus
from vla_ft.environment.table import REPOSITORY, load_table
from vla_ft.errors import UserError
from vla_ft.host import containers, images, labels
from vla_ft.host.attention import Attention

SDPA = Attention(("sdpa", "eager"), "", None, "")


@pytest.mark.parametrize("name", [environment.name for environment in load_table().environments])
def test_arguments_come_from_the_table(name: str) -> None:
    table = load_table()
    environment = table.environment(name)
    found = images.arguments(environment, table, SDPA, "abc")
    assert found["TORCH"] == environment.torch and found["LOCK"] == environment.lock_hash
    assert found["NVIDIA_VISIBLE_DEVICES"] == ("all" if environment.cuda else "void")
    cards = set(filter(None, found["CARDS"].split(",")))
    assert {card.name for card in table.cards_of(name)} - cards == set() or name == "cpu"
    assert all(environment.holds(table.card(card).compute_capability) for card in cards)


def test_every_argument_is_declared_in_the_dockerfile() -> None:
    table = load_table()
    text = (REPOSITORY / "docker" / "Dockerfile").read_text()
    declared = set(re.findall(r"^ARG (\w+)", text, re.MULTILINE))
    assert set(images.arguments(table.environment("cu128"), table, SDPA, "abc")) | {"BASE"} == declared


def test_command_names_secrets_by_file_and_never_by_content(tmp_path: Path) -> None:
    secret = tmp_path / "ca.pem"
    secret.write_text("CONTENT")
    words = images.command("vla_ft:x", {"ENVIRONMENT": "cpu"}, {"ca": secret}, "local/debian:bookworm")
    assert words[:3] == ["docker", "buildx", "build"] and words[-1] == "."
    assert words[words.index("--secret") + 1] == f"id=ca,src={secret}"
    assert "BASE=local/debian:bookworm" in words and not [word for word in words if "CONTENT" in word]


def test_without_a_base_the_dockerfile_pins_one_by_digest() -> None:
    assert not [word for word in images.command("x", {}, {}, None) if word.startswith("BASE=")]
    text = (REPOSITORY / "docker" / "Dockerfile").read_text()
    assert re.search(r"^ARG BASE=\S+@sha256:[0-9a-f]{64}$", text, re.MULTILINE)


def test_ca_bundle_is_the_one_of_ssl_cert_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = tmp_path / "ca.pem"
    bundle.write_text("x")
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    assert images.ca_bundle(None) == bundle
    monkeypatch.delenv("SSL_CERT_FILE")
    assert images.ca_bundle(None) is None
    with pytest.raises(UserError, match="does not exist"):
        images.ca_bundle(str(tmp_path / "absent.pem"))
    bundle.write_bytes(b"x" * (images.MAXIMUM_SECRET + 1))
    with pytest.raises(UserError, match=str(images.MAXIMUM_SECRET)):
        images.ca_bundle(str(bundle))


@pytest.mark.parametrize(
    ("output", "kind", "words"),
    [
        ("------\n > [internal] load metadata for docker.io/library/x:1:\n", UserError, "invoke base"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM\n", images.BuildFailed, "not the one that the lock names"),
        ("OSError: [Errno 28] No space left on device\n", UserError, "docker builder prune"),
        ("SSLError(SSLCertVerificationError: CERTIFICATE_VERIFY_FAILED)\n", UserError, "--ca-bundle"),
        ("gcc: boom\n", images.BuildFailed, "build.log"),
    ],
)
def test_failures_say_what_to_do(output: str, kind: type[Exception], words: str, tmp_path: Path) -> None:
    error = images.explain(output, None, tmp_path / "build.log")
    assert type(error) is kind and words in str(error)


def test_source_hash_follows_content_and_names(tmp_path: Path) -> None:
    package = tmp_path / "vla_ft"
    package.mkdir()
    (package / "a.py").write_text("1")
    first = images.source_hash(tmp_path)
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "a.pyc").write_text("x")
    assert images.source_hash(tmp_path) == first
    (package / "a.py").rename(package / "b.py")
    renamed = images.source_hash(tmp_path)
    (package / "b.py").write_text("2")
    assert len({first, renamed, images.source_hash(tmp_path)}) == 3


def test_build_context_admits_only_what_is_named() -> None:
    """Runs, data, secrets and environments lie in the clone; the ignore file starts from nothing."""
    lines = [line for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    admitted = {line[1:].split("/")[0] for line in lines if line.startswith("!")}
    assert lines[0] == "*"
    assert admitted == {"docker", "envs", "examples", "vla_ft", "tests", "pyproject.toml", "README.md", "LICENSE"}


class Engine:
    """Stands for Docker in a build: names point at what was built under them; the self-test passes, fails or raises."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.names: dict[str, str] = {}
        self.builds: list[str] = []
        self.outcome: object = True
        monkeypatch.setattr(containers, "require_plugin", lambda name: None)
        monkeypatch.setattr(images, "EVIDENCE", folder)
        monkeypatch.setattr(images, "wheel_folders", lambda given: [])
        monkeypatch.setattr(images, "_run", self.run)
        monkeypatch.setattr(images, "selftest", self.selftest)
        monkeypatch.setattr(containers, "rename", self.rename)
        monkeypatch.setattr(containers, "remove_image", lambda name: self.names.pop(name))

    def run(self, words: list[str], *_: object) -> None:
        tag = words[words.index("--tag") + 1]
        self.builds.append(tag)
        self.names[tag] = f"build {len(self.builds)}"

    def selftest(self, image: str, *_: object) -> dict[str, object]:
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return {"passed": self.outcome, "checks": []}

    def rename(self, source: str, target: str) -> SimpleNamespace:
        self.names[target] = self.names.pop(source)
        return SimpleNamespace(attrs={"Size": 2e6})


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Engine:
    return Engine(monkeypatch, tmp_path)


CPU = load_table().environment("cpu")


def test_two_builds_at_once_never_share_a_candidate(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one build proves its image, another finishes: the name goes to what was proved."""
    proved: list[str] = []

    def selftest(image: str, *_: object) -> dict[str, object]:
        if not proved:
            proved.append(engine.names[image])
            engine.run(["--tag", labels.candidate_name("vla_ft:cpu")])
        return {"passed": True, "checks": []}

    monkeypatch.setattr(images, "selftest", selftest)
    assert images.build(CPU, echo=lambda line: None).image == "vla_ft:cpu"
    assert engine.names["vla_ft:cpu"] == proved[0] == "build 1"
    assert len(set(engine.builds)) == 2 and not any(name in engine.builds[:1] for name in engine.names)


def test_a_build_takes_another_name(engine: Engine) -> None:
    assert images.build(CPU, echo=lambda line: None, name="mine:cpu").image == "mine:cpu"
    assert list(engine.names) == ["mine:cpu"]


def test_a_failed_image_is_kept_under_the_name_that_is_told(engine: Engine) -> None:
    engine.names["vla_ft:cpu"] = "older"
    engine.outcome = False
    with pytest.raises(images.BuildFailed, match="vla_ft:cpu stays what it was: the new image is vla_ft:cpu-failed"):
        images.build(CPU, echo=lambda line: None)
    assert engine.names == {"vla_ft:cpu": "older", "vla_ft:cpu-failed": "build 1"}


def test_a_build_that_is_interrupted_leaves_no_candidate(engine: Engine) -> None:
    engine.outcome = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        images.build(CPU, echo=lambda line: None)
    assert engine.names == {}


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Stands for an image with CUDA: keeps how its containers were started; ``refuse`` fails those with cards."""
    known = SimpleNamespace(started=[], refuse=False, runtime=False, state="ok")

    def run_isolated(name: str, command: list[str], **options: object) -> containers.Finished:
        known.started.append(options)
        if known.refuse and options.get("gpus"):
            raise docker.errors.APIError("x", explanation="could not select device driver")
        return containers.Finished(0, '{"passed": true, "gpus": 0, "checks": []}\n', "")

    image = SimpleNamespace(attrs={"Config": {"Labels": {labels.CUDA: "12.8", labels.ENVIRONMENT: "cu128"}}})
    monkeypatch.setattr(containers, "image", lambda name: image)
    monkeypatch.setattr(containers, "run_isolated", run_isolated)
    monkeypatch.setattr(containers, "has_nvidia_runtime", lambda: known.runtime)
    monkeypatch.setattr(images, "gather_gpus", lambda: Gpus(known.state))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return known


@pytest.mark.parametrize(
    ("runtime", "state", "asked"), [(True, "no library", True), (False, "ok", True), (False, "no library", False)]
)
def test_cards_are_asked_for_where_there_may_be_some(
    inside: SimpleNamespace, runtime: bool, state: str, asked: bool
) -> None:
    inside.runtime, inside.state = runtime, state
    images.selftest("x", lambda line: None)
    assert [one["gpus"] for one in inside.started] == [asked]


def test_an_engine_that_hands_over_no_cards_proves_the_image_without(inside: SimpleNamespace) -> None:
    inside.refuse = True
    said: list[str] = []
    assert images.selftest("x", said.append)["passed"]
    assert [one.get("gpus", False) for one in inside.started] == [True, False]
    assert "could not select device driver" in said[0]


def test_the_choice_of_cards_is_handed_on(inside: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    images.selftest("x", lambda line: None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    images.selftest("x", lambda line: None)
    assert [one["environment"] for one in inside.started] == [{}, {"CUDA_VISIBLE_DEVICES": "1"}]


def test_a_self_test_that_hangs_fails_the_build(inside: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*_: object, **__: object) -> None:
        raise TimeoutError("did not end within 900 s")

    monkeypatch.setattr(containers, "run_isolated", hang)
    with pytest.raises(images.BuildFailed, match="did not end within 900 s"):
        images.selftest("x", lambda line: None)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("local/debian:bookworm", ("local/debian", "bookworm")),
        ("host:5000/name", ("host:5000/name", "latest")),
        ("host:5000/name:1", ("host:5000/name", "1")),
        ("name", ("name", "latest")),
    ],
)
def test_names_of_images_with_ports(name: str, expected: tuple[str, str]) -> None:
    assert containers.split_name(name) == expected


def test_a_container_that_does_not_end_is_removed_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    removed: list[bool] = []

    def wait(timeout: float) -> None:
        raise requests.exceptions.ReadTimeout

    container = SimpleNamespace(start=lambda: None, wait=wait, remove=lambda force, v: removed.append(force))
    made = SimpleNamespace(containers=SimpleNamespace(create=lambda *a, **k: container))
    monkeypatch.setattr(containers, "client", lambda: made)
    with pytest.raises(TimeoutError, match="`sleep 9` in x did not end within 2 s"):
        containers.run_isolated("x", ["sleep", "9"], timeout=2)
    assert removed == [True]
