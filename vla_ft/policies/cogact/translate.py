"""The flags of CogACT's ``scripts/train.py`` as words of ``vla-ft train``: each has a counterpart or is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vla_ft.errors import UserError, nearest, unknown
from vla_ft.policies.cogact.published_run import BASE_VLM

CUSTOM, OXE = "custom-finetune", "prism-dinosiglip-224px+oxe+diffusion"
MOCK_TRAJECTORIES = 64


@dataclass(frozen=True, kw_only=True)
class VlaType:
    """What the published registry (``conf/vla.py``) says under a name, where the flags may say otherwise."""

    recipe: str
    data_mix: str
    world: int
    global_batch: int
    per_device: int
    lr: float


VLA_TYPES = {
    CUSTOM: VlaType(
        recipe="custom-finetune", data_mix="custom_finetuning", world=4, global_batch=16, per_device=4, lr=1e-4
    ),
    OXE: VlaType(
        recipe="cogact-base", data_mix="oxe_magic_soup_plus_minus", world=16, global_batch=256, per_device=16, lr=2e-5
    ),
}
_SCHEDULES = {"constant": "constant", "linear-warmup+cosine-decay": "cosine"}
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
class Translation:
    """Words for ``vla-ft train``, variables for its environment, and what there is to say."""

    words: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class Flags:
    """The published command line. Each flag is taken once; ``finish`` refuses what nobody took."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self.given: dict[str, str] = {}
        self.known: set[str] = set()
        self.words: list[str] = []
        rest = iter(arguments)
        for argument in rest:
            if not argument.startswith("--"):
                if "=" not in argument:
                    raise UserError(f"Cannot read '{argument}': expected --flag value, or this tool's own key=value.")
                self.words.append(argument)
                continue
            key, equals, value = argument[2:].partition("=")
            if not equals:
                value = next(rest, "")
                if value == "" or value.startswith("--"):
                    raise UserError(f"--{key} has no value. Give one, such as --{key} VALUE.")
            self.given[key] = value

    def text(self, key: str) -> str | None:
        """A flag's value, None where it was not given."""
        self.known.add(key)
        return self.given.get(key)

    def number(self, key: str, default: int) -> int:
        """A whole number, 1 or more. Raises UserError."""
        value = self.text(key)
        if value is None:
            return default
        if not value.isdecimal() or int(value) < 1:
            raise UserError(f"--{key} is '{value}', expected a whole number, 1 or more.")
        return int(value)

    def share(self, key: str, default: float) -> float:
        """A number. Raises UserError."""
        value = self.text(key)
        try:
            return default if value is None else float(value)
        except ValueError:
            raise UserError(f"--{key} is '{value}', expected a number.") from None

    def truth(self, key: str) -> bool | None:
        """True or False in any case. Raises UserError."""
        value = self.text(key)
        if value is None:
            return None
        if value.lower() not in ("true", "false"):
            raise UserError(f"--{key} is '{value}', expected True or False.")
        return value.lower() == "true"

    def finish(self) -> None:
        """Raise UserError for a flag that nobody knows."""
        for key in self.given:
            if key not in self.known:
                raise UserError(f"Unknown flag --{key}.{nearest(key, self.known)}")


def translate(arguments: Sequence[str], launched: int | None = None) -> Translation:
    """What the published flags mean here. ``launched``: processes that torchrun has started; None where none did.

    ``key=value`` words are this tool's own and go last. Raises UserError for flags and values without a counterpart.
    """
    flags, result = Flags(arguments), Translation()
    name = flags.text("vla.type") or OXE
    if name not in VLA_TYPES:
        raise unknown("vla.type", name, VLA_TYPES)
    kind = VLA_TYPES[name]
    result.words += [f"recipe={kind.recipe}", f"optimizer.lr={flags.share('vla.learning_rate', kind.lr):g}"]
    result.words += [f"{ours}={value}" for key, ours in _RENAMED.items() if (value := flags.text(key)) is not None]
    world = _batch(flags, kind, launched, result)
    for part in (_data, _schedule, _method, _start, _records):
        part(flags, kind, result)
    _output(flags, name, world, kind, result)
    flags.finish()
    result.words += flags.words
    return result


def _batch(flags: Flags, kind: VlaType, launched: int | None, result: Translation) -> int:
    expected = flags.number("vla.expected_world_size", launched or kind.world)
    if launched is not None and expected != launched:
        raise UserError(
            f"--vla.expected_world_size is {expected}, torchrun started {launched} processes. Give both the same "
            "number."
        )
    whole = flags.number("vla.global_batch_size", kind.global_batch)
    one = flags.number("vla.per_device_batch_size", kind.per_device)
    if whole % (one * expected):
        raise UserError(
            f"--vla.global_batch_size {whole} is no multiple of --vla.per_device_batch_size {one} times {expected} "
            "processes. Change one of them."
        )
    result.words += [f"batch.per_device={one}", f"batch.accumulation={whole // (one * expected)}"]
    if launched is None:
        result.words.append(f"devices={expected}")
    return expected


