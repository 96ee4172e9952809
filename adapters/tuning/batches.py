"""Read images again and again for training: batches of randomly changed images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from typing import Any

import numpy as np
import timm.data
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from headkit.adapters.backbone.preprocessing import Normalize
from headkit.adapters.data.dataset import ImageDataset
from headkit.adapters.errors import DataError
from headkit.adapters.features.decode import end_with_parent
from headkit.adapters.features.transform import seeded
from headkit.adapters.images.open import ImageReader, read_image_file
from headkit.adapters.images.pixel_rule import CURRENT_RULE, PixelRule


@dataclass(frozen=True)
class Augmentation:
    """Random changes of training images, see ``timm.data.create_transform``.

    Attributes:
        scale: Smallest and largest share of the image's area that a random crop keeps.
        ratio: Smallest and largest ratio of the width of the crop to its height.
        hflip: Probability of a horizontal flip.
        vflip: Probability of a vertical flip.
        color_jitter: Strength of random changes of brightness, contrast and saturation.
        auto_augment: A policy of timm, such as ``rand-m9-mstd0.5``; empty for none.
    """

    scale: tuple[float, float] = (0.5, 1.0)
    ratio: tuple[float, float] = (0.75, 4 / 3)
    hflip: float = 0.5
    vflip: float = 0.0
    color_jitter: float = 0.0
    auto_augment: str = ""

    def __post_init__(self) -> None:
        """Raise ``ValueError`` unless timm takes the values."""
        for name in ("hflip", "vflip"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a number from 0 to 1")
        low, high = self.scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"scale is {self.scale}, expected shares above 0 and at most 1")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio is {self.ratio}, expected numbers above 0")
        if not self.color_jitter >= 0:
            raise ValueError(f"color_jitter is {self.color_jitter}, expected 0 or more")
        try:
            timm.data.create_transform((3, 8, 8), is_training=True, **self.arguments())
        except (AssertionError, ValueError, KeyError, IndexError) as error:
            raise ValueError(
                f"auto_augment is {self.auto_augment!r}, but timm has no such policy"
            ) from error

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of ``timm.data.create_transform``."""
        return {
            **asdict(self),
            "color_jitter": self.color_jitter or None,
            "auto_augment": self.auto_augment or None,
        }


def check_source(source: ImageDataset) -> None:
    """Raise ``DataError`` unless the images of a data set can be read several times."""
    if source.paths is None and source.reader is None:
        what = "has features" if source.features is not None else "can be read only once"
        raise DataError(
            f"{source.name} {what}, but tuning reads the images several times: pass image "
            "files, or images in memory"
        )


class RepeatedImages(Dataset[Tensor]):
    """Images that are read several times: the item ``(pass, index)`` is always the same pixels.

    Args:
        source: Image files, or images with random access.
        cfg: timm's preprocessing of the backbone.
        augmentation: Random changes; None for the eval crop.
        seed: Seed of the changes.
        rows: Places of the images in ``source``, if not all of them are read.
        rule: Rule by which an image file becomes pixels.

    Raises:
        DataError: The data are features, or can be read only once; or the model's number of input
            channels is neither 1 nor 3.
    """

    def __init__(
        self,
        source: ImageDataset,
        cfg: Mapping[str, Any],
        augmentation: Augmentation | None,
        seed: int,
        rows: np.ndarray[Any, np.dtype[np.int64]] | None = None,
        rule: PixelRule = CURRENT_RULE,
    ) -> None:
        check_source(source)
        self.source, self.seed, self.rows = source, seed, rows
        self.read = ImageReader.for_model(cfg, rule)
        options: dict[str, Any] = dict(cfg)
        if augmentation is not None:
            options = {key: cfg[key] for key in ("input_size", "interpolation", "mean", "std")}
            options |= augmentation.arguments()
        self._transform = timm.data.create_transform(
            **options,
            is_training=augmentation is not None,
            use_prefetcher=True,  # returns uint8
        )

    def __getitem__(self, item: tuple[int, int]) -> Tensor:
        number, index = item
        row = index if self.rows is None else int(self.rows[index])
        if self.source.paths is not None:
            image = self.read(read_image_file(self.source.paths[row]))
        else:
            image = self.read(self.source.reader[row][0])
        with seeded(f"{self.seed}/{number}/{index}"):
            pixels: Tensor = self._transform(image)
        return pixels


