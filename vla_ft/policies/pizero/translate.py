"""From open-pi-zero's training files to recipes: one table of what each of its keys means here.

Values that a file leaves out are those of its ``bridge.yaml``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vla_ft.errors import UserError
from vla_ft.policies.pizero.config import STAND_IN
from vla_ft.policies.pizero.vocabulary import Document

RANDOM = "random"
"""``data.train.dataset_mix`` of a published guide: numbers drawn at random instead of demonstrations."""
_NO_MEANING = (
    "_target_", "name", "n_nodes", "debug", "device", "defaults", "hydra.", "ema_device", "swa_", "data.train.shuffle",
    "data.train.num_parallel", "data.train.traj_", "data.train.load_proprio", "data.val.", "tokenizer_padding",
    "vision._target_", "vision.use_", "vision.config.lora.", "vision.config.num_channels", "vision.config.layer_norm",
    "vision.config.attention_dropout", "vision.config.num_image_tokens", "vision_projector.", "joint._target_",
    "joint.config.lora.", "joint.config.mixture.", "joint.config.rms_norm_eps", "joint.config.attention_bias",
    "joint.config.attention_dropout", "joint.config.pad_token_id", "joint.config.action_expert_adaptive_mode",
    "joint.config.time_hidden_size", "mixture.vlm.use_", "mixture.proprio.", "mixture.action.use_", "mixture.vlm.cache",
    "mixture.action.cache", "mixture.vlm.adaptive_mode", "mixture.action.adaptive_mode", "wandb.entity", "wandb.run",
    "use_lm_head", "action_lr_scheduler._target_", "vlm_lr_scheduler._target_",
)  # fmt: skip
"""Beginnings of keys that are repeated elsewhere, constant, or about machinery that does not exist here."""
_SAMPLES_OF_AN_EPOCH = {"bridge": 1_550_000, "fractal": 3_786_400}
_MOCK_EPISODES = 8


def translate(path: str, overrides: Sequence[str] = (), cards: int = 1) -> dict[str, Any]:
    """A recipe's values for a training file of open-pi-zero, with hydra's ``key=value`` words over it.

    ``cards``: how many the global batch is spread over. Raises UserError for keys and values that have no counterpart.
    """
    document = Document.read(Path(path), overrides)
    document.ignore(*_NO_MEANING)
    batch = _batch(document, cards)
    accumulation = batch["accumulation"]
    values: dict[str, Any] = {
        "policy": "pizero",
        "output": _output(document),
        "data": _data(document),
        "model": _model(document),
        "batch": batch,
        "optimizer": _optimizer(document),
        **_trained(document),
        **_averages(document),
        "seed": document.take("seed", 42),
        "compile": document.take("use_torch_compile", True),
        **_start(document),
        **_cadence(document, accumulation),
    }
    document.finish()
    return values


def _output(document: Document) -> str:
    folder = document.take("log_dir", "")
    return folder or "runs/open-pi-zero"


def _batch(document: Document, cards: int) -> dict[str, int]:
    whole, one = document.take("global_batch_size", 1024), document.take("per_device_batch_size", 16)
    if whole % (one * cards):
        raise UserError(
            f"global_batch_size={whole} is no multiple of per_device_batch_size={one} times {cards} card(s): "
            f"open-pi-zero would train on {max(whole // one // cards, 1) * one * cards} in silence. Change one of them."
        )
    return {"per_device": one, "accumulation": whole // (one * cards)}


def _data(document: Document) -> dict[str, Any]:
    mix = document.take("data.train.dataset_mix", "bridge")
    split, path = document.take("data.train.split", "train"), document.take("data.train.data_path", "")
    only_one = "π0 sees one step here as there (its encoders take no more)."
    document.expect("data.train.window_size", 1, because=only_one)
    document.expect("cond_steps", 1, because=only_one)
    horizon = document.take("horizon_steps", 4)
    document.expect("data.train.action_horizon", horizon, because=f"it must be horizon_steps, {horizon}.")
    size = document.take("vision.config.image_size", 224)
    keep_unlabeled = not document.take("data.train.skip_unlabeled", True)
    if mix == RANDOM:
        widths = {"action_dim": document.take("action_dim", 7), "proprio_dim": document.take("proprio_dim", 7)}
        mock = {"content": "noise", "format": "npz", "episodes": _MOCK_EPISODES, "cameras": ["primary"]}
        shape = {"image_size": [size, size], **widths}
        return {"path": "mock", "validation_fraction": 0.25, "workers": 2, "mock": {**mock, **shape}}
    shares = {"train": 0.0, "train[:95%]": 0.05, "train[:90%]": 0.1}
    if split not in shares:
        raise UserError(f"data.train.split is '{split}'; expected one of {', '.join(shares)}.")
    return {
        **({"path": path} if path else {}),
        "mix": mix,
        "cameras": ["primary"],
        "image_size": [size, size],
        "augmentation": "pizero",
        "steps_per_episode": 100,
        "validation_fraction": shares[split],
        "drop_unlabeled": not keep_unlabeled,
        "workers": 8,
    }


def _model(document: Document) -> dict[str, Any]:
    size, patch = document.take("vision.config.image_size", 224), document.take("vision.config.patch_size", 14)
    pictures, tokens = (size // patch) ** 2, document.take("max_seq_len", 276)
    document.expect("max_image_text_tokens", tokens, because=f"it must be max_seq_len, {tokens}.")
    document.expect("pad_token_id", 0, because="PaliGemma pads with 0.")
    document.expect("flow_beta", 1, 1.0, because="times are drawn from Beta(alpha, 1), as published.")
    vlm, action, joint, vision = "mixture.vlm.", "mixture.action.", "joint.config.", "vision.config."
    theta = document.take("action_expert_rope_theta", document.take(f"{action}rope_theta", 100.0))
    document.expect(
        f"{action}rope_theta", theta, int(theta), because=f"it must be action_expert_rope_theta, {theta:g}."
    )
    document.expect(f"{action}use_final_norm", True, because="the experts end in a norm.")
    document.expect(f"{vlm}use_final_norm", False, because="nothing reads the end of the vision-language model.")
    adaptive = document.take("action_expert_adaptive_mode", None)
    return {
        "horizon": document.take("horizon_steps", 4),
        "action_dim": document.take("action_dim", 7),
        "proprio_dim": document.take("proprio_dim", 7),
        "image_size": size,
        "patch_size": patch,
        "text_tokens": tokens - pictures,
        "vision_width": document.take(f"{vision}hidden_size", 1152),
        "vision_mlp": document.take(f"{vision}intermediate_size", 4304),
        "vision_layers": document.take(f"{vision}num_hidden_layers", 27),
        "vision_heads": document.take(f"{vision}num_attention_heads", 16),
        "vlm_width": document.take(f"{vlm}hidden_size", 2048),
        "vlm_mlp": document.take(f"{vlm}intermediate_size", 16384),
        "expert_width": document.take(f"{action}hidden_size", 1024),
        "expert_mlp": document.take(f"{action}intermediate_size", 4096),
        "layers": document.take(f"{joint}num_hidden_layers", 18),
        "heads": document.take(f"{joint}num_attention_heads", 8),
        "kv_heads": document.take(f"{joint}num_key_value_heads", 1),
        "head_dim": document.take(f"{joint}head_dim", 256),
        "vocab_size": document.take("vocab_size", 257216),
        "image_token": document.take("image_token_index", 257152),
        "vlm_rope_theta": document.take(f"{vlm}rope_theta", 10000.0),
        "expert_rope_theta": theta,
        "time_period": document.take("time_max_period", 100.0),
        "time_width": document.take("time_hidden_size", 256),
        "adaptive": adaptive,
        "flow_sampling": document.take("flow_sampling", "beta"),
        "flow_alpha": document.take("flow_alpha", 1.5),
        "flow_sigma_min": document.take("flow_sig_min", 0.001),
        "inference_steps": document.take("num_inference_steps", 10),
        "action_clip": document.take("final_action_clip_value", 1.0),
        "tokenizer": _tokenizer(document),
    }


def _tokenizer(document: Document) -> str:
    """PaliGemma's lies beside its weights; random data without weights has no language to tokenise."""
    weights = document.take("pretrained_model_path", "")
    bare = document.take("data.train.dataset_mix", "bridge") == RANDOM and not _wants_weights(document)
    return STAND_IN if bare else weights or "paligemma-3b-pt-224"


