from __future__ import annotations

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vla_ft.config import LoggingConfig
from vla_ft.errors import UserError
from vla_ft.training.tracking import Tracker, read_metrics
from vla_ft.training.wandb_run import WandbRun, note, require_login


def test_metrics_and_tensorboard_say_the_same(tmp_path):
    with Tracker(tmp_path, LoggingConfig(), {}, 0) as tracker:
        for step in (1, 2):
            tracker.write(step, {"train/loss": 1.0 / step})
    assert read_metrics(tmp_path) == [{"step": 1, "train/loss": 1.0}, {"step": 2, "train/loss": 0.5}]
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [(e.step, e.value) for e in board.Scalars("train/loss")] == [(1, 1.0), (2, 0.5)]


def test_what_a_killed_process_wrote_beyond_its_checkpoint_is_forgotten(tmp_path):
    with Tracker(tmp_path, LoggingConfig(), {}, 0) as tracker:
        for step in range(1, 6):
            tracker.write(step, {"train/loss": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "train/l')  # torn by kill -9
    with Tracker(tmp_path, LoggingConfig(), {}, 3) as tracker:
        tracker.write(4, {"train/loss": 40.0})
    assert [(line["step"], line["train/loss"]) for line in read_metrics(tmp_path)] == [(1, 1), (2, 2), (3, 3), (4, 40)]


def test_wandb_offline_needs_no_network_and_keeps_its_run(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    for step in (1, 2):
        with Tracker(tmp_path, LoggingConfig(wandb="offline"), {"steps": 2}, step - 1) as tracker:
            tracker.write(step, {"train/loss": 1.0})
    runs = list((tmp_path / "wandb").glob("offline-run-*"))
    identity = (tmp_path / "wandb_id").read_text()
    assert len(runs) == 2
    assert all(f"-{identity}" in run.name for run in runs)  # a second one in the same second gets a number behind


def test_wandb_is_told_whose_run_it_is(tmp_path, monkeypatch):
    told = {}
    monkeypatch.setattr("wandb.init", lambda **given: told.update(given))
    WandbRun(tmp_path, LoggingConfig(wandb="offline", project="arm", entity="robots"), {})
    assert (told["project"], told["entity"]) == ("arm", "robots")
    assert "logging.entity=robots is set" in note(LoggingConfig(entity="robots"))


def test_wandb_online_without_a_key_is_refused(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    with pytest.raises(UserError, match="WANDB_API_KEY"):
        Tracker(tmp_path, LoggingConfig(wandb="online"), {}, 0)


@pytest.mark.parametrize(
    ("logged_in", "content"),
    [(True, "machine api.wandb.ai login user password k"), (False, "machine example.org login user password k")],
)
def test_a_wandb_login_counts_as_well_as_a_key(logged_in, content, tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "netrc").write_text(content + "\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    if logged_in:
        require_login(LoggingConfig(wandb="online"))
    else:
        with pytest.raises(
            UserError, match=r"WandB is not logging.*nobody is logged in to api\.wandb\.ai.*wandb login"
        ):
            require_login(LoggingConfig(wandb="online"))
    require_login(LoggingConfig(wandb="offline"))
