"""The one table of cards and environments: ``envs/gpus.toml`` and ``envs/<environment>/environment.toml``.

Images, locks, the doctor, the CI matrix and the memory forecast all read it from here; no version is written elsewhere.
"""

from __future__ import annotations

import hashlib
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vla_ft.errors import UserError, nearest

if sys.version_info >= (3, 11):
    import tomllib
else:  # host tools also run on Python 3.10
    import tomli as tomllib

REPOSITORY = Path(__file__).resolve().parents[2]
"""The folder that holds ``envs/``: the clone on a host, ``/opt/vla_ft`` in an image (both installs are editable)."""

ENVIRONMENTS = REPOSITORY / "envs"

Version = tuple[int, ...]


def parse_version(text: str) -> Version:
    """Numbers of a dotted version, for comparing drivers and CUDA versions: ``'570.26'`` -> ``(570, 26)``."""
    return tuple(int(part) for part in re.findall(r"\d+", text))


def parse_sm(text: str) -> tuple[int, int]:
    """Compute capability of an architecture flag: ``'sm_86'`` -> ``(8, 6)``, ``'sm_120'`` -> ``(12, 0)``."""
    match = re.fullmatch(r"sm_(\d+)(\d)[af]?", text)
    if match is None:
        raise UserError(f"'{text}' is no architecture flag. Expected a name such as 'sm_86' or 'sm_120'.")
    return int(match[1]), int(match[2])


@dataclass(frozen=True)
class Card:
    """A card that people name."""

    name: str
    aliases: tuple[str, ...]
    nvml_names: tuple[str, ...]
    """Products as the driver reports them, without the leading ``NVIDIA``."""
    compute_capability: tuple[int, int]
    memory_gib: float
    """Total memory as the driver reports it, GiB."""
    generation: str
    environment: str
    """Name of the environment that it gets when nothing else is said."""

    @property
    def sm(self) -> str:
        """Its architecture flag, such as ``sm_86``."""
        return "sm_{}{}".format(*self.compute_capability)

    @property
    def bf16(self) -> bool:
        """Whether it computes in bfloat16 in hardware (Ampere and later)."""
        return self.compute_capability >= (8, 0)


@dataclass(frozen=True)
class Refused:
    """Cards that cannot work here."""

    names: tuple[str, ...]
    capabilities: tuple[tuple[int, int], ...]
    """Compute capabilities that only such cards have."""
    reason: str


@dataclass(frozen=True)
class FlashAttention:
    """The prebuilt flash-attn wheel that fits an environment's torch."""

    url: str
    sha256: str
    version: str


@dataclass(frozen=True)
class Unverified:
    """A statement of the table that could not be checked when it was written, and where it was taken from."""

    what: str
    source: str


@dataclass(frozen=True)
class Environment:
    """One set of pinned packages: a torch build with its CUDA, and the stack that all environments share."""

    name: str
    folder: Path
    python: str
    cuda: str | None
    torch: str
    """Exact pin, local version included: ``2.7.1+cu118``."""
    torch_sha256: str
    torch_index: str | None
    """torch's own wheel index where the default index lacks this build; only torch is ever asked for there."""
    minimum_driver: str | None
    """Oldest driver under CUDA's minor-version compatibility; None without CUDA."""
    native_driver: str | None
    """Driver that shipped with this CUDA: from here on nothing is limited."""
    sm: tuple[str, ...]
    """Architecture flags that torch must hold."""
    attention: tuple[str, ...]
    """Attention backends that can exist here, fastest first."""
    flash_attention: FlashAttention | None = None
    unverified: tuple[Unverified, ...] = ()
    extras: tuple[str, ...] = ()
    """Add-on locks beside the lock, such as ``sim`` (``sim.lock``)."""
    minimum_driver_by_generation: dict[str, str] = field(default_factory=dict, hash=False)

    @property
    def lock(self) -> Path:
        """The lock file."""
        return self.folder / "requirements.lock"

    @property
    def torch_wheel(self) -> str:
        """File name of torch's wheel, as every index and wheel folder spells it."""
        tag = "cp" + self.python.replace(".", "")
        return f"torch-{self.torch}-{tag}-{tag}-manylinux_2_28_x86_64.whl"

    @property
    def lock_hash(self) -> str:
        """First 12 hexadecimal digits of the sha256 of the lock's text: in image tags, labels and stamps."""
        if not self.lock.is_file():
            raise UserError(
                f"Environment '{self.name}' has no lock: {self.lock} is missing. Run `invoke lock --env {self.name}`."
            )
        return hashlib.sha256(self.lock.read_bytes()).hexdigest()[:12]

    @property
    def device(self) -> str:
        """What a run in it is promised: ``cuda`` or ``cpu``."""
        return "cuda" if self.cuda else "cpu"

    @property
    def cuda_version(self) -> Version:
        """CUDA as numbers, ``()`` without CUDA: environments sort by it, oldest first."""
        return parse_version(self.cuda) if self.cuda else ()

    def extra_lock(self, extra: str) -> Path:
        """Lock file of an add-on. Raises UserError for an add-on that this environment does not have."""
        if extra not in self.extras:
            known = ", ".join(self.extras) or "none"
            raise UserError(f"Environment '{self.name}' has no add-on '{extra}'. Known: {known}.")
        return self.folder / f"{extra}.lock"

    def holds(self, compute_capability: tuple[int, int]) -> bool:
        """Whether torch has code for a card: cubins run on the same major with the same or a higher minor."""
        major, minor = compute_capability
        return any(have[0] == major and have[1] <= minor for have in map(parse_sm, self.sm))

    def driver_needed(self, generation: str | None = None) -> str | None:
        """Oldest driver for this environment with a card of a generation; None without CUDA."""
        if self.minimum_driver is None:
            return None
        first = self.minimum_driver_by_generation.get(generation or "", self.minimum_driver)
        return max(first, self.minimum_driver, key=parse_version)


