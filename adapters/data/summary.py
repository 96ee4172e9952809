"""Describe labeled data before anything is trained: classes, splits, formats, what is skipped."""

from __future__ import annotations

import os
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from headkit.adapters.display import escape_unprintable
from headkit.adapters.heads.tasks import TaskName, get_task

from .dataset import ImageDataset, Skipped, Splits, UnusedSplit, count
from .listing import OTHER_FORMAT, merge_skipped, suffix_of
from .memory.open import is_in_memory
from .open import find_warnings, open_splits
from .options import ClassFrom, ReadOptions

MOST_LINES, MOST_COLUMNS = 24, 100
"""Size of the screen that the text of a summary fits, in characters."""
_MOST_OF_A_PATH = 50
_TITLES = {"train": "train", "val": "validation", "test": "test"}


@dataclass(frozen=True)
class SplitSummary:
    """The images of one split.

    Attributes:
        name: Where they are.
        images: Number of images; None if a stream does not know it.
        images_per_class: Number of images by label; empty if they have no classes or if the
            classes are only known once the images are read.
        ranges: Smallest, mean and largest number by output, for the task regression.
        formats: Number of images by suffix; empty if the images have no paths.
        used: False if ``fit`` does not use the split.
    """

    name: str
    images: int | None
    images_per_class: Mapping[str, int]
    ranges: Mapping[str, tuple[float, float, float]]
    formats: Mapping[str, int]
    used: bool = True


