"""List the images below a folder, and count every file that is not one of them."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from headkit.adapters.errors import DataError
from headkit.adapters.files import exists
from headkit.adapters.images.formats import UNREAD_SUFFIXES, is_image
from headkit.adapters.system_files import count_files, is_system_name

from .dataset import Skipped

SYSTEM_FOLDER = "in a hidden or system folder"
SYSTEM_FILE = "hidden or system file"
LINK_LOOP = "link to a folder above it"
BROKEN_LINK = "link that leads nowhere"
NO_SUFFIX = "no suffix"
OTHER_SUFFIX = "unusual suffix"
NOT_REGULAR = "not a regular file"
OTHER_FORMAT = "format "
"""Beginning of the reason of an image whose format is not read; its suffix follows."""
NOT_AN_IMAGE = "not an image: "
"""Beginning of the reason of any other file; its suffix follows."""
EMPTY_FOLDER = "class folder without images"
MOST_EXAMPLES = 3
_LONGEST_SUFFIX = 10

_DIGITS = re.compile(r"(\d{1,4000})")  # int() takes no more than 4300


def natural_key(text: str) -> tuple[list[str | int], str]:
    """Return timm's natural sort key: it compares numbers by value and ignores case.

    The text itself breaks the ties that timm leaves to chance: ``A`` and ``a``, ``1`` and ``01``.
    """
    parts = _DIGITS.split(text.lower())
    return [int(part) if part.isdecimal() else part for part in parts], text


def suffix_of(path: str) -> str:
    """Return the suffix of a path in lowercase, as ``images.is_image`` sees it."""
    return os.path.splitext(path)[1].lower()  # noqa: PTH122


@dataclass
class Tally:
    """A count of skipped things by reason, with the first examples of each."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, examples: Iterable[str], count: int = 1) -> None:
        """Count ``count`` things that are skipped for a reason."""
        if count:
            self.counts[reason] += count
            known = self.examples.setdefault(reason, [])
            known += list(examples)[: MOST_EXAMPLES - len(known)]

    def add_all(self, skipped: Iterable[Skipped]) -> None:
        """Count what another listing skipped."""
        for one in skipped:
            self.add(one.reason, one.examples, one.count)

    def to_skipped(self) -> tuple[Skipped, ...]:
        """Return one entry per reason, the most frequent first."""
        return tuple(
            Skipped(reason, count, tuple(self.examples[reason]))
            for reason, count in self.counts.most_common()
        )


def folder_names(root: str) -> list[str]:
    """Return the names of the folders directly under ``root``, without hidden and system ones.

    Raises:
        DataError: The folder cannot be read.
    """
    return [entry.name for entry in _entries(root, Tally()) if _is_folder(entry)]


