"""Runs an exported policy folder with LeRobot's own code and keeps what it answers: made once, with LeRobot at hand.

    python run_in_lerobot.py FOLDER OBSERVATIONS.safetensors RESULT

in an environment of LeRobot (0.6.1: processors; 0.3.3: statistics among the weights), without vla_ft. Observations are
``observation.state`` [n, P] and ``observation.images.<camera>`` uint8 [n, H, W, 3]. ``RESULT.safetensors`` then holds
``actions`` [n, A], and ``RESULT.json`` what made them and the hashes of all files that were read. Where torchvision is
missing, ``torchvision_stand_in`` takes its place, which the JSON says.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

if importlib.util.find_spec("torchvision") is None:
    import torchvision_stand_in  # noqa: F401


def raw(observations: dict[str, torch.Tensor], step: int) -> dict[str, torch.Tensor]:
    """One observation as LeRobot's robots give it: float images in [0, 1], channels first, no batch."""
    found = {}
    for name, value in observations.items():
        one = value[step]
        found[name] = one.permute(2, 0, 1).contiguous().float() / 255 if one.dtype == torch.uint8 else one
    return found


def newer(folder: Path, observations: dict[str, torch.Tensor]) -> torch.Tensor:
    """Of LeRobot from 0.4 on: preprocessor, policy, postprocessor, all from the folder."""
    from lerobot.policies.act.modeling_act import ACTPolicy
    from lerobot.policies.factory import make_pre_post_processors

    policy = ACTPolicy.from_pretrained(str(folder), strict=True).eval()
    before, after = make_pre_post_processors(policy.config, pretrained_path=str(folder))
    policy.reset()
    count = len(next(iter(observations.values())))
    return torch.cat([after(policy.select_action(before(raw(observations, step)))) for step in range(count)])


def older(folder: Path, observations: dict[str, torch.Tensor]) -> torch.Tensor:
    """Of LeRobot up to 0.3.3: the policy normalises by itself."""
    from lerobot.policies.act.modeling_act import ACTPolicy

    policy = ACTPolicy.from_pretrained(str(folder), strict=True).eval()
    policy.reset()
    count = len(next(iter(observations.values())))
    batches = [{k: v.unsqueeze(0) for k, v in raw(observations, step).items()} for step in range(count)]
    return torch.cat([policy.select_action(batch) for batch in batches])


def main() -> None:
    folder, observations, result = Path(sys.argv[1]), load_file(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    with torch.no_grad():
        run = newer if (folder / "policy_preprocessor.json").is_file() else older
        actions = run(folder, observations)
    files = [*sorted(folder.iterdir()), Path(sys.argv[2])]
    about = {
        "what": "actions that LeRobot's own ACTPolicy executes on the observations, from a folder that vla-ft exported",
        "reference": {"repository": "huggingface/lerobot", "version": importlib.metadata.version("lerobot")},
        "torch": torch.__version__,
        "torchvision": sys.modules["torchvision"].__version__,
        "sha256": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files},
    }
    result.with_suffix(".json").write_text(json.dumps(about, indent=1) + "\n")
    save_file({"actions": actions.contiguous()}, result.with_suffix(".safetensors"))
    print(about["reference"]["version"], tuple(actions.shape))


if __name__ == "__main__":
    main()
