"""The configuration: what is refused, and the two published forms."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter, ValidationError

from vla_ft.errors import UserError
from vla_ft.policies.act import Config


def test_unknown_keys_and_wrong_values_are_refused() -> None:
    check = TypeAdapter(Config).validate_python
    assert check({"chunk_size": 50, "image_size": [240, 320]}) == Config(chunk_size=50, image_size=(240, 320))
    for wrong in (
        {"chunk_sise": 50},
        {"chunk_size": 0},
        {"dropout": 1.0},
        {"backbone": "resnet101"},
        {"kl_weight": -1},
    ):
        with pytest.raises(ValidationError):
            check(wrong)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_dim": 510}, "hidden_dim is 510 with 8 heads"),
        ({"activation": "glu", "feedforward_dim": 33}, "even number"),
        ({"dilation": True}, "needs backbone 'resnet50', got 'resnet18'"),
    ],
)
def test_combinations_that_cannot_work(fields: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TypeAdapter(Config).validate_python(fields)


def test_published_forms() -> None:
    original, lerobot = Config.original(), Config.lerobot(chunk_size=20)
    assert (original.decoder_layers, original.decoder_output, original.loss_reduction) == (7, "first", "all")
    assert (original.std_floor, original.unbiased_std, original.pad_head) == (1e-2, True, True)
    assert (lerobot.decoder_layers, lerobot.std_epsilon, lerobot.chunk_size) == (1, 1e-8, 20)
