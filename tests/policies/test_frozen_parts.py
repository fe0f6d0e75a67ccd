"""What may be cached, and a model without the part."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from vla_ft.errors import UserError
from vla_ft.policies.act import Config
from vla_ft.policies.act.model import Act, Dimensions
from vla_ft.policies.base import Batch, FrozenFeatures, Loss, Model
from vla_ft.policies.frozen_parts import (
    cacheable,
    compute_rows,
    leave_out,
    refuse_random,
    replaced_inputs,
    weights_hash,
    with_features,
)


class Toy(Model):
    """A part ``eye`` that reads images and a prompt, and a head on it."""

    def __init__(self, eye: nn.Module | None = None, prompt: bool = False) -> None:
        super().__init__()
        self.eye = nn.Sequential(nn.Linear(3, 4), eye or nn.Identity())
        self.eye.requires_grad_(False)
        self.prompt = nn.Parameter(torch.zeros(3)) if prompt else None
        self.head = nn.Linear(4, 2)

    def forward(self, batch: Batch) -> Loss:
        return Loss(self.sample(batch).square().mean())

    def sample(self, batch: Batch) -> Tensor:
        features = batch["feature_eye"] if "feature_eye" in batch else self.see(batch)["feature_eye"]
        return self.head(features)

    def see(self, batch: Batch) -> dict[str, Tensor]:
        image = batch["image_top"]
        return {"feature_eye": self.eye(image if self.prompt is None else image + self.prompt)}

    def parameter_groups(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        return {"all": list(self.named_parameters())}

    def blocks(self) -> list[nn.Module]:
        return []

    def frozen_features(self) -> dict[str, FrozenFeatures]:
        declared = FrozenFeatures(
            module="eye",
            inputs=("image_top",),
            replaces=("image_top",),
            outputs=("feature_eye",),
            scope="sample",
            compute=self.see,
            settings={},
        )
        return {"eye": declared}


class Functional(nn.Module):
    """Dropout that no module shows."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.dropout(x, 0.5, self.training)


BATCH = {"image_top": torch.randn(2, 3), "action": torch.zeros(2, 2)}


def probe(model: Toy) -> None:
    refuse_random(model, "eye", model.frozen_features()["eye"], BATCH)


def test_a_frozen_part_may_be_cached() -> None:
    model = Toy()
    assert list(cacheable(model, ["eye", "eye"])) == ["eye"]
    probe(model)
    assert model.training


def test_an_unknown_part_gets_the_nearest_name() -> None:
    with pytest.raises(UserError, match=r"'eyes'.* Did you mean 'eye'\?"):
        cacheable(Toy(), ["eyes"])


def test_a_trained_part_is_refused() -> None:
    model = Toy()
    model.eye[0].bias.requires_grad_(True)
    with pytest.raises(UserError, match=r"'eye', whose weights are trained .*freeze=\[all\]"):
        cacheable(model, ["eye"])


def test_augmented_inputs_are_refused() -> None:
    with pytest.raises(UserError, match="image_top is augmented at random"):
        cacheable(Toy(), ["eye"], random_keys=("image_top",))
    cacheable(Toy(), ["eye"], random_keys=("image_wrist",))


def test_batch_statistics_are_refused() -> None:
    with pytest.raises(UserError, match="statistics of the batch"):
        cacheable(Toy(nn.BatchNorm1d(4)), ["eye"])


@pytest.mark.parametrize("eye", [nn.Dropout(0.1), Functional()])
def test_dropout_of_any_kind_is_refused(eye: nn.Module) -> None:
    with pytest.raises(UserError, match="draws random numbers in training"):
        probe(Toy(eye))


def test_dropout_is_seen_without_running_the_part() -> None:
    with pytest.raises(UserError, match=r"'eye' cannot be cached: 1 drops activations at random"):
        cacheable(Toy(nn.Dropout(0.1)), ["eye"])


def test_dropout_of_zero_is_no_dropout() -> None:
    cacheable(Toy(nn.Dropout(0.0)), ["eye"])
    probe(Toy(nn.Dropout(0.0)))


def test_what_depends_on_trained_weights_is_refused() -> None:
    with pytest.raises(UserError, match="feature_eye depends on weights that are trained"):
        probe(Toy(prompt=True))


def test_a_model_without_its_part_gives_the_same_numbers_and_keeps_nothing_of_it() -> None:
    model = Toy()
    expected = model(BATCH).loss
    declared = model.frozen_features()["eye"]
    rows = compute_rows(model, declared, BATCH)
    whole = {name: value.clone() for name, value in model.state_dict().items()}
    tensors = leave_out(model, declared)
    assert set(tensors) == {"eye.0.weight", "eye.0.bias"}
    assert {**model.state_dict(), **tensors}.keys() == whole.keys()
    assert [name for name, _ in model.named_parameters()] == ["head.weight", "head.bias"]
    batch = with_features(BATCH, {"eye": declared}, rows, replaced_inputs(model, {"eye": declared}), steps=1)
    assert set(batch) == {"action", "feature_eye"}
    assert torch.equal(model(batch).loss, expected)
    with pytest.raises(RuntimeError, match="left out"):
        model(BATCH)


def test_the_hash_is_of_names_types_and_values() -> None:
    one, two = nn.Linear(2, 2), nn.Linear(2, 2)
    two.load_state_dict(one.state_dict())
    assert weights_hash(one) == weights_hash(two)
    with torch.no_grad():
        two.bias[0] += 1e-7
    assert weights_hash(one) != weights_hash(two)
    assert weights_hash(one.to(torch.bfloat16)) != weights_hash(one.to(torch.float32))


def test_the_planner_gets_the_shapes_without_computing() -> None:
    """As it goes at full size: fake tensors, the published ACT, then the same without its trunk."""
    with FakeTensorMode():
        act = Act(Config(), Dimensions(cameras=("top", "wrist"), action=14, proprio=14))
        freeze = act.get_submodule("vision.trunk").requires_grad_(False)
        images = {f"image_{camera}": torch.zeros(2, 480, 640, 3, dtype=torch.uint8) for camera in ("top", "wrist")}
        action = {"action": torch.zeros(2, 100, 14), "action_pad_mask": torch.ones(2, 100, dtype=torch.bool)}
        batch = {**images, **action, "proprio": torch.zeros(2, 14)}
        parts = cacheable(act, ["backbone"])
        replaced = replaced_inputs(act, parts)
        rows = compute_rows(act, parts["backbone"], batch)
        left_out = leave_out(act, parts["backbone"])
        smaller = with_features(batch, parts, rows, replaced, steps=1)
        assert set(smaller) == {"feature_image_top", "feature_image_wrist", "action", "action_pad_mask", "proprio"}
        assert smaller["feature_image_top"].shape == (2, 1, 512, 15, 20)
        assert len(left_out) == len(freeze.state_dict())
        assert act(smaller).loss.shape == ()
        assert act.sample(smaller).shape == (2, 100, 14)


def test_an_input_stays_while_another_part_that_runs_reads_it() -> None:
    class Two(Toy):
        def frozen_features(self) -> dict[str, FrozenFeatures]:
            declared = super().frozen_features()
            return {**declared, "other": dataclasses.replace(declared["eye"], outputs=("feature_other",))}

    parts = cacheable(Two(), ["eye", "other"])
    assert replaced_inputs(Two(), parts) == {"image_top"}
    assert replaced_inputs(Two(), {"eye": parts["eye"]}) == set()
