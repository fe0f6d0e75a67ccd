"""Which attention backends an image gets: decided before the build, so that its label states what is inside."""

from __future__ import annotations

import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from vla_ft.environment.table import Environment
from vla_ft.errors import UserError
from vla_ft.host.wheelhouse import file_name, find_flash_attention

FlashMode = Literal["auto", "require", "off"]
FLASH = "flash_attention_2"


@dataclass(frozen=True)
class Attention:
    """The backends of an image and how flash-attn comes into it."""

    backends: tuple[str, ...]
    """Fastest first; what the label ``vla_ft.attention`` says."""
    requirement: str
    """A requirements line with a hash, or empty."""
    wheel: Path | None
    """The local file that the requirement installs, if it is local."""
    reason: str
    """One sentence for the user."""


def reachable(url: str, ca_bundle: Path | None, timeout: float = 15.0) -> str | None:
    """None when a file can be fetched (its first byte is), else why not."""
    context = ssl.create_default_context(cafile=str(ca_bundle) if ca_bundle else None)
    request = urllib.request.Request(url, headers={"Range": "bytes=0-0"})
    try:
        with urllib.request.urlopen(request, timeout=timeout, context=context) as answer:
            answer.read(1)
    except urllib.error.HTTPError as error:
        return f"HTTP {error.code}"
    except (urllib.error.URLError, OSError) as error:
        return str(getattr(error, "reason", error))
    return None


def decide(
    environment: Environment,
    mode: str,
    folders: Sequence[Path],
    ca_bundle: Path | None,
    probe: Callable[[str, Path | None], str | None] = reachable,
) -> Attention:
    """Choose for ``--flash-attn MODE``: a wheel in ``folders`` first, then the pinned release, else PyTorch's own SDPA.

    Raises UserError for ``require`` where there is no wheel or it cannot be had.
    """
    if mode not in get_args(FlashMode):
        raise UserError(f"--flash-attn {mode} is unknown. Expected auto, require or off.")
    without = tuple(name for name in environment.attention if name != FLASH)
    wheel = environment.flash_attention
    if wheel is None:
        reason = f"environment {environment.name} has no prebuilt flash-attn"
        if mode == "require":
            raise UserError(f"--flash-attn require: {reason}. Use auto or off; attention then runs through SDPA.")
        return Attention(without, "", None, f"Attention: {', '.join(without)} ({reason}).")
    if mode == "off":
        return Attention(without, "", None, f"Attention: {', '.join(without)} (--flash-attn off).")
    local = find_flash_attention(wheel, folders)
    if local:
        # A direct reference: the wheel's metadata lacks the local version of its file name, and by name pip refuses it.
        line = f"flash-attn @ file:///wheelhouse/{local.name} --hash=sha256:{wheel.sha256}"
        return Attention(environment.attention, line, local, f"Attention: flash-attn {wheel.version} from {local}.")
    problem = probe(wheel.url, ca_bundle)
    if problem is None:
        line = f"flash-attn @ {wheel.url} --hash=sha256:{wheel.sha256}"
        return Attention(environment.attention, line, None, f"Attention: flash-attn {wheel.version} from its release.")
    if mode == "require":
        raise UserError(
            f"--flash-attn require: {wheel.url} cannot be fetched ({problem}). "
            f"Put {file_name(wheel)} into a folder and give it with --wheelhouse, or use --flash-attn auto."
        )
    reason = f"flash-attn's release cannot be fetched: {problem}"
    return Attention(without, "", None, f"Attention: {', '.join(without)} ({reason}).")
