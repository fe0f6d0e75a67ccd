"""Pieces of open-pi-zero: time code, positions, norms, encoder, flow times, masks, metrics, schedules, prompts."""

from __future__ import annotations

import pytest
import torch
from golden_files import Golden

from vla_ft.config import ScheduleConfig
from vla_ft.policies.pizero.attention import rotate, rotation, visibility
from vla_ft.policies.pizero.config import Config
from vla_ft.policies.pizero.flow import ActionEncoder, beta_times, time_code, uniform_times
from vla_ft.policies.pizero.gemma import RMSNorm
from vla_ft.policies.pizero.tokenizer import NEWLINE, Prompts
from vla_ft.policies.pizero.vision import scale_pixels
from vla_ft.policies.pizero.vlm import BEGIN, FIRST_POSITION, PAD
from vla_ft.training.optimizers import schedule_factor
from vla_ft.training.validation import rows_within

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.mark.golden_files("pizero/parts")
def test_time_code(golden: Golden) -> None:
    for key in golden.tensors:
        if key.startswith("timeemb.") and key.endswith(".t"):
            _, width, period, _ = key.split(".")
            code = time_code(golden[key], int(width), float(period))
            golden.close(code, f"timeemb.{width}.{period}.out", **CLOSE)


@pytest.mark.golden_files("pizero/parts")
@pytest.mark.parametrize("theta", [100, 10000])
def test_rotary_positions(golden: Golden, theta: int) -> None:
    x, positions = golden[f"rope.{theta}.x"], golden[f"rope.{theta}.pos"]
    for row in range(len(x)):
        first = int(positions[row, 0])
        assert torch.equal(positions[row], torch.arange(first, first + x.shape[2]))
        cosines, sines = rotation(x.shape[2], first, float(theta), x.shape[-1], torch.device("cpu"))
        golden.close(cosines, golden[f"rope.{theta}.cos"][row], **CLOSE)
        golden.close(sines, golden[f"rope.{theta}.sin"][row], **CLOSE)
        golden.close(rotate(x[row : row + 1], cosines, sines)[0], golden[f"rope.{theta}.out"][row], **CLOSE)


@pytest.mark.golden_files("pizero/parts")
def test_norm_rounds_once(golden: Golden) -> None:
    norm = RMSNorm(golden["rmsnorm.weight"].shape[0])
    with torch.no_grad():
        norm.weight.copy_(golden["rmsnorm.weight"])
        golden.close(norm(golden["rmsnorm.x"]), "rmsnorm.out", **CLOSE)
        half = norm(golden["rmsnorm.x"].bfloat16())
    assert half.dtype == torch.bfloat16
    golden.close(half.float(), "rmsnorm.out_bf16", rtol=0.0, atol=0.0)


@pytest.mark.golden_files("pizero/parts")
@pytest.mark.parametrize(("kind", "timed"), [("plain", False), ("time", True)])
def test_action_encoder(golden: Golden, kind: str, timed: bool) -> None:
    prefix = f"actenc.{kind}."
    facts = golden.facts["action_encoder"]
    encoder = ActionEncoder(facts["action_dim"], facts["width"], timed)
    weights = {k.removeprefix(prefix + "w."): v for k, v in golden.tensors.items() if k.startswith(prefix + "w.")}
    encoder.load_state_dict(weights)
    golden.close(encoder(golden[prefix + "a"], golden[prefix + "te"]), prefix + "out", **CLOSE)


@pytest.mark.golden_files("pizero/parts")
def test_flow_times(golden: Golden) -> None:
    golden.close(beta_times(golden["beta.z"], golden.facts["sig_min"]), "beta.t", rtol=0.0, atol=1e-7)
    times = golden["uniform.t"]
    golden.close(uniform_times(golden["uniform.u"], len(times)), times, rtol=0.0, atol=1e-6)


@pytest.mark.golden_files("pizero/parts")
def test_pixels(golden: Golden) -> None:
    golden.close(scale_pixels(golden["image.uint8"].permute(0, 2, 3, 1)), "image.out", rtol=0.0, atol=1e-6)


@pytest.mark.golden_files("pizero/parts")
def test_accuracy_and_l1(golden: Golden) -> None:
    predicted, true = golden["acc.pred"], golden["acc.gt"]
    for threshold, expected in zip(golden.facts["accuracy_thresholds"], golden["acc.out"].tolist(), strict=True):
        rows = rows_within((predicted - true).abs(), threshold)
        assert float(rows.float().mean()) == pytest.approx(expected, abs=1e-6)
    assert float((predicted - true).abs().mean()) == pytest.approx(golden["acc.l1"].item(), rel=1e-5)


@pytest.mark.golden_files("pizero/parts")
@pytest.mark.parametrize("name", ["warm", "default", "mult", "nowarm"])
def test_schedules(golden: Golden, name: str) -> None:
    """``lr_after_n_steps[k]`` is the rate of update k + 1: the first two share the bottom of the warm-up."""
    case = golden.facts["lr_schedules"][name]
    arguments = case["args"]
    schedule = ScheduleConfig(
        name="cosine_restarts",
        warmup_steps=arguments["warmup_steps"],
        cycle_steps=arguments["first_cycle_steps"],
        cycle_growth=arguments["cycle_mult"],
        cycle_decay=arguments["gamma"],
        final_fraction=arguments["min_lr"] / arguments["max_lr"],
    )
    for step, expected in enumerate(case["lr_after_n_steps"]):
        rate = arguments["max_lr"] * schedule_factor(schedule, step, steps=1000)
        assert rate == pytest.approx(expected, rel=1e-9), f"update {step + 1}"


@pytest.mark.golden_files("pizero/parts")
def test_prompts(golden: Golden) -> None:
    """The published prompt after the picture's placeholders: a beginning, the instruction as it is, a newline."""
    prompts = Prompts(Config(tokenizer="stand-in"))
    told: list[str] = []
    prompts.encode = lambda text: told.append(text) or [7]  # type: ignore[func-returns-value]
    for instruction, whole in golden.facts["prompt_strings"].items():
        row = prompts(instruction)
        assert "<bos>" + told[-1] == whole.replace("<image>", "")
        assert told[-1].endswith(NEWLINE) and row[0] == BEGIN and (row[2:] == PAD).all()


@pytest.mark.golden_files("pizero/masks")
def test_masks(golden: Golden) -> None:
    for number, case in enumerate(golden.facts["cases"]):
        name = f"case{number}"
        valid = golden[f"{name}.attention_mask"].bool()
        assert valid.sum(1).tolist() == case["counts"]
        proprio, actions = case["cond_steps"], case["horizon_steps"]
        mask = visibility(valid, proprio, actions)
        assert torch.equal(mask[:, None], golden[f"{name}.allowed"].bool())
        start = valid.shape[1] + proprio
        assert torch.equal(mask[:, None, :start, :start], golden[f"{name}.allowed_itp"].bool())
        assert torch.equal(mask[:, None, start:], golden[f"{name}.allowed_action"].bool())
        for kind, count, first in (
            ("vlm", valid.shape[1], FIRST_POSITION),
            ("proprio", proprio, FIRST_POSITION),
            ("action", actions, FIRST_POSITION + proprio),
        ):
            positions = golden[f"{name}.pos.{kind}"][0].float()
            cosines, sines = rotation(count, first, 10000.0, 2, torch.device("cpu"))  # a frequency of 1 alone
            torch.testing.assert_close(cosines, positions.cos()[:, None].expand(-1, 2))
            torch.testing.assert_close(sines, positions.sin()[:, None].expand(-1, 2))
