"""Sign the versions of a store, and check their signatures."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from headkit.adapters.errors import SignatureError
from headkit.registry.store.layout import signature_key
from headkit.registry.store.objects import Objects
from headkit.registry.store.records import Version

from .envelope import Envelope, decode_envelope, seal
from .keys import PrivateKey, PublicKey, read_public_keys
from .statement import Statement, decode_statement, encode_statement, explain_difference

VERIFY_WITH = "HEADKIT_VERIFY_WITH"
"""Environment variable with paths of public keys, separated as those in ``$PATH``."""


@dataclass(frozen=True)
class Trust:
    """Whose versions a reader takes from a store.

    Attributes:
        keys: Keys of which one must have signed a version; empty if no signature is needed.
        store: Name of the store, which signatures carry.
    """

    keys: tuple[PublicKey, ...]
    store: str

    def check(self, objects: Objects, version: Version) -> Version:
        """Return a version unchanged if one of the keys signed it, or if no signature is needed.

        Raises:
            SignatureError: It has no such signature, or it is not what the store has.
        """
        if not self.keys:
            return version
        content, found = objects.read_record_bytes(version.name, version.version)
        if found != version:
            raise SignatureError(f"{version} is not the version that {objects.url} has")
        envelope = _read_envelope(objects, version)
        if envelope is None:
            raise SignatureError(
                f"{version} has no signature, expected one by {self._names()}: publish it again "
                "with --sign, or check the store. If it is being published right now, try again"
            )
        if not any(map(envelope.is_signed_by, self.keys)):
            known = [key for key in self.keys if key.fingerprint in envelope.signatures]
            if known:
                raise SignatureError(
                    f"the signature of {version} with {known[0]} does not fit what it signs: the "
                    "signature or its statement was changed"
                )
            raise SignatureError(
                f"{version} is signed with {', '.join(envelope.signatures)}, expected "
                f"{self._names()}"
            )
        _check_statement(envelope, version, content, self.store)
        return version

    def explain_problem(self, objects: Objects, version: Version) -> str:
        """Return what is wrong with the signature of a version, or nothing.

        Without keys, a missing signature is no problem, and the signature itself cannot be checked:
        only whether it is for this version.
        """
        try:
            if self.keys:
                self.check(objects, version)
                return ""
            envelope = _read_envelope(objects, version)
            if envelope is not None:
                content, _ = objects.read_record_bytes(version.name, version.version)
                _check_statement(envelope, version, content, "")
        except SignatureError as error:
            return str(error)
        return ""

    def _names(self) -> str:
        return " or ".join(map(str, self.keys))


def open_trust(verify_with: Sequence[str | Path] | str | Path | None, store: str) -> Trust:
    """Return whose versions a reader takes.

    Args:
        verify_with: Paths of public keys. Default: those in ``$HEADKIT_VERIFY_WITH``.
        store: Name of the store.

    Raises:
        SignatureError: A key cannot be used.
        DependencyMissing: ``cryptography`` is not installed.
    """
    if isinstance(verify_with, str | Path):
        verify_with = [verify_with]
    paths = verify_with or os.environ.get(VERIFY_WITH, "").split(os.pathsep)
    return Trust(read_public_keys([path for path in paths if str(path)]), store)


def sign_version(objects: Objects, version: Version, key: PrivateKey, store: str) -> None:
    """Sign a version that was just published, and write its signature."""
    statement = _describe(version, objects.encode_record(version), store)
    envelope = seal(encode_statement(statement), [key])
    # The number is the publisher's own. What stands there is not the signature of its version.
    objects.storage.replace(signature_key(version.name, version.version), envelope)


def _read_envelope(objects: Objects, version: Version) -> Envelope | None:
    key = signature_key(version.name, version.version)
    try:
        content = objects.storage.read(key)
    except FileNotFoundError:
        return None
    try:
        return decode_envelope(content)
    except ValueError as error:
        raise SignatureError(f"{objects.url}/{key} is not a signature: {error}") from error


def _check_statement(envelope: Envelope, version: Version, record: bytes, store: str) -> None:
    try:
        found = decode_statement(envelope.payload)
    except ValueError as error:
        raise SignatureError(f"the signature of {version} cannot be read: {error}") from error
    problem = explain_difference(found, _describe(version, record, store))
    if problem:
        raise SignatureError(f"the signature of {version} cannot be used: {problem}")


def _describe(version: Version, record: bytes, store: str) -> Statement:
    digest = hashlib.sha256(record).hexdigest()
    return Statement(version.name, version.version, version.digest, digest, store)
