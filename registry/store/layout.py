"""The layout of a store: keys of its objects, and their contents.

Objects in a store, under one root:

- ``store.json``: format and version of the layout.
- ``blobs/ab/abc….safetensors``: a head file; its key is its own SHA-256.
- ``heads/NAME/3.json``: record of version 3: its head file, publisher and parent; written once.
- ``heads/NAME/3.sig``: signature of version 3, if its publisher signed it.
- ``heads/NAME/prod.tag``: the version that a tag points to.
- ``heads/NAME/3.yanked``: marks version 3 as yanked: ``latest`` skips it.
- ``trash/ab/abc….safetensors``: a head file that ``gc`` took out of ``blobs`` and later deletes.

In a store of version 2, records and tags carry checksums, and records form a chain, see
``records``. Stores of version 1 are read and written without them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from headkit.adapters.heads.head import PER_CLASS, Head

from .reference import is_name, is_version

FORMAT = "headkit-store"
VERSIONS = ("1", "2")
"""Versions of the layout that are read and written. New stores have the last one."""
STORE = "store.json"
BLOBS, HEADS, TRASH = "blobs/", "heads/", "trash/"
SUFFIX, RECORD, TAG, YANKED, SIGNATURE = ".safetensors", ".json", ".tag", ".yanked", ".sig"


@dataclass(frozen=True)
class Entry:
    """A name in a store, as a listing shows it.

    Attributes:
        name: Name under which heads were published.
        latest: Number of the newest version that is not yanked; None if all are yanked.
        versions: Numbers of all versions, ascending.
        tags: Names of the tags.
        yanked: Numbers of the yanked versions.
    """

    name: str
    latest: int | None
    versions: tuple[int, ...]
    tags: tuple[str, ...]
    yanked: tuple[int, ...]


@dataclass
class NameListing:
    """The objects under one name, in no particular order.

    Attributes:
        versions: Numbers of the versions.
        tags: Names of the tags.
        yanked: Numbers of the yanked versions.
        signed: Numbers of the versions that have a signature.
        links: Keys of symbolic links, which a store must not contain.
        unknown: Keys of other objects, which a store does not contain either.
    """

    versions: list[int] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    yanked: list[int] = field(default_factory=list)
    signed: list[int] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    @property
    def latest(self) -> int | None:
        """The newest version that is not yanked."""
        return max(set(self.versions) - set(self.yanked), default=None)

    def add(self, key: str, *, is_link: bool) -> None:
        """Add the object with this key, if it is a version, its signature or mark, or a tag."""
        stem, _, suffix = key.removeprefix(HEADS).partition("/")[2].rpartition(".")
        suffix = f".{suffix}"
        if is_link:
            self.links.append(key)
        elif suffix == TAG and is_name(stem):
            self.tags.append(stem)
        elif suffix in (RECORD, YANKED, SIGNATURE) and is_version(stem):
            lists = {RECORD: self.versions, YANKED: self.yanked, SIGNATURE: self.signed}
            lists[suffix].append(int(stem))
        else:
            self.unknown.append(key)


def blob_key(digest: str) -> str:
    """Return the key of a head file."""
    return f"{BLOBS}{digest[:2]}/{digest}{SUFFIX}"


def trash_key(digest: str) -> str:
    """Return the key of a head file that ``gc`` took out."""
    return f"{TRASH}{digest[:2]}/{digest}{SUFFIX}"


def record_key(name: str, number: int) -> str:
    """Return the key of the record of a version."""
    return f"{HEADS}{name}/{number}{RECORD}"


def signature_key(name: str, number: int) -> str:
    """Return the key of the signature of a version."""
    return f"{HEADS}{name}/{number}{SIGNATURE}"


def tag_key(name: str, tag: str) -> str:
    """Return the key of a tag."""
    return f"{HEADS}{name}/{tag}{TAG}"


def encode_json(values: Mapping[str, Any]) -> bytes:
    """Return the content of an object that holds JSON values."""
    return (json.dumps(values, ensure_ascii=False, indent=1) + "\n").encode()


def describe_head(head: Head) -> dict[str, Any]:
    """Return the metadata of a head, without label names, recall and thresholds per class."""
    metadata = head.to_json()
    for name in ("label_names", "thresholds"):
        metadata.pop(name, None)
    metadata["metrics"] = {k: v for k, v in head.metrics.items() if k != PER_CLASS}
    return metadata


def format_ranges(numbers: Sequence[int]) -> str:
    """Return ``1-3, 5`` for 1, 2, 3, 5."""
    return ", ".join(_runs(numbers))


def _runs(numbers: Sequence[int]) -> Iterator[str]:
    start = last = numbers[0]
    for number in [*numbers[1:], -1]:
        if number != last + 1:
            yield f"{start}" if start == last else f"{start}-{last}"
            start = number
        last = number
