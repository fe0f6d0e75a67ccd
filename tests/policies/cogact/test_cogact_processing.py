"""Samples to CogACT batches and back: prompts, neutral padding, grippers, and what is refused."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cogact_examples import HORIZON, SIZE, batch, description, samples, small_config, statistics
from PIL import Image

from vla_ft.data.statistics import DatasetStatistics
from vla_ft.errors import UserError
from vla_ft.policies.cogact import build_model, build_processor, remarks, suggest, without_files
from vla_ft.policies.cogact.prompts import BEGIN, BLANK, END, Prompts, prompt_text


def processor(about: Any = None, numbers: DatasetStatistics | None = None, **changes: Any) -> Any:
    about = about or description()
    return build_processor(small_config(**changes), about, numbers or statistics(about))


def test_a_batch() -> None:
    data = batch()
    assert data["image"].shape == (2, SIZE, SIZE, 3) and data["image"].dtype == torch.uint8
    assert data["tokens"].shape == data["token_mask"].shape
    short, long = data["token_mask"].sum(1).tolist()
    assert short < long == data["tokens"].shape[1], "padded on the right to the longest"
    for row, length in zip(data["tokens"], (short, long), strict=True):
        assert row[0] == BEGIN and row[length - 1] == END and not row[length:].any()
    assert data["action"].shape == (2, HORIZON, 7) and data["action_pad_mask"].tolist() == [[True] * 3 + [False]] * 2
    assert pickle.loads(pickle.dumps(processor())).collate(samples())["tokens"].equal(data["tokens"])


def test_steps_past_the_end_do_not_move() -> None:
    given = samples(1)
    action = batch(1)["action"][0].numpy()
    scaled = np.clip(2 * (given[0]["action"][:3, :6] - 1) / 2 - 1, -1, 1)
    np.testing.assert_allclose(action[:3, :6], scaled, atol=1e-6)
    # Raw zero lies at 2 (0 - 1) / (3 - 1) - 1 = -2: not clipped. The gripper holds its last command, unscaled.
    np.testing.assert_allclose(action[3, :6], -2, atol=1e-6)
    assert action[3, 6] == given[0]["action"][3, 6] and (action[:, 6] == given[0]["action"][:, 6]).all()


def test_absolute_actions_hold_their_last_target() -> None:
    data = processor(description(action_mode="absolute", gripper_dims=())).collate(samples(1))
    expected = np.clip(samples(1)[0]["action"][3] - 2, -1, 1)
    np.testing.assert_allclose(data["action"][0, 3].numpy(), expected, atol=1e-6)


def test_dimensions_without_any_movement_are_zero() -> None:
    still = np.array([0, 5, 0, 0, 0, 0, 0], np.float32)
    numbers = statistics(min=still, max=np.where(still > 0, still, 4).astype(np.float32))
    action = processor(numbers=numbers).collate(samples(1))["action"][0]
    assert not action[:3, 1].any() and action[:3, 0].any()
    assert action[3, 1] == -2, "but no movement is no movement"


def test_back_to_robot_units() -> None:
    raw = torch.tensor([[[2.0, -2.0, 0.0, 0.5, 0.0, 0.0, 0.49], [0.0] * 6 + [0.5]]])
    got = processor().unnormalize(raw)
    np.testing.assert_allclose(got[0, 0], [3, 1, 2, 2.5, 2, 2, 0], atol=1e-6)
    assert got[0, 1, 6] == 1
    whole = processor(description(gripper_dims=())).unnormalize(raw)
    assert whole[0, 0, 6] == pytest.approx(2.49), "nothing is opened or closed that is no gripper"


def test_every_dataset_of_a_mixture_has_its_own_bounds() -> None:
    wide = statistics(q99=np.full(7, 5, np.float32))
    both = DatasetStatistics(features={}, source_hash="", parts={"arm": statistics(), "other": wide})
    one, two = samples(1)[0], {**samples(1)[0], "dataset_name": "other"}
    shared = processor(numbers=both)
    data = shared.collate([one, two])
    assert data["dataset"].tolist() == [0, 1]
    assert data["action"][0, :3, 0].tolist() != data["action"][1, :3, 0].tolist()
    assert data["action"][:, 3, 0].tolist() == [-2, -1.5]
    back = shared.unnormalize(torch.zeros(2, 1, 7), data["dataset"])
    assert back[:, 0, 0].tolist() == [2, 3]


def test_pictures_are_squeezed_to_the_square() -> None:
    given = samples(1)
    given[0]["observation"]["image_primary"] = np.full((1, 40, 60, 3), 77, np.uint8)
    wide = processor(description(cameras={"primary": (40, 60)}))
    data = wide.collate(given)
    assert data["image"].shape == (1, SIZE, SIZE, 3) and (data["image"] == 77).all()
    textured = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    given[0]["observation"]["image_primary"] = textured[None]
    expected = Image.fromarray(textured).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    assert np.array_equal(wide.collate(given)["image"][0], np.asarray(expected))


def test_cached_features_need_neither_picture_nor_prompt() -> None:
    narrow = processor().without({"image", "tokens", "token_mask"})
    assert narrow.keys == () and processor().keys == ("image_primary",)
    assert set(narrow.collate(samples())) == {"action", "action_pad_mask"}


def test_prompts_end_as_published() -> None:
    assert prompt_text("Pick up the <image>Can ") == "In: What action should the robot take to pick up the can ?\nOut:"
    tokens = Prompts(small_config())("Pick up the can")
    assert tokens[0] == BEGIN and tokens[-2:] == [3, END] and len(tokens) == 3 + 16
    assert all(token < small_config().llama.vocabulary for token in tokens)
    assert Prompts(small_config())("pick UP the can") == tokens


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ({"image": np.zeros((1, 8, 8, 1), np.uint8)}, r"image_primary is uint8 \(8, 8, 1\); CogACT sees RGB"),
        ({"image": np.zeros((1, 8, 8, 3), np.float32)}, "float32"),
        ({"image": np.zeros((1, 8, 8, 4), np.uint8)}, "sees RGB"),
    ],
)
def test_pictures_that_are_not_rgb(spoil: dict[str, np.ndarray], message: str) -> None:
    given = samples(1)
    given[0]["observation"]["image_primary"] = spoil["image"]
    with pytest.raises(UserError, match=message):
        processor().collate(given)


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(UserError, match=r"prompt of 20 tokens, the model takes 12\. Shorten the instruction"):
        batch(max_tokens=12)
    with pytest.raises(UserError, match="action has 6 dimensions, the policy's statistics have 7"):
        processor().collate(samples(1, width=6))
    with pytest.raises(UserError, match="statistics are of action dimensions x, y"):
        build_processor(small_config(), description(action_names=tuple("abcdefg")), statistics())
    with pytest.raises(UserError, match=r"2 cameras \(a, b\), CogACT sees one\. Choose it with model\.camera=a"):
        build_model(small_config(), description(cameras={"a": (28, 28), "b": (28, 28)}))
    with pytest.raises(UserError, match="Unknown camera 'c'"):
        build_model(small_config(camera="c"), description(cameras={"a": (28, 28), "b": (28, 28)}))
    with pytest.raises(UserError, match="no cameras"):
        build_model(small_config(), description(cameras={}))
    with pytest.raises(UserError, match="multiple of 14"):
        small_config(image_size=30)
    with pytest.raises(UserError, match="num_ddim_steps is 11"):
        small_config(num_ddim_steps=11)


def json_tokenizer(path: Path, words: list[str]) -> Path:
    """A word-level tokenizer in Llama 2's file format, with its marks at their numbers."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {f"<{i}>": i for i in range(BLANK)} | {"<s>": BEGIN, "</s>": END, "▁": BLANK}
    vocabulary = {word: number for word, number in vocabulary.items() if word not in ("<1>", "<2>")}
    vocabulary |= {word: 100 + number for number, word in enumerate(words)}
    kept = {number: word for word, number in vocabulary.items()}  # one word a number
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in kept.items()}, unk_token="<0>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(path))
    return path