def _data(flags: Flags, kind: VlaType, result: Translation) -> None:
    folder, mix = flags.text("data_root_dir"), flags.text("vla.data_mix") or kind.data_mix
    asked, count = flags.truth("mock_data"), flags.number("mock_data_num_trajs", MOCK_TRAJECTORIES)
    custom = kind.data_mix == "custom_finetuning"
    if asked or (asked is None and folder is None and custom):
        mock = ["data.path=mock", "data.format=rlds", "data.mock.format=rlds", f"data.mock.episodes={count}"]
        result.words += mock
        result.notes.append(f"mock demonstrations: {count} trajectories that can be learned, written as RLDS")
    elif folder is None:
        raise UserError("--data_root_dir is missing: the folder of the RLDS datasets; or --mock_data True.")
    else:
        result.words += [f"data.path={folder}", f"data.mix={_MIXES.get(mix, mix)}"]
    augment = flags.truth("image_aug")
    if augment is not None:
        result.words.append(f"data.augmentation={'cogact' if augment else 'none'}")
    everything = flags.truth("load_all_data_for_training")
    if everything is not None:
        result.words.append(f"data.validation_fraction={0 if everything else 0.05}")
    if flags.text("vla.shuffle_buffer_size") is not None:
        result.notes.append("--vla.shuffle_buffer_size: none is needed, every epoch is shuffled as a whole")


def _schedule(flags: Flags, kind: VlaType, result: Translation) -> None:
    if flags.text("vla.epochs") is not None:
        raise UserError(
            "--vla.epochs: the published loop never ends by it. Give --vla.max_steps; the banner counts epochs."
        )
    name = flags.text("vla.lr_scheduler_type")
    if name is not None:
        if name not in _SCHEDULES:
            raise unknown("vla.lr_scheduler_type", name, _SCHEDULES)
        result.words.append(f"schedule.name={_SCHEDULES[name]}")
        if name == "constant":
            result.words.append("schedule.warmup_steps=0")
    ratio, steps = flags.share("vla.warmup_ratio", -1), flags.text("vla.max_steps")
    if ratio < 0:
        ratio = 0.05 if steps is not None and kind.recipe == "custom-finetune" and name != "constant" else -1
    if ratio >= 0:
        if steps is None:
            raise UserError("--vla.warmup_ratio is a share of the steps: give --vla.max_steps as well.")
        result.words.append(f"schedule.warmup_steps={int(flags.number('vla.max_steps', 1) * ratio)}")


def _method(flags: Flags, kind: VlaType, result: Translation) -> None:
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
    _expect(flags, "vla.unfreeze_last_llm_layer", "False", "parts are frozen as a whole (freeze=[vision,llm])")
    _expect(flags, "vla.reduce_in_full_precision", "True", "gradients of fp32 weights are summed in fp32")
    _expect(flags, "vla.base_vlm", BASE_VLM, "it is what CogACT was published with")
    _expect(flags, "past_action_window_size", "0", "the published model sees no past actions")
    if flags.truth("use_ema"):
        result.words.append("ema.decay=0.9999")
        result.notes.append("--use_ema: the average is of everything that is trained, not of the head alone")
    if flags.text("action_dim") is not None:
        result.notes.append("--action_dim: the data says it, and weights of another width are refused")


def _start(flags: Flags, kind: VlaType, result: Translation) -> None:
    start = flags.text("pretrained_checkpoint")
    if start is None and "model.size=mock" not in flags.words:
        raise UserError(
            "--pretrained_checkpoint is missing. The published code then starts from a bare vision-language model, "
            "which is not offered: give CogACT/CogACT-Base, or openvla-7b-prismatic for a fresh head."
        )
    resume = flags.truth("is_resume")
    step, epoch = flags.text("resume_step"), flags.text("resume_epoch")
    if resume is False:
        result.words.append("resume=never")
    elif step is not None:
        number = flags.number("resume_step", 1)
        result.notes.append(f"continues from step {number} with schedule, data position and generators")
    if epoch is not None:
        result.notes.append("--resume_epoch: a checkpoint knows its own position")
    if flags.text("hf_token") is not None:
        result.notes.append("--hf_token: not read. Training downloads nothing; `vla-ft fetch` takes HF_TOKEN")


def _records(flags: Flags, kind: VlaType, result: Translation) -> None:
    project, entity = flags.text("wandb_project"), flags.text("wandb_entity")
    trackers = flags.text("trackers")
    if project and (trackers is None or "wandb" in trackers):
        result.words += [f"logging.project={project}", "logging.wandb=online"]
    if entity:
        result.environment["WANDB_ENTITY"] = entity


def _output(flags: Flags, name: str, world: int, kind: VlaType, result: Translation) -> None:
    seed, one = flags.text("seed") or "42", flags.number("vla.per_device_batch_size", kind.per_device)
    run = flags.text("run_id") or f"{name}+n{world // 8}+b{one}+x{seed}"
    note = flags.text("run_id_note")
    run += f"--{note}" if note else ""
    run += "--image_aug" if flags.truth("image_aug") else ""
    folder = Path(flags.text("run_root_dir") or "runs") / run
    result.words.append(f"output={folder}")
    if any(word.startswith("logging.wandb=") for word in result.words):
        result.words.append(f"logging.name={run}")
    result.words += [] if flags.text("seed") else ["seed=42"]
    if flags.truth("is_resume") is not False and flags.text("resume_step") is not None:
        step = flags.number("resume_step", 1)
        result.words.append(f"resume={folder}/checkpoints/step_{step:08d}")


def _expect(flags: Flags, key: str, value: str, because: str) -> None:
    seen = flags.text(key)
    if seen is not None and seen.lower() != value.lower():
        raise UserError(f"--{key} {seen} is not offered: {because}. Leave it out, or give {value}.")


def launched_processes(environment: Mapping[str, str]) -> int | None:
    """How many processes torchrun has started, by its variables; None where it has not."""
    return int(environment["WORLD_SIZE"]) if "WORLD_SIZE" in environment else None
