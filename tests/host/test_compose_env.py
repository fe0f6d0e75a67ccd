""".env: what compose is told about an environment, and that a user's own lines survive it."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest

from vla_ft.environment.table import load_table
from vla_ft.errors import UserError
from vla_ft.host import compose, containers, images, labels
from vla_ft.host.compose import Caller, merged, read_env, service_command, settings


def test_settings_of_a_cuda_environment() -> None:
    values = settings(load_table().environment("cu128"), Caller(1234, 5678), "compose.yaml:mine.yaml")
    assert values == {
        "VLA_FT_IMAGE": "vla_ft:cu128",
        "VLA_FT_DEVICE": "cuda",
        "VLA_FT_UID": "1234",
        "VLA_FT_GID": "5678",
        "COMPOSE_FILE": "compose.yaml:docker/compose.gpu.yaml:mine.yaml",
    }


def test_back_to_cpu_drops_the_cards_and_keeps_the_users_file() -> None:
    before = "compose.yaml:docker/compose.gpu.yaml:mine.yaml"
    values = settings(load_table().environment("cpu"), Caller(1, 1), before)
    assert (values["COMPOSE_FILE"], values["VLA_FT_DEVICE"]) == ("compose.yaml:mine.yaml", "cpu")


def test_other_lines_stay_where_they_are() -> None:
    text = "# mine\nHF_HOME=/x\nVLA_FT_UID=1\nexport VLA_FT_GID = 2\nVLA_FT_UID=3\n\nLAST='y'\n"
    assert merged(text, {"VLA_FT_UID": "7", "VLA_FT_GID": "8", "NEW": "9"}) == (
        "# mine\nHF_HOME=/x\nVLA_FT_UID=7\nVLA_FT_GID=8\n\nLAST='y'\nNEW=9\n"
    )


def test_use_writes_env_and_makes_folders(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("VLA_FT_RUNS=elsewhere\nTOKEN=1\n")
    values = compose.use(load_table().environment("cpu"), tmp_path)
    assert read_env(tmp_path / ".env") == {"VLA_FT_RUNS": "elsewhere", "TOKEN": "1", **values}
    assert not (tmp_path / "runs").exists() and not (tmp_path / ".env.new").exists()
    for name in ("datasets", "elsewhere"):
        assert (tmp_path / name).stat().st_uid == int(values["VLA_FT_UID"])


def test_env_with_a_token_keeps_its_mode(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("WANDB_API_KEY=x\n")
    (tmp_path / ".env").chmod(0o600)
    compose.use(load_table().environment("cpu"), tmp_path)
    assert stat.S_IMODE((tmp_path / ".env").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("uid", "environ", "expected"),
    [
        (501, {}, Caller(501, 20)),
        (0, {"SUDO_UID": "501", "SUDO_GID": "21"}, Caller(501, 21)),
        (0, {}, Caller(1000, 1000)),
        (0, {"SUDO_UID": "0", "SUDO_GID": "0"}, Caller(1000, 1000)),
    ],
)
def test_containers_never_run_as_root(
    uid: int, environ: dict[str, str], expected: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: uid)
    monkeypatch.setattr(os, "getgid", lambda: 20 if uid else 0)
    assert compose.caller(environ, rootless=False) == expected


def test_on_a_rootless_engine_the_containers_root_is_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    assert compose.caller({}, rootless=True) == Caller(0, 0)
    engine = SimpleNamespace(info=lambda: {"SecurityOptions": ["name=seccomp,profile=builtin", "name=rootless"]})
    monkeypatch.setattr(containers, "client", lambda: engine)
    assert compose.caller({}) == Caller(0, 0)

    def absent() -> None:
        raise UserError("no engine")

    monkeypatch.setattr(containers, "client", absent)
    assert compose.caller({}) != Caller(0, 0)


def test_service_commands() -> None:
    attached = service_command("train", ["recipe=act"], terminal=False)
    assert attached == ["docker", "compose", "run", "--rm", "--no-TTY", "train", "recipe=act"]
    detached = service_command("train", ["recipe=act"], detached_name="a")
    assert detached[3:] == ["--detach", "--name", "vla_ft-a", "--label", "vla_ft.run=a", "train", "recipe=act"]


def test_overrides_go_before_env_and_keep_the_users_own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("VLA_FT_IMAGE=vla_ft:cpu\nCOMPOSE_FILE=compose.yaml:mine.yaml\n")
    cu128 = load_table().environment("cu128")
    monkeypatch.delenv("COMPOSE_FILE", raising=False)
    found = compose.overrides(cu128, tmp_path)
    assert found["VLA_FT_IMAGE"] == "vla_ft:cu128"
    assert found["COMPOSE_FILE"] == "compose.yaml:docker/compose.gpu.yaml:mine.yaml"
    monkeypatch.setenv("COMPOSE_FILE", "compose.yaml:other.yaml")
    assert compose.overrides(cu128, tmp_path)["COMPOSE_FILE"] == "compose.yaml:docker/compose.gpu.yaml:other.yaml"


def test_an_image_of_an_older_lock_is_refused_and_one_of_older_source_named(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, said = load_table().environment("cpu"), []

    def built(lock: str, source: str) -> None:
        found = SimpleNamespace(attrs={"Config": {"Labels": {labels.LOCK: lock, labels.SOURCE: source}}})
        monkeypatch.setattr(containers, "image", lambda name: found)

    built("0" * 12, images.source_hash())
    with pytest.raises(UserError, match=f"from lock 000000000000, the clone's is {cpu.lock_hash}. `invoke build"):
        compose.require_image(cpu, said.append)
    built(cpu.lock_hash, "older")
    compose.require_image(cpu, said.append)
    assert len(said) == 1 and "holds another source" in said[0]
    built(cpu.lock_hash, images.source_hash())
    compose.require_image(cpu, said.append)
    assert len(said) == 1
    monkeypatch.setattr(containers, "image", lambda name: None)
    with pytest.raises(UserError, match="is not here"):
        compose.require_image(cpu, said.append)


def test_detached_runs_refuse_what_cannot_be() -> None:
    environment = load_table().environment("cpu")
    with pytest.raises(UserError, match="--local"):
        compose.run_detached(environment, [], local=True)
    with pytest.raises(UserError, match="cannot name a run"):
        compose.run_detached(environment, [], "a b")


def test_compose_hands_on_what_fetching_reads():
    text = (Path(__file__).parents[2] / "compose.yaml").read_text()
    handed = {line.strip().rstrip(":") for line in text.splitlines() if line.startswith("    ") and line.endswith(":")}
    needed = {"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE", "HTTPS_PROXY", "NO_PROXY"}
    assert needed <= handed
