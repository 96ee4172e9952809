from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import headkit
from headkit.adapters.backbone.preprocessing import Normalize
from headkit.adapters.data.dataset import ImageDataset
from headkit.adapters.data.open import open_data
from headkit.adapters.tuning.batches import (
    Augmentation,
    DataImages,
    RandomBatches,
    RepeatedImages,
    check_source,
)

CFG = {
    "input_size": (3, 32, 32),
    "interpolation": "bicubic",
    "mean": (0.5, 0.5, 0.5),
    "std": (0.25, 0.25, 0.25),
    "crop_pct": 0.9,
    "crop_mode": "center",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for number in range(10):
        place = root / "ab"[number % 2]
        place.mkdir(exist_ok=True)
        pixels = generator.integers(0, 256, (48, 40, 3), np.uint8)
        Image.fromarray(pixels).save(place / f"{number}.png")
    return root


def make(folder: Path, workers: int = 0, augmentation: Augmentation | None = None) -> RandomBatches:
    source, _ = open_data(folder)
    images = RepeatedImages(source, CFG, augmentation or Augmentation(color_jitter=0.2), seed=1)
    normalize = Normalize(CFG, torch.device("cpu"))
    targets = torch.from_numpy(np.asarray(source.targets))
    return RandomBatches(
        images, [1, 3, 5, 6, 8], targets, normalize, batch_size=3, seed=2, workers=workers
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_a_step_are_the_same_wherever_training_starts(
    folder: Path, workers: int
) -> None:
    whole = list(islice(make(folder)(0), 5))
    later = list(islice(make(folder, workers)(3), 2))
    for (images, targets), (expected, expected_targets) in zip(later, whole[3:], strict=True):
        assert torch.equal(images, expected)
        assert torch.equal(targets, expected_targets)


def test_each_pass_has_each_chosen_image_once_with_another_change(folder: Path) -> None:
    batches = make(folder)
    rows = np.concatenate([batches.rows(step) for step in range(5)])
    for number in range(3):
        assert sorted(rows[rows[:, 0] == number, 1]) == [1, 3, 5, 6, 8]
    first, second = (batches.images[(number, 3)] for number in (0, 1))
    assert not torch.equal(first, second)
    assert torch.equal(first, batches.images[(0, 3)])


def test_without_changes_the_pixels_are_those_of_timm(folder: Path) -> None:
    import timm.data

    source, _ = open_data(folder)
    pixels = RepeatedImages(source, CFG, None, seed=0)[(0, 4)]
    assert source.paths is not None
    transform = timm.data.create_transform(**CFG, is_training=False)
    expected = transform(Image.open(source.paths[4]))
    found = Normalize(CFG, torch.device("cpu"))(pixels[None])[0]
    assert torch.allclose(found, expected, atol=1e-6)


def test_random_state_of_the_caller_stays(folder: Path) -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    make(folder).images[(0, 1)]
    assert torch.equal(torch.rand(3), expected)


def test_features_cannot_be_read_as_images() -> None:
    source, _ = open_data((np.ones((4, 8), np.float32), ["a", "a", "b", "b"]))
    with pytest.raises(headkit.DataError, match="tuning reads the images several times"):
        RepeatedImages(source, CFG, None, seed=0)


def test_streams_cannot_be_read_several_times() -> None:
    stream = ImageDataset("wds/photos", "multiclass", ("a", "b"), stream=[])
    with pytest.raises(headkit.DataError, match="wds/photos can be read only once, but tuning"):
        check_source(stream)


def test_images_in_memory_can_be_read(folder: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 40, 40, 3), np.uint8)
    source, _ = open_data((pixels, ["a", "a", "b", "b"]))
    assert RepeatedImages(source, CFG, Augmentation(), seed=0)[(0, 2)].shape == (3, 32, 32)


def test_rows_say_where_an_image_is_in_its_data(folder: Path) -> None:
    source, _ = open_data(folder)
    rows = np.asarray([9, 2, 4])
    images = DataImages(
        source,
        rows,
        torch.tensor([0, 1, 0]),
        CFG,
        Augmentation(),
        device=torch.device("cpu"),
        seed=0,
        workers=0,
    )
    plain = RepeatedImages(source, CFG, None, seed=0)
    chosen = torch.tensor([True, False, True])
    (batch,) = images.unchanged(chosen, batch_size=4)
    expected = Normalize(CFG, torch.device("cpu"))(torch.stack([plain[0, 9], plain[0, 4]]))
    assert torch.equal(batch, expected)
    _, targets = next(images.batches(chosen, 2, seed=0)(0))
    assert targets.tolist() == [0, 0]
