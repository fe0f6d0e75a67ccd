"""The banner: every effective setting of a run, before its first step."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from rich.console import Console
from rich.table import Table

from vla_ft.config import RunConfig, ScheduleConfig
from vla_ft.data.augmentation import describe
from vla_ft.data.mixture import MixtureReader
from vla_ft.data.order import MixtureOrder
from vla_ft.policies.base import SetupFacts
from vla_ft.policies.registry import load_policy
from vla_ft.training.assembly import FRESH, Run
from vla_ft.training.engines import Engine
from vla_ft.training.engines.pieces import QUANTIZATION_BLOCK
from vla_ft.training.resume import NOT_EXACT
from vla_ft.training.rounding import SMALLEST

_PRECISIONS = {
    "fp32": "fp32",
    "bf16": "bf16 compute over fp32 weights",
    "bf16_stochastic": "bf16 weights, updates in fp32, rounded stochastically",
    "bf16_kahan": "bf16 weights, updates in fp32, rounded with Kahan's compensation",
}


def print_banner(console: Console, run: Run, engine: Engine, start: Sequence[str]) -> None:
    """Print what will be trained on what, and how."""
    table = Table(title=f"vla-ft train · {run.state.config.policy}", show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    job = _job(run, engine, start)
    method = _method(run, engine) | _memory(run, engine)
    for name, value in (job | _data(run) | method | _cadence(run) | _model(run) | _parameters(run, engine)).items():
        table.add_row(name, value)
    console.print(table)
    for line in (*remarks(run, engine), *setup_lines(run, engine)):
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def remarks(run: Run, engine: Engine) -> list[str]:
    """What the policy has to say about this run, if anything."""
    says = getattr(load_policy(run.state.config.policy), "remarks", None)
    trained = {
        part: sum(engine.pieces[name].numel for name, _ in members if name in engine.trained)
        for part, members in engine.model.parameter_groups().items()
    }
    return [] if says is None else says(run.state.config.model, trained)


def setup_lines(run: Run, engine: Engine) -> list[str]:
    """The settings in the words of the policy's published code, where it has any."""
    says = getattr(load_policy(run.state.config.policy), "setup_lines", None)
    if says is None:
        return []
    config = run.state.config
    facts = SetupFacts(
        engine=engine.name,
        processes=engine.world_size,
        per_device=config.batch.per_device,
        accumulation=config.batch.accumulation,
        recompute=config.activation_checkpointing,
        precision=config.precision,
        optimizer=config.optimizer.name,
        lr=config.optimizer.lr,
        weight_decay=config.optimizer.weight_decay,
        schedule=config.schedule.name,
        warmup_steps=config.schedule.warmup_steps,
        steps=config.steps,
        samples=len(run.places),
    )
    return list(says(facts))


def _job(run: Run, engine: Engine, start: Sequence[str]) -> dict[str, str]:
    config = run.state.config
    return {
        "recipe": config.recipe,
        "output": config.output,
        "start": "; ".join(start),
        "weights": run.weights + _random_and_frozen(run),
        "device": f"{engine.device.type}, {engine.world_size} process(es), {torch.get_num_threads()} threads",
        "engine": engine.describe(),
        "resume": _exactness(run, engine, start),
    }


def _random_and_frozen(run: Run) -> str:
    config = run.state.config
    if config.init.path is not None or run.weights != FRESH or not config.freeze:
        return ""
    return f"; frozen at random: {', '.join(config.freeze)} (init.path gives it weights)"


def _exactness(run: Run, engine: Engine, notes: Sequence[str]) -> str:
    """What a later resume promises; where this one continues otherwise, ``start`` says how."""
    if any(NOT_EXACT in note for note in notes):
        return "from here on " + _exactness(run, engine, ())
    if engine.device.type == "cpu":
        return "bit-exact on this CPU with the same number of processes and threads"
    if run.state.config.deterministic:
        return "deterministic kernels: bit-exact with the same number of cards of the same kind"
    return "same samples and state; not bit-exact on a GPU without deterministic=true"


