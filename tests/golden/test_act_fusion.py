"""Camera fusion heads of the guide's variant."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from golden_files import Golden

from vla_ft.nn.camera_fusion import CameraFusion, FusionName

FILES = pytest.mark.golden_files("act/fusion_heads*")


@FILES
@pytest.mark.parametrize("name", get_args(FusionName))
def test_fused_features(golden: Golden, name: FusionName) -> None:
    head = CameraFusion(name, golden.facts["dim"])
    prefix = f"{name}.w."
    head.load_state_dict({k.removeprefix(prefix): v for k, v in golden.tensors.items() if k.startswith(prefix)})
    with torch.no_grad():
        fused = head(golden["in.left"], golden["in.right"])
    golden.close(fused, name, rtol=1e-5, atol=1e-6)
