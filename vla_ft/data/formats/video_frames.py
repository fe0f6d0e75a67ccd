"""Frames of video files at exact times, through PyAV (FFmpeg), with a bounded number of open files a process."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from vla_ft.errors import UserError

TOLERANCE = 1e-4
"""Seconds by which a frame may lie beside the time that is asked for (LeRobot's own limit)."""
_DAMAGE = (av.FFmpegError, OSError, ValueError, MemoryError, OverflowError)
_INHERITED: list[object] = []
"""Open files of the parent process. They are never used here, and never closed: their decoders are the parent's."""


class OpenVideo:
    """One open file. Decoding goes forward from the last key frame; it seeks only where that saves decoding."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.container = av.open(str(path))
        if not self.container.streams.video:
            self.container.close()
            raise ValueError("it has no video stream")
        self.stream = self.container.streams.video[0]
        if not self.stream.time_base:
            raise ValueError("its video stream has no time base")
        if self.stream.codec_context is None:
            raise ValueError("its codec is unknown to this PyAV")
        # One frame at a time is asked for: threads add delay here, and workers share the cores already.
        self.stream.thread_type = "NONE"
        self.stream.codec_context.thread_count = 1
        self.base = self.stream.time_base
        self._reformatter = VideoReformatter()
        self._frames: Iterator[VideoFrame] | None = None
        self._last: VideoFrame | None = None

    def frame_at(self, time: float) -> np.ndarray:
        """uint8 [H, W, 3] of the frame nearest to ``time`` (seconds). Raises ValueError when none is near enough."""
        for back in (0.0, 1.0, time):
            if back or not self._continues(time):
                self._seek(max(0.0, time - back))
            found = self._decode_until(time)
            # A file with reordered frames may land on a key frame behind the wanted one: go back further.
            if found is None or self._time(found) <= time + TOLERANCE or back >= time:
                break
        if found is None:
            raise ValueError(f"it ends before {time:.4f} s")
        if abs(self._time(found) - time) > TOLERANCE:
            raise ValueError(f"it has no frame at {time:.4f} s; the nearest found is at {self._time(found):.4f} s")
        if found.is_corrupt:
            raise ValueError(f"the frame at {time:.4f} s is damaged")
        return self._reformatter.reformat(found, format="rgb24").to_ndarray()

    def close(self) -> None:
        """Close the file."""
        self._frames = self._last = None
        self.container.close()

    def _time(self, frame: VideoFrame) -> float:
        return float(frame.pts * self.base) if frame.pts is not None else float("-inf")

    def _continues(self, time: float) -> bool:
        """Whether going on from the last frame decodes fewer frames than seeking."""
        if self._last is None or self._frames is None:
            return False
        behind = self._time(self._last)
        if time <= behind + TOLERANCE:
            return abs(behind - time) <= TOLERANCE
        entries = self.stream.index_entries
        place = entries.search_timestamp(round(time / self.base), backward=True)
        return place < 0 or float(entries[place].timestamp * self.base) <= behind + TOLERANCE

    def _seek(self, time: float) -> None:
        self.container.seek(round(time / self.base), stream=self.stream, backward=True, any_frame=False)
        self._frames, self._last = self.container.decode(self.stream), None

    def _decode_until(self, time: float) -> VideoFrame | None:
        """The first frame that is not before ``time``, or the last one of the file."""
        assert self._frames is not None
        if self._last is not None and self._time(self._last) >= time - TOLERANCE:
            return self._last
        for frame in self._frames:
            self._last = frame
            if self._time(frame) >= time - TOLERANCE:
                return frame
        last, self._frames, self._last = self._last, None, None
        return last


class VideoFiles:
    """The most recently used videos of this process, at most ``limit``; frames are never kept.

    Pickling carries no open file and a forked process opens its own, because decoders must not be shared.
    """

    def __init__(self, limit: int = 8) -> None:
        self.limit = limit
        self._open: OrderedDict[Path, OpenVideo] = OrderedDict()
        self._process = os.getpid()

    def frames(self, path: Path, times: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """uint8 [n, H, W, 3] at ``times`` (seconds, increasing), decoded in one pass. ``size``: expected (H, W).

        Raises UserError when the file is missing or damaged, or has no frame within ``TOLERANCE`` of a time.
        """
        result = np.empty((len(times), *size, 3), dtype=np.uint8)
        try:
            video = self._get(path)
            for place, time in enumerate(times):
                frame = video.frame_at(float(time))
                if frame.shape[:2] != size:
                    raise ValueError(f"its frames are {frame.shape[0]} x {frame.shape[1]} pixels, expected {size}")
                result[place] = frame
        except _DAMAGE as error:
            self._drop(path)
            seen = "it does not exist" if not path.exists() else f"{path.stat().st_size} bytes, and {error}"
            raise UserError(f"Cannot read {path}: {seen}. Copy the file again, or leave its episodes out.") from error
        return result

    def close(self) -> None:
        """Close the files that this process opened."""
        self._own()
        for path in list(self._open):
            self._drop(path)

    def __len__(self) -> int:
        return len(self._open) if self._process == os.getpid() else 0

    def __getstate__(self) -> dict[str, int]:
        return {"limit": self.limit}

    def __setstate__(self, state: dict[str, int]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def _own(self) -> None:
        if self._process != os.getpid():
            _INHERITED.append(self._open)
            self._open, self._process = OrderedDict(), os.getpid()

    def _get(self, path: Path) -> OpenVideo:
        self._own()
        if path not in self._open:
            while len(self._open) >= self.limit:
                self._drop(next(iter(self._open)))
            self._open[path] = OpenVideo(path)
        self._open.move_to_end(path)
        return self._open[path]

    def _drop(self, path: Path) -> None:
        video = self._open.pop(path, None)
        if video is not None:
            video.close()