def _data(run: Run) -> dict[str, str]:
    about, data = run.state.description, run.state.config.data
    cameras = ", ".join(f"{name} {height}x{width}" for name, (height, width) in about.cameras.items())
    constant = {
        f"{name} {feature}".strip(): statistics.constant
        for name, part in run.state.statistics.each().items()
        for feature, statistics in part.features.items()
        if statistics.constant
    }
    return {
        "data": f"{about.name} ({run.data_path}), " + (f"{about.fps:g} Hz" if about.fps else "several rates"),
        **_mix(run),
        "episodes": f"{len(run.split.training)} training, {len(run.split.validation)} held out "
        f"(seed {run.state.config.seed})"
        + (f"; {run.dropped}" if data.drops_unlabeled or run.dropped.left_out else ""),
        "damaged": _damaged(run),
        "windows": f"{len(run.training_windows):,} training, {len(run.validation_windows):,} held out",
        "cameras": cameras or "none",
        "action": f"{about.action_dim} dimensions, {about.action_kind}, {about.action_mode}",
        "proprio": f"{about.proprio_dim} dimensions",
        "constant": "; ".join(f"{f}: {', '.join(names)}" for f, names in constant.items()) or "no constant dimensions",
        "augmentation": describe(data.augmentation),
        **_remarks(run),
        "workers": f"{data.workers} per process",
    }


def _remarks(run: Run) -> dict[str, str]:
    """What the readers of the data say about its files."""
    parts = run.reader.parts.values() if isinstance(run.reader, MixtureReader) else [run.reader]
    lines = [line for part in parts for line in part.remarks()]
    return {"files": "; ".join(lines)} if lines else {}


def _damaged(run: Run) -> str:
    if run.state.config.data.on_damage == "error":
        return "an error (data.on_damage)"
    return f"{run.damaged}" + ("; reasons in data.json" if run.damaged.episodes else "")


def _mix(run: Run) -> dict[str, str]:
    """The exact share of every dataset of a mixture."""
    order = run.places.order
    if not isinstance(run.reader, MixtureReader) or not isinstance(order, MixtureOrder):
        return {}
    shares = zip(run.reader.parts, order.quotas, order.sizes, strict=True)
    return {
        "mix": "; ".join(f"{name} {100 * quota / len(order):.2f} % ({size:,} windows)" for name, quota, size in shares),
        "epoch": f"{len(order):,} samples",
    }


def _method(run: Run, engine: Engine) -> dict[str, str]:
    config = run.state.config
    optimizer, schedule, batch = config.optimizer, config.schedule, config.batch
    rates = ", ".join(
        f"{g['name']} lr {g['base_lr']:g} decay {g['weight_decay']:g}" for g in engine.optimizer.param_groups
    )
    clip = f", clip {optimizer.clip_grad_norm:g}" if optimizer.clip_grad_norm else ", no clipping"
    ema = f"decay {config.ema.decay:g} from step {config.ema.start_step}" if config.ema else "off"
    epochs = config.steps * run.global_batch / max(1, len(run.places))
    return {
        "batch": f"{run.global_batch} = {batch.per_device} per device x {batch.accumulation} accumulated "
        f"x {engine.world_size} process(es)",
        "steps": f"{config.steps:,} ({epochs:.2f} epochs)",
        "precision": _PRECISIONS[config.precision],
        "optimizer": f"{type(engine.optimizer).__name__} betas {optimizer.betas} eps {optimizer.eps:g}; {rates}{clip}",
        "schedule": _schedule(schedule)
        + "".join(f"; {part}: {_schedule(own.schedule)}" for part, own in optimizer.groups.items() if own.schedule),
        "EMA": ema,
    }


