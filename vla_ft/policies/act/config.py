"""What an ACT model is made of. Every field can be set in a recipe under ``model``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveInt

from vla_ft.errors import UserError
from vla_ft.nn.detr import Activation, LayerShape

BackboneName = Literal["resnet18", "resnet34", "resnet50", "clip_vit_b32"]
CameraFusion = Literal["none", "mean", "max", "concat_mlp", "gated", "bilinear"]
Pixel = tuple[float, float, float]
CLIP_SIZE = (224, 224)
"""The one image size of CLIP ViT-B/32: its position table has 7 x 7 patches of 32 pixels."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Action Chunking with Transformers (Zhao et al. 2023, arXiv 2304.13705).

    The defaults are the published sizes with its known slips mended: the last decoder layer is read instead of the
    first, and padded steps do not dilute the loss. ``Config.original()`` and ``Config.lerobot()`` are the two
    published forms exactly.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    chunk_size: PositiveInt = 100
    """How many future actions one prediction holds; about one to two seconds of motion works well."""

    hidden_dim: PositiveInt = 512
    """Width of every token. A multiple of ``heads`` and of 4 (the image position code needs four equal parts)."""
    heads: PositiveInt = 8
    """Attention heads."""
    feedforward_dim: PositiveInt = 3200
    """Inner width of the feed-forward part of a layer."""
    encoder_layers: PositiveInt = 4
    """Layers that mix latent, proprioception and image tokens."""
    decoder_layers: PositiveInt = 7
    """Layers that turn action queries into actions."""
    decoder_output: Literal["first", "last"] = "last"
    """Which decoder layer the action head reads. The original builds seven layers and reads the first, so that the
    others never learn; ``first`` with seven layers is the same function as one layer, and is needed for its weights."""
    activation: Activation = "relu"
    """Of the feed-forward part. ``glu`` halves its inner width (the published code offers it but cannot run it)."""
    pre_norm: bool = False
    """Normalise before each sub-layer instead of after it."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of activations dropped in training, in every transformer layer."""

    use_vae: bool = True
    """Learn a latent "style" of each demonstrated chunk (a conditional VAE). At inference the latent is zero."""
    vae_encoder_layers: PositiveInt = 4
    """Layers of the posterior encoder, which sees the true actions and exists for training only."""
    latent_dim: PositiveInt = 32
    """Numbers in the latent."""
    eval_latent: Literal["zero", "posterior"] = "zero"
    """Latent of the loss in eval mode. ``zero`` scores what the robot would do; ``posterior`` (the original) samples
    it from the true actions, so that a validation loss is random and looks better than the policy is."""

    action_loss: Literal["l1", "l2"] = "l1"
    """Absolute or squared error of the normalised actions."""
    loss_reduction: Literal["valid", "all"] = "valid"
    """Average the action loss over real steps, or over all: padded ones then count as zero error (the original, and
    LeRobot up to 0.5)."""
    kl_weight: Annotated[float, Field(ge=0)] = 10.0
    """Weight of the KL term against the action loss."""
    kl_reduction: Literal["sum", "mean"] = "sum"
    """Sum the KL over latent numbers (both published forms) or average it: ``latent_dim`` times weaker."""
    pad_head: bool = False
    """Carry the original's head that predicts padding. No loss ever trains it; published weights have it."""

    backbone: BackboneName = "resnet18"
    """Image trunk: a ResNet with frozen batch norm (PRI3D's weights are of such a one), or CLIP's ViT-B/32. Pixels are
    normalised as the trunk was trained: by ImageNet's mean and std, or CLIP's own. It is trained unless frozen."""
    dilation: bool = False
    """Dilate the trunk's last stage instead of striding: four times the image tokens. ``resnet50`` only."""
    camera_fusion: CameraFusion = "none"
    """``none``: every place of every camera's feature map is a token (49 a camera with CLIP). Any other: the pooled
    features of exactly two cameras, brought to ``hidden_dim``, are fused into one token: their ``mean`` or ``max``, an
    MLP over both (``concat_mlp``; ``bilinear`` gives it their product too), or a learned blend (``gated``)."""
    observation_steps: PositiveInt = 1
    """How many observations a prediction sees, the current one included. Each earlier one adds its own image and
    proprioception tokens, told apart by a learned position per step; steps before the episode are not attended to."""
    camera_layout: Literal["width", "sequence"] = "sequence"
    """Order of image tokens: feature maps joined along their width and read row by row (the original; needs equal
    heights), or camera after camera (LeRobot). The same function up to rounding."""
    image_size: tuple[PositiveInt, PositiveInt] | None = None
    """Resize every camera to (height, width) first; None keeps the recorded sizes. CLIP: None is CLIP's own way (short
    side to 224, bicubic, then the centre: wide pictures lose their sides); (224, 224) squeezes the whole picture in."""
    pixel_statistics: dict[str, tuple[Pixel, Pixel]] = field(default_factory=dict)
    """Mean and std of pixels in [0, 1] by camera, instead of the trunk's own: weights trained by LeRobot with a
    dataset's statistics need them. Empty for the trunk's own; otherwise every camera must be there."""

    std_floor: Annotated[float, Field(ge=0)] = 1e-2
    """Actions and proprioception are divided by at least this, so that a constant dimension does not blow up noise."""
    std_epsilon: Annotated[float, Field(ge=0)] = 0.0
    """Added to the standard deviation when normalising (not when un-normalising)."""
    unbiased_std: bool = True
    """Standard deviation with N-1 (the original) or N (LeRobot)."""

    def __post_init__(self) -> None:
        if self.hidden_dim % self.heads or self.hidden_dim % 4:
            raise UserError(
                f"hidden_dim is {self.hidden_dim} with {self.heads} heads; it must be a multiple of heads and of 4."
            )
        if self.activation == "glu" and self.feedforward_dim % 2:
            raise UserError(f"feedforward_dim is {self.feedforward_dim}; activation 'glu' needs an even number.")
        if self.backbone == "clip_vit_b32" and self.image_size not in (None, CLIP_SIZE):
            raise UserError(
                f"image_size is {list(self.image_size or ())}; backbone 'clip_vit_b32' takes [224, 224] or null."
            )
        self._check_pixels()
        if self.dilation and self.backbone != "resnet50":
            raise UserError(f"dilation needs backbone 'resnet50', got '{self.backbone}'. Set dilation=false.")

    def _check_pixels(self) -> None:
        for camera, (_, std) in self.pixel_statistics.items():
            if min(std) <= 0:
                raise UserError(f"pixel_statistics of '{camera}' has a std of {min(std)}; expected more than 0.")

    @classmethod
    def original(cls, **changes: Any) -> Config:
        """The published DETR-VAE (tonyzhaozh/act at 742c753): seven decoder layers of which the first is read."""
        form = {
            "decoder_output": "first",
            "eval_latent": "posterior",
            "loss_reduction": "all",
            "pad_head": True,
            "camera_layout": "width",
        }
        return cls(**{**form, **changes})

    @classmethod
    def lerobot(cls, **changes: Any) -> Config:
        """LeRobot's form (0.6): one decoder layer, and normalisation by the population std without a floor."""
        form = {"decoder_layers": 1, "std_floor": 0.0, "std_epsilon": 1e-8, "unbiased_std": False}
        return cls(**{**form, **changes})

    @property
    def layer_shape(self) -> LayerShape:
        """The shape that all three transformer stacks share."""
        return LayerShape(
            dim=self.hidden_dim,
            heads=self.heads,
            feedforward=self.feedforward_dim,
            dropout=self.dropout,
            activation=self.activation,
            pre_norm=self.pre_norm,
        )
