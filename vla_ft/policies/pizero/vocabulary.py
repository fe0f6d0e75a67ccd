"""Every key of open-pi-zero's training files (``config/train/*.yaml``): what it becomes here, or has to be.

A key is one of four: a ``Setting`` has a counterpart, a ``Constant`` must have the published value because the network
or the loader knows no other, a ``SameAs`` repeats another key, and one that is ``Without`` effect is about machinery
that does not exist here. Defaults are those of the published ``bridge.yaml``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

RANDOM = "random"
"""``data.train.dataset_mix`` of a published guide: numbers drawn at random instead of demonstrations."""


@dataclass(frozen=True)
class Setting:
    """A key with a counterpart."""

    here: str
    """Its counterpart in a recipe, for people."""
    default: Any = None
    """What a file means that leaves the key out; None where that is computed, or nothing."""
    kind: type = str
    null: bool = False
    """Whether ``null`` is a value: off."""
    above: float | None = None
    least: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Constant:
    """A key that has to have a published value; ``because`` says why, and what to do."""

    values: tuple[Any, ...]
    because: str


@dataclass(frozen=True)
class SameAs:
    """A key that has to repeat another's value."""

    key: str


@dataclass(frozen=True)
class Without:
    """A key that is understood and changes nothing here."""

    because: str
    kind: type = int
    null: bool = False


Key = Setting | Constant | SameAs | Without

_ONE_STEP = "π0 sees one step here as there: its encoders take no more"
_NO_4_BIT = "4-bit weights are not offered: freeze them (train_vlm: False) in bfloat16"
_NO_EQUAL_AVERAGE = "an equal average is not offered: use use_ema"
_GEMMA, _SIGLIP, _EXPERTS = "as published: Gemma knows no other", "as published: SigLIP knows no other", "the experts"
_LOADER = "the loader here has its own (`data.workers`)"
_NO_ADAPTERS = "adapters are in the vision-language model alone"


def _settings_of_the_run() -> dict[str, Key]:
    return {
        "_target_": Constant(("src.agent.train.TrainAgent",), "training is what is translated"),
        "defaults": Constant((["_self_"],), "files are not put together here: give one whole file"),
        "log_dir": Setting("`output`", "runs/open-pi-zero"),
        "name": Without("part of `log_dir`", str),
        "device": Setting("`device`", choices=("cuda", "cpu")),
        "n_nodes": Constant((1,), "a recipe is for any number of machines: leave it out, and say all their cards=N"),
        "seed": Setting("`seed`", 42, int, least=0),
        "pretrained_model_path": Setting("`init.path`, `model.tokenizer`", "paligemma-3b-pt-224"),
        "load_pretrained_weights": Setting("`init` or none", True, bool),
        "resume_checkpoint_path": Setting("`init.path`, `init.layout=open-pi-zero`; fresh counters", null=True),
        "train_vlm": Setting("False: `freeze=[vlm]`", True, bool),
        "use_torch_compile": Setting("`compile`", True, bool),
        "use_bf16": Setting("`precision=bf16_stochastic`: weights in bfloat16", True, bool),
        "use_amp": Setting("`precision=bf16` where `use_bf16` is False", True, bool),
        "quantize": Constant((False,), _NO_4_BIT),
        "lora": Setting("`lora.vlm`", False, bool),
        "lora_r": Setting("`lora.vlm.rank`", 32, int, above=0),
        "lora_dropout": Setting("`lora.vlm.dropout`", 0.0, float, least=0, below=1),
        "debug": Without("more lines in its log", bool),
        "use_ema": Setting("`ema`", False, bool),
        "ema_decay": Setting("`ema.decay`", 0.99, float, above=0, below=1),
        "ema_start": Setting("`ema.start_step`", 0, int, least=0),
        "ema_freq": Constant((1,), "the average follows every update"),
        "ema_device": Constant(("cuda",), "the average lies beside the weights"),
        "use_swa": Constant((False,), _NO_EQUAL_AVERAGE),
        "swa_start": Without("of `use_swa`", float),
        "swa_freq": Without("of `use_swa`", float),
        "swa_device": Without("of `use_swa`", str),
        "wandb": Constant((None,), "give wandb its project, or null"),
        "wandb.entity": Setting("`logging.entity`", null=True),
        "wandb.project": Setting("`logging.project`, `logging.wandb=online`; null: off", null=True),
        "wandb.run": Setting("`logging.name`", null=True),
    }


