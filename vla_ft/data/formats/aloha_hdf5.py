"""Reader of ALOHA demonstrations: a folder of ``episode_<number>.hdf5`` files (tonyzhaozh/act, act-plus-plus)."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np

from vla_ft.data.formats.aloha_index import open_table, sound_kinds
from vla_ft.data.formats.aloha_instructions import read_variants
from vla_ft.data.formats.aloha_layout import (
    COLUMNS,
    IMAGES,
    TIMES,
    EpisodeHeader,
    check_agreement,
    list_episodes,
    task_of,
)
from vla_ft.data.formats.base import EpisodeReader, beyond_float32
from vla_ft.data.formats.hdf5_files import HDF5_DAMAGE, OpenFile, OpenFiles, open_hdf5
from vla_ft.data.formats.kept import remembered
from vla_ft.data.formats.rlds_values import decode_image, image_size
from vla_ft.data.formats.tf_example import WireError
from vla_ft.data.sample import IMAGE_PREFIX, ActionKind, ActionMode, DatasetDescription
from vla_ft.errors import UserError, unknown

DEFAULT_FPS = 50.0
ARM_JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper")


class AlohaHdf5Reader(EpisodeReader):
    """Random access to ALOHA episodes of any lengths, with raw or per-frame encoded images.

    Opening reads shapes and attributes alone (and, for encoded frames, the header of the first one). ``action`` is
    ``/action`` and ``proprio`` is ``/observations/qpos``, cast to float32. Episodes with ``sim`` false start their
    action chunks one step early, as the published reader does.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        cameras: Sequence[str] | None = None,
        fps: float | None = None,
        sim: bool | None = None,
        instruction: str = "",
        name: str | None = None,
        jpeg_channels: Literal["rgb", "bgr"] = "rgb",
        action_kind: ActionKind = "joint",
        action_mode: ActionMode = "absolute",
        open_files: int = 64,
        tolerant: bool = False,
    ) -> None:
        """Open a folder or a single file. Raises UserError for a set that is missing, damaged or disagrees.

        ``tolerant``: files that are damaged or differ from most others keep their place, with no steps where these
        cannot be counted, and reading them raises what is wrong.

        ``cameras``: which to read, all by default. ``fps``: steps per second; the files' attribute ``fps`` or 50 by
        default. ``sim``: for files without that attribute. ``instruction``: for files without the attribute
        ``language_instruction`` whose folder has no wordings either (``aloha_instructions``).
        ``jpeg_channels``: ``bgr`` for recorders that gave RGB frames to OpenCV's encoder,
        which takes them for BGR (Physical-Intelligence/openpi#304, RoboTwin-Platform/RoboTwin#473). ``action_kind``,
        ``action_mode``: for sets that keep the layout and not its joint targets. ``open_files``: how many stay open in
        a process; opening one costs as much as reading ten samples.
        """
        if jpeg_channels not in ("rgb", "bgr"):
            raise unknown("jpeg_channels", jpeg_channels, ("rgb", "bgr"))
        self.path = Path(path)
        self.jpeg_channels = jpeg_channels
        self.paths = list_episodes(self.path)
        self.damage: dict[int, str] = {}
        table = open_table(self.paths, tolerant)
        sound: Sequence[int] = range(len(table.kinds))
        if tolerant:
            sound, self.damage, cameras = sound_kinds(table, self.paths, cameras)
        headers = [table.kinds[place] for place in sound]
        chosen = _choose_cameras(headers, cameras)
        check_agreement(headers, [int((table.kind == place).sum()) for place in sound], chosen)
        self._first, self._stamp = headers[0].path, table.stamp
        self.lengths = np.where(np.isin(table.kind, sound), table.lengths, 0)
        self.action_offset = 0 if _is_sim(headers, sim) else -1
        self._texts, self._text, self._instruction = table.texts, table.text, instruction
        tasks = sorted({task_of(name) for name in self.paths.names})
        self._variants = {task: read_variants(self.paths.folder / task) for task in tasks}
        self._files = OpenFiles(open_files)
        self._fingerprint: str | None = None
        self._encoded = {camera for camera in chosen if headers[0].cameras[camera] is None}
        sizes = {camera: headers[0].cameras[camera] or self._encoded_size(camera) for camera in chosen}
        described = describe(headers[0], sizes, name or self.path.stem, fps)
        self.description = dataclasses.replace(described, action_kind=action_kind, action_mode=action_mode)
        self.assumed = _assumed(headers[0], fps)

    def read(self, episode: int, steps: np.ndarray, keys: Sequence[str]) -> dict[str, np.ndarray]:
        """See ``EpisodeReader.read``."""
        if episode in self.damage:
            raise UserError(self.damage[episode])
        wanted = np.asarray(steps, dtype=np.int64)
        if wanted.ndim != 1 or (len(wanted) and not 0 <= wanted.min() <= wanted.max() < self.lengths[episode]):
            raise ValueError(f"steps {wanted} of an episode of {self.lengths[episode]} steps")
        # HDF5 takes increasing indices without repeats; a slice is much faster than a list.
        rows, places = np.unique(wanted, return_inverse=True)
        in_place = len(rows) == len(wanted) and bool((places == np.arange(len(wanted))).all())
        file = self._files.get(self.paths[episode])
        result = {}
        for key in keys:
            values = self._read_rows(file, episode, rows, key)
            result[key] = values if in_place else values[places]
        return result

    def instruction(self, episode: int) -> str:
        """See ``EpisodeReader.instruction``."""
        if episode in self.damage:
            return ""
        variants = self._variants[task_of(self.name_of(episode))] or ((self._instruction,),)
        return self._texts[self._text[episode]] or variants[0][0]

    def instruction_variants(self, episode: int) -> tuple[tuple[str, ...], ...]:
        """See ``EpisodeReader.instruction_variants``; an instruction in the episode's own file has one wording."""
        variants, own = self._variants[task_of(self.name_of(episode))], self.instruction(episode)
        return variants if variants is not None and variants[0][0] == own else ((own,),)

    def times(self, episode: int) -> np.ndarray | None:
        """See ``EpisodeReader.times``: a dataset of one number a step under a name that recorders use."""
        if episode in self.damage:
            return None
        file, length = self._files.get(self.paths[episode]), int(self.lengths[episode])
        try:
            for where in TIMES:
                clock = file.get(where)
                if isinstance(clock, h5py.Dataset) and clock.size == length and clock.dtype.kind in "fiu":
                    return clock[...].astype(np.float64).reshape(length)
        except HDF5_DAMAGE as error:
            raise _damaged(self.paths[episode], "the clock", slice(None), error) from error
        return None

    def name_of(self, episode: int) -> str:
        """The episode's file name, behind its folder where the set has several."""
        return self.paths.names[episode]

    def fingerprint(self) -> str:
        """Hash of names, lengths, ``sim`` and all action and qpos values in float32; computed once, and kept
        for these files as they are (``kept``).

        Neither file times nor images enter, so that a copied or recompressed set keeps its statistics.
        """
        if self._fingerprint is None:
            what = f"aloha_hdf5 {self.action_offset} {sorted(self.damage)}"
            self._fingerprint = remembered("fingerprints", what, self._stamp, self._hash_numbers)
        return self._fingerprint

    def _hash_numbers(self) -> str:
        digest = hashlib.sha256(f"aloha_hdf5 {self.action_offset}".encode())
        for episode, (path, length) in enumerate(zip(self.paths, self.lengths, strict=True)):
            digest.update(f"{self.name_of(episode)} {length}".encode())
            if episode in self.damage:
                continue
            with open_hdf5(path) as file:
                for where in COLUMNS.values():
                    digest.update(_numbers(file, path, where, slice(None)).tobytes())
        return digest.hexdigest()

    def sources(self) -> dict[str, Path]:
        """See ``EpisodeReader.sources``: one file an episode, by its name (``name_of``)."""
        return dict(zip(self.paths.names, self.paths, strict=True))

    def reading(self) -> dict[str, str]:
        """See ``EpisodeReader.reading``."""
        return {"jpeg_channels": self.jpeg_channels} if self._encoded else {}

    def unread(self) -> list[str]:
        """See ``EpisodeReader.unread``; of the first sound file."""
        found: list[str] = []
        read = {*COLUMNS.values(), *(f"{IMAGES}/{camera}" for camera in self.description.cameras)}

        def look(name: str, member: h5py.HLObject) -> None:
            if not isinstance(member, h5py.Dataset):
                return
            if name not in read:
                found.append(name)
            elif name in COLUMNS.values():
                found.extend(beyond_float32({name: str(member.dtype)}))

        with open_hdf5(self._first) as file:
            try:
                file.visititems(look)
            except HDF5_DAMAGE as error:
                raise UserError(f"{self._first} is damaged: {error}. Copy the file again.") from error
        return found

    def close(self) -> None:
        """Close the files that this process opened; the next read opens them again."""
        self._files.close()

    def _read_rows(self, file: OpenFile, episode: int, rows: np.ndarray, key: str) -> np.ndarray:
        """Values at increasing ``rows`` without repeats."""
        path = self.paths[episode]
        contiguous = len(rows) > 0 and rows[-1] - rows[0] + 1 == len(rows)
        selection = slice(int(rows[0]), int(rows[-1]) + 1) if contiguous else rows
        if key in COLUMNS:
            return _numbers(file, path, COLUMNS[key], selection)
        camera = key.removeprefix(IMAGE_PREFIX)
        if not key.startswith(IMAGE_PREFIX) or camera not in self.description.cameras:
            raise unknown("feature", key, (*COLUMNS, *(IMAGE_PREFIX + c for c in self.description.cameras)))
        try:
            if camera not in self._encoded:
                return file[f"{IMAGES}/{camera}"][selection]
            height, width = self.description.cameras[camera]
            frames = np.empty((len(rows), height, width, 3), dtype=np.uint8)
            for place, row in enumerate(rows):
                frames[place] = self._decode(file, camera, int(row))
            return frames
        except HDF5_DAMAGE as error:
            raise _damaged(path, key, rows, error) from error

    def _decode(self, file: OpenFile, camera: str, row: int) -> np.ndarray:
        try:
            frame = decode_image(_encoded_frame(file, camera, row), self.description.cameras[camera])
        except WireError as error:
            raise WireError(f"frame {row}: {error}") from error
        return frame[..., ::-1] if self.jpeg_channels == "bgr" else frame

    def _encoded_size(self, camera: str) -> tuple[int, int]:
        with open_hdf5(self._first) as file:
            try:
                return image_size(_encoded_frame(file, camera, 0))
            except HDF5_DAMAGE as error:
                raise _damaged(self._first, IMAGE_PREFIX + camera, np.zeros(1, np.int64), error) from error


