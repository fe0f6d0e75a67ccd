"""Batches are a function of (seed, position): the same for any workers, ranks and resume position."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import h5py
import numpy as np
import psutil
import pytest
import torch
from episode_sets import SetOnDisk

from vla_ft.data.formats.aloha_hdf5 import AlohaHdf5Reader
from vla_ft.data.loading import Loader, build_loader, build_validation_loader, evenly_spaced
from vla_ft.data.order import BatchPlan, shuffled
from vla_ft.data.sample import Sample
from vla_ft.data.windows import WindowSpec
from vla_ft.errors import UserError

ALL = np.arange(3)
WINDOWS = 21


class Stack:
    """The simplest processor: stacks what it gets."""

    window = WindowSpec(observation_steps=2, action_horizon=4)

    def __init__(self, *keys: str) -> None:
        self.keys = keys or ("proprio", "image_top")

    def collate(self, samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
        names = [*self.keys, "timestep", "pad_mask"]
        batch = {n: torch.from_numpy(np.stack([s["observation"][n] for s in samples])) for n in names}
        for name in ("action", "action_pad_mask"):
            batch[name] = torch.from_numpy(np.stack([s[name] for s in samples]))  # type: ignore[literal-required]
        return batch


class Broken(Stack):
    def collate(self, samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
        raise UserError("the language is unknown")


@pytest.fixture
def reader(aloha_set: SetOnDisk) -> AlohaHdf5Reader:
    return AlohaHdf5Reader(aloha_set.folder)


def make(reader: AlohaHdf5Reader, plan: BatchPlan, **options) -> Loader:
    return build_loader(reader, ALL, options.pop("processor", Stack()), plan, seed=5, **options)


def joined(batches: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {key: torch.cat([b[key] for b in batches]) for key in batches[0]}


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), key


@pytest.fixture
def expected(reader: AlohaHdf5Reader) -> dict[str, torch.Tensor]:
    """Five steps of a global batch of 12, by one process without workers."""
    return joined(list(make(reader, BatchPlan(per_device=12), steps=5)))


def test_an_epoch_holds_every_window_once_and_the_stream_goes_on(
    reader: AlohaHdf5Reader, expected: dict[str, torch.Tensor], aloha_set: SetOnDisk
) -> None:
    qpos = np.concatenate([e["qpos"] for e in aloha_set.episodes]).astype("f4")
    assert len(qpos) == WINDOWS == len(make(reader, BatchPlan(per_device=1)).dataset)
    for epoch in range(2):
        seen = expected["proprio"][epoch * WINDOWS : (epoch + 1) * WINDOWS, -1].numpy()
        assert np.array_equal(np.sort(seen, axis=0), np.sort(qpos, axis=0))
        order = shuffled(np.arange(epoch * WINDOWS, (epoch + 1) * WINDOWS), WINDOWS, 5)
        assert np.array_equal(seen, qpos[order])


@pytest.mark.parametrize(("workers", "method"), [(1, None), (2, None), (2, "spawn")])
def test_workers_do_not_matter(
    reader: AlohaHdf5Reader, expected: dict[str, torch.Tensor], workers: int, method: str | None
) -> None:
    reader.read(0, np.array([0]), ["image_top"])  # handles open in the parent must not reach the workers
    loader = make(reader, BatchPlan(per_device=12), steps=5, workers=workers, start_method=method)
    assert_same(joined(list(loader)), expected)


@pytest.mark.parametrize(("world", "accumulation"), [(2, 1), (3, 2), (1, 3)])
def test_ranks_do_not_matter(
    reader: AlohaHdf5Reader, expected: dict[str, torch.Tensor], world: int, accumulation: int
) -> None:
    ranks = []
    for rank in range(world):
        plan = BatchPlan(per_device=12 // world // accumulation, world=world, rank=rank, accumulation=accumulation)
        ranks.append(list(make(reader, plan, steps=5)))
        assert len(ranks[-1]) == 5 * accumulation
    per_step = [b for step in range(5) for r in ranks for b in r[step * accumulation : (step + 1) * accumulation]]
    assert_same(joined(per_step), expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_is_exact_with_another_number_of_workers(
    reader: AlohaHdf5Reader, expected: dict[str, torch.Tensor], workers: int
) -> None:
    plan = BatchPlan(per_device=12)
    first = list(itertools.islice(make(reader, plan, workers=2 - workers), 2))
    rest = list(itertools.islice(make(reader, plan, start=2 * plan.global_batch, workers=workers), 3))
    assert_same(joined(first + rest), expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_default_generator_is_left_alone(reader: AlohaHdf5Reader, workers: int) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    list(make(reader, BatchPlan(per_device=2), steps=2, workers=workers))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_users_mistake_keeps_its_words(reader: AlohaHdf5Reader, aloha_set: SetOnDisk, workers: int) -> None:
    (aloha_set.folder / "episode_1.hdf5").write_bytes(b"")
    loader = make(reader, BatchPlan(per_device=7), steps=3, workers=workers)
    with pytest.raises(UserError, match=r"^Cannot open .*episode_1\.hdf5: 0 bytes") as caught:
        list(loader)
    assert "Traceback" not in str(caught.value)
    with pytest.raises(UserError, match=r"^the language is unknown$"):
        next(iter(make(reader, BatchPlan(per_device=1), workers=workers, processor=Broken("proprio"))))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_fault_names_episode_and_step(reader: AlohaHdf5Reader, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(AlohaHdf5Reader, "read", fail)
    loader = build_loader(reader, np.array([1]), Stack("proprio"), BatchPlan(per_device=1), seed=0, workers=workers)
    with pytest.raises(RuntimeError, match=r"sample at step \d of episode_1\.hdf5 failed: ours"):
        next(iter(loader))


def test_what_the_policy_needs_is_checked_at_once(reader: AlohaHdf5Reader) -> None:
    with pytest.raises(UserError, match=r"needs 'image_topp', but .* Did you mean 'image_top'"):
        make(reader, BatchPlan(per_device=1), processor=Stack("image_topp"))
    with pytest.raises(UserError, match="are left to read"):
        build_validation_loader(reader, np.array([], int), Stack(), batch_size=2)


def test_action_chunks_decode_no_images(reader: AlohaHdf5Reader, aloha_set: SetOnDisk) -> None:
    for path in aloha_set.folder.iterdir():
        with h5py.File(path, "r+") as file:
            del file["observations/images"]
    assert next(iter(make(reader, BatchPlan(per_device=2), processor=Stack("proprio"))))["action"].shape == (2, 4, 14)


def test_validation_is_the_same_every_time(reader: AlohaHdf5Reader) -> None:
    episodes = np.array([2, 1])
    whole = build_validation_loader(reader, episodes, Stack(), batch_size=5)
    assert len(whole) == 4
    assert [len(b["action"]) for b in whole] == [5, 5, 5, 1]
    some = build_validation_loader(reader, episodes, Stack(), batch_size=3, windows=6, workers=1)
    first = joined(list(some))
    assert_same(first, joined(list(some)))
    # Episode 2 has windows 0 to 6, episode 1 windows 7 to 15; the middles of six parts of 16.
    assert first["timestep"][:, -1].tolist() == [1, 4, 6, 2, 5, 7]
    ranks = [
        joined(list(build_validation_loader(reader, episodes, Stack(), batch_size=2, windows=5, world=2, rank=r)))
        for r in range(2)
    ]
    assert [len(r["action"]) for r in ranks] == [3, 2]


@pytest.mark.parametrize(("count", "wanted"), [(10, 3), (10, 10), (10, 20), (1, 1), (1000, 7), (10, None)])
def test_evenly_spaced(count: int, wanted: int | None) -> None:
    chosen = evenly_spaced(count, wanted)
    assert len(np.unique(chosen)) == min(count, wanted or count)
    assert chosen.min() >= 0
    assert chosen.max() < count
    if len(chosen) > 1:
        assert np.ptp(np.diff(chosen)) <= 1


def test_workers_end_with_a_failure_or_close(reader: AlohaHdf5Reader) -> None:
    def children() -> int:
        return len(psutil.Process().children())

    before = children()
    loader = make(reader, BatchPlan(per_device=2), workers=2)
    next(iter(loader))
    assert children() == before + 2
    loader.close()
    loader.close()
    assert children() == before
    broken = make(reader, BatchPlan(per_device=2), workers=2, processor=Broken("proprio"))
    with pytest.raises(UserError):
        next(iter(broken))
    assert children() == before
    assert len(list(make(reader, BatchPlan(per_device=2), steps=2))) == 2


def test_endless_loaders_prefetch_and_stop_cleanly(new_set: Callable[[], SetOnDisk]) -> None:
    made = new_set()
    made.add(1)
    loader = build_loader(
        AlohaHdf5Reader(made.folder), np.array([0]), Stack(), BatchPlan(per_device=3), seed=0, workers=2, prefetch=1
    )
    batches = list(itertools.islice(loader, 20))
    assert len(batches) == 20
    assert all(torch.equal(b["timestep"], torch.zeros(3, 2, dtype=torch.int32)) for b in batches)


def test_workers_start_with_the_iterator_and_not_with_the_first_batch(reader: AlohaHdf5Reader) -> None:
    """A trainer restores its generators after the loader's iterator exists: nothing may be drawn later."""
    loader = make(reader, BatchPlan(per_device=2), workers=1)
    batches = iter(loader)
    try:
        assert loader._iterator is not None
        assert len(next(batches)["action"]) == 2
    finally:
        loader.close()
