"""PNG pictures of 224 x 224 decoded in one thread: Pillow, which the readers use, beside FFmpeg's decoder in PyAV.

    python benchmarks/png_decoding.py RESULT.json

Pictures are those of ``lerobot_loading.py``: smooth, and with noise that PNG cannot pack. ``inflate`` is zlib's part
alone, without undoing the filters: a bound for whatever uses that zlib. Beside the times stands what each decoder does
with seven pictures that are wrong; but for ``cut`` and ``flipped``, the checksums of all their chunks are right. A
reader may refuse them or give the right pixels, and must not give others.
"""

from __future__ import annotations

import io
import json
import platform
import statistics
import struct
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import PIL
from PIL import Image, features

SIZE, ROUNDS, TIMES = (224, 224), 7, 150
SIGNATURE = 8
Decoder = Callable[[bytes], np.ndarray]


def picture(noise: bool) -> np.ndarray:
    """As ``lerobot_loading.py`` draws them, without the disc."""
    down, across = np.mgrid[: SIZE[0], : SIZE[1]]
    scene = np.stack([across, down, (across + down) / 2], axis=-1) * 0.5 + 30
    grain = np.random.default_rng(0).integers(-2, 3, (*SIZE, 1)) if noise else 0
    return np.clip(scene + grain, 0, 255).astype(np.uint8)


def encoded(pixels: np.ndarray) -> bytes:
    """A PNG by Pillow's defaults, as LeRobot's writer makes them."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def by_pillow(content: bytes) -> np.ndarray:
    """What the readers do."""
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image)


def by_pyav() -> Decoder:
    """One decoder for all pictures, told to take errors seriously."""
    codec = av.CodecContext.create("png", "r")
    codec.thread_count = 1
    codec.options = {"err_detect": "crccheck+bitstream+buffer+explode"}
    return lambda content: codec.decode(av.Packet(content))[0].to_ndarray(format="rgb24")


def chunks(content: bytes) -> dict[bytes, bytes]:
    """Chunk name -> data, of several the concatenation."""
    found: dict[bytes, bytes] = {}
    place = SIGNATURE
    while place < len(content):
        (size,) = struct.unpack_from(">I", content, place)
        name = content[place + 4 : place + 8]
        found[name] = found.get(name, b"") + content[place + 8 : place + 8 + size]
        place += 12 + size
    return found


def wrong(content: bytes) -> dict[str, bytes]:
    """Pictures that are not what was meant."""
    parts = chunks(content)
    packed, raw = parts[b"IDAT"], zlib.decompress(parts[b"IDAT"])

    def with_data(data: bytes, end: bool = True) -> bytes:
        pieces = [(b"IHDR", parts[b"IHDR"]), (b"IDAT", data), *([(b"IEND", b"")] if end else [])]
        framed = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in pieces)
        return content[:SIGNATURE] + b"".join(framed)

    middle = len(content) // 2
    return {
        "cut": content[:middle],
        "flipped": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        "half of the zlib stream": with_data(packed[: len(packed) // 2]),
        "half of the rows": with_data(zlib.compress(raw[: len(raw) // 2])),
        "other zlib sum": with_data(packed[:-2] + b"xx"),
        "unknown filter": with_data(zlib.compress(b"\x09" + raw[1:])),
        "no end": with_data(packed, end=False),
    }


def behaviour(decode: Callable[[], Decoder], cases: dict[str, bytes], pixels: np.ndarray) -> dict[str, str]:
    """Case -> ``refused``, ``right`` or ``other pixels``."""
    found = {}
    for name, content in cases.items():
        try:
            found[name] = "right" if np.array_equal(decode()(content), pixels) else "other pixels"
        except Exception as error:  # whatever a decoder raises is a refusal
            found[name] = f"refused ({type(error).__name__})"
    return found


def main(result: Path) -> None:
    """Measure in turn, and keep the medians of CPU time."""
    times: dict[str, dict[str, float]] = {}
    for kind in ("smooth", "noisy"):
        pixels = picture(kind == "noisy")
        content = encoded(pixels)
        pyav, data = by_pyav(), chunks(content)[b"IDAT"]
        assert np.array_equal(by_pillow(content), pixels) and np.array_equal(pyav(content), pixels)
        ways = {
            "pillow": lambda c=content: by_pillow(c),
            "pyav": lambda c=content, d=pyav: d(c),
            "inflate": lambda d=data: zlib.decompress(d),
        }
        seen: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(ROUNDS):
            for name, way in ways.items():
                begin = time.process_time()
                for _ in range(TIMES):
                    way()
                seen[name].append((time.process_time() - begin) / TIMES * 1e6)
        times[kind] = {"bytes": len(content), **{name: round(statistics.median(v), 1) for name, v in seen.items()}}
    noisy = picture(True)
    cases = wrong(encoded(noisy))
    kept = {
        "machine": {
            "python": platform.python_version(), "pillow": PIL.__version__, "av": av.__version__,
            "pillow_zlib_ng": features.version_feature("zlib_ng"), "zlib": zlib.ZLIB_RUNTIME_VERSION,
        },
        "cpu_microseconds": times,
        "wrong_pictures": {
            "pillow": behaviour(lambda: by_pillow, cases, noisy), "pyav": behaviour(by_pyav, cases, noisy),
        },
    }  # fmt: skip
    result.write_text(json.dumps(kept, indent=1) + "\n")
    print(json.dumps(kept, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
