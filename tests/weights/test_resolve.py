"""A name works wherever a path does, offline, and says what to do where it cannot."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hub_server import Hub
from safetensors.torch import load_file, save_file
from tiny_runs import TINY

from vla_ft.cli import main
from vla_ft.errors import UserError
from vla_ft.nn.resnet import ResNet
from vla_ft.weights import catalogue
from vla_ft.weights.catalogue import find_entry, load_catalogue
from vla_ft.weights.fetching import fetch, print_listing
from vla_ft.weights.places import RECORD, resolve

ROOT = Path(__file__).parents[2]


@pytest.fixture
def own_catalogue(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A catalogue of two: a small policy on the local hub, and one that is gated."""
    content = {"model.safetensors": b"w" * 50, "config.json": b"{}"}
    commit = hub.add("lab/policy", content).commit
    text = f"""
[small-policy]
about = "a policy"
repository = "lab/policy"
revision = "{commit}"
files = ["*.safetensors", "config.json"]
load = "model.safetensors"
gigabytes = 0.5
license = "MIT"
source = "this test"

[large-policy]
about = "another"
repository = "lab/large"
files = ["*.safetensors"]
load = ""
gated = true
license = "Own licence"
unverified = "not found"
source = "this test"
"""
    (tmp_path / "catalogue.toml").write_text(text)
    monkeypatch.setattr(catalogue, "CATALOGUE", tmp_path / "catalogue.toml")
    load_catalogue.cache_clear()
    monkeypatch.chdir(tmp_path)
    yield hub
    load_catalogue.cache_clear()


def test_names_and_paths(own_catalogue: Hub, root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'small-policy' are not on this machine \(looked in .*\)\. Run `vla-ft fetch"):
        resolve("small-policy")
    folder = fetch(find_entry("small-policy"), say=lambda line: None)
    assert resolve("small-policy") == root / "small-policy" / "model.safetensors"
    assert resolve(folder) == resolve("small-policy"), "a copied folder stands for its file"
    fetch(find_entry("lab/policy"), say=lambda line: None)
    assert resolve("lab/policy") == resolve("small-policy"), "the repository of an entry is that entry"
    fetch(find_entry("lab/policy", ["*.json"]), say=lambda line: None)
    fetch(find_entry(f"lab/policy@{own_catalogue.repositories['lab/policy'].commit}"), say=lambda line: None)
    assert resolve(f"lab/policy@{own_catalogue.repositories['lab/policy'].commit}").parent == root

    with pytest.raises(UserError, match=r"There is no file 'smal-policy' here\. Unknown weights .*'small-policy'\?"):
        resolve("smal-policy")
    for path in ("runs/weights.pt", "./policy.safetensors", "/nowhere/x", "lab/unknown", "my runs/weights"):
        assert resolve(path) == Path(path), "who opens it says that it is not there"
    (tmp_path / "small-policy").mkdir()
    assert resolve("small-policy") == Path("small-policy"), "what lies here goes first"
    (folder / RECORD).write_text("{")
    with pytest.raises(UserError, match=r"fetched\.json cannot be read"):
        resolve(folder)


def test_the_list_says_what_is_here(own_catalogue: Hub, root: Path) -> None:
    lines: list[str] = []
    print_listing(lines.append)
    assert lines[1].split()[:5] == ["small-policy", "500", "MB", "MIT", "-"]
    assert lines[2].split()[:5] == ["large-policy", "?", "Own", "licence", "gated"] and "(not pinned)" in lines[2]
    fetch(find_entry("small-policy"), say=lambda line: None)
    lines.clear()
    print_listing(lines.append)
    assert lines[1].split()[4] == "here" and str(root) in lines[-1]
    (root / "small-policy" / RECORD).write_text("{")
    lines.clear()
    print_listing(lines.append)
    assert lines[1].split()[4] == "damaged" and lines[2].split()[4] == "gated", "one record hid all other rows"


@pytest.mark.parametrize("option", ["to=somewhere", "files=*.json"])
def test_an_option_without_a_name_is_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch", option]) == 2
    seen = capsys.readouterr()
    assert f"vla-ft fetch {option} needs the NAME" in seen.err and not seen.out


def test_finding_weights_takes_no_network_library() -> None:
    code = "import sys, vla_ft.weights.places as p; p.resolve('.'); sys.exit('huggingface_hub' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}).returncode == 0


def test_a_run_starts_from_fetched_weights_by_name(hub: Hub, root: Path, tmp_path: Path) -> None:
    """Fetched once, then offline: the trunk of a small run is the published one."""
    published = ResNet("resnet18").state_dict()
    save_file({name: value.contiguous() for name, value in published.items()}, tmp_path / "model.safetensors")
    hub.add("lab/trunk", {"model.safetensors": (tmp_path / "model.safetensors").read_bytes()})

    def train(path: str) -> subprocess.CompletedProcess[str]:
        words = (*TINY, "steps=1", "checkpoint.every=1", f"output={tmp_path / 'run'}", f"init.path={path}")
        return subprocess.run(
            [sys.executable, "-m", "vla_ft", "train", *words, "init.layout=torchvision"],
            capture_output=True, text=True,
            env={"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip

    done = train("resnet18")
    assert done.returncode == 2 and "Run `vla-ft fetch resnet18`" in done.stderr, done.stderr
    fetch(find_entry("lab/trunk"), say=lambda line: None)
    hub.repositories.clear()
    done = train("lab/trunk")
    assert done.returncode == 0, done.stderr
    trained = load_file(next((tmp_path / "run" / "checkpoints").glob("step_*")) / "model.safetensors")
    assert torch.equal(trained["vision.trunk.layer4.1.conv2.weight"], published["layer4.1.conv2.weight"])