def test_tokenizer_file(tmp_path: Path) -> None:
    json_tokenizer(tmp_path / "tokenizer.json", ["In:", "What", "action", "can?", "Out:"])
    config = small_config(size="7b", tokenizer=str(tmp_path))
    tokens = Prompts(config)("can")
    assert tokens == [BEGIN, 100, 101, 102, 0, 0, 0, 0, 0, 103, 104, BLANK, END]
    with pytest.raises(UserError, match=r"tokens, the model 320\. Set model\.tokenizer=stand-in"):
        Prompts(small_config(tokenizer=str(tmp_path)))
    (tmp_path / "broken.json").write_text("{}")
    with pytest.raises(UserError, match="no tokenizer file"):
        Prompts(small_config(tokenizer=str(tmp_path / "broken.json")))
    with pytest.raises(UserError, match="no tokenizer at"):
        Prompts(small_config(tokenizer=str(tmp_path / "none.json")))


def test_another_models_tokenizer_is_refused(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "a": 2}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="not Llama 2's tokenizer: its marks are"):
        Prompts(small_config(tokenizer=str(tmp_path)))


def test_a_missing_tokenizer_is_told_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLA_FT_WEIGHTS", str(tmp_path))
    with pytest.raises(UserError, match="vla-ft fetch llama-2-tokenizer"):
        processor(tokenizer=None)
    with pytest.raises(UserError, match="not on this machine"):
        processor(tokenizer="llama-2-tokenizer")
    assert without_files(small_config(tokenizer=None)).tokenizer == "stand-in"


def test_what_the_package_says() -> None:
    assert "checksums" in remarks(small_config(), {})[0] and remarks(small_config(tokenizer="x"), {}) == []
    assert suggest(description(), statistics()) == {"camera": "primary", "tokenizer": "llama-2-tokenizer"}
