"""What lies where in a store, and what its objects say.

Objects in a store, under one root:

- ``store.json``: format and version of the layout.
- ``blobs/ab/abc….safetensors``: a head file under its own SHA-256.
- ``heads/NAME/3.json``: version 3, what it is and who made it from what; never written twice.
- ``heads/NAME/prod.tag``: the version that a tag points to.
- ``heads/NAME/3.yanked``: version 3 is no longer found without naming it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from headkit.adapters.heads.head import PER_CLASS, Head

FORMAT = "headkit-store"
VERSION = "1"
STORE = "store.json"
BLOBS, HEADS = "blobs/", "heads/"
SUFFIX, RECORD, TAG, YANKED = ".safetensors", ".json", ".tag", ".yanked"


@dataclass(frozen=True)
class Version:
    """One published head.

    Attributes:
        name: under which it was published.
        version: its number, from 1.
        digest: SHA-256 of the head file, 64 hexadecimal digits.
        size: of the head file in bytes.
        published: UTC time, ISO 8601.
        publisher: who published it.
        parent: digest of the head that it replaces or came from; empty if there is none.
        notes: free text.
        head: what the head file says of itself, label names and recall left out.
    """

    name: str
    version: int
    digest: str
    size: int
    published: str
    publisher: str
    parent: str
    notes: str
    head: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


@dataclass(frozen=True)
class Entry:
    """A name in a store, as a listing shows it.

    Attributes:
        name: under which heads were published.
        latest: number of the newest version that is not yanked; none if all are.
        versions: all numbers, ascending.
        tags: names of the tags.
        yanked: numbers of the yanked versions.
    """

    name: str
    latest: int | None
    versions: tuple[int, ...]
    tags: tuple[str, ...]
    yanked: tuple[int, ...]


@dataclass
class Listed:
    """What was found under one name, in no order; keys of symbolic links apart."""

    versions: list[int] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    yanked: list[int] = field(default_factory=list)
    links: list[str] = field(default_factory=list)

    @property
    def latest(self) -> int | None:
        """The newest version that is not yanked."""
        return max(set(self.versions) - set(self.yanked), default=None)


def sort_into(listed: Listed, key: str, last: str, is_link: bool) -> None:
    """Add the object ``last`` of a name to what was found under it."""
    stem, _, suffix = last.rpartition(".")
    suffix = f".{suffix}"
    if is_link:
        listed.links.append(key)
    elif suffix == TAG:
        listed.tags.append(stem)
    elif suffix in (RECORD, YANKED) and stem.isdecimal():
        (listed.versions if suffix == RECORD else listed.yanked).append(int(stem))


def blob_key(digest: str) -> str:
    """Return the key of a head file."""
    return f"{BLOBS}{digest[:2]}/{digest}{SUFFIX}"


def record_key(name: str, number: int) -> str:
    """Return the key of a version."""
    return f"{HEADS}{name}/{number}{RECORD}"


def tag_key(name: str, tag: str) -> str:
    """Return the key of a tag."""
    return f"{HEADS}{name}/{tag}{TAG}"


def encoded(values: Mapping[str, Any]) -> bytes:
    """Return the content of an object that holds JSON values."""
    return (json.dumps(values, ensure_ascii=False, indent=1) + "\n").encode()


def described_of(head: Head) -> dict[str, Any]:
    """Return what a head says of itself, without what it has per class."""
    described = head.to_json()
    described.pop("label_names", None)
    described["metrics"] = {k: v for k, v in head.metrics.items() if k != PER_CLASS}
    return described


def ranges(numbers: Sequence[int]) -> str:
    """Return ``1-3, 5`` for 1, 2, 3, 5."""
    return ", ".join(_runs(numbers))


def _runs(numbers: Sequence[int]) -> Iterator[str]:
    start = last = numbers[0]
    for number in [*numbers[1:], -1]:
        if number != last + 1:
            yield f"{start}" if start == last else f"{start}-{last}"
            start = number
        last = number
