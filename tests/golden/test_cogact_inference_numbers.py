"""CogACT's prediction from given features and noise, prompts, un-normalising and the adaptive ensemble."""

from __future__ import annotations

import json
from pathlib import Path

import golden_files
import numpy as np
import pytest
import torch
from golden_files import Golden
from torch import nn

from vla_ft.deployment.adaptive_ensemble import AdaptiveEnsemble
from vla_ft.policies.cogact.config import Config
from vla_ft.policies.cogact.diffusion import Schedule
from vla_ft.policies.cogact.dit import Dit, DitShape
from vla_ft.policies.cogact.inference import CogActVla, in_units
from vla_ft.policies.cogact.prompts import BLANK, END, prompt_text

SAMPLING = 2e-5


def close(actual: np.ndarray, expected: torch.Tensor) -> None:
    error = np.abs(actual - expected.numpy()).max() / expected.abs().max().item()
    assert error <= SAMPLING, f"{error:.2e}"


class HeadAlone(CogActVla):
    """``predict_action`` behind the vision-language model."""

    def __init__(self, golden: Golden) -> None:
        facts = golden.facts
        nn.Module.__init__(self)
        self.config = Config(size="mock", tokenizer="stand-in", future_action_window_size=15)
        self.action_dim, self.schedule = facts["in_channels"], Schedule.cosine()
        shape = DitShape(width=facts["hidden_size"], depth=facts["depth"], heads=facts["num_heads"])
        self.head = Dit(
            shape, horizon=16, action_dim=self.action_dim, condition_dim=facts["token_size"], drop=0.1
        ).eval()
        self.norm_stats = {"arm": {"action": {**facts["action_stats"], "mean": [0.0] * 7}}}
        weights = {k.removeprefix("weights/net."): v for k, v in golden.tensors.items() if "weights/" in k}
        self.head.load_state_dict(weights)


@pytest.mark.golden_files("cogact/predict")
def test_prediction(golden: Golden) -> None:
    model, facts = HeadAlone(golden), golden.facts
    entry = model.statistics_of(None)
    features = golden["in/cognition_features"]
    for name, rows, noise, scale in (
        ("single", slice(0, 1), "in/noise_single", facts["cfg_scale"]),
        ("single_nocfg", slice(0, 1), "in/noise_single", 1.0),
        ("batch", slice(None), "in/noise_batch", facts["cfg_scale"]),
    ):
        actions, normalized = model.act(
            features[rows], entry, cfg_scale=scale, use_ddim=True, num_ddim_steps=facts["ddim_steps"],
            noise=golden[noise],
        )  # fmt: skip
        shape = golden[f"out/{name}_actions"].shape
        close(actions.reshape(shape), golden[f"out/{name}_actions"])
        close(normalized.reshape(shape), golden[f"out/{name}_normalized"])
        assert actions.dtype == np.float64 and normalized.dtype == np.float32


@pytest.mark.golden_files("cogact/unnorm_ensemble")
def test_units(golden: Golden) -> None:
    entry = {"action": {**golden.facts["action_stats"], "mean": [0.0] * 7}}
    raw = golden["in/normalized_raw"].numpy()
    actions, normalized = in_units(raw, entry)
    close(normalized, golden["out/normalized"])
    close(actions, golden["out/actions"])
    del entry["action"]["mask"]
    close(in_units(raw, entry)[0], golden["out/actions_no_mask"])


@pytest.mark.golden_files("cogact/unnorm_ensemble")
def test_adaptive_ensemble(golden: Golden) -> None:
    facts, chunks = golden.facts, golden["in/ensemble_chunks"].numpy()
    for horizon in facts["horizons"]:
        for number, alpha in enumerate(facts["alphas"]):
            ensemble = AdaptiveEnsemble(horizon, alpha)
            got = []
            for step, chunk in enumerate(chunks):
                if step == facts["ensemble_reset_before_step"]:
                    ensemble.reset()
                got.append(ensemble.step(lambda chunk=chunk: chunk))
            np.testing.assert_allclose(np.stack(got), golden[f"out/ensemble_h{horizon}_a{number}"].numpy(), atol=1e-12)
    flat = AdaptiveEnsemble(4, facts["alphas"][0])
    got = [flat.add(chunk[0]) for chunk in chunks]
    np.testing.assert_allclose(np.stack(got), golden["out/ensemble_1d_h4_a0"].numpy(), atol=1e-12)


def test_prompts(golden_root: Path) -> None:
    """Against "cogact/prompts"."""
    if not (golden_root / "cogact/prompts.json").is_file():
        pytest.skip("cogact/prompts is not under this root")
    cases = json.loads((golden_root / "cogact/prompts.json").read_text())
    assert len(cases) >= 4
    for case in cases:
        text = prompt_text(case["instruction"])
        assert text == case["inference_prompt"]
        assert text + " </s>" == case["training_prompt"]
        assert case["inference_appended_ids"] == [BLANK, END]
    assert golden_files.coverage_of("cogact/prompts") == Path(__file__).name
