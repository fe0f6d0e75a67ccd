"""From open-pi-zero's training files to recipes. What each key means is in ``vocabulary.KEYS``."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vla_ft.data.mixes import MIXES
from vla_ft.data.standardize import STANDARDIZATIONS
from vla_ft.errors import UserError, unknown
from vla_ft.policies.pizero.config import STAND_IN
from vla_ft.policies.pizero.document import Document
from vla_ft.policies.pizero.vocabulary import RANDOM
from vla_ft.policies.translation import Translation

_SAMPLES_OF_AN_EPOCH = {"bridge": 1_550_000, "fractal": 3_786_400}
_MOCK_EPISODES = 8
_HELD_OUT = 0.05
"""Where open-pi-zero evaluates on a dataset's own ``val`` split: as much as its other training file holds out."""
_GEMMA_BASE, _OLD_PERIOD = 10000.0, 10000.0
_SPLIT = re.compile(r"train(?:\[:(\d{1,2})%\])?")


def translate(path: str, overrides: Sequence[str] = (), cards: int = 1) -> Translation:
    """A recipe for a training file of open-pi-zero, with hydra's ``key=value`` words over it.

    ``cards``: how many the global batch is spread over. Raises UserError for keys and values that have no counterpart.
    """
    return recipe_of(Document.read(Path(path), overrides), cards)


def recipe_of(document: Document, cards: int) -> Translation:
    """See ``translate``."""
    batch = _batch(document, cards)
    values: dict[str, Any] = {
        "policy": "pizero",
        "output": document["log_dir"],
        "data": _data(document),
        "model": _model(document),
        "batch": batch,
        "optimizer": _optimizer(document),
        **_trained(document),
        **_averages(document),
        "seed": document["seed"],
        "compile": document["use_torch_compile"],
        **({"device": document["device"]} if document["device"] else {}),
        **_start(document),
        **_cadence(document, batch["accumulation"]),
    }
    return Translation(values=values, remarks=_remarks(document))


