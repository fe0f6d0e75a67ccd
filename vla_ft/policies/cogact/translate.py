"""The flags of CogACT's ``scripts/train.py`` as words of ``vla-ft train``: each has a counterpart or is refused."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vla_ft.errors import UserError, unknown
from vla_ft.policies.cogact.published_flags import Flags
from vla_ft.policies.cogact.published_run import BASE_VLM
from vla_ft.policies.cogact.published_types import CONSTANT, COSINE, OXE, VLA_TYPES, VlaType

MOCK_TRAJECTORIES = 64
TRACKERS = ("jsonl", "wandb")
_SCHEDULES = {CONSTANT: "constant", COSINE: "cosine"}
_ENGINES = {"fsdp-full-shard": "fsdp2", "fsdp-shard-grad-op": "zero2"}
_MIXES = {"bridge": "bridge_orig", "custom_finetune": "custom_finetuning"}
"""Mixes that are called otherwise here; ``bridge`` is open-pi-zero's."""
_RENAMED = {
    "save_interval": "checkpoint.every",
    "repeated_diffusion_steps": "model.repeated_diffusion_steps",
    "future_action_window_size": "model.future_action_window_size",
    "action_model_type": "model.action_model_type",
    "pretrained_checkpoint": "init.path",
    "seed": "seed",
    "vla.weight_decay": "optimizer.weight_decay",
    "vla.max_grad_norm": "optimizer.clip_grad_norm",
    "vla.max_steps": "steps",
}
"""Flags whose value is taken as it is."""


@dataclass
class Launch:
    """Words for ``vla-ft train`` and what there is to say."""

    words: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def translate(arguments: Sequence[str], launched: int | None = None) -> Launch:
    """What the published flags mean here. ``launched``: processes that torchrun has started; None where none did.

    ``key=value`` words are this tool's own and go last. Raises UserError for flags and values without a counterpart,
    and for those that another one leaves without effect.
    """
    flags, result = Flags(arguments), Launch()
    name = flags.text("vla.type") or OXE
    if name not in VLA_TYPES:
        raise unknown("vla.type", name, VLA_TYPES)
    kind = VLA_TYPES[name]
    lr = flags.number("vla.learning_rate")
    result.words += [f"recipe={kind.recipe}", f"optimizer.lr={kind.lr if lr is None else lr:g}"]
    result.words += [f"{ours}={value}" for key, ours in _RENAMED.items() if (value := flags.text(key)) is not None]
    world = _batch(flags, kind, launched, result)
    _data(flags, kind, result)
    _held_out_and_augmented(flags, result)
    _schedule(flags, kind, result)
    _method(flags, result)
    _start(flags, result)
    logged = _logged(flags, result)
    run = _output(flags, name, world, kind, result)
    result.words += [f"logging.name={run}"] if logged else []
    result.words += flags.words
    return result


def _batch(flags: Flags, kind: VlaType, launched: int | None, result: Launch) -> int:
    expected = flags.whole("vla.expected_world_size", launched or kind.world)
    if launched is not None and expected != launched:
        raise UserError(
            f"--vla.expected_world_size is {expected}, torchrun started {launched} processes. Give both the same "
            "number."
        )
    whole = flags.whole("vla.global_batch_size", kind.global_batch)
    one = flags.whole("vla.per_device_batch_size", kind.per_device)
    if whole % (one * expected):
        raise UserError(
            f"--vla.global_batch_size {whole} is no multiple of --vla.per_device_batch_size {one} times {expected} "
            "processes. Change one of them."
        )
    result.words += [f"batch.per_device={one}", f"batch.accumulation={whole // (one * expected)}"]
    if launched is None:
        result.words.append(f"devices={expected}")
    return expected


