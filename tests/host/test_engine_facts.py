"""The engine's answer as facts, with stand-ins for the SDK."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest

from vla_ft.environment.facts import Facts, Image
from vla_ft.host import engine, labels


class DockerException(Exception):
    pass


def sdk(info=None, images=(), refuse=False):
    module = ModuleType("docker")
    module.errors = SimpleNamespace(DockerException=DockerException)

    def from_env(timeout):
        if refuse:
            try:
                raise ConnectionRefusedError(111, "Connection refused")
            except OSError as inner:
                raise DockerException("Error while fetching server API version: (long)") from inner
        listed = SimpleNamespace(list=lambda filters: list(images))
        return SimpleNamespace(info=lambda: info, images=listed, close=lambda: None)

    module.from_env = from_env
    return module


@pytest.fixture
def plugins(monkeypatch):
    said = {"compose": "v2.26.1-4\n", "buildx": "github.com/docker/buildx v0.13.1+ds1 0.13.1\n"}

    monkeypatch.setattr(engine, "answer", lambda words: said.get(words[1]))
    return said


def test_an_engine_with_images(monkeypatch, plugins):
    def built(environment, *tags):
        return SimpleNamespace(tags=tags, labels={"vla_ft.environment": environment, "vla_ft.lock": "abc"})

    unproved = [labels.candidate_name("vla_ft:cpu"), labels.failed_name("vla_ft:cpu")]
    images = [built("cpu", "vla_ft:cpu", *unproved), built("cu128")]
    info = {"ServerVersion": "20.10.24", "Runtimes": {"runc": {}, "nvidia": {}}, "DockerRootDir": "/var/lib/docker"}
    monkeypatch.setitem(sys.modules, "docker", sdk(info, images))
    found = engine.gather_engine()
    assert (found.state, found.version, found.nvidia_runtime) == ("ok", "20.10.24", True)
    assert (found.compose, found.buildx) == ("2.26.1-4", "0.13.1+ds1")
    assert found.images == (Image("vla_ft:cpu", "cpu", "abc"),)


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        ({"Runtimes": {"runc": {}}}, False),
        ({"Runtimes": {"runc": {}}, "DiscoveredDevices": [{"Source": "cdi", "ID": "nvidia.com/gpu=0"}]}, True),
        ({}, False),
    ],
)
def test_cards_reach_containers_by_runtime_or_by_cdi(monkeypatch, plugins, info, expected):
    monkeypatch.setitem(sys.modules, "docker", sdk(info))
    assert engine.gather_engine().nvidia_runtime is expected


@pytest.mark.parametrize(
    ("options", "users"),
    [
        (["name=seccomp,profile=default"], ""),
        (["name=seccomp,profile=builtin", "name=rootless", "name=cgroupns"], "rootless"),
        (["name=seccomp,profile=default", "name=userns"], "remapped"),
        (None, ""),
    ],
)
def test_engines_that_map_users(monkeypatch, plugins, options, users):
    monkeypatch.setitem(sys.modules, "docker", sdk({"SecurityOptions": options}))
    assert engine.gather_engine().users == users


def test_missing_plugins(monkeypatch, plugins):
    plugins.clear()
    monkeypatch.setitem(sys.modules, "docker", sdk({}))
    found = engine.gather_engine()
    assert (found.state, found.compose, found.buildx) == ("ok", None, None)


def test_a_refused_socket_is_told_by_its_innermost_reason(monkeypatch):
    monkeypatch.setitem(sys.modules, "docker", sdk(refuse=True))
    found = engine.gather_engine()
    assert (found.state, found.message) == ("unreachable", "[Errno 111] Connection refused")


def test_the_clones_own_docker_folder_is_no_sdk(monkeypatch):
    monkeypatch.setitem(sys.modules, "docker", ModuleType("docker"))
    assert engine.gather_engine().state == "no sdk"
    monkeypatch.setitem(sys.modules, "docker", None)  # as where neither the SDK nor a folder of that name is
    assert engine.gather_engine().state == "no sdk"


def test_the_engines_disk_is_looked_at(monkeypatch, plugins, tmp_path):
    clone = Facts(disk_free_bytes={"/clone": 5})
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setitem(sys.modules, "docker", sdk({"DockerRootDir": str(tmp_path)}))
    found = engine.with_engine(clone).disk_free_bytes
    assert found["/clone"] == 5 and found[str(tmp_path)] > 0
    monkeypatch.setenv("DOCKER_HOST", "ssh://elsewhere")
    assert engine.with_engine(clone).disk_free_bytes == {"/clone": 5}
    monkeypatch.delenv("DOCKER_HOST")
    monkeypatch.setitem(sys.modules, "docker", sdk({"DockerRootDir": str(tmp_path / "in a virtual machine")}))
    assert engine.with_engine(clone).disk_free_bytes == {"/clone": 5}
