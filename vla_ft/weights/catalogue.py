"""What can be fetched by name: reads ``catalogue.toml``, and makes an entry of ``owner/name@revision``."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Literal

import tomllib

from vla_ft.errors import UserError, unknown

CATALOGUE = Path(__file__).with_name("catalogue.toml")
DATA_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".json", ".model", ".txt")
"""Weights, configurations, tokenizers. Nothing else is downloaded, above all no program."""
DATASET_SUFFIXES = (".json", ".jsonl", ".parquet", ".mp4")
"""What a LeRobot dataset consists of."""
USUAL_FILES = ("*.safetensors", "*.json", "*.model", "merges.txt", "vocab.txt")
"""What is taken of a repository that the catalogue does not know."""
RECORD = "fetched.json"
"""Lies beside the files of a download and says what they are (``places.py``); no file fetched takes its name."""
_COMMIT = re.compile(r"[0-9a-f]{40}")
_REPOSITORY = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True)
class Known:
    """What the catalogue pins of a file."""

    bytes: int | None = None
    sha256: str | None = None
    """The whole hash, or the beginning of it."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Published weights, or a dataset: where they come from, which files, and what is known of them."""

    name: str
    about: str
    license: str
    source: str
    files: tuple[str, ...]
    """Names or patterns of the files that are taken."""
    load: str = ""
    """The file that the name stands for; empty is the folder."""
    repository: str | None = None
    revision: str | None = None
    """A commit is enforced; a branch or None (``main``) is trusted on first use."""
    url: str | None = None
    by_hand: str | None = None
    gated: bool = False
    gigabytes: float | None = None
    unverified: str | None = None
    known: Mapping[str, Known] = field(default_factory=dict)
    kind: Literal["model", "dataset"] = "model"
    """What the hub calls it."""

    @property
    def words(self) -> str:
        """The beginning of a sentence about it."""
        return f"The dataset '{self.name}' is" if self.kind == "dataset" else f"The weights '{self.name}' are"

    @property
    def command(self) -> str:
        """What brings it here."""
        return f"vla-ft fetch {'dataset ' if self.kind == 'dataset' else ''}{self.name}"

    @property
    def pinned(self) -> bool:
        """Whether what is fetched is fixed before the first fetch: by a commit, or by the whole hash of its file."""
        if self.repository is not None:
            return self.revision is not None and _COMMIT.fullmatch(self.revision) is not None
        return self.url is not None and all(len(known.sha256 or "") == 64 for known in self.known.values())

    @property
    def origin(self) -> str:
        """Where it comes from, in words."""
        return self.repository or self.url or self.by_hand or ""

    @property
    def page(self) -> str:
        """The page to accept a licence on."""
        return f"https://huggingface.co/{'datasets/' if self.kind == 'dataset' else ''}{self.repository}"

    @property
    def expected_bytes(self) -> int | None:
        """Size to expect before anything was asked, or None."""
        if self.gigabytes is not None:
            return int(self.gigabytes * 1e9)
        return sum(known.bytes or 0 for known in self.known.values()) or None

    def wants(self, path: str) -> bool:
        """Whether a file of the repository is taken."""
        suffixes = DATASET_SUFFIXES if self.kind == "dataset" else DATA_SUFFIXES
        return is_data(path, suffixes) and any(fnmatchcase(path, pattern) for pattern in self.files)


def is_repository(text: str) -> bool:
    """Whether a text has the form ``owner/name[@revision]``."""
    return _REPOSITORY.fullmatch(text) is not None


def parse_repository(text: str) -> tuple[str, str | None] | None:
    """Repository and revision of ``owner/name[@revision]``, or None for a text of another form."""
    match = _REPOSITORY.fullmatch(text)
    return None if match is None else (match["repository"], match["revision"])


def is_data(path: str, suffixes: tuple[str, ...] = DATA_SUFFIXES) -> bool:
    """Whether a file's name is one of weights, configuration or tokenizer (or as told), inside its folder.

    The folder's own record is none of them.
    """
    parts = PurePosixPath(path)
    inside = not parts.is_absolute() and ".." not in parts.parts
    return inside and parts.suffix in suffixes and parts.parts[0] != RECORD


@functools.cache
def load_catalogue() -> dict[str, Entry]:
    """The entries by name."""
    tables = tomllib.loads(CATALOGUE.read_text(encoding="utf-8"))
    return {name: _entry(name, table) for name, table in tables.items()}


def find_entry(name: str, files: Sequence[str] = ()) -> Entry:
    """The catalogue's entry by its name or repository, or one of ``owner/name[@revision]``. Raises UserError.

    ``files`` are patterns that replace the usual ones of a repository, which then is one that the catalogue does not
    know.
    """
    known = load_catalogue()
    if name in known:
        if files:
            raise UserError(
                f"The catalogue says which files '{name}' consists of. For others give the repository: "
                f"vla-ft fetch {known[name].origin} files={','.join(files)}."
            )
        return known[name]
    published = [entry for entry in known.values() if entry.repository == name and not files]
    if len(published) > 1:
        names = ", ".join(entry.name for entry in published)
        raise UserError(f"{name} holds several weights: {names}. Give one of these names, or files=PATTERN,PATTERN.")
    if published:
        return published[0]
    match = _REPOSITORY.fullmatch(name)
    if match is None:
        raise unknown("weights", name, known)
    wrong = [pattern for pattern in files if not is_data(pattern)]
    if wrong:
        raise UserError(f"files={','.join(wrong)} is not taken: only {', '.join(DATA_SUFFIXES)}, never programs.")
    return Entry(
        name=name,
        about="a repository that the catalogue does not know",
        license="see its page",
        source="named by you",
        files=tuple(files) or USUAL_FILES,
        repository=match["repository"],
        revision=match["revision"],
    )


def folder_name(entry: Entry) -> str:
    """The folder of an entry under the weights' root."""
    return f"{'datasets--' if entry.kind == 'dataset' else ''}{entry.name.replace('/', '--')}"


def _entry(name: str, table: dict) -> Entry:
    known = {file: Known(**about) for file, about in table.pop("known", {}).items()}
    return Entry(name=name, files=tuple(table.pop("files")), known=known, **table)