class RandomBatches:
    """Batches of a data set in random order, without an end; see ``training.Batches``.

    Args:
        images: The images.
        chosen: Indices of the images to train on.
        targets: Targets of all images.
        normalize: Turns uint8 ``[B, channels, height, width]`` into what the model expects.
        batch_size: Number of images of a batch.
        seed: Seed of the order.
        workers: Number of processes that decode images; 0 decodes in this process.
    """

    def __init__(
        self,
        images: RepeatedImages,
        chosen: Sequence[int],
        targets: Tensor,
        normalize: Normalize,
        *,
        batch_size: int,
        seed: int,
        workers: int = 0,
    ) -> None:
        self.images, self.chosen, self.targets = images, np.asarray(chosen), targets
        self.normalize, self.batch_size, self.seed = normalize, batch_size, seed
        self.workers = workers

    def __call__(self, first: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches from step ``first`` on."""
        loader: DataLoader[Any] = DataLoader(
            self.images,
            batch_sampler=_Sampler(self, first),
            num_workers=self.workers,
            worker_init_fn=end_with_parent,
        )
        for pixels, step in zip(loader, count(first), strict=False):
            rows = torch.from_numpy(self.rows(step)[:, 1])
            yield self.normalize(pixels), self.targets[rows].to(self.normalize.device)

    def rows(self, step: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return the pass and the index of each image of a step, ``[batch_size, 2]``."""
        places = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        numbers, within = np.divmod(places, len(self.chosen))
        orders = {
            number: np.random.default_rng((self.seed, number)).permutation(self.chosen)
            for number in np.unique(numbers).tolist()
        }
        picked = [orders[n][i] for n, i in zip(numbers.tolist(), within.tolist(), strict=True)]
        return np.stack([numbers, np.asarray(picked)], 1).astype(np.int64)


class _Sampler:
    """Lists of items for a ``DataLoader``, one for each step."""

    def __init__(self, batches: RandomBatches, first: int) -> None:
        self._batches, self._first = batches, first

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in count(self._first):
            yield [(int(number), int(index)) for number, index in self._batches.rows(step)]


class DataImages:
    """The images of a data set, see ``tuner.TuningImages``.

    Args:
        source: Image files, or images with random access.
        rows: Places of the images in ``source``, int64 ``[N]``.
        targets: Their targets.
        cfg: timm's preprocessing of the backbone.
        augmentation: Random changes of training images.
        device: The device of the backbone.
        seed: Seed of the changes.
        workers: Number of processes that decode images; 0 decodes in this process.
    """

    def __init__(
        self,
        source: ImageDataset,
        rows: np.ndarray[Any, np.dtype[np.int64]],
        targets: Tensor,
        cfg: Mapping[str, Any],
        augmentation: Augmentation,
        *,
        device: torch.device,
        seed: int,
        workers: int,
    ) -> None:
        self._changed = RepeatedImages(source, cfg, augmentation, seed, rows)
        self._plain = RepeatedImages(source, cfg, None, seed, rows)
        self._targets, self._workers = targets, workers
        self._normalize = Normalize(cfg, device)

    def batches(self, chosen: Tensor, batch_size: int, seed: int) -> RandomBatches:
        """Return batches of the images for which ``chosen`` ``[N]`` is True, randomly changed."""
        return RandomBatches(
            self._changed,
            chosen.nonzero()[:, 0].tolist(),
            self._targets,
            self._normalize,
            batch_size=batch_size,
            seed=seed,
            workers=self._workers,
        )

    def unchanged(self, chosen: Tensor, batch_size: int) -> Iterator[Tensor]:
        """Yield these images in order, as a head sees them."""
        items = [(0, index) for index in chosen.nonzero()[:, 0].tolist()]
        batches = [items[start : start + batch_size] for start in range(0, len(items), batch_size)]
        loader: DataLoader[Any] = DataLoader(
            self._plain,
            batch_sampler=batches,
            num_workers=self._workers if len(batches) > 1 else 0,
            worker_init_fn=end_with_parent,
        )
        yield from map(self._normalize, loader)
