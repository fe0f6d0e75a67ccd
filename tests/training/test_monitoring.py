"""What a run reports, and that metrics.jsonl, TensorBoard and W&B's offline file say the same."""

from __future__ import annotations

import itertools
import json
import time
from types import SimpleNamespace

import pytest
import torch
import wandb
from narrow_trunk import narrow_trunk
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_runs import TINY
from wandb_file import artifacts, history

from vla_ft.checkpoints import verify
from vla_ft.config import load_run_config
from vla_ft.errors import UserError
from vla_ft.training.monitoring import GpuMeter, Pace, TimedBatches, common_names
from vla_ft.training.tracking import read_metrics
from vla_ft.training.trainer import train

GUIDE = {"total_loss", "action_loss", "kl_loss", "lr", "epoch", "step", "seconds_per_batch", "seconds_per_epoch"}
CARD = {"gpu_utilization", "gpu_memory_gib"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that logs everywhere, every checkpoint an artifact."""
    output = tmp_path_factory.mktemp("run") / "act clip"
    patch = pytest.MonkeyPatch()
    patch.setenv("WANDB_SILENT", "true")
    patch.delenv("WANDB_DATA_DIR", raising=False)
    words = ("logging.wandb=offline", "logging.artifacts=true", "steps=4", "checkpoint.keep_last=1")
    try:
        with narrow_trunk():
            train(load_run_config([*TINY, f"output={output}", *words]))
    finally:
        patch.undo()
    return output


def wandb_file(run):
    (path,) = (run / "wandb").glob("offline-run-*/*.wandb")
    return path


def test_the_guides_names_are_there(run):
    lines = read_metrics(run)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all(set(line) >= GUIDE for line in lines)
    assert ["val_loss" in line for line in lines] == [False, False, False, True]
    last = lines[-1]
    assert last["val_loss"] == last["validation/loss"]
    assert last["total_loss"] == last["train/loss"] and last["kl_loss"] == last["train/kl"]
    assert last["total_loss"] == pytest.approx(last["action_loss"] + 10 * last["kl_loss"], rel=1e-5)
    assert [line["lr"] for line in lines] == [line["train/lr/action"] for line in lines]
    assert len({line["lr"] for line in lines}) > 2, "warm-up and cosine: the rate moves"
    updates = last["step"] / last["epoch"]
    assert last["seconds_per_epoch"] == pytest.approx(last["seconds_per_batch"] * updates, rel=1e-6)
    assert 0 < last["waiting_share"] < 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a card")
def test_without_a_card_its_numbers_are_absent_not_zero(run):
    assert not any(CARD & set(line) for line in read_metrics(run))


def test_tensorboard_and_wandb_show_the_same(run):
    lines = read_metrics(run)
    board = EventAccumulator(str(run / "tensorboard"))
    board.Reload()
    assert set(board.Tags()["scalars"]) == {name for line in lines for name in line}
    for name in ("val_loss", "total_loss", "kl_loss", "lr", "step", "epoch", "seconds_per_batch", "train/grad_norm"):
        expected = [(line["step"], line[name]) for line in lines if name in line]
        seen = [(event.step, event.value) for event in board.Scalars(name)]
        assert seen == [(step, pytest.approx(value, rel=1e-6)) for step, value in expected]
    assert [{k: pytest.approx(v) for k, v in line.items()} for line in lines] == history(wandb_file(run))


def test_checkpoints_are_artifacts_that_outlive_their_folders(run):
    kept = artifacts(wandb_file(run))
    assert [one["name"] for one in kept] == ["act-clip-checkpoint"] * 2
    assert [sorted(one["aliases"]) for one in kept] == [["latest", "step-2"], ["latest", "step-4"]]
    assert [path.name for path in (run / "checkpoints").glob("step_*")] == ["step_00000004"]
    first = kept[0]["files"]
    assert all(path.is_relative_to(run / "wandb") for path in first.values()), "not in a home folder"
    again = run / "again"
    again.mkdir(exist_ok=True)
    for name, path in first.items():
        (again / name).write_bytes(path.read_bytes())
    assert verify(again)["step"] == 2, "the copy is a whole checkpoint"


def test_artifacts_need_wandb(tmp_path):
    with pytest.raises(UserError, match=r"logging\.artifacts=true needs W&B, which is off\. Set logging\.wandb"):
        load_run_config([*TINY, f"output={tmp_path}", "logging.artifacts=true"])


def test_a_policy_without_a_posterior_has_no_kl():
    assert common_names({"loss": 1.0, "l2": 0.5}) == {"total_loss": 1.0, "action_loss": 0.5}
    assert common_names({"loss": 1.0, "flow": 0.5}) == {"total_loss": 1.0}


def test_pace_counts_updates_and_waiting_only():
    def slow():
        for number in itertools.count():
            time.sleep(0.03)
            yield {"action": torch.tensor([number])}

    batches = TimedBatches(slow())
    pace = Pace(batches)
    for _ in range(2):
        with pace.update():
            next(batches)
            time.sleep(0.01)
        time.sleep(0.05)  # a checkpoint
    seen = pace.read(updates_per_epoch=100)
    assert 0.04 <= seen["seconds_per_batch"] < 0.065
    assert seen["seconds_per_epoch"] == pytest.approx(100 * seen["seconds_per_batch"])
    assert 0.5 < seen["waiting_share"] < 0.95
    assert pace.read(100) == {}, "nothing happened since"


class Nvml(SimpleNamespace):
    """NVML's bindings on a machine with one card, as far as the meter asks."""

    class NVMLError(Exception):
        pass

    def __init__(self, known: str, sliced: bool = False) -> None:
        super().__init__(closed=0, known=known, sliced=sliced)

    def nvmlInit(self):
        pass

    def nvmlShutdown(self):
        self.closed += 1

    def nvmlDeviceGetHandleByUUID(self, uuid):
        if uuid != self.known:
            raise self.NVMLError("not found")
        return uuid

    def nvmlDeviceGetUtilizationRates(self, handle):
        if self.sliced:
            raise self.NVMLError("not supported")
        return SimpleNamespace(gpu=93, memory=40)

    def nvmlDeviceGetMemoryInfo(self, handle):
        return SimpleNamespace(used=12 * 2**30, total=32 * 2**30)


@pytest.mark.parametrize(
    ("known", "sliced", "expected"),
    [
        ("GPU-5ab1", False, {"gpu_utilization": 93.0, "gpu_memory_gib": 12.0}),
        ("MIG-5ab1", True, {"gpu_memory_gib": 12.0}),  # a slice has memory, its utilisation is not told
        ("GPU-other", False, {}),
    ],
)
def test_the_card_is_found_by_its_uuid(known, sliced, expected, monkeypatch):
    properties = SimpleNamespace(uuid="5ab1")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    nvml = Nvml(known, sliced)
    with GpuMeter(torch.device("cuda", 0), nvml) as meter:
        assert meter.read() == expected
    assert nvml.closed == 1


@pytest.mark.gpu
def test_a_real_card_is_seen_while_it_works(tmp_path):
    with GpuMeter(torch.device("cuda", 0)) as meter:
        held = torch.zeros(2**30, device="cuda")
        seen = meter.read()
    assert held.numel() and 4 <= seen["gpu_memory_gib"] < 1000
    assert 0 <= seen["gpu_utilization"] <= 100


def test_a_sweeps_agent_names_the_run(tmp_path, monkeypatch):
    """And a run that this process has open already is not taken for it."""
    monkeypatch.setenv("WANDB_SILENT", "true")
    with wandb.init(mode="offline", dir=tmp_path, id="other", name="other"), narrow_trunk():
        monkeypatch.setenv("WANDB_RUN_ID", "sweep123")
        train(load_run_config([*TINY, f"output={tmp_path}", "steps=1", "logging.wandb=offline", "validation.every=1"]))
    (path,) = (tmp_path / "wandb").glob("offline-run-*/run-sweep123.wandb")
    assert json.dumps(history(path)[-1]["val_loss"])