def _schedule(schedule: ScheduleConfig) -> str:
    words = f"{schedule.name}, warm-up {schedule.warmup_steps} steps"
    if schedule.cycle_steps is not None:
        words += f", cycles of {schedule.cycle_steps:,} steps"
        words += f" growing by {schedule.cycle_growth:g}" if schedule.cycle_growth != 1 else ""
        words += f", peaks falling by {schedule.cycle_decay:g}" if schedule.cycle_decay != 1 else ""
    return words + (f", down to {schedule.final_fraction:g} of the rate" if schedule.name != "constant" else "")


def _memory(run: Run, engine: Engine) -> dict[str, str]:
    """What was asked for to make the model fit, and the bytes that this process holds for it."""
    config = run.state.config
    weights = sum(w.numel() * w.element_size() for w in engine.weights.values())
    types = sorted({str(w.dtype).removeprefix("torch.") for w in engine.weights.values()})
    adapters = ", ".join(f"{part} rank {lora.rank}" for part, lora in config.lora.items())
    return {
        "offload": {"none": "none", "optimizer": "optimizer state in host memory", "all": "all in host memory"}[
            config.offload
        ],
        "activations": "computed again block by block" if config.activation_checkpointing else "kept",
        "compile": f"{len(engine.model.blocks())} blocks" if config.compile else "off",
        "adapters": adapters or "none",
        "held here": f"weights {_size(weights)} ({', '.join(types)}), optimizer state {_size(expected_bytes(engine))}",
    }


def expected_bytes(engine: Engine) -> int:
    """Bytes of optimizer state on this process once every trained weight has been stepped."""
    config = engine.config
    total = 0
    for name, parameter in engine.trained.items():
        piece, count = engine.pieces[name], parameter.numel()
        small = config.optimizer.name == "adamw" or piece.numel < SMALLEST
        total += 8 * count if small else 2 * count + 8 * -(-count // QUANTIZATION_BLOCK)
        total += 2 * count if config.precision == "bf16_kahan" else 0
    return total


def _size(count: float) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**28 else f"{count / 2**20:.2f} MiB"


def _cadence(run: Run) -> dict[str, str]:
    config = run.state.config
    every = (
        f"checkpoint {config.checkpoint.every} (last {config.checkpoint.keep_last} kept), log {config.logging.every}"
    )
    if len(run.validation_windows):
        every += f", validation {config.validation.every} on {config.validation.samples} windows"
    return {
        "every": every + " steps",
        "tracking": f"metrics.jsonl, TensorBoard, W&B {config.logging.wandb}",
        "frozen": frozen_parts(config),
        "frozen features": run.features_note,
        "seed": f"{config.seed}" + (", deterministic kernels" if config.deterministic else ""),
    }


def frozen_parts(config: RunConfig) -> str:
    """What is not trained, in words: the parts of ``freeze``, and the own weights of parts with adapters."""
    adapted = [f"{part}'s own weights, under adapters" for part in config.lora]
    return "; ".join([*filter(None, [", ".join(config.freeze)]), *adapted]) or "nothing"


def _model(run: Run) -> dict[str, str]:
    settings = dataclasses.asdict(run.state.config.model)
    return {"model": ", ".join(f"{name} {value}" for name, value in settings.items())}


def _parameters(run: Run, engine: Engine) -> dict[str, str]:
    rows = {}
    total = trainable = 0
    for name, members in engine.model.parameter_groups().items():
        # By the engine's account: the parameters of the model may be shards.
        names = [member for member, _ in members if member in engine.pieces]
        count = sum(engine.pieces[member].numel for member in names)
        learned = sum(engine.pieces[member].numel for member in names if member in engine.trained)
        if count == 0 and run.state.left_out:
            continue
        rows[f"parameters ({name})"] = f"{count:,}" + ("" if learned == count else f", {learned:,} trainable")
        total, trainable = total + count, trainable + learned
    left_out = sum(value.numel() for value in run.state.left_out.values())
    rows["parameters"] = f"{total:,}, {trainable:,} trainable" + (
        f"; {left_out:,} numbers of cached parts left out" if left_out else ""
    )
    return rows
