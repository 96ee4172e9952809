import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from headkit import HeadFormatError, RegistryError, StoreError
from headkit.registry.store.records import Version
from headkit.registry.store.store import HeadStore
from tests.heads import scored_head


@pytest.fixture
def store(tmp_path: Path) -> HeadStore:
    return HeadStore(tmp_path / "store")


def publish(store: HeadStore, seed: int, name: str = "flowers", **options: object) -> Version:
    path = scored_head(seed).save(Path(store.url).parent / f"{seed}.safetensors")
    return store.publish(path, name, **options)  # type: ignore[arg-type]


def test_versions_count_up_and_record_publisher_and_parent(store: HeadStore) -> None:
    first = publish(store, 1, publisher="ada", notes="first")
    second = publish(store, 2, publisher="bob")
    assert [str(one) for one in store.versions("flowers")] == ["flowers@1", "flowers@2"]
    assert (first.publisher, first.notes, first.parent) == ("ada", "first", "")
    assert second.parent == first.digest == scored_head(1).digest
    assert first.head["backbone"]["fingerprint"] == "0" * 64
    assert first.head["metrics"] == {"accuracy": 0.51}
    assert publish(store, 3, parent="flowers@1").parent == first.digest


def test_references_lead_to_the_bytes_that_were_published(store: HeadStore) -> None:
    first, second = publish(store, 1), publish(store, 2, tags=["prod"])
    content = scored_head(1).serialize()
    assert store.read("flowers@1") == content
    assert store.read(f"sha256:{first.digest[:12]}") == content
    assert store.resolve("flowers") == store.resolve("flowers@prod") == second
    assert store.pull("flowers@1").read_bytes() == content
    assert store.load("flowers@latest").metrics["accuracy"] == 0.52
    out = Path(store.url).parent / "out.safetensors"
    assert store.pull("flowers@1", out) == out
    assert out.read_bytes() == content


def test_a_tag_moves_forward_and_back(store: HeadStore) -> None:
    publish(store, 1, tags=["prod"])
    publish(store, 2)
    store.tag("flowers@2", "prod")
    assert store.tags("flowers") == {"prod": 2}
    store.tag("flowers@1", "prod")
    assert store.resolve("flowers@prod").version == 1
    store.untag("flowers", "prod")
    with pytest.raises(RegistryError, match="no tag 'prod'; it has no tags"):
        store.resolve("flowers@prod")
    for tag in ("latest", "3", "../x"):
        with pytest.raises(RegistryError):
            store.tag("flowers@1", tag)


def test_latest_skips_a_yanked_version(store: HeadStore) -> None:
    publish(store, 1)
    publish(store, 2, tags=["prod"])
    store.yank("flowers@2")
    assert store.resolve("flowers").version == 1
    assert store.resolve("flowers@2").version == store.resolve("flowers@prod").version == 2
    with pytest.raises(RegistryError, match="yanked"):
        store.tag("flowers@2", "next")
    assert publish(store, 3).version == 3
    store.yank("flowers@2", undo=True)
    with pytest.raises(RegistryError, match="not yanked"):
        store.yank("flowers@2", undo=True)
    for version in (1, 2, 3):
        store.yank(f"flowers@{version}")
    with pytest.raises(RegistryError, match="all versions of flowers are yanked"):
        store.resolve("flowers")


def test_listing_shows_names_versions_and_tags(store: HeadStore) -> None:
    publish(store, 1, "roses")
    publish(store, 2, "flowers", tags=["prod", "next"])
    publish(store, 3, "flowers")
    store.yank("flowers@2")
    flowers, roses = store.list()
    assert (flowers.name, flowers.latest, flowers.versions) == ("flowers", 1, (1, 2))
    assert (flowers.tags, flowers.yanked) == (("next", "prod"), (2,))
    assert store.list("r*") == [roses]


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        ("flowrs", "no head 'flowrs'; nearest: flowers"),
        ("zebra", "`headkit heads list`"),
        ("flowers@7", "no version 7; it has 1-3, 5"),
        ("flowers@prd", "no tag 'prd'; its tags are prod"),
        ("sha256:" + "f" * 64, "has no head sha256:fff"),
    ],
)
def test_missing_references_are_reported_with_existing_ones(
    store: HeadStore, ref: str, message: str
) -> None:
    for seed in range(1, 6):
        publish(store, seed, tags=["prod"])
    (Path(store.url) / "heads" / "flowers" / "4.json").unlink()
    with pytest.raises(RegistryError, match=message):
        store.resolve(ref)


