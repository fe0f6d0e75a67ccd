"""``vla-ft embed-language``: the instructions of a dataset through T5, once; or embeddings made elsewhere."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field

from vla_ft.config import DataConfig
from vla_ft.data.formats.base import EpisodeReader
from vla_ft.devices import choose_device
from vla_ft.errors import UserError
from vla_ft.policies.rdt.embedding_files import read_embeddings
from vla_ft.policies.rdt.language import STAND_IN, EmbeddingStore, default_root
from vla_ft.policies.rdt.t5_encoder import Offload, StreamedT5
from vla_ft.policies.tensor_files import TORCH_SUFFIXES
from vla_ft.weights.catalogue import load_catalogue
from vla_ft.weights.datasets import local_dataset
from vla_ft.weights.places import read_record, resolve

_TYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
UNKNOWN_REVISION = "local"
"""Of an encoder that is not here: its embeddings are imported."""
_SAMPLED = 2**16


@dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """What ``vla-ft embed-language`` takes. At least one of ``data``, ``text`` and ``files``."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    data: DataConfig | None = None
    """``data.path=...`` and how it is read: all its instructions are embedded, with all their wordings."""
    text: str | None = None
    """One instruction, for a robot that is told something new."""
    files: str | None = None
    """``lang_embed_*.pt`` and others of the published scripts: a file, or a folder of them. Nothing is computed."""
    instruction: str | None = None
    """The text of a single bare tensor in ``files``."""
    encoder: str = "t5-v1_1-xxl"
    """Fetched weights by name, or a folder."""
    revision: str | None = None
    """By which embeddings are kept apart; null takes the fetched weights' own, or what a folder holds."""
    output: str | None = None
    """Folder of embeddings (``model.language.embeddings``); null takes the one in the user's cache."""
    offload: Offload = "disk"
    """Where blocks wait that do not compute: the weights file, host memory (``cpu``), or nowhere (``none``)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["bf16", "fp32"] = "bf16"
    """What is computed and kept; ``fp32`` is a revision of its own, ``...-fp32``."""
    batch: Annotated[int, Field(gt=0)] = 64

    def __post_init__(self) -> None:
        if self.data is None and self.text is None and self.files is None:
            raise UserError("Nothing to embed: give data.path=FOLDER, text='...' or files=FOLDER.")


def embed(config: EmbedConfig, say: Callable[[str], None], build: Callable[..., StreamedT5] = StreamedT5) -> int:
    """Embed what ``config`` names and is not there yet, and the empty instruction with it.

    Returns how many were added. Raises UserError.
    """
    if config.encoder == STAND_IN:
        raise UserError("encoder=random needs no embeddings: they are drawn when they are asked for.")
    name, revision = identity(config)
    store = EmbeddingStore(Path(config.output).expanduser() if config.output else default_root(), name, revision)
    added = 0
    if config.files is not None:
        for text, tokens in read_embeddings(Path(config.files), config.instruction):
            store.put(text, tokens)
            say(f"imported '{text}', {len(tokens)} tokens")
            added += 1
    wanted = set() if config.data is None else instructions_of(config.data.open(str(local_dataset(config.data.path))))
    if config.text is not None:
        wanted.add(config.text)
    if wanted:
        wanted.add("")  # dropped conditions, and episodes that say nothing
    texts = [text for text in sorted(wanted) if not store.has(text)]
    if texts:
        added += _compute(config, store, texts, say, build)
    say(f"{store.folder}: {sum(1 for _ in store.stored())} embeddings, {added} of them new")
    return added


def instructions_of(reader: EpisodeReader) -> set[str]:
    """Every wording of every episode's instruction."""
    return {text for e in range(len(reader.lengths)) for group in reader.instruction_variants(e) for text in group}


def identity(config: EmbedConfig) -> tuple[str, str]:
    """(encoder, revision) under which embeddings are kept: two encoders never share one.

    The catalogue's and the hub's weights have a revision; a folder of one's own has its ``fingerprint``. float32 is
    another revision than bfloat16, whose numbers are others.
    """
    path = Path(config.encoder).expanduser()
    name, revision = _of_folder(path) if path.is_dir() else (config.encoder, _of_name(config.encoder))
    return name, (config.revision or revision) + ("-fp32" if config.dtype == "fp32" else "")


def _of_folder(folder: Path) -> tuple[str, str]:
    record = read_record(folder)
    if record is not None:
        return record.name, record.revision or fingerprint(folder)
    return folder.resolve().name, fingerprint(folder)


def _of_name(name: str) -> str:
    entry = load_catalogue().get(name)
    if entry is not None and entry.revision:
        return entry.revision
    try:
        place = resolve(name)
    except UserError:  # importing needs no weights; computing says what is not here
        return UNKNOWN_REVISION
    return _of_folder(place)[1] if place.is_dir() else UNKNOWN_REVISION


def fingerprint(folder: Path) -> str:
    """What tells an encoder's folder from another: a hash of config.json and of each weights file's name, size,
    beginning, middle and end. Nothing of 44 GB is read whole."""
    digest = hashlib.sha256()
    weights = (path for path in folder.iterdir() if path.suffix in (".safetensors", *TORCH_SUFFIXES))
    for path in (folder / "config.json", *sorted(weights)):
        if not path.is_file():
            continue  # whoever opens the encoder says so
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            for start in (0, size // 2, max(0, size - _SAMPLED)):
                file.seek(start)
                digest.update(file.read(_SAMPLED))
    return f"local-{digest.hexdigest()[:12]}"


def _compute(
    config: EmbedConfig,
    store: EmbeddingStore,
    texts: Sequence[str],
    say: Callable[[str], None],
    build: Callable[..., StreamedT5],
) -> int:
    device = choose_device(config.device)
    encoder = build(resolve(config.encoder), device=device, dtype=_TYPES[config.dtype], offload=config.offload)
    say(f"{len(texts)} instructions through {store.encoder} on {device}, {config.dtype}, offload {config.offload}")
    for start in range(0, len(texts), config.batch):
        part = texts[start : start + config.batch]
        for text, tokens in zip(part, encoder.encode(part), strict=True):
            store.put(text, tokens)
        say(f"{start + len(part)} of {len(texts)}")
    say(f"weights took at most {encoder.peak_bytes / 2**20:.1f} MiB on {device} at one time")
    return len(texts)
