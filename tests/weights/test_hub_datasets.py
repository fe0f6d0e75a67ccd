"""A LeRobot dataset of a hub by its name: fetched once, checked, then read offline."""

from __future__ import annotations

from pathlib import Path

import hub_server
import numpy as np
import pytest

from vla_ft.cli import main
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
