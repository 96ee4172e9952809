"""Envelopes follow DSSE: an independent reader accepts them, and malformed ones are refused."""

import base64
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headkit.registry.store.signing.envelope import (
    PAYLOAD_TYPE,
    decode_envelope,
    encode_for_signing,
    seal,
)
from headkit.registry.store.signing.keys import read_private_key, read_public_key
from headkit.registry.store.signing.statement import Statement, decode_statement, encode_statement
from tests.signing_keys import write_keys

STATEMENT = Statement("flowers", 3, "0a" * 32, "1b" * 32, "s3://team/heads")


def test_bytes_that_are_signed_are_those_of_the_specification() -> None:
    # https://github.com/secure-systems-lab/dsse/blob/master/protocol.md
    found = encode_for_signing(b"hello world", "http://example.com/HelloWorld")
    assert found == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    assert encode_for_signing("ü".encode(), "ü") == b"DSSEv1 2 \xc3\xbc 2 \xc3\xbc"


def test_envelope_is_verified_without_headkit(tmp_path: Path) -> None:
    keys = write_keys(tmp_path, "key")
    content = seal(encode_statement(STATEMENT), [read_private_key(keys.private)])
    values = json.loads(content)
    assert set(values) == {"payload", "payloadType", "signatures"}
    kind, payload = values["payloadType"], base64.b64decode(values["payload"])
    signed = b" ".join(
        [b"DSSEv1", str(len(kind)).encode(), kind.encode(), str(len(payload)).encode(), payload]
    )
    (signature,) = values["signatures"]
    keys.key.public_key().verify(base64.b64decode(signature["sig"]), signed)  # raises if wrong
    assert json.loads(payload) == {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "flowers@3", "digest": {"sha256": "0a" * 32}}],
        "predicateType": "https://github.com/headkit/headkit/published-version/v1",
        "predicate": {
            "store": "s3://team/heads",
            "name": "flowers",
            "version": 3,
            "record": {"sha256": "1b" * 32},
        },
    }


def test_each_of_several_keys_signs(tmp_path: Path) -> None:
    pairs = [write_keys(tmp_path, name) for name in ("one", "two", "three")]
    content = seal(b"{}", [read_private_key(pair.private) for pair in pairs[:2]])
    envelope = decode_envelope(content)
    accepted = [envelope.is_signed_by(read_public_key(pair.public)) for pair in pairs]
    assert accepted == [True, True, False]


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["0a" * 32, "aGVsbG8=", "https://in-toto.io/Statement/v1"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=8,
)


def _change(values: Any, where: tuple[Any, ...], value: object) -> Any:
    if not where:
        return value
    if isinstance(values, list):
        return [_change(values[0], where[1:], value)]
    return {**values, where[0]: _change(values[where[0]], where[1:], value)}


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("payloadType",), "text/plain"),
        (("payload",), None),
        (("payload",), "not base64!"),
        (("payload",), "QQ"),
        (("payload",), "QR=="),
        (("signatures",), []),
        (("signatures",), [None]),
        (("signatures",), "x"),
        (("signatures", 0, "keyid"), 3),
        (("signatures", 0, "keyid"), "a\nb"),
        (("signatures", 0, "sig"), None),
        (("signatures", 0, "sig"), "é"),
    ],
)
def test_malformed_envelopes_are_refused(
    where: tuple[Any, ...], value: object, tmp_path: Path
) -> None:
    content = seal(b"{}", [read_private_key(write_keys(tmp_path, "key").private)])
    with pytest.raises(ValueError, match=r"expected|base64"):
        decode_envelope(json.dumps(_change(json.loads(content), where, value)).encode())


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b"{}", b"[" * 10_000, b" " * 2**17])
def test_content_that_is_no_envelope_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"it |envelope"):
        decode_envelope(content)


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("_type",), "https://in-toto.io/Statement/v0.1"),
        (("predicateType",), "https://slsa.dev/provenance/v1"),
        (("subject",), []),
        (("subject", 0, "digest"), {}),
        (("subject", 0, "digest", "sha256"), "0A" * 32),
        (("predicate",), []),
        (("predicate", "version"), 3.5),
        (("predicate", "version"), True),
        (("predicate", "name"), None),
        (("predicate", "record", "sha256"), ""),
    ],
)
def test_malformed_statements_are_refused(where: tuple[Any, ...], value: object) -> None:
    payload = encode_statement(STATEMENT)
    assert decode_statement(payload) == STATEMENT
    with pytest.raises(ValueError, match=r"expected|is missing"):
        decode_statement(json.dumps(_change(json.loads(payload), where, value)).encode())


def test_keys_of_later_versions_are_no_obstacle() -> None:
    values = json.loads(encode_statement(STATEMENT))
    values["predicate"]["more"] = values["more"] = [1]
    assert decode_statement(json.dumps(values).encode()) == STATEMENT


@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_content_is_read_or_refused_with_a_reason(content: bytes) -> None:
    for decode in (decode_envelope, decode_statement):
        with suppress(ValueError):
            decode(content)


@given(
    st.sampled_from(
        [("payload",), ("signatures",), ("signatures", 0), ("signatures", 0, "sig"), ("more",)]
    ),
    st.sampled_from(
        [("subject",), ("subject", 0, "digest"), ("predicate",), ("_type",), ("more",)]
    ),
    JSON,
)
def test_any_value_in_any_place_is_read_or_refused_with_a_reason(
    in_envelope: tuple[Any, ...], in_statement: tuple[Any, ...], value: object
) -> None:
    envelope = {"payloadType": PAYLOAD_TYPE, "payload": "e30=", "more": 1}
    envelope["signatures"] = [{"keyid": "SHA256:x", "sig": "aGVsbG8="}]
    changed = json.dumps(_change(envelope, in_envelope, value)).encode()
    with suppress(ValueError):
        assert decode_envelope(changed).signatures
    statement = {**json.loads(encode_statement(STATEMENT)), "more": 1}
    changed = json.dumps(_change(statement, in_statement, value)).encode()
    with suppress(ValueError):
        assert decode_statement(changed).name == "flowers" or in_statement == ("predicate",)
