"""CogACT as its users call it: ``load_vla`` and ``predict_action`` with the published arguments and results.

Published as ``vla/load.py`` and ``vla/cogactvla.py`` of microsoft/CogACT. Prompt and picture are those of training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from vla_ft.data.published_statistics import action_mask
from vla_ft.errors import UserError, unknown
from vla_ft.policies.cogact.checkpoint import Weights, apply_weights, export_words, open_weights
from vla_ft.policies.cogact.config import SMALL_LLAMA, Config
from vla_ft.policies.cogact.layouts import Shapes, head_name, head_shape, refuse_other_head
from vla_ft.policies.cogact.model import CogAct
from vla_ft.policies.cogact.processing import commands, squeezed
from vla_ft.policies.cogact.prompts import FILE, Prompts
from vla_ft.policies.cogact.published_arguments import (
    GENERATION,
    checked_config,
    refuse_others,
    refuse_token,
    split_settings,
)
from vla_ft.policies.cogact.published_run import read_statistics, run_folder
from vla_ft.weights.places import resolve

GRIPPER = 6
"""The dimension that the published code opens or closes where a file has no mask."""
Picture = Image.Image


class CogActVla(CogAct):
    """The model with what it needs to act: prompts, and the statistics of every dataset that it was trained on.

    A plain module: ``.to("cuda:0").eval()`` moves it, and ``model.vlm = model.vlm.to(torch.bfloat16)`` halves the
    vision-language model.
    """

    def __init__(self, config: Config, action_dim: int, norm_stats: Mapping[str, Any]) -> None:
        super().__init__(config, action_dim)
        self.norm_stats = dict(norm_stats)
        self.prompts = Prompts(config)

    def predict_action(
        self,
        image: Picture,
        instruction: str,
        unnorm_key: str | None = None,
        cfg_scale: float = 1.5,
        use_ddim: bool = True,
        num_ddim_steps: int | None = 10,
        noise: Tensor | None = None,
        **generation: Any,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Actions float64 [T, A] in robot units and the same normalised, float32, for one picture and instruction.

        ``unnorm_key``: whose units; may be left out where the model knows one dataset alone. ``cfg_scale`` 1 or less is
        without guidance. ``use_ddim=False``, or no ``num_ddim_steps``, takes all 100 steps. ``noise`` [1, T, A]: where
        the diffusion starts, drawn by default. ``do_sample=False`` is taken as published callers give it, not read.
        Raises UserError for a picture that is not RGB, a prompt too long, an unknown key, number of steps or argument.
        """
        actions, normalized = self.predict_action_batch(
            [image], [instruction], unnorm_key, cfg_scale, use_ddim, num_ddim_steps, noise, **generation
        )
        return actions[0], normalized[0]

    @torch.inference_mode()
    def predict_action_batch(
        self,
        image: Sequence[Picture],
        instruction: Sequence[str],
        unnorm_key: str | None = None,
        cfg_scale: float = 1.5,
        use_ddim: bool = True,
        num_ddim_steps: int | None = 10,
        noise: Tensor | None = None,
        **generation: Any,
    ) -> tuple[np.ndarray, np.ndarray]:
        """``predict_action`` of several pictures with an instruction each: [B, T, A] and [B, T, A]."""
        refuse_others(generation, GENERATION, "predict_action")
        refuse_unpaired(image, instruction)
        statistics = self.statistics_of(unnorm_key)
        feature = self.look(image, instruction)
        return self.act(feature, statistics, cfg_scale, use_ddim, num_ddim_steps, noise)

    def look(self, images: Sequence[Picture], instructions: Sequence[str]) -> Tensor:
        """The cognition features [B, 1, llm width]; on a card in bfloat16 autocast, as published."""
        device = self.head.positional_embedding.device
        pixels = torch.from_numpy(np.stack([as_square(image, self.config.image_size) for image in images]))
        tokens, mask = self.prompts.batch(instructions)
        batch = {"image": pixels, "tokens": tokens, "token_mask": mask}
        with _half_on_a_card(device):
            return self.cognition({key: value.to(device) for key, value in batch.items()})

    def act(
        self,
        feature: Tensor,
        statistics: Mapping[str, Any],
        cfg_scale: float = 1.5,
        use_ddim: bool = True,
        num_ddim_steps: int | None = 10,
        noise: Tensor | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Actions of cognition features [B, 1, llm width], in the units of a dataset's ``statistics``."""
        shape = (len(feature), self.config.horizon, self.action_dim)
        if noise is None:
            noise = torch.randn(shape, device=feature.device)
        if noise.shape != shape:
            raise UserError(f"The noise has the shape {tuple(noise.shape)}; these actions start from {shape}.")
        use_ddim = use_ddim and num_ddim_steps is not None
        with torch.inference_mode():
            raw = self.denoise(feature, noise, cfg_scale=cfg_scale, use_ddim=use_ddim, num_ddim_steps=num_ddim_steps)
        return in_units(raw.float().cpu().numpy(), statistics)

    def statistics_of(self, unnorm_key: str | None) -> dict[str, Any]:
        """A dataset's statistics. Raises UserError for a key that is not there, a missing choice or another width."""
        if unnorm_key is None and len(self.norm_stats) > 1:
            raise UserError(f"Whose units? This model knows {', '.join(sorted(self.norm_stats))}. Give unnorm_key.")
        key = next(iter(self.norm_stats)) if unnorm_key is None else unnorm_key
        if key not in self.norm_stats:
            raise unknown("unnorm_key", key, self.norm_stats)
        entry: dict[str, Any] = self.norm_stats[key]
        width = len(entry["action"]["q01"])
        if width != self.action_dim:
            raise UserError(
                f"The statistics of '{key}' have {width} action dimensions, the model {self.action_dim}. Take those of "
                "the run that the weights are of."
            )
        return entry

    def get_action_dim(self, unnorm_key: str | None = None) -> int:
        """Action dimensions of a dataset."""
        return len(self.statistics_of(unnorm_key)["action"]["q01"])

    def get_action_stats(self, unnorm_key: str | None = None) -> dict[str, Any]:
        """A dataset's statistics of actions, by ``q01``, ``q99``, ``mask``..."""
        return dict(self.statistics_of(unnorm_key)["action"])


def load_vla(
    model_id_or_path: str | Path,
    hf_token: str | None = None,
    cache_dir: str | Path | None = None,
    load_for_training: bool = False,
    model_type: str = "pretrained",
    *,
    action_model_type: str | None = None,
    future_action_window_size: int | None = None,
    action_dim: int | None = None,
    tokenizer: str | None = None,
    base: str | Path | None = None,
    **settings: Any,
) -> CogActVla:
    """A published CogACT by the name of fetched weights (``CogACT/CogACT-Base``), its folder, or its ``.pt``.

    The head's size, window and action dimensions are read off the weights; given, they must be the same.
    ``tokenizer``: as ``model.tokenizer``; by default the file beside the weights, else the fetched
    ``llama-2-tokenizer``. ``base``: the weights of the parts that the file leaves out, by name or path. ``settings``
    are further ones of ``Config``, and the published arguments that have one meaning here (``published_arguments``).
    ``hf_token`` is not read: nothing is downloaded. The weights stay in the mapped file until they are moved to a
    device. Raises UserError: weights that are not here or do not fit, no statistics or tokenizer, unknown arguments.
    """
    refuse_token(hf_token)
    settings = split_settings({"cache_dir": cache_dir, "model_type": model_type, **settings})
    path = Path(resolve(model_id_or_path))
    weights = _published(path, base)
    statistics, shapes = read_statistics(path), weights.shapes
    _, _, horizon, actions = head_shape(shapes)
    if action_dim not in (None, actions):
        raise UserError(f"{path} moves {actions} dimensions, action_dim is {action_dim}. Leave it out.")
    config = checked_config(
        action_model_type or head_name(shapes),
        size=_size(shapes),
        future_action_window_size=horizon - 1 if future_action_window_size is None else future_action_window_size,
        image_size=14 * math.isqrt(shapes["vlm.vision.siglip_featurizer.pos_embed"][1]),
        tokenizer=tokenizer or _tokenizer(run_folder(path)),
        **settings,
    )
    refuse_other_head(config, actions, shapes, weights.parts["head"])
    model = _built(config, actions, statistics)
    apply_weights(model, weights, assign=True)
    return model.train() if load_for_training else model.requires_grad_(False).eval()


def refuse_unpaired(image: Sequence[Picture], instruction: Sequence[str]) -> None:
    """Raises UserError unless there are as many pictures as instructions, in lists, and each instruction is text."""
    if isinstance(image, Image.Image) or isinstance(instruction, str):
        raise UserError(
            "predict_action_batch takes a list of pictures and a list of instructions. For one of each take "
            "predict_action."
        )
    if len(image) != len(instruction) or not len(image):
        raise UserError(f"{len(image)} pictures with {len(instruction)} instructions. Give one of each, or more.")
    strange = [one for one in instruction if not isinstance(one, str)]
    if strange:
        raise UserError(f"An instruction is {strange[0]!r}, expected text. Give what the robot is to do, in words.")


def as_square(image: Picture, size: int) -> np.ndarray:
    """A picture as the model sees it, uint8 [size, size, 3]. Raises UserError for anything but an RGB picture."""
    if not isinstance(image, Image.Image) or image.mode != "RGB":
        seen = f"mode {image.mode}" if isinstance(image, Image.Image) else type(image).__name__
        raise UserError(f"The picture is {seen}; CogACT sees RGB. Give a PIL image: image.convert('RGB').")
    return squeezed(np.asarray(image), size)


def in_units(raw: np.ndarray, statistics: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Predicted actions [..., A] as (robot units float64, normalised float32): clipped, grippers 0 or 1, then scaled.

    Grippers are the dimensions that the statistics' ``mask`` leaves unscaled. Without a mask the published code opens
    or closes dimension 6 and scales it like the others.
    """
    action = statistics["action"]
    mask = action_mask(statistics)
    gripper = ~mask if "mask" in action else np.arange(len(mask)) == GRIPPER
    normalized = commands(raw.astype(np.float32), gripper)
    low, high = (np.asarray(action[key], np.float64) for key in ("q01", "q99"))
    scaled = 0.5 * (normalized.astype(np.float64) + 1) * (high - low) + low  # Bounds' rule, in float64 as published
    return np.where(mask, scaled, normalized), normalized


def _published(path: Path, base: str | Path | None) -> Weights:
    weights = open_weights(path, None if base is None else resolve(base))
    if weights.layout == "vla_ft" or "head" not in weights.parts:
        raise UserError(
            f"{path} has the layout '{weights.layout}', without a published head. "
            + export_words(path if weights.layout == "vla_ft" else "RUN")
        )
    return weights


def _built(config: Config, action_dim: int, statistics: Mapping[str, Any]) -> CogActVla:
    """The model without weights, but for what is in no file."""
    with torch.device("meta"):
        model = CogActVla(config, action_dim, statistics)
    # Computed from the configuration.
    model.vlm.llm.model.rotary_emb = LlamaRotaryEmbedding(model.vlm.llm.model.config)
    return model


def _half_on_a_card(device: torch.device) -> AbstractContextManager[Any]:
    return torch.autocast("cuda", dtype=torch.bfloat16) if device.type == "cuda" else nullcontext()


def _size(shapes: Shapes) -> Literal["7b", "mock"]:
    words = shapes.get("vlm.llm.model.embed_tokens.weight")
    return "mock" if words == (SMALL_LLAMA.vocabulary, SMALL_LLAMA.width) else "7b"


def _tokenizer(folder: Path) -> str:
    return str(folder / FILE) if (folder / FILE).is_file() else "llama-2-tokenizer"
