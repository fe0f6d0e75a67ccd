"""What an RDT model is made of. Every field can be set in a recipe under ``model``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, NonNegativeInt, PositiveInt, Tag

from vla_ft.errors import UserError

NormKind = Literal["variance", "rms"]
Adaptor = Annotated[str, Field(pattern=r"^(linear|mlp[1-9]x_gelu)$")]
Probability = Annotated[float, Field(ge=0, le=1)]
_STRICT: dict[str, Any] = {"extra": "forbid"}


@dataclass(frozen=True, kw_only=True)
class CameraSlots:
    """Which camera of the dataset stands in each of the three places; null leaves a place empty.

    An empty place shows a grey picture, as in pre-training; never show one camera twice. A single arm's wrist camera
    is the right one.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    external: str | None = "cam_high"
    right_wrist: str | None = "cam_right_wrist"
    left_wrist: str | None = "cam_left_wrist"

    @property
    def in_order(self) -> tuple[str | None, str | None, str | None]:
        """As the image tokens come: right before left."""
        return self.external, self.right_wrist, self.left_wrist


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """The frozen image tower: SigLIP So400m at 384 pixels by default, 729 tokens of 1152 numbers a picture."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    weights: str | None = "siglip-so400m-384"
    """Fetched weights by name, or a path; read beside published RDT weights, which hold no tower. null: fresh ones."""
    image_size: PositiveInt = 384
    patch_size: PositiveInt = 14
    hidden_size: PositiveInt = 1152
    depth: PositiveInt = 27
    heads: PositiveInt = 16
    feedforward_dim: PositiveInt = 4304

    @property
    def tokens(self) -> int:
        """Tokens of one picture."""
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True, kw_only=True)
class LanguageConfig:
    """Where an instruction's embedding comes from. The encoder itself is never part of a run."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    embeddings: str | None = None
    """Folder that ``vla-ft embed-language`` filled; looked up by text."""
    encoder: str = "t5-v1_1-xxl"
    """Whose embeddings are wanted. ``random`` draws stand-ins from the text itself: for trying a pipeline, no more."""
    revision: str | None = None
    """The encoder's revision; null takes the only one in the folder."""
    width: PositiveInt = 4096
    """Numbers a token."""
    max_tokens: PositiveInt = 1024
    """The longest instruction that the model has positions for."""


@dataclass(frozen=True, kw_only=True)
class VectorConfig:
    """How a robot's numbers lie in the unified vector of 128 (``vector.SLOTS``), by name.

    ``action`` and ``state`` name the slot of each dimension of the dataset, in its order; ``state`` null is as
    ``action``. Angles of an end effector are stored as six numbers: name them ``eef_euler_x``, ``_y``, ``_z``
    (extrinsic xyz, rad) or ``eef_quat_x`` ... ``_w`` and they are converted, both ways. Values are divided by the
    divisors before they enter the vector: grippers to [0, 1], whose state and command often have other ranges.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    action: tuple[str, ...]
    state: tuple[str, ...] | None = None
    action_divisors: dict[str, Annotated[float, Field(gt=0)]] = field(default_factory=dict)
    state_divisors: dict[str, Annotated[float, Field(gt=0)]] = field(default_factory=dict)


Vector = Annotated[
    Annotated[Literal["agilex", "aloha"], Tag("<name>")] | Annotated[VectorConfig, Tag("<own>")],
    Discriminator(lambda value: "<name>" if isinstance(value, str) else "<own>"),
]
"""A published mapping by its name, or one's own; the tags keep mistakes in one from being explained as the other's."""


@dataclass(frozen=True, kw_only=True)
class ConditionConfig:
    """What is hidden or blurred in training, so that the policy does not lean on one input."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    drop: Probability = 0.1
    """Independently for the rate, the state, the mask, each picture and the instruction."""
    drop_external: Probability | None = None
    """The external camera's own; null is ``drop``."""
    state_noise_snr: float | None = 40.0
    """Signal-to-noise ratio of noise on the state in decibel, against its episode's spread: 40 is 1 %; null: none."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Robotics Diffusion Transformer (Liu et al. 2024, arXiv 2410.07864). The defaults are rdt-1b's.

    ``Config.small()`` is rdt-170m.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    hidden_size: PositiveInt = 2048
    depth: PositiveInt = 28
    heads: PositiveInt = 32
    norm: NormKind = "variance"
    """``variance`` divides by the unbiased standard deviation without centring what is divided (timm 1.0.3, which the
    published environment pins); ``rms`` is a true RMS norm (timm after 1.0.12, or apex)."""
    chunk_size: PositiveInt = 64
    """How many future actions one prediction holds. Published weights have 64."""
    history: PositiveInt = 2
    """Pictures of each camera, oldest first."""
    language_adaptor: Adaptor = "mlp2x_gelu"
    image_adaptor: Adaptor = "mlp2x_gelu"
    state_adaptor: Adaptor = "mlp3x_gelu"

    train_steps: PositiveInt = 1000
    """Noise levels in training."""
    inference_steps: PositiveInt = 5
    """Steps of the solver."""
    prediction: Literal["sample", "epsilon"] = "sample"
    """What the network gives: the clean actions (as published), or the noise."""

    vector: Vector = "agilex"
    """``agilex``: two arms of six joints and a gripper, left first, with the published gripper ranges; ``aloha``: the
    same with grippers that are in [0, 1] already."""
    cameras: CameraSlots = field(default_factory=CameraSlots)
    control_frequency: NonNegativeInt | None = None
    """Hz that the model is told; null takes the dataset's rate. 0 means unknown."""
    vision: VisionConfig = field(default_factory=VisionConfig)
    language: LanguageConfig = field(default_factory=LanguageConfig)
    conditions: ConditionConfig = field(default_factory=ConditionConfig)

    def __post_init__(self) -> None:
        if self.hidden_size % self.heads or self.hidden_size % 4:
            raise UserError(
                f"hidden_size is {self.hidden_size} with {self.heads} heads; it must be a multiple of heads and of 4."
            )

    @classmethod
    def small(cls, **changes: Any) -> Config:
        """rdt-170m."""
        return cls(**{"hidden_size": 1024, "depth": 14, "heads": 32, **changes})

    @property
    def image_tokens(self) -> int:
        """Image tokens of a sample: history x cameras x patches."""
        return self.history * 3 * self.vision.tokens
