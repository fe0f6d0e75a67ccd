"""One episode's numbers and instruction: what is wrong with them, and what the dataset is judged by."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import numpy as np

from vla_ft.data.checking.findings import Finding
from vla_ft.data.checking.frames import ImageMode, check_frames
from vla_ft.data.formats.base import EpisodeReader
from vla_ft.data.formats.damage import damage_sentence
from vla_ft.data.statistics import FEATURES
from vla_ft.errors import UserError

_LOST = 2.0
"""A time between steps of so many usual ones is a jump: at least one step is missing."""
_OFF_RATE = 0.05
"""A clock that runs at another rate than ``fps`` by more than this share is told."""


@dataclass(frozen=True, kw_only=True)
class Movement:
    """How a feature's dimensions move in an episode, each float64 [D]: ``usual`` is the 90th percentile of the changes
    from step to step, ``largest`` the largest of them, which leads from ``before`` to ``after`` at ``step`` (int64)."""

    low: np.ndarray
    high: np.ndarray
    usual: np.ndarray
    largest: np.ndarray
    step: np.ndarray
    before: np.ndarray
    after: np.ndarray


@dataclass
class EpisodeFacts:
    """What was found in an episode. ``damaged``: a run cannot read its numbers, or leaves it out."""

    findings: list[Finding] = field(default_factory=list)
    movements: dict[str, Movement] = field(default_factory=dict)
    frames: int = 0
    damaged: bool = False
    instructed: bool = True


def examine(reader: EpisodeReader, episode: int, images: ImageMode, chunk: int) -> EpisodeFacts:
    """Check an episode: numbers always, images as asked. Raises UserError when the machine fails, not the data."""
    part, number = reader.resolve(episode)
    facts = EpisodeFacts()
    tell = partial(Finding, episode=episode, name=reader.name_of(episode))
    length = int(part.lengths[number])
    try:
        values = part.read(number, np.arange(length), FEATURES)
        facts.instructed = bool(part.instruction(number).strip())
        clock = part.times(number)
    except UserError as error:
        facts.damaged = True
        facts.findings.append(tell(level="error", kind="damaged", message=damage_sentence(error)))
        return facts
    facts.findings += _widths(part, length, values, tell)
    if facts.findings:
        return facts
    infinite = _not_finite(part, values, tell)
    facts.damaged = bool(infinite)
    facts.findings += infinite
    if clock is not None:
        facts.findings += _clock(clock, part.description.fps, tell)
    if length < chunk:
        message = f"{length} steps, fewer than an action chunk of {chunk}"
        facts.findings.append(tell(level="warning", kind="short", message=message))
    if length and not infinite:
        delta = part.description.action_mode == "delta"
        facts.movements = {key: _movement(values[key], key == "action" and delta) for key in FEATURES}
    if images != "none" and length:
        found, facts.frames = check_frames(part, number, images, values, tell)
        facts.findings += found
    return facts


def _widths(reader: EpisodeReader, length: int, values: dict[str, np.ndarray], tell: partial[Finding]) -> list[Finding]:
    about = reader.description
    expected = {"action": (length, about.action_dim), "proprio": (length, about.proprio_dim)}
    return [
        tell(level="error", kind="width", field=key, message=f"shape {values[key].shape}, expected {shape}")
        for key, shape in expected.items()
        if values[key].shape != shape
    ]


def _not_finite(reader: EpisodeReader, values: dict[str, np.ndarray], tell: partial[Finding]) -> list[Finding]:
    """One finding a dimension: the first value that is no number, and how many there are."""
    names = {"action": reader.description.action_names, "proprio": reader.description.proprio_names}
    found = []
    for key in FEATURES:
        bad = ~np.isfinite(values[key])
        for dimension in np.flatnonzero(bad.any(axis=0)):
            step = int(np.argmax(bad[:, dimension]))
            message = f"{values[key][step, dimension]} ({int(bad[:, dimension].sum())} such values)"
            where = f"{key} {names[key][dimension]}"
            found.append(tell(level="error", kind="not finite", step=step, field=where, message=message))
    return found


def _clock(seconds: np.ndarray, fps: float, tell: partial[Finding]) -> list[Finding]:
    """Jumps in recorded time; a clock in other units than seconds is judged by its own usual step."""
    say = partial(tell, kind="time", field="time")
    if not np.isfinite(seconds).all():
        return [say(level="error", step=int(np.argmin(np.isfinite(seconds))), message="the time is no finite number")]
    gaps = np.diff(seconds)
    if not len(gaps):
        return []
    usual = float(np.median(gaps))
    bad = np.flatnonzero((gaps <= 0) | (gaps >= _LOST * usual))
    found = []
    if len(bad):
        at = int(bad[0])
        more = f" ({len(bad)} such places)" if len(bad) > 1 else ""
        message = f"the time goes on by {gaps[at]:.4g} from the step before, usually by {usual:.4g}{more}"
        found.append(say(level="error", step=at + 1, message=message))
    if fps and usual > 0 and 1e-3 < usual < 10 and abs(1 / usual - fps) > _OFF_RATE * fps:
        found.append(say(level="warning", message=f"the clock says {1 / usual:.4g} steps a second, fps is {fps:g}"))
    return found


def _movement(values: np.ndarray, delta: bool) -> Movement:
    """Changes from step to step; of actions that are changes already (``delta``), the actions themselves."""
    wide = values.astype(np.float64)
    nothing = np.zeros(wide.shape[1])
    changes = np.abs(wide if delta else np.diff(wide, axis=0, prepend=wide[:1]))
    at = changes.argmax(axis=0) if len(changes) else nothing.astype(int)
    columns = np.arange(wide.shape[1])
    moving = changes if delta else changes[1:]
    return Movement(
        low=wide.min(axis=0),
        high=wide.max(axis=0),
        usual=np.quantile(moving, 0.9, axis=0) if len(moving) else nothing,
        largest=changes[at, columns],
        step=at,
        before=wide[np.maximum(at - 1, 0), columns],
        after=wide[at, columns],
    )