def _batch(document: Document, cards: int) -> dict[str, int]:
    whole, one = document["global_batch_size"], document["per_device_batch_size"]
    if whole % (one * cards):
        raise UserError(
            f"global_batch_size={whole} is no multiple of per_device_batch_size={one} times {cards} card(s): "
            f"open-pi-zero would train on {max(whole // one // cards, 1) * one * cards} in silence. Change one of them."
        )
    return {"per_device": one, "accumulation": whole // (one * cards)}


def _data(document: Document) -> dict[str, Any]:
    mix, size, path = document["data.train.dataset_mix"], document["vision.config.image_size"], "data.train.data_path"
    held_out = _held_out(document)
    if mix == RANDOM:
        widths = {"action_dim": document["action_dim"], "proprio_dim": document["proprio_dim"]}
        mock = {"content": "noise", "format": "npz", "episodes": _MOCK_EPISODES, "cameras": ["primary"]}
        shape = {"image_size": [size, size], **widths}
        return {"path": "mock", "validation_fraction": 0.25, "workers": 2, "mock": {**mock, **shape}}
    if mix not in MIXES and mix not in STANDARDIZATIONS:
        raise unknown("data.train.dataset_mix", mix, (RANDOM, *MIXES, *STANDARDIZATIONS))
    return {
        **({"path": document[path]} if path in document else {}),
        "mix": mix,
        "cameras": ["primary"],
        "image_size": [size, size],
        "augmentation": "pizero",
        "steps_per_episode": 100,
        "validation_fraction": held_out,
        "drop_unlabeled": document["data.train.skip_unlabeled"],
        "workers": 8,
    }


def _held_out(document: Document) -> float:
    """The share of the episodes that is not trained on."""
    matched = _SPLIT.fullmatch(document["data.train.split"])
    trained = int(matched[1] or 100) if matched else 0
    if not trained:
        raise document.wrong("data.train.split", "train, or a share of it such as train[:95%]")
    rest = f"train[{trained}%:]"
    if document["data.val.split"] not in (None, rest):
        raise document.wrong("data.val.split", "null" if trained == 100 else f"null or {rest}, what training leaves")
    return _HELD_OUT if trained == 100 else round(1 - trained / 100, 2)


def _model(document: Document) -> dict[str, Any]:
    size, patch = document["vision.config.image_size"], document["vision.config.patch_size"]
    pictures, tokens = (size // patch) ** 2, document["max_seq_len"]
    if document["vision.config.num_image_tokens"] not in (None, pictures):
        raise document.wrong("vision.config.num_image_tokens", f"{pictures}, ({size} / {patch}) squared")
    if tokens - pictures < 3:
        raise document.wrong("max_seq_len", f"{pictures} of the picture and 3 or more of text")
    return {
        "horizon": document["horizon_steps"],
        "action_dim": document["action_dim"],
        "proprio_dim": document["proprio_dim"],
        "image_size": size,
        "patch_size": patch,
        "text_tokens": tokens - pictures,
        **_widths(document),
        **_constants(document),
        "time_width": document["time_hidden_size"],
        "adaptive": document["action_expert_adaptive_mode"],
        "flow_sampling": document["flow_sampling"],
        "flow_alpha": document["flow_alpha"],
        "flow_sigma_min": document["flow_sig_min"],
        "inference_steps": document["num_inference_steps"],
        "action_clip": document["final_action_clip_value"],
        "tokenizer": _tokenizer(document),
        **_as_it_is(document),
    }


def _widths(document: Document) -> dict[str, int]:
    vision, vlm, action, joint = "vision.config.", "mixture.vlm.", "mixture.action.", "joint.config."
    return {
        "vision_width": document[f"{vision}hidden_size"],
        "vision_mlp": document[f"{vision}intermediate_size"],
        "vision_layers": document[f"{vision}num_hidden_layers"],
        "vision_heads": document[f"{vision}num_attention_heads"],
        "vlm_width": document[f"{vlm}hidden_size"],
        "vlm_mlp": document[f"{vlm}intermediate_size"],
        "expert_width": document[f"{action}hidden_size"],
        "expert_mlp": document[f"{action}intermediate_size"],
        "layers": document[f"{joint}num_hidden_layers"],
        "heads": document[f"{joint}num_attention_heads"],
        "kv_heads": document[f"{joint}num_key_value_heads"],
        "head_dim": document[f"{joint}head_dim"],
        "vocab_size": document["vocab_size"],
        "image_token": document["image_token_index"],
    }


def _as_it_is(document: Document) -> dict[str, Any]:
    """Random numbers reach the model as they are drawn."""
    return {"normalization": "none"} if document["data.train.dataset_mix"] == RANDOM else {}


def _constants(document: Document) -> dict[str, float]:
    """What no tensor shows: the rotary bases and the period of the time code. Raises UserError where a file says none.

    Older files (5e04eca) know one base, ``joint.config.rope_theta``; the code that read them had a period of
    10000 (the published checkpoints are theirs).
    """
    joint, experts = "joint.config.rope_theta", ("action_expert_rope_theta", "mixture.action.rope_theta")
    theirs = next((document[key] for key in (*experts, joint) if key in document), None)
    period = document["time_max_period"] or (_OLD_PERIOD if _is_old(document) else None)
    if theirs is None or period is None:
        lacking = " and ".join(["action_expert_rope_theta"] * (theirs is None) + ["time_max_period"] * (period is None))
        raise UserError(
            f"{document.source} does not say {lacking}, and no tensor shows it later. Add action_expert_rope_theta=100 "
            "time_max_period=100, as open-pi-zero's present files have, or 10000 and 10000, as its checkpoints."
        )
    for key in (*experts, "mixture.proprio.rope_theta"):
        if key in document and document[key] != theirs:
            raise document.wrong(key, f"{theirs:g}: one base for both experts")
    ours = [document[key] for key in ("mixture.vlm.rope_theta", joint) if key in document] or [_GEMMA_BASE]
    if len(set(ours)) > 1:
        raise document.wrong("mixture.vlm.rope_theta", f"{ours[1]:g} as {joint}")
    return {"vlm_rope_theta": ours[0], "expert_rope_theta": theirs, "time_period": period}


def _is_old(document: Document) -> bool:
    """Whether a file is of the code that knew one rotary base for all."""
    newer = ("action_expert_rope_theta", "mixture.action.rope_theta", "time_max_period")
    return "joint.config.rope_theta" in document and not any(key in document for key in newer)


def _tokenizer(document: Document) -> str:
    """PaliGemma's lies beside its weights; random data without weights has no language to tokenise."""
    bare = document["data.train.dataset_mix"] == RANDOM and not _wants_weights(document)
    return STAND_IN if bare else document["pretrained_model_path"]


def _wants_weights(document: Document) -> bool:
    return document["load_pretrained_weights"] or bool(document["resume_checkpoint_path"])


def _start(document: Document) -> dict[str, Any]:
    """Where the weights start. A published checkpoint gives weights alone: its counters are not continued."""
    if not _wants_weights(document):
        return {}
    if checkpoint := document["resume_checkpoint_path"]:
        return {"init": {"path": checkpoint, "layout": "open-pi-zero"}}
    return {"init": {"path": document["pretrained_model_path"], "layout": "paligemma"}}


def _optimizer(document: Document) -> dict[str, Any]:
    parts = ["action"] + (["vlm"] if document["train_vlm"] else [])
    groups = {part: _group(document, part) for part in parts}
    return {
        "name": "adamw8bit",
        "lr": groups["action"]["lr"],
        "weight_decay": 0.0,
        "clip_grad_norm": document["max_grad_norm"],
        "groups": groups,
    }


def _group(document: Document, part: str) -> dict[str, Any]:
    rate, schedule = document[f"{part}_lr"], f"{part}_lr_scheduler."
    least = document[f"{schedule}min_lr"]
    if least > rate:
        raise UserError(f"{part}_lr={rate:g} is less than {schedule}min_lr={least:g}. Lower {schedule}min_lr as well.")
    return {
        "lr": rate,
        "weight_decay": document[f"{part}_weight_decay"],
        "schedule": {
            "name": "cosine_restarts",
            "warmup_steps": document[f"{schedule}warmup_steps"],
            "cycle_steps": document[f"{schedule}first_cycle_steps"],
            "final_fraction": least / rate,
        },
    }


def _trained(document: Document) -> dict[str, Any]:
    """What is trained, and in which types. Raises UserError for adapters in what is frozen."""
    frozen, half, mixed = not document["train_vlm"], document["use_bf16"], document["use_amp"]
    fixed = ["fixed"] if half or mixed else []
    values: dict[str, Any] = {"freeze": [*(["vlm"] if frozen else []), *fixed]}
    if document["lora"] and frozen:
        raise UserError(
            f"{document.source} has lora=True with train_vlm=False, which freezes the adapters as well. Give "
            "train_vlm=True, which trains adapters alone, or lora=False."
        )
    if document["lora"]:
        values["lora"] = {"vlm": {"rank": document["lora_r"], "dropout": document["lora_dropout"]}}
        half, mixed = False, half or mixed  # adapters train in float32
    values["precision"] = "bf16_stochastic" if half else "bf16" if mixed else "fp32"
    return values | ({"frozen_dtype": "bf16"} if values["precision"] != "fp32" else {})


def _averages(document: Document) -> dict[str, Any]:
    average = {"decay": document["ema_decay"], "start_step": document["ema_start"]}
    return {"ema": average} if document["use_ema"] else {}


def _cadence(document: Document, accumulation: int) -> dict[str, Any]:
    """Steps and intervals. Upstream counts some in batches; here all are updates."""
    epoch = _SAMPLES_OF_AN_EPOCH.get(document["data.train.dataset_mix"], 1_550_000)
    per_epoch = max(1, epoch // document["global_batch_size"])
    tracked = {"project": document["wandb.project"], "entity": document["wandb.entity"], "name": document["wandb.run"]}
    online = {"wandb": "online", **{key: value for key, value in tracked.items() if value}}
    return {
        "steps": math.ceil(document["n_updates"] or document["n_epochs"] * per_epoch),
        "checkpoint": {"every": document["save_model_freq"] or per_epoch, "keep_last": 3},
        "validation": {
            "every": max(1, document["eval_freq"] // accumulation),
            "samples": document["eval_size"],
            "thresholds": document["eval_thresholds"],
        },
        "logging": {
            "every": max(1, document["log_freq"] // accumulation),
            **(online if document["wandb.project"] else {}),
        },
    }


def _remarks(document: Document) -> dict[str, str]:
    """What a recipe says beside values that are not the original's."""
    remarks = {"data.validation_fraction": "of the episodes, drawn by their number; open-pi-zero takes the last ones"}
    if document["data.train.split"] == "train":
        said = "of the training episodes: open-pi-zero trains on them too, and evaluates on the dataset's own val split"
        remarks["data.validation_fraction"] = said
    if document["data.train.dataset_mix"] == RANDOM:
        remarks["data.validation_fraction"] = "of the random episodes"
    if _is_old(document):
        remarks["model.time_period"] = "not in the file: the code that reads joint.config.rope_theta alone has 10000"
    if document["ema_start"] == 0:
        remarks["ema.start_step"] = "open-pi-zero's average would never start at 0"
    if document["save_model_start"]:
        remarks["checkpoint.every"] = f"from the first on; save_model_start={document['save_model_start']:g} is dropped"
    return remarks
