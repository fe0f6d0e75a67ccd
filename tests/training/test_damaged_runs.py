"""Runs on data with damaged episodes: they end, or leave them out before anything else, and never change their mind."""

from __future__ import annotations

import io
import json

import h5py
import numpy as np
import pytest
from any_format import break_episode, write_set
from PIL import Image
from tiny_runs import TINY, final_bytes, finish, start

from vla_ft.config import load_run_config
from vla_ft.deployment.evaluation import EvaluationConfig, evaluate
from vla_ft.errors import UserError
from vla_ft.training.trainer import train


def configured(path, output, *words):
    return load_run_config([*TINY, f"data.path={path}", f"output={output}", *words])


@pytest.fixture
def broken(tmp_path):
    """Four episodes, the second cut in half."""
    path = write_set(tmp_path / "set", "npz")
    break_episode(path, "npz", 1)
    return path


def test_the_default_names_the_episode_and_says_what_helps(broken, tmp_path):
    with pytest.raises(UserError, match=r"episode_000001\.npz"):
        train(configured(broken, tmp_path / "run"))


def test_a_run_without_the_damaged_equals_one_on_a_set_that_never_had_them(broken, tmp_path, capsys):
    report = train(configured(broken, tmp_path / "run", "data.on_damage=skip"))
    assert report.damaged == 1
    record = json.loads((tmp_path / "run" / "data.json").read_text())
    assert (record["training_episodes"], record["held_out_episodes"]) == (2, 1)
    (one,) = record["damaged_episodes"]
    assert (one["episode"], one["name"]) == (1, "episode_000001.npz")
    assert "1 of 4 episodes left out: episode_000001.npz" in " ".join(capsys.readouterr().out.split())

    other = tmp_path / "other"
    other.mkdir()
    for place, number in enumerate((0, 2, 3)):
        (other / f"episode_{place:06d}.npz").write_bytes((broken / f"episode_{number:06d}.npz").read_bytes())
    about = json.loads((broken / "dataset.json").read_text())
    about["lengths"] = [about["lengths"][n] for n in (0, 2, 3)]
    (other / "dataset.json").write_text(json.dumps(about))
    train(configured(other, tmp_path / "clean"))
    ours, theirs = final_bytes(tmp_path / "run"), final_bytes(tmp_path / "clean")
    assert ours["model.safetensors"] == theirs["model.safetensors"]

    assert "repeat last action" in evaluate(
        EvaluationConfig(checkpoint=str(tmp_path / "run"), data=str(broken), samples=4)
    )


def test_resuming_is_exact_and_new_damage_is_an_error(broken, tmp_path):
    words = ("data.on_damage=skip", "schedule.name=constant")
    train(configured(broken, tmp_path / "whole", *words))
    train(configured(broken, tmp_path / "run", *words, "steps=4"))
    train(configured(broken, tmp_path / "run", *words))
    assert final_bytes(tmp_path / "run") == final_bytes(tmp_path / "whole")

    break_episode(broken, "npz", 3)
    with pytest.raises(UserError, match=r"newly damaged 3, no longer damaged none"):
        train(configured(broken, tmp_path / "run", *words, "steps=9"))


def test_two_processes_leave_out_the_same(broken, tmp_path):
    words = (f"data.path={broken}", "data.on_damage=skip", "steps=2", "checkpoint.every=2")
    out = finish(start(tmp_path / "run", *words, "devices=2"))
    assert "1 damaged episodes left out" in out
    trainer = json.loads((tmp_path / "run" / "checkpoints" / "step_00000002" / "trainer.json").read_text())
    assert (trainer["damaged"], trainer["world_size"]) == ([1], 2)


def test_an_image_that_cannot_be_read_ends_the_run_with_advice(tmp_path):
    path = write_set(tmp_path / "set", "aloha_hdf5")
    encoded = io.BytesIO()
    Image.fromarray(np.zeros((32, 40, 3), np.uint8)).save(encoded, "png")
    picture = np.frombuffer(encoded.getvalue(), np.uint8)
    for file in sorted(path.glob("*.hdf5")):  # one picture for the size, then rows that hold none
        with h5py.File(file, "r+") as episode:
            images = episode["observations/images"]
            rows = np.zeros((len(images["top"]), len(picture)), np.uint8)
            rows[0] = picture
            del images["top"]
            images["top"] = rows
    with pytest.raises(UserError, match=r"image_top at steps .*vla-ft data check"):
        train(configured(path, tmp_path / "run", "data.on_damage=skip"))
