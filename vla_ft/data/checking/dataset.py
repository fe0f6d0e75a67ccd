"""A whole dataset: every episode examined, several at a time, then what only all of them together show."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

import numpy as np

from vla_ft.data.checking.episode import EpisodeFacts, Movement, examine
from vla_ft.data.checking.findings import CheckReport, Finding
from vla_ft.data.checking.frames import ImageMode
from vla_ft.data.checking.trimmed import trim
from vla_ft.data.formats.base import EpisodeReader
from vla_ft.data.mixture import MixtureReader
from vla_ft.data.sample import DatasetDescription
from vla_ft.data.statistics import CONSTANT_STD, FEATURES

_JUMP = 15.0
"""A change of so many usual ones, and of ``_JUMP_RANGE`` of all that a dimension ever covers, is implausible."""
_JUMP_RANGE = 0.4
_SPREAD = 3.0
"""Standard deviations of the episode lengths within which a length is usual."""
_BATCH = 8
"""Episodes that a worker takes at a time."""


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """``chunk``: steps of an action chunk, None for one second. ``skip``: judge as a run with ``data.on_damage=skip``,
    which does not read damaged episodes. ``skip_still`` and ``shortest``: as a run with these options of ``data``."""

    images: ImageMode = "sample"
    chunk: int | None = None
    skip: bool = False
    skip_still: float | None = None
    shortest: int | None = None
    workers: int = 0


def check_dataset(reader: EpisodeReader, options: CheckOptions) -> CheckReport:
    """Look at every episode of ``reader``, which is whole: the options say what a run leaves out of it.

    Raises UserError when the machine fails rather than the data.
    """
    facts = list(_examined(reader, options))
    parts = list(reader.parts.values()) if isinstance(reader, MixtureReader) else [reader]
    trimmed, start = [], 0
    for part in parts:
        mine = facts[start : start + len(part.lengths)]
        trimmed.append(trim(part, mine, start, options.skip_still, options.shortest))
        start += len(part.lengths)
    findings = [finding for one in facts for finding in _judged(one, options.skip)]
    findings += [finding for one in trimmed for finding in one.findings]
    start = 0
    for part in parts:
        mine = facts[start : start + len(part.lengths)]
        name = part.description.name if len(parts) > 1 else ""
        findings += [Finding(level="warning", kind="files", name=name, message=line) for line in part.remarks()]
        findings += _lengths(part, name)
        findings += _together(part.description, mine, start, reader, len(parts) > 1)
        start += len(part.lengths)
    return CheckReport(
        dataset=reader.description.name,
        episodes=len(reader.lengths),
        steps=int(reader.lengths.sum()),
        frames=sum(one.frames for one in facts),
        findings=tuple(findings),
        skipped={name: steps for one in trimmed for name, steps in one.skipped.items()},
        read=sum(one.steps for one in trimmed),
        counts=tuple(reader.counts()),
    )


def _lengths(reader: EpisodeReader, name: str) -> list[Finding]:
    """Episodes of unlikely length: one finding for all of them."""
    lengths = np.asarray(reader.lengths, dtype=np.float64)
    if not len(lengths):
        return []
    distance = np.abs(lengths - lengths.mean())
    odd = np.flatnonzero(distance > _SPREAD * lengths.std())
    if not len(odd):
        return []
    worst = int(odd[np.argmax(distance[odd])])
    message = (
        f"{len(odd)} of {len(lengths)} episodes are more than {_SPREAD:g} standard deviations from the mean length of "
        f"{lengths.mean():.0f} steps, most of all {reader.name_of(worst)} with {int(lengths[worst])}"
    )
    return [Finding(level="warning", kind="length", name=name, message=message)]


def _judged(facts: EpisodeFacts, skip: bool) -> list[Finding]:
    """An episode's findings; all of a damaged one's are ``left out`` where a run does not read it."""
    if facts.damaged and skip:
        return [dataclasses.replace(finding, level="left out") for finding in facts.findings]
    return facts.findings


def _chunk(reader: EpisodeReader, episode: int, options: CheckOptions) -> int:
    fps = reader.resolve(episode)[0].description.fps
    return max(1, round(fps)) if options.chunk is None else options.chunk


_reader: EpisodeReader | None = None
"""A worker's copy."""


def _examined(reader: EpisodeReader, options: CheckOptions) -> Iterator[EpisodeFacts]:
    """Facts of every episode, in order."""
    tasks = [(episode, options.images, _chunk(reader, episode, options)) for episode in range(len(reader.lengths))]
    if options.workers < 2:
        yield from (examine(reader, *task) for task in tasks)
        return
    batches = [tasks[start : start + _BATCH] for start in range(0, len(tasks), _BATCH)]
    while batches:
        done = 0
        try:
            with ProcessPoolExecutor(options.workers, initializer=_take, initargs=(reader,)) as pool:
                for facts in pool.map(_examine_all, batches):
                    done += 1
                    yield from facts
        except BrokenProcessPool:  # a worker died, in this batch or in one of the next
            yield from (_alone(reader, task) for task in batches[done])
            done += 1
        batches = batches[done:]