def _data(flags: Flags, kind: VlaType, result: Launch) -> None:
    folder, mix = flags.text("data_root_dir"), flags.text("vla.data_mix") or kind.data_mix
    asked, count = flags.truth("mock_data"), flags.whole("mock_data_num_trajs", MOCK_TRAJECTORIES)
    custom = kind.data_mix == "custom_finetuning"
    if asked or (asked is None and folder is None and custom):
        result.words += ["data.path=mock", "data.format=rlds", "data.mock.format=rlds", f"data.mock.episodes={count}"]
        result.notes.append(f"mock demonstrations: {count} trajectories that can be learned, written as RLDS")
        unread = [key for key in ("data_root_dir", "vla.data_mix") if flags.text(key) is not None]
        result.notes += [f"--{key}: not read, the demonstrations are mock" for key in unread]
        return
    if folder is None:
        raise UserError("--data_root_dir is missing: the folder of the RLDS datasets; or --mock_data True.")
    if flags.text("mock_data_num_trajs") is not None:
        raise UserError(
            f"--mock_data_num_trajs {count} has no effect: the data are those of --data_root_dir. Leave it out, or "
            "give --mock_data True."
        )
    result.words += [f"data.path={folder}", f"data.mix={_MIXES.get(mix, mix)}"]


def _held_out_and_augmented(flags: Flags, result: Launch) -> None:
    # Said even where the flag is not given: recipes augment, the published script does not by itself.
    result.words.append(f"data.augmentation={'cogact' if flags.truth('image_aug') else 'none'}")
    everything = flags.truth("load_all_data_for_training")
    if everything is None:
        result.notes.append("episodes are held out to report loss and action error: --load_all_data_for_training True "
                            "trains on all, as published")  # fmt: skip
    else:
        result.words.append(f"data.validation_fraction={0 if everything else 0.05}")
    if flags.text("vla.shuffle_buffer_size") is not None:
        result.notes.append("--vla.shuffle_buffer_size: none is needed, every epoch is shuffled as a whole")


def _schedule(flags: Flags, kind: VlaType, result: Launch) -> None:
    if flags.text("vla.epochs") is not None:
        raise UserError(
            "--vla.epochs: the published loop never ends by it. Give --vla.max_steps; the banner counts epochs."
        )
    name = flags.text("vla.lr_scheduler_type") or kind.schedule
    if name not in _SCHEDULES:
        raise unknown("vla.lr_scheduler_type", name, _SCHEDULES)
    result.words.append(f"schedule.name={_SCHEDULES[name]}")
    ratio, steps = flags.share("vla.warmup_ratio"), flags.text("vla.max_steps")
    if name == CONSTANT:
        if ratio:
            raise UserError(
                f"--vla.warmup_ratio {ratio:g} has no effect: the schedule '{CONSTANT}' has no warm-up. Leave it out, "
                f"or give --vla.lr_scheduler_type {COSINE}."
            )
        result.words.append("schedule.warmup_steps=0")
        return
    if steps is None and ratio is not None:
        raise UserError("--vla.warmup_ratio is a share of the steps: give --vla.max_steps as well.")
    if steps is not None:
        share = kind.warmup if ratio is None else ratio
        result.words.append(f"schedule.warmup_steps={int(flags.whole('vla.max_steps', 1) * share)}")


def _method(flags: Flags, result: Launch) -> None:
    strategy = flags.text("vla.train_strategy")
    if strategy is not None and strategy not in _ENGINES:
        raise unknown("vla.train_strategy", strategy, _ENGINES)
    result.words += [f"engine={_ENGINES[strategy]}"] if strategy else []
    recompute = flags.truth("vla.enable_gradient_checkpointing")
    result.words += [] if recompute is None else [f"activation_checkpointing={str(recompute).lower()}"]
    mixed = flags.truth("vla.enable_mixed_precision_training")
    result.words += [] if mixed is None else [f"precision={'bf16' if mixed else 'fp32'}"]
    parts = {"vision": flags.truth("vla.freeze_vision_backbone"), "llm": flags.truth("vla.freeze_llm_backbone")}
    frozen = [part for part, answer in parts.items() if answer]
    result.words += [f"freeze=[{','.join(frozen)}]"] if frozen else []
    flags.expect("vla.unfreeze_last_llm_layer", "False", "parts are frozen as a whole (freeze=[vision,llm])")
    flags.expect("vla.reduce_in_full_precision", "True", "gradients of fp32 weights are summed in fp32")
    flags.expect("vla.base_vlm", BASE_VLM, "it is what CogACT was published with")
    flags.expect("past_action_window_size", "0", "the published model sees no past actions")
    if flags.truth("use_ema"):
        result.words.append("ema.decay=0.9999")
        result.notes.append("--use_ema: the average is of everything that is trained, not of the head alone")
    if flags.text("action_dim") is not None:
        result.notes.append("--action_dim: the data says it, and weights of another width are refused")


