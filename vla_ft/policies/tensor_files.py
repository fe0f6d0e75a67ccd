"""The one place where files of foreign tensors are opened: safetensors, or torch files without code in them."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vla_ft.errors import UserError

TORCH_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Tensors by name, on the CPU. Raises UserError when the file is missing, damaged, or holds more than tensors.

    Torch files are read with ``weights_only=True``: a pickle could run any program.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"No weights file at {path}. Give the path of a .safetensors, .pt, .pth or .ckpt file.")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in TORCH_SUFFIXES:
        return _read_torch(path)
    raise UserError(f"{path} ends in '{path.suffix}'; expected .safetensors or one of {', '.join(TORCH_SUFFIXES)}.")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} is no complete safetensors file ({error}). Copy or download it again.") from error


def _read_torch(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is no torch file, or holds Python objects beside tensors, which loading could execute; it was "
            "not read. Save the state dict alone: torch.save(model.state_dict(), ...)."
        ) from error
    except (RuntimeError, EOFError, ValueError) as error:
        raise UserError(f"{path} is no complete torch file ({error}). Copy or download it again.") from error
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        seen = f"a dict with {', '.join(map(repr, list(content)[:6]))}" if isinstance(content, dict) else type(content)
        raise UserError(f"{path} holds {seen}, expected a plain state dict (name -> tensor).")
    return content
