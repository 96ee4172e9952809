from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import headkit
from headkit.adapters.features.runtime import Branches, Pixels, Run
from headkit.export.runtimes.onnxruntime import OnnxRuntime
from headkit.export.runtimes.torch import TorchRuntime
from tests.backbones import random_backbone

SMALL = 20
"""Number of images below which converting the backbone does not pay, in these tests."""


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Return the number of images that each runtime computes from now on; padding counts."""
    images: Counter[str] = Counter()
    monkeypatch.setattr("headkit.extraction.SMALL", SMALL)

    def count(runtime: Any, name: str) -> None:
        start: Callable[..., Run] = runtime.start

        def start_counting(self: Any, *arguments: Any, **options: Any) -> Run:
            run = start(self, *arguments, **options)

            def run_and_count(pixels: Pixels) -> Branches:
                images[name] += len(pixels)
                return run(pixels)

            return run_and_count

        monkeypatch.setattr(runtime, "start", start_counting)

    count(TorchRuntime, "torch")
    count(OnnxRuntime, "onnxruntime")
    return images


def _write(root: Path, images: int, first: int = 0) -> Path:
    """Write ``images`` images of two classes, all different, and return the folder."""
    for number in range(first, first + images):
        folder = root / ("dark", "bright")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        level = 190 * (number % 2)
        pixels = np.random.default_rng(number).integers(level, level + 60, (24, 24, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return root


def _fit(train: Any, cache: Path, **options: Any) -> headkit.Head:
    return headkit.fit(random_backbone(), train, cache=cache, workers=0, batch_size=2, **options)


def test_few_training_and_many_validation_images_are_run_by_the_converted_backbone(
    tmp_path: Path, computed: Counter[str]
) -> None:
    train, val = _write(tmp_path / "train", 10), _write(tmp_path / "val", 60, first=10)
    _fit(train, tmp_path / "cache", val=val)
    assert computed == {"onnxruntime": 70}


def test_few_images_are_run_by_torch(tmp_path: Path, computed: Counter[str]) -> None:
    train, val = _write(tmp_path / "train", 8), _write(tmp_path / "val", 8, first=8)
    _fit(train, tmp_path / "cache", val=val)
    assert computed == {"torch": 16}


def test_crops_of_a_few_images_count_as_images(tmp_path: Path, computed: Counter[str]) -> None:
    _fit(_write(tmp_path / "train", 16), tmp_path / "cache", views=3)
    assert computed == {"onnxruntime": 48}


@pytest.mark.parametrize("runtime", ["onnxruntime", "torch"])
def test_features_in_the_cache_are_reused_whichever_runtime_computed_them(
    runtime: str, tmp_path: Path, computed: Counter[str]
) -> None:
    for images in (8, 60):  # fewer and more than torch alone would decide by
        train = _write(tmp_path / f"train{images}", images, first=100 * images)
        cache = tmp_path / f"cache{images}"
        _fit(train, cache, runtime=runtime)
        computed.clear()
        _fit(train, cache)
        assert computed == {}


@pytest.mark.parametrize("runtime", ["onnxruntime", "torch"])
def test_a_few_new_images_are_run_by_the_runtime_of_the_cached_ones(
    runtime: str, tmp_path: Path, computed: Counter[str]
) -> None:
    train = _write(tmp_path / "train", 60)
    _fit(train, tmp_path / "cache", runtime=runtime)
    computed.clear()
    _fit(_write(train, 4, first=60), tmp_path / "cache")
    assert computed == {runtime: 4}


def test_small_subset_of_cached_images_is_not_computed_again(
    tmp_path: Path, computed: Counter[str]
) -> None:
    _fit(_write(tmp_path / "all", 60), tmp_path / "cache")
    computed.clear()
    _fit(_write(tmp_path / "some", 8), tmp_path / "cache")
    assert computed == {}


@pytest.mark.parametrize("runtime", ["onnxruntime", "torch"])
def test_images_in_memory_are_not_computed_again_by_another_runtime(
    runtime: str, tmp_path: Path, computed: Counter[str]
) -> None:
    for images in (8, 60):
        paths = sorted(_write(tmp_path / f"t{images}", images, first=100 * images).rglob("*.png"))
        arrays = np.stack([np.asarray(Image.open(path)) for path in paths])
        data = (arrays, [path.parent.name for path in paths])
        cache = tmp_path / f"cache{images}"
        _fit(data, cache, runtime=runtime)
        computed.clear()
        _fit(data, cache)
        assert computed == {}


def test_few_arrays_and_many_validation_files_are_run_by_the_converted_backbone(
    tmp_path: Path, computed: Counter[str]
) -> None:
    paths = sorted(_write(tmp_path / "train", 10).rglob("*.png"))
    data = ([np.asarray(Image.open(path)) for path in paths], [p.parent.name for p in paths])
    _fit(data, tmp_path / "cache", val=_write(tmp_path / "val", 60, first=10))
    assert computed == {"onnxruntime": 70}


def test_same_run_gives_the_same_head_when_another_runtime_has_filled_the_cache(
    tmp_path: Path, computed: Counter[str]
) -> None:
    train = _write(tmp_path / "train", 8)
    first = _fit(train, tmp_path / "cache").with_changes(created="")
    _fit(train, tmp_path / "cache", runtime="onnxruntime")
    again = _fit(train, tmp_path / "cache").with_changes(created="")
    assert again == first
