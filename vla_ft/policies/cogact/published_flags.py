"""The command line of CogACT's ``scripts/train.py``: its flags, and how they are read."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vla_ft.errors import UserError, nearest

FLAGS = {
    "vla.type": "recipe=",
    "pretrained_checkpoint": "init.path=",
    "vla.data_mix": "data.mix=",
    "data_root_dir": "data.path=",
    "vla.expected_world_size": "what torchrun started, else devices=",
    "vla.global_batch_size": "batch.accumulation=",
    "vla.per_device_batch_size": "batch.per_device=",
    "vla.learning_rate": "optimizer.lr=",
    "vla.weight_decay": "optimizer.weight_decay=",
    "vla.max_grad_norm": "optimizer.clip_grad_norm=",
    "vla.lr_scheduler_type": "schedule.name=",
    "vla.warmup_ratio": "schedule.warmup_steps=",
    "vla.max_steps": "steps=",
    "vla.epochs": "refused: give --vla.max_steps",
    "vla.freeze_vision_backbone": "freeze=[vision]",
    "vla.freeze_llm_backbone": "freeze=[llm]",
    "vla.unfreeze_last_llm_layer": "False alone",
    "vla.train_strategy": "engine=",
    "vla.enable_gradient_checkpointing": "activation_checkpointing=",
    "vla.enable_mixed_precision_training": "precision=",
    "vla.reduce_in_full_precision": "True alone",
    "vla.base_vlm": "the published one alone",
    "vla.shuffle_buffer_size": "not needed",
    "past_action_window_size": "0 alone",
    "run_root_dir": "output=",
    "run_id": "output=",
    "run_id_note": "output=",
    "image_aug": "data.augmentation=cogact or none",
    "wandb_project": "logging.project=, logging.wandb=online",
    "wandb_entity": "logging.entity=",
    "trackers": "logging.wandb=",
    "save_interval": "checkpoint.every=",
    "repeated_diffusion_steps": "model.repeated_diffusion_steps=",
    "future_action_window_size": "model.future_action_window_size=",
    "action_model_type": "model.action_model_type=",
    "action_dim": "not read: the data says it",
    "is_resume": "resume=",
    "resume_step": "resume=.../step_...",
    "resume_epoch": "not read: a checkpoint knows it",
    "hf_token": "not read: nothing is downloaded",
    "load_all_data_for_training": "data.validation_fraction=",
    "use_ema": "ema.decay=",
    "seed": "seed=",
    "mock_data": "data.path=mock",
    "mock_data_num_trajs": "data.mock.episodes=",
}
"""Every published flag, and what it is here in a few words."""
_MAY_BE_EMPTY = "hf_token"
"""The documents type ``--hf_token $HF_TOKEN``, which is no word at all where the variable is not set."""


class Flags:
    """The published command line, read. Raises UserError for words that are none and flags that are none or twice."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self.given: dict[str, str] = {}
        self.words: list[str] = []
        """``key=value``: this tool's own."""
        rest = list(arguments)
        while rest:
            argument = rest.pop(0)
            if argument.startswith("--"):
                self._take(argument[2:], rest)
            elif "=" in argument:
                self.words.append(argument)
            else:
                raise UserError(f"Cannot read '{argument}': expected --flag value, or this tool's own key=value.")

    def _take(self, flag: str, rest: list[str]) -> None:
        key, equals, value = flag.partition("=")
        if key not in FLAGS:
            raise UserError(f"Unknown flag --{key}.{nearest(key, FLAGS)} --help lists all.")
        if not equals:
            absent = not rest or rest[0].startswith("--") or (key == _MAY_BE_EMPTY and "=" in rest[0])
            value = "" if absent else rest.pop(0)
        if value == "" and key != _MAY_BE_EMPTY:
            raise UserError(f"--{key} has no value. Give one, such as --{key} VALUE, or leave it out.")
        if key in self.given:
            raise UserError(f"--{key} is given twice. Leave one out.")
        self.given[key] = value

    def text(self, key: str) -> str | None:
        """A flag's value, None where it was not given."""
        assert key in FLAGS, key
        return self.given.get(key)

    def whole(self, key: str, default: int) -> int:
        """A whole number, 1 or more. Raises UserError."""
        value = self.text(key)
        if value is None:
            return default
        if not value.isdecimal() or int(value) < 1:
            raise UserError(f"--{key} is '{value}', expected a whole number, 1 or more.")
        return int(value)

    def number(self, key: str) -> float | None:
        """A finite number, 0 or more, None where it was not given. Raises UserError."""
        value = self.text(key)
        if value is None:
            return None
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not 0 <= number < math.inf:
            raise UserError(f"--{key} is '{value}', expected a number, 0 or more.")
        return number

    def share(self, key: str) -> float | None:
        """A number from 0 to 1, None where it was not given. Raises UserError."""
        number = self.number(key)
        if number is not None and number > 1:
            raise UserError(f"--{key} is '{self.text(key)}', expected a share from 0 to 1.")
        return number

    def truth(self, key: str) -> bool | None:
        """True or False in any case. Raises UserError."""
        value = self.text(key)
        if value is None:
            return None
        if value.lower() not in ("true", "false"):
            raise UserError(f"--{key} is '{value}', expected True or False.")
        return value.lower() == "true"

    def expect(self, key: str, value: str, because: str) -> None:
        """Raise UserError where a flag asks for another value than the one that there is."""
        seen = self.text(key)
        if seen is not None and seen.lower() != value.lower():
            raise UserError(f"--{key} {seen} is not offered: {because}. Leave it out, or give {value}.")


def flag_lines() -> list[str]:
    """What ``--help`` says of each flag."""
    width = max(map(len, FLAGS))
    return [f"  --{flag:<{width}}  {ours}" for flag, ours in FLAGS.items()]
