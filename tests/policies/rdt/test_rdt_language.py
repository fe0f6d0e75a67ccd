"""Embeddings of instructions: a small random T5 block by block, the store, files of the published scripts."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rdt_examples import tiny
from safetensors.torch import save
from torch import Tensor
from transformers import T5Config, T5EncoderModel

from vla_ft.data.formats.aloha_instructions import FILE
from vla_ft.errors import UserError
from vla_ft.language.embed_command import EmbedConfig, embed, fingerprint, identity
from vla_ft.policies.rdt.config import LanguageConfig
from vla_ft.policies.rdt.embedding_files import read_embeddings
from vla_ft.policies.rdt.language import EmbeddingStore, InstructionTable, StandIn
from vla_ft.policies.rdt.t5_encoder import StreamedT5

BLOCKS = 6
TEXTS = ["pick up the red cup", "go", ""]


class Words:
    """Stands for the SentencePiece tokenizer: a number a word, an end token, padding."""

    def __call__(self, text: list[str], **_: Any) -> dict[str, Tensor]:
        rows = [[2 + sum(map(ord, word)) % 38 for word in one.split()] + [1] for one in text]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        return {"input_ids": ids, "attention_mask": (ids != 0).long()}


@pytest.fixture
def encoder(tmp_path: Path) -> tuple[T5EncoderModel, Path]:
    """A small T5, and its folder in the hub's form: with a decoder that nobody reads."""
    config = T5Config(
        vocab_size=40, d_model=16, d_kv=4, d_ff=32, num_layers=BLOCKS, num_heads=4, feed_forward_proj="gated-gelu"
    )  # fmt: skip
    torch.manual_seed(0)
    model = T5EncoderModel(config).eval()
    folder = tmp_path / "t5"
    folder.mkdir()
    state = {k: v for k, v in model.state_dict().items() if k != "encoder.embed_tokens.weight"}
    torch.save({**state, "decoder.final_layer_norm.weight": torch.zeros(16)}, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps({**config.to_dict(), "model_type": "t5"}))
    return model, folder


@pytest.mark.parametrize("offload", ["disk", "cpu", "none"])
def test_blocks_come_and_go_and_the_numbers_are_the_whole_models(
    encoder: tuple[T5EncoderModel, Path], offload: str
) -> None:
    model, folder = encoder
    streamed = StreamedT5(
        folder, device=torch.device("cpu"), dtype=torch.float32, offload=offload, tokenizer=Words()
    )  # fmt: skip
    for _ in range(2):
        found = streamed.encode(TEXTS)
        for text, tokens in zip(TEXTS, found, strict=True):
            expected = model(**Words()([text])).last_hidden_state[0]
            torch.testing.assert_close(tokens, expected, rtol=0, atol=1e-5)
            assert len(tokens) == len(text.split()) + 1
    whole = sum(p.nbytes for p in model.parameters())
    block = max(sum(p.nbytes for p in b.parameters()) for b in model.encoder.block)
    if offload == "none":
        assert streamed.peak_bytes == streamed.resident == whole
    else:
        assert streamed.peak_bytes == max(block, model.shared.weight.nbytes) < whole / 4
        assert streamed.resident == 0


def test_a_folder_that_is_no_t5_is_refused(encoder: tuple[T5EncoderModel, Path]) -> None:
    _, folder = encoder
    device = torch.device("cpu")
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    state.pop("encoder.block.3.layer.0.SelfAttention.q.weight")
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"missing tensor 'encoder.block.3.layer.0.SelfAttention.q.weight'"):
        StreamedT5(folder, device=device, tokenizer=Words())
    with pytest.raises(UserError, match="tokenizer"):
        StreamedT5(folder, device=device)
    (folder / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match=r"no T5 encoder .model_type is 'bert'"):
        StreamedT5(folder, device=device, tokenizer=Words())


