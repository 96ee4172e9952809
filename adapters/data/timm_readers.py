"""Open data sets through timm's readers: Hugging Face, TensorFlow Datasets and WebDataset."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

from timm.data import create_dataset
from timm.data.readers import create_reader

from headkit.adapters.compat import create_stream_of_unknown_length
from headkit.adapters.errors import DataError, DependencyMissing, HeadkitError, first_line
from headkit.adapters.files import exists, is_file
from headkit.adapters.images.formats import SUFFIXES

from .dataset import ImageDataset, check_known_classes, check_two_classes, shorten_list
from .listing import natural_key
from .readers import READERS

logger = logging.getLogger("headkit")

CLASSES_FILE = "classes.txt"
"""File next to the shards of a WebDataset: one class name per line, like timm's class maps."""
SHARD_IMAGES = ";".join(sorted(suffix.removeprefix(".") for suffix in SUFFIXES))
"""Suffixes of images in shards, without dots; timm's own list is shorter."""


def open_reader(
    data: str, split: str, train_classes: tuple[str, ...] | None = None
) -> ImageDataset:
    """Open ``PREFIX/NAME``, or ``PREFIX/NAME@SPLIT`` to override ``split``.

    - ``hfds/NAME``: a data set of the Hugging Face Hub; or ``hfds/FOLDER``, a folder that
      ``datasets.load_dataset`` opens. The column ``label`` holds the classes; without that name,
      the only column of type ``ClassLabel`` does. Images are found in the same way, by the name
      ``image`` or the type ``Image``.
    - ``hfids/NAME``: the same, streamed.
    - ``tfds/NAME``: a data set that TensorFlow Datasets has already prepared.
    - ``wds/FOLDER``: tar shards of ``KEY.jpg`` (``jpeg``, ``png``, ``webp``) with ``KEY.cls``, the
      class index. ``FOLDER/_info.json`` lists the splits; or name the shards:
      ``wds/FOLDER@train-{0000..0009}.tar``. The class names are ``label_names`` in ``_info.json``
      or the lines of ``FOLDER/classes.txt``.

    Args:
        data: The name of the data set, in one of these forms.
        split: The split, if ``data`` names none.
        train_classes: The classes of the training data, if this is validation data.

    Raises:
        DataError: timm cannot open the data set, an image does not have exactly one class index, or
            the training data lacks a class.
        DependencyMissing: The package of the reader is not installed.
    """
    prefix, _, rest = data.partition("/")
    # The name of a folder may contain an @.
    if not exists(rest) and "@" in rest:
        rest, _, split = rest.rpartition("@")
    name = f"{prefix}/{rest}"
    if find_spec(READERS[prefix]) is None:
        raise DependencyMissing.for_feature(f"reading {name}", READERS[prefix].replace("_", "-"))
    where = f"{name} (split {split})"
    create = create_dataset
    try:
        if prefix == "hfds":
            return _open_hfds(rest, split, where, train_classes)
        if prefix == "hfids":
            names, options, create = _describe_stream(rest, split, where)
        elif prefix == "tfds":
            class_to_idx = create_dataset(name, split=split).reader.class_to_idx
            names, options = _ordered_names(class_to_idx), {}
        else:
            names, options = _open_shards(rest, split, where)
        options |= {"split": split, "class_map": _class_map(names, train_classes, where)}
        if prefix != "tfds":
            options["input_img_mode"] = ""  # timm would turn 16-bit images white
        stream = create(name, **options)
    except HeadkitError:
        raise
    except Exception as error:
        # The packages of the readers raise errors of any type.
        raise DataError(f"timm cannot open {where}: {first_line(error)}") from error
    return ImageDataset(
        where, "multiclass", names if train_classes is None else train_classes, stream=stream
    )


def _ordered_names(class_to_idx: Mapping[str, int]) -> tuple[str, ...]:
    return tuple(str(name) for name in sorted(class_to_idx, key=class_to_idx.__getitem__))


def _class_map(
    names: tuple[str, ...], train_classes: tuple[str, ...] | None, where: str
) -> dict[int, int] | None:
    """Map the class indices of validation data to those of training data; None if equal."""
    if train_classes is None:
        if names:
            check_two_classes(where, names)
        return None
    if bool(names) != bool(train_classes):
        unnamed = "the training data has" if names else f"{where} has"
        raise DataError(
            f"{unnamed} no class names, so the classes of training and validation data cannot be "
            "matched"
        )
    check_known_classes(where, names, train_classes)
    if names == train_classes:
        return None
    index = {name: number for number, name in enumerate(train_classes)}
    return {number: index[name] for number, name in enumerate(names)}


