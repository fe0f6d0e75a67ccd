"""``scripts/train_act.py``: its lines, its files, its resume and its refusals."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from guide_project import PROJECT, TINY, demonstrations, script, train_act
from omegaconf import OmegaConf

from vla_ft.checkpoints import CONFIGURATION
from vla_ft.training.tracking import read_metrics


def state_bytes(run: Path, step: int) -> dict[str, bytes]:
    """What must be equal to the bit of a checkpoint folder."""
    folder = run / "checkpoints" / f"step_{step:08d}"
    names = ("model.safetensors", "optimizer.safetensors", "trainer.json", "random_rank000.json")
    return {name: (folder / name).read_bytes() for name in names}


def test_lines_and_files_are_those_of_the_guide(tmp_path, demos, capfd):
    run = tmp_path / "run"
    words = ["--config_path", "configs/policy_act.yaml", "--dataset_dir", demos, "--output_dir", run, "--device", "cpu"]
    assert train_act(words, [*TINY, "--num_epochs=2", "--checkpoint_frequency=2"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[:6] == [
        "=== ACT Training ===", "Config: configs/policy_act.yaml", f"Dataset: {demos}", f"Output: {run}", "",
        "Building ACT policy...",
    ]  # fmt: skip
    assert re.fullmatch(r"Total parameters: [\d,]+", lines[6])
    assert re.fullmatch(r"Trainable parameters: [\d,]+", lines[7])
    assert lines[8:13] == ["", "Creating data loaders...", "Training samples: 32", "", "Starting training..."]
    number = r"\d+\.\d{3}"
    step = re.compile(rf"Epoch 1/2, Step 2: loss={number}, action_loss={number}, kl_loss={number}")
    assert step.fullmatch(lines[13])
    assert f"Checkpoint saved: {run / 'checkpoint' / 'act-train-2.pth'}" in lines
    assert {"config.yaml", "checkpoint"} <= {path.name for path in run.iterdir()}
    assert [path.name for path in (run / "checkpoint").glob("*.pth")] == ["act-train-2.pth"]
    assert "vla-ft train" in (run / "settings.txt").read_text()


def test_loss_is_action_loss_plus_weighted_kl(finished):
    for line in read_metrics(finished):
        if "train/loss" in line:
            assert line["train/loss"] == pytest.approx(line["train/l1"] + 10.0 * line["train/kl"], rel=1e-5)


def test_the_logged_epoch_is_that_of_the_lines(tmp_path, demos, capfd):
    run = tmp_path / "run"  # 32 samples in batches of 5 are 7 updates, and 35 samples
    words = ["--dataset_dir", demos, "--output_dir", run, "--device", "cpu"]
    assert train_act(words, [*TINY, "--num_epochs=2", "--batch_size=5", "--log_frequency=7", "--val_split=0.25"]) == 0
    lines = read_metrics(run)
    logged = [(line["step"], line["epoch"], line["train/epoch"]) for line in lines if "total_loss" in line]
    assert logged == [(7, 1.0, 1.0), (14, 2.0, 2.0)]
    assert re.findall(r"Epoch (\d)/2, Step (\d+):", capfd.readouterr().out) == [("1", "7"), ("2", "14")]
    last = lines[-1]
    assert last["seconds_per_epoch"] == pytest.approx(7 * last["seconds_per_batch"])


def test_config_is_saved_with_overrides_and_what_the_dataset_decided(finished, demos):
    config = OmegaConf.load(finished / "config.yaml")
    assert (config.chunk_size, config.encoder.name, config.kl_weight) == (4, "pri3d", 10.0)
    assert (config.action_dim, config.state_dim) == (14, 14)
    assert list(config.camera_names) == ["image_left", "image_right"]
    assert config.dataset_dir == str(demos)


def test_resuming_from_an_older_epoch_gives_the_same_bits_and_sets_later_ones_aside(tmp_path, finished, demos, capfd):
    run = tmp_path / "finished"
    shutil.copytree(finished, run)
    settings = json.loads((run / CONFIGURATION).read_text())
    assert settings["steps"] == 16
    weights = run / "checkpoint" / "act-train-2.pth"
    code = train_act(["--dataset_dir", demos, "--output_dir", run, "--device", "cpu", "--resume_from", weights])
    assert code == 0
    assert "Resuming: epoch 2 of 4 is done" in capfd.readouterr().out
    assert state_bytes(run, 16) == state_bytes(finished, 16)
    assert sorted(path.name for path in (run / "checkpoint").glob("*.pth")) == [
        "abandoned-act-train-3.pth", "abandoned-act-train-4.pth", *(f"act-train-{n}.pth" for n in (1, 2, 3, 4))
    ]  # fmt: skip
    new, old = (torch.load(folder / "checkpoint" / "act-train-4.pth") for folder in (run, finished))
    assert new.keys() == old.keys() and all(torch.equal(new[name], old[name]) for name in new)


def test_what_was_set_aside_is_continued_from_its_own_state(tmp_path, finished, demos, capfd):
    from policy.act.weights import Note, find_state

    run = tmp_path / "finished"
    shutil.copytree(finished, run)
    flags = ["--dataset_dir", demos, "--output_dir", run, "--device", "cpu", "--resume_from"]
    assert train_act([*flags, run / "checkpoint" / "act-train-2.pth"], [*TINY, "--num_epochs=3"]) == 0
    new, old = run / "checkpoints" / "step_00000012", run / "checkpoints" / "abandoned_step_00000012"
    (new / "manifest.json").write_text((new / "manifest.json").read_text() + "\n")  # as if other numbers had come out
    third = run / "checkpoint" / "act-train-3.pth"
    digest = hashlib.sha256((new / "manifest.json").read_bytes()).hexdigest()
    Note.path(third).write_text(json.dumps({**json.loads(Note.path(third).read_text()), "manifest": digest}))
    aside = run / "checkpoint" / "abandoned-act-train-3.pth"
    assert find_state(aside) == old and Note.read(aside).state == "checkpoints/abandoned_step_00000012"
    assert train_act([*flags, aside]) == 0
    assert "Resuming: epoch 3 of 4 is done" in capfd.readouterr().out
    assert state_bytes(run, 16) == state_bytes(finished, 16)
    kept = sorted(path.name for path in (run / "checkpoints").glob("*step_*"))
    assert [f"step_{step:08d}" for step in (4, 8, 16)] == [name for name in kept if name.startswith("step_")]
    assert "abandoned_step_00000012.2" in kept, "the run that was left for the older one"
    assert find_state(third) == old
    assert find_state(run / "checkpoint" / "abandoned-2-act-train-3.pth").name == "abandoned_step_00000012.2"


def test_a_state_of_the_same_name_is_not_taken_for_the_weights_own(tmp_path, finished, demos, capfd):
    run = tmp_path / "finished"
    shutil.copytree(finished, run)
    manifest = run / "checkpoints" / "step_00000008" / "manifest.json"
    manifest.write_text(manifest.read_text() + "\n")
    flags = ["--dataset_dir", demos, "--output_dir", run, "--device", "cpu", "--resume_from"]
    assert train_act([*flags, run / "checkpoint" / "act-train-2.pth"]) == 2
    assert "only the weights are left" in capfd.readouterr().err


@pytest.mark.parametrize("lost", [("act-train-4.pth", "act-train-4.json"), ("act-train-4.pth",), ("act-train-4.json",)])
def test_a_run_that_lost_its_weights_file_to_a_kill_writes_it_again(tmp_path, finished, demos, lost):
    run = tmp_path / "finished"
    shutil.copytree(finished, run)
    expected = torch.load(run / "checkpoint" / "act-train-4.pth")
    for name in lost:
        (run / "checkpoint" / name).unlink()
    assert train_act(["--dataset_dir", demos, "--output_dir", run, "--device", "cpu"]) == 0
    again = torch.load(run / "checkpoint" / "act-train-4.pth")
    assert all(torch.equal(again[name], expected[name]) for name in expected)


def test_edited_foreign_and_pruned_weights_are_not_resumed(tmp_path, finished, demos, capfd):
    run = tmp_path / "finished"
    shutil.copytree(finished, run)
    flags = ["--dataset_dir", demos, "--output_dir", tmp_path / "new", "--device", "cpu", "--resume_from"]
    shutil.rmtree(run / "checkpoints" / "step_00000004")
    assert train_act([*flags, run / "checkpoint" / "act-train-1.pth"]) == 2
    assert "only the weights are left" in capfd.readouterr().err
    edited = run / "checkpoint" / "act-train-2.pth"
    torch.save({name: value + 1 for name, value in torch.load(edited).items()}, edited)
    assert train_act([*flags, edited]) == 2
    assert "was changed or replaced since" in capfd.readouterr().err
    (run / "checkpoint" / "act-train-3.json").unlink()
    assert train_act([*flags, run / "checkpoint" / "act-train-3.pth"]) == 2
    assert "--weights_only" in capfd.readouterr().err
    assert train_act([*flags, run / "checkpoint" / "act-train-7.pth"]) == 2
    assert "In that folder: act-train-1.pth" in capfd.readouterr().err
    assert not (tmp_path / "new").exists()


def test_weights_only_starts_a_new_run_from_them(tmp_path, finished, demos):
    weights, run = finished / "checkpoint" / "act-train-4.pth", tmp_path / "new"
    flags = ["--dataset_dir", demos, "--output_dir", run, "--device", "cpu", "--resume_from", weights]
    one_update = [*TINY, "--num_epochs=1", "--lr=1e-12", "--weight_decay=0"]
    assert train_act([*flags, "--weights_only"], one_update) == 0
    start, end = torch.load(weights), torch.load(run / "checkpoint" / "act-train-1.pth")
    assert all(torch.allclose(start[name], end[name], atol=1e-6) for name in start)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--device", "cuda"], "CUDA device was promised and torch finds none"),
        (["--device", "cuda:1"], "CUDA_VISIBLE_DEVICES=1"),
        (["--hiden_dim=8"], "Did you mean 'hidden_dim'?"),
        (["--encoder.freze=true"], "Did you mean 'encoder.freeze'?"),
        (["--lr"], "--lr needs a value"),
        (["--wandb_name", "x"], "--wandb_project"),
        (["--config", "configs/none.yaml"], "Run from the project root"),
        (["--dataset_dir", "your_dataset"], "Dataset not found: no dataset at your_dataset"),
        (["--weights_only"], "--resume_from"),
        (["surprise"], "Cannot read 'surprise'"),
    ],
)
def test_mistakes_exit_with_2_and_a_sentence(tmp_path, demos, capfd, words, sentence):
    flags = ["--dataset_dir", demos, "--output_dir", tmp_path / "run", "--device", "cpu"]
    if torch.cuda.is_available() and words == ["--device", "cuda"]:
        pytest.skip("there is a card, and it would train on it")
    assert train_act([*flags, *words]) == 2
    assert sentence in capfd.readouterr().err


def test_without_a_dataset_the_sentence_names_all_three_places(tmp_path, capfd):
    assert train_act(["--output_dir", tmp_path / "run", "--device", "cpu"]) == 2
    said = capfd.readouterr().err
    assert all(place in said for place in ("--dataset_dir", "dataset_dir in the configuration", "ACT_DATASET_DIR"))


def test_symptoms_and_known_errors_are_said_in_words(tmp_path, demos, capfd, monkeypatch):
    from vla_ft.training import symptoms, trainer

    monkeypatch.setattr(symptoms.Symptoms, "look", lambda self, line: self._say(f"symptom at {line['step']}"))
    words = ["--dataset_dir", demos, "--output_dir", tmp_path / "run", "--device", "cpu"]
    assert train_act(words, [*TINY, "--num_epochs=1"]) == 0
    assert "vla-ft: symptom at 4" in capfd.readouterr().err

    def out_of_memory(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(trainer, "update", out_of_memory)
    assert train_act([*words[:-3], tmp_path / "other", *words[-2:]]) == 2
    assert "memory" in capfd.readouterr().err


def test_a_signal_leaves_a_state_that_the_same_command_continues_exactly(tmp_path, demos, finished, capfd):
    import signal

    from vla_ft.training import trainer

    run, usual = tmp_path / "run", trainer.update
    words = ["--dataset_dir", demos, "--output_dir", run, "--device", "cpu"]

    def interrupted(run, batches, engine, stop):
        if run.state.step == 5:
            signal.raise_signal(signal.SIGTERM)
        return usual(run, batches, engine, stop or run.state.step == 5)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "update", interrupted)
        assert train_act(words) == 75
    assert f"State saved inside epoch 2: {run / 'checkpoints' / 'step_00000006'}" in capfd.readouterr().out
    assert train_act(words) == 0
    assert "Resuming: epoch 1.5 of 4 is done" in capfd.readouterr().out
    assert state_bytes(run, 16) == state_bytes(finished, 16)


def test_a_wandb_artifact_is_the_guides_file_and_takes_no_room_twice(tmp_path, demos, monkeypatch):
    from wandb_file import artifacts, history

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_DATA_DIR", raising=False)
    run = tmp_path / "run"
    words = ["--dataset_dir", demos, "--output_dir", run, "--device", "cpu", "--wandb_project", "p"]
    assert train_act(words, [*TINY, "--num_epochs=2", "--keep_states=1"]) == 0
    (log,) = (run / "wandb").glob("offline-run-*/*.wandb")
    kept = artifacts(log)
    assert [sorted(one["aliases"]) for one in kept] == [["latest", "step-4"], ["latest", "step-8"]]
    for number, one in enumerate(kept, 1):
        weights = run / "checkpoint" / f"act-train-{number}.pth"
        assert set(one["files"]) == {weights.name, "config.yaml"}
        assert one["files"][weights.name].samefile(weights), "a second name, not a copy"
        assert one["files"][weights.name].is_relative_to(run / "wandb"), "stays when the other is renamed"
    listing = (PROJECT.parents[1] / "benchmarks" / "results" / "wandb_offline_listing.txt").read_text()
    card = {"gpu_utilization", "gpu_memory_gib"}
    assert {name for line in history(log) for name in line} - card == set(
        re.findall(r"^  (\S+) +\d+ values", listing, re.M)
    )
    stored = {file.stat().st_ino: file.stat().st_size for file in (run / "wandb").rglob("*") if file.is_file()}
    weights = {file.stat().st_ino for file in (run / "checkpoint").glob("*.pth")}
    assert sum(size for node, size in stored.items() if node not in weights) < 1_000_000


DOCUMENTED = re.findall(r"^    (?:python|torchrun .*?) ?scripts/train_act.py(.*)$",
                        (PROJECT.parents[1] / "docs" / "act.md").read_text(encoding="utf-8"), re.MULTILINE)  # fmt: skip


@pytest.mark.parametrize("line", DOCUMENTED)
def test_commands_of_the_documentation_are_understood(line, demos, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    from policy.act.translator import read_guide_config, translate

    called = script()
    options, rest = called._parser().parse_known_args(shlex.split(line))
    options.resume_from = None if options.resume_from is None else __file__
    config = read_guide_config(PROJECT / options.config, called.overrides(rest))
    monkeypatch.setattr("policy.act.weights.find_state", lambda weights: tmp_path)
    flags = dataclasses.replace(called.read_flags(options), dataset_dir=str(demos))
    assert translate(config, flags).run.policy == "act"


def test_there_are_such_commands():
    assert len(DOCUMENTED) == 7


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "scripts/train_act.py")


@pytest.mark.nightly
@pytest.mark.parametrize("start", [TORCHRUN, ("scripts/train_act.py", "--devices=2")], ids=["torchrun", "devices"])
def test_two_processes_say_the_rate_rule_and_share_the_epoch(tmp_path, start):
    demos, run = demonstrations(tmp_path / "demos"), tmp_path / "run"
    flags = ["--dataset_dir", str(demos), "--output_dir", str(run), "--device", "cpu", "--scale_lr"]
    command = [sys.executable, *start, *flags, *TINY, "--num_epochs=1"]
    variables = {**os.environ, "PYTHONPATH": str(PROJECT.parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=PROJECT, env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    rule = "Learning rate: 2e-05, 1e-05 x 2 (--scale_lr); an update sees 16 samples = batch_size 8 on each of 2"
    assert rule in done.stdout
    assert done.stdout.count("=== ACT Training ===") == 1
    assert (run / "checkpoints" / "step_00000002").is_dir(), "32 samples are two updates of two times eight"
    assert (run / "checkpoint" / "act-train-1.pth").is_file()


@pytest.mark.nightly
def test_a_kill_that_nobody_can_catch_costs_no_more_than_an_epoch(tmp_path):
    """SIGKILL at three moments, the same command again each time: the end is that of a run that nobody killed."""
    demos, run, whole = demonstrations(tmp_path / "demos"), tmp_path / "run", tmp_path / "whole"
    variables = {**os.environ, "PYTHONPATH": str(PROJECT.parents[1]), "OMP_NUM_THREADS": "1"}

    def command(folder: Path) -> dict[str, object]:
        flags = ["--dataset_dir", str(demos), "--output_dir", str(folder), "--device", "cpu"]
        return {"args": [sys.executable, "scripts/train_act.py", *flags, *TINY], "cwd": PROJECT, "env": variables}

    def killed_at(line: str) -> bool:
        with subprocess.Popen(**command(run), stdout=subprocess.PIPE, text=True) as process:
            for said in process.stdout:
                if said.startswith(line):
                    process.kill()
                    break
        return process.returncode == -9

    assert killed_at("Starting training"), "before any checkpoint"
    assert killed_at("Epoch 2/4, Step 6"), "inside an epoch"
    assert (run / "checkpoints" / "step_00000004").is_dir()
    assert killed_at("Checkpoint saved"), "right behind one"
    subprocess.run(**command(run), check=True, stdout=subprocess.DEVNULL, timeout=300)
    subprocess.run(**command(whole), check=True, stdout=subprocess.DEVNULL, timeout=300)
    assert state_bytes(run, 16) == state_bytes(whole, 16)
    names = [sorted(path.name for path in (folder / "checkpoint").iterdir()) for folder in (run, whole)]
    assert names[0] == names[1] == [f"act-train-{epoch}.{kind}" for epoch in (1, 2, 3, 4) for kind in ("json", "pth")]
    new, old = (torch.load(folder / "checkpoint" / "act-train-4.pth") for folder in (run, whole))
    assert all(torch.equal(new[name], old[name]) for name in old)
