"""From any format that can be read to any that can be written, episode by episode, in flat memory.

A hidden journal in the target says what is being converted, so that an interrupted conversion goes on and another one
is refused. When all is done it becomes ``conversion.json``: where the set comes from, and what it does not have of it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import ConfigDict, Field

from vla_ft.data.formats.base import DatasetWriter, EpisodeReader
from vla_ft.data.formats.damage import damage_sentence
from vla_ft.data.formats.registry import find_writer, open_writer
from vla_ft.data.formats.writing import Step, explained, sync_folder, write_json
from vla_ft.data.opening import NOT_STANDARDIZED, ReadConfig, open_read
from vla_ft.data.sample import IMAGE_PREFIX, DatasetDescription
from vla_ft.errors import UserError

RECORD = "conversion.json"
"""In a converted set: where it comes from."""
JOURNAL = f".{RECORD}"
_BLOCK_BYTES = 8 << 20
_BLOCK_STEPS = 32
_SAY_EVERY = 10.0


@dataclass(frozen=True, kw_only=True)
class ConvertConfig(ReadConfig):
    """What to convert into what; the options of reading are those of ``data`` in a recipe."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    source: Annotated[str, Field(alias="from")]
    target: Annotated[str, Field(alias="to")]
    format: str
    """What to write: a name in ``registry.WRITERS``."""
    images: str | None = None
    """How pictures are stored; null takes the format's usual way."""
    from_format: str = "auto"
    standardize: str = NOT_STANDARDIZED
    """A published dataset's name: write what its raw RLDS columns mean instead of what they are."""
    on_damage: Literal["error", "skip"] = "error"
    """An episode that cannot be read ends the conversion, or is left out and counted."""

    def reader_options(self) -> dict[str, Any]:
        """The reader's own options; under ``skip`` damaged episodes are told when they are read, not at opening.

        Raises UserError for options that a standardisation decides.
        """
        options = super().reader_options()
        decided = [key for key in ("action", "proprio", "action_kind", "action_mode") if key in options]
        if decided and self.standardize != NOT_STANDARDIZED:
            raise UserError(
                f"standardize={self.standardize} decides what {decided[0]} is; {decided[0]}={options[decided[0]]} was "
                "given too. Leave one of them out."
            )
        return options | ({"tolerant": True} if self.on_damage == "skip" else {})

    def settings(self) -> dict[str, Any]:
        """Everything that decides what is written, but the places."""
        values = dataclasses.asdict(self)
        return {key: values[key] for key in sorted(values.keys() - {"source", "target", "on_damage"})}


@dataclass(frozen=True)
class Conversion:
    """What became of it. ``skipped``: episode -> why; ``lost``: sentences."""

    folder: Path
    episodes: int
    skipped: dict[str, str]
    lost: list[str]


class DamagedEpisode(UserError):
    """An episode of the source cannot be read as it should be."""


def convert(config: ConvertConfig, say: Callable[[str], None] = print) -> Conversion:
    """Convert, or go on with what an interrupted conversion left; a finished one is told and left alone.

    The same command gives the same bytes, however often it was interrupted. Raises UserError for a target that holds
    something else, a source that cannot be read, a damaged episode unless they are skipped, and a full disk.
    """
    kind, _ = find_writer(config.format)
    config = dataclasses.replace(config, images=config.images or kind.IMAGES[0])  # said or not: one conversion
    source, target = Path(config.source), Path(config.target)
    reader = open_read(
        source, config.from_format, config.standardize, config.cameras, config.image_size, config.reader_options()
    )
    _refuse_inside(source, target)
    about = {"from": reader.description.name, "files": _files(reader), **config.settings()}
    if (target / RECORD).is_file():
        return _already_there(target, about, say)
    _refuse_foreign(target)
    writer = open_writer(target, reader.description, config.format, config.images, reader.action_offset)
    try:
        lost = losses(reader, writer, str(config.images))
        for line in lost:
            say(f"not kept: {line}")
        journal = _Journal(target, about | {"times": _times(reader)}, begun=bool(writer.done))
        lost += _write_episodes(reader, writer, journal, config.on_damage == "skip", say)
        if not writer.done:
            raise UserError(_nothing_left(source, journal.skipped))
        writer.finish()
        episodes = writer.done
    finally:
        writer.close()
    journal.publish({**about, "episodes": episodes, "not kept": lost, "skipped": journal.skipped})
    say(_summary(episodes, journal.skipped, target))
    return Conversion(target, episodes, journal.skipped, lost)


