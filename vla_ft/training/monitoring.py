"""What a run reports beside its own losses: common names, times, and the card as NVML sees it."""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType, TracebackType
from typing import Any

import torch

from vla_ft.policies.base import Batch

VALIDATION_LOSS = "val_loss"
"""The name that sweeps minimise: ``validation/loss`` again."""
_COMMON = {
    "total_loss": ("loss",),
    "action_loss": ("l1", "l2"),
    "kl_loss": ("kl",),
}
"""Common name -> what policies call it. The KL is unweighted, so the total is not the sum of the other two."""


def common_names(losses: Mapping[str, float]) -> dict[str, float]:
    """``total_loss``, and ``action_loss`` and ``kl_loss`` where the policy has them, from what an update returned."""
    found = {name: next((losses[own] for own in owns if own in losses), None) for name, owns in _COMMON.items()}
    return {name: value for name, value in found.items() if value is not None}


class TimedBatches(Iterator[Batch]):
    """Batches, and the seconds spent waiting for them."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches, self.waited = batches, 0.0

    def __next__(self) -> Batch:
        begin = time.perf_counter()
        try:
            return next(self._batches)
        finally:
            self.waited += time.perf_counter() - begin


class Pace:
    """How long updates take, without validation, logging and checkpoints."""

    def __init__(self, batches: TimedBatches) -> None:
        self._batches = batches
        self._updates, self._seconds, self._waited = 0, 0.0, batches.waited

    @contextmanager
    def update(self) -> Iterator[None]:
        """Around one update, whose losses are on the host when it ends: what came before on a card has finished."""
        begin = time.perf_counter()
        yield
        self._seconds += time.perf_counter() - begin
        self._updates += 1

    def read(self, updates_per_epoch: float) -> dict[str, float]:
        """Means since the last reading: ``seconds_per_batch`` (a global batch, one update), ``seconds_per_epoch`` (that
        times the updates of an epoch) and ``waiting_share``, the part of the time in which no batch was ready."""
        seconds, updates, waited = self._seconds, self._updates, self._batches.waited - self._waited
        self._updates, self._seconds, self._waited = 0, 0.0, self._batches.waited
        if updates == 0 or seconds <= 0:
            return {}
        each = seconds / updates
        return {
            "seconds_per_batch": each,
            "seconds_per_epoch": each * updates_per_epoch,
            "waiting_share": min(1.0, waited / seconds),
        }


class GpuMeter:
    """Utilisation and memory of the card that this process trains on. Without a card, or where the driver cannot tell
    (utilisation of a MIG slice), a number is absent, never zero."""

    def __init__(self, device: torch.device, nvml: ModuleType | None = None) -> None:
        """``nvml`` is the bindings' module, ``pynvml`` by default; it is not imported without a card."""
        self._nvml: Any = None
        self._handle: Any = None
        if device.type == "cuda":
            self._open(device, nvml)

    def _open(self, device: torch.device, nvml: ModuleType | None) -> None:
        try:
            bindings = nvml or importlib.import_module("pynvml")
        except ImportError:
            return
        try:
            bindings.nvmlInit()
        except bindings.NVMLError:
            return
        self._nvml = bindings
        # NVML counts all cards, torch those that CUDA_VISIBLE_DEVICES leaves: only the UUID means the same to both.
        uuid = str(torch.cuda.get_device_properties(device).uuid)
        for prefix in ("GPU-", "MIG-"):
            try:
                self._handle = bindings.nvmlDeviceGetHandleByUUID(prefix + uuid)
                return
            except bindings.NVMLError:
                continue

    def read(self) -> dict[str, float]:
        """``gpu_utilization`` in percent, over the driver's last sampling period, and ``gpu_memory_gib`` in use on the
        card, by every process."""
        if self._handle is None:
            return {}
        return self._ask("gpu_utilization", lambda: self._nvml.nvmlDeviceGetUtilizationRates(self._handle).gpu) | (
            self._ask("gpu_memory_gib", lambda: self._nvml.nvmlDeviceGetMemoryInfo(self._handle).used / 2**30)
        )

    def _ask(self, name: str, question: Any) -> dict[str, float]:
        try:
            return {name: float(question())}
        except self._nvml.NVMLError:
            return {}

    def __enter__(self) -> GpuMeter:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """Let go of NVML."""
        if self._nvml is not None:
            self._nvml.nvmlShutdown()
            self._nvml = self._handle = None
