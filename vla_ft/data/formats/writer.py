"""A crash-safe writer of ALOHA HDF5 episodes: a reader sees a whole episode or none, whatever happens to the writer.

Layout as the published recorders write it (tonyzhaozh/act and act-plus-plus): attributes ``sim`` and ``compress``;
float64 ``/action``, ``/observations/qpos``, ``/observations/qvel``; ``/observations/images/<camera>``, a frame a chunk.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
from PIL import Image

from vla_ft.data.formats.aloha_layout import EPISODE_FILE
from vla_ft.data.formats.writing import FULL, sync
from vla_ft.errors import UserError

_UNFINISHED = re.compile(r"\.episode-[0-9a-f]{16}\.unfinished")
_ROWS_PER_CHUNK = 128


class EpisodeWriter:
    """Write one episode: ``add`` a step at a time, then ``commit`` (or leave the ``with`` block) to publish it.

    Steps go to an unfinished file beside the episodes; ``commit`` flushes it to the disk and gives it the next episode
    number. ``abort``, an exception, or a full disk removes it. What a killed writer left is never read, and the next
    writer in the folder removes it. Several writers may share a folder. Memory does not grow with the episode.

    ``cameras`` maps a name to (height, width) in pixels. ``sim``: whether actions line up with their observations (see
    ``EpisodeReader.action_offset``). ``compress`` stores JPEG bytes instead of pixels. ``attributes`` become further
    attributes of the file; ``language_instruction`` is the one that the reader knows.

    Raises UserError when the folder cannot be written or its disk is full, ValueError for steps that do not fit.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        cameras: Mapping[str, tuple[int, int]],
        sim: bool,
        compress: bool = False,
        jpeg_quality: int = 95,
        attributes: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.cameras = dict(cameras)
        self.compress = compress
        self.jpeg_quality = jpeg_quality
        self.steps = 0
        self._sink: _Sink | None = None
        self.path: Path | None = None
        """Where the episode lies, once committed."""
        reserved = {"sim", "compress"} & set(attributes or {})
        if reserved:
            raise ValueError(f"attributes {sorted(reserved)} are the writer's own")
        with self._explained():
            self.folder.mkdir(parents=True, exist_ok=True)
            _remove_unfinished(self.folder)
            self._unfinished, descriptor = _create_unfinished(self.folder)
        self._sink = _Sink(descriptor)
        self._file = h5py.File(self._sink, "w", libver=("v110", "v110"))
        with self._explained():
            self._file.attrs.update({**(attributes or {}), "sim": sim, "compress": compress})

    def add(self, *, qpos: np.ndarray, qvel: np.ndarray, images: Mapping[str, np.ndarray], action: np.ndarray) -> None:
        """Append a step: qpos and qvel [P], action [A] (finite; robot units), images uint8 [height, width, 3] (RGB)."""
        columns = {"observations/qpos": qpos, "observations/qvel": qvel, "action": action}
        rows = {name: np.asarray(values, dtype=np.float64) for name, values in columns.items()}
        self._refuse_misfits(rows, images)
        with self._explained():
            for name, row in rows.items():
                self._append(name, row)
            for camera, image in images.items():
                self._append(f"observations/images/{camera}", self._encode(image))
            self._open_sink().raise_failure()
        self.steps += 1

    def commit(self) -> Path:
        """Publish the episode under the next free number and return its path. Raises ValueError when it has no step."""
        sink = self._open_sink()
        if not self.steps:
            self.abort()
            raise ValueError("an episode without steps cannot be committed")
        with self._explained():
            self._file.close()
            sink.raise_failure()
            os.fsync(sink.descriptor)
            self.path = _publish(self._unfinished, self.folder)
        os.close(sink.descriptor)
        self._sink = None
        return self.path

    def abort(self) -> None:
        """Drop the episode and leave nothing behind. Harmless when it is already committed or aborted."""
        if self._sink is None:
            return
        sink, self._sink = self._sink, None
        sink.discard = True
        self._file.close()
        with contextlib.suppress(FileNotFoundError):
            self._unfinished.unlink()
        os.close(sink.descriptor)

    def __enter__(self) -> EpisodeWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.abort()
        elif self._sink is not None:
            self.commit()

    def _append(self, name: str, row: np.ndarray) -> None:
        if name not in self._file:
            encoded = self.compress and row.dtype == np.uint8
            shape, dtype = ((), h5py.vlen_dtype(np.uint8)) if encoded else (row.shape, row.dtype)
            chunk = (1 if row.dtype == np.uint8 else _ROWS_PER_CHUNK, *shape)
            self._file.create_dataset(
                name, (0, *shape), dtype, maxshape=(None, *shape), chunks=chunk,
                fletcher32=row.dtype != np.uint8,  # changed numbers leave a trace; pictures would cost a sum a frame
            )  # fmt: skip
        dataset = self._file[name]
        dataset.resize(self.steps + 1, axis=0)
        dataset[self.steps] = row

    def _encode(self, image: np.ndarray) -> np.ndarray:
        if not self.compress:
            return image
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "JPEG", quality=self.jpeg_quality)
        return np.frombuffer(stream.getbuffer(), dtype=np.uint8)

    def _refuse_misfits(self, rows: Mapping[str, np.ndarray], images: Mapping[str, np.ndarray]) -> None:
        self._open_sink()
        for name, row in rows.items():
            expected = self._file[name].shape[1:] if name in self._file else row.shape
            if row.ndim != 1 or row.shape != expected or not np.isfinite(row).all():
                raise ValueError(
                    f"step {self.steps}: {name} must be {len(expected)}-d {expected} and finite, got {row}"
                )
        if set(images) != set(self.cameras):
            raise ValueError(f"step {self.steps}: cameras {sorted(images)}, expected {sorted(self.cameras)}")
        for camera, image in images.items():
            expected = (*self.cameras[camera], 3)
            if image.dtype != np.uint8 or image.shape != expected:
                raise ValueError(
                    f"step {self.steps}: {camera} is {image.dtype} {image.shape}, expected uint8 {expected}"
                )

    def _open_sink(self) -> _Sink:
        if self._sink is None:
            raise ValueError("this episode is already committed or aborted")
        return self._sink

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Whatever goes wrong drops the episode; the file system's refusals become a UserError."""
        try:
            yield
        except OSError as error:
            self.abort()
            if error.errno in FULL:
                raise UserError(
                    f"No space left for an episode in {self.folder} ({self.steps} steps were written and are dropped). "
                    "Free space there or record to another folder."
                ) from error
            raise UserError(
                f"Cannot write an episode to {self.folder}: {error}. Expected a folder that this user may write to."
            ) from error
        except BaseException:
            self.abort()
            raise


