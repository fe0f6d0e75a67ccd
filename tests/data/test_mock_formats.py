"""The mock in every format: the same episodes, and the same losses of a training run on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vla_ft.data.formats.registry import WRITERS, open_dataset
from vla_ft.data.mock import MockConfig, write_mock
from vla_ft.errors import UserError

SMALL = {"episodes": 3, "min_length": 4, "max_length": 9, "image_size": (16, 24), "cameras": ("top", "side")}


def test_every_format_holds_the_same_episodes(tmp_path: Path) -> None:
    readers = {f: open_dataset(write_mock(tmp_path, MockConfig(**SMALL, format=f))) for f in WRITERS}
    first = readers["aloha"]
    keys = ("action", "proprio", "image_top", "image_side")
    for format, reader in readers.items():
        assert reader.lengths.tolist() == first.lengths.tolist()
        assert list(reader.description.cameras) == ["side", "top"], format
        for episode, length in enumerate(first.lengths):
            assert reader.instruction(episode) == "move to the disc"
            mine, theirs = (r.read(episode, np.arange(length), keys) for r in (reader, first))
            assert all(np.array_equal(mine[key], theirs[key]) for key in keys), format


def test_opened_again_after_its_reader_left_an_index(tmp_path: Path) -> None:
    config = MockConfig(**SMALL, format="rlds")
    path = write_mock(tmp_path, config)
    open_dataset(path)
    assert write_mock(tmp_path, config) == path


def test_names_are_checked(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Unknown format to write 'rdls'\. Did you mean 'rlds'"):
        MockConfig(format="rdls")
    with pytest.raises(UserError, match="Unknown way to store pictures in aloha 'png'"):
        write_mock(tmp_path, MockConfig(**SMALL, images="png"))
    assert len(open_dataset(write_mock(tmp_path, MockConfig(**SMALL, images="jpeg"))).lengths) == 3
