"""Training from cached features is the same training, or is refused."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_runs import ROOT, TINY, final_bytes, finish, metrics, start, wait_for_step
from torch import Tensor, nn

from vla_ft.config import load_run_config
from vla_ft.data.formats.aloha_hdf5 import AlohaHdf5Reader
from vla_ft.data.loading import build_validation_loader
from vla_ft.data.mock import MockConfig, write_mock
from vla_ft.data.sample import Sample
from vla_ft.data.statistics import compute_statistics
from vla_ft.data.windows import WindowSpec
from vla_ft.deployment.predictor import Predictor
from vla_ft.errors import UserError
from vla_ft.nn.resnet import ResNet
from vla_ft.policies.base import Batch, FrozenFeatures, Loss, Model, Processor
from vla_ft.training.engines import Engine
from vla_ft.training.frozen_features import cache_features, spread_weights
from vla_ft.training.trainer import train

CACHED = ("frozen_features.parts=[backbone]", "frozen_features.shard_mib=0.02")
TWO = ("devices=2", "device=cpu", "batch.accumulation=1")
KILLED = """
import os, signal, sys
from vla_ft.data.feature_store import FeatureFolder
write = FeatureFolder.write
def dying(self, number, rows):
    if number == 3:
        self.incoming(number).write_bytes(b"half a shard")
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, number, rows)
FeatureFolder.write = dying
from vla_ft.cli import main
sys.exit(main(sys.argv[1:]))
"""


def configured(output: Path, *words: str):
    return load_run_config([*TINY, f"output={output}", *words])


def features(output: Path) -> dict[str, bytes]:
    """Every file of a run's cached trunk features but the times in sources.json."""
    folder = output / "features" / "backbone"
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name not in ("sources.json", ".lock")}


def assert_same(output: Path, reference: Path) -> None:
    seen, expected = final_bytes(output), final_bytes(reference)
    assert [name for name in expected if seen.get(name) != expected[name]] == []
    assert metrics(output) == metrics(reference)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose frozen trunk sees every image."""
    output = tmp_path_factory.mktemp("plain")
    finish(start(output))  # by a process like those it is compared with: the sums of more threads round otherwise
    return output


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run from cached features."""
    output = tmp_path_factory.mktemp("cached")
    finish(start(output, *CACHED))
    return output


def test_the_same_losses_and_checkpoints_to_the_bit(plain: Path, cached: Path) -> None:
    assert len([name for name in features(cached) if name.startswith("shard_")]) == 5
    assert_same(cached, plain)


@pytest.mark.parametrize(
    "words",
    [
        ("batch.per_device=1",),
        ("batch.per_device=3", "data.mock.image_size=[40,56]", "data.mock.cameras=[top,wrist]"),
        ("precision=bf16", "model.image_size=[48,48]", "data.workers=1"),
    ],
    ids=["one_sample", "odd_sizes", "bf16"],
)
def test_the_same_to_the_bit_for_other_shapes(tmp_path: Path, words: tuple[str, ...]) -> None:
    """The trunk runs over batches of the training's size: one of another size may differ in the last bits."""
    train(configured(tmp_path / "plain", *words))
    train(configured(tmp_path / "cached", *words, *CACHED))
    assert_same(tmp_path / "cached", tmp_path / "plain")


