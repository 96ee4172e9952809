"""Read items of an image and its label: lists of pairs or of records, and torch data sets."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from headkit.adapters.errors import DataError, first_line

from .images import check_image, source_of

logger = logging.getLogger("headkit")

IMAGE_KEYS = ("image", "path", "img", "file", "file_name", "filename")
LABEL_KEYS = ("label", "target", "class", "labels")
_EXPECTED = "pairs (image or path, label)"


@dataclass(frozen=True)
class Part:
    """Images or features with their labels, as the user has them.

    Attributes:
        name: The name that messages use.
        inputs: Images or features, see ``read_inputs``.
        labels: Labels, see ``encode_labels``.
        classes: Names of the classes, if the labels are indices of classes.
    """

    name: str
    inputs: Any
    labels: Any
    classes: tuple[str, ...] = ()


def split_items(items: Sequence[Any], where: str) -> tuple[list[Any], list[Any]]:
    """Split pairs, or records such as ``{"image": …, "label": …}``, into images and labels.

    Raises:
        DataError: There are none, or an item has another form.
    """
    if not len(items):
        raise DataError(f"{where} has no images, expected {_EXPECTED}")
    images, labels = [], []
    for number, item in enumerate(items):
        image, label = split_item(item, number, where)
        images.append(image)
        labels.append(label)
    return images, labels


def split_item(item: Any, number: int, where: str) -> tuple[Any, Any]:
    """Return the image and the label of one item.

    Raises:
        DataError: The item is neither a pair nor a record with an image and a label.
    """
    if isinstance(item, Mapping):
        image = next((key for key in IMAGE_KEYS if key in item), None)
        label = next((key for key in LABEL_KEYS if key in item), None)
        if image is None or label is None:
            raise DataError(
                f"item {number} of {where} has the keys {', '.join(map(str, item))}, expected "
                "image (or path) and label"
            )
        return item[image], item[label]
    if isinstance(item, tuple | list) and len(item) == 2:
        return item[0], item[1]
    if isinstance(item, tuple | list):
        found = f"{len(item)} values"
    else:
        found = f"of type {type(item).__name__}, without a label"
    raise DataError(f"item {number} of {where} is {found}, expected {_EXPECTED}")


class DatasetImages:
    """The images of a torch data set; ``self[i]`` reads item ``i``."""

    def __init__(self, dataset: Any, where: str) -> None:
        self.dataset, self.where = dataset, where

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        image, _ = split_item(self.dataset[index], index, self.where)
        return source_of(image)


def read_torch_dataset(dataset: Any) -> tuple[Any, Any, tuple[str, ...], str]:
    """Read a map-style data set, such as torchvision's, a ``Subset`` or one of your own.

    The labels are the attribute ``targets`` of torchvision's data sets. Without it, every item is
    read once for its label.

    Returns:
        Images, or arrays of a ``TensorDataset``; labels; the names of the classes, if the data set
        has the attribute ``classes`` or ``class_to_idx``; and the name of the data.

    Raises:
        DataError: It has no items, they are not pairs, or the images are float tensors.
    """
    where = f"the data set {type(dataset).__name__}"
    if not hasattr(dataset, "__len__"):
        raise DataError(
            f"{where} has no length: expected a data set with __len__ and __getitem__, or "
            "list(dataset) if its images fit in memory"
        )
    if not len(dataset):
        raise DataError(f"{where} has no images")
    tensors = getattr(dataset, "tensors", None)
    if isinstance(tensors, tuple):
        if len(tensors) != 2:
            raise DataError(f"{where} has {len(tensors)} tensors, expected images and labels")
        return *tensors, (), where
    image, label = _read_item(dataset, 0, where)
    check_image(image, 0, where)
    labels = find_targets(dataset)
    if labels is None or len(labels) != len(dataset) or not _equal(labels[0], label):
        logger.info("reading the %d items of %s for their labels", len(dataset), where)
        labels = [_read_item(dataset, number, where)[1] for number in range(len(dataset))]
    return DatasetImages(dataset, where), labels, find_classes(dataset), where


def find_targets(dataset: Any) -> list[Any] | None:
    """Return the labels that a data set of torchvision or timm keeps; None if it keeps none."""
    parts = getattr(dataset, "datasets", None)
    if isinstance(parts, list | tuple):  # ConcatDataset
        found = [find_targets(part) for part in parts]
        return list(chain.from_iterable(t for t in found if t)) if all(found) else None
    if hasattr(dataset, "dataset") and hasattr(dataset, "indices"):  # Subset
        targets = find_targets(dataset.dataset)
        return None if targets is None else [targets[index] for index in dataset.indices]
    if getattr(dataset, "target_transform", None) is not None:
        return None
    for name in ("targets", "labels"):
        kept: Any = getattr(dataset, name, None)
        if isinstance(kept, list | np.ndarray) or hasattr(kept, "detach"):
            return list(kept)
    return None


def find_classes(dataset: Any) -> tuple[str, ...]:
    """Return the names of a data set's classes in the order of their indices, if it has names."""
    parts = getattr(dataset, "datasets", None)
    if isinstance(parts, list | tuple):
        found = {find_classes(part) for part in parts}
        return found.pop() if len(found) == 1 else ()
    for owner in (dataset, getattr(dataset, "reader", None)):
        classes = getattr(owner, "classes", None)
        if isinstance(classes, list | tuple):
            return tuple(map(str, classes))
        index = getattr(owner, "class_to_idx", None)
        if isinstance(index, Mapping) and sorted(index.values()) == list(range(len(index))):
            return tuple(str(name) for name in sorted(index, key=_at(index)))
    inner = getattr(dataset, "dataset", None)
    return find_classes(inner) if inner is not None else ()


def _at(index: Mapping[Any, int]) -> Callable[[Any], int]:
    return index.__getitem__


def _equal(kept: Any, read: Any) -> bool:
    return bool(np.array_equal(np.asarray(kept), np.asarray(read)))


def _read_item(dataset: Any, number: int, where: str) -> tuple[Any, Any]:
    try:
        item = dataset[number]
    except Exception as error:
        # A data set of the user's own may raise errors of any type.
        raise DataError(
            f"item {number} of {where} cannot be read: {type(error).__name__}: {first_line(error)}"
        ) from error
    return split_item(item, number, where)