def test_reading_does_not_create_a_store(store: HeadStore) -> None:
    with pytest.raises(RegistryError, match="there is no store at"):
        store.list()
    assert not Path(store.url).exists()


def test_a_folder_with_other_files_does_not_become_a_store(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"x")
    path = scored_head().save(tmp_path / "h.safetensors")
    with pytest.raises(RegistryError, match="contains other files"):
        HeadStore(tmp_path).publish(path, "flowers")
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "store.json").write_text('{"format": "headkit-store", "version": "9"}')
    with pytest.raises(RegistryError, match="'version': '9'"):
        HeadStore(tmp_path / "new").list()


def test_files_that_are_not_heads_are_not_published(store: HeadStore, tmp_path: Path) -> None:
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"not a head")
    with pytest.raises(HeadFormatError, match=r"bad\.safetensors"):
        store.publish(bad, "flowers")
    with pytest.raises(HeadFormatError, match="no such file"):
        store.publish(tmp_path / "none.safetensors", "flowers")
    for name in ("../x", "Flowers", "a/b", ""):
        with pytest.raises(RegistryError, match="not a valid head name"):
            store.publish(scored_head().save(tmp_path / "h.safetensors"), name)
    assert not Path(store.url).exists()


def blob(store: HeadStore, version: Version) -> Path:
    digest = version.digest
    return Path(store.url) / "blobs" / digest[:2] / f"{digest}.safetensors"


def test_a_flipped_bit_is_refused_and_repaired_by_publishing_again(store: HeadStore) -> None:
    version = publish(store, 1)
    path = blob(store, version)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    for read in (store.read, store.pull, store.load):
        with pytest.raises(
            RegistryError, match=r"the SHA-256 of the head file .* is .*, expected "
        ):
            read("flowers@1")
    assert len(store.verify()) == 1
    publish(store, 1)
    assert store.verify() == []
    assert store.read("flowers@1") == scored_head(1).serialize()


def test_a_swapped_file_is_refused(store: HeadStore) -> None:
    one, other = publish(store, 1), publish(store, 2)
    blob(store, one).write_bytes(blob(store, other).read_bytes())
    with pytest.raises(RegistryError, match=r"the SHA-256 of the head file .* is .*, expected "):
        store.read("flowers@1")
    record = Path(store.url) / "heads" / "flowers" / "1.json"
    record.write_bytes(record.with_name("2.json").read_bytes())
    with pytest.raises(RegistryError, match=r"describes flowers@2, expected flowers@1"):
        store.resolve("flowers@1")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"name": "flowers"}', "\x00"])
def test_a_damaged_record_is_reported(store: HeadStore, content: str) -> None:
    publish(store, 1)
    (Path(store.url) / "heads" / "flowers" / "1.json").write_text(content)
    with pytest.raises(RegistryError, match=r"1\.json"):
        store.resolve("flowers@1")
    assert len(store.verify()) == 1


def test_a_record_cannot_lead_out_of_the_root(store: HeadStore) -> None:
    publish(store, 1)
    record = Path(store.url) / "heads" / "flowers" / "1.json"
    values = json.loads(record.read_text())
    del values["checksum"]
    record.write_text(json.dumps({**values, "digest": "../../../../etc/passwd"}))
    with pytest.raises(
        RegistryError, match=r"digest is '\.\./.*/etc/passwd', expected 64 hexadecimal digits"
    ):
        store.read("flowers@1")


def test_symbolic_links_are_refused(store: HeadStore, tmp_path: Path) -> None:
    version = publish(store, 1, tags=["prod"])
    path = blob(store, version)
    outside = tmp_path / "outside.safetensors"
    outside.write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(outside)
    with pytest.raises(RegistryError, match="symbolic link"):
        store.read("flowers@1")
    assert any("symbolic link" in problem for problem in store.verify())
    path.unlink()
    path.write_bytes(outside.read_bytes())
    heads = Path(store.url) / "heads"
    (heads / "flowers").rename(tmp_path / "elsewhere")
    (heads / "flowers").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RegistryError, match="symbolic link"):
        store.resolve("flowers@1")
    with pytest.raises(RegistryError, match="symbolic link"):
        publish(store, 2)