def test_training_decodes_no_images(cached: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    original = AlohaHdf5Reader.read

    def counted(self, episode, steps, keys):
        read.extend(keys)
        return original(self, episode, steps, keys)

    monkeypatch.setattr(AlohaHdf5Reader, "read", counted)
    monkeypatch.setattr(ResNet, "forward", None)
    train(configured(tmp_path, *CACHED, f"frozen_features.path={cached / 'features'}", "steps=4"))
    assert read.count("action") > 16
    assert not [key for key in read if key.startswith("image_")]


def test_held_out_episodes_are_covered_and_the_checkpoint_predicts_from_images(cached: Path, plain: Path) -> None:
    assert "validation/action_mae" in metrics(cached)[-1]
    data = next(cached.glob("mock_*"))
    reader = AlohaHdf5Reader(data)
    observation = reader.read(0, np.array([3]), ("image_top", "proprio"))
    sample = Sample(observation=observation, task={"language_instruction": ""}, dataset_name="")  # type: ignore[typeddict-item]
    chunks = [Predictor.load(run, "cpu").predict_samples([sample]) for run in (cached, plain)]
    assert np.array_equal(*chunks)


def test_killed_while_computing_continues_with_whole_shards(tmp_path: Path, cached: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", KILLED, "train", *TINY, *CACHED, f"output={tmp_path}"]
    assert subprocess.run(command, env=environment, capture_output=True).returncode == -signal.SIGKILL
    left = features(tmp_path)
    assert sorted(left) == [
        ".incoming-shard_00003.safetensors",
        "key.json",
        *(f"shard_0000{n}.safetensors" for n in range(3)),
    ]
    kept = os.stat(tmp_path / "features/backbone/shard_00001.safetensors").st_mtime_ns
    out = finish(start(tmp_path, *CACHED))
    assert "completed (2 of 5" in out
    assert os.stat(tmp_path / "features/backbone/shard_00001.safetensors").st_mtime_ns == kept
    assert features(tmp_path) == features(cached)
    assert_same(tmp_path, cached)


def test_two_processes_share_the_work(tmp_path: Path, cached: Path) -> None:
    finish(start(tmp_path / "plain", *TWO))
    finish(start(tmp_path / "cached", *TWO, *CACHED))
    assert features(tmp_path / "cached") == features(cached), "as by one process"
    assert_same(tmp_path / "cached", tmp_path / "plain")


def test_killed_before_the_manifest_goes_on_under_shards(tmp_path: Path, cached: Path) -> None:
    shutil.copytree(cached / "features", tmp_path / "features")
    (tmp_path / "features/backbone/manifest.json").unlink()
    out = finish(start(tmp_path, *TWO, *CACHED, "engine=fsdp2", "steps=2"))
    assert "completed (0 of 5" in out
    assert features(tmp_path) == features(cached)


def test_two_processes_leave_when_one_of_them_meets_a_damaged_frame(tmp_path: Path) -> None:
    mock = dataclasses.replace(configured(tmp_path).data.mock, images="jpeg")
    data = shutil.copytree(write_mock(tmp_path, mock), tmp_path / "data")
    lengths = AlohaHdf5Reader(data).lengths
    assert lengths[0] < 20  # row 12 lies in the second shard, the other process's
    episode, step = (0, 12) if lengths[0] > 12 else (1, 12 - lengths[0])
    with h5py.File(data / f"episode_{episode}.hdf5", "r+") as file:
        file["observations/images/top"][step] = np.zeros(8, np.uint8)
    out = finish(start(tmp_path / "run", f"data.path={data}", *TWO, *CACHED), code=2)
    assert f"episode_{episode}.hdf5: cannot read image_top at steps [{step}]" in out
    assert "Traceback" not in out


@pytest.mark.parametrize(("first", "second"), [((), CACHED), (CACHED, ())], ids=["on", "off"])
def test_turning_the_cache_on_or_off_at_a_resume_changes_nothing(tmp_path: Path, plain: Path, first, second) -> None:
    process = start(tmp_path, *first)
    wait_for_step(tmp_path, 3, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert "start" in finish(start(tmp_path, *second))
    assert_same(tmp_path, plain)


def test_exact_resume_with_the_cache(tmp_path: Path, plain: Path) -> None:
    process = start(tmp_path, *CACHED)
    wait_for_step(tmp_path, 3, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    out = finish(start(tmp_path, *CACHED))
    assert "step 2 of" in out or "step 4 of" in out
    assert "backbone: reused" in out
    assert_same(tmp_path, plain)


def test_resuming_takes_the_parts_weights_from_the_checkpoint(tmp_path: Path) -> None:
    torch.manual_seed(5)
    save_file(ResNet("resnet18").state_dict(), tmp_path / "trunk.safetensors")
    words = (f"init.path={tmp_path / 'trunk.safetensors'}", "init.layout=torchvision")
    train(configured(tmp_path / "plain", *words))
    train(configured(tmp_path / "cached", *words, "steps=4", "schedule.name=constant"))
    os.remove(tmp_path / "trunk.safetensors")
    train(configured(tmp_path / "cached", "schedule.name=constant", *CACHED))  # neither file nor fresh weights
    trunks = [final_bytes(tmp_path / name)["model.safetensors"] for name in ("plain", "cached")]
    assert len(trunks[0]) == len(trunks[1])
    assert trunks[0][-40_000_000:] == trunks[1][-40_000_000:]


# What makes features stale: further words of the run, and what the refusal must name.
OTHER = {
    "weights": (("SAVED_WEIGHTS",), r"the part's weights differ \(\w{12}, now \w{12}\)"),
    "image size": (("model.image_size=[24,24]",), r"images was 'as recorded', is '24x24"),
    "data": (("data.mock.seed=1",), r"the episodes was|episode_0\.hdf5 holds other data"),
    "cameras": (("data.mock.cameras=[top,wrist]",), r"the inputs was 'image_top', is 'image_top, image_wrist'"),
    "precision": (("precision=bf16",), r"precision was 'fp32', is 'bf16'"),
    "stored type": (("frozen_features.dtype=bfloat16",), r"the stored type was 'computed', is 'bfloat16'"),
}


@pytest.mark.parametrize("cause", OTHER)
def test_a_stale_key_is_refused_with_what_differs(cached: Path, tmp_path: Path, cause: str) -> None:
    words, said = OTHER[cause]
    if words == ("SAVED_WEIGHTS",):
        save_file(ResNet("resnet18").state_dict(), tmp_path / "trunk.safetensors")
        words = (f"init.path={tmp_path / 'trunk.safetensors'}", "init.layout=torchvision")
    before = features(cached)
    with pytest.raises(UserError, match=said) as caught:
        train(configured(tmp_path / "run", *CACHED, f"frozen_features.path={cached / 'features'}", *words))
    assert "Delete that folder to compute them again, or keep it and set frozen_features.path" in str(caught.value)
    assert features(cached) == before


def test_images_recorded_anew_are_noticed_and_a_copied_set_is_not_refused(tmp_path: Path) -> None:
    data = shutil.copytree(write_mock(tmp_path, configured(tmp_path).data.mock), tmp_path / "data")
    words = (*CACHED, f"frozen_features.path={tmp_path / 'features'}", f"data.path={data}", "steps=2")
    train(configured(tmp_path / "first", *words))
    moved = shutil.copytree(data, tmp_path / "moved", copy_function=shutil.copyfile)  # with new times
    train(configured(tmp_path / "second", *words, f"data.path={moved}"))
    with h5py.File(moved / "episode_2.hdf5", "r+") as file:
        file["observations/images/top"][4, 0, 0] ^= 1
    with pytest.raises(UserError, match=r"of something else: episode_2\.hdf5 holds other data\. Delete"):
        train(configured(tmp_path / "third", *words, f"data.path={moved}"))


def test_damaged_features_are_refused(tmp_path: Path) -> None:
    train(configured(tmp_path, *CACHED, "steps=2"))
    shard = tmp_path / "features/backbone/shard_00001.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with pytest.raises(UserError, match=r"damaged: .*shard_00001\.safetensors is .* Delete"):
        train(configured(tmp_path, *CACHED, "steps=4"))


def test_rounded_features_are_a_choice_that_is_kept(tmp_path: Path, plain: Path) -> None:
    rounded = (*CACHED, "frozen_features.dtype=bfloat16")
    train(configured(tmp_path, *rounded, "steps=4", "schedule.name=constant", "checkpoint.every=4"))
    sizes = json.loads((tmp_path / "features/backbone/key.json").read_text())["layout"]["features"]
    assert sizes["feature_image_top"] == {"shape": [512, 1, 1], "stored": "bfloat16", "computed": "float32"}
    losses = [metrics(run)[0]["train/loss"] for run in (tmp_path, plain)]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    with pytest.raises(UserError, match=r"frozen_features\.dtype was 'bfloat16', is 'computed'"):
        train(configured(tmp_path, "schedule.name=constant"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("freeze=[]",), r"parts that are not trained, and nothing is frozen.*freeze=\[backbone\]"),
        (("frozen_features.parts=[backbon]",), r"'backbon'\. Did you mean 'backbone'\?"),
        (("frozen_features.parts=[action]",), r"Unknown part whose features can be cached 'action'"),
    ],
)
def test_what_cannot_be_cached_is_refused(tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    with pytest.raises(UserError, match=said):
        train(configured(tmp_path, *CACHED, *words))
    assert not (tmp_path / "features").exists()


def test_a_mistyped_setting_gets_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Did you mean 'frozen_features\.parts'"):
        configured(tmp_path, "frozen_features.part=[backbone]")


def test_a_full_disk_is_told_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: real._replace(free=50_000))
    with pytest.raises(UserError, match=r"The features need 86,016 bytes \(42 rows of 2,048\) .* has 50,000 free"):
        train(configured(tmp_path, *CACHED))


def test_a_disk_that_fills_up_leaves_whole_shards(tmp_path: Path, cached: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (15_000, 15_000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    data = write_mock(tmp_path, configured(tmp_path).data.mock)
    command = [sys.executable, "-m", "vla_ft", "train", *TINY, *CACHED, f"output={tmp_path / 'run'}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, f"data.path={data}"], env=environment, capture_output=True, text=True, preexec_fn=limit
    )
    assert done.returncode == 2, done.stderr
    assert "Shard 0 of cached features could not be written" in done.stderr
    assert "choose another frozen_features.path=." in done.stderr
    assert sorted(features(tmp_path / "run")) == ["key.json"]


class Stacked(Processor):
    """Stacks images over a window of two steps, and numbers the instruction's letters."""

    window = WindowSpec(observation_steps=2, action_horizon=3)

    def __init__(self, reader: AlohaHdf5Reader) -> None:
        self.keys = ("proprio", "image_top")
        self.statistics = compute_statistics(reader, range(len(reader.lengths)))

    def collate(self, samples: Sequence[Sample]) -> Batch:
        batch = {k: torch.from_numpy(np.stack([s["observation"][k] for s in samples])) for k in self.keys}
        letters = [len(s["task"]["language_instruction"]) for s in samples]
        return {**batch, "letters": torch.tensor(letters), "action": torch.zeros(len(samples), 3, 14)}

    def unnormalize(self, actions: Tensor) -> np.ndarray:
        return actions.numpy()


class Reads(Model):
    """Two frozen parts: one looks at single frames, one at the window and the instruction, with keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.eye = nn.Linear(3, 4).requires_grad_(False)
        self.language = nn.Linear(3, 6).requires_grad_(False)
        self.head = nn.Linear(4, 1)

    def see(self, batch: Batch) -> dict[str, Tensor]:
        return {"feature_frame": self.eye(batch["image_top"][:, -1].float().mean((1, 2)))}

    def read(self, batch: Batch) -> dict[str, Tensor]:
        both = self.language(batch["image_top"].float().mean((2, 3))) + batch["letters"][:, None, None]
        return {
            "feature_keys": both[..., :4].bfloat16(),
            "feature_values": both[..., 4:],
            "feature_n": batch["letters"],
        }

    def frozen_features(self) -> dict[str, FrozenFeatures]:
        sees = FrozenFeatures(
            module="eye",
            inputs=("image_top",),
            replaces=("image_top",),
            outputs=("feature_frame",),
            scope="frame",
            compute=self.see,
            settings={},
        )
        reads = FrozenFeatures(
            module="language",
            inputs=("image_top", "letters"),
            replaces=("image_top", "letters"),
            outputs=("feature_keys", "feature_values", "feature_n"),
            scope="sample",
            compute=self.read,
            settings={"tokens": "letters"},
        )
        return {"eye": sees, "language": reads}

    def forward(self, batch: Batch) -> Loss:
        raise NotImplementedError

    sample = forward  # type: ignore[assignment]

    def parameter_groups(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        return {"all": list(self.named_parameters())}

    def blocks(self) -> list[nn.Module]:
        return []


def test_features_of_frames_and_of_whole_samples(tmp_path: Path) -> None:
    """What the larger policies need: several tensors and types, instructions, a window of two steps."""
    mock = MockConfig(episodes=3, min_length=4, max_length=7, image_size=(16, 16))
    reader = AlohaHdf5Reader(write_mock(tmp_path, mock))
    config = configured(tmp_path, "frozen_features.parts=[eye,language]", "batch.per_device=4")
    processor, engine = Stacked(reader), Engine(config, torch.device("cpu"))
    torch.manual_seed(0)
    whole, model = Reads(), Reads()
    model.load_state_dict(whole.state_dict())
    made = cache_features(config, engine, reader, model, processor, None, print)
    assert made.features is not None
    assert made.processor.keys == ("proprio",)
    assert set(made.left_out) == {"eye.weight", "eye.bias", "language.weight", "language.bias"}

    everything = np.arange(3)
    images = build_validation_loader(reader, everything, processor, batch_size=4)
    cached = build_validation_loader(
        reader, everything, made.processor, batch_size=4, features=made.features, workers=1
    )
    for batch, features_batch in zip(images, cached, strict=True):
        assert "image_top" not in features_batch
        frames = [whole.see({"image_top": batch["image_top"][:, t : t + 1]})["feature_frame"] for t in range(2)]
        torch.testing.assert_close(features_batch["feature_frame"], torch.stack(frames, 1))
        for key, value in whole.read(batch).items():
            assert features_batch[key].dtype == value.dtype
            torch.testing.assert_close(features_batch[key], value)

    class Retold(AlohaHdf5Reader):
        def instruction(self, episode: int) -> str:
            return "another task"

    again = Retold(next(tmp_path.glob("mock_*")))
    with pytest.raises(UserError, match="the instructions differ"):
        cache_features(config, engine, again, whole, processor, None, print)


class Wire(Engine):
    """What one process broadcast, or what it hears."""

    def __init__(self, rank: int, values: list[Tensor]) -> None:
        super().__init__(load_run_config([]), torch.device("cpu"))
        self.rank, self.world_size, self.values = rank, 2, values

    def gather(self, value: object) -> list[object]:
        return [False, True]  # the main process has its weights, the other has not

    def broadcast(self, value: object) -> object:
        if self.rank == 0:
            self.values.append(value)  # type: ignore[arg-type]
            return value
        return self.values.pop(0)


def test_a_process_that_built_the_part_without_storage_gets_its_weights() -> None:
    """As engines of shards do: the values are on the main process alone."""
    sent: list[Tensor] = []
    main = ResNet("resnet18")
    with torch.device("meta"):
        other = ResNet("resnet18").requires_grad_(False)
    spread_weights(main, Wire(0, sent))
    spread_weights(other, Wire(1, sent))
    assert not sent
    assert all(torch.equal(value, main.state_dict()[name]) for name, value in other.state_dict().items())
