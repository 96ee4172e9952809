import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

import headkit
from headkit.adapters.backbone.preprocessing import preprocessing
from headkit.adapters.data.dataset import ImageDataset
from headkit.adapters.data.folder import open_folder
from headkit.adapters.features.cache import CachedRows, FeatureCache
from headkit.adapters.features.extract import ExtractedFeatures, extract
from headkit.adapters.features.runtime import Branches, Pixels, Run
from headkit.adapters.features.transform import Transform, View
from headkit.export.runtimes.choose import choose_runtime
from headkit.export.runtimes.torch import TorchRuntime
from tests.backbones import active_backbone, random_backbone


class Counting(TorchRuntime):
    """Counts the images that it computes."""

    images = 0

    def start(
        self, model: Any, folder: Path, batch_size: int, /, levels: str | Sequence[str] = ()
    ) -> Run:
        run = super().start(model, folder, batch_size, levels)

        def run_and_count(pixels: Pixels) -> Branches:
            Counting.images += len(pixels)
            return run(pixels)

        return run_and_count


@pytest.fixture
def counting() -> Counting:
    Counting.images = 0
    return Counting()


@pytest.fixture
def many(tmp_path: Path) -> ImageDataset:
    """Images of two classes, more than fit into one shard when a batch has two images."""
    generator = np.random.default_rng(0)
    for number in range(90):
        folder = tmp_path / "many" / f"class{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (24, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return open_folder(tmp_path / "many")


def _features(extracted: ExtractedFeatures) -> torch.Tensor:
    (features,) = extracted.cache.load(extracted.locations)
    return features


def _extract(model: Any, dataset: ImageDataset, root: Path, **options: Any) -> ExtractedFeatures:
    options = {"runtime": TorchRuntime(), "workers": 0, "batch_size": 2, **options}
    return extract(model, dataset, root=root, **options)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("architecture", ["test_resnet", "crossvit_9_240"])
def test_features_equal_those_of_timms_own_transform(
    architecture: str, workers: int, shapes: Path, tmp_path: Path
) -> None:
    model = active_backbone(architecture)
    dataset = open_folder(shapes)
    extracted = _extract(model, dataset, tmp_path, workers=workers, batch_size=8)
    transform = create_transform(**preprocessing(model), is_training=False)
    assert dataset.paths is not None
    pixels = torch.stack([transform(Image.open(p).convert("RGB")) for p in dataset.paths])
    with torch.no_grad():
        entered = headkit.features(model, pixels)
    expected = (entered,) if isinstance(entered, torch.Tensor) else entered
    branches = extracted.cache.load(extracted.locations)
    for branch, reference in zip(branches, expected, strict=True):
        assert (branch - reference).abs().max() <= 1e-5 * reference.abs().max()
    assert extracted.targets.tolist() == [0] * 8 + [1] * 8 + [2] * 8


def test_images_are_computed_once_for_all_heads(
    many: ImageDataset, tmp_path: Path, counting: Counting
) -> None:
    first = _extract(random_backbone(), many, tmp_path, runtime=counting)
    assert Counting.images == 90
    again = _extract(random_backbone(), many, tmp_path, runtime=counting)
    assert Counting.images == 90
    assert torch.equal(_features(first), _features(again))


def test_other_weights_preprocessing_view_and_precision_share_nothing(
    many: ImageDataset, tmp_path: Path, counting: Counting
) -> None:
    _extract(random_backbone(), many, tmp_path, runtime=counting)
    changed: list[tuple[Any, dict[str, Any]]] = [
        (random_backbone(seed=1), {}),
        (random_backbone(), {"view": View(1)}),
        (random_backbone(), {"view": View(1, seed=1)}),
        (random_backbone(), {"runtime": Counting("bf16")}),
    ]
    other = random_backbone()
    other.pretrained_cfg = {**other.pretrained_cfg, "crop_pct": 0.5}
    changed.append((other, {}))
    for number, (model, options) in enumerate(changed):
        _extract(model, many, tmp_path, **{"runtime": counting, **options})
        assert Counting.images == 90 * (number + 2)


def test_changed_file_is_extracted_again_and_a_moved_one_is_not(
    many: ImageDataset, tmp_path: Path, counting: Counting
) -> None:
    model = random_backbone()
    before = _features(_extract(model, many, tmp_path, runtime=counting))
    assert many.paths is not None
    changed, moved = Path(many.paths[3]), Path(many.paths[5])
    date = changed.stat()
    Image.new("RGB", (24, 24), (200, 10, 90)).save(changed)
    os.utime(changed, ns=(date.st_atime_ns, date.st_mtime_ns))
    moved.rename(moved.with_name("5_moved.png"))
    dataset = open_folder(tmp_path / "many")
    after = _extract(model, dataset, tmp_path, runtime=counting)
    assert Counting.images == 90 + 2  # one image, in a batch that is padded to two
    rows = dict(zip(after.names, _features(after), strict=True))
    old = dict(zip(many.paths, before, strict=True))
    assert not torch.equal(rows[str(changed)], old[str(changed)])
    assert torch.equal(rows[str(moved.with_name("5_moved.png"))], old[str(moved)])


