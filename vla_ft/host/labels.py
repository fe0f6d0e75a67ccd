"""Names that join images, containers, compose and the doctor."""

from __future__ import annotations

import re
import secrets

REPOSITORY_NAME = "vla_ft"

ENVIRONMENT = "vla_ft.environment"
LOCK = "vla_ft.lock"
"""``Environment.lock_hash`` at build time."""
TORCH = "vla_ft.torch"
CUDA = "vla_ft.cuda"
SM = "vla_ft.sm"
"""Architecture flags that torch holds, comma separated."""
ATTENTION = "vla_ft.attention"
"""Attention backends inside, fastest first, comma separated."""
CARDS = "vla_ft.cards"
"""Cards whose code the image holds, comma separated."""
SOURCE = "vla_ft.source"
"""``images.source_hash`` at build time: whether an image runs the clone's present source."""
REVISION = "org.opencontainers.image.revision"
BASE = "org.opencontainers.image.base.name"

RUN = "vla_ft.run"
"""On containers: the name of a detached run."""


def image_name(environment: str) -> str:
    """Local tag of an environment's image, such as ``vla_ft:cu128``."""
    return f"{REPOSITORY_NAME}:{environment}"


def candidate_name(image: str) -> str:
    """Name that a build of ``image`` carries until it is proved; every build has one of its own."""
    return f"{image}-candidate-{secrets.token_hex(4)}"


def failed_name(image: str) -> str:
    """Name of the last build of ``image`` that failed its self-test, to be looked into."""
    return f"{image}-failed"


def is_proved(name: str) -> bool:
    """Whether a name is none of an unproved image."""
    return re.search(r"-(candidate-[0-9a-f]{8}|failed)$", name) is None
