"""DSSE envelopes: a payload, and signatures of it with keys that the envelope names.

https://github.com/secure-systems-lab/dsse, version 1. headkit always writes ``keyid``, and reads a
signature only with the key that it names.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from headkit.adapters.bounds import Bound, check_object, decode_json, list_of, one_of, text

from .keys import PrivateKey, PublicKey

PAYLOAD_TYPE = "application/vnd.in-toto+json"
"""Type of a payload that is an in-toto statement."""
MAX_BYTES = 2**16
"""Maximum size of an envelope in bytes."""


@dataclass(frozen=True)
class Envelope:
    """What an envelope holds.

    Attributes:
        payload: What was signed.
        signatures: Signatures by the fingerprints of their keys.
    """

    payload: bytes
    signatures: Mapping[str, bytes]

    def is_signed_by(self, key: PublicKey) -> bool:
        """Return True if the envelope has a signature of its payload with this key."""
        signature = self.signatures.get(key.fingerprint)
        return signature is not None and key.accepts(signature, encode_for_signing(self.payload))


def encode_for_signing(payload: bytes, payload_type: str = PAYLOAD_TYPE) -> bytes:
    """Return what is signed, the pre-authentication encoding (PAE) of DSSE."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def seal(payload: bytes, keys: Sequence[PrivateKey]) -> bytes:
    """Sign a payload with each key; return the envelope as JSON."""
    message = encode_for_signing(payload)
    values = {
        "payloadType": PAYLOAD_TYPE,
        "payload": base64.b64encode(payload).decode(),
        "signatures": [
            {"keyid": key.fingerprint, "sig": base64.b64encode(key.sign(message)).decode()}
            for key in keys
        ],
    }
    return (json.dumps(values, indent=1) + "\n").encode()


def decode_envelope(content: bytes) -> Envelope:
    """Read an envelope; its signatures are not checked.

    Raises:
        ValueError: The content is not an envelope.
    """
    values = decode_json(content, MAX_BYTES)
    values = check_object(values, _ENVELOPE, set(_ENVELOPE), "envelope")
    signatures = {}
    for one in values["signatures"]:
        one = check_object(one, _SIGNATURE, set(_SIGNATURE), "signature")
        signatures[one["keyid"]] = _decode_base64(one["sig"])
    return Envelope(_decode_base64(values["payload"]), signatures)


def _decode_base64(value: str) -> bytes:
    # DSSE lets a writer choose the alphabet. Only one text stands for the same bytes, so that a
    # changed bit is never overlooked.
    standard = value.translate(str.maketrans("-_", "+/"))
    try:
        decoded = base64.b64decode(standard, validate=True)
    except (ValueError, binascii.Error) as error:
        raise ValueError(f"it has a value that is not base64: {error}") from error
    if base64.b64encode(decoded).decode() != standard:
        raise ValueError("it has a value that is not base64: its last bits are not zero")
    return decoded


_ENVELOPE = {
    "payloadType": one_of(PAYLOAD_TYPE),
    "payload": text(MAX_BYTES),
    "signatures": list_of(Bound("an object", lambda value: isinstance(value, Mapping)), 1, 16),
}
_SIGNATURE = {
    "keyid": text(100, r"[!-~]+", "the fingerprint of a key"),
    "sig": text(1000),
}
