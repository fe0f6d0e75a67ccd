"""Changed HDF5 files: a named error or the right numbers; never a hang, a crash or another exception.

50 cases on every run, 1,000 with ``-m nightly``. Each case runs in a process of its own: what libhdf5 does with damage
must not end the tests. Pictures are not compared: HDF5 keeps no sum of them (``docs/data.md``).
"""

from __future__ import annotations

import os
import random
import resource
import signal
import traceback
from pathlib import Path

import numpy as np
import pytest
from any_format import DESCRIPTION, LENGTHS, steps_of
from fuzz_counts import record_counts
from test_format_fuzz import CASES, SECONDS, change_bytes

from vla_ft.data.formats.aloha_hdf5 import AlohaHdf5Reader
from vla_ft.data.formats.aloha_writer import AlohaWriter
from vla_ft.errors import UserError

KEYS = ("action", "proprio")
MEMORY = 6 << 30


def outcome_of(path: Path, wanted: dict[str, np.ndarray]) -> str:
    """What became of reading everything of the first episode."""
    try:
        reader = AlohaHdf5Reader(path)
    except UserError as error:
        assert "episode_" in str(error), error
        return "refused when opened"
    told = 0
    for key in (*KEYS, *(f"image_{camera}" for camera in reader.description.cameras)):
        try:
            found = reader.read(0, np.arange(reader.lengths[0]), [key])[key]
        except UserError as error:
            assert "episode_0.hdf5" in str(error), error
            told += 1
            continue
        if key in KEYS and not np.array_equal(found, wanted[key]):
            return f"OTHER NUMBERS of {key}"
    for call in (reader.unread, lambda: reader.times(0), reader.fingerprint):
        try:
            call()
        except UserError as error:
            assert "episode_0.hdf5" in str(error), error
            told += 1
    return "refused when read" if told else "read"


def in_a_process(path: Path, wanted: dict[str, np.ndarray]) -> str:
    """The outcome, or how the process ended without one."""
    answer, tell = os.pipe()
    child = os.fork()
    if not child:
        os.close(answer)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(SECONDS)
        try:
            said = outcome_of(path, wanted)
        except BaseException:
            said = f"EXCEPTION {traceback.format_exc()}"
        os.write(tell, said[-4000:].encode())
        os._exit(0)
    os.close(tell)
    with os.fdopen(answer, "rb") as stream:
        said = stream.read().decode()
    _, status = os.waitpid(child, 0)
    return said or f"SIGNAL {os.WTERMSIG(status)}"


@pytest.mark.parametrize("cases", CASES)
@pytest.mark.parametrize("images", AlohaWriter.IMAGES)
def test_hdf5_files(tmp_path: Path, cases: range, images: str) -> None:
    """One file of a set of four, changed anywhere or, more often, in the structures at its beginning."""
    writer = AlohaWriter(tmp_path / "set", DESCRIPTION, images=images)
    for episode, length in enumerate(LENGTHS):
        writer.add(steps_of(episode, length), "follow the square")
    path = writer.finish()
    victim = path / "episode_0.hdf5"
    whole = victim.read_bytes()
    wanted = AlohaHdf5Reader(path).read(0, np.arange(LENGTHS[0]), KEYS)
    counts: dict[str, int] = {}
    for case in cases:
        rng = random.Random(case)
        front = len(whole) if rng.random() < 0.4 else min(len(whole), 8000)
        victim.write_bytes(change_bytes(whole[:front], rng) + whole[front:])
        said = in_a_process(path, wanted)
        assert not said[:5].isupper(), f"case {case}: {said}"
        counts[said] = counts.get(said, 0) + 1
    record_counts(f"hdf5 {images}", counts)
    assert len(counts) >= 2
