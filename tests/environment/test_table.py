"""The table of cards and environments: the real one, and what a wrong one is told."""

from __future__ import annotations

import shutil

import pytest

from vla_ft.environment.table import ENVIRONMENTS, load_table, parse_sm, parse_version
from vla_ft.errors import UserError

TABLE = load_table()


@pytest.fixture
def copy(tmp_path):
    """A copy of envs/ to spoil, and a function that replaces text in one of its files."""
    root = tmp_path / "envs"
    shutil.copytree(ENVIRONMENTS, root)

    def spoil(file, old, new):
        path = root / file
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))
        return root

    return spoil


@pytest.mark.newcomer
@pytest.mark.parametrize(
    ("typed", "card", "environment"),
    [
        ("rtx5090", "rtx5090", "cu128"),
        ("RTX 5090", "rtx5090", "cu128"),
        ("rtx-5090", "rtx5090", "cu128"),
        ("NVIDIA GeForce RTX 5090", "rtx5090", "cu128"),
        ("3090", "rtx3090", "cu118"),
        ("a100", "a100", "cu126"),
        ("A100_80GB", "a100-80gb", "cu126"),
        ("RTX 4080 Super", "rtx4080s", "cu126"),
        ("l40s", "l40s", "cu126"),
        ("h200", "h200", "cu126"),
        ("b200", "b200", "cu128"),
    ],
)
def test_people_spell_cards_in_many_ways(typed, card, environment):
    assert TABLE.card(typed).name == card
    assert TABLE.environment_for(typed).name == environment


def test_an_environment_can_be_named_itself():
    assert TABLE.environment_for("cu118").torch == "2.7.1+cu118"
    assert TABLE.environment_for("cpu").cuda is None


def test_unknown_names_get_the_nearest_one():
    with pytest.raises(UserError, match=r"Unknown card 'rtx509'\. Did you mean 'rtx5090'\?"):
        TABLE.card("rtx509")
    with pytest.raises(UserError, match=r"Unknown environment 'cu129'\. Did you mean 'cu12[68]'\?"):
        TABLE.environment("cu129")


@pytest.mark.parametrize(
    ("typed", "why"),
    [
        ("GH200", "ARM"),
        ("1080ti", "Pascal"),
        ("GeForce GTX 1080 Ti", "Pascal"),
        ("Tesla P40", "Pascal"),
        ("b300", "sm_103"),
    ],
)
def test_a_refused_card_says_why(typed, why):
    with pytest.raises(UserError, match=why):
        TABLE.card(typed)


@pytest.mark.parametrize(
    ("product", "card"),
    [
        ("NVIDIA GeForce RTX 3090", "rtx3090"),
        ("GeForce RTX 3090", "rtx3090"),
        ("Tesla V100-SXM2-32GB", "v100-32gb"),
        ("NVIDIA A100 80GB PCIe", "a100-80gb"),
        ("NVIDIA GeForce RTX 3090 Ti", "rtx3090ti"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", None),
    ],
)
def test_products_match_their_card_and_no_relative(product, card):
    found = TABLE.match(product)
    assert (found.name if found else None) == card


def test_every_card_runs_on_code_of_its_own_major():
    for card in TABLE.cards:
        major, minor = card.compute_capability
        flags = [parse_sm(flag) for flag in TABLE.environment(card.environment).sm]
        assert any(have == major and below <= minor for have, below in flags), card.name
        assert card in TABLE.cards_of(card.environment)


def test_ada_has_no_code_of_its_own_and_runs_amperes():
    cu126 = TABLE.environment("cu126")
    assert "sm_89" not in cu126.sm
    assert cu126.holds((8, 9)) and cu126.holds((9, 0))
    assert not cu126.holds((12, 0)) and not cu126.holds((10, 0))
    assert TABLE.environment("cu128").holds((10, 3)) and not TABLE.environment("cu128").holds((11, 0))


def test_drivers_are_compared_as_numbers():
    assert parse_version("535.104.05") > parse_version("525.60.13") > parse_version("450.80.02")
    assert TABLE.environment("cu128").driver_needed("hopper") == "525.60.13"
    assert TABLE.environment("cu128").driver_needed("blackwell") == "570"
    assert TABLE.environment("cpu").driver_needed() is None


def test_environments_sort_by_cuda():
    assert [one.name for one in TABLE.environments] == ["cpu", "cu118", "cu126", "cu128"]


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("gpus.toml", 'aliases = ["5080"]', 'aliases = ["5090"]', "name '5090' of card .* already belongs to"),
        ("gpus.toml", 'aliases = ["5080"]', 'aliases = ["GB 10"]', "refused card 'gb10'"),
        ("gpus.toml", 'environment = "cu118"', 'environment = "cu119"', "Unknown environment 'cu119'"),
        ("gpus.toml", 'generation = "blackwell", environment = "cu128"', 'generation = "x", environment = "cu126"',
         "is sm_120, and its environment 'cu126' holds"),
        ("gpus.toml", 'cc = "12.0"', 'cc = "120"', "has cc '120'"),
        ("gpus.toml", "memory_gib = 24.0, ", "", r"missing or unknown keys \(memory_gib\)"),
        ("gpus.toml", "[cards]", "[cards", "no valid TOML"),
        ("gpus.toml", 'cc = ["10.3"]', 'cc = ["10.0"]', r"'b100' is sm_100, which \[refused\] rules out"),
        ("gpus.toml", 'cc = ["10.3"]', 'cc = ["103"]', "has cc '103'"),
        ("gpus.toml", 'cc = ["10.3"], ', "", "refused 'b300' has names, reason"),
        ("cu128/environment.toml", 'cuda = "12.8"', 'cudda = "12.8"', "cudda"),
        ("cu128/environment.toml", '"sm_100"', '"100"', "'100' is no architecture flag"),
        ("cu128/environment.toml", 'native_driver = "570.26"', "", "belong together"),
    ],
)  # fmt: skip
def test_a_wrong_table_is_refused_with_the_place(copy, file, old, new, message):
    with pytest.raises(UserError, match=message):
        load_table(copy(file, old, new))


def test_the_lock_hash_follows_the_lock(copy):
    root = copy("cpu/requirements.lock", "numpy==2.4.6", "numpy==2.4.7")
    assert load_table(root).environment("cpu").lock_hash != TABLE.environment("cpu").lock_hash
    (root / "cpu" / "requirements.lock").unlink()
    with pytest.raises(UserError, match="invoke lock --env cpu"):
        _ = load_table(root).environment("cpu").lock_hash