def _wants_weights(document: Document) -> bool:
    return document.take("load_pretrained_weights", True) or bool(document.take("resume_checkpoint_path", ""))


def _start(document: Document) -> dict[str, Any]:
    """Where the weights start. A published checkpoint gives weights alone: its counters are not continued."""
    checkpoint, weights = document.take("resume_checkpoint_path", ""), document.take("pretrained_model_path", "")
    if not _wants_weights(document):
        return {}
    if checkpoint:
        return {"init": {"path": checkpoint, "layout": "open-pi-zero"}}
    return {"init": {"path": weights or "paligemma-3b-pt-224", "layout": "paligemma"}}


def _optimizer(document: Document) -> dict[str, Any]:
    parts = ["action"] + (["vlm"] if document.take("train_vlm", True) else [])
    document.ignore("vlm_lr", "vlm_weight_decay")
    groups = {part: _group(document, part) for part in parts}
    return {
        "name": "adamw8bit",
        "lr": groups["action"]["lr"],
        "weight_decay": 0.0,
        "clip_grad_norm": document.take("max_grad_norm", 1.0),
        "groups": groups,
    }


def _group(document: Document, part: str) -> dict[str, Any]:
    rate = document.take(f"{part}_lr", 5e-5)
    schedule = f"{part}_lr_scheduler."
    return {
        "lr": rate,
        "weight_decay": document.take(f"{part}_weight_decay", 0.0),
        "schedule": {
            "name": "cosine_restarts",
            "warmup_steps": document.take(f"{schedule}warmup_steps", 200),
            "cycle_steps": int(document.take(f"{schedule}first_cycle_steps", 1e7)),
            "final_fraction": document.take(f"{schedule}min_lr", 1e-8) / rate,
        },
    }