@dataclass(frozen=True)
class DataSummary:
    """How headkit interprets labeled data. Its ``str`` fits on one screen.

    Attributes:
        data: The name of the data.
        task: The kind of targets.
        label_names: Names of the classes or outputs; empty for a reader that has no names.
        splits: The splits by name: ``train``, ``val`` and ``test``, as far as they exist.
        facts: How the data were read, such as the names of the columns.
        skipped: Everything that is not read, one entry per reason.
        warnings: What a user should know.
    """

    data: str
    task: TaskName
    label_names: tuple[str, ...]
    splits: Mapping[str, SplitSummary]
    facts: Mapping[str, str]
    skipped: tuple[Skipped, ...]
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return JSON values: the attributes."""
        return asdict(self)

    def __str__(self) -> str:
        outputs = "classes" if get_task(self.task).has_classes else "outputs"
        if len(self.label_names) == 1:
            outputs = {"classes": "class", "outputs": "output"}[outputs]
        number = str(len(self.label_names)) if self.label_names else "an unknown number of"
        head = [f"{_shorten_path(self.data)}: {self.task}, {number} {outputs}"]
        if self.facts:
            head += _wrap("; ".join(f"{name}: {fact}" for name, fact in self.facts.items()))
        tail = self._format_counts() + self._format_skipped() + self._format_warnings()
        head += self._format_splits()
        room = MOST_LINES - len(head) - len(tail)
        return "\n".join(map(_cut, head + self._format_classes(room) + tail))

    def _inside(self, path: str) -> str:
        """Return a path without the name of the data before it; a long one loses its beginning."""
        root = os.path.join(self.data, "")  # noqa: PTH118
        path = path.removeprefix(root)
        return _shorten_path(path)

    def _format_splits(self) -> list[str]:
        rows: list[list[str]] = [["split", "images", "classes", "from"]]
        for split, one in self.splits.items():
            classes = str(len(one.images_per_class)) if one.images_per_class else "-"
            images = "unknown" if one.images is None else str(one.images)
            note = "" if one.used else " (not used by fit)"
            rows.append([_TITLES[split], images, classes, self._inside(one.name) + note])
        if "val" not in self.splits:
            rows.insert(2, [_TITLES["val"], "-", "-", "cross-validation on train"])
        return _align(rows, left={0, 3})

    def _format_classes(self, room: int) -> list[str]:
        """Return at most ``room`` lines with the number of images of each class."""
        if ranges := self.splits["train"].ranges:
            rows = [["output", "lowest", "mean", "highest"]]
            rows += [[n, *(f"{value:g}" for value in r)] for n, r in ranges.items()]
            shown, rest = _first(rows, room)
            return _align(shown, left={0}) + ([f"  and {rest} more outputs"] if rest else [])
        counts = {split: one.images_per_class for split, one in self.splits.items()}
        if not counts["train"]:
            return []
        counts = {split: found for split, found in counts.items() if found}
        unknown = {name: None for found in counts.values() for name in found}
        names = [*self.label_names, *(name for name in unknown if name not in self.label_names)]
        rows = [["class", *(_TITLES[split] for split in counts)]]
        rows += [[n, *(str(found.get(n, 0)) for found in counts.values())] for n in names]
        shown, rest = _first(rows, room)
        lines = _align(shown, left={0})
        if rest:
            order = sorted(counts["train"], key=counts["train"].__getitem__)
            few, most = order[0], order[-1]
            lines.append(
                f"  and {rest} more; training images per class: {counts['train'][few]} "
                f"({_short(few)}) to {counts['train'][most]} ({_short(most)})"
            )
        return lines

    def _format_counts(self) -> list[str]:
        formats: Counter[str] = Counter()
        for one in self.splits.values():
            formats.update(one.formats)
        listed = [f"{suffix or 'no suffix'} {number}" for suffix, number in formats.most_common()]
        return [f"formats: {', '.join(listed)}"] if listed else []

    def _format_skipped(self) -> list[str]:
        ordered = sorted(self.skipped, key=lambda one: not one.reason.startswith(OTHER_FORMAT))
        shown = ordered[:4] if len(ordered) <= 4 else ordered[:3]
        lines = [
            f"skipped: {one.count} {one.reason}"
            + (f", such as {self._inside(one.examples[0])}" if one.examples else "")
            for one in shown
        ]
        if rest := ordered[len(shown) :]:
            total = sum(one.count for one in rest)
            lines.append(f"skipped: {total} more, for {len(rest)} other reasons (--json shows all)")
        return lines

    def _format_warnings(self) -> list[str]:
        lines: list[str] = []
        for warning in self.warnings[:2]:
            lines += _wrap(f"warning: {warning}")
        if (rest := len(self.warnings) - 2) > 0:
            lines.append(f"warning: {rest} more (--json shows all)")
        return lines


def describe_data(
    data: Any,
    val: Any = None,
    *,
    task: TaskName | None = None,
    class_from: ClassFrom | None = None,
    path_column: str | None = None,
    label_column: str | Sequence[str] | None = None,
    label_separator: str | None = None,
) -> DataSummary:
    """Describe what ``fit`` would train on and validate on. No image is read.

    Args:
        data: Training data, see ``open_data``.
        val: Validation data, see ``open_data``.
        task: The kind of targets.
        class_from: The folder that names the class, ``top`` or ``parent``.
        path_column: Name of a table's column of image paths.
        label_column: Name of a table's column of labels, or several.
        label_separator: Text between the labels of one image in a table.

    Raises:
        DataError: ``fit`` would refuse the data, see ``open_data``.
        ValueError: There is no such task, or an option is out of its range.
        DependencyMissing: The package of the reader is not installed.
    """
    options = ReadOptions(class_from, path_column, label_column, label_separator)
    splits = open_splits(data, val, task, options)
    return summarize(splits.train.name if is_in_memory(data) else str(data), splits)


def summarize(name: str, splits: Splits) -> DataSummary:
    """Return the summary of data called ``name``."""
    described = {"train": _describe(splits.train)}
    if splits.val is not None:
        described["val"] = _describe(splits.val)
    for split in ("val", "test"):
        unused = [one for one in splits.unused if one.split == split]
        if unused and split not in described:
            described[split] = _describe_unused(unused)
    parts = [splits.train.skipped, splits.val.skipped if splits.val is not None else ()]
    parts += [splits.outside, *(one.skipped for one in splits.unused)]
    return DataSummary(
        name,
        splits.train.task,
        splits.train.label_names,
        described,
        dict(splits.facts),
        merge_skipped(*parts),
        tuple(find_warnings(splits)),
    )


def _describe(dataset: ImageDataset) -> SplitSummary:
    per_class: dict[str, int] = {}
    ranges: dict[str, tuple[float, float, float]] = {}
    names = dataset.label_names
    if dataset.targets is not None:
        images = get_task(dataset.task).images_per_class(dataset.targets, len(names))
        if images is not None:
            found = zip(names, images.tolist(), strict=True)
            per_class = {name: int(number) for name, number in found if number}
        else:
            y = dataset.targets
            columns = zip(y.min(0), y.mean(0, dtype=float), y.max(0), strict=True)
            ranges = {
                name: (float(low), float(mean), float(high))
                for name, (low, mean, high) in zip(names, columns, strict=True)
            }
    formats = Counter(map(suffix_of, dataset.paths or ()))
    return SplitSummary(
        dataset.name, count(dataset), per_class, ranges, dict(formats.most_common())
    )


def _describe_unused(found: Sequence[UnusedSplit]) -> SplitSummary:
    per_class: Counter[str] = Counter()
    formats: Counter[str] = Counter()
    for one in found:
        per_class.update(one.images_per_class)
        formats.update(map(suffix_of, one.paths))
    images = sum(len(one.paths) for one in found)
    name = ", ".join(one.name for one in found)
    return SplitSummary(name, images, dict(per_class), {}, dict(formats), used=False)


def _first(rows: list[list[str]], room: int) -> tuple[list[list[str]], int]:
    """Return the first rows of a table for ``room`` lines, and how many rows are left out."""
    if len(rows) <= room:
        return rows, 0
    kept = max(room - 1, 2)  # one line says how many more there are
    return rows[:kept], len(rows) - kept


def _align(rows: list[list[str]], left: set[int]) -> list[str]:
    rows = [
        [_short(cell) if i in left and i == 0 else cell for i, cell in enumerate(r)] for r in rows
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _shorten_path(path: str) -> str:
    """Return a path that fits on a line; a long one loses its beginning."""
    return path if len(path) <= _MOST_OF_A_PATH else f"…{path[1 - _MOST_OF_A_PATH :]}"


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(escape_unprintable(text), MOST_COLUMNS, max_lines=2, placeholder=" …")


def _short(name: str) -> str:
    name = escape_unprintable(name)
    return name if len(name) <= 40 else f"{name[:39]}…"


def _cut(line: str) -> str:
    line = escape_unprintable(line)
    return line if len(line) <= MOST_COLUMNS else f"{line[: MOST_COLUMNS - 1]}…"