def _key(name: str) -> str:
    """A name as compared: case, spaces, dashes and the maker's name do not matter."""
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    return plain.removeprefix("nvidia").removeprefix("geforce")


@dataclass(frozen=True)
class Table:
    """All cards and environments, checked against each other."""

    cards: tuple[Card, ...]
    environments: tuple[Environment, ...]
    """Oldest CUDA first, ``cpu`` before all."""
    refused: tuple[Refused, ...] = ()
    """Cards that cannot work here, and why."""

    def card(self, name: str) -> Card:
        """The card of a name, an alias or a product. Raises UserError with the reason or the nearest name."""
        wanted = _key(name)
        for card in self.cards:
            if wanted in map(_key, (card.name, *card.aliases, *card.nvml_names)):
                return card
        for refused in self.refused:
            if wanted in map(_key, refused.names):
                raise UserError(f"Card '{name}' cannot be used: {refused.reason}.")
        names = [card.name for card in self.cards]
        raise UserError(
            f"Unknown card '{name}'.{nearest(wanted, names)} `invoke build --list` shows every card; "
            "a new one is a line in envs/gpus.toml."
        )

    def environment(self, name: str) -> Environment:
        """The environment of a name. Raises UserError with the nearest name."""
        for environment in self.environments:
            if environment.name == name:
                return environment
        names = [environment.name for environment in self.environments]
        raise UserError(f"Unknown environment '{name}'.{nearest(name, names)} Known: {', '.join(names)}.")

    def cards_of(self, environment: str) -> list[Card]:
        """Cards whose default is this environment."""
        name = self.environment(environment).name
        return [card for card in self.cards if card.environment == name]

    def match(self, product: str) -> Card | None:
        """The card of a product name as NVML reports it, or None (laptop and MIG products are other cards)."""
        wanted = _key(product)
        return next((card for card in self.cards if wanted in map(_key, card.nvml_names)), None)

    def kin(self, product: str, compute_capability: tuple[int, int]) -> tuple[Card, ...]:
        """The card of a product; for one that is not in the table, the cards with its compute capability."""
        card = self.match(product)
        return (card,) if card else tuple(one for one in self.cards if one.compute_capability == compute_capability)

    def refusal(self, compute_capability: tuple[int, int]) -> str | None:
        """Why cards of a compute capability cannot be used here, or None."""
        reasons = (one.reason for one in self.refused if compute_capability in one.capabilities)
        return next(reasons, None)

    def environment_for(self, gpu: str) -> Environment:
        """The environment for a card, an environment's own name, or ``auto`` (what this machine has)."""
        if gpu == "auto":
            # Here and not above: facts and selection build on this module.
            from vla_ft.environment.facts import gather
            from vla_ft.environment.selection import choose

            return choose(gather(), self).environment
        if gpu in {environment.name for environment in self.environments}:
            return self.environment(gpu)
        return self.environment(self.card(gpu).environment)


