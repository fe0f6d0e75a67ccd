"""Names that join images, containers, compose and the doctor."""

from __future__ import annotations

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


def candidate_name(environment: str) -> str:
    """Tag that a build carries until it has passed its self-test."""
    return f"{REPOSITORY_NAME}:{environment}-candidate"
