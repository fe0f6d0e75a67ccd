"""The golden files under a root: which there are, who tests each, and how they are read.

A golden case is ``<part>/<name>``: a JSON file with its tensors (``name.json``, ``name.safetensors``) and, for data
formats, a folder ``name`` with ``name_expected.*`` beside it.
"""

from __future__ import annotations

import fnmatch
import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

COVERAGE: tuple[tuple[str, str], ...] = (
    ("act/lerobot_act_checkpoint*", "test_act_lerobot_folders.py"),
    ("act/npy*", "test_act_npy.py"),
    ("act/fusion_heads*", "test_act_fusion.py"),
    ("act/detrvae_*", "test_act_model.py"),
    ("act/policy_resnet*", "test_act_model.py"),
    ("act/lerobot_act_*", "test_act_lerobot.py"),
    ("act/position_tables*", "test_act_blocks.py"),
    ("act/temporal_aggregation*", "test_act_execution.py"),
    ("act/lerobot_temporal_ensembler*", "test_act_execution.py"),
    ("act/hdf5_*", "test_act_hdf5.py"),
    ("lerobot_export/*", "test_lerobot_export.py"),
    ("lerobot_dataset/*", "test_lerobot_datasets.py"),
    ("cogact/data_transforms", "test_cogact_data.py"),
    ("cogact/image_ops", "test_image_operators.py"),
    ("cogact/unnorm_ensemble", "test_cogact_inference_numbers.py"),
    ("cogact/predict", "test_cogact_inference_numbers.py"),
    ("cogact/prompts", "test_cogact_inference_numbers.py"),
    ("cogact/seed_mock_dataset", "test_cogact_mock.py"),
    ("cogact/*", "test_cogact_model.py"),
    ("pizero/data", "test_pizero_data.py"),
    ("pizero/simpler", "test_pizero_simpler_numbers.py"),
    ("pizero/parts", "test_pizero_parts.py"),
    ("pizero/masks", "test_pizero_parts.py"),
    ("pizero/flow_*", "test_pizero_model.py"),
    ("pizero/infer_*", "test_pizero_model.py"),
    ("pizero/train_*", "test_pizero_training.py"),
    ("pizero/hf_*", "test_pizero_weights.py"),
    ("pizero/tiny_*", "test_pizero_weights.py"),
    ("pizero/manifest_*", "test_pizero_weights.py"),
    ("pizero/param_counts", "test_pizero_weights.py"),
    ("rdt/episode*", "test_rdt_data.py"),
    ("rdt/dataset_stat*", "test_rdt_data.py"),
    ("rdt/consumer_batch", "test_rdt_data.py"),
    ("rdt/unified_vector", "test_rdt_data.py"),
    ("rdt/state_vec_map", "test_rdt_data.py"),
    ("rdt/hub_config_example", "test_rdt_weights.py"),
    ("rdt/*", "test_rdt_model.py"),
)
"""Pattern of a case -> the test module beside this file that covers it, or in words why none does. First match wins."""

REQUIRED: tuple[str, ...] = tuple(
    f"{part}/{name}"
    for part, names in {
        "pizero": "data flow_adaln flow_adaln_zero flow_base flow_lora flow_untied hf_paligemma_tiny infer_base "
        "manifest_paligemma3b_hf manifest_pizero_full masks param_counts parts tiny_checkpoint tiny_checkpoint_step3 "
        "train_action_only train_full",
        "rdt": "compute_loss conditional_sample consumer_batch core_forward dataset_stat dataset_stat_inputs ema "
        "episode_sample_first episode_sample_middle episode_sample_near_end episode_state_only episodes "
        "hub_config_example manifest_rdt-170m manifest_rdt-1b pos_embed_init runner_weights sample_metrics solver "
        "state_vec_map unified_vector",
        "cogact": "action_model_tiny action_model_tok4096 data_transforms diffusion_tables image_ops "
        "keys_action_model_DiT-B keys_action_model_DiT-L keys_action_model_DiT-S keys_llm_backbone keys_projector "
        "keys_vision_backbone param_counts predict projector prompts seed_mock_dataset unnorm_ensemble vlm_tiny",
    }.items()
    for name in names.split()
)
"""Cases that every root has to hold: a run without one of them fails, where it would pass with nothing to run."""


