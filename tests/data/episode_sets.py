"""Small sets of episodes, written by the real writer."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vla_ft.data.formats.writer import EpisodeWriter

IMAGE = (12, 16)


def smooth_image(rng: np.random.Generator) -> np.ndarray:
    """A picture that JPEG keeps well: a gradient between random corners."""
    height, width = IMAGE
    across = np.linspace(0, 1, width)[None, :, None]
    down = np.linspace(0, 1, height)[:, None, None]
    corners = rng.uniform(30, 220, size=(3, 3))
    picture = corners[0] * (1 - across) * (1 - down) + corners[1] * across + corners[2] * down * (1 - across)
    return np.clip(picture, 0, 255).astype(np.uint8)


class SetOnDisk:
    """A folder of episodes and the arrays that went into it: ``episodes[i][key]``, time first, float64 or uint8."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.episodes: list[dict[str, np.ndarray]] = []

    def add(
        self, length: int, *, cameras: tuple[str, ...] = ("top", "wrist"), width: int = 14, sim: bool = True, **options
    ) -> Path:
        rng = np.random.default_rng(len(self.episodes))
        rows = []
        with EpisodeWriter(self.folder, cameras=dict.fromkeys(cameras, IMAGE), sim=sim, **options) as writer:
            for _ in range(length):
                images = {camera: smooth_image(rng) for camera in cameras}
                row = {"qpos": rng.normal(size=width), "action": rng.normal(size=width)}
                writer.add(**row, qvel=np.zeros(width), images=images)
                rows.append(row | {f"image_{c}": image for c, image in images.items()})
        self.episodes.append({key: np.stack([row[key] for row in rows]) for key in rows[0]})
        assert writer.path is not None
        return writer.path
