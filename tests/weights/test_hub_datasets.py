"""A LeRobot dataset of a hub by its name: fetched once, checked, then read offline."""

from __future__ import annotations

from pathlib import Path

import hub_server
import numpy as np
import pytest

from vla_ft.cli import main
from vla_ft.config import DataConfig, check, load_run_config
from vla_ft.data.formats.lerobot_writer import LeRobotWriter
from vla_ft.data.formats.registry import open_dataset
from vla_ft.data.mock import MockConfig, describe, episode_steps
from vla_ft.errors import UserError
from vla_ft.host.mounts import inside
from vla_ft.weights.datasets import local_dataset

MOCK = MockConfig(episodes=2, min_length=4, max_length=6, image_size=(32, 32))


@pytest.fixture
def dataset(hub: hub_server.Hub, tmp_path: Path) -> Path:
    """The dataset as it was published, with files that are not taken."""
    writer = LeRobotWriter(tmp_path / "published", describe(MOCK), images="video")
    for episode in range(MOCK.episodes):
        writer.add(episode_steps(MOCK, episode), "go")
    folder = writer.finish()
    files = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    hub.add("datasets/lab/cubes", {**files, "README.md": b"hello", "meta/run.py": b"evil"}, branches=("main", "v3.0"))
    return folder


def test_fetched_by_name_and_read_offline(
    hub: hub_server.Hub, root: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(
        UserError, match=r"'lab/cubes@v3\.0' is not on this .*Run `vla-ft fetch dataset lab/cubes@v3\.0`"
    ):
        local_dataset("hub:lab/cubes@v3.0")
    assert main(["fetch", "dataset", "lab/cubes@v3.0"]) == 0
    assert "Trusted on first use" in capsys.readouterr().out
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    asked = len(hub.requests)
    folder = local_dataset("hub:lab/cubes@v3.0")
    assert folder == root / "datasets--lab--cubes@v3.0"
    assert not (folder / "README.md").exists()
    assert not (folder / "meta" / "run.py").exists()
    mine, theirs = open_dataset(folder), open_dataset(dataset)
    assert mine.fingerprint() == theirs.fingerprint()
    steps = np.arange(4)
    for key in ("action", "image_top"):
        assert np.array_equal(mine.read(1, steps, [key])[key], theirs.read(1, steps, [key])[key])
    assert main(["data", "convert", "from=hub:lab/cubes@v3.0", f"to={root / 'npz'}", "format=npz"]) == 0
    assert main(["fetch", "dataset", "lab/cubes@v3.0"]) == 0, "what is whole needs no network"
    assert len(hub.requests) == asked


def test_a_commit_is_enforced_and_damage_is_fetched_again(hub: hub_server.Hub, root: Path, dataset: Path) -> None:
    commit = hub.repositories["datasets/lab/cubes"].commit
    assert main(["fetch", "dataset", f"lab/cubes@{commit}"]) == 0
    folder = local_dataset(f"hub:lab/cubes@{commit}")
    victim = next(folder.rglob("*.parquet"))
    whole = victim.read_bytes()
    victim.write_bytes(whole[:-1])
    with pytest.raises(UserError, match=f"has another size. Run `vla-ft fetch dataset lab/cubes@{commit}`"):
        local_dataset(f"hub:lab/cubes@{commit}")
    assert main(["fetch", "dataset", f"lab/cubes@{commit}"]) == 0
    assert victim.read_bytes() == whole
    hub.damage = lambda content: content[::-1]
    victim.unlink()
    assert main(["fetch", "dataset", f"lab/cubes@{commit}"]) == 2
    assert not victim.exists()


def test_mistakes(hub: hub_server.Hub, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for words, message in (
        (["cubes"], "'cubes' names no dataset of a hub"),
        (["lab/cubes@nothing"], "has no revision 'nothing'"),
        (["lab/other"], "has no repository lab/other"),
        (["lab/cubes", "files=x"], "takes one owner/name[@revision] and to=DIR"),
        ([], "takes one owner/name[@revision]"),
    ):
        assert main(["fetch", "dataset", *words]) == 2
        assert message in capsys.readouterr().err
    assert main(["train", "data.path=hub:lab/cubes", f"output={tmp_path / 'run'}", "device=cpu"]) == 2
    assert "Run `vla-ft fetch dataset lab/cubes`" in capsys.readouterr().err
    assert local_dataset("/data/cube") == Path("/data/cube")
    assert inside(["data.path=hub:lab/cubes"], {tmp_path: "/data"}) == ["data.path=hub:lab/cubes"]


@pytest.fixture
def fetched(
    hub: hub_server.Hub, root: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> hub_server.Hub:
    """The dataset is here; from now on nothing may ask the hub."""
    assert main(["fetch", "dataset", "lab/cubes@v3.0"]) == 0
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("VLA_FT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("VLA_FT_RUNS", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    hub.requests.clear()
    return hub


def test_a_mix_of_a_hubs_dataset_and_ones_own(fetched: hub_server.Hub, dataset: Path, tmp_path: Path) -> None:
    assert main(["data", "convert", f"from={dataset}", f"to={tmp_path / 'own' / 'mine'}", "format=npz"]) == 0
    said = {"action_kind": "joint", "action_mode": "absolute"}
    mix = {"cubes": {"path": "hub:lab/cubes@v3.0", "weight": 2.0}, "mine": {}}
    values = {"path": str(tmp_path / "own"), "mix": mix, "cameras": ["top"], **said}
    config = check(DataConfig, values, "test")
    reader = config.open(config.path)
    mine, theirs = reader.read(1, np.arange(4), ["action"]), reader.read(3, np.arange(4), ["action"])
    assert len(reader.lengths) == 4
    assert np.array_equal(mine["action"], theirs["action"])
    assert (reader.name_of(0)[:6], reader.weights) == ("cubes:", {"cubes": 2.0, "mine": 1.0})
    one = config.open_one("hub:lab/cubes@v3.0", "cubes")
    assert np.array_equal(one.read(1, np.arange(4), ["action"])["action"], mine["action"])
    for name, message in (
        ("hub:lab/others@v3.0", "Run `vla-ft fetch dataset lab/others@v3.0`"),
        ("hub:cubes", "'hub:cubes' names no dataset of a hub"),
    ):
        with pytest.raises(UserError, match=message):
            check(DataConfig, {**values, "mix": {"cubes": {"path": name}}}, "test").open(values["path"])
    assert not fetched.requests


def test_a_recipe_from_a_hubs_dataset_keeps_its_name(
    fetched: hub_server.Hub, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["recipe", "from-data", "hub:lab/cubes@v3.0", "policy=act"]) == 0
    assert "cubes-act.yaml is written" in capsys.readouterr().out
    data = load_run_config([f"recipe={tmp_path / 'cubes-act.yaml'}"]).data
    assert (data.path, data.format, data.cameras) == ("hub:lab/cubes@v3.0", "auto", ("top",))
    assert data.open(data.path).lengths.tolist() == open_dataset(local_dataset(data.path)).lengths.tolist()
    words = ["data.mix.cubes.path=hub:lab/cubes@v3.0", "output=mix.yaml", "policy=act"]
    assert main(["recipe", "from-data", str(tmp_path), *words]) == 0
    mixed = load_run_config([f"recipe={tmp_path / 'mix.yaml'}"]).data
    assert mixed.mix["cubes"].path == "hub:lab/cubes@v3.0"
    assert len(mixed.open(mixed.path).lengths) == MOCK.episodes
    assert main(["data", "check", "hub:lab/cubes@v3.0", "images=none"]) == 0
    assert not fetched.requests
    assert main(["recipe", "from-data", "hub:lab/others", "policy=act"]) == 2
    assert "Run `vla-ft fetch dataset lab/others`" in capsys.readouterr().err
