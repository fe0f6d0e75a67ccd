"""Pictures of a dataset: frames over time, and numbers over time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

_FRAME_INCHES = 1.45
_LABEL_INCHES = 1.0
_COLUMNS = 4
_GAP = 3
"""White pixels between frames."""


def draw_contact_sheet(
    path: Path, title: str, strips: Sequence[tuple[str, np.ndarray, np.ndarray]], pixels: int = 160
) -> Path:
    """Draw rows of frames. A strip is (label, frames uint8 [n, H, W, 3], their times [n] in seconds).

    Frames are thinned to about ``pixels`` across; all strips have equally many columns where an episode is long enough.
    """
    columns = max(len(frames) for _, frames, _ in strips)
    heights = [_FRAME_INCHES * frames.shape[1] / frames.shape[2] for _, frames, _ in strips]
    size = (_LABEL_INCHES + columns * _FRAME_INCHES, 0.5 + sum(heights) + 0.24 * len(strips))
    figure = Figure(figsize=size, layout="constrained")
    rows = figure.subplots(len(strips), squeeze=False, gridspec_kw={"height_ratios": heights})
    for axes, (label, frames, seconds) in zip(rows[:, 0], strips, strict=True):
        step = max(1, frames.shape[2] // pixels)
        small = np.pad(frames[:, ::step, ::step], ((0, 0), (0, 0), (0, _GAP), (0, 0)), constant_values=255)
        width = small.shape[2]
        axes.imshow(np.concatenate(list(small), axis=1), interpolation="nearest", aspect="equal")
        axes.set_xlim(-0.5, columns * width - 0.5)
        axes.set_xticks([width * (place + 0.5) for place in range(len(small))], [f"{t:.2f} s" for t in seconds])
        axes.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8)
        axes.set_yticks([])
        axes.tick_params(length=0, labelsize=7, pad=1)
        for side in axes.spines.values():
            side.set_visible(False)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=110)
    return path


def draw_tracks(
    path: Path,
    title: str,
    names: Sequence[str],
    units: Sequence[str],
    tracks: Sequence[tuple[str, np.ndarray, np.ndarray]],
    usual: tuple[np.ndarray, np.ndarray] | None = None,
) -> Path:
    """Draw every dimension over time, a line an episode. A track is (label, seconds [n], values [n, D]).

    ``usual``: the lower and upper bound [D] of what is usual in the whole dataset, drawn as a band.
    """
    columns = min(_COLUMNS, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(3.3 * columns, 0.6 + 1.75 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True)
    cells = list(grid.flat)
    for place, (axes, name) in enumerate(zip(cells, names, strict=False)):
        for label, seconds, values in tracks:
            axes.plot(seconds, values[:, place], linewidth=1.0, label=label)
        if usual is not None:
            axes.axhspan(float(usual[0][place]), float(usual[1][place]), color="0.5", alpha=0.13, linewidth=0, zorder=0)
        unit = units[place]
        axes.set_title(name + (f" ({unit})" if unit and unit != "unknown" else ""), fontsize=8, pad=3)
        axes.tick_params(labelsize=7)
        axes.grid(True, alpha=0.25)
        # Of a row that is not full, the cells above the gap are the lowest of their columns.
        if place + columns >= len(names):
            axes.tick_params(labelbottom=True)
            axes.set_xlabel("seconds", fontsize=7)
    for axes in cells[len(names) :]:
        axes.set_visible(False)
    handles, labels = cells[0].get_legend_handles_labels()
    figure.suptitle(title, fontsize=10)
    figure.legend(handles, labels, loc="outside lower center", ncols=max(1, min(6, len(labels))), fontsize=7)
    figure.savefig(path, dpi=110)
    return path
