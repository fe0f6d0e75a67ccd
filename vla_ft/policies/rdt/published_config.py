"""config.json of published RDT weights: read in both of its forms, compared with a configuration, and written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vla_ft.errors import UserError
from vla_ft.policies.rdt.config import Config
from vla_ft.policies.rdt.vector import WIDTH

FILE = "config.json"
_CAMERAS = 3


def read_config(path: Path) -> dict[str, Any]:
    """The file's values, flat: the hub's form, or the constructor's with a ``config`` inside. Raises UserError."""
    try:
        values = json.loads(path.read_text())
        inner = values.pop("config", {})
        flat = {**inner, **values}
        if not isinstance(flat.get("rdt"), dict):
            raise ValueError("it has no part 'rdt'")
    except (ValueError, AttributeError, TypeError, OSError) as error:
        raise UserError(
            f"{path} is no configuration of RDT ({error}). Expected what its hub page has, beside the weights."
        ) from error
    return flat


def published_values(config: Config) -> dict[str, Any]:
    """What a published config.json says for a configuration, flat."""
    tokens, vision, language = config.image_tokens, config.vision, config.language
    return {
        "action_dim": WIDTH,
        "ema": {"inv_gamma": 1.0, "max_value": 0.9999, "min_value": 0.0, "power": 0.75, "update_after_step": 0},
        "img_adaptor": config.image_adaptor,
        "img_cond_len": tokens,
        "img_pos_embed_config": [["image", [config.history, _CAMERAS, -vision.tokens]]],
        "img_token_dim": vision.hidden_size,
        "lang_adaptor": config.language_adaptor,
        "lang_pos_embed_config": [["lang", -language.max_tokens]],
        "lang_token_dim": language.width,
        "max_lang_cond_len": language.max_tokens,
        "noise_scheduler": {
            "beta_schedule": "squaredcos_cap_v2",
            "clip_sample": False,
            "num_inference_timesteps": config.inference_steps,
            "num_train_timesteps": config.train_steps,
            "prediction_type": config.prediction,
            "type": "ddpm",
        },
        "pred_horizon": config.chunk_size,
        "rdt": {
            "cond_pos_embed_type": "multimodal",
            "depth": config.depth,
            "hidden_size": config.hidden_size,
            "num_heads": config.heads,
        },
        "state_adaptor": config.state_adaptor,
        "state_token_dim": WIDTH,
    }


def refuse_other(values: dict[str, Any], config: Config, source: str) -> None:
    """Raise UserError where config.json's values are not those of ``config``.

    Heads, noise levels and what is predicted leave no trace in weights: a wrong one would load and predict nonsense.
    Solver steps and the average are a user's own to choose.
    """
    free = {"ema", "num_inference_timesteps"}
    ours, theirs = _flat(published_values(config), free), _flat(values, free)
    wrong = [
        f"{key} {theirs[key]!r} (here {ours[key]!r})" for key in ours if key in theirs and theirs[key] != ours[key]
    ]
    if wrong:
        raise UserError(
            f"The weights in {source} were made with {'; '.join(wrong)}. Nothing was loaded. Set these in the model "
            "section of the recipe, or take the recipe of that model (rdt-1b, rdt-170m-16gb)."
        )


def _flat(values: dict[str, Any], leave_out: set[str], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        if key in leave_out:
            continue
        found |= _flat(value, leave_out, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found