def test_damaged_shard_is_computed_again(
    many: ImageDataset, tmp_path: Path, counting: Counting, caplog: pytest.LogCaptureFixture
) -> None:
    model = random_backbone()
    first = _extract(model, many, tmp_path, runtime=counting)
    assert isinstance(first.cache, FeatureCache)
    shards = sorted(first.cache.folder.glob("shard-*"))
    assert len(shards) == 2  # 64 images and 26
    shards[0].write_bytes(shards[0].read_bytes()[:1000])
    with caplog.at_level(logging.WARNING, "headkit"):
        again = _extract(model, many, tmp_path, runtime=counting)
    assert "removed the damaged shard" in caplog.text
    assert 90 < Counting.images < 180
    assert torch.equal(_features(first), _features(again))


def test_rows_on_the_disk_equal_those_in_memory(many: ImageDataset, tmp_path: Path) -> None:
    model = random_backbone()
    parts = [_extract(model, many, tmp_path, view=View(number)) for number in (0, 1)]
    chosen = np.arange(90) % 3 > 0
    rows = CachedRows([(part.cache, part.locations[chosen]) for part in parts])
    expected = torch.cat([_features(part)[torch.from_numpy(chosen)] for part in parts])
    assert rows.shape == tuple(expected.shape) == (120, 96)
    assert torch.equal(torch.cat(list(rows.blocks())), expected[torch.from_numpy(rows.order)])


def test_random_view_depends_on_seed_and_content_alone(small: Any) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 90, 3), dtype=np.uint8))
    cfg = preprocessing(small)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = Transform(cfg, View(1, 7))(image, b"a")
    assert torch.equal(state, torch.get_rng_state())
    assert first.shape == (3, *cfg["input_size"][1:])
    assert first.dtype == torch.uint8
    assert torch.equal(first, Transform(cfg, View(1, 7))(image, b"a"))
    for view, digest in ((View(1, 7), b"b"), (View(2, 7), b"a"), (View(1, 8), b"a")):
        assert not torch.equal(first, Transform(cfg, view)(image, digest))


def test_unknown_precision_and_runtime_are_refused(small: Any) -> None:
    with pytest.raises(headkit.HeadkitError, match="precision is 'int4', expected one of fp32"):
        choose_runtime("torch", "int4", small)
    with pytest.raises(headkit.HeadkitError, match="runtime is 'tpu', expected one of auto, torch"):
        choose_runtime("tpu", "fp32", small)


FIT = """
import sys
import headkit
data, weights, *caches = sys.argv[1:]
model = headkit.load_backbone("test_resnet", weights)
for cache in caches:
    head = headkit.fit(model, data, cache=cache, batch_size=2, workers=1)
    head.save(cache + ".safetensors")
"""
WAIT_AFTER_THE_FIRST_SHARD = """
import time
from headkit.adapters.features.cache import FeatureCache
add = FeatureCache.add
def add_and_wait(*arguments, **options):
    add(*arguments, **options)
    while True:
        time.sleep(1)
FeatureCache.add = add_and_wait
"""
GENEROUS = 600
"""Seconds; no step takes so long even on a busy machine. It only ends a test that hangs."""


def _children(pid: int) -> list[str]:
    listed = Path(f"/proc/{pid}/task/{pid}/children")
    return listed.read_text().split() if listed.exists() else ["unknown"]


def test_killed_extraction_resumes_and_the_head_is_equal_bit_for_bit(
    many: ImageDataset, small_weights: Path, tmp_path: Path
) -> None:
    def start(program: str, *caches: str) -> subprocess.Popen[bytes]:
        arguments = [tmp_path / "many", small_weights, *(tmp_path / cache for cache in caches)]
        environment = {**os.environ, "SOURCE_DATE_EPOCH": "0"}
        return subprocess.Popen([sys.executable, "-c", program, *arguments], env=environment)

    killed = start(WAIT_AFTER_THE_FIRST_SHARD + FIT, "killed")
    until = time.monotonic() + GENEROUS
    while not list((tmp_path / "killed").glob("features/*/shard-*")):
        assert killed.poll() is None
        assert time.monotonic() < until
        time.sleep(0.01)
    workers = _children(killed.pid)
    assert workers
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    while sys.platform == "linux" and any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < until, "a worker outlives the process that started it"
        time.sleep(0.01)
    assert not (tmp_path / "killed.safetensors").exists()
    assert len(list((tmp_path / "killed").glob("features/*/shard-*"))) == 1
    assert start(FIT, "killed", "whole").wait(GENEROUS) == 0
    heads = [tmp_path / f"{cache}.safetensors" for cache in ("killed", "whole")]
    assert heads[0].read_bytes() == heads[1].read_bytes()
