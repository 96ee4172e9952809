"""Signed versions are read by whoever has the key; whatever else a store has is refused."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import headkit
from headkit import HeadStore, RegistryError, SignatureError, StoreError
from headkit.benchmarks.studies.s3_server import BUCKET, s3_server
from headkit.registry.hub import hub
from headkit.registry.resolve import load_head
from headkit.registry.store import records
from headkit.registry.store.layout import blob_key, record_key, signature_key, tag_key
from headkit.registry.store.records import Version, decode_record, encode_record
from headkit.registry.store.signing.envelope import seal
from headkit.registry.store.signing.keys import read_private_key
from tests.heads import scored_head
from tests.signing_keys import KeyPair, write_keys


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> KeyPair:
    return write_keys(tmp_path_factory.mktemp("keys"), "ada")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> KeyPair:
    return write_keys(tmp_path_factory.mktemp("keys"), "mallory")


@pytest.fixture
def store(tmp_path: Path) -> HeadStore:
    """A store without demands, in which ``flowers@1`` is signed."""
    return HeadStore(tmp_path / "store")


@pytest.fixture
def reader(store: HeadStore, keys: KeyPair) -> HeadStore:
    """The same store for a reader who demands signatures."""
    return HeadStore(store.url, verify_with=[keys.public])


def file(store: HeadStore, key: str) -> Path:
    return Path(store.url) / key


def rewrite(store: HeadStore, name: str, number: int, /, **changes: Any) -> Version:
    """Change a record as somebody can who knows the format: its checksum fits."""
    key = record_key(name, number)
    version = replace(decode_record(store.storage.read(key), name, number), **changes)
    content = encode_record(version, chained=True)
    store.storage.replace(record_key(version.name, version.version), content)
    return version


def refused(reader: HeadStore, ref: str, message: str) -> None:
    for read in (reader.resolve, reader.read, reader.pull, reader.load):
        with pytest.raises(SignatureError, match=message):
            read(ref)


def test_signed_version_is_read_with_one_of_several_keys(
    store: HeadStore, keys: KeyPair, other: KeyPair, tmp_path: Path
) -> None:
    version = store.publish(scored_head(1), "flowers", tags=["prod"], sign=keys.private)
    accepted: list[Any] = [keys.public, [keys.public], [other.public, str(keys.public)]]
    for verify_with in accepted:
        reader = HeadStore(store.url, verify_with=verify_with)
        for ref in ("flowers", "flowers@1", "flowers@prod", f"sha256:{version.digest}"):
            assert reader.resolve(ref) == version
            assert reader.read(ref) == scored_head(1).serialize()
        assert reader.load(version) == scored_head(1)
        assert reader.pull(version, tmp_path / "out.safetensors").is_file()
        assert reader.verify() == []
    assert store.verify() == []
    assert store.gc() == []


def test_publishing_without_a_key_writes_what_it_always_wrote(store: HeadStore) -> None:
    store.publish(scored_head(1), "flowers")
    names = sorted(path.name for path in (Path(store.url) / "heads" / "flowers").iterdir())
    assert names == ["1.json"]


def test_version_without_signature_is_refused(
    store: HeadStore, reader: HeadStore, keys: KeyPair
) -> None:
    store.publish(scored_head(1), "flowers", sign=keys.private)
    version = store.publish(scored_head(2), "flowers", tags=["prod"])
    for ref in ("flowers", "flowers@2", "flowers@prod", f"sha256:{version.digest}"):
        refused(reader, ref, r"flowers@2 has no signature, expected one by SHA256:.*ada\.pub")
    with pytest.raises(SignatureError, match="flowers@2 has no signature"):
        reader.tag("flowers@2", "next")
    for read in (reader.read, reader.pull, reader.load):
        with pytest.raises(SignatureError, match="flowers@2 has no signature"):
            read(version)
    (problem,) = reader.verify()
    assert problem.startswith("flowers@2 has no signature")
    assert reader.yank("flowers@2") == version
    assert reader.resolve("flowers").version == 1


def test_version_signed_with_another_key_is_refused(
    store: HeadStore, reader: HeadStore, other: KeyPair
) -> None:
    store.publish(scored_head(1), "flowers", sign=other.private)
    refused(reader, "flowers", r"flowers@1 is signed with SHA256:.*, expected SHA256:.*ada\.pub")
    path = file(store, signature_key("flowers", 1))
    values = json.loads(path.read_text())
    values["signatures"][0]["keyid"] = reader._trust.keys[0].fingerprint
    path.write_text(json.dumps(values))
    refused(reader, "flowers", "does not fit what it signs")


@pytest.mark.parametrize(
    "change",
    [
        {"notes": "harmless"},
        {"publisher": "mallory"},
        {"parent": "0" * 64},
        {"published": "2020-01-01T00:00:00Z"},
        {"previous": "0" * 64},
        {"head": {}},
        {"size": 1},
    ],
    ids=str,
)
def test_changed_record_is_refused(
    store: HeadStore, reader: HeadStore, keys: KeyPair, change: dict[str, Any]
) -> None:
    version = store.publish(scored_head(1), "flowers", sign=keys.private)
    changed = rewrite(store, "flowers", 1, **change)
    assert store.resolve("flowers") == changed != version
    refused(reader, "flowers", "the record of flowers@1 was changed after it was signed")
    with pytest.raises(SignatureError, match=r"flowers@1 is not the version that .* has"):
        reader.read(version)  # the caller has it from before the change
    assert any("was changed after it was signed" in one for one in store.verify())


def test_changed_head_is_refused(
    store: HeadStore, reader: HeadStore, keys: KeyPair, other: KeyPair
) -> None:
    version = store.publish(scored_head(1), "flowers", sign=keys.private)
    bad = store.publish(scored_head(2), "bad", sign=other.private)
    blob = file(store, blob_key(version.digest))
    blob.write_bytes(file(store, blob_key(bad.digest)).read_bytes())
    with pytest.raises(StoreError, match="the SHA-256 of the head file"):
        reader.read("flowers")
    rewrite(store, "flowers", 1, digest=bad.digest, size=bad.size)
    refused(reader, "flowers", "was changed after it was signed")


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[" * 5000, b"\xff", b"null", b" " * 2**17], ids=lambda c: str(c[:5])
)
def test_malformed_envelope_is_refused(
    store: HeadStore, reader: HeadStore, keys: KeyPair, content: bytes
) -> None:
    store.publish(scored_head(1), "flowers", sign=keys.private)
    file(store, signature_key("flowers", 1)).write_bytes(content)
    refused(reader, "flowers", r"heads/flowers/1\.sig is not a signature: ")
    for one in (store, reader):
        (problem,) = one.verify()
        assert "1.sig is not a signature" in problem
    assert store.read("flowers") == scored_head(1).serialize()  # who demands none reads none


def test_signed_payload_that_is_no_statement_is_refused(
    store: HeadStore, reader: HeadStore, keys: KeyPair
) -> None:
    store.publish(scored_head(1), "flowers")
    envelope = seal(b'{"_type": "x"}', [read_private_key(keys.private)])
    file(store, signature_key("flowers", 1)).write_bytes(envelope)
    refused(reader, "flowers", "the signature of flowers@1 cannot be read: statement.")


def test_every_flipped_bit_of_a_signature_is_found(
    store: HeadStore, reader: HeadStore, keys: KeyPair
) -> None:
    store.publish(scored_head(1), "flowers", sign=keys.private)
    path = file(store, signature_key("flowers", 1))
    content = path.read_bytes()
    start = content.index(b'"sig"')
    for position in range(len(content)):
        # Every bit of the signature itself, and one of each other byte.
        for bit in range(8) if position >= start else [position % 7]:
            flipped = bytearray(content)
            flipped[position] ^= 1 << bit
            path.write_bytes(flipped)
            with pytest.raises(SignatureError):
                reader.resolve("flowers@1")
    path.write_bytes(content)
    assert reader.resolve("flowers@1").version == 1


def test_old_version_cannot_be_passed_off_as_another_number(
    store: HeadStore, reader: HeadStore, keys: KeyPair
) -> None:
    store.publish(scored_head(1), "flowers", sign=keys.private)
    store.publish(scored_head(2), "flowers", sign=keys.private)
    rewrite(store, "flowers", 1, version=2)
    signatures = [file(store, signature_key("flowers", number)) for number in (1, 2)]
    signatures[1].write_bytes(signatures[0].read_bytes())
    refused(reader, "flowers", "it is for 'flowers@1', expected flowers@2")
    assert any("it is for 'flowers@1'" in problem for problem in store.verify())


def test_version_cannot_be_passed_off_as_another_name(
    store: HeadStore, reader: HeadStore, keys: KeyPair
) -> None:
    store.publish(scored_head(1), "flowers", sign=keys.private)
    store.publish(scored_head(2), "birds", sign=keys.private)
    rewrite(store, "flowers", 1, name="birds")
    signature = file(store, signature_key("flowers", 1)).read_bytes()
    file(store, signature_key("birds", 1)).write_bytes(signature)
    refused(reader, "birds", "it is for 'flowers@1', expected birds@1")


def test_version_of_another_store_is_refused_unless_both_have_one_name(
    store: HeadStore, keys: KeyPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.publish(scored_head(1), "flowers", sign=keys.private)
    copy = Path(store.url).rename(tmp_path / "copy")
    reader = HeadStore(copy, verify_with=keys.public)
    refused(reader, "flowers", r"it is for the store .*store', expected .*copy'.*--store-name")
    assert HeadStore(copy, verify_with=keys.public, name=store.name).load("flowers")
    named = HeadStore(tmp_path / "named", name="team heads")
    named.publish(scored_head(1), "flowers", sign=keys.private)
    monkeypatch.setenv("HEADKIT_STORE_NAME", "team heads")
    copy = Path(named.url).rename(tmp_path / "elsewhere")
    assert HeadStore(copy, verify_with=keys.public).load("flowers") == scored_head(1)
    assert HeadStore(copy).verify() == []


def test_name_of_a_directory_is_its_path_without_links(
    store: HeadStore, keys: KeyPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.publish(scored_head(1), "flowers", sign=keys.private)
    (tmp_path / "link").symlink_to(tmp_path / "store")
    monkeypatch.chdir(tmp_path)
    for url in ("store", "./x/../store", "link", f"file://{store.url}"):
        assert HeadStore(url, verify_with=keys.public).load("flowers") == scored_head(1)


def test_reference_by_content_takes_a_version_that_is_signed(
    store: HeadStore, reader: HeadStore, keys: KeyPair
) -> None:
    store.publish(scored_head(1), "flowers", sign=keys.private)
    forged = store.publish(scored_head(1), "a-first")
    assert str(store.resolve(f"sha256:{forged.digest}")) == "a-first@1"
    assert str(reader.resolve(f"sha256:{forged.digest}")) == "flowers@1"


def test_publisher_killed_before_it_signs_leaves_a_version_that_is_refused(
    store: HeadStore, reader: HeadStore, keys: KeyPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store.storage, "replace", die)
        with pytest.raises(KeyboardInterrupt):
            store.publish(scored_head(1), "flowers", tags=["prod"], sign=keys.private)
    refused(reader, "flowers", "flowers@1 has no signature")
    assert store.verify() == []
    store.publish(scored_head(1), "flowers", tags=["prod"], sign=keys.private)
    assert reader.resolve("flowers@prod").version == 2


def test_simultaneous_publishers_each_sign_their_own_version(
    store: HeadStore, reader: HeadStore, keys: KeyPair
) -> None:
    with ThreadPoolExecutor(8) as pool:
        jobs = [
            pool.submit(
                HeadStore(store.url).publish, scored_head(seed), "flowers", sign=keys.private
            )
            for seed in range(8)
        ]
        published = [job.result() for job in jobs]
    assert sorted(version.version for version in published) == list(range(1, 9))
    for seed, version in enumerate(published):
        assert reader.load(str(version)) == scored_head(seed)
    assert reader.verify() == []


def test_signature_without_version_is_reported(store: HeadStore, keys: KeyPair) -> None:
    store.publish(scored_head(1), "flowers", sign=keys.private)
    store.publish(scored_head(2), "flowers", sign=keys.private)
    file(store, record_key("flowers", 2)).unlink()
    assert store.verify() == ["flowers@2 is signed, but missing"]


def test_signature_that_waits_for_a_number_is_replaced(
    store: HeadStore, reader: HeadStore, keys: KeyPair
) -> None:
    store.publish(scored_head(1), "flowers", sign=keys.private)
    file(store, signature_key("flowers", 2)).write_text("{}")
    store.publish(scored_head(2), "flowers", sign=keys.private)
    assert reader.load("flowers") == scored_head(2)


def test_tags_are_not_signed(store: HeadStore, reader: HeadStore, keys: KeyPair) -> None:
    """What the documents say: whoever can write a store decides which signed version is read."""
    store.publish(scored_head(1), "flowers", sign=keys.private)
    store.publish(scored_head(2), "flowers", tags=["prod"], sign=keys.private)
    tag = records.Tag("flowers", "prod", 1)
    store.storage.replace(tag_key("flowers", "prod"), records.encode_tag(tag, chained=True))
    assert reader.resolve("flowers@prod").version == 1


def test_store_of_version_1_takes_signatures(
    store: HeadStore, reader: HeadStore, keys: KeyPair
) -> None:
    Path(store.url).mkdir()
    file(store, "store.json").write_text('{"format": "headkit-store", "version": "1"}')
    store.publish(scored_head(1), "flowers", sign=keys.private)
    assert reader.load("flowers") == scored_head(1)
    path = file(store, record_key("flowers", 1))
    values = json.loads(path.read_text())
    assert "checksum" not in values
    path.write_text(json.dumps({**values, "notes": "changed"}))
    assert store.resolve("flowers").notes == "changed"
    refused(reader, "flowers", "was changed after it was signed")
    path.write_text(json.dumps(values))
    refused(reader, "flowers", "was changed after it was signed")  # other bytes
    assert store.verify() != []


def test_bad_key_publishes_nothing(store: HeadStore, keys: KeyPair, tmp_path: Path) -> None:
    for key in (tmp_path / "missing", keys.public):
        with pytest.raises(SignatureError):
            store.publish(scored_head(1), "flowers", sign=key)
    assert not Path(store.url).exists()


def test_values_that_nobody_could_read_are_not_published(
    store: HeadStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = store.publish(scored_head(1), "flowers")
    for notes, publisher in (("x" * 100_001, "ada"), ("", "x" * 1001)):
        with pytest.raises(RegistryError, match="cannot publish flowers: record"):
            store.publish(scored_head(2), "flowers", notes=notes, publisher=publisher)
    monkeypatch.setenv("HEADKIT_PUBLISHER", "x" * 1001)
    with pytest.raises(RegistryError, match="cannot set flowers@prod: tag"):
        store.tag("flowers", "prod")
    assert store.resolve("flowers") == version
    assert store.verify() == []


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with s3_server() as environment, pytest.MonkeyPatch.context() as patch:
        for key, value in environment.items():
            patch.setenv(key, value)
        yield f"s3://{BUCKET}/heads"


def test_versions_on_s3_are_signed_and_verified(s3: str, keys: KeyPair, other: KeyPair) -> None:
    store = HeadStore(s3)
    store.publish(scored_head(1), "flowers", tags=["prod"], sign=keys.private)
    store.publish(scored_head(2), "flowers")
    reader = HeadStore(f"{s3}/", verify_with=keys.public)
    assert reader.load("flowers@prod") == scored_head(1)
    refused(reader, "flowers", "flowers@2 has no signature")
    stranger = HeadStore(s3, verify_with=other.public)
    refused(stranger, "flowers@prod", "flowers@1 is signed with")
    rewrite(store, "flowers", 1, notes="changed")
    refused(reader, "flowers@prod", "was changed after it was signed")
    assert len(reader.verify()) == 3  # the chain names it, too


def test_environment_demands_signatures_of_every_function(
    store: HeadStore, keys: KeyPair, other: KeyPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.publish(scored_head(1), "flowers", sign=keys.private)
    store.publish(scored_head(2), "birds")
    monkeypatch.setenv("HEADKIT_STORE", store.url)
    monkeypatch.setenv("HEADKIT_VERIFY_WITH", str(keys.public))
    assert load_head("flowers") == scored_head(1)
    for read in (load_head, headkit.info):
        with pytest.raises(SignatureError, match=r"^birds@1 has no signature"):
            read("birds")
    with pytest.raises(SignatureError, match="heads on the Hub have none"):
        hub.pull("hf://user/flowers")
    monkeypatch.setenv("HEADKIT_VERIFY_WITH", str(other.public))
    with pytest.raises(SignatureError, match="flowers@1 is signed with"):
        load_head("flowers")
    monkeypatch.setenv("HEADKIT_VERIFY_WITH", str(keys.public.with_name("missing.pub")))
    with pytest.raises(SignatureError, match="cannot read the key"):
        load_head("flowers")


def test_the_command_line_signs_and_verifies(
    tmp_path: Path,
    keys: KeyPair,
    other: KeyPair,
    run: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HEADKIT_STORE", str(tmp_path / "store"))
    path = scored_head(1).save(tmp_path / "1.safetensors")
    publish = ("heads", "publish", path, "--name", "flowers")
    assert run(*publish, "--sign", keys.private, "--store-name", "team")[0] == 0
    verify_with = ("--verify-with", other.public, "--verify-with", keys.public)
    pull = ("heads", "pull", "flowers", *verify_with)
    assert run(*pull, "--store-name", "team")[0] == 0
    status, _, err = run(*pull)
    assert (status, "is for the store 'team'" in err, err.count("\n")) == (2, True, 1)
    verify = ("heads", "verify", "--store-name", "team")
    assert run(*verify, *verify_with)[:2] == (0, "no problems found\n")
    status, out, _ = run(*verify, "--verify-with", other.public)
    assert (status, out.startswith("flowers@1 is signed with SHA256:")) == (1, True)
    assert run(*publish, "--sign", keys.public)[0] == 2
    status, _, err = run("heads", "pull", "hf://user/flowers", "--verify-with", keys.public)
    assert (status, "heads on the Hub have no signatures" in err) == (2, True)
