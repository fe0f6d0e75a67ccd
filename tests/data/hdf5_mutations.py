"""Changed HDF5 files, a case a number: ``python hdf5_mutations.py FOLDER IMAGES FIRST COUNT`` prints a JSON line each.

A process of its own, which a case that crashes or hangs may end. A case is said before it is run.
"""

from __future__ import annotations

import json
import random
import resource
import signal
import sys
import traceback
from pathlib import Path

import numpy as np
from any_format import DESCRIPTION, LENGTHS, steps_of

from vla_ft.data.formats.aloha_hdf5 import AlohaHdf5Reader
from vla_ft.data.formats.aloha_writer import AlohaWriter
from vla_ft.errors import UserError

SECONDS = 15
MEMORY = 6 << 30
KEYS = ("action", "proprio")
_FRONT = 8000
"""Bytes at the beginning of a file, where most of its structures lie: most cases change these."""


def changed(whole: bytes, rng: random.Random) -> bytes:
    """One of: flipped bits, other bytes, zeros, a piece removed or doubled, a cut."""
    data = bytearray(whole)
    reach = len(data) if rng.random() < 0.4 else min(len(data), _FRONT)
    place = rng.randrange(reach)
    piece = slice(place, place + rng.choice([1, 4, 16, 300]))
    kind = rng.choice(["bit", "bits", "bytes", "zeros", "remove", "double", "cut"])
    if kind == "bit":
        data[place] ^= 1 << rng.randrange(8)
    elif kind == "bits":
        for _ in range(rng.randint(2, 20)):
            data[rng.randrange(reach)] ^= 1 << rng.randrange(8)
    elif kind == "bytes":
        data[piece] = rng.randbytes(len(data[piece]))
    elif kind == "zeros":
        data[piece] = bytes(len(data[piece]))
    elif kind == "remove":
        del data[piece]
    elif kind == "double":
        data[place:place] = data[piece]
    else:
        del data[place:]
    return bytes(data)


def verdict(path: Path, wanted: dict[str, np.ndarray]) -> str:
    """What became of reading everything of the first episode; ``wrong: ...`` for what must not be."""
    try:
        reader = AlohaHdf5Reader(path)
    except UserError as error:
        return "refused when opened" if "episode_" in str(error) else f"wrong: {error}"
    told = 0
    keys = (*KEYS, *(f"image_{camera}" for camera in reader.description.cameras))
    steps = np.arange(reader.lengths[0])
    calls = [(key, lambda key=key: reader.read(0, steps, [key])[key]) for key in keys]
    for name, call in (*calls, ("", reader.unread), ("", lambda: reader.times(0)), ("", reader.fingerprint)):
        try:
            found = call()
        except UserError as error:
            told += 1
            if "episode_0.hdf5" not in str(error):
                return f"wrong: {error}"
        else:
            if name in KEYS and not np.array_equal(found, wanted[name]):
                return f"wrong: other numbers of {name}"
    reader.close()
    return "refused when read" if told else "read"


def main(folder: Path, images: str, first: int, count: int) -> None:
    """One file of a set of four, changed; pictures are not compared: HDF5 keeps no sum of them."""
    writer = AlohaWriter(folder, DESCRIPTION, images=images)
    for episode, length in enumerate(LENGTHS):
        writer.add(steps_of(episode, length), "follow the square")
    path = writer.finish()
    victim = path / "episode_0.hdf5"
    whole = victim.read_bytes()
    wanted = AlohaHdf5Reader(path).read(0, np.arange(LENGTHS[0]), KEYS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for case in range(first, first + count):
        print(json.dumps({"case": case}), flush=True)
        victim.unlink()  # a name that no handle of the case before is open under
        victim.write_bytes(changed(whole, random.Random(case)))
        signal.alarm(SECONDS)
        try:
            said = verdict(path, wanted)
        except Exception:
            said = f"wrong: {traceback.format_exc()}"
        signal.alarm(0)
        print(json.dumps({"case": case, "verdict": said}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
