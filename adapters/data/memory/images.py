"""Images, or features, that are in memory: check them, and give random access to them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from headkit.adapters.data.dataset import Targets, say_missing, shorten_list
from headkit.adapters.errors import DataError

EXPECTED = (
    "images: uint8 arrays [N, height, width, 3], [N, height, width], or a list of paths, Pillow "
    "images, bytes or uint8 arrays; or features: float [N, num_features]"
)
FLOAT_PIXELS = (
    "pixels are uint8, 0 to 255, before any normalization: remove the transforms (ToTensor, "
    "Normalize), or extract the features yourself and pass them as float [N, num_features]"
)
_CHANNELS = (1, 3, 4)

Images: TypeAlias = Any
"""Random access to images: ``images[i]`` is whatever ``open_image`` takes. A list, an array ``[N,
height, width, channels]``, or an object with ``__len__`` and ``__getitem__``."""


@dataclass(frozen=True, eq=False)
class Inputs:
    """What the backbone or the head gets, one of the three.

    Attributes:
        paths: Paths of image files.
        images: Random access to images, ``N`` of them: whatever ``open_image`` takes.
        features: Float32 ``[N, num_features]``.
    """

    paths: tuple[str, ...] | None = None
    images: Images | None = None
    features: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        for part in (self.paths, self.images, self.features):
            if part is not None:
                return len(part)
        return 0


class MemoryImages:
    """Images in memory as a reader: ``self[i]`` is an image and its target.

    A worker process that is forked shares the memory of an array. One that is spawned gets it
    through shared memory, so there is one copy however many workers there are.

    Args:
        images: Random access to images.
        targets: Targets ``[N]`` or ``[N, outputs]``.
    """

    def __init__(self, images: Images, targets: Targets) -> None:
        self.images, self.targets = images, targets
        self._shared: Any = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.images[index], self.targets[index]

    def __getstate__(self) -> dict[str, Any]:
        state = vars(self).copy()
        if isinstance(self.images, np.ndarray):
            import torch

            if self._shared is None:
                self._shared = torch.tensor(self.images)
                self._shared.share_memory_()
            state |= {"images": self._shared, "_shared": None}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if hasattr(self.images, "numpy"):
            self.images = self.images.numpy()


def read_inputs(values: Any, where: str) -> Inputs:
    """Read images or features from an array, a tensor, a column, or a sequence of images.

    Raises:
        DataError: They are neither, or there are none.
    """
    if isinstance(values, str | bytes | Path | Image.Image | Mapping):
        raise DataError(
            f"the images of {where} are of type {type(values).__name__}, expected {EXPECTED}"
        )
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    elif hasattr(values, "to_numpy"):  # a column or a table
        values = values.to_numpy()
    if isinstance(values, np.ndarray) and values.dtype.kind not in "OSU":
        return _read_array(values, where)
    column = isinstance(values, np.ndarray) and values.ndim == 2 and values.shape[1] == 1
    if isinstance(values, np.ndarray) and values.ndim == 2 and not column:
        values = _numbers_of_objects(values, where)
        return _read_array(values, where)
    if isinstance(values, np.ndarray):
        values = values.reshape(-1).tolist()
    lazy = hasattr(values, "__len__") and hasattr(values, "__getitem__")
    if not lazy and not isinstance(values, Iterable):
        raise DataError(f"{where} has a {type(values).__name__}, expected {EXPECTED}")
    if lazy and not isinstance(values, list | tuple):
        _check_some(values, where)
        check_image(values[0], 0, where)
        return Inputs(images=values)
    return _read_list(list(values), where)


def check_image(image: Any, number: int, where: str) -> None:
    """Raise ``DataError`` unless ``open_image`` can take this image.

    Args:
        image: The image.
        number: Its number, for the message.
        where: Name of the data, for the message.
    """
    if isinstance(image, str | os.PathLike | bytes | bytearray | Image.Image):
        return
    if hasattr(image, "read") or _is_encoded(image):
        return
    if not hasattr(image, "shape") or not hasattr(image, "dtype"):
        raise DataError(
            f"image {number} of {where} is of type {type(image).__name__}, expected a path, a "
            "Pillow image, bytes, or a uint8 array or tensor [height, width, 3]"
        )
    found = f"image {number} of {where} is {_dtype(image)} {list(image.shape)}"
    if _dtype(image) != "uint8":
        raise DataError(f"{found}, but {FLOAT_PIXELS}")
    grey = len(image.shape) == 2
    shape = tuple(image.shape)
    if not (grey or (len(shape) == 3 and (shape[2] in _CHANNELS or shape[0] in _CHANNELS))):
        raise DataError(f"{found}, expected [height, width, 3] or [height, width]")


def source_of(image: Any) -> Any:
    """Return what ``open_image`` takes: the bytes or the path of an image of Hugging Face."""
    if _is_encoded(image):
        return image["bytes"] if image.get("bytes") is not None else image["path"]
    if isinstance(image, np.ndarray) and _has_channels_first(image.shape):
        return np.moveaxis(image, 0, -1)
    return image


def _is_encoded(image: Any) -> bool:
    return isinstance(image, Mapping) and bool({"bytes", "path"} & set(image))


def _has_channels_first(shape: Sequence[int]) -> bool:
    return len(shape) == 3 and shape[2] not in _CHANNELS and shape[0] in _CHANNELS


def _dtype(image: Any) -> str:
    return str(image.dtype).removeprefix("torch.")


def _read_array(array: np.ndarray[Any, Any], where: str) -> Inputs:
    found = f"the array of {where} is {array.dtype} {list(array.shape)}"
    if not array.ndim or not len(array):
        raise DataError(f"{where} has no images")
    if array.ndim == 2:
        return Inputs(features=check_features(array, where))
    if array.ndim not in (3, 4):
        raise DataError(f"{found}, expected {EXPECTED}")
    if array.dtype != np.uint8:
        whole = array.dtype.kind in "iu"
        convert = "if its values are 0 to 255, convert it with .astype('uint8'); " if whole else ""
        raise DataError(f"{found}: {convert}{FLOAT_PIXELS}")
    if array.ndim == 3 and array.shape[2] in (3, 4):
        raise DataError(
            f"{found}, which is one image [height, width, {array.shape[2]}]: put it into a list, "
            "[image]; or if these are grey images, pass them as [N, height, width, 1]"
        )
    if array.ndim == 4 and array.shape[3] not in _CHANNELS:
        if array.shape[1] not in _CHANNELS:
            raise DataError(f"{found}, expected {EXPECTED}")
        array = np.moveaxis(array, 1, -1)
    if 0 in array.shape:
        raise DataError(f"{found}: its images are empty")
    return Inputs(images=array)


def _numbers_of_objects(values: np.ndarray[Any, Any], where: str) -> np.ndarray[Any, Any]:
    try:
        return values.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{where} has an array of objects {list(values.shape)}, expected {EXPECTED}"
        ) from error


def check_features(array: np.ndarray[Any, Any], where: str) -> NDArray[np.float32]:
    """Return features as float32.

    Args:
        array: Numbers ``[N, num_features]``.
        where: Name of the data, for the message.

    Raises:
        DataError: The array has another shape or type, or a value that is NaN or infinite.
    """
    if array.ndim != 2 or array.dtype.kind not in "fiub" or not array.shape[1]:
        raise DataError(
            f"the features of {where} are {array.dtype} {list(array.shape)}, expected float "
            "[N, num_features]"
        )
    features = array.astype(np.float32, copy=False)
    # Block by block: the features may be in a file that is larger than the memory.
    for start in range(0, len(features), 8192):
        bad = np.flatnonzero(~np.isfinite(features[start : start + 8192]).all(1))
        if len(bad):
            raise DataError(
                f"the features of image {start + bad[0]} of {where} have a value that is NaN or "
                "infinite in float32: compute them again or drop the image"
            )
    return features


def _read_list(values: list[Any], where: str) -> Inputs:
    _check_some(values, where)
    if all(_is_vector(value) for value in values):
        widths = {len(value) for value in values}
        if len(widths) > 1:
            raise DataError(
                f"the features of {where} have {min(widths)} to {max(widths)} numbers per image, "
                "expected as many for each"
            )
        rows = [
            value.detach().cpu().numpy() if hasattr(value, "detach") else value for value in values
        ]
        return _read_array(np.array(rows), where)
    for number, value in enumerate(values):
        check_image(value, number, where)
    if all(isinstance(value, str | os.PathLike) for value in values):
        return Inputs(paths=_check_paths([os.fspath(value) for value in values], where))
    return Inputs(images=[source_of(value) for value in values])


def _check_some(values: Any, where: str) -> None:
    if not len(values):
        raise DataError(f"{where} has no images")


def _is_vector(value: Any) -> bool:
    if hasattr(value, "shape"):
        return len(value.shape) == 1 and value.shape[0] > 0
    numbers = isinstance(value, list | tuple) and len(value) > 0
    return numbers and all(isinstance(one, int | float | np.number) for one in value)


def _check_paths(paths: list[str], where: str) -> tuple[str, ...]:
    missing = [path for path in paths if not os.path.isfile(path)]  # noqa: PTH113
    if missing:
        raise DataError(
            f"{len(missing)} of the {len(paths)} images of {where} {say_missing(missing[0])}: "
            f"{shorten_list(missing, 3)}; paths are relative to the current folder, {Path.cwd()}"
        )
    return tuple(paths)
