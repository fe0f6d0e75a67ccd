"""A run of Weights & Biases: logging in, scalars, and checkpoints as artifacts."""

from __future__ import annotations

import netrc
import os
import re
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from vla_ft.config import LoggingConfig
from vla_ft.errors import UserError

_KEY, _TOKEN, _HOST = "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL"
_MEND = "Run `wandb login`, or set WANDB_API_KEY; without network set logging.wandb=offline and `wandb sync` later."


def require_login(config: LoggingConfig) -> None:
    """Raise UserError when numbers should go to W&B's server and nobody is logged in there."""
    if config.wandb == "online" and not _logged_in():
        raise UserError(f"WandB is not logging: logging.wandb=online, and nobody is logged in to {_host()}. {_MEND}")


def note(config: LoggingConfig) -> str | None:
    """What to say of W&B settings that have no effect because it is off; None when there are none."""
    plain = LoggingConfig()
    given = [name for name in ("project", "entity", "name", "tags") if getattr(config, name) != getattr(plain, name)]
    if config.wandb != "off" or not given:
        return None
    return (
        f"WandB is not logging: logging.{given[0]}={getattr(config, given[0])} is set, but logging.wandb=off. "
        "Set logging.wandb=online (after `wandb login`) or offline."
    )


class WandbRun:
    """One W&B run, continued under the same name when the run folder is."""

    def __init__(self, folder: Path, config: LoggingConfig, settings: dict[str, Any]) -> None:
        """``settings``: the run's configuration, shown beside its curves. Raises UserError if W&B does not answer."""
        require_login(config)
        import wandb

        self._name = config.name or folder.name
        self._kept = folder.absolute() / "wandb" / "kept"
        if config.artifacts:
            # Copies wait here for an upload, maybe by a later `wandb sync`: beside the run, not in a home folder.
            os.environ.setdefault("WANDB_DATA_DIR", str(folder.absolute() / "wandb"))
            (folder / "wandb").mkdir(parents=True, exist_ok=True)
        try:
            self._run = wandb.init(
                dir=str(folder),
                mode="online" if config.wandb == "online" else "offline",
                project=config.project,
                entity=config.entity,
                name=self._name,
                tags=list(config.tags),
                id=os.environ.get("WANDB_RUN_ID") or _identity(folder),  # a sweep's agent names the run
                resume="allow" if config.wandb == "online" else None,
                reinit="create_new",  # by default W&B hands out a run that this process has open already
                config=settings,
            )
        except wandb.errors.Error as error:
            raise UserError(f"WandB is not logging: {error} {_MEND}") from None

    def log(self, step: int, values: dict[str, float]) -> None:
        """Record scalars after ``step`` updates."""
        self._run.log(values, step=step)

    def checkpoint(self, step: int, folder: Path, files: Sequence[Path] | None = None) -> None:
        """Keep a checkpoint as the artifact ``<name>-checkpoint``, alias ``step-N``: a copy of its folder.

        ``files``: these instead, under a second name each, so that they take no room twice; none of them, no artifact.
        They may be renamed or replaced afterwards, but not written to.
        """
        import wandb

        if files is not None and not files:
            return
        name = re.sub(r"[^A-Za-z0-9._-]", "-", self._name)
        artifact = wandb.Artifact(f"{name}-checkpoint", type="model", metadata={"step": step})
        if files is None:
            artifact.add_dir(str(folder))  # copied: the folder may be gone before it is uploaded
        for file in files or ():
            kept = _second_name(file, self._kept / f"step-{step}")
            artifact.add_file(str(kept), name=file.name, policy="immutable", skip_cache=True)
        self._run.log_artifact(artifact, aliases=["latest", f"step-{step}"])

    def finish(self) -> None:
        """Flush and close; online, wait for uploads."""
        self._run.finish()


def _second_name(file: Path, folder: Path) -> Path:
    """``file`` in another folder too: a hard link, or a copy where the disk has none."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / file.name
    kept.unlink(missing_ok=True)  # of this step before a resume
    try:
        os.link(file, kept)
    except OSError:
        shutil.copyfile(file, kept)
    return kept


def _identity(folder: Path) -> str:
    """The id of this run folder's W&B run, made once."""
    file = folder / "wandb_id"
    if not file.is_file():
        file.write_text(uuid.uuid4().hex[:8])
    return file.read_text()


def _host() -> str:
    return urlsplit(os.environ.get(_HOST) or "https://api.wandb.ai").hostname or "api.wandb.ai"


def _logged_in() -> bool:
    """Whether W&B will find a key: in the environment, or where `wandb login` puts it."""
    if os.environ.get(_KEY) or os.environ.get(_TOKEN):
        return True
    file = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    try:
        return _host() in netrc.netrc(str(file)).hosts
    except (OSError, netrc.NetrcParseError):
        return False
