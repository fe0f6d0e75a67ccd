"""LeRobot datasets of a hub: ``hub:owner/name[@revision]`` stands for what ``vla-ft fetch dataset`` brought."""

from __future__ import annotations

from pathlib import Path

from vla_ft.errors import UserError
from vla_ft.weights.catalogue import Entry, parse_repository
from vla_ft.weights.places import resolve_entry

PREFIX = "hub:"
"""Begins a path that is the name of a fetched dataset."""
_FILES = ("meta/*", "data/*", "videos/*")


def dataset_entry(name: str) -> Entry:
    """What to fetch for ``owner/name[@revision]``: a LeRobot dataset's tables, numbers and videos. Raises UserError.

    A commit is enforced; a branch or tag (``v3.0``) is trusted on first use, and its commit recorded.
    """
    match = parse_repository(name.removeprefix(PREFIX))
    if match is None:
        raise UserError(
            f"'{name}' names no dataset of a hub. Expected owner/name or owner/name@revision, such as "
            "lerobot/aloha_sim_transfer_cube_human@v3.0."
        )
    repository, revision = match
    return Entry(
        name=name.removeprefix(PREFIX),
        about="a dataset",
        license="see its page",
        source="named by you",
        files=_FILES,
        repository=repository,
        revision=revision,
        kind="dataset",
    )


def local_dataset(path: str) -> Path:
    """The folder that a data path stands for: itself, or for ``hub:...`` where it was fetched to. No network is used.

    Raises UserError, with the command, for a dataset that was not fetched or is not whole.
    """
    return resolve_entry(dataset_entry(path)) if path.startswith(PREFIX) else Path(path)
