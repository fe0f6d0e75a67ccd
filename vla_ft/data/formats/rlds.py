"""Reader of RLDS datasets (Open X-Embodiment and its kind): TFDS folders of TFRecord shards, without TensorFlow."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vla_ft.data.formats.base import EpisodeReader, beyond_float32
from vla_ft.data.formats.descriptions import load_described
from vla_ft.data.formats.rlds_index import open_index
from vla_ft.data.formats.rlds_mapping import SIDECAR, check_written, choose_cameras, dimension_names
from vla_ft.data.formats.rlds_rates import known_rate
from vla_ft.data.formats.rlds_records import RecordStore
from vla_ft.data.formats.rlds_values import decode_image, image_size, values
from vla_ft.data.formats.tf_example import Feature, WireError
from vla_ft.data.formats.tfds_features import FeatureSpec, read_features
from vla_ft.data.formats.tfds_folder import FEATURES, open_folder
from vla_ft.data.sample import IMAGE_PREFIX, ActionKind, ActionMode, DatasetDescription
from vla_ft.errors import UserError, unknown

_STATES = ("observation/state", "observation/proprio")
_TIMES = ("observation/timestamp", "timestamp")
_INSTRUCTIONS = (
    "language_instruction",
    "observation/natural_language_instruction",
    "observation/language_instruction",
    "natural_language_instruction",
    "observation/instruction",
    "episode_metadata/language_instruction",
)


class RldsReader(EpisodeReader):
    """Random access to the episodes of one or more splits. ``features`` lists every leaf by name (without ``steps/``).

    The first opening reads all shards once and keeps an index (``rlds_index``); later ones read that alone. A sample
    reads and decodes what was asked for; records are checked whole as often as a streaming loader does
    (``rlds_records``).
    Cameras are the 8-bit colour images of an observation: ``image_top`` and ``top_image`` are camera ``top``,
    ``image`` is ``primary``, others keep their name.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        cameras: Sequence[str] | None = None,
        split: str = "train",
        action: Sequence[str] | None = None,
        proprio: Sequence[str] | None = None,
        fps: float | None = None,
        instruction: str = "",
        action_kind: ActionKind | None = None,
        action_mode: ActionMode | None = None,
        name: str | None = None,
        tolerant: bool = False,
    ) -> None:
        """Open a dataset's folder, one of its configurations or versions. Raises UserError for damage and bad options.

        ``split``: a name, several joined by ``+``, or ``all``. ``action``, ``proprio``: names of the leaves that are
        joined to the vector, such as ``action/world_vector``; by default ``action`` and ``observation/state`` (or
        ``observation/proprio``, or none). Empty ones leave a vector of width 0, for those who use ``raw`` alone.
        ``fps``: steps per second, needed where neither the dataset nor the table of published ones says it.
        ``instruction``: for episodes without one. ``action_kind``, ``action_mode``: TFDS does not record them, so they
        are ``unknown`` unless this project wrote the set. ``tolerant``: a damaged record is an episode without steps,
        and reading it raises what is wrong.
        """
        self.folder = open_folder(Path(path))
        self.features = read_features(self.folder.path / FEATURES)
        self.split = split
        self.name = name or self.folder.name
        self._index = open_index(self.folder, split, self.features, tolerant)
        self.lengths = self._index.steps
        self._default_instruction = instruction
        self._records = RecordStore(self._index)
        self._last: tuple[int, Mapping[str, Feature]] | None = None
        sidecar = self.folder.path / SIDECAR
        written = load_described(sidecar)[1] if sidecar.is_file() else None
        if written is not None:
            check_written(self.folder.path, self.features, written)
        self._action = self._vector("action", action, ("action",))
        self._proprio = self._vector("proprio", proprio, _STATES)
        self._cameras = choose_cameras(self.features, cameras)
        self._instruction_spec = next((self.features[k] for k in _INSTRUCTIONS if self._is_text(k)), None)
        self.description = self._describe(written, fps, action_kind, action_mode)
        self.assumed = {} if written or fps is not None else {"fps": self._listed_rate()}

    def read(self, episode: int, steps: np.ndarray, keys: Sequence[str]) -> dict[str, np.ndarray]:
        """See ``EpisodeReader.read``."""
        wanted = np.asarray(steps, dtype=np.int64)
        if wanted.ndim != 1 or (len(wanted) and not 0 <= wanted.min() <= wanted.max() < self.lengths[episode]):
            raise ValueError(f"steps {wanted} of an episode of {self.lengths[episode]} steps")
        columns = {"action": self._action, "proprio": self._proprio}
        result = {}
        for key in keys:
            camera = key.removeprefix(IMAGE_PREFIX)
            if key in columns:
                result[key] = self._join(episode, columns[key], wanted)
            elif key.startswith(IMAGE_PREFIX) and camera in self._cameras:
                result[key] = self._images(episode, camera, wanted)
            else:
                raise unknown("feature", key, (*columns, *(IMAGE_PREFIX + c for c in self._cameras)))
        return result

    def raw(self, episode: int, keys: Sequence[str], steps: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Leaves by their names in ``features``, over all steps or at ``steps`` (int64 [n]), time first.

        Numbers come in their declared dtype, text as an object array of str, images as an object array of their encoded
        bytes; leaves of the episode have no time axis. Raises UserError naming shard, record and leaf.
        """
        return {key: self._leaf(episode, self._known(key), steps) for key in keys}

    def instruction(self, episode: int) -> str:
        """The first instruction of the episode's steps that is not empty."""
        return self._first_text(episode, None)

    def instruction_at(self, episode: int, step: int) -> str:
        """The instruction at a step, in datasets that change it on the way."""
        return self._first_text(episode, np.array([step]))

    def times(self, episode: int) -> np.ndarray | None:
        """See ``EpisodeReader.times``: one number a step that is called a timestamp, where there is one."""
        spec = next((self.features[key] for key in _TIMES if key in self.features), None)
        if spec is None or spec.kind != "number" or spec.width != 1 or not spec.per_step or spec.ragged:
            return None
        return self._leaf(episode, spec, None).reshape(-1).astype(np.float64)

    def _first_text(self, episode: int, steps: np.ndarray | None) -> str:
        spec = self._instruction_spec
        if spec is None or not self.lengths[episode]:
            return self._default_instruction
        found = self._leaf(episode, spec, steps)
        if spec.kind == "number":  # characters in a row of fixed width, filled up with zeros (language_table)
            rows = found.reshape(-1, found.shape[-1])
            if (rows > sys.maxunicode).any():
                raise self._wrong(episode, spec.key, WireError(f"{rows.max()} is no character"))
            found = np.array(["".join(map(chr, row[row > 0])) for row in rows], object)
        return next((text for text in found.reshape(-1) if text.strip()), self._default_instruction)

    def fingerprint(self) -> str:
        """Hash of the records' checksums and lengths and of which leaves are read: no pass over the data.

        Images are in the checksums, so a set that was encoded anew gets new statistics; a copy keeps them.
        """
        digest = hashlib.sha256(f"rlds {self._keys(self._action)} {self._keys(self._proprio)}".encode())
        digest.update(self._index.crc.astype("<u4").tobytes())
        digest.update(self._index.steps.astype("<i8").tobytes())
        return digest.hexdigest()

    def sources(self) -> dict[str, Path]:
        """Every file that observations are read from, by a name that survives a move of the dataset."""
        return {shard.name: shard for shard in self._index.shards}

    def reading(self) -> dict[str, str]:
        """Options that change the values of observations read from the same files."""
        return {"proprio": self._keys(self._proprio)}

    def unread(self) -> list[str]:
        """See ``EpisodeReader.unread``; RLDS's marks of an episode's ends are in its length."""
        read = [*self._action, *self._proprio, *self._cameras.values(), self._instruction_spec]
        names = {spec.name for spec in read if spec is not None} | {"is_first", "is_last", "is_terminal"}
        # Plain floating numbers are float32 in the records, whatever features.json calls them.
        exact = [s for s in (*self._action, *self._proprio) if s.encoding != "none" or np.dtype(s.dtype).kind != "f"]
        return [*(n for n in self.features if n not in names), *beyond_float32({s.name: s.dtype for s in exact})]

    def name_of(self, episode: int) -> str:
        """Shard and record."""
        return self._index.name_of(episode)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": None}

    def _record(self, episode: int) -> Mapping[str, Feature]:
        """The lists of a record. The last one is kept: a sample asks more than once for its episode."""
        if self._last is None or self._last[0] != episode:
            try:
                self._last = (episode, self._records.get(episode))
            except WireError as error:
                raise self._wrong(episode, "", error) from error
        return self._last[1]

    def _leaf(self, episode: int, spec: FeatureSpec, steps: np.ndarray | None) -> np.ndarray:
        try:
            return values(self._record(episode), spec, int(self.lengths[episode]), steps)
        except WireError as error:
            raise self._wrong(episode, spec.key, error) from error

    def _join(self, episode: int, specs: Sequence[FeatureSpec], steps: np.ndarray) -> np.ndarray:
        parts = [self._leaf(episode, spec, steps).reshape(len(steps), spec.width or 0) for spec in specs]
        return np.concatenate([np.empty((len(steps), 0), np.float32), *parts], axis=1, dtype=np.float32)

    def _images(self, episode: int, camera: str, steps: np.ndarray) -> np.ndarray:
        spec = self._cameras[camera]
        size = self.description.cameras[camera]
        rows, places = np.unique(steps, return_inverse=True)
        frames = np.empty((len(rows), *size, 3), dtype=np.uint8)
        for place, encoded in enumerate(self._leaf(episode, spec, rows)):
            try:
                frames[place] = decode_image(encoded, size)
            except WireError as error:
                raise self._wrong(episode, f"{spec.key}, step {rows[place]}", error) from error
        in_place = len(rows) == len(steps) and bool((places == np.arange(len(rows))).all())
        return frames if in_place else frames[places]

    def _wrong(self, episode: int, key: str, error: WireError) -> UserError:
        shard = self._index.shards[self._index.shard[episode]]
        return UserError(
            f"{shard}: record {self._index.number[episode]} (episode {episode}){', ' + key if key else ''}: {error}. "
            "Its checksum is right, so it was written like this: remove the episode, or leave this feature out."
        )

    def _known(self, key: str) -> FeatureSpec:
        if key not in self.features:
            raise unknown("feature", key, self.features)
        return self.features[key]

    def _vector(self, what: str, asked: Sequence[str] | None, defaults: Sequence[str]) -> tuple[FeatureSpec, ...]:
        """The leaves of a vector. Raises UserError for a leaf that is no row of numbers of fixed width."""
        if asked is None:
            asked = [key for key in defaults if key in self.features][:1]
            group = [key for key in self.features if key.startswith(f"{what}/")]
            if not asked and what == "action":
                raise UserError(
                    f"{self.folder.path} has no single action (it has: {', '.join(group or self.features)}). Name the "
                    f"parts in order, such as data.action=[{','.join(group[:2]) or 'NAME'}]."
                )
        specs = tuple(self._known(key) for key in asked)
        for spec in specs:
            if spec.kind != "number" or spec.width is None or not spec.per_step:
                raise UserError(
                    f"{self.folder.path}: '{spec.name}' is {spec.kind_name} {spec.dtype} {spec.shape} and cannot be a "
                    f"part of {what}. Expected numbers of fixed width in every step."
                )
        return specs

    def _is_text(self, key: str) -> bool:
        spec = self.features.get(key)
        if spec is None or spec.ragged:
            return False
        return spec.kind == "text" or (spec.kind == "number" and len(spec.shape) == 1 and spec.dtype[0] in "iu")

    def _listed_rate(self) -> str:
        return f"{known_rate(self.folder.name):g}, the rate listed for '{self.folder.name}'"

    def _describe(
        self, written: DatasetDescription | None, fps: float | None, kind: ActionKind | None, mode: ActionMode | None
    ) -> DatasetDescription:
        rates = (fps, written.fps if written else None, known_rate(self.folder.name))
        rate = next((r for r in rates if r is not None), None)
        if rate is None or rate <= 0:
            raise UserError(
                f"The rate of {self.folder.path} is {'unknown' if rate is None else rate}: TFDS folders do not say it, "
                f"and '{self.folder.name}' is not among the published sets known here. Give steps per second, such as "
                "data.fps=10."
            )
        parts: dict[str, Any] = {}
        for part, specs in (("action", self._action), ("proprio", self._proprio)):
            names = dimension_names(part, specs)
            kept = written is not None and len(getattr(written, f"{part}_names")) == len(names)
            parts[f"{part}_names"] = getattr(written, f"{part}_names") if kept else names
            parts[f"{part}_units"] = getattr(written, f"{part}_units") if kept else ("unknown",) * len(names)
        return DatasetDescription(
            name=self.name,
            cameras={camera: self._size(spec) for camera, spec in self._cameras.items()},
            **parts,
            action_kind=kind or (written.action_kind if written else "unknown"),
            action_mode=mode or (written.action_mode if written else "unknown"),
            gripper=written.gripper if written else "unknown",
            gripper_dims=written.gripper_dims if written and parts["action_names"] == written.action_names else (),
            fps=float(rate),
        )

    def _size(self, spec: FeatureSpec) -> tuple[int, int]:
        height, width = spec.shape[:2]
        if height is not None and width is not None:
            return height, width
        filled = np.flatnonzero(self.lengths)
        if not len(filled):
            return 0, 0
        try:
            return image_size(self._leaf(int(filled[0]), spec, np.zeros(1, np.int64))[0])
        except WireError as error:
            raise self._wrong(int(filled[0]), spec.key, error) from error

    @staticmethod
    def _keys(specs: Sequence[FeatureSpec]) -> str:
        return "+".join(spec.key for spec in specs)
