"""Read a folder with one folder per class, in timm's order.

The class of an image is the folder directly under the root. Deeper folders only organize the
images. If the images of one class lie at different depths, or if folders with the same name appear
under several parents, the tree can be read in two ways, and ``open_folder`` stops. It also stops if
the folders under the root are called like years or batches. ``class_from`` then decides: ``top`` is
the folder under the root, and ``parent`` is the folder that holds the image, as in timm.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from headkit.adapters.errors import DataError
from headkit.adapters.images.formats import SUFFIXES

from .dataset import (
    ImageDataset,
    Skipped,
    Targets,
    check_known_classes,
    check_two_classes,
    shorten_list,
)
from .listing import (
    EMPTY_FOLDER,
    NOT_AN_IMAGE,
    OTHER_FORMAT,
    Listing,
    find_tables,
    list_folder,
    merge_skipped,
    natural_key,
)
from .options import ClassFrom
from .splits import group_splits

_ORDER = re.compile(
    r"(19|20)\d\d([-_. ]?\d\d){0,2}"
    r"|(batch|camera|cam|chunk|day|dir|fold|folder|group|month|part|patient|run|scan|session|"
    r"shard|site|subject|user|version|v|week|year)s?[-_. ]?\d+",
    re.IGNORECASE,
)
"""Names that order images and rarely are classes: years, dates, and numbered batches."""


def open_folder(
    root: Path,
    train_classes: tuple[str, ...] | None = None,
    class_from: ClassFrom | None = None,
) -> ImageDataset:
    """List the images below ``root`` with the class of each; see the module for the rule.

    Args:
        root: A folder with one folder per class.
        train_classes: The classes of the training data, if this is validation data.
        class_from: The folder that names the class, if the tree can be read in two ways.

    Raises:
        DataError: There are no images, a class has no image, an image is outside the class
            folders, the tree can be read in two ways, there is only one class, the training data
            lacks a class, or a folder cannot be read.
    """
    listing = list_folder(str(root))
    _check_images(listing)
    empty = _empty_tops(listing)
    skipped = listing.skipped
    if train_classes is None:
        _check_no_empty_class(listing, empty)
    elif empty:
        paths = tuple(os.path.join(root, name) for name in empty)  # noqa: PTH118
        skipped = merge_skipped(skipped, [Skipped(EMPTY_FOLDER, len(empty), paths[:3])])
    labels, warnings = _choose_classes(listing, class_from)
    classes = set(labels)
    _check_utf8(root, classes)
    if train_classes is None:
        names = tuple(sorted(classes, key=natural_key))
        _check_two_classes(listing, names)
    else:
        check_known_classes(str(root), classes, train_classes)
        names = train_classes
    return ImageDataset(
        str(root),
        "multiclass",
        names,
        tuple(listing.paths),
        class_indices(labels, names),
        skipped=skipped,
        warnings=(*listing.warnings, *(warnings if train_classes is None else ())),
    )


def describe_class(class_from: ClassFrom | None) -> dict[str, str]:
    """Return which folder names the class of an image, in words."""
    top = "the folder directly under the root"
    return {"class": "the folder that holds the image" if class_from == "parent" else top}


def class_indices(labels: Sequence[str], names: tuple[str, ...]) -> Targets:
    """Return the index of each label in ``names``, int64 ``[N]``."""
    index = {name: number for number, name in enumerate(names)}
    return np.fromiter((index[label] for label in labels), np.int64, len(labels))


def _choose_classes(
    listing: Listing, class_from: ClassFrom | None
) -> tuple[list[str], tuple[str, ...]]:
    """Return the class of each image, and what a user should know about that choice."""
    place = -1 if class_from == "parent" else 0
    labels = [folders[place] for folders in listing.folders]
    if max(map(len, listing.folders)) == 1 or class_from == "parent":
        return labels, ()
    _check_no_splits_in_classes(listing)
    if class_from is not None:
        return labels, ()
    tops = sorted(set(labels), key=natural_key)
    if len(tops) > 1 and (reason := _second_reading(listing, tops)):
        parents = sorted({folders[-1] for folders in listing.folders}, key=natural_key)
        raise DataError(
            f"the classes of {listing.root} are not clear: {reason}; pass class_from='top' "
            f"(--class-from top) if the classes are {shorten_list(tops, 3)}, or 'parent' if they "
            f"are {shorten_list(parents, 3)}"
        )
    deeper = next(folders for folders in listing.folders if len(folders) > 1)
    return labels, (
        f"the classes of {listing.root} are the {len(tops)} folders directly under it, and deeper "
        f"folders, such as {'/'.join(deeper)}, only organize the images: pass class_from='parent' "
        "(--class-from parent) if the deepest folders are the classes",
    )


def _second_reading(listing: Listing, tops: list[str]) -> str:
    """Say why the folders directly under the root may not be the classes; empty if they are."""
    trees = dict.fromkeys(listing.folders)
    shallow: dict[str, tuple[str, ...]] = {}
    for folders in trees:
        other = shallow.setdefault(folders[0], folders)
        if len(other) != len(folders):
            pair = " and ".join("/".join((*one, "…")) for one in (other, folders))
            return f"images of {folders[0]} lie at different depths, as in {pair}"
    parents: dict[str, tuple[str, ...]] = {}
    for folders in trees:
        for depth, name in enumerate(folders):
            parent = parents.setdefault(name, folders[:depth])
            if parent != folders[:depth]:
                pair = " and ".join("/".join((*one, name)) for one in (parent, folders[:depth]))
                return f"the folder {name} appears under several parents, as in {pair}"
    if all(_ORDER.fullmatch(name) for name in tops):
        return f"folders such as {tops[0]} look like years or batches, not like classes"
    return ""


def _check_no_splits_in_classes(listing: Listing) -> None:
    inner = {folders[1] for folders in listing.folders if len(folders) > 1}
    group = group_splits(inner)
    if "train" not in group:
        return
    if len({folders[0] for folders in listing.folders}) == 1:
        inside = os.path.join(listing.root, listing.folders[0][0])  # noqa: PTH118
        raise DataError(
            f"{listing.root} has one folder, {inside}, which has the splits "
            f"{shorten_list(sorted(inner))}: pass {inside}"
        )
    names = {name for found in group.values() for name in found}
    folders = next(f for f in listing.folders if len(f) > 1 and f[1] in names)
    raise DataError(
        f"{listing.root} has splits inside its class folders, such as {'/'.join(folders[:2])}: "
        f"expected the splits above the classes, as in {folders[1]}/{folders[0]}; move the "
        f"folders, or list the "
        "images in a CSV file with the columns path,label,split"
    )


def _check_images(listing: Listing) -> None:
    if not listing.paths:
        found = _describe_found(Counter({s.reason: s.count for s in listing.skipped}))
        formats = f" in a format that is read ({', '.join(sorted(SUFFIXES))})" if found else ""
        raise DataError(
            f"no images in {listing.root}: "
            + (f"found {found}; " if found else "")
            + f"expected one folder per class with images in it{formats}"
        )
    loose = [
        path for path, folders in zip(listing.paths, listing.folders, strict=True) if not folders
    ]
    if loose:
        tables = find_tables(Path(listing.root))
        hint = f", or pass {tables[0]} if it has the labels" if tables else ""
        raise DataError(
            f"{listing.root} has images outside the class folders, such as {loose[0]}: move each "
            f"into the folder of its class{hint}"
        )


def _empty_tops(listing: Listing) -> list[str]:
    filled = {folders[0] for folders in listing.folders}
    return sorted((name for name in listing.tops if name not in filled), key=natural_key)


def _check_no_empty_class(listing: Listing, empty: list[str]) -> None:
    if not empty:
        return
    described = [
        f"{name} ({found})" if (found := _describe_found(listing.others.get(name))) else name
        for name in empty
    ]
    raise DataError(
        f"{listing.root} has class folders without images: {shorten_list(described)}; add images "
        "or remove the folders"
    )


def _describe_found(reasons: Counter[str] | None) -> str:
    """Return what was found instead of images: ``48 .heic, 2 .txt``."""
    found = [
        f"{count} {reason.removeprefix(OTHER_FORMAT).removeprefix(NOT_AN_IMAGE)}"
        for reason, count in (reasons or Counter()).most_common()
    ]
    return shorten_list(found)


def _check_two_classes(listing: Listing, names: tuple[str, ...]) -> None:
    if len(names) == 1 and max(map(len, listing.folders)) > 1:
        (name,) = names
        raise DataError(
            f"{listing.root} has one class, {name}: a classifier needs at least two; pass "
            f"{os.path.join(listing.root, name)} if the folders in it are the classes"  # noqa: PTH118
        )
    check_two_classes(listing.root, names)


def _check_utf8(root: Path, names: set[str]) -> None:
    # The head file stores label names as UTF-8.
    for name in names:
        if any("\ud800" <= character <= "\udfff" for character in name):
            raise DataError(f"{root} has a folder {name!r}, whose name is not UTF-8: rename it")
