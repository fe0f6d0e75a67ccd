"""The self-test's checks of the libraries around torch: each one imports, and what this project takes from it is there.

A library that installs may still not work: built for another torch, for another CUDA, or without a codec.
"""

from __future__ import annotations

import io
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from vla_ft.environment.selftest.check import Check
from vla_ft.environment.table import Environment

DECODERS = ("h264", "av1")
"""Codecs of published LeRobot videos: version 2.0 wrote AV1, earlier and converted sets H.264."""


def check_stack(environment: Environment) -> Iterator[Check]:
    """One check a library; one that fails does not keep the others from being tried."""
    for name, probe in PROBES.items():
        try:
            yield Check(f"library {name}", True, probe(environment))
        except Exception as error:
            traceback.print_exc()
            lines = str(error).strip().splitlines() or ["no message"]
            yield Check(f"library {name}", False, f"{name} cannot be used here: {type(error).__name__}: {lines[0]}")


def _transformers(environment: Environment) -> str:
    # By class, because the package itself imports nothing. This is where a torchvision of another torch would break.
    from transformers import CLIPVisionModel, Dinov2Model, LlamaModel, SiglipVisionModel, T5EncoderModel, __version__

    models = (LlamaModel, SiglipVisionModel, Dinov2Model, CLIPVisionModel, T5EncoderModel)
    return f"{__version__}, with {', '.join(model.__name__ for model in models)}"


def _tokenizers(environment: Environment) -> str:
    import sentencepiece
    import tokenizers

    return f"{tokenizers.__version__}, sentencepiece {sentencepiece.__version__}"


def _diffusers(environment: Environment) -> str:
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, __version__

    names = [one.__name__ for one in (DDIMScheduler, DPMSolverMultistepScheduler)]
    return f"{__version__}, with {', '.join(names)}"


def _peft(environment: Environment) -> str:
    from peft import LoraConfig, __version__

    return f"{__version__}, with {LoraConfig.__name__}"


def _huggingface_hub(environment: Environment) -> str:
    from huggingface_hub import __version__, hf_hub_download

    return f"{__version__}, with {hf_hub_download.__name__}"


def _fsdp(environment: Environment) -> str:
    from torch.distributed.checkpoint.state_dict import get_state_dict
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard

    parts = (fully_shard, MixedPrecisionPolicy, CPUOffloadPolicy, get_state_dict)
    return f"fully sharded data parallel with {', '.join(part.__name__ for part in parts)}"


def _deepspeed(environment: Environment) -> str:
    """Operators would be compiled when first used; none may be in the wheel, and this project uses none."""
    import deepspeed
    from deepspeed.git_version_info import installed_ops

    compiled = sorted(name for name, there in installed_ops.items() if there)
    if compiled:
        raise RuntimeError(f"operators were compiled into it on the machine that built it: {', '.join(compiled)}")
    return f"{deepspeed.__version__}, nothing compiled into it"


def _bitsandbytes(environment: Environment) -> str:
    """It ships a library for each CUDA, and without the right one falls back to a stand-in that fails when called."""
    import bitsandbytes
    from bitsandbytes.optim import AdamW8bit

    found = f"{bitsandbytes.__version__}, with {AdamW8bit.__name__}"
    if not environment.cuda:
        return found
    library = f"libbitsandbytes_cuda{environment.cuda.replace('.', '')}.so"
    if not (Path(bitsandbytes.__file__).parent / library).is_file():
        raise RuntimeError(f"it holds no {library}, which CUDA {environment.cuda} needs")
    return f"{found} and {library}"


def _pyarrow(environment: Environment) -> str:
    import pyarrow
    import pyarrow.parquet

    written, numbers = io.BytesIO(), [1.5, 2.5]
    pyarrow.parquet.write_table(pyarrow.table({"x": numbers}), written, compression="snappy")
    written.seek(0)
    if pyarrow.parquet.read_table(written)["x"].to_pylist() != numbers:
        raise RuntimeError("a Parquet table does not come back as it was written")
    return f"{pyarrow.__version__}, writes and reads Parquet"


def _av(environment: Environment) -> str:
    import av

    for name in DECODERS:
        av.codec.Codec(name, "r")  # raises where FFmpeg was built without it
    return f"{av.__version__}, decodes {', '.join(DECODERS)}"


PROBES: dict[str, Callable[[Environment], str]] = {
    "transformers": _transformers,
    "tokenizers": _tokenizers,
    "diffusers": _diffusers,
    "peft": _peft,
    "huggingface_hub": _huggingface_hub,
    "fsdp": _fsdp,
    "deepspeed": _deepspeed,
    "bitsandbytes": _bitsandbytes,
    "pyarrow": _pyarrow,
    "av": _av,
}
"""What is tried, by name: takes the environment, answers with the version and what was found, raises where it fails."""
