"""What a CogACT model is made of. Every field can be set in a recipe under ``model``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from vla_ft.errors import UserError
from vla_ft.policies.cogact.diffusion import STEPS, ddim_counts
from vla_ft.policies.cogact.dit import SIZES, DitName, DitShape
from vla_ft.policies.cogact.vision import DINO, SIGLIP, TowerShape

Share = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True, kw_only=True)
class LlamaShape:
    """Sizes of the language model. The defaults are Llama-2-7B's with Prismatic's padded vocabulary."""

    width: int = 4096
    depth: int = 32
    heads: int = 32
    feedforward: int = 11008
    vocabulary: int = 32064


STAND_IN = "stand-in"
"""``tokenizer`` of mock runs."""
SMALL_TOWERS = (
    TowerShape(width=32, depth=3, heads=2, feedforward=64, registers=4, layer_scale=True),
    TowerShape(width=48, depth=3, heads=3, feedforward=64, pool=True),
)
SMALL_LLAMA = LlamaShape(width=64, depth=2, heads=4, feedforward=112, vocabulary=320)
HEADS: dict[str, DitShape] = {
    **{str(name): shape for name, shape in SIZES.items()},
    "DiT-mock": DitShape(width=64, depth=2, heads=2),
}
"""The published heads, and the one of mock runs."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """CogACT (Li et al. 2024, arXiv 2411.19650): a vision-language model's last token conditions a diffusion head."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    size: Literal["7b", "mock"] = "7b"
    """``7b``: DINOv2-L, SigLIP so400m and Llama-2-7B as published. ``mock``: the same parts, tiny, for proving a
    pipeline."""
    action_model_type: DitName | Literal["DiT-mock"] = "DiT-B"
    """The diffusion head: S 12 M, B 89 M, L 308 M weights; ``DiT-mock`` is tiny."""
    future_action_window_size: NonNegativeInt = 15
    """Actions after the current one: a chunk holds one more. The published weights have 15."""
    camera: str | None = None
    """The one camera that the model sees; null takes the dataset's only one."""
    image_size: PositiveInt = 224
    """Pixels of the square that images are resized to, a multiple of 14."""
    tokenizer: str | None = None
    """Folder or name of Llama 2's tokenizer (``llama-2-tokenizer``), or ``stand-in``: pieces of four bytes, which knows
    no language and is for mock runs and forecasts alone."""
    max_tokens: PositiveInt = 2048
    """Longest prompt in tokens. A longer one is refused, for its end is what the head is conditioned on."""

    repeated_diffusion_steps: PositiveInt = 8
    """Noisy copies of each sample that the head sees per step; the vision-language model runs once for all. Training
    with the published code at b174a1b used 4, whatever its option said."""
    condition_dropout: Share = 0.1
    """Share of samples trained without condition: what makes guidance possible."""
    loss_mask: bool = False
    """Leave padded steps out of the loss. The published loss counts them: there actions have come to rest."""

    cfg_scale: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 1.5
    """Guidance at inference; 1 is none and halves the head's work."""
    use_ddim: bool = True
    """DDIM, or all 100 steps with noise (DDPM), which magnifies errors of its first step 2,000 times."""
    num_ddim_steps: PositiveInt = 10
    """Steps of DDIM: 10 take every tenth of 100."""

    def __post_init__(self) -> None:
        if self.image_size % 14:
            raise UserError(f"image_size is {self.image_size}; it must be a multiple of 14, such as 224.")
        if self.num_ddim_steps not in ddim_counts(STEPS):
            raise UserError(
                f"num_ddim_steps is {self.num_ddim_steps}; of {STEPS} diffusion steps DDIM can take "
                f"{', '.join(map(str, ddim_counts(STEPS)))}."
            )

    @property
    def horizon(self) -> int:
        """Actions in a chunk."""
        return self.future_action_window_size + 1

    @property
    def towers(self) -> tuple[TowerShape, TowerShape]:
        """DINO's and SigLIP's sizes."""
        return (DINO, SIGLIP) if self.size == "7b" else SMALL_TOWERS

    @property
    def llama(self) -> LlamaShape:
        """The language model's sizes."""
        return LlamaShape() if self.size == "7b" else SMALL_LLAMA

    @property
    def dit(self) -> DitShape:
        """The head's sizes."""
        return HEADS[self.action_model_type]
