"""Mixtures over real sets on disk: one reader, samples by the statistics of their own dataset, splits, refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from episode_sets import IMAGE, SetOnDisk

from vla_ft.data.augmentation import RECIPES, Augmentation
from vla_ft.data.formats.aloha_hdf5 import AlohaHdf5Reader
from vla_ft.data.loading import build_loader
from vla_ft.data.mixture import (
    MixtureReader,
    labeled_episodes,
    mixture_order,
    mixture_statistics,
    split_parts,
)
from vla_ft.data.normalization import MeanStd, PerDataset
from vla_ft.data.opening import MixEntry, open_mixture
from vla_ft.data.order import BatchPlan
from vla_ft.data.sample import Sample
from vla_ft.data.statistics import DatasetStatistics, check_finite
from vla_ft.data.windows import TrainingPlaces, WindowIndex, WindowSpec, build_sample
from vla_ft.errors import UserError


@pytest.fixture
def two(new_set: Callable[[], SetOnDisk]) -> dict[str, SetOnDisk]:
    first, second = new_set(), new_set()
    for length in (5, 9, 7, 6):
        first.add(length, attributes={"language_instruction": "lift"})
    for number, length in enumerate((4, 8, 3)):
        second.add(length, sim=False, attributes={} if number == 1 else {"language_instruction": "fold"})
    return {"one": first, "two": second}


@pytest.fixture
def mixture(two: dict[str, SetOnDisk]) -> MixtureReader:
    parts = {name: AlohaHdf5Reader(made.folder, fps=50.0) for name, made in two.items()}
    return MixtureReader(parts, {"one": 1.0, "two": 2.0})


def test_episodes_are_numbered_through_and_samples_are_of_their_part(
    mixture: MixtureReader, two: dict[str, SetOnDisk]
) -> None:
    assert mixture.lengths.tolist() == [5, 9, 7, 6, 4, 8, 3]
    sample = build_sample(mixture, 5, 3, WindowSpec(action_horizon=4), ("proprio", "image_top"))
    assert sample["dataset_name"] == "two"
    raw = two["two"].episodes[1]
    np.testing.assert_allclose(sample["observation"]["proprio"][0], raw["qpos"][3], rtol=1e-6)
    # The second set is of a real robot: its actions begin a step early. Each part keeps its own rule.
    np.testing.assert_allclose(sample["action"], raw["action"][2:6], rtol=1e-6)
    assert build_sample(mixture, 3, 5, WindowSpec(), ("proprio",))["dataset_name"] == "one"
    assert mixture.name_of(4).startswith("two: ")
    with pytest.raises(IndexError):
        mixture.resolve(7)


def test_a_split_holds_out_of_every_part_and_a_part_keeps_its_own(mixture: MixtureReader) -> None:
    split, dropped = split_parts(mixture, fraction=0.3, seed=3)
    assert sorted([*split.training, *split.validation]) == list(range(7))
    assert str(dropped) == "none dropped"
    for number, part in enumerate(mixture.parts.values()):
        alone, _ = split_parts(part, fraction=0.3, seed=3)
        assert mixture.episodes_of(number, split.training).tolist() == alone.training.tolist()
        assert len(mixture.episodes_of(number, split.validation)) == len(alone.validation) >= 1


def test_episodes_without_an_instruction_are_dropped_with_a_count(mixture: MixtureReader) -> None:
    assert labeled_episodes(mixture).tolist() == [0, 1, 2, 3, 4, 6]
    split, dropped = split_parts(mixture, fraction=0, seed=0, drop_unlabeled=True)
    assert split.training.tolist() == [0, 1, 2, 3, 4, 6]
    assert str(dropped) == "1 of 7 episodes dropped: no instruction"


def test_a_part_without_any_instruction_is_refused(new_set: Callable[[], SetOnDisk]) -> None:
    silent = new_set()
    silent.add(5)
    with pytest.raises(UserError, match=r"No episode of set_0 is left to train on: 0 of 1 carry an instruction"):
        split_parts(AlohaHdf5Reader(silent.folder, fps=50.0), fraction=0, seed=0, drop_unlabeled=True)


def test_statistics_are_each_parts_own(mixture: MixtureReader, two: dict[str, SetOnDisk], tmp_path: Path) -> None:
    statistics = mixture_statistics(mixture, np.array([0, 2, 4, 6]), tmp_path)
    assert list(statistics.parts) == ["one", "two"]
    for name, episodes in (("one", (0, 2)), ("two", (0, 2))):
        values = np.concatenate([two[name].episodes[e]["action"] for e in episodes])
        np.testing.assert_allclose(statistics.of(name)["action"].mean, values.mean(0), rtol=1e-5, atol=1e-6)
        assert statistics.of(name).episodes == 2
    with pytest.raises(UserError, match=r"statistics of 2 datasets, one, two"):
        statistics["action"]
    with pytest.raises(UserError, match=r"say whose units are meant, such as dataset=one"):
        statistics.of(None)
    with pytest.raises(UserError, match="Unknown dataset 'tow'. Did you mean 'two'".replace(".", r"\.")):
        statistics.of("tow")
    path = tmp_path / "all.json"
    statistics.save(path)
    back = DatasetStatistics.load(path)
    assert back.source_hash == statistics.source_hash
    assert np.array_equal(back.of("two")["proprio"].q99, statistics.of("two")["proprio"].q99)
    mixture.weights["two"] = 3.0
    assert mixture_statistics(mixture, np.array([0, 2, 4, 6]), tmp_path).source_hash != statistics.source_hash


def test_samples_are_normalised_by_their_own_dataset(mixture: MixtureReader, tmp_path: Path) -> None:
    statistics = mixture_statistics(mixture, np.arange(7), tmp_path)
    form = PerDataset(statistics, "action", MeanStd.of)
    window = WindowSpec(action_horizon=3)
    samples: list[Sample] = [build_sample(mixture, e, 1, window, ("proprio",)) for e in (0, 5, 2, 4)]
    numbers = form.numbers(samples)
    assert numbers.tolist() == [0, 1, 0, 1]
    actions = np.stack([sample["action"] for sample in samples])
    normalized = form.normalize(actions, numbers)
    for row, name in enumerate(("one", "two", "one", "two")):
        own = MeanStd.of(statistics.of(name)["action"])
        assert np.array_equal(normalized[row], own.normalize(actions[row]))
    np.testing.assert_allclose(form.unnormalize(normalized, numbers), actions, atol=1e-5)
    with pytest.raises(ValueError, match="of which of one, two"):
        form.unnormalize(normalized)
    alone = PerDataset(statistics.of("one"), "action", MeanStd.of)
    assert alone.numbers(samples).tolist() == [0, 0, 0, 0], "a single dataset answers to any name"


class Names:
    """Collates the names and first images of samples."""

    window = WindowSpec()
    keys = ("image_top",)

    def collate(self, samples):
        import torch

        images = np.stack([sample["observation"]["image_top"][0] for sample in samples])
        number = [("one", "two").index(sample["dataset_name"]) for sample in samples]
        return {"dataset": torch.tensor(number), "image": torch.from_numpy(images)}


def batches(mixture: MixtureReader, *, start: int = 0, steps: int = 12, workers: int = 0, augmented: bool = True):
    index = WindowIndex(mixture.lengths, np.arange(7))
    places = TrainingPlaces(index, mixture_order(mixture, index, seed=4))
    config = RECIPES["cogact"]
    assert config is not None
    plan = BatchPlan(per_device=6)
    loader = build_loader(
        mixture,
        np.arange(7),
        Names(),
        plan,
        seed=4,
        places=places,
        augmentation=Augmentation(config, 4) if augmented else None,
        start=start,
        steps=steps,
        workers=workers,
    )
    return list(loader), len(places)


def test_the_stream_has_exact_shares_and_neither_workers_nor_restarts_change_a_pixel(mixture: MixtureReader) -> None:
    whole, epoch = batches(mixture)
    # 27 windows of weight 1 and 15 of weight 2: 27 + 30 samples an epoch.
    assert epoch == 57
    names = np.concatenate([b["dataset"].numpy() for b in whole])
    assert np.bincount(names[:57]).tolist() == [27, 30]
    again, _ = batches(mixture, workers=2)
    rest, _ = batches(mixture, start=7 * 6, steps=5)
    for first, second in zip([*whole, *whole[7:]], [*again, *rest], strict=True):
        assert first["dataset"].equal(second["dataset"])
        assert first["image"].equal(second["image"])
    plain, _ = batches(mixture, augmented=False)
    assert not plain[0]["image"].equal(whole[0]["image"])


def test_what_parts_do_not_share_is_left_out_or_refused(
    mixture: MixtureReader, new_set: Callable[[], SetOnDisk], two: dict[str, SetOnDisk]
) -> None:
    assert dict(mixture.description.cameras) == {"top": IMAGE, "wrist": IMAGE}
    lone = new_set()
    lone.add(4, cameras=("top",))
    one = AlohaHdf5Reader(two["one"].folder, fps=50.0)
    both = MixtureReader({"a": one, "b": AlohaHdf5Reader(lone.folder, fps=30.0)}, {"a": 1, "b": 1})
    assert list(both.description.cameras) == ["top"]
    assert both.description.fps == 0
    narrow = new_set()
    narrow.add(4, width=7)
    with pytest.raises(UserError, match="'a' and 'b' cannot be mixed: action_names is"):
        MixtureReader({"a": one, "b": AlohaHdf5Reader(narrow.folder, fps=50.0)}, {"a": 1, "b": 1})


def test_opening_from_entries(two: dict[str, SetOnDisk], tmp_path: Path) -> None:
    entries = {name: MixEntry(path=str(made.folder), weight=2.0) for name, made in two.items()}
    reader = open_mixture(tmp_path, entries, ("top",), (8, 10), {"fps": 50.0})
    assert dict(reader.description.cameras) == {"top": (8, 10)}
    assert reader.read(5, np.array([0, 2]), ("image_top",))["image_top"].shape == (2, 8, 10, 3)
    assert reader.weights == {"one": 2.0, "two": 2.0}
    with pytest.raises(UserError, match=r"2 of 4 datasets of the mix are not in .*: here, there"):
        open_mixture(tmp_path, {**entries, "here": MixEntry(), "there": MixEntry()}, None, None, {})
    with pytest.raises(UserError, match="Unknown standardisation 'brigde_orig'"):
        open_mixture(tmp_path, {"one": MixEntry(path=entries["one"].path, standardize="brigde_orig")}, None, None, {})


def test_a_number_that_is_none_is_found_in_its_own_dataset(two: dict[str, SetOnDisk]) -> None:
    with h5py.File(two["two"].folder / "episode_2.hdf5", "r+") as file:
        file["observations/qpos"][1, 3] = np.nan
    parts = {name: AlohaHdf5Reader(made.folder, fps=50.0) for name, made in two.items()}
    mixture = MixtureReader(parts, {"one": 1.0, "two": 1.0})
    check_finite(mixture, np.arange(6))
    with pytest.raises(UserError, match=r"two: .*episode_2\.hdf5: proprio 'left_forearm_roll' at step 1 is nan"):
        check_finite(mixture, np.arange(7))
