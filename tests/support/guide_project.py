"""The ACT guide's project (``examples/act_guide``) called inside this process, at a size for two CPU cores."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

from narrow_trunk import narrow_trunk

from vla_ft.data.mock import MockConfig, write_mock

PROJECT = Path(__file__).resolve().parents[2] / "examples" / "act_guide"
if str(PROJECT) not in sys.path:  # the guide's commands are typed in this folder
    sys.path.insert(0, str(PROJECT))

# A random, trained trunk: no weights are published that a test could fetch. Four epochs of four updates.
TINY = (
    "--encoder.name=pri3d", "--encoder.variant=resnet18", "--encoder.pretrained=null", "--encoder.freeze=false",
    "--image_size=32", "--chunk_size=4", "--hidden_dim=16", "--nheads=2", "--dim_feedforward=16",
    "--num_encoder_layers=1", "--num_decoder_layers=1", "--latent_dim=4", "--num_workers=0", "--num_epochs=4",
    "--checkpoint_frequency=1", "--log_frequency=2",
)  # fmt: skip


def demonstrations(folder: Path, format: str = "npz") -> Path:
    """A small dataset with the guide's two cameras."""
    small = {"episodes": 4, "min_length": 8, "max_length": 12, "image_size": (32, 32)}
    return Path(write_mock(folder, MockConfig(cameras=("left", "right"), format=format, **small)))


def script() -> ModuleType:
    """``scripts/train_act.py`` as a module."""
    spec = importlib.util.spec_from_file_location("train_act", PROJECT / "scripts" / "train_act.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def train_act(words: Sequence[object], tiny: Sequence[str] = TINY) -> int:
    """``python scripts/train_act.py WORDS TINY`` typed in the project's folder, in this process; its exit code."""
    with contextlib.chdir(PROJECT), narrow_trunk():
        return script().main([*map(str, words), *tiny])


@contextlib.contextmanager
def in_project() -> Iterator[None]:
    """Inside, the working folder is the project's and ACT has the narrow trunk that ``train_act`` trained."""
    with contextlib.chdir(PROJECT), narrow_trunk():
        yield
