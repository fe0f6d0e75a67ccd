"""What LeRobot's own reader sees in datasets that ours wrote. Made once; ``test_lerobot_reference.py`` uses the result.

Write the sets with this project's environment, then read them in one with LeRobot (0.6.1 for 3.0, 0.3.3 for 2.1):

    python tests/data/lerobot_reference.py write FOLDER
    python tests/data/lerobot_reference.py read FOLDER v3.0 RESULT.json       # LeRobot's environment
    python tests/data/lerobot_reference.py read FOLDER v2.1 RESULT.json       # the older one's
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

STRIDE = 16
WINDOW = (0, 1, 2)
PLACES = (0, 6, 7, 10, 11, 19)


def write(folder: Path) -> None:
    from lerobot_sets import KINDS, write_set

    for version, images in KINDS:
        write_set(folder / f"{version}_{images}", version, images)


def read(folder: Path, version: str, result: Path) -> None:
    import lerobot
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    seen = json.loads(result.read_text()) if result.exists() else {}
    for path in sorted(folder.glob(f"{version}_*")):
        dataset = LeRobotDataset(f"local/{path.name}", root=path, delta_timestamps={"action": [w / 10 for w in WINDOW]})
        items = [dataset[place] for place in PLACES]
        seen[path.name] = {
            "lerobot": lerobot.__version__,
            "episodes": int(dataset.num_episodes),
            "steps": len(dataset),
            "fps": dataset.fps,
            "items": [
                {
                    "action": item["action"].tolist(),
                    "action_is_pad": item["action_is_pad"].tolist(),
                    "observation.state": item["observation.state"].tolist(),
                    "timestamp": float(item["timestamp"]),
                    "task": item["task"],
                    "frames": {
                        key: np.rint(item[key].numpy()[:, ::STRIDE, ::STRIDE] * 255).astype(int).tolist()
                        for key in dataset.meta.camera_keys
                    },
                }
                for item in items
            ],
            "stats": {
                feature: {name: np.asarray(value).tolist() for name, value in stats.items()}
                for feature, stats in dataset.meta.stats.items()
                if feature in ("action", "observation.images.front")
            },
        }
    result.write_text(json.dumps(seen, sort_keys=True))


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(Path(sys.argv[2]))
    else:
        read(Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
