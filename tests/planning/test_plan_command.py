"""`vla-ft plan` from outside, and what a run says about memory before and after."""

from __future__ import annotations

import json
import re

import pytest

from vla_ft.cli import main
from vla_ft.config import load_run_config
from vla_ft.errors import UserError
from vla_ft.planning import command
from vla_ft.planning.cards import Target
from vla_ft.planning.command import check_before_training, read_request
from vla_ft.planning.forecast import Planner
from vla_ft.planning.imagined import describe
from vla_ft.planning.output import FORECAST, PLAN, beside_measured, run_forecast

TINY = ("recipe=act-mock", "data.mock.image_size=[32,32]", "batch.per_device=2")


def test_a_plan_on_the_command_line(tmp_path, capsys):
    assert main(["plan", *TINY, "card=rtx3090", f"output={tmp_path}"]) == 0
    printed = capsys.readouterr().out
    assert "rtx3090 (24 GiB)" in printed
    assert "Largest batch.per_device that fits" in printed
    data = json.loads((tmp_path / PLAN).read_text())
    assert data["recommended"] == "" and data["options"][0]["fits"]
    assert (tmp_path / "plan.png").stat().st_size > 10_000


def test_what_the_table_refuses_is_said_with_the_reason(tmp_path, capsys):
    assert main(["plan", *TINY, "card=rtx3090", "engine=ddp", "offload=all", f"output={tmp_path}"]) == 2
    assert "offload=all would do nothing" in " ".join(capsys.readouterr().out.split())
    assert "offload=all would do nothing" in json.loads((tmp_path / PLAN).read_text())["refused"][0]


def test_devices_say_how_many_cards():
    assert read_request([*TINY, "card=rtx3090", "devices=4"]).cards == 4
    assert read_request([*TINY, "card=rtx3090", "devices=4", "cards=4"]).cards == 4
    assert read_request([*TINY, "card=rtx3090"]).cards is None


def test_nothing_fits_is_said_and_returned(capsys):
    assert main(["plan", *TINY, "card=0.3GiB"]) == 1
    printed = capsys.readouterr().out
    assert "Nothing that keeps the method fits" in printed
    assert re.search(r"None fits; \d+ more are in plan\.json", printed)
    assert "1 x 0.3 GiB\n" in re.sub(r" +\n", "\n", printed)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("card=rtx3009",), "Did you mean 'rtx3090'"),
        (("card=22GiB", "cards=two"), "cards=two: expected a number"),
        (("card=22GiB", "cards=\u00b2"), "cards=\u00b2: expected a number"),
        (("card=22GiB", "cards=4", "devices=2"), "cards=4 and devices=2 disagree"),
        (("card=22GiB", "batch.per_devise=2"), "Did you mean 'batch.per_device'"),
    ],
)
def test_mistakes_are_told_in_a_sentence(words, sentence, capsys):
    assert main(["plan", *TINY, *words]) == 2
    assert sentence in capsys.readouterr().err


def test_shapes_come_from_the_recipe_where_there_is_no_data(tmp_path):
    request = read_request(["recipe=act", "card=rtx3090"])
    assert "No data.path" in request.note
    assert describe(request.config).cameras == dict.fromkeys(
        ("cam_high", "cam_low", "cam_left_wrist", "cam_right_wrist"), (480, 640)
    )
    assert "is not here" in read_request(["recipe=act", f"data.path={tmp_path / 'none'}"]).note


def test_a_run_on_the_cpu_is_not_kept_waiting(monkeypatch):
    monkeypatch.delenv("VLA_FT_DEVICE", raising=False)
    monkeypatch.setattr(command, "Planner", None)  # whoever traced would fail
    assert check_before_training(load_run_config([*TINY, "device=cpu"]), 1) is None
    assert check_before_training(load_run_config([*TINY, "plan=off"]), 1) is None


def test_a_run_that_cannot_fit_ends_with_2_before_anything_is_loaded(monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("VLA_FT_DEVICE", raising=False)
    monkeypatch.setattr(command, "_on_a_card", lambda config: True)
    monkeypatch.setattr(command, "visible_target", lambda cards: Target("small", 0.3, cards))
    output = tmp_path / "run"
    assert main(["train", *TINY, f"output={output}"]) == 2
    assert "plan=warn" in capsys.readouterr().err
    assert not output.exists()


def test_the_forecast_stands_beside_the_measured_peak(tmp_path):
    config = load_run_config(TINY)
    target = Target("test", 24.0, 1)
    planner = Planner(describe(config))
    forecast, _, warning = command.judge(config, target, planner)
    assert warning == ""
    (tmp_path / PLAN).write_text("{}")  # that of `vla-ft plan` into the same folder is left alone
    line = beside_measured(tmp_path, run_forecast(forecast, target), int(forecast.peak.total / 1.02))
    assert line.endswith("foreseen (+2.0%)")
    assert json.loads((tmp_path / FORECAST).read_text())["measured"]["error"] == pytest.approx(0.02, abs=1e-4)
    assert (tmp_path / PLAN).read_text() == "{}"
    assert beside_measured(tmp_path, run_forecast(forecast, target), 0) == ""


def test_a_real_step_is_measured_when_asked(capsys):
    assert main(["plan", *TINY, "device=cpu", "measure=true"]) == 0
    said = re.search(r"on this CPU: ([\d.]+) GiB foreseen, ([\d.]+) GiB allocated by a real step \((\S+)%\)",
                     capsys.readouterr().out)  # fmt: skip
    assert said is not None
    foreseen, allocated, error = map(float, said.groups())
    assert allocated > 0.1 and abs(error) < 3
    assert foreseen == pytest.approx(allocated, rel=0.03)
    assert main(["plan", *TINY, "measure=perhaps"]) == 2


def test_a_run_on_the_cpu_ends_with_forecast_and_measured_peak(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("VLA_FT_DEVICE", raising=False)
    words = (*TINY, "device=cpu", "devices=1", "data.workers=0", "steps=2", f"output={tmp_path}")
    assert main(["train", *words, "plan=warn"]) == 0
    said = re.search(r"memory: [\d.]+ GiB allocated at most, [\d.]+ GiB foreseen \((\S+)%\)", capsys.readouterr().out)
    assert said is not None and abs(float(said.group(1))) < 3
    kept = json.loads((tmp_path / FORECAST).read_text())
    assert kept["target"]["name"] == "this CPU"
    assert abs(kept["measured"]["error"]) < 0.03


def test_a_combination_that_the_table_refuses_is_refused_first():
    config = load_run_config([*TINY, "engine=ddp", "offload=all"])
    with pytest.raises(UserError, match="offload=all would do nothing"):
        command.judge(config, Target("test", 24.0, 2), Planner(describe(config)))
