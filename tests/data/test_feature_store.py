"""Rows come back as they went in, whatever is killed, damaged or full."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch

from vla_ft.data.content import hash_files
from vla_ft.data.feature_store import CachedFeatures, Feature, FeatureFolder, FeatureStore, Layout
from vla_ft.data.windows import WindowSpec
from vla_ft.errors import UserError

LENGTHS = np.array([5, 9, 7])
ROWS = 21
FEATURES = {
    "feature_image_top": Feature(shape=(4, 2, 3), stored=torch.float32, computed=torch.float32),
    "feature_keys": Feature(shape=(3, 8), stored=torch.bfloat16, computed=torch.bfloat16),
    "feature_rounded": Feature(shape=(6,), stored=torch.float16, computed=torch.float32),
    "feature_scalar": Feature(shape=(), stored=torch.int64, computed=torch.int64),
}
KEY = {"weights": "abc"}


def layout(per_frame: bool = True, batch: int = 2) -> Layout:
    """Four rows a shard."""
    row = sum(feature.bytes for feature in FEATURES.values())
    return Layout.plan(ROWS, batch, 4 * row, per_frame, FEATURES)


def values(rows: list[int]) -> dict[str, torch.Tensor]:
    """Row r of feature number f is a made-up tensor that only (r, f) has."""
    made = {}
    for number, (name, feature) in enumerate(FEATURES.items()):
        each = []
        for row in rows:
            noise = torch.randn(feature.shape, generator=torch.Generator().manual_seed(100 * row + number))
            each.append((noise * 100).to(feature.stored))
        made[name] = torch.stack(each)
    return made


@pytest.fixture
def finished(tmp_path: Path) -> tuple[FeatureFolder, Layout]:
    folder, plan = FeatureFolder(tmp_path / "features"), layout()
    folder.folder.mkdir()
    folder.begin(KEY, plan)
    for number in folder.missing(plan):
        folder.write(number, values(list(plan.rows_of(number))))
    folder.finish({folder.shard(n).name: folder.describe(n) for n in range(plan.shards)})
    return folder, plan


def assert_rows(seen: dict[str, torch.Tensor], rows: list[int]) -> None:
    for name, expected in values(rows).items():
        assert seen[name].dtype == FEATURES[name].computed
        assert torch.equal(seen[name], expected.to(FEATURES[name].computed)), name


def test_layout() -> None:
    plan = layout()
    assert FEATURES["feature_keys"].bytes == 48
    assert (plan.rows_per_shard, plan.shards, plan.bytes) == (4, 6, ROWS * (96 + 48 + 12 + 8))
    assert [list(plan.rows_of(n)) for n in (0, 5)] == [[0, 1, 2, 3], [20]]
    assert plan.batches_of(1) == [[4, 5], [6, 7]]
    assert plan.batches_of(5) == [[20, 20]], "a short batch is filled up, so that kernels see one size"
    assert Layout.from_json(plan.to_json()) == plan
    assert layout(batch=3).rows_per_shard % 3 == 0
    assert Layout.plan(ROWS, 8, 1, True, FEATURES).rows_per_shard == 8, "never less than one batch"


def test_rows_in_any_order_come_back(finished) -> None:
    folder, plan = finished
    store = FeatureStore(folder.folder, plan)
    for rows in ([0], [20, 3, 3, 11], list(range(ROWS))):
        assert_rows(store.read(rows), rows)
    assert_rows(pickle.loads(pickle.dumps(store)).read([7]), [7])
    assert folder.begun() == (KEY, plan)
    assert not any(folder.check(n) for n in range(plan.shards))


def test_one_row_is_read_without_its_shard(tmp_path: Path) -> None:
    """A shard of 512 MiB in a process that may use 300 MiB more: it maps, it does not load."""
    feature = {"feature_x": Feature(shape=(2**20,), stored=torch.float32, computed=torch.float32)}
    plan = Layout(rows=128, batch=1, rows_per_shard=128, per_frame=True, features=feature)
    folder = FeatureFolder(tmp_path)
    folder.write(0, {"feature_x": torch.arange(128.0)[:, None].expand(128, 2**20).contiguous()})
    code = f"""