def _start(flags: Flags, result: Launch) -> None:
    start = flags.text("pretrained_checkpoint")
    if start is None and "model.size=mock" not in flags.words:
        raise UserError(
            "--pretrained_checkpoint is missing. The published code then starts from a bare vision-language model, "
            "which is not offered: give CogACT/CogACT-Base, or openvla-7b-prismatic for a fresh head."
        )
    resume, step = flags.truth("is_resume"), flags.text("resume_step")
    if resume is False:
        result.words.append("resume=never")
        for key in ("resume_step", "resume_epoch"):
            if flags.text(key) is not None:
                raise UserError(f"--{key} has no effect with --is_resume False, which starts anew. Leave one out.")
    elif step is not None:
        number = flags.whole("resume_step", 1)
        result.notes.append(f"continues from step {number} with schedule, data position and generators")
    if flags.text("resume_epoch") is not None:
        result.notes.append("--resume_epoch: a checkpoint knows its own position")
    if flags.text("hf_token") is not None:
        result.notes.append("--hf_token: not read. Training downloads nothing; `vla-ft fetch` takes HF_TOKEN")


def _logged(flags: Flags, result: Launch) -> bool:
    """Whether the run is one of W&B's."""
    project, entity, trackers = (flags.text(key) for key in ("wandb_project", "wandb_entity", "trackers"))
    named = None if trackers is None else re.findall(r"\w+", trackers)
    for name in named or ():
        if name not in TRACKERS:
            raise unknown("tracker", name, TRACKERS)
    wanted = named is None or "wandb" in named
    if not project:
        asked = "--trackers wandb" if named and wanted else f"--wandb_entity {entity}" if entity else None
        if asked is not None:
            raise UserError(f"{asked} needs a project. Give --wandb_project NAME, or leave it out.")
        return False
    if not wanted:
        result.notes.append("--wandb_project: not used, --trackers names no wandb")
        return False
    result.words += [f"logging.project={project}", "logging.wandb=online"]
    result.words += [f"logging.entity={entity}"] if entity else []
    return True


def _output(flags: Flags, name: str, world: int, kind: VlaType, result: Launch) -> str:
    """Where the run and what it continues from lie; its name."""
    seed, one = flags.text("seed") or "42", flags.whole("vla.per_device_batch_size", kind.per_device)
    run = flags.text("run_id") or f"{name}+n{world // 8}+b{one}+x{seed}"
    note = flags.text("run_id_note")
    run += f"--{note}" if note else ""
    run += "--image_aug" if flags.truth("image_aug") else ""
    folder = Path(flags.text("run_root_dir") or "runs") / run
    result.words.append(f"output={folder}")
    result.words += [] if flags.text("seed") else ["seed=42"]
    if flags.text("resume_step") is not None:
        step = flags.whole("resume_step", 1)
        result.words.append(f"resume={folder}/checkpoints/step_{step:08d}")
    return run


def launched_processes(environment: Mapping[str, str]) -> int | None:
    """How many processes torchrun has started, by its variables; None where it has not."""
    return int(environment["WORLD_SIZE"]) if "WORLD_SIZE" in environment else None
