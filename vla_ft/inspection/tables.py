"""Overviews and findings on the screen."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vla_ft.data.checking.findings import CheckReport, Finding
from vla_ft.data.checking.trimmed import SHORT, STILL
from vla_ft.inspection.overview import Inspection, Overview, feature_rows

_SHOWN = 8
"""Lines of one kind of finding, and instructions, that are printed; files have all."""
_ORDER = ("error", "left out", "warning")


def print_inspection(console: Console, inspection: Inspection) -> None:
    """What each dataset holds, and a row for every dimension of its features."""
    for overview in inspection.overviews:
        console.print(_about(overview))
        console.print(_features(overview))
    if inspection.damaged.episodes:
        console.print(f"damaged, not shown: {escape(str(inspection.damaged))}. `vla-ft data check` says why.")


def _about(overview: Overview) -> Table:
    reader, about = overview.reader, overview.reader.description
    table = Table(title=f"{about.name}", show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    rate = f"{about.fps:g} Hz" + (" (assumed)" if "fps" in reader.assumed else "")
    seconds = f", {reader.lengths.sum() / about.fps / 60:.1f} minutes" if about.fps else ""
    lengths = np.asarray(reader.lengths)
    rows = {
        "episodes": f"{len(lengths):,}, {int(lengths.sum()):,} steps at {rate}{seconds}",
        "lengths": f"{lengths.min()} to {lengths.max()} steps, median {np.median(lengths):g}",
        "cameras": ", ".join(f"{name} {h}x{w}" for name, (h, w) in about.cameras.items()) or "none",
        "action": f"{about.action_dim} dimensions, {about.action_kind}, {about.action_mode}",
        "gripper": about.gripper,
        "proprio": f"{about.proprio_dim} dimensions",
        "assumed": "; ".join(f"{what}: {why}" for what, why in reader.assumed.items()) or "nothing",
        "instructions": _instructions(overview),
    }
    for name, value in rows.items():
        table.add_row(name, escape(value))
    return table


def _instructions(overview: Overview) -> str:
    texts = [(text, count) for text, count in overview.instructions.most_common() if text]
    empty = overview.instructions.get("", 0)
    lines = [f"{count} x {text}" for text, count in texts[:_SHOWN]]
    lines += [f"... and {len(texts) - _SHOWN} more"] if len(texts) > _SHOWN else []
    lines += [f"{empty} episodes without one"] if empty else []
    return "\n".join(lines)


def _features(overview: Overview) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("feature", "", "name", "unit"):
        table.add_column(name, overflow="fold")
    for name in ("min", "mean", "max", "std", "q01", "q99"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    last = ""
    for feature, number, name, unit, *numbers, remark in feature_rows(overview):
        shown = "" if feature == last else feature
        last = feature
        table.add_row(shown, str(number), escape(name), escape(unit), *(f"{n:.4g}" for n in numbers), remark)
    return table


def print_report(console: Console, report: CheckReport) -> None:
    """Findings by kind, the worst first, and the verdict; what the format's documentation promises around them."""
    for line in report.counts:
        console.print(line, highlight=False, soft_wrap=True)
    for level in _ORDER:
        ordered = sorted(report.of(level), key=lambda one: one.kind)  # type: ignore[arg-type]
        for kind, group in groupby(ordered, key=lambda one: one.kind):
            _print_kind(console, level, kind, list(group))
    if report.skipped:
        console.print(skipping(report), soft_wrap=True, highlight=False)
    console.print(
        f"{report.dataset}: {report.episodes:,} episodes, {report.steps:,} steps, {report.frames:,} frames looked at; "
        + verdict(report),
        soft_wrap=True,
        highlight=False,
    )
    if report.counts and not report.of("error"):
        console.print("✅ Dataset valid!", highlight=False)


def verdict(report: CheckReport) -> str:
    """The outcome in words."""
    errors, warnings, left_out = len(report.of("error")), len(report.of("warning")), report.left_out
    parts = [_many(errors, "error") if errors else "nothing is wrong"]
    parts += [_many(warnings, "warning")] if warnings else []
    told = any(one.kind in (SHORT, STILL) for one in report.of("left out"))
    what = "episode" if told else "damaged episode"
    parts += [f"{_many(len(left_out), what)} left out"] if left_out else []
    return ", ".join(parts)


def skipping(report: CheckReport) -> str:
    """What ``data.skip_still`` skips, in words."""
    name, most = max(report.skipped.items(), key=lambda item: item[1])
    return (
        f"still beginnings: {_many(sum(report.skipped.values()), 'step')} skipped in {len(report.skipped)} of "
        f"{_many(report.episodes, 'episode')}, most in {name} ({most}); a run reads {report.read:,} of "
        f"{report.steps:,} steps (data.skip_still)"
    )


def _many(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _print_kind(console: Console, level: str, kind: str, group: Sequence[Finding]) -> None:
    console.print(f"{level}: {kind} ({len(group)})", style="bold", highlight=False)
    for finding in group[:_SHOWN]:
        console.print(f"  {escape(str(finding))}", soft_wrap=True, highlight=False)
    if len(group) > _SHOWN:
        console.print(f"  ... and {len(group) - _SHOWN} more (all with output=FILE)")
