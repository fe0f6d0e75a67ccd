"""A recipe as YAML with comments."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from vla_ft.data.formats.base import EpisodeReader
from vla_ft.data.sample import DatasetDescription
from vla_ft.data.statistics import DatasetStatistics

_PLAIN = re.compile(r"[A-Za-z/][\w./-]*")
_NOT_TEXT = {"null", "true", "false", "yes", "no", "on", "off", "y", "n", "nan", "inf"}
_WIDTH = 116


def recipe_text(
    values: Mapping[str, Any],
    reader: EpisodeReader,
    statistics: DatasetStatistics,
    kept: Sequence[str],
    notes: Sequence[str],
) -> str:
    """The file: what the data is, what could not be known, then ``values`` with remarks."""
    about = reader.description
    lines = [f"# {values['policy']} on {about.name}: drafted from the data; every value can be changed."]
    lines += _comment("Data", _facts(reader, statistics, kept))
    lines += _comment("Not known from the files (say it, or check that it does not matter)", notes or ["nothing"])
    return "\n".join([*lines, *_body(values, _remarks(about, values))]) + "\n"


def plain_text(values: Mapping[str, Any], head: str, remarks: Mapping[str, str]) -> str:
    """The file: a comment, then ``values`` with ``remarks`` by dotted key."""
    return "\n".join([*(f"# {line}" for line in _wrapped(head, _WIDTH)), *_body(values, remarks)]) + "\n"


def _body(values: Mapping[str, Any], remarks: Mapping[str, str]) -> list[str]:
    lines: list[str] = []
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            lines.append(f"{key}:")
            for name, inner in value.items():
                lines += _line(name, inner, remarks.get(f"{key}.{name}", ""), indent=2)
        elif value != {}:
            lines += _line(key, value, remarks.get(key, ""))
    return lines


def _facts(reader: EpisodeReader, statistics: DatasetStatistics, kept: Sequence[str]) -> list[str]:
    about = reader.description
    rate = f" at {about.fps:g} Hz" if about.fps else ""
    facts = [f"{len(reader.lengths):,} episodes, {int(reader.lengths.sum()):,} steps{rate}"]
    facts.append("cameras: " + (", ".join(f"{n} {h}x{w}" for n, (h, w) in about.cameras.items()) or "none"))
    facts.append(f"action: {about.action_kind}, {about.action_mode}; " + _dimensions(about, "action"))
    facts.append("proprio: " + (_dimensions(about, "proprio") if about.proprio_dim else "none"))
    facts.append(f"gripper: {about.gripper or 'unknown'}")
    files = ", ".join(kept) or "not kept, the cache cannot be written"
    facts.append(f"statistics of the {statistics.episodes} training episodes: {files}")
    return facts


def _dimensions(about: DatasetDescription, part: str) -> str:
    pairs = zip(getattr(about, f"{part}_names"), getattr(about, f"{part}_units"), strict=True)
    return ", ".join(f"{name} ({unit})" if unit not in ("", "unknown") else name for name, unit in pairs)


def _remarks(about: DatasetDescription, values: Mapping[str, Any]) -> dict[str, str]:
    model = values.get("model") or {}
    chunk, keeps = model.get("chunk_size"), "" if isinstance(model.get("image_size"), int) else "; null keeps that"
    sizes = ", ".join(sorted({f"{h}x{w}" for h, w in about.cameras.values()}))
    return {
        "data.fps": "assumed",
        "model.chunk_size": f"{chunk / about.fps:.3g} s" if chunk and about.fps else "the rates differ",
        "model.image_size": f"recorded: {sizes}{keeps}",
        "data.validation_fraction": "of the episodes",
        "batch.per_device": "a guess: lower it where memory runs out, and raise accumulation by as much",
        "steps": "a guess: the published length",
    }


def _comment(title: str, items: Sequence[str]) -> list[str]:
    lines = [f"# {title}:"]
    for item in items:
        first = True
        for line in _wrapped(item, _WIDTH - 4):
            lines.append(("# - " if first else "#   ") + line)
            first = False
    return lines


def _wrapped(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + 1 + len(word) > width and lines[-1]:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def _line(key: str, value: Any, remark: str, indent: int = 0) -> list[str]:
    text = f"{' ' * indent}{key}: {_inline(value)}"
    if remark and len(text) + len(remark) + 4 > _WIDTH:
        return [f"{' ' * indent}# {remark}", text]
    return [f"{text}  # {remark}" if remark else text]


def _inline(value: Any) -> str:
    """A value in YAML's flow style; every text that could be taken for something else is quoted."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_inline(str(k))}: {_inline(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_inline, value)) + "]"
    if isinstance(value, str):
        return value if _PLAIN.fullmatch(value) and value.lower() not in _NOT_TEXT else json.dumps(value)
    if isinstance(value, float) and math.isfinite(value):
        text = repr(value)
        return re.sub(r"^(-?\d+)e", r"\1.0e", text)  # YAML 1.1 takes 1e-05 for text
    return json.dumps(value)