class _Sink(io.RawIOBase):
    """The file as HDF5 sees it. It never fails: it keeps the first failure, to be raised where it can be told.

    HDF5 writes a frame when it leaves a cache, often while an object is being freed, where an error is lost; on a full
    disk the library then crashes on the way out. So a failed write is swallowed here and ``raise_failure`` tells it.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.discard = False
        self._position = 0
        self._failure: OSError | None = None

    def raise_failure(self) -> None:
        """Raise the first OSError that a write met."""
        if self._failure is not None:
            raise self._failure

    def write(self, data: Any) -> int:
        """Write all of ``data`` (any buffer) at the position."""
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while rest and not self.discard:
                done = os.pwrite(self.descriptor, rest, self._position)
                self._position, rest = self._position + done, rest[done:]
        except OSError as error:
            self._fail(error)
        return size

    def readinto(self, buffer: Any) -> int:
        """Fill ``buffer`` from the position."""
        return os.preadv(self.descriptor, [buffer], self._position)

    def truncate(self, size: int | None = None) -> int:
        """Set the size of the file."""
        size = self._position if size is None else size
        try:
            os.ftruncate(self.descriptor, size)
        except OSError as error:
            self._fail(error)
        return size

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the position."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: os.fstat(self.descriptor).st_size}
        self._position = base[whence] + offset
        return self._position

    def tell(self) -> int:
        """The position."""
        return self._position

    def readable(self) -> bool:
        """True: HDF5 reads back what it wrote."""
        return True

    def writable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def _fail(self, error: OSError) -> None:
        self._failure, self.discard = self._failure or error, True


def _create_unfinished(folder: Path) -> tuple[Path, int]:
    """A new hidden file and the descriptor that holds its lock: the kernel drops the lock when its writer dies."""
    while True:
        path = folder / f".episode-{secrets.token_hex(8)}.unfinished"
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o666)
        with contextlib.suppress(OSError):  # a file system without locks: nobody can tell it is dead, so it stays
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return path, descriptor
        os.close(descriptor)  # another writer removed it between the two calls


def is_unfinished(path: Path) -> bool:
    """Whether a file is an episode that a writer has not finished, and may never finish."""
    return _UNFINISHED.fullmatch(path.name) is not None


def _remove_unfinished(folder: Path) -> None:
    for path in [p for p in folder.iterdir() if is_unfinished(p)]:
        with contextlib.suppress(OSError):  # locked by a living writer, or removed by another
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
            finally:
                os.close(descriptor)


def _publish(unfinished: Path, folder: Path) -> Path:
    """Give the file the number after the highest one. A link refuses to replace, so that two writers never collide."""
    while True:
        taken = [int(m[1]) for p in folder.iterdir() if (m := EPISODE_FILE.fullmatch(p.name))]
        path = folder / f"episode_{max(taken, default=-1) + 1}.hdf5"
        try:
            os.link(unfinished, path)
        except FileExistsError:
            continue
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            os.rename(unfinished, path)  # no hard links here (FAT, some network shares): one writer at a time
        else:
            unfinished.unlink()
        sync(folder)
        return path
