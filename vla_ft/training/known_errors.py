"""Errors of torch, CUDA and Python that have a known cause, told as the cause and what to do.

They are recognised by their text: torch raises most of them as a bare RuntimeError. No torch is imported here.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vla_ft.errors import UserError

if TYPE_CHECKING:
    from vla_ft.config import RunConfig


def explain(error: BaseException, config: RunConfig | None = None) -> str | None:
    """The cause and what to do, or None for an error that is not known. ``config``: the run that met it."""
    text = f"{type(error).__name__}: {error}"
    for pattern, answer in _KNOWN:
        if re.search(pattern, text, re.IGNORECASE):
            return answer(str(error), config)
    return None


@contextmanager
def explained(config: RunConfig) -> Iterator[None]:
    """Inside, known errors become UserErrors that name keys of the run; others pass unchanged."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        said = explain(error, config)
        if said is None:
            raise
        raise UserError(said) from error


def _card_memory(text: str, config: RunConfig | None) -> str:
    asked = re.search(r"Tried to allocate ([\d.]+ \w+)", text)
    free = re.search(r"of which ([\d.]+ \w+) is free", text)
    wanted = f" (it asked for {asked[1]}{f' with {free[1]} free' if free else ''})" if asked else ""
    if config is None:
        return (
            f"CUDA out of memory{wanted}: the card does not hold what was asked of it. Lower batch=, or leave the card "
            "to this process alone (`nvidia-smi`)."
        )
    size = config.batch.per_device
    parts = next((n for n in range(2, size + 1) if size % n == 0), 1)  # the fewest equal pieces
    smaller = f"batch.per_device={size // parts} batch.accumulation={config.batch.accumulation * parts}"
    batch = (
        f"batch.per_device is {size}: try {smaller}, the same global batch in smaller pieces"
        if size > 1
        else "batch.per_device is 1 already: offload=, lora. or another engine= remain"
    )
    again = "" if config.activation_checkpointing else ", or activation_checkpointing=true"
    return (
        f"CUDA out of memory{wanted}. {batch}{again}. `vla-ft plan recipe={config.recipe} card=NAME` tells what fits "
        "before anything is loaded; `nvidia-smi` shows who else holds the card."
    )


def _no_kernel(text: str, config: RunConfig | None) -> str:
    return (
        f"CUDA error, no kernel image: {_torch()} holds no code for this card's generation (an RTX 50 card needs "
        "sm_120, which torch 2.8.0+cu128 has). Build the environment of the card: `invoke build --gpu NAME`; "
        "`invoke doctor` says which one that is."
    )


def _old_driver(text: str, config: RunConfig | None) -> str:
    return (
        f"GPU not detected: the NVIDIA driver is older than the CUDA of {_torch()}. Raise the driver, or take the "
        "environment that fits it; `invoke doctor` names both."
    )


def _module(text: str, config: RunConfig | None) -> str:
    return (
        "No module named 'policy': Python looks beside the script and in the current folder, and the guide's package "
        "`policy` lies in examples/act_guide. Run from that folder (cd examples/act_guide), or put it on PYTHONPATH."
    )


def _shared_memory(text: str, config: RunConfig | None) -> str:
    return (
        "A loader process died for want of shared memory (/dev/shm), through which batches come. Start the container "
        "with --ipc=host or a larger --shm-size (compose.yaml does), or set data.workers=0."
    )


def _host_memory(text: str, config: RunConfig | None) -> str:
    return (
        "The host is out of memory. Lower data.workers or batch.per_device, or set engine=fsdp2, which holds one copy "
        "of the model while it starts."
    )


def _compiler(text: str, config: RunConfig | None) -> str:
    said = re.search(r"^.*\berror:.*$", text, re.MULTILINE)
    told = f": {said[0].strip()}" if said else ""
    if re.search(r"Killed|out of memory|virtual memory exhausted|No space left", text):
        return (
            f"torch.compile's C++ compiler was stopped for want of memory or disk{told}. Free some, compile with fewer "
            "processes (TORCHINDUCTOR_COMPILE_THREADS=1), or set compile=false."
        )
    return (
        f"torch.compile made code that this machine's C++ compiler refuses{told}. That is a fault of {_torch()} or of "
        "the compiler, not of the run: set compile=false, or take another environment."
    )


_KNOWN: tuple[tuple[str, Callable[[str, RunConfig | None], str]], ...] = (
    (r"CUDA out of memory|CUDA error: out of memory|CU\w+_STATUS_ALLOC_FAILED", _card_memory),
    (r"no kernel image is available|sm_\d+ is not compatible", _no_kernel),
    (r"driver version is insufficient|NVIDIA driver on your system is too old", _old_driver),
    (r"No module named '?policy(\.|'|$)", _module),
    (r"unable to (open|allocate|write to) (shared memory|file <.*torch_)|killed by signal: Bus error", _shared_memory),
    (r"C\+\+ compile error|CppCompileError", _compiler),
    (r"DefaultCPUAllocator: (can't allocate|not enough) memory|^MemoryError", _host_memory),
)
"""Pattern of ``Type: text`` -> the answer. First match wins."""


def _torch() -> str:
    """The torch of this process in words; it is not imported for it."""
    torch = sys.modules.get("torch")
    return f"torch {torch.__version__}" if torch is not None else "this torch"
