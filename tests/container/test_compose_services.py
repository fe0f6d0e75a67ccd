"""compose.yaml, for real: valid with and without cards, hardened, and what its containers write is the caller's."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
from container_support import USER, Compose

from vla_ft.config import load_run_config, recipe_names
from vla_ft.host import containers
from vla_ft.host.compose import GPU_FILE, MAIN_FILE
from vla_ft.policies.registry import POLICIES
from vla_ft.training import smoke

pytestmark = pytest.mark.docker


def services(compose: Compose, **changes: str) -> dict[str, dict]:
    shown = compose("--profile", "tools", "config", "--format", "json", **changes)
    assert shown.returncode == 0, shown.stderr
    return json.loads(shown.stdout)["services"]


def test_every_service_is_hardened(compose: Compose) -> None:
    found = services(compose)
    assert set(found) == {"train", "smoke", "fetch", "plan", "shell", "tensorboard"}
    for service in found.values():
        assert service["read_only"] and service["init"]
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["pull_policy"] == "never"
        assert service["stop_grace_period"] == f"{containers.GRACE_SECONDS // 60}m0s"
        assert "deploy" not in service
    data = next(one for one in found["train"]["volumes"] if one["target"] == "/data")
    assert data["read_only"]
    ports = [(port["host_ip"], port["published"]) for port in found["tensorboard"].pop("ports")]
    assert ports == [("127.0.0.1", "6006")]
    assert not [name for name, service in found.items() if "ports" in service]


def test_gpu_file_reserves_all_cards(compose: Compose) -> None:
    found = services(compose, COMPOSE_FILE=f"{MAIN_FILE}:{GPU_FILE}", VLA_FT_DEVICE="cuda")
    for name in ("train", "smoke", "plan", "shell"):
        (device,) = found[name]["deploy"]["resources"]["reservations"]["devices"]
        assert (device["driver"], device["count"], device["capabilities"]) == ("nvidia", -1, ["gpu"])
        assert found[name]["environment"]["VLA_FT_DEVICE"] == "cuda"
    assert "deploy" not in found["tensorboard"]


def test_files_belong_to_the_caller_and_the_rest_is_read_only(compose: Compose, tmp_path: Path) -> None:
    script = (
        "touch /runs/mine; echo $VLA_FT_DEVICE; "
        "for place in /data/x /opt/vla_ft/x /usr/x; do touch $place 2>/dev/null && echo wrote $place; done; "
        "touch /tmp/x $HOME/x $HF_HOME.x && grep -c 'CapEff:.0000000000000000' /proc/self/status"
    )
    finished = compose("run", "--rm", "-T", "shell", "bash", "-c", script)
    assert finished.stdout.split() == ["cpu", "1"], finished.stderr
    assert (tmp_path / "runs" / "mine").stat().st_uid == USER


def test_unwritable_runs_folder_is_told_in_one_sentence(compose: Compose, tmp_path: Path) -> None:
    (tmp_path / "runs").chmod(0o555)
    finished = compose("run", "--rm", "-T", "train")
    assert finished.returncode == 2
    assert "/runs cannot be written by user" in finished.stderr and "invoke use" in finished.stderr


def test_missing_folder_is_not_made_by_the_engine(compose: Compose, tmp_path: Path) -> None:
    finished = compose("run", "--rm", "-T", "shell", "true", VLA_FT_RUNS=str(tmp_path / "absent"))
    assert finished.returncode != 0 and "does not exist" in finished.stderr
    assert not (tmp_path / "absent").exists()


def test_training_run(compose: Compose, tmp_path: Path) -> None:
    finished = compose("run", "--rm", "-T", "train", "steps=6", "checkpoint.every=3", "logging.every=1")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    (metrics,) = (tmp_path / "runs").rglob("metrics.jsonl")
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    assert len(losses) == 6 and all(math.isfinite(loss) for loss in losses)
    assert {path.stat().st_uid for path in (tmp_path / "runs").rglob("*")} == {USER}


def test_every_policy_learns_in_the_image(compose: Compose, tmp_path: Path) -> None:
    """Each mock recipe trains, saves, continues and lowers its loss, with no network and nothing fetched."""
    finished = compose("run", "--rm", "-T", "smoke", "checkpoint.keep_last=1", HF_HUB_OFFLINE="1")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    told = re.findall(r"^(\S+): ok: loss ([\d.]+) -> ([\d.]+) in \d+ steps", finished.stdout, re.MULTILINE)
    assert [name for name, *_ in told] == [name for name in recipe_names() if name.endswith(smoke.SUFFIX)]
    assert {load_run_config([f"recipe={name}"]).policy for name, *_ in told} == set(POLICIES)
    assert all(float(last) < float(first) for _, first, last in told)
    assert {path.stat().st_uid for path in (tmp_path / "runs").rglob("*")} == {USER}


def test_trainer_refuses_another_device_than_promised(compose: Compose, tmp_path: Path) -> None:
    finished = compose("run", "--rm", "-T", "train", VLA_FT_DEVICE="cuda")
    assert finished.returncode == 2
    assert "CUDA device was promised" in finished.stderr and "Traceback" not in finished.stderr
    assert not list((tmp_path / "runs").rglob("metrics.jsonl"))