def load_table(root: Path = ENVIRONMENTS) -> Table:
    """Read and check the table. Raises UserError naming the file and the line's key for anything inconsistent."""
    gpus = root / "gpus.toml"
    raw = _read(gpus)
    folders = sorted(path.parent for path in root.glob("*/environment.toml"))
    environments = sorted((_environment(folder) for folder in folders), key=lambda one: (one.cuda_version, one.name))
    cards = tuple(_card(name, entry, gpus) for name, entry in raw.get("cards", {}).items())
    refused = tuple(_refused(name, entry, gpus) for name, entry in raw.get("refused", {}).items())
    table = Table(cards, tuple(environments), refused)
    _check(table, gpus)
    return table


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path} is missing. Run from a clone of the repository, installed with `pip install -e .`.")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path} is no valid TOML: {error}.") from error


def _card(name: str, entry: dict[str, Any], path: Path) -> Card:
    expected = {"products", "aliases", "cc", "memory_gib", "generation", "environment"}
    if set(entry) != expected:
        wrong = ", ".join(sorted(set(entry) ^ expected))
        raise UserError(f"{path}: card '{name}' has missing or unknown keys ({wrong}). Expected {sorted(expected)}.")
    return Card(
        name=name,
        aliases=tuple(entry["aliases"]),
        nvml_names=tuple(entry["products"]),
        compute_capability=_capability(name, entry["cc"], path),
        memory_gib=float(entry["memory_gib"]),
        generation=entry["generation"],
        environment=entry["environment"],
    )


def _refused(name: str, entry: dict[str, Any], path: Path) -> Refused:
    if set(entry) != {"names", "cc", "reason"}:
        raise UserError(f"{path}: refused '{name}' has {', '.join(sorted(entry))}. Expected names, cc and reason.")
    capabilities = tuple(_capability(name, text, path) for text in entry["cc"])
    return Refused(tuple(entry["names"]), capabilities, entry["reason"])


def _capability(name: str, text: str, path: Path) -> tuple[int, int]:
    if not re.fullmatch(r"\d+\.\d", text):
        raise UserError(f"{path}: card '{name}' has cc '{text}'. Expected a compute capability such as '8.6'.")
    major, minor = parse_version(text)
    return major, minor


def _environment(folder: Path) -> Environment:
    path = folder / "environment.toml"
    raw = _read(path)
    flash = raw.pop("flash_attention", None)
    try:
        return Environment(
            name=folder.name,
            folder=folder,
            cuda=raw.pop("cuda", None),
            torch_index=raw.pop("torch_index", None),
            minimum_driver=raw.pop("minimum_driver", None),
            native_driver=raw.pop("native_driver", None),
            sm=tuple(raw.pop("sm")),
            attention=tuple(raw.pop("attention")),
            flash_attention=FlashAttention(**flash) if flash else None,
            unverified=tuple(Unverified(**entry) for entry in raw.pop("unverified", [])),
            extras=tuple(raw.pop("extras", [])),
            **raw,
        )
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} lacks a key or has an unknown one: {error}.") from error


def _check(table: Table, path: Path) -> None:
    """Names are unique, environments exist, and each card's default environment holds code for it."""
    for environment in table.environments:
        for flag in environment.sm:
            parse_sm(flag)
        if (environment.cuda is None) != (environment.minimum_driver is None or environment.native_driver is None):
            raise UserError(f"{environment.folder}: cuda, minimum_driver and native_driver belong together.")
    owners = {_key(name): f"refused card '{name}'" for refused in table.refused for name in refused.names}
    for card in table.cards:
        # A card may list one name twice over (name and product differ by the maker's name only), two cards may not.
        for name in {_key(text) for text in (card.name, *card.aliases, *card.nvml_names)}:
            if name in owners:
                raise UserError(f"{path}: the name '{name}' of card '{card.name}' already belongs to {owners[name]}.")
            owners[name] = f"card '{card.name}'"
        if not table.environment(card.environment).holds(card.compute_capability):
            raise UserError(
                f"{path}: card '{card.name}' is {card.sm}, and its environment '{card.environment}' holds "
                f"{', '.join(table.environment(card.environment).sm) or 'no CUDA code'}. Name one that holds it."
            )
        if table.refusal(card.compute_capability):
            raise UserError(
                f"{path}: card '{card.name}' is {card.sm}, which [refused] rules out. Remove one of the two."
            )
