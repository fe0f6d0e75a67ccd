"""Samples to π0 batches and back: prompts, pictures, normalisation that leaves the gripper alone, tokenizers."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from pizero_examples import HORIZON, SIZE, description, samples, small_config, statistics

from vla_ft.errors import UserError
from vla_ft.policies.pizero import build_processor
from vla_ft.policies.pizero.processing import PiZeroProcessor
from vla_ft.policies.pizero.tokenizer import Prompts
from vla_ft.policies.pizero.vlm import BEGIN, PAD


def processor(**changes: object) -> PiZeroProcessor:
    return build_processor(small_config(**changes), description(), statistics())


def test_a_batch_has_the_documented_shapes_and_types() -> None:
    batch = processor().collate(samples(3))
    shapes = {key: (tuple(value.shape), value.dtype) for key, value in batch.items()}
    assert shapes == {
        "image": ((3, SIZE, SIZE, 3), torch.uint8),
        "text": ((3, 6), torch.int64),
        "proprio": ((3, 8), torch.float32),
        "action": ((3, HORIZON, 7), torch.float32),
        "action_pad_mask": ((3, HORIZON), torch.bool),
    }


def test_bounds_leave_the_gripper_alone_and_clip_the_rest() -> None:
    one, chosen = processor(), samples(1)
    chosen[0]["action"][:] = np.array([1, 3, 2, 9, -9, 2.5, 0.25])
    chosen[0]["observation"]["proprio"][:] = np.array([1, 3, 2, 9, -9, 2.5, 2, 3])
    batch = one.collate(chosen)
    assert batch["action"][0, 0].tolist() == pytest.approx([-1, 1, 0, 1, -1, 0.5, 0.25], abs=1e-6)
    assert batch["proprio"][0].tolist() == pytest.approx([-1, 1, 0, 1, -1, 0.5, 0, 1], abs=1e-6)
    back = one.unnormalize(batch["action"])[0, 0]
    assert back.tolist() == pytest.approx([1, 3, 2, 3, 1, 2.5, 0.25], abs=1e-6)


def test_gaussian_normalisation() -> None:
    one, chosen = processor(normalization="gaussian"), samples(1)
    chosen[0]["action"][:] = np.array([1, 3, 2, 9, -9, 2.5, 0.25])
    batch = one.collate(chosen)
    assert batch["action"][0, 0].tolist() == pytest.approx([-2, 2, 0, 14, -22, 1, 0.25], abs=1e-5)
    assert one.unnormalize(batch["action"])[0, 0].tolist() == pytest.approx([1, 3, 2, 9, -9, 2.5, 0.25], abs=1e-5)


def test_bytes_and_text_are_one_instruction() -> None:
    one = processor()
    text = one.collate(samples(1, instruction="pick banana"))["text"]
    assert torch.equal(one.collate(samples(1, instruction=b"pick banana"))["text"], text)
    assert text[0, 0] == BEGIN and text[0, 3] == 3 and (text[0, 4:] == PAD).all()
    assert not torch.equal(one.collate(samples(1, instruction="Pick banana"))["text"], text), "used as it is"


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(UserError, match=r"An instruction is no text: b'\\xff\\xfe' cannot be UTF-8 .* at byte 0"):
        Prompts(small_config())(b"\xff\xfe")


def test_long_instructions_are_cut_on_the_right() -> None:
    prompts = Prompts(small_config())
    whole = prompts("a b c d e f g h")
    assert len(whole) == 6 and not (whole == PAD).any()
    assert np.array_equal(whole, prompts("a b c d e"))  # the newline is lost, as published


def test_workers_get_a_copy() -> None:
    one = processor()
    again = pickle.loads(pickle.dumps(one))
    assert torch.equal(again.collate(samples(2))["action"], one.collate(samples(2))["action"])


def test_cached_pictures_are_neither_read_nor_collated() -> None:
    narrowed = processor().without({"image"})
    assert narrowed.keys == ("proprio",)
    chosen = samples(2)
    for sample in chosen:
        del sample["observation"]["image_primary"]
    batch = narrowed.collate(chosen)
    assert "image" not in batch and {"text", "proprio", "action"} <= batch.keys()


def test_pictures_of_another_size_are_refused() -> None:
    chosen = samples(1)
    chosen[0]["observation"]["image_primary"] = np.zeros((1, 48, 64, 3), np.uint8)
    with pytest.raises(UserError, match=r"48x64, this model sees 28x28"):
        processor().collate(chosen)


def test_proprioception_of_another_width_is_refused() -> None:
    chosen = samples(1)
    chosen[0]["observation"]["proprio"] = np.zeros((1, 7), np.float32)
    with pytest.raises(UserError, match="proprio has 7 dimensions, the policy's statistics have 8"):
        processor().collate(chosen)


def test_statistics_of_another_dataset_are_refused() -> None:
    other = description(proprio_names=tuple(f"q{i}" for i in range(8)))
    with pytest.raises(UserError, match="statistics are of proprio dimensions p0"):
        build_processor(small_config(), other, statistics())


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        (None, "vla-ft fetch paligemma-3b-pt-224"),
        ("paligemma-3b-pt-224", "not on this machine"),
        ("nowhere/tokenizer.json", "no tokenizer at"),
    ],
)
def test_a_missing_tokenizer_is_told_with_what_to_do(
    tokenizer: str | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLA_FT_WEIGHTS", str(tmp_path))
    with pytest.raises(UserError, match=message):
        processor(tokenizer=tokenizer)


WORDS = ["<pad>", "<eos>", "<bos>", "<unk>", "close", "middle", "drawer", "\n", " "]


def json_tokenizer(path: Path, words: list[str]) -> Path:
    """A word-level tokenizer in PaliGemma's file format, with its marks."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Split(" ", "removed")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", vocabulary["<bos>"])]
    )
    tokenizer.save(str(path))
    return path


