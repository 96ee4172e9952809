"""Records of a store that are no records, or whose values have other types.

At 64f666f, they were read without a schema: ``digest: null`` and JSON that is nested deeply were
raw errors, a size of -1 was accepted, and one record with the number 30,000,000 made ``verify``
take 4.7 GB. Now a record is read through a schema, and missing numbers are ranges.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headkit import StoreError
from headkit.registry.store.layout import record_key, tag_key
from headkit.registry.store.store import HeadStore
from tests.heads import scored_head


@pytest.fixture
def store(tmp_path: Path) -> HeadStore:
    return HeadStore(tmp_path / "store")


def file(store: HeadStore, key: str) -> Path:
    return Path(store.url) / key


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("digest", None),
        ("digest", "A" * 64),
        ("version", 1.0),
        ("version", True),
        ("size", -1),
        ("published", "yesterday"),
        ("publisher", ["x"]),
        ("publisher", "x" * 1001),
        ("head", []),
        ("parent", "../x"),
    ],
)
def test_record_with_a_value_of_another_type_is_refused(
    store: HeadStore, key: str, value: Any
) -> None:
    store.publish(scored_head(1), "flowers")
    path = file(store, record_key("flowers", 1))
    values = json.loads(path.read_text())
    del values["checksum"]
    path.write_text(json.dumps({**values, key: value}))
    with pytest.raises(StoreError, match="is not a record of a version: "):
        store.resolve("flowers@1")
    (problem,) = store.verify()
    assert "1.json is not a record" in problem


@pytest.mark.parametrize("content", [b"[" * 100_000, b"\xff", b"[]", b"{}", b"", b" " * 2**21])
def test_record_that_is_no_record_is_refused(
    store: HeadStore, content: bytes, run: Callable[..., tuple[int, str, str]]
) -> None:
    store.publish(scored_head(1), "flowers", tags=["prod"])
    file(store, record_key("flowers", 1)).write_bytes(content)
    file(store, tag_key("flowers", "prod")).write_bytes(content)
    for ref in ("flowers", "flowers@1", "flowers@prod"):
        with pytest.raises(StoreError):
            store.resolve(ref)
    assert len(store.verify()) == 2
    status, out, err = run("heads", "verify", "--store", store.url, "--json")
    assert (status, len(json.loads(out)["problems"]), err) == (1, 2, "")


def test_version_of_a_large_number_takes_no_memory(store: HeadStore) -> None:
    store.publish(scored_head(1), "flowers")
    values = json.loads(file(store, record_key("flowers", 1)).read_text())
    del values["checksum"]
    number = 999_999_999
    file(store, record_key("flowers", number)).write_text(json.dumps({**values, "version": number}))
    start = time.monotonic()
    assert store.verify() == ["flowers@2-999999998 is missing"]
    assert time.monotonic() - start < 5
    folder = file(store, "heads/flowers")
    (folder / f"{'9' * 200}.json").write_text("{}")
    (folder / "0.json").write_text("{}")
    (file(store, "heads") / "Not A Name").mkdir()
    (file(store, "heads") / "Not A Name" / "1.json").write_text("{}")
    assert [problem.rpartition("/")[2] for problem in store.verify()[1:]] == [
        "1.json is not an object of a store",
        "0.json is not an object of a store",
        f"{'9' * 200}.json is not an object of a store",
    ]
    assert [entry.name for entry in store.list()] == ["flowers"]
