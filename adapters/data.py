"""Read labelled images through ``timm.data``: a folder per class, or a named reader."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_dataset
from timm.data.readers import create_reader
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from .errors import DataError, DependencyMissing

logger = logging.getLogger("headkit")

READERS = {
    "hfds": "datasets",
    "hfids": "datasets",
    "tfds": "tensorflow_datasets",
    "wds": "webdataset",
}
"""timm's readers of named data sets, and the module that each needs."""
VALIDATION_FOLDERS = ("val", "validation", "test")

Transform = Callable[[Image.Image], Tensor]


@dataclass(frozen=True)
class Source:
    """One split of a data set: what to read, and what its targets are called.

    Attributes:
        name: how messages call it.
        label_names: one name per class; the targets are indices into them.
        reader: timm's reader, with random access; none when the data can only be streamed.
        stream: timm's iterable data set, where there is no random access.
    """

    name: str
    label_names: tuple[str, ...]
    reader: Any = None
    stream: Any = None


@dataclass
class Batch:
    """Decoded images ``[batch, channels, height, width]``, targets, and what was unreadable."""

    images: Tensor
    targets: Tensor
    unreadable: list[str] = field(default_factory=list)

    @property
    def seen(self) -> int:
        """Number of images that were tried."""
        return len(self.targets) + len(self.unreadable)


def open_data(data: str | Path, val: str | Path | None = None) -> tuple[Source, Source | None]:
    """Open the training split of ``data`` and, where there is one, the validation split.

    Args:
        data: a folder with one folder per class, or with folders ``train`` and ``val`` (or
            ``validation`` or ``test``) of that kind, or a name that timm's readers know:
            ``hfds/NAME``, ``wds/FOLDER``, … with ``@SPLIT`` behind it for another split than
            ``train``.
        val: the validation data, in the same form. Its classes must be known from ``data``.

    Raises:
        DataError: no images, a class without one, or a validation class that training lacks.
        DependencyMissing: the reader's package is not installed.
    """
    if _prefix(data):
        train = _open_named(str(data), "train")
        return train, None if val is None else _same_labels(_open_any(val, train), train)
    root = Path(data)
    if not root.is_dir():
        raise DataError(
            f"no data in {root}: {'it is a file' if root.exists() else 'no such folder'}"
        )
    if val is None and (root / "train").is_dir():
        folders = [root / name for name in VALIDATION_FOLDERS if (root / name).is_dir()]
        if folders:
            root, val = root / "train", folders[0]
    train = _open_folder(root)
    return train, None if val is None else _same_labels(_open_any(val, train), train)


