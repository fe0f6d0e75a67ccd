"""T5's encoder, block by block: only what computes is in memory, so XXL (4.8 B weights) runs on any card.

The rest waits on disk in the mapped weights file (``offload=disk``), or in host memory (``cpu``); ``none`` keeps all of
it on the device.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from vla_ft.errors import UserError
from vla_ft.policies.ledger import plan_import
from vla_ft.policies.tensor_files import TensorFiles, open_tensors

Offload = Literal["disk", "cpu", "none"]


class Tokenizer(Protocol):
    """What is used of a tokenizer of transformers."""

    def __call__(self, text: list[str], **options: Any) -> Any:
        """``input_ids`` and ``attention_mask``, padded to the longest."""


class StreamedT5:
    """Embeddings of texts [tokens, width], end token included and padding removed.

    ``folder``: config.json, tokenizer files and weights as the hub has them; the decoder's are left alone.
    ``peak_bytes`` is the most that weights have taken on the device at one time.
    """

    def __init__(
        self,
        folder: Path,
        *,
        device: torch.device,
        dtype: torch.dtype = torch.bfloat16,
        offload: Offload = "disk",
        tokenizer: Tokenizer | None = None,
    ) -> None:
        """Raises UserError where the folder lacks something, before numbers are read."""
        self.device, self.dtype, self.offload = device, dtype, offload
        self.tokenizer = tokenizer or load_tokenizer(folder)
        self.files = open_tensors(folder)
        self.model = _on_meta(folder)
        self._sources = _sources(self.model, self.files)
        self._held: dict[str, Tensor] = {}
        self.resident = self.peak_bytes = 0
        for unit in self._units():
            unit.register_forward_pre_hook(lambda module, _: self._bring(module))
            unit.register_forward_hook(lambda module, _, __: self._release(module))

    @torch.no_grad()
    def encode(self, texts: Sequence[str], limit: int = 1024) -> list[Tensor]:
        """One tensor [tokens, width] a text, on the CPU. Raises UserError for a text of more than ``limit`` tokens."""
        tokens = self.tokenizer(list(texts), padding="longest", return_tensors="pt", add_special_tokens=True)
        ids, mask = tokens["input_ids"], tokens["attention_mask"].bool()
        longest = mask.sum(1)
        if int(longest.max()) > limit:
            text = texts[int(longest.argmax())]
            raise UserError(f"'{text[:60]}...' has {int(longest.max())} tokens; the model has positions for {limit}.")
        out = self.model(input_ids=ids.to(self.device), attention_mask=mask.to(self.device)).last_hidden_state
        return [row[kept].cpu() for row, kept in zip(out, mask.to(self.device), strict=True)]

    def _units(self) -> Iterator[nn.Module]:
        """What is brought and released as a whole: embedding, blocks, last norm."""
        encoder = self.model.encoder
        yield encoder.embed_tokens
        yield from encoder.block
        yield encoder.final_layer_norm

    def _bring(self, unit: nn.Module) -> None:
        for module, key, parameter, name in self._slots(unit):
            if not parameter.is_meta:
                continue
            value = self._value(name)
            module._parameters[key] = nn.Parameter(value, requires_grad=False)
            self.resident += value.nbytes
        self.peak_bytes = max(self.peak_bytes, self.resident)

    def _value(self, name: str) -> Tensor:
        if name in self._held:
            return self._held[name].to(self.device)
        value = self.files[self._sources[name]].to(self.dtype)
        if self.offload == "cpu":
            self._held[name] = value
        moved = value.to(self.device)
        # A mapped tensor of the same type would stay a view of the file.
        return moved.clone() if moved.data_ptr() == value.data_ptr() else moved

    def _release(self, unit: nn.Module) -> None:
        if self.offload == "none":
            return
        for module, key, parameter, _ in self._slots(unit):
            self.resident -= parameter.nbytes
            module._parameters[key] = nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)

    def _slots(self, unit: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter, str]]:
        """(module, attribute, parameter, full name) of what a unit holds."""
        prefix = next(name for name, module in self.model.named_modules(remove_duplicate=False) if module is unit)
        for inner, module in unit.named_modules():
            for key, parameter in list(module._parameters.items()):
                if parameter is not None:
                    yield module, key, parameter, ".".join(part for part in (prefix, inner, key) if part)


def load_tokenizer(folder: Path) -> Tokenizer:
    """The folder's own tokenizer. Raises UserError when it cannot be read."""
    from transformers import AutoTokenizer

    try:
        # transformers would make one without a vocabulary in silence.
        if not any((folder / name).is_file() for name in ("spiece.model", "tokenizer.json")):
            raise OSError("it has neither spiece.model nor tokenizer.json")
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, ImportError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"No tokenizer can be read from {folder}: {first}. Expected spiece.model and tokenizer_config.json beside "
            "the weights: `vla-ft fetch t5-v1_1-xxl` brings them."
        ) from error


def _on_meta(folder: Path) -> Any:
    from transformers import T5Config, T5EncoderModel

    path = folder / "config.json"
    try:
        values = json.loads(path.read_text())
        if values.get("model_type") != "t5":
            raise ValueError(f"model_type is {values.get('model_type')!r}")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            f"{folder} is no T5 encoder ({error}). Give a folder with config.json, the tokenizer and weights, such as "
            "`vla-ft fetch t5-v1_1-xxl` brings."
        ) from error
    with torch.device("meta"):
        return T5EncoderModel(T5Config(**values)).eval()


def _sources(model: nn.Module, files: TensorFiles) -> dict[str, str]:
    """Name in the file of every weight of the encoder, strictly; a decoder is knowingly unused. Raises UserError."""

    def rename(key: str) -> str | None:
        if key.startswith(("decoder.", "lm_head.")):
            return None
        return "encoder.embed_tokens.weight" if key == "shared.weight" else key

    keys = [key for key in files if not (key == "encoder.embed_tokens.weight" and "shared.weight" in files)]
    ledger = plan_import(
        model,
        {key: torch.empty(files.shape(key), device="meta") for key in keys},
        source=files.source,
        rename=rename,
        may_be_new=lambda name: name == "shared.weight",
    )
    return {name: key for key, name in ledger.moves()}
