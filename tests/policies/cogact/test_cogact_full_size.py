"""A file of CogACT-Base's size and names (30.5 GB, sparse) through ``load_vla``: nothing of it is read or copied."""

from __future__ import annotations

import json
from pathlib import Path

import large_files
import pytest
import torch

from vla_ft.errors import UserError
from vla_ft.policies.cogact.inference import load_vla


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The published folder with holes for numbers."""
    (tmp_path / "checkpoints").mkdir()
    large_files.write_sparse_torch(tmp_path / "checkpoints" / "CogACT-Base.pt", large_files.cogact_base())
    bounds = {"mean": [0.0] * 7, "q01": [-1.0] * 7, "q99": [1.0] * 7, "mask": [True] * 6 + [False]}
    (tmp_path / "dataset_statistics.json").write_text(json.dumps({"bridge_orig": {"action": bounds}}))
    return tmp_path


@pytest.mark.nightly
def test_thirty_gigabytes_are_mapped(run: Path) -> None:
    with large_files.PeakOf("RssAnon") as anonymous:
        before = anonymous.peak
        vla = load_vla(run, action_model_type="DiT-B", future_action_window_size=15, tokenizer="stand-in")
    assert sum(p.numel() for p in vla.parameters()) == large_files.PARAMETERS
    assert not any(p.is_meta for p in (*vla.parameters(), *vla.buffers()))
    assert vla.config.action_model_type == "DiT-B" and vla.config.size == "7b" and vla.config.image_size == 224
    assert anonymous.peak - before < 2 * large_files.GIB
    assert not vla.head.positional_embedding.any() and vla.head.positional_embedding.shape == (17, 768)
    with torch.inference_mode():  # the head's part of the file alone is read
        actions, _ = vla.act(torch.zeros(1, 1, 4096), vla.statistics_of(None), num_ddim_steps=1)
    assert actions.shape == (1, 16, 7)
    with pytest.raises(UserError, match="holds the head DiT-B, the configuration DiT-L"):
        load_vla(run, action_model_type="DiT-L", tokenizer="stand-in")
