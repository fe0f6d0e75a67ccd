"""The catalogue holds what it says: a source for each entry, pins of the right form, no programs."""

from __future__ import annotations

import re

import pytest

from vla_ft.errors import UserError
from vla_ft.weights.catalogue import CATALOGUE, Entry, find_entry, is_data, load_catalogue

ENTRIES = list(load_catalogue().values())


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_an_entry(entry: Entry) -> None:
    assert entry.about and entry.license and entry.source
    assert sum(place is not None for place in (entry.repository, entry.url, entry.by_hand)) == 1
    assert entry.pinned != (entry.unverified is not None), "an entry is pinned, or says why it is not"
    if entry.repository and entry.revision:
        assert re.fullmatch(r"[0-9a-f]{40}", entry.revision)
    if entry.url:
        assert entry.url.startswith("https://") and entry.url.endswith("/" + entry.files[0]) and len(entry.files) == 1
        assert entry.known[entry.files[0]].sha256 is not None
    assert all(is_data(file) for file in entry.files)
    assert not entry.load or entry.load in entry.files
    for file, known in entry.known.items():
        assert file in entry.files
        assert known.sha256 is None or re.fullmatch(r"[0-9a-f]{8,64}", known.sha256)


def test_the_starts_of_all_four_policies_are_there() -> None:
    names = {
        "resnet18", "clip-vit-b-32", "cogact-small", "cogact-base", "cogact-large", "openvla-7b-prismatic",
        "paligemma-3b-pt-224", "pizero-bridge", "pizero-fractal", "rdt-1b", "rdt-170m", "t5-v1_1-xxl",
        "siglip-so400m-384",
    }  # fmt: skip
    assert names <= set(load_catalogue())
    assert load_catalogue()["paligemma-3b-pt-224"].gated


def test_no_secret_and_no_program() -> None:
    text = CATALOGUE.read_text()
    assert not re.search(r"hf_[A-Za-z0-9]{20}", text)
    for name in ("model.py", "x.sh", "../model.safetensors", "/etc/x.json", "a/../../x.json"):
        assert not is_data(name)


def test_a_repository_of_ones_own() -> None:
    entry = find_entry("lab/policy@v1.0", ["*.pt"])
    assert (entry.repository, entry.revision, entry.files) == ("lab/policy", "v1.0", ("*.pt",))
    assert not entry.pinned and find_entry(f"lab/policy@{'a' * 40}").pinned
    assert find_entry("lab/policy").wants("model-00001-of-00002.safetensors")
    assert not find_entry("lab/policy").wants("pytorch_model.bin")
    assert find_entry("CogACT/CogACT-Base").name == "cogact-base", "what the published documents type is pinned too"
    assert find_entry("CogACT/CogACT-Base", ["*.json"]).name == "CogACT/CogACT-Base"
    with pytest.raises(UserError, match=r"holds several weights: pizero-bridge, pizero-bridge-uniform, pizero-fractal"):
        find_entry("allenzren/open-pi-zero")
    for wrong in ("lab/", "a/b/c", "lab/policy@", "https://huggingface.co/lab/policy"):
        with pytest.raises(UserError, match="Unknown weights"):
            find_entry(wrong)
