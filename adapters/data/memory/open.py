"""The door for labeled data in memory: find out what an object is, and open it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from headkit.adapters.data.dataset import ImageDataset, Splits, Targets, UnusedSplit, shorten_list
from headkit.adapters.data.features import Features
from headkit.adapters.data.options import ReadOptions
from headkit.adapters.data.splits import SplitName, split_of
from headkit.adapters.data.table.open import open_rows, open_validation_table
from headkit.adapters.errors import DataError
from headkit.adapters.heads.tasks import DEFAULT, TaskName

from .columns import to_column
from .frame import Frame
from .hugging_face import read_hugging_face
from .images import Inputs, MemoryImages, check_features, read_inputs
from .items import Part, read_torch_dataset, split_items
from .labels import Encoded, encode_labels
from .table import open_frame, take_images

EXPECTED = (
    "a folder, a CSV file, the name of a reader, (X, y) with arrays of images or features, a list "
    "of pairs (image or path, label), a torch Dataset, a datasets.Dataset, or a DataFrame with the "
    "columns path and label"
)

VALIDATION: tuple[SplitName, ...] = ("val", "test")
"""The splits of validation data that may be used; the first that there is."""


def is_in_memory(data: Any) -> bool:
    """Return False for a path or the name of a reader."""
    return not isinstance(data, str | os.PathLike)


def open_memory(data: Any, task: TaskName | None, options: ReadOptions) -> Splits:
    """Open the training data and, if ``data`` has them, the validation data.

    Args:
        data: ``(X, y)``, pairs, a data set or a table, see ``fit`` and ``as_frame``; or a mapping
            from the names of splits to such data, such as a ``datasets.DatasetDict``.
        task: The kind of targets. If None, the labels determine it, see ``encode_labels``.
        options: The user's word on the columns of a DataFrame and on the separator of labels.

    Raises:
        DataError: ``data`` is something else, has no images, or its labels do not fit.
    """
    data = take_images(data, task, options)
    if isinstance(data, Mapping):
        return _open_splits(data, task, options)
    if isinstance(data, Features):
        train = _from_features(data, task=task)
        known = Encoded(train.task, train.label_names, np.empty(0))
        return Splits(train, None if data.val is None else _from_features(data.val, known))
    if isinstance(data, ImageDataset):
        if task not in (None, data.task):
            raise DataError(
                f"{data.name} has the task {data.task}, but the requested task is {task}"
            )
        return Splits(data)
    if isinstance(data, Frame):
        return open_frame(data, task, options)
    return Splits(_open_split(data, "", task, None, options))


def open_memory_validation(data: Any, train: ImageDataset, options: ReadOptions) -> ImageDataset:
    """Open validation data, whose labels must be labels of ``train``.

    Raises:
        DataError: See ``open_memory``; or a label is unknown.
    """
    data = take_images(data, train.task, options)
    if isinstance(data, Mapping):
        data = take_images(_validation_of(data), train.task, options)
    if isinstance(data, Frame):
        return open_validation_table(data.to_table(), train, options)
    return open_with_labels(data, train.task, train.label_names, options, " (validation)")


def open_with_labels(
    data: Any,
    task: TaskName,
    label_names: tuple[str, ...],
    options: ReadOptions,
    suffix: str = "",
) -> ImageDataset:
    """Open one split of data without columns, whose labels must be among ``label_names``.

    Args:
        data: See ``open_memory``.
        task: The kind of targets.
        label_names: The labels, in their order.
        options: The user's word on the separator of labels.
        suffix: Text after the name of the data in messages.

    Raises:
        DataError: See ``open_memory``; or a label is unknown.
    """
    known = Encoded(task, label_names, np.empty(0))
    if isinstance(data, Features):
        return _from_features(data, known)
    if isinstance(data, ImageDataset):
        if (data.task, data.label_names) != (task, label_names):
            raise DataError(
                f"the labels of {data.name} differ from those of the training "
                f"data: expected {shorten_list(label_names)}"
            )
        return data
    data = take_images(data, task, options)
    if isinstance(data, Frame):
        return open_rows(data.to_table(), None, label_names, task, options)
    return _open_split(data, suffix, task, known, options)


def open_inputs(values: Any, targets: Targets | None, name: str) -> ImageDataset:
    """Open images or features that have class indices as targets, or none.

    Args:
        values: See ``read_inputs``.
        targets: Class indices, int64 ``[N]``. If None, all are 0.
        name: Name of the data for messages.

    Raises:
        DataError: ``values`` are neither images nor features, or there are not as many targets.
    """
    inputs = read_inputs(values, name)
    if targets is None:
        targets = np.zeros(len(inputs), np.int64)
    if len(inputs) != len(targets):
        raise DataError(f"{name} has {len(inputs)} images but {len(targets)} labels")
    return _build(name, inputs, Encoded(DEFAULT, (), targets))


def split_mapping(data: Mapping[Any, Any]) -> dict[SplitName, Any]:
    """Return the parts of a mapping by the split that their key names, see ``split_of``.

    Raises:
        DataError: Two keys name the same split.
    """
    by_split: dict[SplitName, Any] = {}
    for name in data:
        split = split_of(name) if isinstance(name, str) else None
        if split is not None and split in by_split:
            raise DataError(f"the {type(data).__name__} has two splits for {split}: pass one")
        if split is not None:
            by_split[split] = data[name]
    return by_split


def _validation_of(data: Mapping[Any, Any]) -> Any:
    by_split = split_mapping(data)
    split = next((one for one in VALIDATION if one in by_split), None)
    if split is None:
        raise DataError(f"val has the splits {', '.join(map(str, data))}, expected val or test")
    return by_split[split]


def _open_splits(data: Mapping[Any, Any], task: TaskName | None, options: ReadOptions) -> Splits:
    by_split = split_mapping(data)
    if "train" not in by_split:
        keys = ", ".join(map(str, data)) or "no keys"
        raise DataError(
            f"the {type(data).__name__} has {keys}, expected the splits train and val; data can be "
            f"{EXPECTED}"
        )
    splits = open_memory(by_split["train"], task, options)
    if "val" in by_split:
        val = open_memory_validation(by_split["val"], splits.train, options)
        return replace(splits, val=val)
    if "test" in by_split:
        test = by_split["test"]
        count = len(test) if hasattr(test, "__len__") and not isinstance(test, tuple) else 1
        names = tuple(f"image {number}" for number in range(count))
        return replace(splits, unused=(UnusedSplit("test", "test", names, {}),))
    return splits


def _from_features(
    given: Features, known: Encoded | None = None, task: TaskName | None = None
) -> ImageDataset:
    """Return features as a data set; their labels are matched by name to the known ones.

    Raises:
        DataError: An array is not finite, or has another shape than the others.
    """
    x = check_features(np.asarray(given.x), given.name)
    levels = {
        name: check_features(np.asarray(vectors), f"{given.name} (level {name})")
        for name, vectors in given.levels.items()
    }
    counts = {"features": len(x), "labels": len(given.y)}
    counts |= {f"vectors of the level {name}": len(vectors) for name, vectors in levels.items()}
    if len({*counts.values()}) > 1:
        found = ", ".join(f"{count} {what}" for what, count in counts.items())
        raise DataError(f"{given.name} has {found}: expected as many of each, one per image")
    encoded = Encoded(given.task, given.label_names, given.y)
    wanted = (task or given.task, given.label_names)
    if known is not None:
        wanted = (known.task, known.label_names)
    if wanted != (given.task, given.label_names):
        classes = given.label_names
        encoded = encode_labels(given.y, given.name, classes=classes, known=known, task=task)
    described = (given.name, encoded.task, encoded.label_names)
    return ImageDataset(*described, targets=encoded.targets, features=x, levels=levels)


def _open_split(
    data: Any,
    suffix: str,
    task: TaskName | None,
    known: Encoded | None,
    options: ReadOptions,
) -> ImageDataset:
    split = _read(data)
    name = f"{split.name}{suffix}"
    inputs = read_inputs(split.inputs, name)
    labels = split.labels
    if not hasattr(labels, "columns"):  # the columns of a table have names
        labels = to_column(labels, name)
    if len(inputs) != len(labels):
        raise DataError(
            f"{name} has {len(inputs)} images but {len(labels)} labels, expected one label per "
            "image"
        )
    separator = options.label_separator
    encoded = encode_labels(
        labels, name, classes=split.classes, task=task, known=known, separator=separator
    )
    return _build(name, inputs, encoded)


def _build(name: str, inputs: Inputs, labels: Encoded) -> ImageDataset:
    dataset = ImageDataset(
        name,
        labels.task,
        labels.label_names,
        targets=labels.targets,
        warnings=labels.warnings,
    )
    if inputs.images is not None:
        return replace(dataset, reader=MemoryImages(inputs.images, labels.targets))
    return replace(dataset, paths=inputs.paths, features=inputs.features)


def _read(data: Any) -> Part:
    if isinstance(data, Part):
        return data
    library = type(data).__module__.partition(".")[0]
    if library == "datasets":
        where = f"the data set {getattr(data, 'split', None) or type(data).__name__}"
        return Part(where, *read_hugging_face(data, where))
    if isinstance(data, tuple) and len(data) == 2:
        return Part("(X, y)", *data)
    if isinstance(data, list) and _is_x_and_y(data):
        return Part("(X, y)", *data)
    if isinstance(data, list | tuple):
        where = "the list"
        return Part(where, *split_items(data, where))
    if isinstance(data, np.ndarray) or hasattr(data, "detach"):
        raise DataError(
            f"data is an array {list(data.shape)} without labels, expected (X, y): a tuple of "
            "images, or of features, and their labels"
        )
    if hasattr(data, "dataset") and hasattr(data, "batch_sampler"):
        raise DataError(
            "data is a DataLoader, which yields batches: pass its data set, data.dataset"
        )
    if hasattr(data, "__getitem__") and not isinstance(data, str | bytes | Mapping):
        inputs, labels, classes, where = read_torch_dataset(data)
        return Part(where, inputs, labels, classes)
    raise DataError(f"data is of type {type(data).__name__}, expected {EXPECTED}")


def _is_x_and_y(data: list[Any]) -> bool:
    """Tell ``[X, y]`` from a list of two pairs."""
    if len(data) != 2 or not hasattr(data[0], "shape"):
        return False
    return hasattr(data[1], "__len__") and len(data[0]) == len(data[1])
