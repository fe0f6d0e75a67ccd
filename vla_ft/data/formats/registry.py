"""Format names, and how a format is recognised. A new format is a reader, a writer, and a line here for each."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vla_ft.data.formats.aloha_hdf5 import AlohaHdf5Reader
from vla_ft.data.formats.aloha_writer import AlohaWriter
from vla_ft.data.formats.base import DatasetWriter, EpisodeReader
from vla_ft.data.formats.lerobot import LeRobotReader
from vla_ft.data.formats.lerobot_writer import LeRobotWriter
from vla_ft.data.formats.npy import NpyReader
from vla_ft.data.formats.npy_layout import is_npy
from vla_ft.data.formats.npy_writer import NpyWriter
from vla_ft.data.formats.npz import NpzReader, is_npz
from vla_ft.data.formats.npz_writer import NpzWriter
from vla_ft.data.formats.rlds import RldsReader
from vla_ft.data.formats.rlds_writer import RldsWriter
from vla_ft.data.formats.tfds_folder import is_tfds
from vla_ft.data.sample import DatasetDescription
from vla_ft.errors import UserError, unknown

READERS: dict[str, type[EpisodeReader]] = {
    "aloha_hdf5": AlohaHdf5Reader,
    "lerobot": LeRobotReader,
    "rlds": RldsReader,
    "npz": NpzReader,
    "npy": NpyReader,
}
"""Format name -> reader, constructed as ``Reader(path, cameras=..., **options)``."""

WRITERS: dict[str, tuple[type[DatasetWriter], dict[str, Any]]] = {
    "lerobot": (LeRobotWriter, {"version": "v3.0"}),
    "lerobot21": (LeRobotWriter, {"version": "v2.1"}),
    "aloha": (AlohaWriter, {}),
    "npz": (NpzWriter, {}),
    "npy": (NpyWriter, {}),
    "rlds": (RldsWriter, {}),
}
"""Format name -> writer and the options that make it that format (see ``DatasetWriter``)."""

_NOT_TYPED = ("name", "cache", "open_files")
"""Options of readers that code gives and no command line takes."""

SIGNS: dict[str, Callable[[Path], bool]] = {
    "aloha_hdf5": lambda p: (
        p.suffix == ".hdf5"
        if p.is_file()
        else any(path for pattern in ("episode_*.hdf5", "*/episode_*.hdf5") for path in p.glob(pattern))
    ),
    "npy": is_npy,
    "lerobot": lambda p: p.is_dir() and (p / "meta" / "info.json").is_file(),
    "rlds": is_tfds,
    "npz": is_npz,
}
"""Format name -> whether a path looks like it. Formats without a reader are told by name instead of misread."""


def open_dataset(
    path: Path | str,
    format: str = "auto",
    cameras: Sequence[str] | None = None,
    *,
    tolerant: bool = False,
    **options: Any,
) -> EpisodeReader:
    """Open a dataset for reading; ``auto`` recognises its format by what lies there.

    ``options`` are the reader's own keyword arguments. ``tolerant``: damage of single episodes is told when they are
    read, in formats that would refuse the whole set for it. Raises UserError for a path that is missing, a format that
    is unknown or cannot be read, an unknown option or camera, and whatever the reader finds wrong.
    """
    location = Path(path)
    name = format_of(location, format)
    if name not in READERS:
        raise UserError(
            f"{location} is a dataset in format '{name}', which this version cannot read yet. "
            f"It reads: {', '.join(READERS)}."
        )
    parameters = inspect.signature(READERS[name]).parameters
    known = [p for p in parameters if p not in ("path", "cameras", "tolerant")]
    for option in options:
        if option not in known:
            typed = [p for p in known if p not in _NOT_TYPED]
            raise unknown(f"option of format {name}", option, typed)
    if tolerant and "tolerant" in parameters:
        options["tolerant"] = True
    return READERS[name](location, cameras=cameras, **options)  # type: ignore[call-arg]


def format_of(path: Path, format: str = "auto") -> str:
    """The format's name; ``auto`` recognises it by what lies at ``path``. Raises UserError."""
    if format != "auto" and format not in READERS and format not in SIGNS:
        raise unknown("dataset format", format, ("auto", *READERS))
    if not path.exists():
        start = "" if path.is_absolute() else f" A relative path starts at {Path.cwd()}: give an absolute one."
        raise UserError(
            f"Dataset not found: no dataset at {path}. Expected a folder of demonstrations; check data.path.{start}"
        )
    return _recognise(path) if format == "auto" else format


def find_writer(format: str) -> tuple[type[DatasetWriter], dict[str, Any]]:
    """The entry of ``WRITERS``. Raises UserError."""
    if format not in WRITERS:
        raise unknown("format to write", format, WRITERS)
    return WRITERS[format]


def open_writer(
    folder: Path | str, description: DatasetDescription, format: str, images: str | None = None, action_offset: int = 0
) -> DatasetWriter:
    """A writer into ``folder``, or one that goes on there.

    ``images``: how pictures are stored, by default as the format usually does. ``action_offset``: see
    ``EpisodeReader``; formats that cannot say it leave it out. Raises UserError for unknown names, and whatever the
    writer refuses.
    """
    kind, options = find_writer(format)
    if images is not None and images not in kind.IMAGES:
        raise unknown(f"way to store pictures in {format}", images, kind.IMAGES)
    given: dict[str, Any] = {} if images is None else {"images": images}
    if kind.HOLDS_OFFSET:
        given["action_offset"] = action_offset
    return kind(folder, description, **options, **given)  # type: ignore[call-arg]


def _recognise(path: Path) -> str:
    matches = [name for name, looks_like in SIGNS.items() if looks_like(path)]
    if "rlds" in matches and (matches == ["rlds"] or not any(path.glob("episode_*.hdf5"))):
        _refuse_parent(path)
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise UserError(f"{path} looks like {' and '.join(matches)}. Say which with data.format={matches[0]}.")
    found = sorted(p.name for p in path.iterdir())[:5] if path.is_dir() else [path.name]
    raise UserError(
        f"{path} looks like no known dataset: found {', '.join(found) or 'nothing'}, expected for instance "
        f"episode_<number>.hdf5 files. Check data.path, or say data.format={' or '.join(READERS)}."
    )


def _refuse_parent(path: Path) -> None:
    """RLDS is found some folders down; a folder that holds other sets too is their parent, and no dataset."""
    children = sorted(child for child in path.iterdir() if child.is_dir() and not child.name.startswith("."))
    found = {child.name: next((name for name, sign in SIGNS.items() if sign(child)), "") for child in children}
    if any(name not in ("", "rlds") for name in found.values()):
        sets = ", ".join(f"{child} ({name})" for child, name in found.items() if name)
        raise UserError(f"{path} holds several datasets: {sets}. Point data.path to one, or mix them with data.mix.")
