"""What somebody changes in a store is found, and gc never loses what a version names."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headkit import RegistryError, StoreError
from headkit.registry.store import maintenance
from headkit.registry.store.layout import blob_key, record_key, tag_key, trash_key
from headkit.registry.store.records import Version
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


def json_or_none(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return None


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


@pytest.mark.parametrize("step", ["replace", "delete", "read"])
def test_gc_killed_at_any_step_loses_nothing(
    store: HeadStore, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A publisher names a file while gc with a forced grace of 0 takes it out and is killed."""
    store.publish(scored_head(0), "flowers")
    publisher = HeadStore(store.url)
    unnamed = scored_head(1).serialize()
    publisher._objects.write_blob(scored_head(1).digest, unnamed)
    original = getattr(store.storage, step)
    calls: list[str] = []

    def publish_then_die(key: str, *arguments: Any) -> Any:
        if calls or scored_head(1).digest not in key:
            return original(key, *arguments)
        calls.append(key)
        acknowledged.append(publisher.publish(scored_head(1), "flowers"))
        if step != "read":
            original(key, *arguments)
        raise KeyboardInterrupt

    acknowledged: list[Version] = []
    monkeypatch.setattr(store.storage, step, publish_then_die)
    with pytest.raises(KeyboardInterrupt):
        store.gc(grace_seconds=0, force=True)
    after = HeadStore(store.url)
    for _ in range(2):
        after.gc(grace_seconds=0, force=True)
    assert after.read(acknowledged[0]) == unnamed
    assert after.verify() == []


def test_gc_goes_by_the_clock_of_the_store(
    store: HeadStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = store.publish(scored_head(1), "flowers")
    file(store, record_key("flowers", 1)).unlink()
    monkeypatch.setattr(time, "time", lambda: 2**31)  # this machine's clock is years ahead
    assert store.gc() == []
    assert file(store, blob_key(version.digest)).exists()


def test_gc_refuses_a_short_grace_without_force(
    store: HeadStore, run: Callable[..., tuple[int, str, str]]
) -> None:
    store.publish(scored_head(1), "flowers")
    with pytest.raises(RegistryError, match=r"grace is 60 s, expected at least 3600 s.*--force"):
        store.gc(grace_seconds=60)
    assert run("heads", "gc", "--grace-hours", 0, "--store", store.url)[0] == 2
    assert run("heads", "gc", "--grace-hours", 0, "--force", "--store", store.url)[0] == 0
    assert maintenance.MIN_GRACE_SECONDS == 3600


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_named_pipe_in_a_store_is_refused(store: HeadStore) -> None:
    version = store.publish(scored_head(1), "flowers")
    path = file(store, blob_key(version.digest))
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(StoreError, match="is not a regular file"):
        store.read("flowers")
