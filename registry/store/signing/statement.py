"""What the signature of a version says: an in-toto statement about its head file and its record.

https://in-toto.io/Statement/v1. The statement names the version's place, too: its name, its number
and its store. So whoever can write a store cannot pass an old version off as another one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from headkit.adapters.bounds import (
    Bound,
    check_object,
    decode_json,
    describe,
    integer,
    list_of,
    one_of,
    text,
)
from headkit.registry.store.reference import MAX_VERSION

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://github.com/headkit/headkit/published-version/v1"


@dataclass(frozen=True)
class Statement:
    """A published version, as its publisher signs it.

    Attributes:
        name: Name under which the version was published.
        version: Number of the version.
        head: SHA-256 of the head file, 64 hexadecimal digits.
        record: SHA-256 of the record's bytes, 64 hexadecimal digits.
        store: Name of the store.
    """

    name: str
    version: int
    head: str
    record: str
    store: str


def encode_statement(statement: Statement) -> bytes:
    """Return a statement as JSON, the payload of an envelope."""
    values = {
        "_type": STATEMENT_TYPE,
        "subject": [
            {
                "name": f"{statement.name}@{statement.version}",
                "digest": {"sha256": statement.head},
            }
        ],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "store": statement.store,
            "name": statement.name,
            "version": statement.version,
            "record": {"sha256": statement.record},
        },
    }
    return json.dumps(values, ensure_ascii=False).encode()


def decode_statement(payload: bytes) -> Statement:
    """Read a statement. Keys that later versions may add are left out.

    Raises:
        ValueError: The payload is not a statement about a version.
    """
    values = decode_json(payload, len(payload), "its statement")
    values = check_object(values, _STATEMENT, set(_STATEMENT), "statement")
    (subject,) = values["subject"]
    subject = check_object(subject, _SUBJECT, set(_SUBJECT), "subject")
    predicate = check_object(values["predicate"], _PREDICATE, set(_PREDICATE), "predicate")
    head = check_object(subject["digest"], _DIGEST, set(_DIGEST), "subject.digest")
    record = check_object(predicate["record"], _DIGEST, set(_DIGEST), "predicate.record")
    return Statement(
        predicate["name"],
        predicate["version"],
        head["sha256"],
        record["sha256"],
        predicate["store"],
    )


def explain_difference(found: Statement, expected: Statement) -> str:
    """Return what a signature is for if it is not for the version expected; else nothing.

    Args:
        found: What was signed.
        expected: What the store has. The store is compared unless its name is empty.
    """
    place = f"{expected.name}@{expected.version}"
    if (found.name, found.version) != (expected.name, expected.version):
        return f"it is for {describe(f'{found.name}@{found.version}')}, expected {place}"
    if found.record != expected.record:
        return (
            f"the record of {place} was changed after it was signed: its SHA-256 is "
            f"{expected.record}, expected {found.record}"
        )
    if found.head != expected.head:
        return f"it is for the head file {found.head}, expected {expected.head}"
    if expected.store and found.store != expected.store:
        return (
            f"it is for the store {describe(found.store)}, expected {describe(expected.store)}; if "
            "both are the same store, pass the same --store-name (or $HEADKIT_STORE_NAME) to "
            "publish and read"
        )
    return ""


_ANY_OBJECT = Bound("an object", lambda value: isinstance(value, Mapping))
_STATEMENT = {
    "_type": one_of(STATEMENT_TYPE),
    "subject": list_of(_ANY_OBJECT, 1, 1),
    "predicateType": one_of(PREDICATE_TYPE),
    "predicate": _ANY_OBJECT,
}
_SUBJECT = {"name": text(100), "digest": _ANY_OBJECT}
_PREDICATE = {
    "store": text(4096),
    "name": text(63),
    "version": integer(1, MAX_VERSION),
    "record": _ANY_OBJECT,
}
_DIGEST = {"sha256": text(64, r"[0-9a-f]{64}", "64 hexadecimal digits")}
