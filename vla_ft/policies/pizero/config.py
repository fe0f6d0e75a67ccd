"""What a π0 model is made of. Every field can be set in a recipe under ``model``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveInt

from vla_ft.errors import UserError

STAND_IN = "stand-in"
"""``tokenizer`` of mock runs: needs no files and knows no language."""
Adaptive = Literal["adaLN", "adaLN-Zero"]
Attention = Literal["eager", "flex"]
PositiveFloat = Annotated[float, Field(gt=0)]


@dataclass(frozen=True, kw_only=True)
class Config:
    """π0 (Black et al. 2024, arXiv 2410.24164) in the form of open-pi-zero (allenzren/open-pi-zero at c3df7fb).

    The defaults are the published sizes: PaliGemma 3B and experts of 0.3 billion weights. Time 0 is noise and time 1 is
    data, the opposite of openpi, whose weights do not fit.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    horizon: PositiveInt = 4
    """How many future actions one prediction holds."""
    action_dim: PositiveInt | None = None
    """Action dimensions that the weights are for; None takes the dataset's. Another width is refused."""
    proprio_dim: PositiveInt | None = None
    """The same for proprioception: 7 for Bridge, 8 for Fractal."""

    image_size: PositiveInt = 224
    """Height and width of the one camera's picture in pixels; ``data.image_size`` resizes to it."""
    patch_size: PositiveInt = 14
    """Pixels along a side of the square that becomes one token."""
    text_tokens: PositiveInt = 20
    """Tokens of the prompt, its beginning and end included. Longer instructions are cut; shorter ones padded."""
    vision_width: PositiveInt = 1152
    """Width of SigLIP."""
    vision_mlp: PositiveInt = 4304
    """Inner width of SigLIP's feed-forward part."""
    vision_layers: PositiveInt = 27
    """Layers of SigLIP."""
    vision_heads: PositiveInt = 16
    """Attention heads of SigLIP."""
    vlm_width: PositiveInt = 2048
    """Width of Gemma."""
    vlm_mlp: PositiveInt = 16384
    """Inner width of Gemma's feed-forward part."""
    expert_width: PositiveInt = 1024
    """Width of the experts for proprioception and actions."""
    expert_mlp: PositiveInt = 4096
    """Inner width of the experts' feed-forward part."""
    layers: PositiveInt = 18
    """Layers of Gemma and of each expert."""
    heads: PositiveInt = 8
    """Query heads that all three share."""
    kv_heads: PositiveInt = 1
    """Key and value heads."""
    head_dim: PositiveInt = 256
    """Width of a head; even, for the rotary positions."""
    vocab_size: PositiveInt = 257216
    """Rows of the token embedding, padded ones included."""
    image_token: PositiveInt = 257152
    """The placeholder that stands for a patch in a prompt; words have smaller numbers."""

    vlm_rope_theta: PositiveFloat = 10000.0
    """Base of Gemma's rotary positions."""
    expert_rope_theta: PositiveFloat = 100.0
    """Base of the experts' rotary positions. Published checkpoints have 10000. No tensor shows it, and a wrong one
    gives garbage: it is checked against what came with the weights."""
    time_period: PositiveFloat = 100.0
    """Longest period of the code of the flow time. Published checkpoints have 10000; checked in the same way."""
    constants_confirmed: bool = False
    """That these periods are those of an open-pi-zero file which says nothing of them (a renamed one, or one that you
    trained there). Without it such a file is refused."""
    soft_cap: PositiveFloat = 50.0
    """Attention scores s become ``cap tanh(s / cap)`` in every layer, as published."""
    adaptive: Adaptive | None = None
    """How the experts see the flow time: joined to the actions (None), by adaptive norms, or by those and gates."""
    time_width: PositiveInt = 256
    """Width of the time code of adaptive experts."""
    tie_experts: bool = True
    """One expert serves proprioception and actions, as in published training."""
    attention: Attention = "eager"
    """Kernel of Gemma's attention. The soft cap rules out SDPA and flash-attn. ``flex`` (flex_attention) trains on
    cards alone."""

    flow_sampling: Literal["beta", "uniform"] = "beta"
    """Flow times in training: more of them near noise (as in π0), or spread evenly over each batch."""
    flow_alpha: PositiveFloat = 1.5
    """``beta``: z ~ Beta(alpha, 1)."""
    flow_sigma_min: Annotated[float, Field(ge=0, lt=1)] = 0.001
    """Noise that is left at time 1."""
    inference_steps: PositiveInt = 10
    """Euler steps from noise to actions."""
    action_clip: PositiveFloat | None = 1.0
    """Predicted actions are cut to plus and minus this, gripper included; None leaves them."""

    normalization: Literal["bounds", "gaussian", "none"] = "bounds"
    """Of actions and proprioception: quantiles 0.01 and 0.99 to -1 and 1 (published); zero mean, unit deviation; or
    none, for random numbers that test a pipeline."""
    tokenizer: str | None = None
    """PaliGemma's tokenizer: ``tokenizer.json`` or ``tokenizer.model``, their folder, or the name of fetched weights
    (``paligemma-3b-pt-224``). ``stand-in`` makes numbers of words without any file, for mock runs."""

    def __post_init__(self) -> None:
        if self.image_size % self.patch_size:
            raise UserError(
                f"image_size is {self.image_size} and patch_size {self.patch_size}: the picture must be cut into whole "
                "patches. Use a multiple, such as 224 and 14."
            )
        if self.vision_width % self.vision_heads:
            raise UserError(f"vision_width is {self.vision_width}, no multiple of vision_heads {self.vision_heads}.")
        if self.heads % self.kv_heads or self.head_dim % 2:
            raise UserError(
                f"heads is {self.heads} with {self.kv_heads} kv_heads of {self.head_dim}; expected a multiple of "
                "kv_heads and an even head_dim."
            )
        if not self.image_token < self.vocab_size:
            raise UserError(f"image_token is {self.image_token}; expected less than vocab_size {self.vocab_size}.")
        if self.text_tokens < 3:
            raise UserError(f"text_tokens is {self.text_tokens}; a prompt has a beginning, a word, an end: 3 or more.")
        width = self.condition_width or self.expert_width
        if width % 2 or width < 4:
            raise UserError(f"The time code is {width} wide (expert_width or time_width); expected an even 4 or more.")

    @property
    def image_tokens(self) -> int:
        """Tokens of the picture."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def prefix_tokens(self) -> int:
        """Tokens that Gemma sees: picture, prompt and padding."""
        return self.image_tokens + self.text_tokens

    @property
    def condition_width(self) -> int:
        """Width of the time code that adaptive experts are conditioned on; 0 without."""
        return self.time_width if self.adaptive else 0
