"""The numbers of ``vla-ft evaluate`` as text."""

from __future__ import annotations

from typing import Any

_ROWS = {
    "policy": "policy, robot units",
    "repeat_last_action": "repeat last action, robot units",
    "policy_normalized": "policy, normalised",
    "repeat_last_action_normalized": "repeat last action, normalised",
}


def error_table(numbers: dict[str, Any]) -> str:
    """Two tables: by horizon step (first, quarter, half, last) and by joint; and what would be executed, if asked."""
    lines = [
        f"{numbers['windows']} windows of {len(numbers['episodes'])} episodes, {numbers['precision']}; "
        "mean absolute error of the action chunk",
        *_by_step(numbers),
        "",
        *_by_joint(numbers),
    ]
    if "executed" in numbers:
        lines += ["", f"executed ({numbers['executed']}), {numbers['executed_steps']} steps, robot units: "
                      f"{numbers['executed_mean']:.4f}"]  # fmt: skip
    return "\n".join(lines)


def _by_step(numbers: dict[str, Any]) -> list[str]:
    horizon = len(numbers["policy"])
    marks = sorted({0, horizon // 4, horizon // 2, horizon - 1})
    lines = [f"{'':<34}" + "".join(f"{head:>10}" for head in ["mean", *(f"step {mark + 1}" for mark in marks)])]
    for key, title in _ROWS.items():
        values = [numbers[f"{key}_mean"], *(numbers[key][mark] for mark in marks)]
        lines.append(f"{title:<34}" + "".join(f"{value:>10.4f}" for value in values))
    return lines


def _by_joint(numbers: dict[str, Any]) -> list[str]:
    """A line for each dimension of the action."""
    heads = {key: title.replace("repeat last action", "repeat last") for key, title in _ROWS.items()}
    executed = {"executed": "executed"} if "executed" in numbers else {}
    heads |= executed
    names = list(numbers["policy_per_joint"])
    width = max(12, *(len(name) for name in names)) + 2
    unit = dict(zip(names, numbers["action_units"], strict=True))
    lines = [f"{'joint':<{width}}{'unit':<8}" + "".join(f"{head:>26}" for head in heads.values())]
    for name in names:
        values = [numbers[f"{key}_per_joint"][name] for key in heads]
        lines.append(f"{name:<{width}}{unit[name]:<8}" + "".join(f"{value:>26.4f}" for value in values))
    return lines
