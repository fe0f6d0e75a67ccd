"""The headers of an ALOHA set, read once: lengths and instructions of all files, and each kind of header.

Kept in the cache folder under the names, sizes and times of the files, so that a set of 100,000 opens without opening
any of them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vla_ft.data.formats.aloha_layout import EpisodeHeader, EpisodePaths, inspect_episode, kind_of
from vla_ft.data.formats.damage import damage_sentence
from vla_ft.data.formats.kept import Stamp, cache_folder, keep_arrays, load_arrays, stamp
from vla_ft.errors import UserError, unknown

_GENERATION = 1  # raise it when headers are read differently


@dataclass(frozen=True, kw_only=True)
class HeaderTable:
    """By episode: ``lengths`` int64, ``kind`` int32 (place in ``kinds``, -1 for a file that cannot be read), ``text``
    int32 (place in ``texts``, the instructions). ``kinds``: the first header of each kind, in the order of the files.
    ``damage``: episode -> what is wrong with its file."""

    stamp: Stamp
    lengths: np.ndarray
    kind: np.ndarray
    text: np.ndarray
    kinds: list[EpisodeHeader]
    texts: list[str]
    damage: dict[int, str]


def open_table(paths: EpisodePaths, tolerant: bool) -> HeaderTable:
    """The table of a set, from the cache when it fits the files as they are.

    Raises UserError for the first file that cannot be read unless ``tolerant``, and when the disk fails, not a file.
    """
    found = stamp(paths.folder, paths.names)
    place = hashlib.sha256(str(paths.folder.resolve()).encode()).hexdigest()[:16]
    kept = cache_folder() / "aloha" / f"{place}-{_GENERATION}-{found.identity[:24]}.npz"
    table = _load(kept, paths, found)
    if table is None:
        table = _read(paths, found, tolerant)
        if found.settled:
            keep_arrays(kept, _arrays(table, paths))
            for other in kept.parent.glob(f"{place}-*.npz"):
                if other != kept:  # of the same folder, as it was before
                    other.unlink(missing_ok=True)
    if table.damage and not tolerant:
        raise UserError(next(iter(table.damage.values())))
    return table


def sound_kinds(
    table: HeaderTable, paths: EpisodePaths, cameras: Sequence[str] | None
) -> tuple[list[int], dict[int, str], list[str]]:
    """The kinds of header that are like most others, what is wrong with the rest (by episode), and the cameras that are
    expected of all: those asked for, else those that most files have.

    Raises UserError when nothing sound is left, and for a camera that no file has.
    """
    damage = dict(table.damage)
    if not table.kinds:
        raise UserError(f"None of the {len(paths)} episodes can be read. The first: {damage[0]}")
    many = np.bincount(table.kind[table.kind >= 0], minlength=len(table.kinds)).tolist()
    counts: Counter[str] = Counter()
    for header, number in zip(table.kinds, many, strict=True):
        counts.update(dict.fromkeys(header.cameras, number))
    for camera in cameras or ():
        if camera not in counts:
            raise unknown("camera", camera, counts)
    usual = [c for c, n in counts.items() if 2 * n > sum(many)]
    expected = usual if cameras is None else list(dict.fromkeys(cameras))
    alike: Counter[tuple[tuple[str, Any], ...]] = Counter()
    facts = [tuple(kind_of(header, expected).items()) for header in table.kinds]
    for fact, number in zip(facts, many, strict=True):
        alike[fact] += number
    common, share = alike.most_common(1)[0]
    for place, fact in enumerate(facts):
        for (what, value), (_, most) in zip(fact, common, strict=True):
            if value != most:
                many_have = f"{share} of the {len(paths)} episodes have {most}. Move it out of the set."
                for episode in np.flatnonzero(table.kind == place).tolist():
                    damage.setdefault(episode, f"{paths[episode]} has {what} {value}, but {many_have}")
    return [place for place, fact in enumerate(facts) if fact == common], damage, expected


def _read(paths: EpisodePaths, found: Stamp, tolerant: bool) -> HeaderTable:
    lengths, kind = np.zeros(len(paths), np.int64), np.full(len(paths), -1, np.int32)
    text = np.zeros(len(paths), np.int32)
    kinds: dict[str, tuple[int, EpisodeHeader]] = {}
    texts: dict[str, int] = {}
    damage: dict[int, str] = {}
    for place, path in enumerate(paths):
        try:
            header = inspect_episode(path)
        except UserError as error:
            if not tolerant:
                raise
            damage[place] = damage_sentence(error)
            continue
        lengths[place] = header.length
        kind[place] = kinds.setdefault(repr(_facts(header)), (len(kinds), header))[0]
        text[place] = texts.setdefault(header.instruction, len(texts))
    return HeaderTable(
        stamp=found, lengths=lengths, kind=kind, text=text,
        kinds=[header for _, header in kinds.values()], texts=list(texts), damage=damage,
    )  # fmt: skip


def _facts(header: EpisodeHeader) -> dict[str, Any]:
    """What the files of a kind have in common."""
    facts = dataclasses.asdict(header)
    return {key: value for key, value in facts.items() if key not in ("path", "length", "instruction")}


def _arrays(table: HeaderTable, paths: EpisodePaths) -> dict[str, np.ndarray]:
    book = {
        "kinds": [_facts(header) for header in table.kinds],
        "texts": table.texts,
        "damage": {str(place): why for place, why in table.damage.items()},
        "folder": str(paths.folder),
    }
    content = np.frombuffer(json.dumps(book).encode(), np.uint8)
    return {"lengths": table.lengths, "kind": table.kind, "text": table.text, "book": content}


def _load(path: Path, paths: EpisodePaths, found: Stamp) -> HeaderTable | None:
    arrays = load_arrays(path)
    if arrays is None:
        return None
    try:
        book = json.loads(arrays["book"].tobytes())
        lengths, kind, text = arrays["lengths"], arrays["kind"], arrays["text"]
        if not len(lengths) == len(kind) == len(text) == len(paths):
            return None
        if book["damage"] and book["folder"] != str(paths.folder):
            return None  # its sentences name the folder as it was called then
        kinds = [_header(facts, paths, kind, place) for place, facts in enumerate(book["kinds"])]
        damage = {int(place): str(why) for place, why in book["damage"].items()}
        return HeaderTable(
            stamp=found, lengths=lengths, kind=kind, text=text, kinds=kinds, texts=book["texts"], damage=damage
        )
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        return None


def _header(facts: dict[str, Any], paths: EpisodePaths, kind: np.ndarray, place: int) -> EpisodeHeader:
    cameras = {camera: None if size is None else (size[0], size[1]) for camera, size in facts["cameras"].items()}
    first = int(np.argmax(kind == place))
    return EpisodeHeader(**{**facts, "cameras": cameras}, path=paths[first], length=0, instruction="")