def test_first_publishers_of_a_store_do_not_refuse_each_other(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        jobs = [
            pool.submit(HeadStore(tmp_path / "store").publish, scored_head(seed), "flowers")
            for seed in range(8)
        ]
        numbers = sorted(job.result().version for job in jobs)
    assert numbers == list(range(1, 9))


def test_a_tag_of_another_name_is_refused(store: HeadStore) -> None:
    publish(store, 1, tags=["prod"])
    publish(store, 2, "roses", tags=["prod"])
    heads = Path(store.url) / "heads"
    (heads / "flowers" / "prod.tag").write_bytes((heads / "roses" / "prod.tag").read_bytes())
    with pytest.raises(StoreError, match=r"prod\.tag does not name a version"):
        store.resolve("flowers@prod")


def test_a_missing_version_is_reported(store: HeadStore) -> None:
    for seed in (1, 2, 3):
        publish(store, seed)
    (Path(store.url) / "heads" / "flowers" / "2.json").unlink()
    assert store.verify() == ["flowers@2 is missing"]


def test_gc_deletes_nothing_if_a_name_is_a_link(store: HeadStore, tmp_path: Path) -> None:
    version = publish(store, 1)
    os.utime(blob(store, version), (0, 0))
    heads = Path(store.url) / "heads"
    (heads / "flowers").rename(tmp_path / "elsewhere")
    (heads / "flowers").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="symbolic link"):
        store.gc()
    assert blob(store, version).exists()


def test_gc_deletes_old_head_files_that_no_version_names(store: HeadStore) -> None:
    kept, gone = publish(store, 1), publish(store, 2)
    (Path(store.url) / "heads" / "flowers" / "2.json").unlink()
    left = Path(store.url) / "tmp" / "half"
    left.write_bytes(b"half")
    assert store.gc() == []
    for path in (blob(store, kept), blob(store, gone), left):
        os.utime(path, (time.time() - 90_000,) * 2)
    expected = [f"blobs/{gone.digest[:2]}/{gone.digest}.safetensors", "tmp/half"]
    assert store.gc(dry_run=True) == expected
    assert blob(store, gone).exists()
    assert store.gc() == expected
    assert not blob(store, gone).exists()
    assert store.read("flowers@1") == scored_head(1).serialize()


def test_publishing_again_saves_a_head_file_from_gc(store: HeadStore) -> None:
    version = publish(store, 1)
    os.utime(blob(store, version), (time.time() - 90_000,) * 2)
    (Path(store.url) / "heads" / "flowers" / "1.json").unlink()
    publish(store, 1)
    (Path(store.url) / "heads" / "flowers" / "1.json").unlink()
    assert store.gc() == []


def test_the_command_line_publishes_finds_and_rolls_back(
    tmp_path: Path, run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADKIT_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("HEADKIT_PUBLISHER", "ada")
    for seed in (1, 2):
        path = scored_head(seed).save(tmp_path / f"{seed}.safetensors")
        status, out, _ = run("heads", "publish", path, "--name", "flowers")
        assert (status, out) == (0, f"flowers@{seed} sha256:{scored_head(seed).digest}\n")
    assert run("heads", "tag", "flowers@2", "prod")[0] == 0
    assert run("heads", "tag", "flowers@1", "prod")[:2] == (0, "flowers@prod is flowers@1\n")
    status, out, _ = run("heads", "list", "--json")
    assert json.loads(out)[0]["tags"] == ["prod"]
    status, out, _ = run("heads", "show", "flowers@prod")
    assert "publisher: ada" in out
    assert "0.52" in out
    status, out, _ = run("heads", "pull", "flowers@prod")
    assert Path(out.strip()).read_bytes() == scored_head(1).serialize()
    assert run("heads", "verify")[:2] == (0, "no problems found\n")
    assert run("heads", "yank", "flowers@2")[0] == 0
    status, out, _ = run("info", "flowers", "--json")
    assert json.loads(out)["metrics"]["accuracy"] == 0.51
    assert run("heads", "untag", "flowers@prod")[0] == 0
    status, _, err = run("heads", "show", "flowers@prod")
    assert (status, err) == (2, "error: flowers has no tag 'prod'; it has no tags\n")
    status, _, err = run("heads", "publish", path, "--name", "../x")
    assert status == 2
    assert "not a valid head name" in err
    assert run("heads", "gc", "--dry-run")[:2] == (0, "0 would be deleted\n")
    assert run("heads", "gc", "--grace-hours", "-1")[0] == 2
