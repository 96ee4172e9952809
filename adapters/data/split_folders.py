"""Read a folder that has one folder per split, each with one folder per class.

The names of splits are those of ``splits.WORDS``, in any case: ``train``, ``Training``,
``training_set``; ``val``, ``valid``, ``validation``, ``dev``; ``test``, ``Testing``. Validation
data are the validation split. A test split is only used where the caller names it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from headkit.adapters.errors import DataError

from .dataset import Skipped, Splits, UnusedSplit
from .folder import describe_class, open_folder
from .listing import find_tables, folder_names, list_folder, merge_skipped
from .options import ClassFrom
from .splits import SplitName, group_splits, split_of

OUTSIDE = "image outside the folders of the splits"


def find_split_folders(root: Path) -> dict[SplitName, list[Path]]:
    """Return the folders of the splits of ``root``, or nothing if it has no splits.

    Raises:
        DataError: There are two folders for the training or the validation split, there is no
            training split, or the folder of the training split has no folders.
    """
    names = folder_names(str(root))
    group = group_splits(names)
    if not group and len(names) == 1 and split_of(names[0]) == "train":
        group = {"train": names}
    if not group:
        return {}
    others = [name for name in names if not any(name in found for found in group.values())]
    if "train" not in group:
        if others:
            return {}
        raise DataError(
            f"{root} has the splits {', '.join(sorted(names))}, but no training split: expected a "
            "folder train, or pass the folder of one split"
        )
    for split in ("train", "val"):
        if len(found := group.get(split, [])) > 1:
            raise DataError(
                f"{root} has {len(found)} folders for the split {split}: {', '.join(found)}; pass "
                "the folder of the training split, and that of the validation split as val (--val)"
            )
    train = root / group["train"][0]
    if not folder_names(str(train)):
        if others or len(group) == 1:
            return {}
        tables = find_tables(train) or find_tables(root)
        hint = f"; pass {tables[0]} if it has the labels" if tables else ""
        raise DataError(
            f"{train} has no class folders: expected one folder per class in the folder of each "
            f"split, or a CSV file with the columns path,label{hint}"
        )
    return {split: [root / name for name in found] for split, found in group.items()}


def open_split_folders(
    root: Path,
    folders: Mapping[SplitName, list[Path]],
    val: Path | None,
    class_from: ClassFrom | None,
) -> Splits:
    """Open the training and the validation split of ``root``, and count everything else.

    Args:
        root: The folder of the splits.
        folders: Their folders, see ``find_split_folders``.
        val: The folder that the caller wants for validation, if it is one of ``folders``. Default:
            the validation split, if there is one.
        class_from: See ``open_folder``.

    Raises:
        DataError: See ``open_folder``.
    """
    (train_folder,) = folders["train"]
    train = open_folder(train_folder, class_from=class_from)
    chosen = val or next(iter(folders.get("val", [])), None)
    validation = None if chosen is None else open_folder(chosen, train.label_names, class_from)
    unused = [
        _describe_unused(split, folder, class_from)
        for split, found in folders.items()
        for folder in found
        if folder not in (train_folder, chosen)
    ]
    around = list_folder(str(root), without={f.name for found in folders.values() for f in found})
    stray = Skipped(OUTSIDE, len(around.paths), tuple(around.paths[:3]))
    warnings = list(around.warnings)
    if around.paths:
        warnings.append(
            f"images outside the folders of the splits of {root} are not used "
            f"({len(around.paths)}, such as {around.paths[0]})"
        )
    return Splits(
        train,
        validation,
        tuple(unused),
        merge_skipped(around.skipped, [stray]) if around.paths else around.skipped,
        tuple(warnings),
        describe_class(class_from),
    )


def _describe_unused(split: SplitName, folder: Path, class_from: ClassFrom | None) -> UnusedSplit:
    listing = list_folder(str(folder))
    place = -1 if class_from == "parent" else 0
    labelled = all(listing.folders)
    labels = Counter(folders[place] for folders in listing.folders) if labelled else Counter()
    return UnusedSplit(split, str(folder), tuple(listing.paths), labels, listing.skipped)
