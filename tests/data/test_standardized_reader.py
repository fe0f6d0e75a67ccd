"""A raw reader seen through a standardisation: steps, images, instructions, refusals."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from vla_ft.data.formats.base import EpisodeReader
from vla_ft.data.sample import DatasetDescription
from vla_ft.data.standardize import find_standardization
from vla_ft.data.standardize.reader import StandardizedReader
from vla_ft.data.windows import WindowSpec, build_sample
from vla_ft.errors import UserError

LENGTHS = (6, 1, 4)


class RawBridge(EpisodeReader):
    """Bridge's columns; a picture's pixels are its step. ``asked``: images that were decoded."""

    def __init__(self, texts: Sequence[Any] = (b"", b"Lift"), width: int = 7, cameras: tuple[str, ...] = ("0", "1")):
        self.lengths = np.array(LENGTHS)
        self.texts, self.width = texts, width
        self.asked: list[int] = []
        self.description = DatasetDescription(
            name="raw",
            cameras=dict.fromkeys(cameras, (4, 4)),
            action_names=(),
            action_units=(),
            proprio_names=(),
            proprio_units=(),
            action_kind="end_effector",
            action_mode="delta",
            gripper="unknown",
            fps=5.0,
        )

    def raw(self, episode: int, keys: Sequence[str]) -> dict[str, np.ndarray]:
        length = LENGTHS[episode]
        state = np.arange(length, dtype=np.float32)[:, None] ** 2 * np.ones(7, np.float32) + 100 * episode
        texts = np.empty(length, dtype=object)
        for step in range(length):
            texts[step] = self.texts[min(step, len(self.texts) - 1)]
        columns = {
            "observation/state": state,
            "action": np.ones((length, self.width), np.float32),
            "language_instruction": texts,
        }
        return {key: columns[key] for key in keys}

    def read(self, episode: int, steps: np.ndarray, keys: Sequence[str]) -> dict[str, np.ndarray]:
        self.asked += [int(step) for step in steps for _ in keys]
        return {
            key: np.broadcast_to(np.asarray(steps, np.uint8)[:, None, None, None], (len(steps), 4, 4, 3)).copy()
            for key in keys
        }

    def instruction(self, episode: int) -> str:
        raise AssertionError("the standardisation's column is asked instead")

    def fingerprint(self) -> str:
        return "raw"

    def sources(self) -> dict[str, Any]:
        return {}

    def name_of(self, episode: int) -> str:
        return f"record {episode}"


def test_steps_are_shifted_and_episodes_shorter() -> None:
    raw = RawBridge()
    reader = StandardizedReader(raw, find_standardization("bridge_orig"))
    assert reader.lengths.tolist() == [4, 0, 2]
    assert list(reader.description.cameras) == ["primary", "secondary"]
    assert reader.description.action_dim == 7
    assert reader.description.is_gripper.tolist() == [False] * 6 + [True]
    sample = build_sample(reader, 0, 1, WindowSpec(action_horizon=6), ("proprio", "image_primary"))
    assert sample["observation"]["image_primary"][0, 0, 0, 0] == 2, "step 1 is raw step 2"
    assert raw.asked == [2], "a chunk decodes no images"
    assert sample["observation"]["proprio"][0, 0] == 4
    # Movement of x at raw steps 2, 3, 4: squares of the step.
    assert sample["action"][:, 0].tolist() == [5, 7, 9, 9, 9, 9]
    assert sample["action_pad_mask"].tolist() == [True] * 3 + [False] * 3
    assert sample["task"]["language_instruction"] == "Lift"
    assert reader.read(1, np.arange(0), ("action", "proprio"))["action"].shape == (0, 7)
    with pytest.raises(ValueError, match="4 steps"):
        reader.read(0, np.array([4]), ("action",))


def test_an_episode_is_parsed_once_for_a_sample_and_copies_start_empty() -> None:
    raw = RawBridge()
    reader = StandardizedReader(raw, find_standardization("bridge_dataset"))
    calls = []
    original = raw.raw
    raw.raw = lambda episode, keys: calls.append(episode) or original(episode, keys)  # type: ignore[method-assign]
    build_sample(reader, 0, 1, WindowSpec(action_horizon=3), ("proprio",))
    build_sample(reader, 0, 2, WindowSpec(action_horizon=3), ("proprio",))
    assert calls == [0]
    del raw.raw
    assert pickle.loads(pickle.dumps(reader))._kept is None


def test_roles_can_be_chosen_and_missing_ones_are_told() -> None:
    bridge = find_standardization("bridge_orig")
    assert list(StandardizedReader(RawBridge(), bridge, ["primary"]).description.cameras) == ["primary"]
    assert list(StandardizedReader(RawBridge(cameras=("image_0", "image_1")), bridge).description.cameras)
    with pytest.raises(UserError, match="has no wrist camera, it has primary, secondary"):
        StandardizedReader(RawBridge(), bridge, ["wrist"])
    with pytest.raises(UserError, match="primary camera of 'bridge_orig' is 'image_0', but the dataset has top"):
        StandardizedReader(RawBridge(cameras=("top",)), bridge)


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ((b"", b"", b""), ""),
        (("  open  ",), "open"),
        ((np.array([72, 105, 0, 0]),), "Hi"),
    ],
)
def test_instructions_of_every_kind(texts: tuple[Any, ...], expected: str) -> None:
    assert StandardizedReader(RawBridge(texts), find_standardization("bridge_orig")).instruction(0) == expected


def test_another_layout_is_refused_in_words() -> None:
    reader = StandardizedReader(RawBridge(width=8), find_standardization("bridge_orig"))
    with pytest.raises(UserError, match=r"'action' has shape \(6, 8\), expected \[steps, 7\]"):
        reader.read(0, np.array([0]), ("action",))


def test_the_fingerprint_tells_standardisations_apart_and_other_readers_are_refused() -> None:
    marks = {
        StandardizedReader(RawBridge(), find_standardization(name)).fingerprint()
        for name in ("bridge_orig", "bridge_dataset")
    }
    assert len(marks) == 2
    reader = RawBridge()
    plain = type("Plain", (), {"description": reader.description})()
    with pytest.raises(UserError, match="works on the raw columns of an RLDS dataset"):
        StandardizedReader(plain, find_standardization("bridge_orig"))