def _settings_of_the_data() -> dict[str, Key]:
    return {
        "data.train.dataset_mix": Setting(
            f"`data.mix`; {RANDOM}: `data.path=mock data.mock.content=noise data.mock.format=npz`", "bridge"
        ),
        "data.train.split": Setting("`data.validation_fraction`: train[:95%] is 0.05, train too (see below)", "train"),
        "data.train.data_path": Setting("`data.path`"),
        "data.train.window_size": Constant((1,), _ONE_STEP),
        "data.train.action_horizon": SameAs("horizon_steps"),
        "data.train.skip_unlabeled": Setting("`data.drop_unlabeled`", True, bool),
        "data.train.load_proprio": Constant((True,), "π0 reads proprioception"),
        "data.train.shuffle_buffer_size": Without("the order here is a permutation of the whole"),
        "data.train.num_parallel_calls": Without(_LOADER),
        "data.train.traj_transform_threads": Without(_LOADER),
        "data.train.traj_read_threads": Without(_LOADER),
        "data.val.split": Setting("null, or what `data.train.split` leaves, such as train[95%:]", null=True),
        "data.val.shuffle_buffer_size": Without("the same held-out windows at every validation"),
    }


def _settings_of_training() -> dict[str, Key]:
    keys: dict[str, Key] = {
        "log_freq": Setting("`logging.every`, in updates instead of batches", 16, int, above=0),
        "n_epochs": Setting("`steps`, where `n_updates` is not given", 15.0, float, above=0),
        "n_updates": Setting("`steps`", None, float, above=0),
        "save_model_freq": Setting("`checkpoint.every`", None, int, above=0),
        "save_model_start": Without("every interval saves from the first; the newest three are kept", float),
        "eval_freq": Setting("`validation.every`, in updates instead of batches", 2000, int, above=0),
        "eval_size": Setting("`validation.samples`", 1024, int, above=0),
        "eval_thresholds": Setting("`validation.thresholds`", [0.05, 0.1, 0.2, 0.3, 0.5], list),
        "global_batch_size": Setting("`batch.accumulation`, with `cards=N`", 1024, int, above=0),
        "per_device_batch_size": Setting("`batch.per_device`", 16, int, above=0),
        "max_grad_norm": Setting("`optimizer.clip_grad_norm`; null: off", 1.0, float, null=True, above=0),
    }
    for part in ("action", "vlm"):
        group, schedule = f"`optimizer.groups.{part}", f"{part}_lr_scheduler"
        keys[f"{part}_lr"] = Setting(f"{group}.lr`", 5e-5, float, above=0)
        keys[f"{part}_weight_decay"] = Setting(f"{group}.weight_decay`", 0.0, float, least=0)
        keys[f"{schedule}.first_cycle_steps"] = Setting(f"{group}.schedule.cycle_steps`", 10_000_000, int, above=0)
        keys[f"{schedule}.min_lr"] = Setting(f"{group}.schedule.final_fraction`, of its lr", 1e-8, float, least=0)
        keys[f"{schedule}.warmup_steps"] = Setting(f"{group}.schedule.warmup_steps`", 200, int, least=0)
    return keys


