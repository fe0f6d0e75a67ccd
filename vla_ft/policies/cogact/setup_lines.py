"""The summary that the published training prints before its first step, for readers of its logs."""

from __future__ import annotations

from vla_ft.policies.base import SetupFacts

_STRATEGIES = {
    "fsdp2": "FSDP Full-Shard", "zero3": "ZeRO Full-Shard", "zero2": "ZeRO Shard-Grad-Op", "zero1": "ZeRO Shard-Op",
    "hsdp": "FSDP Hybrid-Shard", "ddp": "DDP", "single": "Single-Process",
}  # fmt: skip
_SCHEDULES = {"cosine": "linear-warmup+cosine-decay", "linear": "linear-warmup+linear-decay"}


def setup_lines(facts: SetupFacts) -> list[str]:
    """ "Finalized Training Setup" with the published lines. Steps count updates, examples windows of an epoch."""
    size = facts.per_device * facts.accumulation * facts.processes
    adam = "8-bit AdamW" if facts.optimizer == "adamw8bit" else "AdamW"
    return [
        f"{_STRATEGIES.get(facts.engine, facts.engine)} Strategy =>> Finalized Training Setup:",
        f"  |-> Global (Effective) Batch Size = {size}",
        f"  |-> Per-Device Batch Size = {facts.per_device}",
        f"  |-> Distributed World Size = {facts.processes}",
        f"  |-> Gradient Accumulation Steps = {facts.accumulation}",
        f"  |-> LLM Backbone FSDP Gradient Checkpointing = {facts.recompute}",
        *_precision(facts.precision),
        f"  |-> Default {adam} LR = {facts.lr:g}",
        f"  |-> {adam} Weight Decay = {facts.weight_decay:g}",
        f"  |-> LR Scheduler Type = {_SCHEDULES.get(facts.schedule, facts.schedule)}",
        f"  |-> LR Scheduler Warmup Steps (Ratio) = {facts.warmup_steps} ({facts.warmup_steps / facts.steps:g})",
        f"  |-> Dataset Size = {facts.samples} Examples",
        f"  |-> Max Steps = {facts.steps}",
    ]


def _precision(name: str) -> list[str]:
    """Gradients are summed over processes in float32 whatever the weights are."""
    mixed = name != "fp32"
    return [
        f"  |-> Use FSDP Mixed Precision = {mixed}",
        f"      |-> Parameter Precision = torch.{'bfloat16' if mixed else 'float32'}",
        "      |-> Reduction Precision = torch.float32",
        "      |-> Buffer Precision = torch.float32",
    ]
