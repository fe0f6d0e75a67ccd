from __future__ import annotations

import json
import resource
import shutil
import signal
import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import ROOT, TINY, finish, metrics, start

from vla_ft.checkpoints import write_manifest
from vla_ft.cli import main
from vla_ft.config import load_run_config
from vla_ft.errors import UserError
from vla_ft.training.checkpointing import sole_writer
from vla_ft.training.trainer import train


def configured(output, *words):
    return load_run_config([*TINY, f"output={output}", *words])


def weights(output, step=8):
    return load_file(output / "checkpoints" / f"step_{step:08d}" / "model.safetensors")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One run to the end, in this process."""
    output = tmp_path_factory.mktemp("run")
    return train(configured(output)), output


@pytest.mark.newcomer
def test_a_run_leaves_its_folder(finished):
    report, output = finished
    assert (report.step, report.interrupted) == (8, None)
    assert json.loads((output / "config.json").read_text())["steps"] == 8
    record = json.loads((output / "environment.json").read_text())
    assert record["torch"] == torch.__version__
    assert record["packages"]["numpy"] == np.__version__
    assert list((output / "tensorboard").glob("events.*"))
    assert (output / "checkpoints" / "latest").read_text() == "step_00000008"
    steps = [line["step"] for line in metrics(output)]
    assert steps == list(range(1, 9))
    assert "validation/action_mae" in metrics(output)[3]


@pytest.mark.newcomer
def test_training_twice_gives_the_same_weights(finished, tmp_path):
    _, output = finished
    train(configured(tmp_path))
    first, second = weights(output), weights(tmp_path)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_validation_does_not_disturb_the_run(finished, tmp_path):
    _, output = finished
    train(configured(tmp_path, "validation.every=1"))
    assert all(torch.equal(value, weights(tmp_path)[name]) for name, value in weights(output).items())


def test_accumulation_equals_one_large_batch(tmp_path):
    words = ("model.dropout=0", "model.use_vae=false", "model.loss_reduction=all")
    train(configured(tmp_path / "a", *words, "batch.per_device=4", "batch.accumulation=1"))
    train(configured(tmp_path / "b", *words, "batch.per_device=2", "batch.accumulation=2"))
    for one, two in zip(metrics(tmp_path / "a"), metrics(tmp_path / "b"), strict=True):
        assert one["train/loss"] == pytest.approx(two["train/loss"], rel=2e-4)
        assert one["train/epoch"] == two["train/epoch"]


def test_two_processes_train_like_one(tmp_path):
    words = ("model.dropout=0", "model.use_vae=false", "model.loss_reduction=all", "batch.accumulation=1")
    finish(start(tmp_path / "two", *words, "devices=2", "device=cpu"))
    train(configured(tmp_path / "one", *words, "batch.per_device=4"))
    for one, two in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        assert one["train/loss"] == pytest.approx(two["train/loss"], rel=2e-4)
        assert one.get("validation/action_mae", 0) == pytest.approx(two.get("validation/action_mae", 0), rel=2e-4)
    record = json.loads((tmp_path / "two" / "environment.json").read_text())
    assert (record["engine"], record["world_size"]) == ("ddp", 2)


def test_bf16_trains_close_to_fp32(finished, tmp_path):
    _, output = finished
    train(configured(tmp_path, "precision=bf16"))
    fp32, bf16 = metrics(output)[0]["train/loss"], metrics(tmp_path)[0]["train/loss"]
    assert bf16 != fp32
    assert bf16 == pytest.approx(fp32, rel=0.05)
    assert all(value.dtype == torch.float32 for value in weights(tmp_path).values() if value.is_floating_point())


def test_a_frozen_part_does_not_move(tmp_path):
    train(configured(tmp_path, "freeze=[backbone]", "checkpoint.every=1", "checkpoint.keep_last=8"))
    first, last = weights(tmp_path, 1), weights(tmp_path, 8)
    moved = {name for name in first if not torch.equal(first[name], last[name])}
    assert moved
    assert not any(name.startswith("vision.trunk.") for name in moved)


def test_longer_training_continues_the_finished_run(tmp_path):
    train(configured(tmp_path, "steps=4"))
    report = train(configured(tmp_path, "steps=6"))
    assert report.step == 6
    assert [line["step"] for line in metrics(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_loss_falls_on_mock_data(tmp_path):
    larger = (
        "model.hidden_dim=64",
        "model.dropout=0",
        "batch.per_device=8",
        "batch.accumulation=1",
        "ema=null",
        "data.mock.episodes=12",
    )
    report = train(configured(tmp_path, *larger, "steps=60", "schedule.name=constant", "validation.every=60"))
    first = np.mean([line["train/l1"] for line in metrics(tmp_path)[:5]])
    last = np.mean([line["train/l1"] for line in metrics(tmp_path)[-5:]])
    assert last < 0.6 * first
    assert report.metrics["validation/action_l1"] < first


# --- users' mistakes: exit code 2, one sentence, nothing half-written ---------------------------------------------


def mistake(capsys, *words):
    assert main(["train", *words]) == 2
    return capsys.readouterr().err


def test_another_configuration_in_the_same_folder(finished, capsys):
    _, output = finished
    message = mistake(capsys, *TINY, f"output={output}", "optimizer.lr=1e-5")
    assert "optimizer.lr was 0.0003, is 1e-05" in message
    assert "Choose another output=" in message


def test_another_batch_size_in_the_same_folder(finished, capsys):
    _, output = finished
    assert "batch.per_device was 2, is 3" in mistake(capsys, *TINY, f"output={output}", "batch.per_device=3")


def test_resume_never_protects_a_run(finished, capsys):
    _, output = finished
    assert "already holds a run (step_00000008)" in mistake(capsys, *TINY, f"output={output}", "resume=never")


def test_resume_from_nowhere(tmp_path, capsys):
    assert "no such checkpoint" in mistake(capsys, *TINY, f"output={tmp_path}", f"resume={tmp_path / 'step_9'}")


def test_checkpoint_of_another_policy(finished, tmp_path, capsys):
    _, output = finished
    shutil.copytree(output, tmp_path / "run")
    manifest = tmp_path / "run" / "checkpoints" / "step_00000008" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"policy": "act"', '"policy": "rdt"'))
    message = mistake(capsys, *TINY, f"output={tmp_path / 'run'}", "steps=9")
    assert "is of policy 'rdt', this run trains 'act'" in message


def test_a_damaged_checkpoint_is_named_with_the_way_out(finished, tmp_path, capsys):
    _, output = finished
    shutil.copytree(output, tmp_path / "run")
    file = tmp_path / "run" / "checkpoints" / "step_00000008" / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    message = mistake(capsys, *TINY, f"output={tmp_path / 'run'}", "steps=9")
    assert "optimizer.safetensors" in message
    assert "resume=" in message


def test_missing_data(tmp_path, capsys):
    message = mistake(capsys, "recipe=act", f"data.path={tmp_path / 'nowhere'}", f"output={tmp_path / 'run'}")
    assert "Dataset not found" in message
    assert not (tmp_path / "run" / "checkpoints").exists()


def mock_set(folder, *words):
    assert main(["data", "mock", f"output={folder}", "episodes=3", "min_length=8", "max_length=8", *words]) == 0
    return next(folder.glob("mock_*"))


@pytest.mark.parametrize("episode", [0, 1, 2])  # one of the three is held out
def test_nan_actions_are_found_before_training(tmp_path, capsys, episode):
    data = mock_set(tmp_path)
    with h5py.File(data / f"episode_{episode}.hdf5", "r+") as file:
        file["action"][4, 3] = np.nan
    message = mistake(capsys, *TINY, f"data.path={data}", f"output={tmp_path / 'run'}")
    assert f"episode_{episode}.hdf5" in message
    assert "at step 4 is nan" in message
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_loss_that_is_not_finite_stops_before_the_weights_change(tmp_path, capsys):
    rising = ("optimizer.lr=1e6", "optimizer.clip_grad_norm=null", "schedule.warmup_steps=0", "checkpoint.every=1")
    message = mistake(capsys, *TINY, *rising, f"output={tmp_path}", "ema=null", "steps=100")
    assert "is not finite" in message
    assert "episode_" in message
    assert "Every number of the samples is finite" in message
    assert "lower optimizer.lr, set optimizer.clip_grad_norm" in message
    steps = [int(folder.name[5:]) for folder in (tmp_path / "checkpoints").glob("step_*")]
    assert steps, "it failed before its first checkpoint: nothing was tested"
    for step in steps:
        assert all(torch.isfinite(v).all() for v in weights(tmp_path, step).values() if v.is_floating_point())


def test_a_mistake_on_two_processes_is_said_once(tmp_path):
    out = finish(start(tmp_path, "devices=2", "device=cpu", "data.path=/nowhere"), 2)
    assert out.count("no dataset at /nowhere") == 1
    assert "Traceback" not in out


def test_a_mistake_that_one_process_alone_can_see(tmp_path):
    with sole_writer(tmp_path):
        out = finish(start(tmp_path, "devices=2", "device=cpu"), 2)
    assert out.count("Another process is training") == 1
    assert "Traceback" not in out


def test_a_frame_that_one_process_alone_cannot_read(tmp_path):
    data = mock_set(tmp_path, "images=jpeg", "image_size=[32,32]")
    with h5py.File(data / "episode_1.hdf5", "r+") as file:
        frames = file["observations/images/top"]
        frames[5] = np.zeros_like(frames[5])
    words = ("devices=2", "device=cpu", "batch.per_device=1", "batch.accumulation=1", "data.validation_fraction=0")
    out = finish(start(tmp_path / "run", *words, f"data.path={data}", "steps=100"), 2)
    assert out.count("episode_1.hdf5: cannot read image_top at steps") == 1
    assert "Traceback" not in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["freeze=[backbone,action]"], "leaves nothing to train. The parts are: backbone, action"),
        (["optimizer.betas=[0.9,1.5]"], "Key 'optimizer.betas.1' is 1.5"),
        (["data.mock.seed=-1"], "mock's seed is -1"),
        (["seed=99999999999999999999999"], "Key 'seed' is 99999999999999999999999"),
        (["model=[1]"], "overrides"),
        (["init.path=nowhere.pth"], "nowhere.pth"),
        (["engine=fsdp2", "offload=optimizer"], "Set offload=all, or engine=zero2 offload=optimizer"),
        (["lora.backbone.rank=2", "freeze=[]"], "Part 'backbone' has no linear layers to adapt"),
    ],
)
def test_further_mistakes(tmp_path, capsys, words, message):
    assert message in mistake(capsys, *TINY, f"output={tmp_path}", *words)


def test_a_mistyped_key_of_the_mock_is_refused(tmp_path, capsys):
    assert main(["data", "mock", f"output={tmp_path}", "episods=3"]) == 2
    assert "Unknown key 'episods'. Did you mean 'episodes'?" in capsys.readouterr().err


def test_a_disk_that_is_full_in_the_middle_of_a_checkpoint(tmp_path):
    """A limit on the size of a file makes the same system call fail as a full disk does, without a disk to fill."""

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    words = [*TINY, "data.mock.episodes=2", f"output={tmp_path}"]
    command = [sys.executable, "-m", "vla_ft", "train", *words]
    done = subprocess.run(command, cwd=ROOT, preexec_fn=limit, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2, done.stderr
    assert "Checkpoint of step 2 could not be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_continuing_from_an_older_step_sets_the_later_ones_aside(finished, tmp_path):
    _, output = finished
    shutil.copytree(output, tmp_path / "run")
    checkpoints = tmp_path / "run" / "checkpoints"
    train(configured(tmp_path / "run", f"resume={checkpoints / 'step_00000006'}", "steps=7"))
    names = sorted(path.name for path in checkpoints.iterdir())
    assert names == ["abandoned_step_00000008", "latest", "step_00000006", "step_00000007"]
    assert (checkpoints / "latest").read_text() == "step_00000007"
    for _ in range(2):  # the same step is set aside a second time
        train(configured(tmp_path / "run", f"resume={checkpoints / 'step_00000006'}", "steps=7"))
    names = sorted(path.name for path in checkpoints.iterdir() if path.name.startswith("abandoned"))
    assert names == ["abandoned_step_00000007", "abandoned_step_00000007.2", "abandoned_step_00000008"]


def test_what_makes_a_continued_run_inexact_is_said(finished, tmp_path, capsys):
    _, output = finished
    shutil.copytree(output, tmp_path / "run")
    train(configured(tmp_path / "run", "steps=9", "batch.per_device=1", "batch.accumulation=4"))
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())  # lines break where the folder's name ends
    assert "per_device 2 x accumulation 2" in shown and "not bit-exact" in shown and "from here on" in shown
    facts = tmp_path / "run" / "checkpoints" / "step_00000009" / "trainer.json"
    facts.write_text(json.dumps({**json.loads(facts.read_text()), "device": "cuda"}))
    (facts.parent / "manifest.json").unlink()
    write_manifest(facts.parent, {"step": 9, "policy": "act"})
    train(configured(tmp_path / "run", "steps=10", "batch.per_device=1", "batch.accumulation=4"))
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "on cpu instead of cuda" in shown and "per_device" not in shown.split("engine")[0].split("start")[1]


def test_a_layout_without_a_file_is_refused(tmp_path, capsys):
    assert "init.path names none" in mistake(capsys, *TINY, f"output={tmp_path}", "init.layout=lerobot")


def test_a_checkpoint_of_another_run_does_not_replace_a_run(finished, tmp_path, capsys):
    _, output = finished
    shutil.copytree(output, tmp_path / "run")
    other = output / "checkpoints" / "step_00000006"
    assert "belongs to another run" in mistake(capsys, *TINY, f"output={tmp_path / 'run'}", f"resume={other}")
    report = train(configured(tmp_path / "new", f"resume={other}"))
    first, second = weights(output), weights(tmp_path / "new")
    assert report.step == 8
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_field_added_since_does_not_look_like_another_configuration(finished, tmp_path):
    _, output = finished
    shutil.copytree(output, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints" / "step_00000008"
    config = json.loads((folder / "config.json").read_text())
    del config["deterministic"], config["model"]["kl_reduction"]
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "manifest.json").unlink()
    write_manifest(folder, {"step": 8, "policy": "act"})
    assert train(configured(tmp_path / "run", "steps=9")).step == 9


def test_unknown_command(capsys):
    assert main(["trian"]) == 2
    assert "Did you mean 'train'?" in capsys.readouterr().err


def test_help(capsys):
    assert main(["--help"]) == 0
    assert "vla-ft COMMAND" in capsys.readouterr().out


def test_the_command_line_draws_the_loss(tmp_path, capsys):
    assert main(["train", *TINY, f"output={tmp_path}", "steps=2"]) == 0
    assert (tmp_path / "loss.png").stat().st_size > 5000
    assert "finished step 2; held out: " in capsys.readouterr().out


def test_two_runs_in_one_folder_are_refused(finished):
    _, output = finished
    with sole_writer(output), pytest.raises(UserError, match="Another process is training"):
        train(configured(output, "steps=9"))
