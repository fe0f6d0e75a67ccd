"""An episode's frames: those that cannot be read, black ones, and cameras that stand still while the robot moves."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from functools import partial
from typing import Literal

import numpy as np

from vla_ft.data.checking.findings import Finding
from vla_ft.data.formats.base import EpisodeReader
from vla_ft.data.formats.damage import damage_sentence
from vla_ft.data.loading import evenly_spaced
from vla_ft.data.sample import IMAGE_PREFIX
from vla_ft.errors import UserError

ImageMode = Literal["all", "sample", "none"]
SAMPLED = 8
"""Frames of an episode and camera that ``sample`` looks at, evenly spaced."""
_BLOCK = 16
_DARK = 4.0
"""Mean and standard deviation (of 255) below which a frame shows nothing."""
_STILL_SECONDS = 1.0
_MOVED = 0.25
"""Share of an episode's range that some dimension covers while a camera stands still: the robot moves, then."""
_NAMED = 3


def check_frames(
    reader: EpisodeReader, episode: int, images: ImageMode, values: dict[str, np.ndarray], tell: partial[Finding]
) -> tuple[list[Finding], int]:
    """Findings about an episode's cameras, and how many frames were decoded. ``values``: its numbers, all steps."""
    length = int(reader.lengths[episode])
    steps = evenly_spaced(length, None if images == "all" else SAMPLED)
    found: list[Finding] = []
    count = 0
    for camera in reader.description.cameras:
        say = partial(tell, field=IMAGE_PREFIX + camera)
        seen = _Seen()
        for step, frame in _frames(reader, episode, steps, IMAGE_PREFIX + camera, say, found):
            seen.add(step, frame)
        count += len(seen.steps)
        found += seen.findings(values, reader.description.fps, say)
    return found, count


def _frames(
    reader: EpisodeReader, episode: int, steps: np.ndarray, key: str, say: partial[Finding], found: list[Finding]
) -> Iterator[tuple[int, np.ndarray]]:
    """(step, frame) of every frame that can be read; the others are findings, the first few by their step."""
    unreadable = 0
    for start in range(0, len(steps), _BLOCK):
        block = steps[start : start + _BLOCK]
        try:
            frames = reader.read(episode, block, (key,))[key]
        except UserError:  # which of them it is, one by one
            for step in block.tolist():
                try:
                    yield step, reader.read(episode, np.array([step]), (key,))[key][0]
                except UserError as error:
                    unreadable += 1
                    if unreadable <= _NAMED:
                        found.append(say(level="error", kind="image", step=step, message=damage_sentence(error)))
            continue
        yield from zip(block.tolist(), frames, strict=True)
    if unreadable > _NAMED:
        message = f"{unreadable} of {len(steps)} frames cannot be read"
        found.append(say(level="error", kind="image", message=message))


class _Seen:
    """What is kept of a camera's frames: a sum of each, and which show nothing."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.sums: list[int] = []
        self.dark: list[int] = []

    def add(self, step: int, frame: np.ndarray) -> None:
        self.steps.append(step)
        self.sums.append(zlib.crc32(np.ascontiguousarray(frame).data))
        if frame[::4, ::4].mean() < _DARK and frame.mean() < _DARK and frame.std() < _DARK:
            self.dark.append(step)

    def findings(self, values: dict[str, np.ndarray], fps: float, say: partial[Finding]) -> list[Finding]:
        found = []
        if self.dark:
            message = f"black ({len(self.dark)} of {len(self.steps)} frames that were looked at)"
            found.append(say(level="warning", kind="black", step=self.dark[0], message=message))
        first, last = self._longest_still()
        moves = max((_share(values[key], first, last) for key in values), default=0.0)
        if last - first >= max(2.0, _STILL_SECONDS * fps) and moves >= _MOVED and first not in self.dark:
            message = f"the same picture up to step {last}, while the robot moves"
            found.append(say(level="warning", kind="frozen", step=first, message=message))
        return found

    def _longest_still(self) -> tuple[int, int]:
        """First and last step of the longest run of equal frames, of three at least; (0, 0) without one."""
        best, start = (0, 0), 0
        for place in range(1, len(self.sums) + 1):
            if place == len(self.sums) or self.sums[place] != self.sums[start]:
                run = (self.steps[start], self.steps[place - 1])
                if place - start >= 3 and run[1] - run[0] > best[1] - best[0]:
                    best = run
                start = place
        return best


def _share(values: np.ndarray, first: int, last: int) -> float:
    """The largest share of its range in the episode that a dimension covers between two steps."""
    whole = np.ptp(values, axis=0) if len(values) else np.zeros(0)
    moved = whole > 0
    if not moved.any():
        return 0.0
    return float((np.ptp(values[first : last + 1], axis=0)[moved] / whole[moved]).max())