def find_tables(folder: Path) -> list[Path]:
    """Return the tables directly in a folder, which may hold the labels of its images."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in (".csv", ".tsv"))


def merge_skipped(*parts: Iterable[Skipped]) -> tuple[Skipped, ...]:
    """Return one entry per reason for what several listings skipped."""
    tally = Tally()
    for part in parts:
        tally.add_all(part)
    return tally.to_skipped()


@dataclass(frozen=True)
class Listing:
    """The images below a folder.

    Attributes:
        root: The folder.
        paths: Paths of the images, in timm's order.
        folders: For each image the names of the folders between ``root`` and the image.
        tops: Names of the folders directly under ``root``, without hidden and system folders.
        skipped: All other files.
        others: For each folder of ``tops``, the skipped files below it, counted by reason.
        warnings: What a user should know.
    """

    root: str
    paths: list[str]
    folders: list[tuple[str, ...]]
    tops: list[str]
    skipped: tuple[Skipped, ...]
    others: dict[str, Counter[str]]
    warnings: tuple[str, ...]


def list_folder(root: str, without: Collection[str] = ()) -> Listing:
    """List the images below ``root`` in the order of ``timm.data.readers``.

    A file is an image if its suffix is one of ``images.SUFFIXES``. Every other file below ``root``
    is counted once in ``Listing.skipped``. Links are followed, unless they lead to a folder above.

    Args:
        root: The folder.
        without: Names of folders directly under ``root`` that are left out and not counted.

    Raises:
        DataError: A folder cannot be read.
    """
    # timm also follows a link to a parent folder until the system refuses, skips folders that it
    # may not read, and sorts whole paths, which takes most of its time.
    tally = _TallyByTop()
    paths: list[str] = []
    folders: list[tuple[str, ...]] = []
    warnings: list[str] = []
    first = [entry for entry in _entries(root, tally) if entry.name not in without]
    tops = [entry.name for entry in first if _is_folder(entry)]
    open_folders = [(iter(first), (), _identity(root))]
    names: tuple[str, ...]
    while open_folders:
        entries, names, _ = open_folders[-1]
        tally.top = names[0] if names else ""
        entry = next(entries, None)
        if entry is None:
            open_folders.pop()
        elif not _is_folder(entry):
            paths.append(entry.path)
            folders.append(names)
        elif (identity := _identity(entry.path)) in (above for *_, above in open_folders):
            tally.add(LINK_LOOP, [entry.path])
            warnings.append(f"skipped {entry.path}: it links back to a folder above it")
        else:
            below = (*names, entry.name)
            tally.top = below[0]
            open_folders.append((iter(_entries(entry.path, tally)), below, identity))  # type: ignore[arg-type]
    return Listing(root, paths, folders, tops, tally.to_skipped(), tally.by_top, tuple(warnings))


@dataclass
class _TallyByTop(Tally):
    top: str = ""
    by_top: dict[str, Counter[str]] = field(default_factory=dict)

    def add(self, reason: str, examples: Iterable[str], count: int = 1) -> None:
        super().add(reason, examples, count)
        if count:
            self.by_top.setdefault(self.top, Counter())[reason] += count


def _entries(folder: str, tally: Tally) -> list[os.DirEntry[str]]:
    """Return the images and folders in a folder, sorted, and count everything else."""
    # Sorting whole paths would compare the separator as well, so the key of a folder includes it.
    kept = []
    others = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_system_name(entry.name):
                    others.append(entry)
                elif _is_folder(entry):
                    kept.append((natural_key(entry.name + os.sep), entry))
                elif is_image(entry.name) and _is_regular(entry):
                    kept.append((natural_key(entry.name), entry))
                else:
                    others.append(entry)
    except OSError as error:
        raise DataError(f"cannot read the folder {folder}: {error.strerror}") from error
    for entry in sorted(others, key=lambda entry: entry.name):
        if is_system_name(entry.name) and _is_folder(entry) and not entry.is_symlink():
            count, examples = count_files(entry.path, MOST_EXAMPLES)
            tally.add(SYSTEM_FOLDER, examples, count)
        else:
            tally.add(_reason(entry), [entry.path])
    kept.sort(key=lambda pair: pair[0])
    return [entry for _, entry in kept]


def _reason(entry: os.DirEntry[str]) -> str:
    if is_system_name(entry.name):
        return SYSTEM_FILE
    if is_image(entry.name):
        return NOT_REGULAR
    if entry.is_symlink() and not exists(entry.path):
        return BROKEN_LINK
    suffix = suffix_of(entry.name)
    if not suffix:
        return NO_SUFFIX
    if not suffix[1:].isalnum() or suffix[1:].isdecimal() or len(suffix) > _LONGEST_SUFFIX:
        return OTHER_SUFFIX
    return (OTHER_FORMAT if suffix in UNREAD_SUFFIXES else NOT_AN_IMAGE) + suffix


def _is_regular(entry: os.DirEntry[str]) -> bool:
    # A link that leads nowhere is listed: reading it fails and is counted, as for a damaged image.
    return entry.is_file() or (entry.is_symlink() and not exists(entry.path))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _identity(folder: str) -> tuple[int, int]:
    status = Path(folder).stat()
    return status.st_dev, status.st_ino