def describe(
    header: EpisodeHeader, cameras: dict[str, tuple[int, int]], name: str, fps: float | None
) -> DatasetDescription:
    """The description of an ALOHA set. 14 dimensions get ALOHA's names (left arm, then right); others are numbered."""
    rate = float(next(one for one in (fps, header.fps, DEFAULT_FPS) if one is not None))
    if rate <= 0:
        raise UserError(f"data.fps is {rate}, expected steps per second above 0, such as {DEFAULT_FPS:g}.")
    parts: dict[str, Any] = {}
    for part, width in (("action", header.action_dim), ("proprio", header.proprio_dim)):
        names = tuple(f"{side}_{joint}" for side in ("left", "right") for joint in ARM_JOINTS)
        if width != len(names):
            names = tuple(f"{part}_{i}" for i in range(width))
        parts[f"{part}_names"] = names
        parts[f"{part}_units"] = tuple(_unit(n) for n in names)
    return DatasetDescription(
        name=name,
        cameras=cameras,
        **parts,
        action_kind="joint",
        action_mode="absolute",
        gripper="0 closed, 1 open" if header.action_dim == 2 * len(ARM_JOINTS) else "unknown",
        fps=rate,
    )


def _assumed(header: EpisodeHeader, fps: float | None) -> dict[str, str]:
    """What ALOHA's files leave open and ``describe`` fills in."""
    usual = {"action_kind": "joint, as ALOHA records them", "action_mode": "absolute, as ALOHA records them"}
    if fps is None and header.fps is None:
        usual["fps"] = f"{DEFAULT_FPS:g}, ALOHA's rate: the files have no attribute fps"
    if header.action_dim == 2 * len(ARM_JOINTS):
        usual["action_names"] = "ALOHA's two arms, left first, as 14 numbers suggest"
    return usual