def _settings_of_the_model() -> dict[str, Key]:
    return {
        "action_expert_adaptive_mode": Setting("`model.adaptive`", null=True, choices=("adaLN", "adaLN-Zero")),
        "flow_sampling": Setting("`model.flow_sampling`", "beta", choices=("beta", "uniform")),
        "flow_alpha": Setting("`model.flow_alpha`", 1.5, float, above=0),
        "flow_beta": Constant((1,), "times are drawn from Beta(alpha, 1), as published"),
        "flow_sig_min": Setting("`model.flow_sigma_min`", 0.001, float, least=0, below=1),
        "num_inference_steps": Setting("`model.inference_steps`", 10, int, above=0),
        "final_action_clip_value": Setting("`model.action_clip`; null: off", 1.0, float, null=True, above=0),
        "cond_steps": Constant((1,), _ONE_STEP),
        "horizon_steps": Setting("`model.horizon`", 4, int, above=0),
        "action_dim": Setting("`model.action_dim`", 7, int, above=0),
        "proprio_dim": Setting("`model.proprio_dim`", 7, int, above=0),
        "max_seq_len": Setting("`model.text_tokens`, the picture's tokens besides", 276, int, above=0),
        "tokenizer_padding": Constant(("max_length",), "the mask needs one length for all (`longest` fails there too)"),
        "max_image_text_tokens": SameAs("max_seq_len"),
        "time_hidden_size": Setting("`model.time_width`", 256, int, above=0),
        "time_max_period": Setting("`model.time_period`", None, float, above=0),
        "action_expert_rope_theta": Setting("`model.expert_rope_theta`", None, float, above=0),
        "image_token_index": Setting("`model.image_token`", 257152, int, above=0),
        "vocab_size": Setting("`model.vocab_size`", 257216, int, above=0),
        "pad_token_id": Constant((0,), "PaliGemma pads with 0"),
        "use_lm_head": Constant((False,), "π0 here speaks no words"),
    }


def _settings_of_the_parts() -> dict[str, Key]:
    """The groups that build modules: most repeat what is said above."""
    expert, other, vision, projector = "mixture.action.", "mixture.proprio.", "vision.config.", "vision_projector."
    return {
        "mixture.vlm.hidden_size": Setting("`model.vlm_width`", 2048, int, above=0),
        "mixture.vlm.intermediate_size": Setting("`model.vlm_mlp`", 16384, int, above=0),
        "mixture.vlm.use_final_norm": Constant((False,), "nothing reads the end of the vision-language model"),
        "mixture.vlm.cache": Constant((True,), "its keys and values are what the experts read"),
        "mixture.vlm.use_quantize": SameAs("quantize"),
        "mixture.vlm.use_lora": SameAs("lora"),
        "mixture.vlm.adaptive_mode": Constant((None,), "the experts alone are adaptive"),
        "mixture.vlm.rope_theta": Setting("`model.vlm_rope_theta`", None, float, above=0),
        f"{expert}hidden_size": Setting("`model.expert_width`", 1024, int, above=0),
        f"{expert}intermediate_size": Setting("`model.expert_mlp`", 4096, int, above=0),
        f"{expert}use_final_norm": Constant((True,), "the experts end in a norm"),
        f"{expert}cache": Constant((False,), "actions change in every step"),
        f"{expert}use_quantize": Constant((False,), _NO_4_BIT),
        f"{expert}use_lora": Constant((False,), _NO_ADAPTERS),
        f"{expert}adaptive_mode": SameAs("action_expert_adaptive_mode"),
        f"{expert}rope_theta": Setting("`model.expert_rope_theta`", None, float, above=0),
        f"{other}hidden_size": SameAs(f"{expert}hidden_size"),
        f"{other}intermediate_size": SameAs(f"{expert}intermediate_size"),
        f"{other}use_final_norm": Constant((True,), "one expert serves proprioception and actions"),
        f"{other}cache": Constant((True,), "proprioception stays while actions flow"),
        f"{other}use_quantize": Constant((False,), _NO_4_BIT),
        f"{other}use_lora": Constant((False,), _NO_ADAPTERS),
        f"{other}adaptive_mode": SameAs("action_expert_adaptive_mode"),
        f"{other}rope_theta": Setting("`model.expert_rope_theta`", None, float, above=0),
        "vision._target_": Constant(("src.model.paligemma.siglip.SiglipVisionModel",), _SIGLIP),
        f"{vision}hidden_size": Setting("`model.vision_width`", 1152, int, above=0),
        f"{vision}intermediate_size": Setting("`model.vision_mlp`", 4304, int, above=0),
        f"{vision}num_hidden_layers": Setting("`model.vision_layers`", 27, int, above=0),
        f"{vision}num_attention_heads": Setting("`model.vision_heads`", 16, int, above=0),
        f"{vision}num_channels": Constant((3,), "pictures are RGB"),
        f"{vision}image_size": Setting("`model.image_size`, `data.image_size`", 224, int, above=0),
        f"{vision}patch_size": Setting("`model.patch_size`", 14, int, above=0),
        f"{vision}layer_norm_eps": Constant((1e-6,), _SIGLIP),
        f"{vision}attention_dropout": Constant((0.0,), _SIGLIP),
        f"{vision}num_image_tokens": Setting("must be (image_size / patch_size)²", None, int, above=0),
        f"{vision}lora.r": SameAs("lora_r"),
        f"{vision}lora.dropout": SameAs("lora_dropout"),
        "vision.use_quantize": SameAs("quantize"),
        "vision.use_lora": SameAs("lora"),
        f"{projector}_target_": Constant(("src.model.paligemma.siglip.PaliGemmaMultiModalProjector",), _SIGLIP),
        f"{projector}config.vision_config.hidden_size": SameAs(f"{vision}hidden_size"),
        f"{projector}config.vision_config.projection_dim": SameAs("mixture.vlm.hidden_size"),
        f"{projector}config.lora.r": SameAs("lora_r"),
        f"{projector}config.lora.dropout": SameAs("lora_dropout"),
        f"{projector}use_quantize": SameAs("quantize"),
        f"{projector}use_lora": SameAs("lora"),
    }