def _open_hfds(
    name: str, split: str, where: str, train_classes: tuple[str, ...] | None
) -> ImageDataset:
    # timm accepts the name of a missing column and fails at the first image.
    data_set: Any = import_module("datasets").load_dataset(name, split=split)
    image, label = find_columns(data_set.features, where)
    names = _class_names(data_set.features[label], where)
    values = data_set.unique(label)
    _check_all_labelled(values, len(names), where)
    by_value = {value: names[value] if names else str(value) for value in values}
    if train_classes is None:
        ordered = sorted(
            by_value, key=None if names else lambda value: natural_key(by_value[value])
        )
        labels = tuple(by_value[value] for value in ordered)
        check_two_classes(where, labels)
        if len(labels) < len(names):
            empty = [name for name in names if name not in labels]
            logger.warning(
                "skipped the classes of %s that have no images: %s", where, shorten_list(empty)
            )
    else:
        check_known_classes(where, by_value.values(), train_classes)
        labels = train_classes
    index = {text: number for number, text in enumerate(labels)}
    reader = create_reader(
        f"hfds/{name}",
        split=split,
        input_key=image,
        target_key=label,
        class_map={value: index[text] for value, text in by_value.items()},
    )
    return ImageDataset(where, "multiclass", labels, reader=reader)


def _describe_stream(
    name: str, split: str, where: str
) -> tuple[tuple[str, ...], dict[str, Any], Callable[..., Any]]:
    data_set: Any = import_module("datasets").load_dataset(name, split=split, streaming=True)
    info = (data_set.info.splits or {}).get(split)
    create = create_dataset if info and info.num_examples else create_stream_of_unknown_length
    if data_set.features is None:  # the first image would show them
        return (), {}, create
    image, label = find_columns(data_set.features, where)
    feature = data_set.features[label]
    names = _class_names(feature, where)
    if not names and "int" not in str(getattr(feature, "dtype", "")):
        raise DataError(
            f"the labels of {where} are text, which cannot be streamed: use hfds/{name}"
        )
    return names, {"input_key": image, "target_key": label}, create


def find_columns(features: Mapping[str, Any], where: str) -> tuple[str, str]:
    """Return the columns of images and labels of a Hugging Face data set.

    They are called ``image`` and ``label``, or they are the only ones of the type ``Image`` and
    ``ClassLabel``.

    Raises:
        DataError: There are no such columns.
    """

    def column(usual: str, kind: str) -> str | None:
        if usual in features:
            return usual
        of_kind = [name for name, feature in features.items() if type(feature).__name__ == kind]
        return of_kind[0] if len(of_kind) == 1 else None

    image, label = column("image", "Image"), column("label", "ClassLabel")
    if image is None or label is None:
        raise DataError(
            f"{where} has the columns {', '.join(features)}; expected image and label, or one "
            "column of images and one of class labels"
        )
    return image, label


def _class_names(feature: Any, where: str) -> tuple[str, ...]:
    kind = type(feature).__name__
    if kind not in ("ClassLabel", "Value") or "float" in str(feature.dtype):
        raise DataError(
            f"the labels of {where} are of type {kind} {getattr(feature, 'dtype', '')}".rstrip()
            + ", expected one class per image; use a CSV for other tasks"
        )
    return tuple(feature.names) if kind == "ClassLabel" else ()


def _check_all_labelled(values: Sequence[Any], classes: int, where: str) -> None:
    for value in values:
        if value is None or value == -1 or (classes and not 0 <= value < classes):
            raise DataError(f"{where} has images without a label ({value})")


def _open_shards(root: str, split: str, where: str) -> tuple[tuple[str, ...], dict[str, Any]]:
    options = {"root": root, "input_key": SHARD_IMAGES}
    try:
        stream = create_dataset("wds/", split=split, **options)
    except RuntimeError as error:
        raise DataError(
            f"timm cannot open {where}: {first_line(error)}; expected the split in "
            f"{root}/_info.json, or shards as in wds/{root}@train-{{0000..0009}}.tar"
        ) from error
    reader = stream.reader
    if "://" not in root and not root.startswith("pipe:"):
        missing = [shard for shard in reader.split_info.filenames if not is_file(Path(root, shard))]
        if missing:
            raise DataError(f"{where}: shards are missing in {root}: {shorten_list(missing, 3)}")
    names = reader.info.get("label_names") or _read_names(Path(root, CLASSES_FILE))
    # timm skips images that it cannot read and only logs a line. This stream serves this check
    # alone: once read here, it would pass all shards to each worker.
    target = next((target for _, target in islice(stream, 1)), None)
    if target is None:
        raise DataError(
            f"no image of {where} can be read; expected KEY.jpg, KEY.png or KEY.webp in each "
            "shard, with the class index in KEY.cls"
        )
    if names and target >= len(names):
        raise DataError(f"{where} has the class index {target}, but only {len(names)} class names")
    return tuple(map(str, names)), options


def _read_names(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError):
        return []
