"""A recorded episode as SIMPLER's environments hand it to a policy: rendered pictures, measured joints and poses.

SIMPLER itself cannot be installed beside this project's libraries; ``recorded/make_recorded.py`` says what was recorded
instead, and how.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

FOLDER = Path(__file__).parent / "recorded"
CAMERAS = {"widowx_bridge": "3rd_view_camera", "google_robot": "overhead_camera"}
OPENED = 0.7
"""Opening at which the recorded gripper lets the cube go."""


@functools.cache
def record() -> dict[str, Any]:
    return json.loads((FOLDER / "episode.json").read_text())


def instruction() -> str:
    return record()["instruction"]


def observations(robot: str = "widowx_bridge") -> list[dict[str, Any]]:
    """Ten control steps, while the arm comes down to the cube and lifts it."""
    found = []
    for step in record()["pictures"]:
        rgb = np.asarray(Image.open(FOLDER / f"{step:02d}.jpg"))
        agent = {name: np.array(values[step], np.float32) for name, values in record()["agent"].items()}
        found.append({"image": {CAMERAS[robot]: {"rgb": rgb}}, "agent": agent})
    return found


def actions() -> np.ndarray:
    """What the arm did between control steps, [39, 7]: moved (m), turned about fixed x, y, z (rad), 1 open or 0."""
    poses = np.array(record()["agent"]["eef_pos"])
    turned = [
        angles(turn_between(before, after)) for before, after in zip(poses[:-1, 3:7], poses[1:, 3:7], strict=True)
    ]
    return np.hstack([np.diff(poses[:, :3], axis=0), turned, poses[1:, 7:] > OPENED])


def chunks(length: int = 16, error: float = 0.1) -> np.ndarray:
    """What a policy that has learned the episode would say at each control step, [39, length, 7].

    Movements are off by ``error`` of their own spread: chunks that agreed could not tell one average from another. Past
    the end the arm rests.
    """
    done = actions()
    rest = np.zeros((length, 7))
    rest[:, 6] = done[-1, 6]
    whole = np.concatenate([done, rest])
    said = np.stack([whole[step : step + length] for step in range(len(done))])
    said[..., :6] += np.random.default_rng(0).normal(size=said[..., :6].shape) * error * done[:, :6].std(axis=0)
    return said


def turn_between(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """The rotation from one quaternion (w, x, y, z) to another."""
    w, x, y, z = after
    a, b, c, d = before * [1, -1, -1, -1]
    return np.array([
        w * a - x * b - y * c - z * d, w * b + x * a + y * d - z * c,
        w * c - x * d + y * a + z * b, w * d + x * c - y * b + z * a,
    ])  # fmt: skip


def angles(turn: np.ndarray) -> np.ndarray:
    """Roll, pitch and yaw of a quaternion."""
    w, x, y, z = turn
    return np.array([
        np.arctan2(2 * (w * x + y * z), 1 - 2 * (x * x + y * y)),
        np.arcsin(np.clip(2 * (w * y - z * x), -1, 1)),
        np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z)),
    ])  # fmt: skip
