"""What dataset writers share: steps that fit, refusals in words, one writer a folder, files that appear whole."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from vla_ft.data.sample import IMAGE_PREFIX, DatasetDescription
from vla_ft.errors import UserError, unknown

Step = dict[str, np.ndarray]
IMAGE_FORMATS = ("png", "jpeg")
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""Error numbers of a disk, or a share of it, that is full."""


def checked_steps(steps: Iterable[Step], description: DatasetDescription) -> Iterator[Step]:
    """The steps as they come, ``action`` and ``proprio`` as float32.

    Raises ValueError for a step that does not fit the description, UserError for numbers that are not finite.
    """
    widths = {"action": description.action_dim, "proprio": description.proprio_dim}
    images = {IMAGE_PREFIX + camera: (*size, 3) for camera, size in description.cameras.items()}
    for number, step in enumerate(steps):
        if set(step) != {*widths, *images}:
            raise ValueError(f"step {number} has {sorted(step)}, expected {sorted({*widths, *images})}")
        checked: Step = {}
        for key, width in widths.items():
            row = np.asarray(step[key], dtype=np.float32)
            if row.shape != (width,):
                raise ValueError(f"step {number}: {key} has shape {row.shape}, expected ({width},)")
            if not np.isfinite(row).all():
                raise UserError(
                    f"{key} at step {number} is {row}, expected finite numbers. Remove or repair the episode at its "
                    "source."
                )
            checked[key] = row
        for key, shape in images.items():
            if step[key].dtype != np.uint8 or step[key].shape != shape:
                raise ValueError(f"step {number}: {key} is {step[key].dtype} {step[key].shape}, expected uint8 {shape}")
            checked[key] = step[key]
        yield checked


def check_image_format(image_format: str, known: tuple[str, ...] = IMAGE_FORMATS) -> None:
    """Raises UserError for a format that is not among ``known``."""
    if image_format not in known:
        raise unknown("image format", image_format, known)


def encode_image(image: np.ndarray, image_format: str, quality: int) -> bytes:
    """uint8 [H, W, 3] as PNG (exact) or JPEG of ``quality``."""
    stream = io.BytesIO()
    options: dict[str, Any] = {"quality": quality} if image_format == "jpeg" else {}
    Image.fromarray(image).save(stream, image_format.upper(), **options)
    return stream.getvalue()


@contextlib.contextmanager
def explained(folder: Path, also: Sequence[type[Exception]] = ()) -> Iterator[None]:
    """The file system's refusals as UserError; ``also``: what a library makes of them."""
    kinds: tuple[type[Exception], ...] = (OSError, *also)
    try:
        yield
    except kinds as error:
        if getattr(error, "errno", None) in FULL:
            raise UserError(
                f"No space left in {folder}: the episode that was being written is dropped, those before it stay. Free "
                "space there and run again; it goes on where it stopped."
            ) from error
        raise UserError(f"Cannot write to {folder}: {error}. Expected a folder that this user may write to.") from error


class _Closes(Protocol):
    def close(self) -> None:
        """Let go of the folder."""


@contextlib.contextmanager
def closing_on_error(writer: _Closes) -> Iterator[None]:
    """For constructors: a writer that cannot begin does not keep its folder locked."""
    try:
        yield
    except BaseException:
        writer.close()
        raise


def only_writer(folder: Path) -> int:
    """Lock ``folder`` for this process; the descriptor holds the lock until it is closed or the process dies.

    Raises UserError when another process writes there.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise UserError(f"Another process writes to {folder}. Wait for it, or write to another folder.") from error
    except OSError:
        pass  # a file system without locks: nobody can tell
    return descriptor


def settle(path: Path, settings: dict[str, Any]) -> None:
    """Keep ``settings`` at ``path``, or check that what an earlier writer kept there is the same. Raises UserError."""
    wanted = json.loads(json.dumps(settings))
    if not path.is_file():
        write_json(path, wanted)
        return
    try:
        kept = json.loads(path.read_text())
    except ValueError:
        kept = {}
    different = sorted(key for key in {*wanted, *kept} if wanted.get(key) != kept.get(key))
    if different:
        raise UserError(
            f"{path.parent} was begun with other settings ({', '.join(different)}). Remove that folder to begin anew, "
            "or use the same settings to go on."
        )


def write_json(path: Path, content: Any, indent: int = 1, sort_keys: bool = True) -> None:
    """Write a JSON file that a reader sees whole or not at all."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        with unfinished.open("w") as file:
            json.dump(content, file, indent=indent, sort_keys=sort_keys)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise


def sync(path: Path) -> None:
    """Flush a file, or the renames in a folder, to the disk: they survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


sync_folder = sync
