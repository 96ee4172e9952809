"""An object store that hangs, answers late, or fails although it has done what was asked."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import botocore.retryhandler
import pytest

from headkit import StoreError
from headkit.benchmarks.studies.s3_server import BUCKET, s3_server
from headkit.benchmarks.studies.security.proxy import BY_TURNS, Proxy
from headkit.registry.store.store import HeadStore
from tests.heads import scored_head


@pytest.fixture(scope="module")
def proxy() -> Iterator[Proxy]:
    with s3_server() as environment, pytest.MonkeyPatch.context() as patch:
        proxy = Proxy(environment["AWS_ENDPOINT_URL"], ["pass"])
        for key, value in {**environment, "AWS_ENDPOINT_URL": proxy.url}.items():
            patch.setenv(key, value)
        # The client of S3 would pause for seconds between its attempts.
        patch.setattr(botocore.retryhandler, "delay_exponential", lambda *_, **__: 0.02)
        yield proxy
        proxy.close()


@pytest.fixture
def store(proxy: Proxy, tmp_path: Path) -> HeadStore:
    proxy.set_modes("pass")
    store = HeadStore(f"s3://{BUCKET}/{tmp_path.name}")
    store.publish(scored_head(1), "flowers", tags=["prod"])
    return store


def test_a_publisher_knows_its_own_record_when_the_answer_is_lost(
    store: HeadStore, proxy: Proxy
) -> None:
    proxy.set_modes("reset_after", "pass", methods=["PUT"])
    published = [store.publish(scored_head(seed), "flowers").version for seed in (2, 3, 2)]
    assert proxy.counts["failed"] > 3
    proxy.set_modes("pass")
    assert published == [2, 3, 4]
    assert [one.version for one in store.versions("flowers")] == [1, 2, 3, 4]
    assert store.verify() == []


def test_two_publishers_of_the_same_head_get_two_versions(
    store: HeadStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, other = store.storage.create, HeadStore(store.url)

    def publish_first(key: str, content: bytes) -> None:
        monkeypatch.setattr(store.storage, "create", original)
        if key.endswith("/2.json"):
            assert other.publish(scored_head(2), "flowers", publisher="ada").version == 2
        else:
            monkeypatch.setattr(store.storage, "create", publish_first)
        original(key, content)

    monkeypatch.setattr(store.storage, "create", publish_first)
    assert store.publish(scored_head(2), "flowers", publisher="ada").version == 3


def test_every_writer_works_when_every_third_request_fails(
    store: HeadStore, proxy: Proxy, tmp_path: Path
) -> None:
    proxy.set_modes(*BY_TURNS)
    before = proxy.counts["failed"]
    other = HeadStore(store.url)
    assert other.publish(scored_head(2), "flowers", tags=["prod", "next"]).version == 2
    other.tag("flowers@1", "prod")
    other.untag("flowers", "next")
    other.yank("flowers@2")
    assert other.resolve("flowers").version == 1
    other.yank("flowers@2", undo=True)
    other.upgrade()
    assert other.gc(grace_seconds=0, force=True) == []
    path = other.pull("flowers@2", tmp_path / "head.safetensors")
    assert path.read_bytes() == scored_head(2).serialize()
    assert other.verify() == []
    assert proxy.counts["failed"] > before
    proxy.set_modes("pass")
    assert store.tags("flowers") == {"prod": 1}


WRITERS: dict[str, Callable[[HeadStore, Path], object]] = {
    "publish": lambda store, _: store.publish(scored_head(5), "flowers"),
    "tag": lambda store, _: store.tag("flowers@1", "next"),
    "untag": lambda store, _: store.untag("flowers", "prod"),
    "yank": lambda store, _: store.yank("flowers@1"),
    "gc": lambda store, _: store.gc(),
    "pull": lambda store, folder: store.pull("flowers@1", folder / "head.safetensors"),
}


@pytest.mark.parametrize("mode", ["hangs", "503", "reset_before"])
@pytest.mark.parametrize("name", WRITERS)
def test_a_store_that_never_answers_is_an_error_in_time(
    name: str,
    mode: str,
    store: HeadStore,
    proxy: Proxy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(store.storage, "deadlines", (1, 1))
    (tmp_path / "head.safetensors").write_bytes(b"old")
    proxy.set_modes(mode)
    started = time.monotonic()
    with pytest.raises(StoreError, match="s3://") as raised:
        WRITERS[name](store, tmp_path)
    assert time.monotonic() - started < 10
    assert mode != "hangs" or "did not answer in 1 s" in str(raised.value)
    assert (tmp_path / "head.safetensors").read_bytes() == b"old"
    proxy.set_modes("pass")
    assert HeadStore(store.url).verify() == []
    assert HeadStore(store.url).tags("flowers") == {"prod": 1}
