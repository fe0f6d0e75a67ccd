"""Lock files: reading them, splitting them into image layers, and holding an installation against them.

A lock is a requirements file in which every line is an exact pin with hashes; it holds no addresses.
``python -m vla_ft.environment.locks split LOCK FOLDER`` writes the layers, ``... check LOCK`` judges this interpreter.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from importlib import metadata
from pathlib import Path

from vla_ft.errors import UserError

FROM_SOURCE = frozenset({"deepspeed"})
"""Packages that publish no wheel; the lock holds the hash of their source archive.

Their wheel is made on the spot, without isolation, so torch and the stack are installed before.
"""

_PIN = re.compile(r"^(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>[^\s;\\]+)\s*(?P<marker>;[^\\]*)?")
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})(?=\s|$)")


@dataclass(frozen=True)
class Pin:
    """One package of a lock."""

    name: str
    """Normalised: lower case, dashes."""
    version: str
    hashes: tuple[str, ...]
    """sha256 of every file that may be installed for it, hexadecimal."""
    text: str
    """Its lines as they stand in the lock, with a final newline."""


@dataclass(frozen=True)
class Layers:
    """A lock in the order in which it is installed: what changes least first, so that image layers are kept."""

    torch: tuple[Pin, ...]
    """torch alone: the only package that may come from torch's own index or from a wheel folder."""
    cuda: tuple[Pin, ...]
    """CUDA's libraries and Triton, from the default index. Empty for ``cpu``."""
    stack: tuple[Pin, ...]
    """Everything else that comes as wheels, the same in every environment."""
    source: tuple[Pin, ...]
    """What is built from its source archive (``FROM_SOURCE``), the same in every environment."""


LAYERS = tuple(field.name for field in fields(Layers))
"""Names of the layers, in the order in which they are installed."""


def normalise(name: str) -> str:
    """A distribution name as the packaging rules compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def parse_lock(text: str, source: str = "lock") -> list[Pin]:
    """Pins of a lock's text, in its order. Raises UserError for a line that is no pin with sha256 hashes."""
    pins: list[Pin] = []
    for block in _blocks(text):
        match = _PIN.match(block)
        hashes = tuple(_HASH.findall(block))
        first = block.splitlines()[0]
        if match is None:
            raise UserError(f"{source}: '{first}' is no exact pin. Expected 'name==version' with --hash lines.")
        if not hashes:
            raise UserError(f"{source}: '{first}' has no sha256 hash. Make the lock again with `invoke lock`.")
        pins.append(Pin(normalise(match["name"]), match["version"], hashes, block))
    if not pins:
        raise UserError(f"{source} holds no pins. Make the lock again with `invoke lock`.")
    names = [pin.name for pin in pins]
    for name in set(names):
        if names.count(name) > 1:
            raise UserError(f"{source}: '{name}' is pinned {names.count(name)} times. Expected one pin a package.")
    return pins


def read_lock(path: Path) -> list[Pin]:
    """Pins of a lock file. Raises UserError when it is missing or not a lock."""
    if not path.is_file():
        raise UserError(f"Lock {path} is missing. Make it with `invoke lock --env {path.parent.name}`.")
    return parse_lock(path.read_text(encoding="utf-8"), str(path))


def split(pins: Iterable[Pin]) -> Layers:
    """The layers of a lock."""
    torch, cuda, stack, source = [], [], [], []
    for pin in pins:
        if pin.name == "torch":
            torch.append(pin)
        elif is_cuda(pin.name):
            cuda.append(pin)
        elif pin.name in FROM_SOURCE:
            source.append(pin)
        else:
            stack.append(pin)
    return Layers(tuple(torch), tuple(cuda), tuple(stack), tuple(source))


def is_cuda(name: str) -> bool:
    """Whether a package belongs to CUDA's layer. NVML's bindings are plain Python and belong to the stack."""
    return name == "triton" or (name.startswith("nvidia-") and name != "nvidia-ml-py")


def write_layers(lock: Path, folder: Path) -> list[Path]:
    """Write ``torch.txt``, ``cuda.txt``, ``stack.txt`` and ``source.txt`` of a lock, in this order.

    A layer without packages is an empty file.
    """
    layers = split(read_lock(lock))
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name in LAYERS:
        path = folder / f"{name}.txt"
        path.write_text("".join(pin.text for pin in getattr(layers, name)), encoding="utf-8")
        written.append(path)
    return written


def installed() -> dict[str, str]:
    """Versions of this interpreter's distributions by normalised name."""
    return {normalise(one.name): one.version for one in metadata.distributions() if one.name}


def differences(pins: Iterable[Pin], have: Mapping[str, str]) -> list[str]:
    """One sentence for each pin that is not installed in exactly its version."""
    found = []
    for pin in pins:
        version = have.get(pin.name)
        if version is None:
            found.append(f"{pin.name} is not installed; the lock pins {pin.version}")
        elif version != pin.version:
            found.append(f"{pin.name} is {version}; the lock pins {pin.version}")
    return found


def changes(old: Iterable[Pin], new: Iterable[Pin]) -> list[str]:
    """What a new lock changes, one line a package: added, removed, moved, or other files under the same version."""
    before = {pin.name: pin for pin in old}
    after = {pin.name: pin for pin in new}
    lines = []
    for name in sorted(before.keys() | after.keys()):
        if name not in before:
            lines.append(f"+ {name} {after[name].version}")
        elif name not in after:
            lines.append(f"- {name} {before[name].version}")
        elif before[name].version != after[name].version:
            lines.append(f"~ {name} {before[name].version} -> {after[name].version}")
        elif set(before[name].hashes) != set(after[name].hashes):
            count, formerly = len(after[name].hashes), len(before[name].hashes)
            lines.append(f"# {name} {after[name].version}: other files ({count} hashes, {formerly} before)")
    return lines


def _blocks(text: str) -> list[str]:
    """Logical lines: a line and what its trailing backslashes continue. Comments and blank lines are dropped."""
    blocks: list[str] = []
    continued = False
    for line in text.splitlines():
        if not continued and (not line.strip() or line.lstrip().startswith("#")):
            continue
        if continued:
            blocks[-1] += line.rstrip() + "\n"
        else:
            blocks.append(line.rstrip() + "\n")
        continued = line.rstrip().endswith("\\")
    return blocks


def main(arguments: list[str]) -> int:
    """The command line; used by the Dockerfile and by an image's self-test."""
    try:
        match arguments:
            case ["split", lock, folder]:
                for path in write_layers(Path(lock), Path(folder)):
                    print(path)
                return 0
            case ["check", lock]:
                wrong = differences(read_lock(Path(lock)), installed())
                print("\n".join(wrong) if wrong else "every locked version is installed")
                return 1 if wrong else 0
        raise UserError("usage: python -m vla_ft.environment.locks (split LOCK FOLDER | check LOCK)")
    except UserError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