def _settings_of_the_joint_model(mixture: Iterable[str]) -> dict[str, Key]:
    joint = "joint.config."
    return {
        "joint._target_": Constant(("src.model.vla.joint_model.JointModel",), _GEMMA),
        f"{joint}action_expert_adaptive_mode": SameAs("action_expert_adaptive_mode"),
        f"{joint}time_hidden_size": SameAs("time_hidden_size"),
        f"{joint}lora.r": SameAs("lora_r"),
        f"{joint}lora.dropout": SameAs("lora_dropout"),
        f"{joint}num_hidden_layers": Setting("`model.layers`", 18, int, above=0),
        f"{joint}num_attention_heads": Setting("`model.heads`", 8, int, above=0),
        f"{joint}num_key_value_heads": Setting("`model.kv_heads`", 1, int, above=0),
        f"{joint}head_dim": Setting("`model.head_dim`", 256, int, above=0),
        f"{joint}max_position_embeddings": Without("rotary positions have no last one"),
        f"{joint}rms_norm_eps": Constant((1e-6,), _GEMMA),
        f"{joint}rope_theta": Setting(
            "`model.vlm_rope_theta`; the experts' too where nothing else says theirs", None, float, above=0
        ),
        f"{joint}attention_bias": Constant((False,), _GEMMA),
        f"{joint}attention_dropout": Constant((0.0,), _GEMMA),
        f"{joint}pad_token_id": Constant((0,), "PaliGemma pads with 0"),
        **{f"{joint}{key}": SameAs(key) for key in mixture},
    }


def _all() -> dict[str, Key]:
    keys = _settings_of_the_run() | _settings_of_the_data() | _settings_of_training() | _settings_of_the_model()
    keys |= _settings_of_the_parts()
    return keys | _settings_of_the_joint_model([key for key in keys if key.startswith("mixture.")])


KEYS: Mapping[str, Key] = _all()
"""Every key that is understood, by its dotted name."""
SUBTREES = ("hydra.",)
"""Beginnings of keys that are hydra's own."""


def meaning(key: Key) -> str:
    """What a key becomes here, in words, with code in back quotes."""
    if isinstance(key, Setting):
        return key.here
    if isinstance(key, Constant):
        allowed = " or ".join(f"`{'null' if value is None else value}`" for value in key.values)
        return f"must be {allowed}: {key.because}"
    return f"must be `{key.key}`" if isinstance(key, SameAs) else f"no effect: {key.because}"


def foreign_keys() -> dict[str, str]:
    """For somebody who gives open-pi-zero's keys to ``vla-ft train``: what to say instead."""
    return {
        name: f"That is open-pi-zero's; here: {meaning(key)}. "
        f"`vla-ft recipe from-open-pi-zero FILE.yaml {name}=...` makes a recipe of its training files."
        for name, key in KEYS.items()
    }
