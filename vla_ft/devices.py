"""The device of a process: the one that was promised, or an error. CUDA never becomes the CPU unnoticed."""

from __future__ import annotations

import os

import torch

from vla_ft.errors import UserError

PROMISED_DEVICE = "VLA_FT_DEVICE"
"""The launcher's promise, ``cpu`` or ``cuda``: images and local environments set it by what they are made for."""


def choose_device(wanted: str) -> torch.device:
    """The device of this process (``auto``, ``cpu`` or ``cuda``). Raises UserError when it is not there."""
    promised = os.environ.get(PROMISED_DEVICE) or "auto"
    if promised not in ("auto", "cpu", "cuda"):
        raise UserError(f"{PROMISED_DEVICE} is '{promised}', expected cpu or cuda. Mend it in .env or the shell.")
    if "auto" not in (promised, wanted) and promised != wanted:
        raise UserError(
            f"device={wanted}, but this environment was started for {promised} ({PROMISED_DEVICE}). "
            f"Say device={promised}, or start it with `invoke use --gpu ...`."
        )
    kind = promised if wanted == "auto" else wanted
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "GPU not detected: a CUDA device was promised and torch finds none "
            f"(torch {torch.__version__}, CUDA {torch.version.cuda}). {_cause()} Run `invoke doctor` on the host."
        )
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device("cpu") if kind == "cpu" else _card(int(os.environ.get("LOCAL_RANK", "0")))


def _cause() -> str:
    """Why torch may find no card, as far as this process can see."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if torch.version.cuda is None:
        return "This torch is built without CUDA: take the environment of your card (`invoke build --gpu NAME`)."
    if visible is not None and visible.strip() in ("", "-1", "none", "NoDevFiles"):
        return f"CUDA_VISIBLE_DEVICES='{visible}' hides every card: unset it."
    return "Look whether `nvidia-smi` lists the card, and whether the container was started with it (--gpus all)."


def _card(index: int) -> torch.device:
    if index >= torch.cuda.device_count():
        raise UserError(
            f"Process {index} of this machine has no card of its own: {torch.cuda.device_count()} visible. "
            "Lower devices=, or make more cards visible (CUDA_VISIBLE_DEVICES)."
        )
    torch.cuda.set_device(index)
    return torch.device("cuda", index)
