"""Batches as the guide's evaluation loop takes them: observations by name, and chunks of actions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from policy.act.network import PAD, SEEN
from vla_ft.data.formats.registry import format_of, open_dataset
from vla_ft.data.loading import Loader, build_validation_loader
from vla_ft.data.sample import IMAGE_PREFIX, Sample
from vla_ft.data.windows import WindowSpec
from vla_ft.weights.datasets import local_dataset


class TemporalLoader:
    """A finite loader of ``(obs, actions)``. Nothing is normalised: ``GuidePolicy`` takes what comes from here.

    ``obs``: ``image_<camera>`` uint8 [B, T, H, W, 3] and ``state`` float32 [B, T, S], oldest first, the first frame
    repeated before an episode's begin, where ``is_observed`` bool [B, T] is False; ``is_pad`` bool [B, K], True where
    ``actions`` float32 [B, K, A] repeat the last one past an episode's end.
    """

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def __len__(self) -> int:
        """Batches of a pass."""
        return len(self._loader)

    def __iter__(self) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        for batch in self._loader:
            actions = batch.pop("actions")
            yield batch, actions


def create_temporal_dataloader(
    dataset_path: str,
    temporal_context: int = 3,
    chunk_size: int = 50,
    batch_size: int = 8,
    shuffle: bool = False,
    num_workers: int = 0,
    camera_names: Sequence[str] | None = None,
    allow_pickle: bool = True,
) -> TemporalLoader:
    """Every step of every episode of a dataset, in any format that training reads; ``hub:...`` too, once fetched.

    ``allow_pickle``: True, unlike anywhere else, because the guide's snippets call this with a path alone and its
    ``observations.npy`` is a pickle; nothing but arrays is taken out of it, and no code of it runs. Raises UserError
    when the dataset is not there or not valid.
    """
    folder = local_dataset(dataset_path)
    options = {"allow_pickle": allow_pickle} if format_of(folder) == "npy" else {}
    cameras = None if camera_names is None else [name.removeprefix(IMAGE_PREFIX) for name in camera_names]
    reader = open_dataset(folder, cameras=cameras, **options)
    collator = _Raw(temporal_context, chunk_size, tuple(reader.description.cameras), reader.description.proprio_dim)
    return TemporalLoader(
        build_validation_loader(
            reader,
            np.arange(len(reader.lengths)),
            collator,
            batch_size=batch_size,
            shuffle=shuffle,
            workers=num_workers,
        )
    )


class _Raw:
    """Stacks samples as they are."""

    def __init__(self, temporal_context: int, chunk_size: int, cameras: Sequence[str], state_dim: int) -> None:
        self.window = WindowSpec(observation_steps=temporal_context, action_horizon=chunk_size)
        state = ("proprio",) if state_dim else ()
        self.keys = (*(IMAGE_PREFIX + camera for camera in cameras), *state)

    def collate(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """``obs`` and ``actions`` in one dictionary."""
        batch = {"state" if key == "proprio" else key: [s["observation"][key] for s in samples] for key in self.keys}
        batch[SEEN] = [sample["observation"]["pad_mask"] for sample in samples]
        batch[PAD] = [~sample["action_pad_mask"] for sample in samples]
        batch["actions"] = [sample["action"] for sample in samples]
        return {key: torch.from_numpy(np.stack(values)) for key, values in batch.items()}