def cases_for(module: str, patterns: Sequence[str], present: Sequence[str]) -> list[str]:
    """The cases that a test of ``module`` runs: those present that match, and required ones that should be."""
    return [
        case
        for case in sorted({*present, *REQUIRED})
        if coverage_of(case) == module and any(fnmatch.fnmatchcase(case, pattern) for pattern in patterns)
    ]


def coverage_of(case: str) -> str:
    """Test module of a case, or the reason why it has none."""
    for pattern, answer in COVERAGE:
        if fnmatch.fnmatchcase(case, pattern):
            return answer
    return f"no test knows {case}"


def list_cases(root: Path) -> list[str]:
    """Every case under ``root``, sorted. A folder or file without a known ending counts as a case of its own."""
    cases = set()
    for part in sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")):
        for entry in part.iterdir():
            if entry.name != "README.md" and not entry.name.startswith("."):
                name = entry.name if entry.is_dir() else entry.stem
                cases.add(f"{part.name}/{name.removesuffix('_expected')}")
    return sorted(cases)


@dataclass(frozen=True)
class Golden:
    """One case: ``facts`` is its JSON, ``tensors`` its arrays by name."""

    name: str
    facts: dict[str, Any]
    tensors: dict[str, Tensor]

    def __getitem__(self, key: str) -> Tensor:
        return self.tensors[key]

    def __contains__(self, key: str) -> bool:
        return key in self.tensors

    def weights(self) -> dict[str, Tensor]:
        """The reference's state dict: stored tensors, and a backbone drawn by the rule of the README."""
        stored = {k.removeprefix("w."): v for k, v in self.tensors.items() if k.startswith("w.")}
        return stored | generated_backbone(self.facts)

    def close(self, actual: Tensor, expected: str | Tensor, **default: float) -> None:
        """Assert closeness within the case's own tolerance, or ``default`` where it states none."""
        reference = self.tensors[expected] if isinstance(expected, str) else expected
        tolerance = self.facts.get("tolerance") or default
        torch.testing.assert_close(actual, reference.to(actual.dtype), **tolerance, msg=lambda m: f"{expected}: {m}")


def load(root: Path, case: str) -> Golden:
    """Read a case's JSON and tensors."""
    path = root / case
    return Golden(case, json.loads(path.with_suffix(".json").read_text()), load_file(path.with_suffix(".safetensors")))


def generated_backbone(facts: dict[str, Any]) -> dict[str, Tensor]:
    """Trunk weights too large to store: redrawn from ``backbone_rule_seed`` in the listed order."""
    if not facts.get("backbone_keys"):
        return {}
    shapes = tuple((entry["key"], tuple(entry["shape"])) for entry in facts["backbone_keys"])
    drawn = _draw_backbone(int(facts["backbone_rule_seed"]), shapes)
    return {facts["backbone_prefix"] + key: value for key, value in drawn.items()}


@functools.cache
def _draw_backbone(seed: int, shapes: tuple[tuple[str, tuple[int, ...]], ...]) -> dict[str, Tensor]:
    random = np.random.RandomState(seed)
    values = {}
    for key, shape in shapes:
        z = random.standard_normal(size=shape)
        if key.endswith("running_var"):
            value = 0.5 + np.abs(z)
        elif key.endswith("running_mean"):
            value = 0.1 * z
        elif len(shape) == 1:
            value = 1 + 0.1 * z if key.endswith("weight") else 0.1 * z
        else:
            value = z * np.sqrt(2 / np.prod(shape[1:]))
        values[key] = torch.from_numpy(np.asarray(value, dtype=np.float32))
    return values
