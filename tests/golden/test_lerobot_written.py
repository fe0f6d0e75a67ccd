"""Datasets that our writer makes of the golden rows and frames have the statistics that LeRobot computed for them."""

from __future__ import annotations

import json
from pathlib import Path

import golden_files
import numpy as np
import pytest

from vla_ft.data.formats.lerobot import LeRobotReader
from vla_ft.data.formats.lerobot_writer import LeRobotWriter
from vla_ft.data.formats.parquet_columns import read_table

CASE = "lerobot_dataset/v30_image_multifile"


def test_statistics_of_a_written_dataset(golden_root: Path, tmp_path: Path) -> None:
    if not (golden_root / CASE).is_dir():
        pytest.skip(f"{CASE} is not in this checkout")
    facts = golden_files.load(golden_root, f"{CASE}_expected").facts
    source = LeRobotReader(golden_root / CASE, cache=tmp_path / "cache")
    writer = LeRobotWriter(tmp_path / "copy", source.description, images="image", data_megabytes=0.004, chunks_size=2)
    keys = ("action", "proprio", "image_top")
    for episode, length in enumerate(source.lengths):
        steps = (source.read(episode, np.array([s]), keys) for s in range(length))
        writer.add(({k: v[0] for k, v in step.items()} for step in steps), source.instruction(episode))
    copy = writer.finish()

    stats = json.loads((copy / "meta" / "stats.json").read_text())
    compared = 0
    for feature, stated in facts["stats"].items():
        for name, value in stated.items():
            if feature != "next.done":
                # LeRobot sums squares of pixels, and places bins, in float32; ours are float64.
                scale = 1e-4 if name.startswith("q") or feature.startswith("observation.images") else 1e-6
                np.testing.assert_allclose(
                    stats[feature][name], value, rtol=scale, atol=scale, err_msg=f"{feature} {name}"
                )
                compared += 1
    assert compared == 8 * 10

    columns = ["episode_index", "length", "dataset_from_index", "dataset_to_index"]
    written = read_table(copy / "meta" / "episodes" / "chunk-000" / "file-000.parquet", columns)
    for name in columns:
        assert written[name].tolist() == [row[name] for row in facts["episodes"]]
    assert LeRobotReader(copy, cache=tmp_path / "cache").fingerprint() == source.fingerprint()