import resource, sys
from pathlib import Path
from vla_ft.data.feature_store import FeatureStore, Feature, Layout
import psutil, torch
plan = Layout.from_json({plan.to_json()!r})
store = FeatureStore(Path({str(tmp_path)!r}), plan)
before = psutil.Process().memory_info().rss
row = store.read([77])["feature_x"]
assert row.unique().tolist() == [77.0]
sys.exit(int((psutil.Process().memory_info().rss - before) > 40 * 2**20))
"""
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": os.getcwd()})


@pytest.mark.parametrize("observed", [1, 3])
def test_a_window_reads_the_rows_of_its_frames(finished, observed: int) -> None:
    folder, plan = finished
    cached = CachedFeatures([FeatureStore(folder.folder, plan)], LENGTHS, WindowSpec(observation_steps=observed))
    batch = cached.read([(0, 0), (1, 8), (2, 1)])
    rows = {1: [[0], [13], [15]], 3: [[0, 0, 0], [11, 12, 13], [14, 14, 15]]}[observed]
    assert batch["feature_image_top"].shape == (3, observed, 4, 2, 3)
    for place, expected in enumerate(rows):
        assert_rows({name: value[place] for name, value in batch.items()}, expected)


def test_features_of_a_sample_have_no_time(finished) -> None:
    folder, _ = finished
    store = FeatureStore(folder.folder, layout(per_frame=False))
    cached = CachedFeatures([store], LENGTHS, WindowSpec(observation_steps=3))
    assert_rows(cached.read([(2, 6), (0, 4)]), [20, 4])


def test_what_a_killed_writer_left_is_swept_and_the_rest_is_kept(finished) -> None:
    folder, plan = finished
    (folder.folder / "manifest.json").unlink()
    folder.shard(3).rename(folder.incoming(3))
    assert (folder.finished(), folder.missing(plan)) == (False, [3])
    folder.sweep()
    assert not folder.incoming(3).exists()


@pytest.mark.parametrize("harm", ["missing", "flipped"])
def test_damage_is_named(finished, harm: str) -> None:
    folder, plan = finished
    if harm == "missing":
        folder.shard(2).unlink()
    else:
        data = bytearray(folder.shard(2).read_bytes())
        data[-1] ^= 1
        folder.shard(2).write_bytes(data)
    assert [n for n in range(plan.shards) if folder.check(n)] == [2]
    assert "shard_00002.safetensors" in (folder.check(2) or "")
    assert "Delete" in (folder.check(2) or "")


def test_a_shard_that_cannot_be_read_is_told(finished) -> None:
    folder, plan = finished
    folder.shard(0).write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"shard_00000\.safetensors cannot be read .* Delete"):
        FeatureStore(folder.folder, plan).read([0])


def test_a_full_disk_is_told_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10_000, 7_000, 3_000))
    with pytest.raises(UserError, match=r"need 3,444 bytes \(21 rows of 164\) and .* has 3,000 free"):
        FeatureFolder(tmp_path).begin(KEY, layout())
    assert not list(tmp_path.iterdir())


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with (
        FeatureFolder(tmp_path).sole_writer(),
        pytest.raises(UserError, match="Another process computes"),
        FeatureFolder(tmp_path).sole_writer(),
    ):
        pass
    with FeatureFolder(tmp_path).sole_writer():
        pass


@pytest.mark.parametrize("text", ["{", '{"format": 9}', '{"format": 1, "key": {}}'])
def test_a_key_file_that_cannot_be_read_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "key.json").write_text(text)
    with pytest.raises(UserError, match=r"key\.json .*Delete"):
        FeatureFolder(tmp_path).begun()


def test_files_are_hashed_again_when_they_may_have_changed(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one")
    first = hash_files({"a": path}, {})
    assert hash_files({"a": path}, first) == first
    copied = tmp_path / "b"
    copied.write_bytes(b"one")
    os.utime(copied, ns=(1, 1))
    assert hash_files({"a": copied}, first)["a"].sha256 == first["a"].sha256, "a copy is recognised"
    path.write_bytes(b"two")
    os.utime(path, ns=(2, 2))
    assert hash_files({"a": path}, first)["a"].sha256 != first["a"].sha256
