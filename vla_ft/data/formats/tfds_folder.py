"""Where a TFDS dataset lies: its version folder, its splits, and the shards of each."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_ft.errors import UserError, unknown

INFO, FEATURES = "dataset_info.json", "features.json"
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
_SPLIT = re.compile(r"[\w-]+")
_VERSION = re.compile(r"\d+\.\d+\.\d+")


@dataclass(frozen=True, kw_only=True)
class Split:
    """Shards in order, and how many records each has to hold (None where the description does not say)."""

    name: str
    shards: tuple[Path, ...]
    records: tuple[int, ...] | None


@dataclass(frozen=True, kw_only=True)
class TfdsFolder:
    """A version folder: ``name`` and ``version`` as its ``dataset_info.json`` says them."""

    path: Path
    name: str
    version: str
    splits: dict[str, Split]

    def select(self, wanted: str) -> list[Split]:
        """Splits of ``wanted``: a name, several joined by ``+``, or ``all``.

        Raises UserError for an unknown one and where shards are missing.
        """
        names = list(self.splits) if wanted == "all" else wanted.split("+")
        for name in names:
            if name not in self.splits:
                raise unknown(f"split of {self.path}", name, ("all", *self.splits))
        chosen = [self.splits[name] for name in dict.fromkeys(names)]
        for split in chosen:
            missing = [shard.name for shard in split.shards if not shard.is_file()]
            if missing:
                raise UserError(
                    f"{self.path} lacks {len(missing)} of the {len(split.shards)} shards of split '{split.name}', the "
                    f"first being {missing[0]}. Download the rest; a part of a split is not read in silence."
                )
        return chosen


def is_tfds(path: Path) -> bool:
    """Whether a folder is a TFDS dataset: a version folder, or one above it."""
    return path.is_dir() and any(_below(path, name, depth) for depth in range(3) for name in (INFO, "*.tfrecord-*"))


def open_folder(path: Path) -> TfdsFolder:
    """Find the version folder at or below ``path`` (the newest version of one dataset and configuration) and read it.

    Raises UserError when there is none, when several datasets or configurations lie there, or when it is damaged.
    """
    found = _version_folder(path)
    info = _read_info(found / INFO)
    if info.get("fileFormat", "tfrecord") != "tfrecord":
        raise UserError(
            f"{found} is in file format '{info['fileFormat']}', expected tfrecord. Download or convert it as tfrecord "
            "(tfds: file_format='tfrecord')."
        )
    try:
        name = str(info["name"])
        splits = {one["name"]: _split(found, name, one) for one in info.get("splits", ())}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{found / INFO} lists no splits ({type(error).__name__}: {error}). Copy it again from where the dataset "
            "came."
        ) from error
    if not splits:
        raise UserError(f"{found / INFO} lists no splits. Expected the file of a dataset that was prepared to its end.")
    return TfdsFolder(path=found, name=name, version=str(info.get("version", "")), splits=splits)


def _version_folder(path: Path) -> Path:
    for depth in range(3):
        found = [info.parent for info in _below(path, INFO, depth)]
        versions = all(_VERSION.fullmatch(f.name) for f in found)
        several = sorted({f.parent for f in found} if versions else found)
        if depth and len(several) > 1:
            raise UserError(
                f"{path} holds several datasets or configurations: {', '.join(p.name for p in several[:8])}. Point "
                f"data.path to one, such as {several[0]}."
            )
        if found:
            return max(found, key=lambda f: [int(n) for n in f.name.split(".")] if versions else [])
    seen = sorted(p.name for p in path.iterdir())[:5] if path.is_dir() else []
    raise UserError(
        f"No RLDS dataset at {path}: found {', '.join(seen) or 'nothing'}, expected <version>/{INFO} with its shards. "
        "Point data.path to the dataset's folder, or to one of its versions."
    )


def _below(path: Path, name: str, depth: int) -> list[Path]:
    """Files ``depth`` folders below ``path``. Hidden folders are TFDS's own, or a writer's that has not finished."""
    # [!.] is what keeps the hidden ones out.
    return list(path.glob("/".join([*["[!.]*"] * depth, name])))


def _read_info(path: Path) -> dict[str, Any]:
    try:
        info = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}). Copy it again from where the dataset came.") from error
    if not isinstance(info, dict):
        raise UserError(f"{path} holds a {type(info).__name__}, expected what TFDS writes there. Copy it again.")
    return info


def _split(folder: Path, dataset: str, info: dict[str, Any]) -> Split:
    lengths = [int(n) for n in info.get("shardLengths", ())]
    count = len(lengths) or int(info.get("numShards", 0))
    template = info.get("filepathTemplate") or _TEMPLATE
    if not _SPLIT.fullmatch(info["name"]):
        raise ValueError(f"a split named {info['name']!r}")
    shards = tuple(folder / _shard_name(template, dataset, info["name"], i, count) for i in range(count))
    return Split(name=str(info["name"]), shards=shards, records=tuple(lengths) or None)


def _shard_name(template: str, dataset: str, split: str, index: int, count: int) -> str:
    parts = {
        "{DATASET}": dataset,
        "{SPLIT}": split,
        "{FILEFORMAT}": "tfrecord",
        "{SHARD_X_OF_Y}": f"{index:05d}-of-{count:05d}",
        "{SHARD_INDEX}": f"{index:05d}",
        "{NUM_SHARDS}": f"{count:05d}",
    }
    for placeholder, value in parts.items():
        template = template.replace(placeholder, value)
    if "/" in template or template.startswith("."):
        raise ValueError(f"shard names '{template}'")
    return template