def losses(reader: EpisodeReader, writer: DatasetWriter, images: str) -> list[str]:
    """What the written set does not have of the source, a sentence each."""
    lines = [f"{what}: it is not read from the source" for what in reader.unread()]
    if reader.action_offset and not writer.HOLDS_OFFSET:
        lines.append(
            f"actions begin {-reader.action_offset} step before their observation in the source, and the format cannot "
            "say so: they are written as they are stored, and read without that shift"
        )
    for field in dataclasses.fields(DatasetDescription):
        was, becomes = getattr(reader.description, field.name), getattr(writer.kept, field.name)
        if was != becomes and field.name != "name":  # some formats are called as their folder is
            lines.append(f"{field.name} {_brief(was)}: it is read back as {_brief(becomes)}")
    if images in writer.LOSSY and reader.description.cameras:
        lines.append(f"exact pixels: pictures are stored as {images}")
    return lines


def steps_of(reader: EpisodeReader, episode: int) -> Iterator[Step]:
    """The steps of an episode, read a block at a time. Raises DamagedEpisode for what cannot be read or written."""
    sizes = reader.description.cameras
    keys = ["action", "proprio", *(IMAGE_PREFIX + camera for camera in sizes)]
    pixels = sum(3 * height * width for height, width in sizes.values())
    block = max(1, min(_BLOCK_STEPS, _BLOCK_BYTES // max(1, pixels)))
    length = int(reader.lengths[episode])
    if not length:
        _read(reader, episode, np.arange(0), keys)  # a damaged one counts no steps, and says why when it is read
        raise DamagedEpisode(f"{reader.name_of(episode)} has no steps.")
    for begin in range(0, length, block):
        values = _read(reader, episode, np.arange(begin, min(length, begin + block)), keys)
        for key in ("action", "proprio"):
            wrong = ~np.isfinite(values[key]).all(axis=1)
            if wrong.any():
                place = int(np.argmax(wrong))
                raise DamagedEpisode(
                    f"{reader.name_of(episode)}: {key} at step {begin + place} is {values[key][place]}, expected "
                    "finite numbers."
                )
        for place in range(len(values["action"])):
            yield {key: values[key][place] for key in keys}
        del values  # before the next block is read: one at a time


def _read(reader: EpisodeReader, episode: int, steps: np.ndarray, keys: list[str]) -> dict[str, np.ndarray]:
    """Raises DamagedEpisode; UserError when the machine fails, not the data: no episode is left out for that."""
    try:
        return reader.read(episode, steps, keys)
    except UserError as error:
        raise DamagedEpisode(damage_sentence(error)) from error


def _write_episodes(
    reader: EpisodeReader, writer: DatasetWriter, journal: _Journal, skips: bool, say: Callable[[str], None]
) -> list[str]:
    """Write what is not there yet. Returns what only the way through all episodes shows to be lost."""
    number = len(reader.lengths)
    sound = [episode for episode in range(number) if str(episode) not in journal.skipped]
    there, left = sound[: writer.done], sound[writer.done :]
    if writer.done or journal.skipped:
        say(f"going on behind {number - len(left)} of {number} episodes")
    last = time.monotonic()
    changing = sum(_instruction(reader, episode)[1] for episode in there)
    for episode in left:
        try:
            instruction, changes = _instruction(reader, episode)
            writer.add(steps_of(reader, episode), instruction)
            changing += changes
        except DamagedEpisode as error:
            if not skips:
                raise UserError(
                    f"{error}\n{writer.done} of {number} episodes are written and kept. Repair the episode and give "
                    "the same command, or give it with on_damage=skip to leave such episodes out: it goes on from here."
                ) from error
            journal.skip(episode, str(error))
            say(f"skipped: {error}")
        if time.monotonic() - last > _SAY_EVERY:
            say(f"{writer.done} of {number} episodes")
            last = time.monotonic()
    if not changing:
        return []
    line = f"{changing} episodes change their instruction on the way, and have their first one throughout"
    say(f"not kept: {line}")
    return [line]


def _instruction(reader: EpisodeReader, episode: int) -> tuple[str, bool]:
    """An episode's instruction, and whether it changes on the way. Raises DamagedEpisode."""
    try:
        first = reader.instruction(episode)
        return first, any(reader.instruction_at(episode, step) != first for step in range(int(reader.lengths[episode])))
    except UserError as error:
        raise DamagedEpisode(damage_sentence(error)) from error


class _Journal:
    """What a conversion has to remember beyond its writer: what it converts, and which episodes it has left out."""

    def __init__(self, target: Path, about: dict[str, Any], begun: bool) -> None:
        self.target, self.about = target, json.loads(json.dumps(about))
        self.skipped: dict[str, str] = {}
        path = target / JOURNAL
        if not path.is_file():
            if begun:
                raise UserError(f"{target} holds episodes that no conversion wrote. Give another folder.")
            self._write()
            return
        kept = _load(path)
        _compare(kept, self.about, target)
        self.skipped = dict(kept["skipped"])

    def skip(self, episode: int, why: str) -> None:
        """Remember that an episode is left out, before anything behind it is written."""
        self.skipped[str(episode)] = why
        self._write()

    def publish(self, record: dict[str, Any]) -> None:
        """The conversion is done: leave ``record`` in the set, and no journal."""
        with explained(self.target):
            write_json(self.target / RECORD, record)
            (self.target / JOURNAL).unlink()
            sync_folder(self.target)

    def _write(self) -> None:
        with explained(self.target):
            write_json(self.target / JOURNAL, {**self.about, "skipped": self.skipped})
            sync_folder(self.target)


def _already_there(target: Path, about: dict[str, Any], say: Callable[[str], None]) -> Conversion:
    record = _load(target / RECORD)
    _compare(record, json.loads(json.dumps(about)), target)
    (target / JOURNAL).unlink(missing_ok=True)  # killed between the two
    say(f"It is there already. {_summary(record['episodes'], record['skipped'], target)}")
    return Conversion(target, record["episodes"], record["skipped"], record["not kept"])


def _load(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
        content["skipped"].items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged: {error!r}. Remove {path.parent} and convert again.") from error
    return content


def _compare(kept: dict[str, Any], about: dict[str, Any], target: Path) -> None:
    different = sorted(key for key in about if kept.get(key) != about[key])
    if different:
        raise UserError(
            f"{target} holds another conversion: {', '.join(different)} was {_brief(kept.get(different[0]))}, now "
            f"{_brief(about[different[0]])}. Give another folder, or remove that one."
        )


def _refuse_inside(source: Path, target: Path) -> None:
    here, there = source.resolve(), target.resolve()
    if here == there or here in there.parents or there in here.parents:
        raise UserError(f"to={target} and from={source} lie in each other. Give a folder of its own.")


def _refuse_foreign(target: Path) -> None:
    """Whatever is visible without a journal was put there by somebody else. Writers begin with hidden files."""
    with explained(target):
        if target.exists() and not target.is_dir():
            raise UserError(f"{target} is a file. Expected a new or empty folder to write to.")
        found = sorted(path.name for path in target.iterdir()) if target.is_dir() else []
    visible = [name for name in found if not name.startswith(".")]
    if visible and JOURNAL not in found:
        raise UserError(
            f"{target} already holds something ({', '.join(visible[:3])}), and nothing is overwritten. Give a new or "
            "empty folder."
        )


def _files(reader: EpisodeReader) -> str:
    """A hash of the source's files by name and size."""
    return _digest((name, path.stat().st_size if path.exists() else None) for name, path in reader.sources().items())


def _times(reader: EpisodeReader) -> str:
    """A hash of when they were changed: an interrupted conversion must not go on with other contents."""
    return _digest(
        (name, path.stat().st_mtime_ns if path.exists() else None) for name, path in reader.sources().items()
    )


def _digest(rows: Iterator[tuple[str, int | None]]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(repr(row).encode())
    return digest.hexdigest()


def _nothing_left(source: Path, skipped: dict[str, str]) -> str:
    first = f" The first: {next(iter(skipped.values()))}" if skipped else ""
    return f"{source} has no episode to convert: {len(skipped)} of {len(skipped)} are damaged.{first}"


def _summary(episodes: int, skipped: dict[str, str], target: Path) -> str:
    left_out = f", {len(skipped)} damaged ones left out (see {RECORD})" if skipped else ""
    return f"{episodes} episodes{left_out}: {target}"


def _brief(value: object) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