def _alone(reader: EpisodeReader, task: tuple[int, ImageMode, int]) -> EpisodeFacts:
    """An episode's facts from a process of its own; that it ended the process is one of them."""
    try:
        with ProcessPoolExecutor(1, initializer=_take, initargs=(reader,)) as pool:
            return pool.submit(_examine, task).result()
    except BrokenProcessPool:
        message = (
            "the process that read it ended without a word: a file that its decoder crashes on, or too little memory. "
            "Copy it again, or move it out of the set"
        )
        name = reader.name_of(task[0])
        return EpisodeFacts([Finding(level="error", kind="damaged", episode=task[0], name=name, message=message)])


def _take(reader: EpisodeReader) -> None:
    global _reader
    _reader = reader


def _examine(task: tuple[int, ImageMode, int]) -> EpisodeFacts:
    assert _reader is not None
    return examine(_reader, *task)


def _examine_all(tasks: list[tuple[int, ImageMode, int]]) -> list[EpisodeFacts]:
    return [_examine(task) for task in tasks]


def _together(
    about: DatasetDescription, facts: Sequence[EpisodeFacts], start: int, reader: EpisodeReader, named: bool
) -> list[Finding]:
    """Constant dimensions, implausible jumps, missing instructions of one dataset whose first episode is ``start``."""
    found = _uninstructed(about, facts, start, reader, named)
    for key, names in zip(FEATURES, (about.action_names, about.proprio_names), strict=True):
        numbers = [start + place for place, one in enumerate(facts) if key in one.movements]
        moved = [one.movements[key] for one in facts if key in one.movements]
        if not moved:
            continue
        low, high = np.min([m.low for m in moved], axis=0), np.max([m.high for m in moved], axis=0)
        for dimension in np.flatnonzero(high - low < CONSTANT_STD):
            message = f"constant, {low[dimension]:.6g} in every step of every episode"
            where = f"{key} {names[dimension]}"
            name = about.name if named else ""
            found.append(Finding(level="warning", kind="constant", name=name, field=where, message=message))
        gripper = about.is_gripper if key == "action" else np.zeros(len(names), dtype=bool)
        gripper = gripper | np.array(["gripper" in name.lower() for name in names], dtype=bool)
        delta = key == "action" and about.action_mode == "delta"
        found += _jumps(key, names, moved, numbers, high - low, gripper, delta, reader)
    return found


def _uninstructed(
    about: DatasetDescription, facts: Sequence[EpisodeFacts], start: int, reader: EpisodeReader, named: bool
) -> list[Finding]:
    empty = [start + place for place, one in enumerate(facts) if not one.instructed]
    sound = sum(not one.damaged for one in facts)
    if len(empty) == sound and empty:
        message = "no episode has an instruction; give one with data.instruction=... for a policy that reads it"
        return [Finding(level="warning", kind="instruction", name=about.name if named else "", message=message)]
    return [
        Finding(level="warning", kind="instruction", episode=e, name=reader.name_of(e), message="no instruction")
        for e in empty
    ]


def _jumps(
    key: str,
    names: Sequence[str],
    moved: Sequence[Movement],
    numbers: Sequence[int],
    span: np.ndarray,
    gripper: np.ndarray,
    delta: bool,
    reader: EpisodeReader,
) -> list[Finding]:
    """The largest change of each episode and dimension where it is out of all proportion; grippers may jump."""
    usual = np.median([m.usual for m in moved], axis=0)
    found = []
    for movement, episode in zip(moved, numbers, strict=True):
        odd = (movement.largest > _JUMP * np.maximum(usual, 1e-9)) & (movement.largest > _JUMP_RANGE * span) & ~gripper
        odd &= (span >= CONSTANT_STD) & (usual > 0)
        for dimension in np.flatnonzero(odd).tolist():
            times = movement.largest[dimension] / usual[dimension]
            values = f"{movement.before[dimension]:.4g} to {movement.after[dimension]:.4g}"
            what = f"is {movement.after[dimension]:.4g}" if delta else f"jumps from {values}"
            found.append(
                Finding(
                    level="warning",
                    kind="jump",
                    episode=episode,
                    name=reader.name_of(episode),
                    step=int(movement.step[dimension]),
                    field=f"{key} {names[dimension]}",
                    message=f"{what}, {times:.0f} times what is usual",
                )
            )
    return found