def test_command_computes_once_and_training_finds_by_text(encoder: tuple[T5EncoderModel, Path], tmp_path: Path) -> None:
    model, folder = encoder
    said: list[str] = []
    config = EmbedConfig(text="go", encoder=str(folder), output=str(tmp_path / "cache"), device="cpu", dtype="fp32")

    def build(path: Path, **options: Any) -> StreamedT5:
        return StreamedT5(path, tokenizer=Words(), **options)

    assert embed(config, said.append, build) == 2  # and the empty one
    assert embed(config, said.append, build) == 0
    assert any("at most" in line for line in said)

    table = InstructionTable(LanguageConfig(embeddings=str(tmp_path / "cache"), encoder="t5", width=16))
    torch.testing.assert_close(table.get("go"), model(**Words()(["go"])).last_hidden_state[0], rtol=0, atol=1e-5)
    table.lacking(["go", ""])
    told = r"No embedding by t5 \(revision local-[0-9a-f]{12}-fp32\) of the instruction 'stop' in"
    with pytest.raises(UserError, match=told):
        table.get("stop")
    with pytest.raises(UserError, match=r"'stop'.*vla-ft embed-language"):
        pickle.loads(pickle.dumps(table)).lacking(["go", "stop"])
    narrow = InstructionTable(LanguageConfig(embeddings=str(tmp_path / "cache"), encoder="t5", width=8))
    with pytest.raises(UserError, match="2 tokens of 16 numbers; the model takes 1024 of 8"):
        narrow.get("go")


def test_two_encoders_of_one_name_do_not_mix(encoder: tuple[T5EncoderModel, Path], tmp_path: Path) -> None:
    _, folder = encoder
    other = tmp_path / "elsewhere" / "t5"
    shutil.copytree(folder, other)
    state = torch.load(other / "pytorch_model.bin", weights_only=True)
    torch.save({**state, "shared.weight": state["shared.weight"] + 1}, other / "pytorch_model.bin")
    kept = {"output": str(tmp_path / "cache"), "device": "cpu", "text": "go"}

    def build(path: Path, **options: Any) -> StreamedT5:
        return StreamedT5(path, tokenizer=Words(), **options)

    configs = [
        EmbedConfig(encoder=str(folder), **kept),
        EmbedConfig(encoder=str(other), **kept),
        EmbedConfig(encoder=str(folder), dtype="fp32", **kept),
    ]
    assert [embed(config, lambda _: None, build) for config in configs] == [2, 2, 2]
    names = [identity(config) for config in configs]
    assert {name for name, _ in names} == {"t5"} and len(set(names)) == 3
    found = [EmbeddingStore(tmp_path / "cache", *name).get("go").float() for name in names]
    assert not torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    assert fingerprint(folder) == fingerprint(shutil.copytree(folder, tmp_path / "copied"))
    with pytest.raises(UserError, match="several revisions of t5: local-"):
        InstructionTable(LanguageConfig(embeddings=kept["output"], encoder="t5", width=16)).get("go")


def test_without_any_store_the_instruction_is_named(tmp_path: Path) -> None:
    table = InstructionTable(LanguageConfig(embeddings=str(tmp_path / "none"), encoder="t5"))
    with pytest.raises(UserError, match=r"No embedding by t5 of the instruction 'stop' in .*none"):
        table.get("stop")
    with pytest.raises(UserError, match=r"of the instruction 'a'; 'b'; 'c' and 2 more in"):
        table.lacking(["a", "b", "c", "d", ""])


def test_an_instruction_that_is_too_long_is_told_before_training(tmp_path: Path) -> None:
    store = EmbeddingStore(tmp_path, "t5", "1")
    store.put("go", torch.ones(2, 4))
    store.put("go on and on", torch.ones(5, 4))
    table = InstructionTable(LanguageConfig(embeddings=str(tmp_path), encoder="t5", width=4, max_tokens=4))
    table.lacking(["go"])
    with pytest.raises(UserError, match="embedding of 'go on and on' has 5 tokens of 4 numbers; the model takes 4"):
        table.lacking(["go", "go on and on"])


