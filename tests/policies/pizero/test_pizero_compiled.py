"""π0's blocks under torch.compile on the CPU: inference and training equal plain ones. Needs a C++ compiler."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
from pizero_examples import batch, model

from vla_ft.policies.compiling import compile_blocks

FORMS: list[dict[str, Any]] = [{"layers": 2, "vision_layers": 1}, {"layers": 2, "adaptive": "adaLN-Zero"}]


@pytest.mark.skipif(shutil.which("g++") is None, reason="this machine has no C++ compiler")
def test_a_compiled_block_infers_alike(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One block of SigLIP, compiled for real, nothing of it cached; the others take longer and are nightly."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    plain, compiled = (model(layers=1, vision_layers=1) for _ in range(2))
    block, same = compiled.blocks()[0], plain.blocks()[0]
    x = torch.randn(1, 4, plain.config.vision_width, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(compiled, "blocks", lambda: [block])
    monkeypatch.setattr("vla_ft.policies.compiling.require_compiler", lambda device: None)  # costs a graph of its own
    torch._dynamo.utils.counters.clear()
    compile_blocks(compiled, torch.device("cpu"))
    with torch.no_grad():
        torch.testing.assert_close(block(x), same(x), rtol=1e-5, atol=1e-6)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1, "the whole block, without a break"


@pytest.mark.nightly  # a graph takes a minute of a busy core
@pytest.mark.parametrize("changes", FORMS)
@pytest.mark.parametrize("autocast", [False, True])
def test_compiled_blocks_infer_and_train_alike(changes: dict[str, Any], autocast: bool) -> None:
    plain, compiled, data = model(**changes), model(**changes), batch()
    compile_blocks(compiled, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    noise, time = torch.randn(data["action"].shape, generator=generator), torch.tensor([0.2, 0.8])
    tolerance = 3e-2 if autocast else 1e-5
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        with torch.no_grad():
            actions = [one.sample_from(data, noise) for one in (plain, compiled)]
        losses = [one.loss(data, noise, time).loss for one in (plain, compiled)]
    torch.testing.assert_close(actions[1].float(), actions[0].float(), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(losses[1], losses[0], rtol=tolerance, atol=tolerance)
    for loss in losses:
        loss.backward()
    own = dict(compiled.named_parameters())
    for name, parameter in plain.named_parameters():
        if parameter.grad is not None:
            found = own[name].grad
            assert found is not None, name
            torch.testing.assert_close(found, parameter.grad, rtol=10 * tolerance, atol=tolerance, msg=name)
