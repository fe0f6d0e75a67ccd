"""Encoding frames to mp4 and joining mp4 files without encoding again, through PyAV (FFmpeg)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.codec import Codec
from av.codec.codec import UnknownCodecError

from vla_ft.errors import UserError

# A key frame every second frame, as LeRobot writes: random access then decodes two frames at most.
_KEY_FRAME_EVERY = 2
_OPTIONS = {
    "libsvtav1": {"g": "2", "crf": "30", "preset": "12", "svtav1-params": "lp=1"},
    "libx264": {"g": "2", "crf": "23", "preset": "veryfast", "bf": "0", "threads": "1"},
    "libopenh264": {"g": "2"},
}
_NAMES = {"libsvtav1": "av1", "libx264": "h264", "libopenh264": "h264"}


def choose_encoder(wanted: str = "auto") -> str:
    """The encoder that LeRobot would use (AV1), else one of H.264; or ``wanted``. Raises UserError if there is none."""
    names = tuple(_OPTIONS) if wanted == "auto" else (wanted,)
    for name in names:
        try:
            if name in _OPTIONS and Codec(name, "w"):
                return name
        except UnknownCodecError:
            continue
    raise UserError(
        f"This build of PyAV {av.__version__} cannot encode with {' or '.join(names)}. Expected one of "
        f"{', '.join(_OPTIONS)}: install PyAV's own wheels, or write images instead of videos."
    )


@contextlib.contextmanager
def _ordinary_scheduling() -> Iterator[None]:
    """Undo what SVT-AV1 does for root: real-time priority for its threads, the caller's, and so every later child.

    A busy process of that class starves the whole machine. Seen: two cores held for ten minutes.
    """
    before = os.sched_getscheduler(0)
    try:
        yield
    finally:
        for thread in map(int, os.listdir("/proc/self/task")):
            with contextlib.suppress(ProcessLookupError):
                if os.sched_getscheduler(thread) != before:
                    os.sched_setscheduler(thread, before, os.sched_param(0))


class VideoEncoder:
    """Writes frames to an mp4; frame i is shown at i / fps. Use as a context manager."""

    def __init__(self, path: Path, fps: float, size: tuple[int, int], encoder: str) -> None:
        """``size``: (height, width), both even (4:2:0 colour)."""
        os.environ.setdefault("SVT_LOG", "1")  # SVT-AV1 prints its settings for every file otherwise
        rate = Fraction(fps).limit_denominator(1001)
        self._container = av.open(str(path), "w", format="mp4")
        stream: Any = self._container.add_stream(encoder, rate=rate, options=dict(_OPTIONS[encoder]))
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = 1 / rate
        stream.codec_context.thread_count = 1
        with _ordinary_scheduling():
            stream.codec_context.open()
        self._stream = stream
        self._frames = 0

    def add(self, image: np.ndarray) -> None:
        """Append a frame, uint8 [H, W, 3]."""
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        frame.pts, self._frames = self._frames, self._frames + 1
        for packet in self._stream.encode(frame):
            self._container.mux(packet)

    def __enter__(self) -> VideoEncoder:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                for packet in self._stream.encode():
                    self._container.mux(packet)
        finally:
            self._container.close()


def join_videos(sources: Sequence[Path], frames: Sequence[int], fps: float, target: Path) -> None:
    """Concatenate mp4 files of one encoder into ``target`` by copying packets. ``frames``: how many each has."""
    rate = Fraction(fps).limit_denominator(1001)
    with av.open(str(target), "w", format="mp4") as output:
        stream: Any = None
        before = 0
        for path, count in zip(sources, frames, strict=True):
            with av.open(str(path)) as source:
                incoming = source.streams.video[0]
                if stream is None:
                    stream = output.add_stream_from_template(incoming, opaque=True)
                    stream.time_base = incoming.time_base
                shift = round(Fraction(before) / rate / incoming.time_base)  # type: ignore[operator]
                for packet in source.demux(incoming):
                    if packet.pts is None or packet.dts is None:
                        continue  # the flushing packet at the end
                    packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                    packet.stream = stream
                    output.mux(packet)
            before += count


def video_info(size: tuple[int, int], fps: float, encoder: str) -> dict[str, Any]:
    """The ``info`` block of a video feature, as LeRobot writes it."""
    options = _OPTIONS[encoder]
    facts: dict[str, Any] = {
        "video.height": size[0],
        "video.width": size[1],
        "video.codec": _NAMES[encoder],
        "video.pix_fmt": "yuv420p",
        "video.is_depth_map": False,
        "video.fps": int(fps) if float(fps).is_integer() else fps,
        "video.channels": 3,
        "has_audio": False,
        "video.g": _KEY_FRAME_EVERY,
    }
    return facts | ({"video.crf": int(options["crf"])} if "crf" in options else {})