def test_a_store_is_readable_by_everyone_whom_the_umask_lets(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        store = EmbeddingStore(tmp_path, "t5", "1")
        store.put("go", torch.ones(2, 4))
    finally:
        os.umask(before)
    assert stat.S_IMODE(store.place("go").stat().st_mode) == 0o640
    assert [path.name for path in store.folder.iterdir()] == [store.place("go").name]


def test_what_has_the_name_of_an_unfinished_file_is_not_written_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a folder that is shared, a name that can be guessed may be a link to elsewhere, or another writer's."""
    store, names = EmbeddingStore(tmp_path / "store", "t5", "1"), []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda beside, path: (names.append(beside.name), replace(beside, path)))
    for _ in range(2):
        store.put("go", torch.ones(2, 4))
    assert len(set(names)) == 2
    (elsewhere := tmp_path / "precious").write_text("kept")
    monkeypatch.setattr("secrets.token_hex", lambda _: "guessed")
    planted = store.folder / f".{store.place('stop').name}.guessed.unfinished"
    planted.symlink_to(elsewhere)
    with pytest.raises(UserError, match="Cannot write embeddings"):
        store.put("stop", torch.ones(2, 4))
    assert elsewhere.read_text() == "kept" and not store.has("stop")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_numbers_that_are_none_are_not_kept(tmp_path: Path, value: float) -> None:
    store = EmbeddingStore(tmp_path, "t5", "1")
    with pytest.raises(UserError, match="embedding of 'go' holds NaN or infinity"):
        store.put("go", torch.tensor([[1.0, value]]))
    assert not store.has("go")


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, save({"embedding": torch.ones(2, 4)})])
def test_a_damaged_file_of_the_store_is_named(tmp_path: Path, content: bytes) -> None:
    store = EmbeddingStore(tmp_path, "t5", "1")
    store.put("go", torch.ones(2, 4))
    store.place("stop").write_bytes(content)
    with pytest.raises(UserError, match=rf"{store.place('stop').name} is damaged .*Remove it, and run"):
        list(store.stored())
    with pytest.raises(UserError, match="Remove it, and run"):
        store.get("stop")


def test_revisions_do_not_mix(tmp_path: Path) -> None:
    for revision in ("a", "b"):
        EmbeddingStore(tmp_path, "t5", revision).put("go", torch.full((2, 4), float(ord(revision))))
    with pytest.raises(UserError, match=r"several revisions of t5: a, b.*model.language.revision=b"):
        InstructionTable(LanguageConfig(embeddings=str(tmp_path), encoder="t5", width=4)).get("go")
    chosen = InstructionTable(LanguageConfig(embeddings=str(tmp_path), encoder="t5", revision="a", width=4))
    assert chosen.get("go")[0, 0] == ord("a")


def test_stand_ins_are_the_same_everywhere_and_say_so() -> None:
    one, other = StandIn(8), StandIn(8)
    assert torch.equal(one.get("pick the cup"), other.get("pick the cup"))
    assert one.get("pick the cup").shape == (4, 8) and one.get("").shape == (1, 8)
    assert not torch.equal(one.get("go"), one.get("stop"))
    assert "RANDOM STAND-INS" in InstructionTable(tiny().language).note


@pytest.mark.parametrize("plural", ["", "s"])
def test_numbered_files_of_the_batch_script(tmp_path: Path, plural: str) -> None:
    texts = {"instruction": "a b", "simplified_instruction": ["a"], "expanded_instruction": ["a b c", "a b d"]}
    task = tmp_path / "set" / "task"
    task.mkdir(parents=True)
    (task / FILE).write_text(json.dumps(texts))
    for number in range(4):
        torch.save(torch.full((number + 1, 6), float(number)).bfloat16(), task / f"lang_embed{plural}_{number}.pt")
    found = dict(read_embeddings(tmp_path))
    assert {text: len(tokens) for text, tokens in found.items()} == {"a b": 1, "a": 2, "a b c": 3, "a b d": 4}
    torch.save(torch.zeros(1, 6), task / f"lang_embed{plural}_9.pt")
    with pytest.raises(UserError, match=r"has number 9, but .* lists 4 instructions"):
        list(read_embeddings(tmp_path))


def test_file_of_the_single_script(tmp_path: Path) -> None:
    path = tmp_path / "handover_pan.pt"
    torch.save({"name": "handover_pan", "instruction": "hand me the pan", "embeddings": torch.ones(1, 5, 6)}, path)
    torch.save(torch.zeros(1, 6), tmp_path / "empty_lang_embed.pt")
    assert {text: tuple(t.shape) for text, t in read_embeddings(tmp_path)} == {"hand me the pan": (5, 6), "": (1, 6)}
    config = EmbedConfig(files=str(tmp_path), output=str(tmp_path / "cache"), encoder="t5", revision="1")
    assert embed(config, lambda _: None) == 2
    assert EmbeddingStore(tmp_path / "cache", "t5", "1").get("hand me the pan").shape == (5, 6)


def test_files_without_a_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.pt"
    torch.save(torch.zeros(3, 6), path)
    with pytest.raises(UserError, match="which instruction it belongs to cannot be told"):
        list(read_embeddings(path))
    assert [text for text, _ in read_embeddings(path, "lift it")] == ["lift it"]
    torch.save(SimpleNamespace(a=1), path)
    with pytest.raises(UserError, match="which loading could execute"):
        list(read_embeddings(path))
