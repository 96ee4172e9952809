from collections.abc import Iterator
from pathlib import Path

import pytest

from headkit import DependencyMissing, RegistryError, StoreError
from headkit.benchmarks.studies.s3_server import BUCKET, s3_server
from headkit.registry.store.local_storage import LocalStorage
from headkit.registry.store.object_storage import _is_conflict
from headkit.registry.store.open_storage import open_storage
from headkit.registry.store.storage import MAX_BYTES, Storage
from headkit.registry.store.store import HeadStore
from tests.heads import scored_head


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with s3_server() as environment, pytest.MonkeyPatch.context() as patch:
        for key, value in environment.items():
            patch.setenv(key, value)
        yield f"s3://{BUCKET}"


@pytest.fixture(params=["local", "memory", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    name = tmp_path.name
    if request.param == "local":
        return open_storage(tmp_path / "root")
    if request.param == "memory":
        return open_storage(f"memory://{name}")
    return open_storage(f"{request.getfixturevalue('s3')}/{name}")


def test_an_object_is_created_once(storage: Storage) -> None:
    storage.create("a/b.json", b"first")
    with pytest.raises(FileExistsError):
        storage.create("a/b.json", b"second")
    assert storage.read("a/b.json") == b"first"
    storage.replace("a/b.json", b"third")
    assert storage.read("a/b.json") == b"third"
    storage.refresh("a/b.json")
    assert storage.read("a/b.json") == b"third"
    assert storage.stat("a/b.json").size == 5


def test_object_that_is_too_large_is_refused(storage: Storage) -> None:
    for size, suffix in ((MAX_BYTES, "json"), (MAX_BYTES + 1, "safetensors")):
        storage.create(f"a/{size}.{suffix}", b"x" * size)
        assert len(storage.read(f"a/{size}.{suffix}")) == size
    storage.create("a/large.sig", b"x" * (MAX_BYTES + 1))
    with pytest.raises(StoreError, match=r"large\.sig has .* 1,048,576"):
        storage.read("a/large.sig")


def test_missing_objects_raise(storage: Storage) -> None:
    storage.create("a/b.json", b"x")
    for act in (storage.read, storage.delete, storage.refresh, storage.stat):
        with pytest.raises(FileNotFoundError):
            act("a/c.json")
    storage.delete("a/b.json")
    with pytest.raises(FileNotFoundError):
        storage.read("a/b.json")


def test_folders_are_listed_without_their_content(storage: Storage) -> None:
    for key in ("heads/a/1.json", "heads/a/2.json", "heads/b/1.json", "heads/file"):
        storage.create(key, b"x")
    assert sorted(storage.folders("heads/")) == ["a", "b"]
    assert storage.folders("none/") == []


def test_objects_are_listed_under_a_prefix(storage: Storage) -> None:
    assert list(storage.objects("heads/")) == []
    for key in ("heads/a/1.json", "heads/a/2.json", "heads/b/1.json", "blobs/x"):
        storage.create(key, key.encode())
    found = {one.key: one.size for one in storage.objects("heads/")}
    assert found == {"heads/a/1.json": 14, "heads/a/2.json": 14, "heads/b/1.json": 14}
    assert {one.key for one in storage.objects("heads/a/")} == {"heads/a/1.json", "heads/a/2.json"}


@pytest.mark.parametrize("key", ["", "../x", "a/../../x", "/etc/passwd", "a//b", "a/."])
def test_keys_stay_below_the_root(storage: Storage, key: str) -> None:
    for act in (storage.read, storage.delete, lambda k: storage.create(k, b"x")):
        with pytest.raises(RegistryError, match="not a valid key"):
            act(key)


def test_a_store_on_s3_behaves_like_one_on_disk(s3: str, tmp_path: Path) -> None:
    store = HeadStore(f"{s3}/team/heads")
    with pytest.raises(RegistryError, match="there is no store"):
        store.list()
    for seed in (1, 2):
        path = scored_head(seed).save(tmp_path / f"{seed}.safetensors")
        assert store.publish(path, "flowers", tags=["prod"]).version == seed
    other = HeadStore(f"{s3}/team/heads")
    assert other.read("flowers@prod") == scored_head(2).serialize()
    assert other.list()[0].versions == (1, 2)
    other.tag("flowers@1", "prod")
    assert store.resolve("flowers@prod").version == 1
    key = f"blobs/{scored_head(1).digest[:2]}/{scored_head(1).digest}.safetensors"
    content = bytearray(store.storage.read(key))
    content[-1] ^= 1
    store.storage.replace(key, bytes(content))
    with pytest.raises(RegistryError, match=r"the SHA-256 of the head file .* is .*, expected "):
        store.pull("flowers@1")
    assert len(store.verify()) == 1
    assert store.gc(grace_seconds=0, force=True) == []


def test_a_missing_bucket_is_reported(s3: str) -> None:
    with pytest.raises(RegistryError, match="no such bucket"):
        HeadStore("s3://missing/heads").publish(scored_head(1), "flowers")


def test_urls_that_fsspec_cannot_open_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RegistryError, match="cannot hold a store"):
        open_storage("nonsense://x")
    assert isinstance(open_storage("file:///tmp/x"), LocalStorage)
    assert isinstance(open_storage("local:///tmp/x"), LocalStorage)
    with pytest.raises(RegistryError, match="not a chain"):
        open_storage("simplecache::s3://bucket")
    import fsspec

    def missing(*_: object, **__: object) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(DependencyMissing, match="pip install s3fs"):
        open_storage("s3://bucket")


class _ClientError(Exception):
    """Looks like the errors of botocore, Google Cloud Storage and Azure."""

    def __init__(self, **attributes: object) -> None:
        super().__init__("the text says nothing")
        vars(self).update(attributes)


@pytest.mark.parametrize(
    ("attributes", "conflict"),
    [
        ({"response": {"Error": {"Code": "PreconditionFailed"}}}, True),
        ({"response": {"Error": {"Code": "ConditionalRequestConflict"}}}, True),
        ({"response": {"Error": {"Code": "OperationAborted"}}}, False),
        ({"code": 412}, True),
        ({"status_code": 412}, True),
        ({"code": 503}, False),
        ({}, False),
    ],
)
def test_refused_conditional_writes_are_known_by_their_code(
    attributes: dict[str, object], conflict: bool
) -> None:
    cause = _ClientError(**attributes)
    error = OSError(22, "At least one of the pre-conditions you specified did not hold")
    error.__cause__ = cause
    assert _is_conflict(cause) is conflict
    assert _is_conflict(error) is conflict
