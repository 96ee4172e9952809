"""Records and tags that somebody changes by hand, or that a disk changes by a bit.

At 64f666f, another publisher in a record and another version in a tag passed ``verify``. Now each
record and tag carries a checksum, and each record the hash of the one before it.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from headkit import RegistryError
from headkit.registry.store.layout import blob_key, record_key, tag_key
from headkit.registry.store.store import HeadStore
from tests.heads import scored_head


@pytest.fixture
def store(tmp_path: Path) -> HeadStore:
    return HeadStore(tmp_path / "store")


def file(store: HeadStore, key: str) -> Path:
    return Path(store.url) / key


def json_or_none(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return None


def test_every_flipped_bit_of_a_record_and_a_tag_is_found(store: HeadStore) -> None:
    store.publish(scored_head(1), "flowers", tags=["prod"])
    refs = {record_key("flowers", 1): "flowers@1", tag_key("flowers", "prod"): "flowers@prod"}
    for key, ref in refs.items():
        path = file(store, key)
        content = path.read_bytes()
        expected = store.resolve(ref)
        for position in range(len(content)):
            for bit in (0, 3, 5):
                flipped = bytearray(content)
                flipped[position] ^= 1 << bit
                path.write_bytes(flipped)
                if json_or_none(bytes(flipped)) == json_or_none(content):
                    assert store.resolve(ref) == expected  # white space
                    continue
                with pytest.raises(RegistryError):
                    store.resolve(ref)
        path.write_bytes(content)
    assert store.verify() == []


def test_record_that_was_replaced_is_found_by_the_next_one(store: HeadStore) -> None:
    for seed in range(3):
        store.publish(scored_head(seed), "flowers")
    other = HeadStore(Path(store.url).parent / "other")
    other.publish(scored_head(7), "flowers")
    forged = other.publish(scored_head(8), "flowers")
    assert store.verify() == []
    path = file(store, record_key("flowers", 2))
    path.write_bytes(file(other, record_key("flowers", 2)).read_bytes())
    blob = file(store, blob_key(forged.digest))
    blob.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(file(other, blob_key(forged.digest)).read_bytes())
    problems = store.verify()
    assert [problem.partition(":")[0] for problem in problems] == [
        "flowers@1 was changed after flowers@2 was published",
        "flowers@2 was changed after flowers@3 was published",
    ]
