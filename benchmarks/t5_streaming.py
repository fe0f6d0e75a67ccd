"""Memory of a random T5 encoder whose blocks are streamed from disk, beside the same one held whole.

Each way runs in a process of its own: growth of resident memory (mapped pages of the file included, which the system
takes back at will), of memory of its own, and the most that weights take on the device at one time.

    python benchmarks/t5_streaming.py [output=benchmarks/results/t5_streaming.json]
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

SHAPE = {"vocab_size": 32128, "d_model": 512, "d_kv": 64, "d_ff": 1280, "num_layers": 24, "num_heads": 8}
TEXTS = 8


class Numbers:
    """A tokenizer without a vocabulary: 12 tokens a text."""

    def __call__(self, text: list[str], **_: Any) -> dict[str, torch.Tensor]:
        ids = torch.arange(len(text) * 12).view(len(text), 12) % 32000 + 2
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def write_encoder(folder: Path) -> int:
    """A random encoder in the hub's form (pytorch_model.bin, fp32); returns its bytes."""
    from transformers import T5Config, T5EncoderModel

    config = T5Config(**SHAPE, feed_forward_proj="gated-gelu")
    state = T5EncoderModel(config).state_dict()
    state.pop("encoder.embed_tokens.weight", None)
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps({**config.to_dict(), "model_type": "t5"}))
    return sum(value.nbytes for value in state.values())


def measure(folder: Path, offload: str) -> dict[str, float]:
    """Resident growth and weights' peak, MiB, of one way. To be run in a fresh process."""
    import resource

    import transformers.models.t5.modeling_t5  # noqa: F401 (not what is measured)

    from vla_ft.policies.rdt.t5_encoder import StreamedT5

    def resident(kind: str) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(kind))

    before, own = resident("VmRSS"), resident("RssAnon")
    encoder = StreamedT5(
        folder, device=torch.device("cpu"), dtype=torch.bfloat16, offload=offload, tokenizer=Numbers()  # type: ignore[arg-type]
    )  # fmt: skip
    encoder.encode(["text"] * TEXTS)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "resident_growth_mib": round(peak - before, 1),
        "anonymous_growth_mib": round(resident("RssAnon") - own, 1),
        "weights_peak_mib": round(encoder.peak_bytes / 2**20, 1),
    }


def main(words: list[str]) -> None:
    """Write an encoder, measure the three ways, print and keep the numbers."""
    if words and words[0] == "measure":
        print(json.dumps(measure(Path(words[1]), words[2])))
        return
    output = Path(words[0].removeprefix("output=")) if words else None
    with tempfile.TemporaryDirectory() as place:
        size = write_encoder(Path(place))
        found: dict[str, Any] = {"weights_fp32_mib": round(size / 2**20, 1), "shape": SHAPE, "texts": TEXTS}
        for offload in ("disk", "cpu", "none"):
            command = [sys.executable, __file__, "measure", place, offload]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[offload] = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(found, indent=1))
    if output is not None:
        output.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
