"""Where fetched weights lie, and the record beside them: what they are, and the hash of every file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from vla_ft.errors import UserError, unknown
from vla_ft.weights.catalogue import (
    DATA_SUFFIXES,
    DATASET_SUFFIXES,
    RECORD,
    Entry,
    find_entry,
    folder_name,
    is_data,
    is_repository,
    load_catalogue,
)

FORMAT = 1
_PATH_SIGNS = ("/", "\\", ".safetensors", ".pt", ".pth", ".ckpt", ".bin")


@dataclass(frozen=True)
class FileRecord:
    """A file of a download. A hash may be known in part before it was downloaded, and is whole afterwards."""

    bytes: int
    sha256: str | None = None
    blob: str | None = None
    """Git's hash (SHA-1 over a header and the content), which is what a hub gives for small files."""


@dataclass(frozen=True)
class Record:
    """What a folder of fetched weights holds; written before the first byte arrives, and pins what follows."""

    name: str
    origin: str
    revision: str | None
    license: str
    load: str
    trust: str
    """``pinned`` by the catalogue, or ``first use``."""
    files: Mapping[str, FileRecord]
    complete: bool = False

    @property
    def bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.bytes for file in self.files.values())

    def write(self, folder: Path) -> None:
        """Replace the folder's record in one step."""
        beside = folder / f"{RECORD}.new"
        beside.write_text(json.dumps({"format": FORMAT, **asdict(self)}, indent=1))
        beside.replace(folder / RECORD)


def weights_root() -> Path:
    """The folder of all fetched weights: ``VLA_FT_WEIGHTS``, or ``vla_ft/weights`` in the user's cache."""
    if named := os.environ.get("VLA_FT_WEIGHTS"):
        return Path(named).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "vla_ft" / "weights"


def place_of(entry: Entry) -> Path:
    """Where an entry is, or would be."""
    return weights_root() / folder_name(entry)


def read_record(folder: Path) -> Record | None:
    """The record of a folder, or None when it has none. Raises UserError when it cannot be read."""
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text())
        if (seen := values.pop("format")) != FORMAT:
            raise ValueError(f"format {seen}, this version reads {FORMAT}")
        record = Record(**values)
        strange = [
            name
            for name in (*record.files, *filter(None, [record.load]))
            if not is_data(name, (*DATA_SUFFIXES, *DATASET_SUFFIXES))
        ]
        if strange:  # a record may come from elsewhere, and what it lists is read, replaced and removed
            raise ValueError(f"it lists '{strange[0]}', which is no file of weights inside this folder")
        return replace(record, files={name: FileRecord(**about) for name, about in values["files"].items()})
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}). Remove the folder and fetch it again.") from error


def is_here(entry: Entry) -> bool:
    """Whether an entry was fetched and all its files are there (by size)."""
    record = read_record(place_of(entry))
    return record is not None and record.complete and not _lost(place_of(entry), record)


def resolve(name_or_path: str | Path) -> Path:
    """The file or folder that a path or the name of fetched weights stands for. Nothing is downloaded.

    A path that exists goes first; of a folder that ``vla-ft fetch`` filled, the file to load is meant. Raises UserError
    for a name that was not fetched (saying how), for one that nobody knows, and for a download that is not whole.
    """
    text = str(name_or_path)
    path = Path(name_or_path).expanduser()
    if path.exists():
        record = read_record(path) if path.is_dir() else None
        return path if record is None else _loadable(path, record, f"vla-ft fetch {record.name} to={path}")
    entry = _fetchable(text)
    if entry is None:
        if any(sign in text for sign in _PATH_SIGNS):
            return path  # whoever opens it says that it is not there
        raise UserError(f"There is no file '{text}' here. {unknown('weights', text, load_catalogue())}")
    return resolve_entry(entry)


def resolve_entry(entry: Entry) -> Path:
    """The file or folder that a fetched entry stands for. Raises UserError when it was not fetched or is not whole."""
    folder = place_of(entry)
    record = read_record(folder)
    if record is None:
        raise UserError(f"{entry.words} not on this machine (looked in {folder}). Run `{entry.command}`.")
    return _loadable(folder, record, entry.command)


def _fetchable(text: str) -> Entry | None:
    """What a text means if it is no path: an entry of the catalogue, or a repository that was fetched."""
    entries = load_catalogue()
    if text in entries or any(entry.repository == text for entry in entries.values()):
        return find_entry(text)
    if is_repository(text) and not text.startswith(".") and not text.endswith(_PATH_SIGNS):
        entry = find_entry(text)
        return entry if place_of(entry).is_dir() else None
    return None


def _loadable(folder: Path, record: Record, command: str) -> Path:
    lost = _lost(folder, record)
    if not record.complete or lost:
        reason = f"{lost[0]} is missing or has another size" if record.complete else "the download was interrupted"
        raise UserError(f"'{record.name}' in {folder} is not whole: {reason}. Run `{command}`.")
    return folder / record.load if record.load else folder


def _lost(folder: Path, record: Record) -> list[str]:
    """Files that are not there in their size."""
    return [
        name
        for name, about in record.files.items()
        if not (folder / name).is_file() or (folder / name).stat().st_size != about.bytes
    ]