def test_tokenizer_json(tmp_path: Path) -> None:
    json_tokenizer(tmp_path / "tokenizer.json", WORDS)
    prompts = Prompts(small_config(tokenizer=str(tmp_path)))
    assert prompts("close middle drawer").tolist() == [BEGIN, 4, 5, 6, 7, PAD], "the library's own mark is not doubled"
    assert pickle.loads(pickle.dumps(prompts))("close drawer").tolist() == [BEGIN, 4, 6, 7, PAD, PAD]


def test_another_models_tokenizer_is_refused(tmp_path: Path) -> None:
    path = json_tokenizer(tmp_path / "tokenizer.json", ["<s>", "</s>", "<bos>", "<unk>", "close"])
    with pytest.raises(UserError, match="not PaliGemma's tokenizer: its marks are"):
        Prompts(small_config(tokenizer=str(path)))
    many = json_tokenizer(tmp_path / "many.json", [*WORDS, *(f"w{i}" for i in range(60))])
    with pytest.raises(UserError, match="has 69 tokens, the model 64"):
        Prompts(small_config(tokenizer=str(many)))
    (tmp_path / "broken.json").write_text("{}")
    with pytest.raises(UserError, match="no tokenizer file"):
        Prompts(small_config(tokenizer=str(tmp_path / "broken.json")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no tokenizer\.json or tokenizer\.model"):
        Prompts(small_config(tokenizer=str(tmp_path / "empty")))


def test_tokenizer_model(tmp_path: Path) -> None:
    """SentencePiece, trained here on three words with PaliGemma's marks."""
    sentencepiece = pytest.importorskip("sentencepiece")
    (tmp_path / "text.txt").write_text("close middle drawer\nclose drawer\nmiddle drawer\n" * 20)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text.txt"), model_prefix=str(tmp_path / "tokenizer"), vocab_size=40, pad_id=0, eos_id=1,
        bos_id=2, unk_id=3, user_defined_symbols=["\n"], add_dummy_prefix=False, hard_vocab_limit=False,
        remove_extra_whitespaces=False, minloglevel=2,
    )  # fmt: skip
    row = Prompts(small_config(tokenizer=str(tmp_path / "tokenizer.model"), text_tokens=16))("close drawer")
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    words = [int(number) for number in row if number not in (BEGIN, PAD)]
    assert row[0] == BEGIN and pieces.decode(words) == "close drawer\n"
    (tmp_path / "broken.model").write_text("no model")
    with pytest.raises(UserError, match="no SentencePiece model"):
        Prompts(small_config(tokenizer=str(tmp_path / "broken.model")))