def _trained(document: Document) -> dict[str, Any]:
    """What is trained, and in which types."""
    document.expect(
        "quantize", False, because="4-bit weights are not offered. Freeze them (train_vlm: False) in bfloat16."
    )
    rank, dropout = document.take("lora_r", 32), document.take("lora_dropout", 0.0)
    adapters, frozen = document.take("lora", False), not document.take("train_vlm", True)
    half = document.take("use_bf16", True)
    mixed = document.take("use_amp", True)
    fixed = ["fixed"] if half or mixed else []
    values: dict[str, Any] = {"freeze": [*(["vlm"] if frozen else []), *fixed]}
    if adapters and not frozen:
        values["lora"] = {"vlm": {"rank": rank, "dropout": dropout}}
        half, mixed = False, half or mixed  # adapters train in float32
    values["precision"] = "bf16_stochastic" if half else "bf16" if mixed else "fp32"
    return values | ({"frozen_dtype": "bf16"} if values["precision"] != "fp32" else {})


def _averages(document: Document) -> dict[str, Any]:
    document.expect("use_swa", False, because="an equal average is not offered. Use use_ema.")
    document.expect("ema_freq", 1, because="the average follows every update.")
    decay, start = document.take("ema_decay", 0.99), document.take("ema_start", 0)
    return {"ema": {"decay": decay, "start_step": start}} if document.take("use_ema", False) else {}


def _cadence(document: Document, accumulation: int) -> dict[str, Any]:
    """Steps and intervals. Upstream counts some in batches; here all are updates."""
    epoch = _SAMPLES_OF_AN_EPOCH.get(document.take("data.train.dataset_mix", "bridge"), 1_550_000)
    per_epoch = epoch // document.take("global_batch_size", 1024)
    updates = int(document.take("n_updates", document.take("n_epochs", 15) * per_epoch))
    document.ignore("save_model_start")  # every interval saves; the last few are kept
    project = document.take("wandb.project", "")
    document.expect("wandb", None, because="give wandb its project, or null.")
    return {
        "steps": updates,
        "checkpoint": {"every": int(document.take("save_model_freq", per_epoch)), "keep_last": 3},
        "validation": {
            "every": max(1, document.take("eval_freq", 2000) // accumulation),
            "samples": document.take("eval_size", 1024),
            "thresholds": document.take("eval_thresholds", [0.05, 0.1, 0.2, 0.3, 0.5]),
        },
        "logging": {
            "every": max(1, document.take("log_freq", 16) // accumulation),
            **({"wandb": "online", "project": project} if project else {}),
        },
    }