def batches(source: Source, transform: Transform, batch_size: int, workers: int) -> Iterator[Batch]:
    """Decode and transform the images of ``source`` in order, in worker processes.

    An image that cannot be decoded is left out and named in its batch.
    """
    if source.reader is not None:
        loader: DataLoader[Any] = DataLoader(
            _Decoded(source, transform),
            batch_size=batch_size,
            num_workers=min(workers, -(-len(source.reader) // batch_size)),
            collate_fn=_collate,
        )
        yield from loader
        return
    images = iter(_Streamed(source, transform))
    while samples := list(islice(images, batch_size)):
        yield _collate(samples)


def count(source: Source) -> int | None:
    """Return the number of images, or ``None`` if a stream does not know it."""
    if source.reader is not None:
        return len(source.reader)
    return len(source.stream) or None


def stratified_holdout(
    targets: np.ndarray[Any, Any], share: float, seed: int
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Choose ``share`` of each class for validation. Returns a mask over ``targets`` ``[N]``.

    A class with one image stays in training whole; any other gives at least one and keeps one.
    """
    generator = np.random.default_rng(seed)
    held = np.zeros(len(targets), dtype=np.bool_)
    for label in np.unique(targets):
        members = np.flatnonzero(targets == label)
        if len(members) > 1:
            number = min(max(round(len(members) * share), 1), len(members) - 1)
            held[generator.permutation(members)[:number]] = True
    return held


Sample = tuple[Tensor | None, int, str]


def _decode(file: Any, name: str, target: int, transform: Transform) -> Sample:
    # Whatever Pillow raises on damaged bytes (OSError, SyntaxError, struct.error, …) means the same
    # here: this image cannot be read. It is named and counted by the caller.
    try:
        image = file if isinstance(file, Image.Image) else Image.open(file)
        return transform(image.convert("RGB")), target, ""
    except Exception as error:
        return None, target, f"{name} ({error})"
    finally:
        if hasattr(file, "close"):
            file.close()


class _Decoded(Dataset[Sample]):
    # timm's ImageDataset puts the next image in the place of an unreadable one; this one says so.
    def __init__(self, source: Source, transform: Transform) -> None:
        self.reader, self.transform = source.reader, transform

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> Sample:
        name = str(self.reader.filename(index))
        try:
            file, target = self.reader[index]
        except OSError as error:
            return None, -1, f"{name} ({error})"
        return _decode(file, name, int(target), self.transform)


class _Streamed(IterableDataset[Sample]):
    def __init__(self, source: Source, transform: Transform) -> None:
        self.stream, self.transform = source.stream, transform

    def __iter__(self) -> Iterator[Sample]:
        for number, (image, target) in enumerate(self.stream):
            yield _decode(image, f"image {number}", int(target), self.transform)


def _collate(samples: list[Sample]) -> Batch:
    decoded = [(image, target) for image, target, _ in samples if image is not None]
    return Batch(
        images=torch.stack([image for image, _ in decoded]) if decoded else torch.empty(0),
        targets=torch.tensor([target for _, target in decoded], dtype=torch.int64),
        unreadable=[reason for image, _, reason in samples if image is None],
    )


def _prefix(data: str | Path) -> str:
    prefix, slash, _ = str(data).partition("/")
    return prefix if slash and prefix in READERS and not Path(data).exists() else ""


def _open_any(data: str | Path, train: Source) -> Source:
    if _prefix(data):
        return _open_named(str(data), "validation")
    root = Path(data)
    if not root.is_dir():
        raise DataError(
            f"no data in {root}: {'it is a file' if root.exists() else 'no such folder'}"
        )
    return _open_folder(root, {name: index for index, name in enumerate(train.label_names)})


def _open_folder(root: Path, class_to_idx: dict[str, int] | None = None) -> Source:
    folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    try:
        reader = create_reader("", root=str(root))
    except RuntimeError as error:  # timm's word for a folder without images
        raise DataError(
            f"no images in {root}: expected one folder per class with images in it"
        ) from error
    if "" in reader.class_to_idx:
        loose = next(
            reader.filename(i)
            for i, (_, t) in enumerate(reader.samples)
            if t == reader.class_to_idx[""]
        )
        raise DataError(f"{root} holds images beside the class folders, such as {loose}")
    filled = {Path(path).relative_to(root).parts[0] for path, _ in reader.samples}
    empty = [folder.name for folder in folders if folder.name not in filled]
    if empty:
        raise DataError(
            f"class {', '.join(empty[:5])} of {root} has no image: add images or remove the folder"
        )
    if class_to_idx is not None:
        unknown = sorted(set(reader.class_to_idx) - set(class_to_idx))
        if unknown:
            raise DataError(
                f"{root} has the class {', '.join(unknown[:5])}, which the training data lacks"
            )
        reader = create_reader("", root=str(root), class_map=class_to_idx)
        names = tuple(class_to_idx)
    else:
        names = tuple(sorted(reader.class_to_idx, key=reader.class_to_idx.__getitem__))
        if len(names) < 2:
            raise DataError(f"{root} has one class, {names[0]}: a classifier needs at least two")
    return Source(name=str(root), label_names=names, reader=reader)


def _open_named(data: str, split: str) -> Source:
    name, at, given = data.partition("@")
    split = given if at else split
    prefix, _, rest = name.partition("/")
    if find_spec(READERS[prefix]) is None:
        raise DependencyMissing.of(f"reading {name}", READERS[prefix].replace("_", "-"))
    try:
        dataset = create_dataset(name, root=rest if prefix == "wds" else None, split=split)
    except Exception as error:
        raise DataError(f"timm cannot open {name} (split {split}): {error}") from error
    labels = dict(getattr(dataset.reader, "class_to_idx", None) or {})
    names = tuple(str(label) for label in sorted(labels, key=labels.__getitem__))
    if prefix == "hfds":
        return Source(name=name, label_names=names, reader=dataset.reader)
    return Source(name=name, label_names=names, stream=dataset)


def _same_labels(val: Source, train: Source) -> Source:
    if val.label_names != train.label_names:
        raise DataError(
            f"the classes of {val.name} ({', '.join(val.label_names[:5])}…) are not those of "
            f"{train.name} ({', '.join(train.label_names[:5])}…)"
        )
    return val
