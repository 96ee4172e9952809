"""Write and read the records of versions and the tags of a store; nothing in them is trusted.

Each carries the SHA-256 of its other values, so a change that is not meant is found. Each record
also names the SHA-256 of the record before it, so a record that somebody replaces is found, too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from headkit.adapters.bounds import Bound, check_object, decode_json, integer, number, text

from .layout import encode_json
from .reference import MAX_VERSION, is_version

MAX_BYTES = 2**20
"""Maximum size of a record or a tag in bytes."""
CHECKSUM = "checksum"
_TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)"


@dataclass(frozen=True)
class Version:
    """One published head.

    Attributes:
        name: Name under which it was published.
        version: Number of the version, from 1.
        digest: SHA-256 of the head file, 64 hexadecimal digits.
        size: Size of the head file in bytes.
        published: UTC time of publication, ISO 8601.
        publisher: Who published it.
        parent: Digest of the head that it replaces or was made from; empty if it has no parent.
        notes: Free text.
        head: Metadata of the head file, without label names and recall per class.
        previous: SHA-256 of the record of the version before it; empty for the first version, and
            in a store of version 1.
        nonce: Random digits that no other record has; empty in a store of version 1.
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
    previous: str = ""
    nonce: str = ""

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


@dataclass(frozen=True)
class Tag:
    """A tag of a name.

    Attributes:
        name: Name under which the heads were published.
        tag: Name of the tag.
        version: Number of the version that the tag points to.
        at: UTC time at which it was set, ISO 8601.
        by: Who set it.
        shares: Shares of the requests that versions get, by the number of the version as text;
            empty if ``version`` gets all. A reader that knows no shares uses ``version``.
        shadow: Number of a version that computes the same requests without answering them; 0 if
            there is none. A reader that knows no shadows ignores it.
    """

    name: str
    tag: str
    version: int
    at: str = ""
    by: str = ""
    shares: Mapping[str, float] = field(default_factory=dict)
    shadow: int = 0


def encode_record(version: Version, *, chained: bool) -> bytes:
    """Return the content of a record; without a checksum and a chain for a store of version 1."""
    values = asdict(version)
    if not chained:
        del values["previous"], values["nonce"]
        return encode_json(values)
    return encode_json(_with_checksum(values))


def encode_tag(tag: Tag, *, chained: bool) -> bytes:
    """Return the content of a tag; without a checksum for a store of version 1."""
    values = asdict(tag)
    for name in ("shares", "shadow"):
        if not values[name]:
            del values[name]
    return encode_json(_with_checksum(values) if chained else values)


def decode_record(content: bytes, name: str, number: int) -> Version:
    """Read the record of version ``number`` of ``name``.

    Raises:
        ValueError: The content is not such a record, or it was changed.
    """
    values = _decode(content, _RECORD, _REQUIRED, "record")
    if (values["name"], values["version"]) != (name, number):
        raise ValueError(
            f"it describes {values['name']}@{values['version']}, expected {name}@{number}"
        )
    return Version(**values)


def decode_tag(content: bytes, name: str, tag: str) -> Tag:
    """Read a tag of a name.

    Raises:
        ValueError: The content is not that tag, or it was changed.
    """
    values = _decode(content, _TAG, {"name", "tag", "version"}, "tag")
    if (values["name"], values["tag"]) != (name, tag):
        raise ValueError(f"it is the tag {values['name']}@{values['tag']}, expected {name}@{tag}")
    return Tag(**values)


def is_chained(content: bytes) -> bool:
    """Return True if a record has a checksum. ``verify`` reports one that is damaged."""
    try:
        values = json.loads(content)
    except (ValueError, RecursionError):
        return True
    return isinstance(values, dict) and CHECKSUM in values


def _with_checksum(values: dict[str, Any]) -> dict[str, Any]:
    return {**values, CHECKSUM: _checksum(values)}


def _checksum(values: Mapping[str, Any]) -> str:
    canonical = json.dumps(values, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()


def _decode(
    content: bytes, checks: Mapping[str, Bound], required: set[str], where: str
) -> dict[str, Any]:
    values = decode_json(content, MAX_BYTES)
    if not isinstance(values, dict):
        raise ValueError(f"it is a JSON {type(values).__name__}, expected an object")
    checksum = values.pop(CHECKSUM, None)
    if checksum is not None and checksum != _checksum(values):
        raise ValueError("it was changed: its checksum does not match its values")
    unknown = sorted(set(values) - set(checks))
    if unknown and checksum is None:
        # Otherwise, a flipped bit in the word "checksum" would take the check away.
        raise ValueError(f"it has the unknown key {unknown[0]!r:.100} and no checksum")
    return check_object(values, checks, required, where)


_VERSION = integer(1, MAX_VERSION)
_DIGEST = text(64, r"[0-9a-f]{64}", "64 hexadecimal digits")
_DIGEST_OR_EMPTY = text(64, r"[0-9a-f]{64}|", "64 hexadecimal digits, or nothing")
_RECORD: dict[str, Bound] = {
    "name": text(63),
    "version": _VERSION,
    "digest": _DIGEST,
    "size": integer(1, 2**40),
    "published": text(64, _TIME, "a UTC time, ISO 8601"),
    "publisher": text(1000),
    "parent": _DIGEST_OR_EMPTY,
    "notes": text(100_000),
    "head": Bound("an object", lambda value: isinstance(value, dict)),
    "previous": _DIGEST_OR_EMPTY,
    "nonce": text(64, r"[0-9a-f]*", "hexadecimal digits"),
}
_REQUIRED = {f.name for f in fields(Version)} - {"previous", "nonce"}
_TAG: dict[str, Bound] = {
    "name": text(63),
    "tag": text(63),
    "version": _VERSION,
    "at": text(100),
    "by": text(1000),
    "shares": Bound(
        "shares from 0 to 1 by the number of a version",
        lambda value: (
            isinstance(value, dict)
            and all(map(is_version, value))
            and all(map(number(0, 1).accepts, value.values()))
        ),
    ),
    "shadow": integer(0, MAX_VERSION),
}
