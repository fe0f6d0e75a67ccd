"""The picture of a memory forecast: stacked bars against what a card has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

COLORS = {
    "weights": "#4477aa", "gradients": "#66ccee", "optimizer": "#228833", "average": "#99cc88",
    "activations": "#ccbb44", "temporaries": "#ee8866", "buffers": "#aa3377", "margin": "#dddddd",
}  # fmt: skip
"""By kind (Paul Tol's colours, told apart by colour-blind readers too)."""
NAMES = {"average": "EMA", "buffers": "engine's buffers", "margin": "margin (not torch's)"}
MOST = 24
"""Bars that can still be read."""


def draw_memory(rows: Sequence[tuple[str, dict[str, float], bool]], card_gib: float, title: str, path: Path) -> Path:
    """Draw one bar a row (label, GiB by kind, whether it fits) against a card of ``card_gib``; at most 24 rows."""
    shown = list(rows[:MOST])
    figure, axes = plt.subplots(figsize=(11, 1.6 + 0.36 * len(shown)), constrained_layout=True)
    places = range(len(shown))
    left = [0.0] * len(shown)
    for kind, color in COLORS.items():
        widths = [parts.get(kind, 0.0) for _, parts, _ in shown]
        if any(widths):
            axes.barh(places, widths, left=left, color=color, label=NAMES.get(kind, kind), height=0.7)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.axvline(card_gib, color="black", linewidth=1.4)
    axes.annotate(f"card {card_gib:g} GiB", (card_gib, -0.9), ha="center", annotation_clip=False, fontsize=9)
    limit = max(card_gib * 1.15, min(max(left) * 1.12, card_gib * 4))
    for place, (total, (_, _, fits)) in enumerate(zip(left, shown, strict=True)):
        where = min(total, limit * 0.93)
        text, color = (f"{total:.1f}", "black") if fits else (f"{total:.1f}  too large", "#bb2222")
        axes.text(where + limit * 0.005, place, text, va="center", fontsize=8, color=color)
    axes.set_yticks(list(places), [_wrapped(label) for label, _, _ in shown], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, limit)
    axes.set_xlabel("GiB on each card at the fullest moment")
    axes.set_title(title, pad=22, fontsize=11)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1 - 0.5 / len(shown)), ncols=8, fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def _wrapped(label: str) -> str:
    words, lines = label.split(), [""]
    for word in words:
        if lines[-1] and len(lines[-1]) + len(word) > 52:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)
