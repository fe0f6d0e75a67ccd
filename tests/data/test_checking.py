"""What ``vla-ft data check`` finds: every kind of damage in a set of its own, and nothing in a sound one."""

from __future__ import annotations

import os
import signal

import h5py
import numpy as np
import pytest
from any_format import FORMATS, LENGTHS, break_episode, write_set

from vla_ft.config import DataConfig
from vla_ft.data.checking.dataset import CheckOptions, check_dataset
from vla_ft.data.formats.npz import NpzReader


def checked(path, **options):
    config = DataConfig(path=str(path), on_damage="skip", cameras=None)
    return check_dataset(config.open(str(path)), CheckOptions(**options))


def edit(path, number):
    return h5py.File(path / f"episode_{number}.hdf5", "r+")


@pytest.fixture
def aloha(tmp_path):
    return write_set(tmp_path / "set", "aloha_hdf5")


@pytest.mark.parametrize("format", FORMATS)
def test_a_sound_set_has_no_findings_and_every_frame_is_seen(tmp_path, format):
    path = write_set(tmp_path / "set", format)
    report = checked(path, images="all")
    assert report.findings == ()
    assert (report.episodes, report.steps, report.frames) == (4, sum(LENGTHS), 2 * sum(LENGTHS))
    assert checked(path, images="none").frames == 0
    break_episode(path, format, 2)
    (finding,) = checked(path).findings
    assert (finding.level, finding.kind, finding.episode) == ("error", "damaged", 2)
    report = checked(path, skip=True)
    assert (report.of("error"), report.left_out) == ([], [2])


def test_several_workers_find_the_same(aloha):
    with edit(aloha, 1) as file:
        file["action"][4, 0] = np.inf
    alone, together = checked(aloha), checked(aloha, workers=2)
    assert alone == together and len(alone.findings) == 1


def test_numbers_that_are_not_finite(aloha):
    with edit(aloha, 3) as file:
        file["observations/qpos"][5:7, 1] = np.nan
    (finding,) = checked(aloha).findings
    assert (finding.kind, finding.episode, finding.step, finding.field) == ("not finite", 3, 5, "proprio proprio_1")
    assert str(finding) == "episode_3.hdf5, step 5, proprio proprio_1: nan (2 such values)"


def test_jumps_in_time_and_a_clock_of_another_rate(aloha):
    for number, length in enumerate(LENGTHS):
        with edit(aloha, number) as file:
            times = np.arange(length) / 5.0
            if number == 2:
                times[9:] += 0.6
            if number == 3:
                times /= 2
            file["observations/timestamp"] = times
    first, second = checked(aloha).findings
    assert (first.level, first.kind, first.episode, first.step) == ("error", "time", 2, 9)
    assert "goes on by 0.8 from the step before, usually by 0.2" in first.message
    assert (second.level, second.episode) == ("warning", 3) and "10 steps a second, fps is 5" in second.message


def test_a_jump_of_one_action(aloha):
    with edit(aloha, 0) as file:
        file["action"][7, 1] = 9.0
    (finding,) = checked(aloha).findings
    assert (finding.level, finding.kind, finding.episode, finding.step) == ("warning", "jump", 0, 7)
    assert finding.field == "action action_1" and "to 9" in finding.message


def test_constant_dimensions_and_missing_instructions(aloha):
    for number in range(4):
        with edit(aloha, number) as file:
            file["action"][:, 0] = 0.25
            if number:
                file.attrs["language_instruction"] = " "
    kinds = [(f.kind, f.episode, f.field) for f in checked(aloha).findings]
    assert ("constant", None, "action action_0") in kinds
    assert [k for k in kinds if k[0] == "instruction"] == [("instruction", n, "") for n in (1, 2, 3)]
    with edit(aloha, 0) as file:
        file.attrs["language_instruction"] = ""
    assert sum(f.kind == "instruction" for f in checked(aloha).findings) == 1


def test_black_and_frozen_cameras(aloha):
    with edit(aloha, 1) as file:
        file["observations/images/top"][4] = 0
        file["observations/images/wrist"][:] = file["observations/images/wrist"][0]
    black, frozen = checked(aloha, images="all").findings
    assert (black.kind, black.step, black.field) == ("black", 4, "image_top")
    assert black.message == "black (1 of 11 frames that were looked at)"
    assert (frozen.kind, frozen.step, frozen.field) == ("frozen", 0, "image_wrist") and "step 10" in frozen.message
    assert [f.kind for f in checked(aloha).findings if f.kind == "frozen"] == ["frozen"]


def test_unreadable_frames_are_named_by_step(tmp_path):
    path = write_set(tmp_path / "set", "npz")
    file = path / "episode_000001.npz"
    with np.load(file) as archive:
        members = dict(archive)
    start = members["image_top.offsets"][6]
    members["image_top.data"][start : start + 20] = 7
    np.savez(file, **members)
    (finding,) = checked(path, images="all").findings
    assert (finding.level, finding.kind, finding.episode, finding.step) == ("error", "image", 1, 6)
    assert finding.field == "image_top"
    assert checked(path, images="none").findings == ()


def test_a_cut_video_is_unreadable(tmp_path):
    from lerobot_sets import write_set as write_lerobot

    path = write_lerobot(tmp_path / "set", "v2.1", "video")
    video = sorted(path.glob("videos/*/observation.images.front/*.mp4"))[0]
    video.write_bytes(video.read_bytes()[:200])
    found = [f for f in checked(path, images="all").findings if f.kind == "image"]
    assert found and {f.field for f in found} == {"image_front"} and {f.episode for f in found} == {0}
    assert "of 7 frames cannot be read" in found[-1].message


def test_episodes_shorter_than_the_chunk(aloha):
    assert [f.episode for f in checked(aloha, chunk=13).findings if f.kind == "short"] == [1, 3]


class Crashing(NpzReader):
    """Stands for a decoder that takes its process with it."""

    def read(self, episode, steps, keys):
        """Ends the process at episode 2."""
        if episode == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(episode, steps, keys)


def test_an_episode_that_ends_its_process_is_named(tmp_path, monkeypatch):
    path = write_set(tmp_path / "set", "npz")
    monkeypatch.setattr("vla_ft.data.checking.dataset._BATCH", 2)
    report = check_dataset(Crashing(path), CheckOptions(workers=2, skip=True))
    (finding,) = report.findings
    assert (finding.level, finding.kind, finding.episode, finding.name) == ("error", "damaged", 2, "episode_000002.npz")
    assert "ended without a word" in finding.message
    assert report.frames == 3 * 2 * 8, "the other episodes were examined"