def _unit(name: str) -> str:
    if name.startswith(("left_", "right_")):
        return "fraction" if name.endswith("gripper") else "rad"
    return "unknown"


def _choose_cameras(headers: Sequence[EpisodeHeader], asked: Sequence[str] | None) -> tuple[str, ...]:
    present = dict.fromkeys(camera for h in headers for camera in h.cameras)
    for camera in asked or ():
        if camera not in present:
            raise unknown("camera", camera, present)
    return tuple(present) if asked is None else tuple(dict.fromkeys(asked))


def _is_sim(headers: Sequence[EpisodeHeader], told: bool | None) -> bool:
    """``check_agreement`` has made sure that all say the same."""
    seen = headers[0].sim
    if seen is None and told is None:
        raise UserError(
            f"{headers[0].path} has no attribute sim, which says whether actions begin with their observation (true) "
            "or one step early (false, real robots). Say which with data.sim=true or data.sim=false."
        )
    if seen is not None and told is not None and seen != told:
        raise UserError(f"data.sim is {told}, but {headers[0].path} says sim={seen}. Leave data.sim out.")
    return bool(told if seen is None else seen)


def _numbers(file: h5py.File | OpenFile, path: Path, where: str, selection: slice | np.ndarray) -> np.ndarray:
    try:
        return file[where][selection].astype(np.float32)
    except HDF5_DAMAGE as error:
        raise _damaged(path, where, selection, error) from error


def _encoded_frame(file: h5py.File | OpenFile, camera: str, row: int) -> bytes:
    """Rows are bytes, or uint8 with zeros after the end of the picture; Pillow stops at the end by itself."""
    stored = file[f"{IMAGES}/{camera}"][row]
    return stored if isinstance(stored, bytes) else stored.tobytes()


def _damaged(path: Path, key: str, rows: object, error: Exception) -> UserError:
    return UserError(
        f"{path}: cannot read {key} at steps {rows}: {error}. Damaged: copy the file again, or remove it from the set."
    )
