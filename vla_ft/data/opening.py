"""From what a configuration says about data to readers: standardised, resized, mixed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from vla_ft.data.formats.base import EpisodeReader
from vla_ft.data.formats.registry import open_dataset
from vla_ft.data.mixes import MIXES
from vla_ft.data.mixture import MixtureReader
from vla_ft.data.registration import as_entries, is_registration, read_registration
from vla_ft.data.standardize import STANDARDIZATIONS, find_standardization
from vla_ft.data.standardize.reader import StandardizedReader
from vla_ft.data.wrapping import NamedReader, ResizedReader
from vla_ft.errors import UserError, unknown

NOT_STANDARDIZED = "none"
"""Columns as the reader gives them."""
Positive = Annotated[int, Field(gt=0)]


@dataclass(frozen=True, kw_only=True)
class ReaderOptions:
    """What single formats take; options that a format does not know are refused."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    fps: float | None = None
    """Steps per second when the files do not say; RDT calls it the control frequency."""
    sim: bool | None = None
    """ALOHA files without the attribute ``sim``: whether actions begin with their observation (true, simulation) or one
    step early (false, real robots)."""
    instruction: str | None = None
    """Language instruction of episodes that carry none."""
    jpeg_channels: Literal["rgb", "bgr"] | None = None
    """Colour order of encoded images; ``bgr`` for recorders that gave RGB frames to OpenCV."""
    split: str | None = None
    """Which part of a dataset that has named parts (RLDS: ``train``, ``val``, ``train+val``, ``all``)."""
    action: tuple[str, ...] | None = None
    """Columns that are joined to the action vector, in formats whose columns have names; null takes the usual one."""
    proprio: tuple[str, ...] | None = None
    """The same for proprioception."""
    action_kind: Literal["joint", "end_effector"] | None = None
    """What an action is, for formats that do not record it; for the record, nothing is converted."""
    action_mode: Literal["absolute", "delta"] | None = None
    """Whether actions are targets or changes, for formats that do not record it."""
    allow_pickle: bool | None = None
    """npy sets of pickled arrays: have them read, nothing in them is executed; null and false refuse them."""

    def reader_options(self) -> dict[str, Any]:
        """The reader's own options that were given."""
        names = (
            "fps", "sim", "instruction", "jpeg_channels", "split", "action", "proprio", "action_kind", "action_mode",
            "allow_pickle",
        )  # fmt: skip
        options = {name: getattr(self, name) for name in names}
        return {name: value for name, value in options.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class ReadConfig(ReaderOptions):
    """How demonstrations are read, whatever they are read for."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    cameras: tuple[str, ...] | None = None
    """Cameras to use, in the policy's order; null takes all of the dataset."""
    image_size: tuple[Positive, Positive] | None = None
    """(height, width) that every camera is resized to, as published RLDS loaders do (Lanczos3); null keeps sizes."""


@dataclass(frozen=True, kw_only=True)
class MixEntry(ReaderOptions):
    """One dataset of a mix; its own options go before those of ``data``, which are for all."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    path: str | None = None
    """Its place: absolute, below ``data.path``, or ``hub:owner/name[@revision]``; null takes its name in the mix."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Multiplies its number of steps: one of weight 2 is seen twice where one of weight 1 is seen once."""
    standardize: str | None = None
    """How raw RLDS columns are read: a published dataset's name, ``none`` (columns as the reader gives them), or null
    for the published form of a dataset that has one, by its name in the mix."""
    format: str = "auto"


def find_mix(choice: str | Mapping[str, MixEntry]) -> dict[str, MixEntry]:
    """The datasets of a mix: a published one by name, a single published dataset, a folder of RDT's three registration
    files, or one's own. Raises UserError."""
    if not isinstance(choice, str):
        if not choice:
            raise UserError("data.mix names no dataset. Give at least one, such as data.mix.mine.path=FOLDER.")
        return dict(choice)
    if choice in MIXES:
        return {name: MixEntry(weight=weight) for name, weight in MIXES[choice].items()}
    if choice in STANDARDIZATIONS:  # the published loaders take any other name for a mix of that dataset alone
        return {choice: MixEntry()}
    if is_registration(Path(choice).expanduser()):
        registered = as_entries(read_registration(Path(choice).expanduser()))
        return {name: MixEntry(**entry) for name, entry in registered.items()}
    raise unknown("mix", choice, (*MIXES, *STANDARDIZATIONS))


def open_mixture(
    root: Path,
    entries: Mapping[str, MixEntry],
    cameras: Sequence[str] | None,
    image_size: tuple[int, int] | None,
    options: Mapping[str, Any],
) -> MixtureReader:
    """A reader over all datasets of a mix below ``root``. Raises UserError naming every one that is not there."""
    missing = [name for name, entry in entries.items() if not (root / (entry.path or name)).exists()]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(entries)} datasets of the mix are not in {root}: {', '.join(missing)}. Expected a "
            "folder of each; check data.path, or name others with data.mix.<name>.path."
        )
    parts = {
        name: open_part(root / (entry.path or name), name, entry, cameras, image_size, options)
        for name, entry in entries.items()
    }
    return MixtureReader(parts, {name: entry.weight for name, entry in entries.items()})


def open_part(
    path: Path,
    name: str,
    entry: MixEntry,
    cameras: Sequence[str] | None,
    image_size: tuple[int, int] | None,
    options: Mapping[str, Any],
) -> EpisodeReader:
    """One dataset of a mix at ``path``, in standard form where it has one. Raises UserError."""
    wanted = entry.standardize or (name if name in STANDARDIZATIONS else NOT_STANDARDIZED)
    reader = open_read(path, entry.format, wanted, cameras, image_size, {**options, **entry.reader_options()})
    return NamedReader(reader, name)


def open_read(
    path: Path,
    format: str,
    standardize: str,
    cameras: Sequence[str] | None,
    image_size: tuple[int, int] | None,
    options: Mapping[str, Any],
) -> EpisodeReader:
    """The dataset at ``path``, standardised as ``standardize`` says (``none``: as it is stored), resized.

    Raises UserError for a standardisation that is unknown or does not fit, and as ``open_dataset`` does.
    """
    if standardize == NOT_STANDARDIZED:
        return resized_reader(open_dataset(path, format=format, cameras=cameras, **options), image_size)
    wanted = find_standardization(standardize)
    # The raw columns are all that is read, so the reader needs no idea of which are the action.
    given = {"fps": wanted.fps, **options, "action": (), "proprio": ()}
    raw = open_dataset(path, format="rlds" if format == "auto" else format, **given)
    reader = StandardizedReader(raw, wanted, cameras, str(options.get("instruction", "")))
    reader.description = dataclasses.replace(reader.description, fps=float(given["fps"]))
    return resized_reader(reader, image_size)


def resized_reader(reader: EpisodeReader, size: tuple[int, int] | None) -> EpisodeReader:
    """The reader with every camera at ``size``, or as it is."""
    return reader if size is None else ResizedReader(reader, (size[0], size[1]))
