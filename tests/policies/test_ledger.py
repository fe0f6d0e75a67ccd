"""Import of weights: an account of every tensor, one at a time, and nothing left without numbers."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from vla_ft.errors import UserError
from vla_ft.policies.ledger import apply_import, import_state, plan_import
from vla_ft.policies.tensor_files import TensorFiles, open_tensors


class Net(nn.Module):
    """A shared weight, a buffer, a frozen part."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(6, 4)
        self.body = nn.Linear(4, 4)
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("scale", torch.ones(4))
        self.body.bias.requires_grad_(False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.body(self.embed(tokens)) * self.scale))


def published(tmp_path: Path) -> tuple[Net, TensorFiles]:
    """A model and a file of its weights under foreign names, with one tensor more."""
    torch.manual_seed(3)
    model = Net()
    model.scale.mul_(2.0)
    state = {f"model.{name}": value.clone() for name, value in model.state_dict().items()}
    save_file({**state, "model.rope": torch.ones(2)}, tmp_path / "a.safetensors")
    return model, open_tensors(tmp_path / "a.safetensors")


def rename(key: str) -> str | None:
    return None if key == "model.rope" else key.removeprefix("model.")


class Guarded(TensorFiles):
    """Counts the tensors that are made, and holds none back."""

    made = 0

    def __getitem__(self, name: str) -> torch.Tensor:
        self.made += 1
        return super().__getitem__(name)


def test_a_plan_reads_no_tensor_and_travels(tmp_path: Path) -> None:
    model, tensors = published(tmp_path)
    guarded = Guarded(tensors.source, tensors._entries)
    plan = plan_import(model, guarded, source="a", rename=rename)
    assert guarded.made == 0
    sent = pickle.loads(pickle.dumps(plan))
    assert sent == plan and list(sent.moves()) == list(plan.moves())
    assert plan.unused == ["model.rope"] and len(plan.renamed) == 5
    fresh = Net()
    apply_import(fresh, guarded, sent)
    assert guarded.made == 5
    assert all(torch.equal(a, b) for a, b in zip(fresh.state_dict().values(), model.state_dict().values(), strict=True))


def test_surprises_are_all_named_and_nothing_is_touched(tmp_path: Path) -> None:
    model = Net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = {name: value.clone() + 1 for name, value in before.items() if name != "scale"}
    state["body.bias"] = torch.zeros(5)
    with pytest.raises(
        UserError, match=r"'body.bias' has shape \(5,\), expected \(4,\); missing tensor 'scale' \(4,\)"
    ):
        import_state(model, state, source="a")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_assign_takes_the_mapped_tensors_as_parameters(tmp_path: Path) -> None:
    model, tensors = published(tmp_path)
    with torch.device("meta"):
        empty = Net()
    ledger = import_state(empty, tensors, source="a", rename=rename, assign=True)
    assert len(ledger.renamed) == 5
    assert empty.head.weight is empty.embed.weight, "the shared weight came apart"
    assert empty.body.weight.requires_grad and not empty.body.bias.requires_grad
    assert isinstance(empty.body.weight, nn.Parameter) and "scale" in dict(empty.named_buffers())
    tokens = torch.arange(6)
    assert torch.equal(empty(tokens), model(tokens))

    before = (tmp_path / "a.safetensors").read_bytes()
    empty(tokens).square().sum().backward()
    torch.optim.SGD([p for p in empty.parameters() if p.requires_grad], lr=0.1).step()
    assert not torch.equal(empty(tokens), model(tokens)), "a mapped weight was not trained"
    assert (tmp_path / "a.safetensors").read_bytes() == before, "training wrote into the published file"


def test_assign_converts_where_the_types_differ(tmp_path: Path) -> None:
    _, tensors = published(tmp_path)
    with torch.device("meta"):
        empty = Net().bfloat16()
    import_state(empty, tensors, source="a", rename=rename, assign=True)
    assert {p.dtype for p in empty.parameters()} == {torch.bfloat16}
    assert torch.equal(empty.body.weight, tensors["model.body.weight"].bfloat16())


def test_no_tensor_stays_on_the_meta_device(tmp_path: Path) -> None:
    _, tensors = published(tmp_path)
    with torch.device("meta"):
        empty, larger = Net(), Net()
        larger.register_buffer("positions", torch.zeros(3), persistent=False)
        larger.extra = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="import with assign=True"):
        import_state(empty, tensors, source="a", rename=rename)
    with pytest.raises(ValueError, match=r"without numbers: extra.bias, extra.weight, positions\. Give these"):
        import_state(larger, tensors, source="a", rename=rename, assign=True, may_be_new=lambda k: k[:5] == "extra")
    assert all(p.is_meta for p in larger.parameters()), "something was touched before the refusal"


def test_place_gets_every_tensor_whole_and_in_the_plans_order(tmp_path: Path) -> None:
    model, tensors = published(tmp_path)
    with torch.device("meta"):
        empty = Net()
    placed: dict[str, torch.Tensor] = {}

    def place(name: str, target: torch.Tensor, value: torch.Tensor) -> None:
        assert target.is_meta and target.shape == value.shape
        placed[name] = value.clone()

    ledger = import_state(empty, tensors, source="a", rename=rename, place=place)
    assert list(placed) == [name for _, name in ledger.moves()]
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in placed.items())
    with pytest.raises(ValueError, match="give one of them"):
        import_state(empty, tensors, source="a", rename=rename, place=place, assign=True)
