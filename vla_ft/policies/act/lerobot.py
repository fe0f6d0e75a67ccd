"""LeRobot's ``act`` policy folder: its files, settings, features and statistics, beside ours, both ways.

Two generations: up to 0.3.3 statistics lie in ``model.safetensors``; from 0.4 on in files of their own, which the two
processor files name. Read are both; what is written is the newer. No line of LeRobot runs here.
"""

from __future__ import annotations

from typing import Any

from vla_ft.data.sample import IMAGE_PREFIX
from vla_ft.errors import UserError
from vla_ft.policies.act.config import Config

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
PREPROCESSOR_FILE = "policy_preprocessor.json"
POSTPROCESSOR_FILE = "policy_postprocessor.json"
PREPROCESSOR_STATE = "policy_preprocessor_step_3_normalizer_processor.safetensors"
POSTPROCESSOR_STATE = "policy_postprocessor_step_0_unnormalizer_processor.safetensors"
WEIGHTS_PREFIX = "model."
"""Every tensor of ``model.safetensors`` but the older generation's statistics begins so."""
OLD_STATISTICS = ("normalize_inputs.", "normalize_targets.", "unnormalize_outputs.")
"""Beginnings of the older generation's statistics: ``normalize_inputs.buffer_observation_state.mean``."""
EPSILON = 1e-8
"""Added to the standard deviation when normalising."""

STATE, ENVIRONMENT, ACTION = "observation.state", "observation.environment_state", "action"
_IMAGES = "observation.images."

FIELDS: tuple[tuple[str, str], ...] = (
    # ours                 LeRobot's config.json
    ("chunk_size", "chunk_size"),
    ("hidden_dim", "dim_model"),
    ("heads", "n_heads"),
    ("feedforward_dim", "dim_feedforward"),
    ("encoder_layers", "n_encoder_layers"),
    ("decoder_layers", "n_decoder_layers"),
    ("activation", "feedforward_activation"),
    ("pre_norm", "pre_norm"),
    ("dropout", "dropout"),
    ("use_vae", "use_vae"),
    ("vae_encoder_layers", "n_vae_encoder_layers"),
    ("latent_dim", "latent_dim"),
    ("kl_weight", "kl_weight"),
    ("backbone", "vision_backbone"),
    ("dilation", "replace_final_stride_with_dilation"),
)
"""Settings with the same meaning under two names. Defaults of a key that a file lacks are ``DEFAULTS``."""

DEFAULTS: dict[str, Any] = {
    "chunk_size": 100, "dim_model": 512, "n_heads": 8, "dim_feedforward": 3200, "n_encoder_layers": 4,
    "n_decoder_layers": 1, "feedforward_activation": "relu", "pre_norm": False, "dropout": 0.1, "use_vae": True,
    "n_vae_encoder_layers": 4, "latent_dim": 32, "kl_weight": 10.0, "vision_backbone": "resnet18",
    "replace_final_stride_with_dilation": False, "n_obs_steps": 1, "n_action_steps": 100,
    "temporal_ensemble_coeff": None,
}  # fmt: skip
"""LeRobot's own defaults of the keys that decide what the policy computes."""


def our_key(feature: str) -> str:
    """The observation key of one of LeRobot's features: ``observation.images.top`` -> ``image_top``."""
    named = {STATE: "proprio", ENVIRONMENT: "env_state", ACTION: "action"}
    return named.get(feature) or IMAGE_PREFIX + feature.removeprefix("observation.").removeprefix("images.")


def feature_name(key: str) -> str:
    """LeRobot's feature of an observation key of ours: ``image_top`` -> ``observation.images.top``."""
    named = {"proprio": STATE, "env_state": ENVIRONMENT, "action": ACTION}
    return named.get(key) or _IMAGES + key.removeprefix(IMAGE_PREFIX)


def old_buffer(part: str, feature: str, number: str) -> str:
    """The older generation's name of a statistic: ``part`` is one of ``OLD_STATISTICS``, ``number`` mean, std..."""
    return f"{part}buffer_{feature.replace('.', '_')}.{number}"


def our_settings(values: dict[str, Any]) -> dict[str, Any]:
    """The ``model`` section of a recipe that a ``config.json`` amounts to, without its statistics of pixels.

    Raises UserError for another policy, and for what ACT here cannot compute.
    """
    if values.get("type", "act") != "act":
        raise UserError(f"This is a LeRobot policy of type '{values['type']}'; ACT reads type 'act' alone.")
    values = DEFAULTS | values
    if values["n_obs_steps"] != 1:
        raise UserError(f"n_obs_steps is {values['n_obs_steps']}; LeRobot's ACT has 1, and no such weights are known.")
    if values["vision_backbone"] not in ("resnet18", "resnet34", "resnet50"):
        raise UserError(
            f"vision_backbone '{values['vision_backbone']}' is not built here: resnet18, resnet34, resnet50."
        )
    form: dict[str, Any] = {
        "decoder_output": "last", "camera_layout": "sequence", "image_size": None, "pad_head": False,
        "camera_fusion": "none", "observation_steps": 1,
        "std_floor": 0.0, "std_epsilon": EPSILON, "unbiased_std": False,
    }  # fmt: skip
    return form | {ours: values[theirs] for ours, theirs in FIELDS}


def lerobot_settings(config: Config) -> dict[str, Any]:
    """The keys of ``config.json`` that one of our configurations amounts to; features, device and so on not among them.

    Raises UserError, naming every setting that LeRobot's form cannot express.
    """
    wanted = {"camera_fusion": "none", "observation_steps": 1, "image_size": None}
    wrong = [f"{name}={getattr(config, name)}" for name, value in wanted.items() if getattr(config, name) != value]
    if not config.backbone.startswith("resnet"):
        wrong.append(f"backbone={config.backbone}")
    if wrong:
        raise UserError(
            f"LeRobot's ACT cannot express {', '.join(wrong)}: it has a ResNet over images as they come, one "
            "observation step and no camera fusion. Export another format, or train without."
        )
    values = {theirs: getattr(config, ours) for ours, theirs in FIELDS}
    if config.decoder_output == "first":  # the same function as a decoder of one layer
        values["n_decoder_layers"] = 1
    return values


def keeps(name: str, config: Config) -> bool:
    """Whether LeRobot's form has a tensor of ours: not the pad head, nor decoder layers that are never read."""
    if name.startswith("pad_head."):
        return False
    unread = config.decoder_output == "first" and name.startswith("decoder.layers.")
    return not unread or name.startswith("decoder.layers.0.")
