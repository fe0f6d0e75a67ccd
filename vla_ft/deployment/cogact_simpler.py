"""CogACT in SIMPLER: what its documents add to ``simpler_env/main_inference.py`` as ``CogACTInference``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vla_ft.deployment.adaptive_ensemble import AdaptiveEnsemble
from vla_ft.deployment.simpler import SimplerPolicy, find_setup
from vla_ft.deployment.temporal_aggregation import OpenLoop
from vla_ft.devices import choose_device
from vla_ft.policies.cogact.inference import CogActVla, load_vla


class CogACTInference(SimplerPolicy):
    """The published class (``sim_cogact/cogact_policy.py``) with its arguments.

    ``saved_model_path``: as ``load_vla`` takes it, or what it gave. ``unnorm_key`` and ``action_ensemble_horizon``
    default to the robot's. ``action_ensemble=False`` takes the first action of each chunk. ``use_bf16`` holds the
    vision-language model in bfloat16. ``horizon`` and ``image_size`` are of a history of pictures that the published
    class keeps and never reads: not read here.
    """

    def __init__(
        self,
        saved_model_path: str | Path | CogActVla,
        unnorm_key: str | None = None,
        policy_setup: str = "widowx_bridge",
        horizon: int = 0,
        action_ensemble_horizon: int | None = None,
        image_size: Sequence[int] = (224, 224),
        future_action_window_size: int | None = None,
        action_dim: int | None = None,
        action_model_type: str | None = None,
        action_scale: float = 1.0,
        cfg_scale: float = 1.5,
        use_ddim: bool = True,
        num_ddim_steps: int = 10,
        use_bf16: bool = True,
        action_ensemble: bool = True,
        adaptive_ensemble_alpha: float = 0.1,
        device: str = "auto",
    ) -> None:
        setup = find_setup(policy_setup)
        window = setup.ensemble_horizon if action_ensemble_horizon is None else action_ensemble_horizon
        execution = AdaptiveEnsemble(window, adaptive_ensemble_alpha) if action_ensemble else OpenLoop(1)
        super().__init__(setup, execution, action_scale)
        self.cfg_scale, self.use_ddim, self.num_ddim_steps = cfg_scale, use_ddim, num_ddim_steps
        vla = saved_model_path
        if not isinstance(vla, CogActVla):
            vla = load_vla(
                vla,
                action_model_type=action_model_type,
                future_action_window_size=future_action_window_size,
                action_dim=action_dim,
            )
        self.unnorm_key = setup.dataset if unnorm_key is None else unnorm_key
        vla.statistics_of(self.unnorm_key)  # said before the simulator starts
        if use_bf16:
            vla.vlm = vla.vlm.to(torch.bfloat16)
        self.vla = vla.to(choose_device(device)).eval()

    def predict(self, image: np.ndarray, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """A chunk [T, 7] in robot units, 16 actions with the published weights. The picture alone is read."""
        actions, _ = self.vla.predict_action(
            Image.fromarray(image),
            self.task,
            self.unnorm_key,
            cfg_scale=self.cfg_scale,
            use_ddim=self.use_ddim,
            num_ddim_steps=self.num_ddim_steps,
        )
        return actions
