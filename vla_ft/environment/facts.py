"""What this machine is: cards and driver as NVML tells them, the Docker engine, shared memory, disk.

Facts are plain values that go to JSON and back, so that checks are judged in tests by the recorded answers of machines
that are not at hand. Gathering never raises: what could not be learned is itself a fact.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import platform
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from vla_ft.environment.table import REPOSITORY

GIB = 2**30

NVML_OK = "ok"
NVML_NO_BINDINGS = "no bindings"
NVML_NO_LIBRARY = "no library"
NVML_NO_DRIVER = "no driver"
NVML_MISMATCH = "mismatch"
NVML_FAILED = "failed"


@dataclass(frozen=True)
class Device:
    """One card as the driver reports it."""

    name: str
    compute_capability: tuple[int, int]
    memory_bytes: int

    @property
    def memory_gib(self) -> float:
        """Total memory, GiB."""
        return self.memory_bytes / GIB


@dataclass(frozen=True)
class Gpus:
    """NVML's answer."""

    state: str = NVML_NO_LIBRARY
    """``ok``; ``no bindings`` (the Python package is missing); ``no library`` (no NVIDIA driver is installed);
    ``no driver`` (installed, but not loaded or without a card); ``mismatch`` (library and kernel module differ);
    ``failed`` (anything else, told in ``message``)."""
    driver: str | None = None
    devices: tuple[Device, ...] = ()
    message: str = ""


@dataclass(frozen=True)
class Image:
    """A vla_ft image in the engine, by its labels."""

    tag: str
    environment: str
    lock_hash: str


@dataclass(frozen=True)
class Engine:
    """The Docker engine's answer."""

    state: str = "not asked"
    """``ok``; ``no sdk``; ``unreachable``; ``not asked`` (inside an image nobody asks)."""
    version: str = ""
    nvidia_runtime: bool = False
    compose: str | None = None
    """Compose's version, or None without the plugin."""
    buildx: str | None = None
    root: str = ""
    """Folder of the engine's images."""
    images: tuple[Image, ...] = ()
    message: str = ""
    users: str = ""
    """How it maps a container's users: ``rootless`` (its root is the caller), ``remapped`` (userns-remap), or not."""


@dataclass(frozen=True)
class Facts:
    """A machine."""

    system: str = "Linux"
    machine: str = "x86_64"
    gpus: Gpus = field(default_factory=Gpus)
    engine: Engine = field(default_factory=Engine)
    shared_memory_bytes: int | None = None
    """Size of /dev/shm; None where there is none."""
    disk_free_bytes: dict[str, int] = field(default_factory=dict, hash=False)
    """Free space by folder: the clone, and the engine's root."""
    in_container: bool = False


def gather(repository: Path = REPOSITORY) -> Facts:
    """This machine without its Docker engine (``vla_ft.host.engine`` adds that)."""
    return Facts(
        system=platform.system(),
        machine=platform.machine(),
        gpus=gather_gpus(),
        shared_memory_bytes=_size("/dev/shm"),
        disk_free_bytes={str(repository): shutil.disk_usage(repository).free},
        in_container=Path("/.dockerenv").exists() or Path("/run/.containerenv").exists(),
    )


def gather_gpus(nvml: ModuleType | None = None) -> Gpus:
    """Ask NVML for the driver and its cards; ``nvml`` is the bindings' module, ``pynvml`` by default."""
    try:
        bindings = nvml or importlib.import_module("pynvml")
    except ImportError as error:
        return Gpus(NVML_NO_BINDINGS, message=str(error))
    try:
        bindings.nvmlInit()
    except bindings.NVMLError as error:
        return Gpus(_state(bindings, error), message=str(error))
    try:
        return _ask(bindings)
    except bindings.NVMLError as error:
        return Gpus(NVML_FAILED, message=str(error))
    finally:
        bindings.nvmlShutdown()


def _ask(nvml: ModuleType) -> Gpus:
    devices = []
    for index in range(nvml.nvmlDeviceGetCount()):
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
        name = _text(nvml.nvmlDeviceGetName(handle))
        devices.append(Device(name, (int(major), int(minor)), int(nvml.nvmlDeviceGetMemoryInfo(handle).total)))
    driver = _text(nvml.nvmlSystemGetDriverVersion())
    return Gpus(NVML_OK if devices else NVML_NO_DRIVER, driver, tuple(devices))


def _state(nvml: ModuleType, error: Exception) -> str:
    states = {
        nvml.NVML_ERROR_LIBRARY_NOT_FOUND: NVML_NO_LIBRARY,
        nvml.NVML_ERROR_DRIVER_NOT_LOADED: NVML_NO_DRIVER,
        nvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: NVML_MISMATCH,
    }
    return states.get(getattr(error, "value", None), NVML_FAILED)


def _text(value: str | bytes) -> str:
    """Older bindings answer in bytes."""
    return value.decode() if isinstance(value, bytes) else value


def _size(folder: str) -> int | None:
    try:
        return shutil.disk_usage(folder).total
    except OSError:
        return None


def to_json(facts: Facts) -> str:
    """Facts as JSON: the form in which an answer is recorded."""
    return json.dumps(dataclasses.asdict(facts), indent=2)


def from_json(text: str) -> Facts:
    """Facts as they were recorded. Absent keys take their defaults."""
    raw: dict[str, Any] = json.loads(text)
    gpus = dict(raw.pop("gpus", {}))
    gpus["devices"] = tuple(
        Device(one["name"], (one["compute_capability"][0], one["compute_capability"][1]), one["memory_bytes"])
        for one in gpus.get("devices", [])
    )
    engine = dict(raw.pop("engine", {}))
    engine["images"] = tuple(Image(**one) for one in engine.get("images", []))
    return Facts(gpus=Gpus(**gpus), engine=Engine(**engine), **raw)
