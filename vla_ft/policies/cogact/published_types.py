"""What ``--vla.type`` settles where no flag says otherwise: the trainings that the published ``conf/vla.py`` names."""

from __future__ import annotations

from dataclasses import dataclass

CUSTOM, OXE = "custom-finetune", "prism-dinosiglip-224px+oxe+diffusion"
CONSTANT, COSINE = "constant", "linear-warmup+cosine-decay"


@dataclass(frozen=True, kw_only=True)
class VlaType:
    """What the published registry (``conf/vla.py``) says under a name, where the flags may say otherwise."""

    recipe: str
    data_mix: str
    world: int
    global_batch: int
    per_device: int
    lr: float
    schedule: str
    warmup: float
    """Share of the steps, where there is a warm-up at all."""


VLA_TYPES = {
    CUSTOM: VlaType(
        recipe="custom-finetune",
        data_mix="custom_finetuning",
        world=4,
        global_batch=16,
        per_device=4,
        lr=1e-4,
        schedule=COSINE,
        warmup=0.05,
    ),
    OXE: VlaType(
        recipe="cogact-base",
        data_mix="oxe_magic_soup_plus_minus",
        world=16,
        global_batch=256,
        per_device=16,
        lr=2e-5,
        schedule=CONSTANT,
        warmup=0.0,
    ),
}
