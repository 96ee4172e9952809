"""What somebody changes in a store is found, and gc never loses what a version names."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headkit import RegistryError
from headkit.registry.store import maintenance
from headkit.registry.store.layout import blob_key, record_key, tag_key, trash_key
from headkit.registry.store.store import HeadStore
from tests.heads import scored_head

DAY = 24 * 3600


@pytest.fixture
def store(tmp_path: Path) -> HeadStore:
    return HeadStore(tmp_path / "store")


def file(store: HeadStore, key: str) -> Path:
    return Path(store.url) / key


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def age(store: HeadStore, seconds: float) -> None:
    """Set the age of all objects."""
    for path in Path(store.url).rglob("*"):
        if path.is_file():
            os.utime(path, (time.time() - seconds,) * 2)


def test_store_of_version_1_is_read_and_written_without_checksums(
    store: HeadStore, run: Callable[..., tuple[int, str, str]]
) -> None:
    Path(store.url).mkdir()
    old = {"format": "headkit-store", "version": "1"}
    file(store, "store.json").write_text(json.dumps(old))
    store.publish(scored_head(1), "flowers", tags=["prod"])
    values = json.loads(file(store, record_key("flowers", 1)).read_text())
    assert not {"checksum", "previous"} & set(values)
    assert set(json.loads(file(store, tag_key("flowers", "prod")).read_text())) == {
        "name",
        "tag",
        "version",
        "at",
        "by",
    }
    assert store.resolve("flowers@prod").version == 1
    assert (store.verify(), store.unchained()) == ([], ["flowers@1"])
    status, out, _ = run("heads", "verify", "--store", store.url)
    assert (status, "no checksum" in out, "flowers@1" in out) == (0, True, True)
    assert run("heads", "upgrade", "--store", store.url)[0] == 0
    store = HeadStore(store.url)
    store.publish(scored_head(2), "flowers")
    assert (store.verify(), store.unchained()) == ([], ["flowers@1"])
    change(file(store, record_key("flowers", 1)), publisher="mallory")
    assert len(store.verify()) == 1


def test_head_file_that_gc_takes_out_waits_in_the_trash(store: HeadStore) -> None:
    version = store.publish(scored_head(1), "flowers")
    record = file(store, record_key("flowers", 1))
    content = record.read_bytes()
    record.unlink()
    age(store, 2 * DAY)
    assert store.gc() == [blob_key(version.digest)]
    assert not file(store, blob_key(version.digest)).exists()
    assert store.gc(grace_seconds=0, force=True) == []  # an hour in the trash, whatever the grace
    # The record of a publisher who was too slow: nothing is lost.
    record.write_bytes(content)
    assert store.read("flowers@1") == scored_head(1).serialize()
    assert file(store, blob_key(version.digest)).exists()
    record.unlink()
    age(store, 2 * DAY)
    assert store.gc() == [blob_key(version.digest)]
    age(store, 2 * DAY)
    assert store.gc() == [trash_key(version.digest)]
    assert store.verify() == []


def test_gc_refuses_a_short_grace_without_force(
    store: HeadStore, run: Callable[..., tuple[int, str, str]]
) -> None:
    store.publish(scored_head(1), "flowers")
    with pytest.raises(RegistryError, match=r"grace is 60 s, expected at least 3600 s.*--force"):
        store.gc(grace_seconds=60)
    assert run("heads", "gc", "--grace-hours", 0, "--store", store.url)[0] == 2
    assert run("heads", "gc", "--grace-hours", 0, "--force", "--store", store.url)[0] == 0
    assert maintenance.MIN_GRACE_SECONDS == 3600
