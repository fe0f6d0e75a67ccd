"""The picture of a memory forecast: stacked bars against what a card has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLORS = {
    "weights": "#4477aa", "gradients": "#66ccee", "optimizer": "#228833", "average": "#99cc88",
    "activations": "#ccbb44", "temporaries": "#ee8866", "buffers": "#aa3377", "margin": "#dddddd",
}  # fmt: skip
"""By kind (Paul Tol's colours, told apart by colour-blind readers too)."""
NAMES = {"average": "EMA", "buffers": "engine's buffers", "margin": "margin (not torch's)"}
MOST = 24
"""Bars that can still be read."""


def draw_memory(
    rows: Sequence[tuple[str, dict[str, float], bool]], card_gib: float, title: str, path: Path, marked: str = ""
) -> Path:
    """Draw one bar a row (label, GiB by kind, whether it fits) against a card of ``card_gib``; at most 24 rows.

    The label that equals ``marked`` is printed bold.
    """
    shown = list(rows[:MOST])
    figure = Figure(figsize=(11, 1.9 + 0.34 * len(shown)), layout="constrained")
    axes = figure.subplots()
    totals = _stack(axes, shown)
    limit = max(card_gib * 1.2, min(max(totals) * 1.16, card_gib * 4))
    for place, (total, (_, _, fits)) in enumerate(zip(totals, shown, strict=True)):
        text, color = (f"{total:.1f}", "black") if fits else (f"{total:.1f}  too large", "#bb2222")
        axes.text(
            min(total, limit * 0.88) + limit * 0.006, place, text, va="center", fontsize=8, color=color, zorder=4,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
        )  # fmt: skip
    axes.axvline(card_gib, color="black", linewidth=1.4, zorder=3)
    above = axes.get_xaxis_transform()  # x in data, y as a share of the axes' height
    axes.text(card_gib, 1.0 + 0.08 / len(shown), f"card: {card_gib:g} GiB", transform=above, ha="center", va="bottom",
              fontsize=9)  # fmt: skip
    axes.set_yticks(range(len(shown)), [_wrapped(label) for label, _, _ in shown], fontsize=8)
    for tick, (label, _, _) in zip(axes.get_yticklabels(), shown, strict=True):
        tick.set_fontweight("bold" if label == marked else "normal")
    axes.set(xlim=(0, limit), ylim=(len(shown) - 0.4, -0.6), xlabel="GiB on each card at the fullest moment")
    axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=11)
    legend = figure.legend(loc="outside lower center", ncols=4 if len(shown) < 4 else 8, fontsize=8, frameon=False)
    for handle in legend.legend_handles:
        if handle is not None:
            handle.set_alpha(1.0)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path


def _stack(axes: Axes, shown: Sequence[tuple[str, dict[str, float], bool]]) -> list[float]:
    """Draw the bars kind by kind; returns their lengths. What does not fit is paler."""
    left = [0.0] * len(shown)
    for kind, color in COLORS.items():
        widths = [parts.get(kind, 0.0) for _, parts, _ in shown]
        if any(widths):
            found = axes.barh(
                range(len(shown)), widths, left=left, color=color, label=NAMES.get(kind, kind), height=0.7
            )
            for bar, (_, _, fits) in zip(found, shown, strict=True):
                bar.set_alpha(1.0 if fits else 0.45)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    return left


def _wrapped(label: str) -> str:
    words, lines = label.split(), [""]
    for word in words:
        if lines[-1] and len(lines[-1]) + len(word) > 52:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)
