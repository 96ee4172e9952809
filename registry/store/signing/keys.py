"""Read Ed25519 keys from the files that ``ssh-keygen`` and ``openssl`` write.

``ssh-keygen -t ed25519`` writes the format of OpenSSH, ``openssl genpkey -algorithm ed25519`` and
``openssl pkey -pubout`` write PEM.
"""

from __future__ import annotations

import base64
import getpass
import hashlib
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from headkit.adapters.errors import DependencyMissing, SignatureError, first_line

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PublicKey,
    )

PASSPHRASE = "HEADKIT_SIGN_PASSPHRASE"  # noqa: S105 - the name of a variable
"""Environment variable with the passphrase of the private key."""
MAX_BYTES = 2**16
"""Maximum size of a key file in bytes."""
_SSH_NAME = b"ssh-ed25519"


@dataclass(frozen=True)
class PublicKey:
    """A key that a reader trusts.

    Attributes:
        path: File that the key was read from.
        fingerprint: The name that ``ssh-keygen -l`` gives the key: ``SHA256:…``.
    """

    path: str
    fingerprint: str
    _key: Ed25519PublicKey

    def __str__(self) -> str:
        return f"{self.fingerprint} ({self.path})"

    def accepts(self, signature: bytes, message: bytes) -> bool:
        """Return True if the key's owner signed the message."""
        from cryptography.exceptions import InvalidSignature

        try:
            self._key.verify(signature, message)
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True)
class PrivateKey:
    """A key that signs.

    Attributes:
        fingerprint: See ``PublicKey``.
        sign: Function that returns the signature of a message, 64 bytes.
    """

    fingerprint: str
    sign: Callable[[bytes], bytes]


def read_public_key(path: str | Path) -> PublicKey:
    """Read a public key.

    Raises:
        SignatureError: The file cannot be read, or is not the public key of an Ed25519 key.
        DependencyMissing: ``cryptography`` is not installed.
    """
    _check_dependency()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    content = _read(path)
    if b"PRIVATE KEY-----" in content:
        how = "ssh-keygen -y -f" if _is_openssh(content) else "openssl pkey -pubout -in"
        raise SignatureError(
            f"{path} is a private key, expected a public one: `{how} {path}` prints it"
        )
    try:
        if content.startswith(b"-----BEGIN"):
            key = serialization.load_pem_public_key(content)
        else:
            # OpenSSH's keys in security tokens and its certificates are Ed25519 keys, too, but
            # what they sign has another form. The first word of the line tells them apart.
            lines = [line for line in content.splitlines() if line.strip()]
            if len(lines) != 1:
                raise SignatureError(
                    f"{path} has {len(lines)} lines, expected a public key in PEM or in one line, "
                    "as ssh-keygen writes it"
                )
            kind = re.match(rb"([a-z][a-z0-9@.-]{2,60}) ", lines[0])
            if kind is None:
                raise ValueError("it has no kind of key in front")
            if kind[1] != _SSH_NAME:
                raise _wrong_kind(path, kind[1].decode())
            key = serialization.load_ssh_public_key(content)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _unreadable(path, "public", error) from error
    if not isinstance(key, Ed25519PublicKey):
        raise _wrong_kind(path, _name(key))
    return PublicKey(str(path), _fingerprint(key), key)


def read_private_key(path: str | Path) -> PrivateKey:
    """Read a private key; take its passphrase from the environment, or ask for it on a terminal.

    Raises:
        SignatureError: The file cannot be read, is not an Ed25519 key, or the passphrase is wrong.
        DependencyMissing: ``cryptography`` is not installed, or ``bcrypt`` for a key with a
            passphrase in the format of OpenSSH.
    """
    _check_dependency()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    content = _read(path)
    if b"PRIVATE KEY-----" not in content:
        raise SignatureError(
            f"{path} is not a private key: expected a file from `ssh-keygen -t ed25519` or "
            "`openssl genpkey -algorithm ed25519`"
        )
    try:
        key = _load_private_key(path, content)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _unreadable(path, "private", error) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise _wrong_kind(path, _name(key))
    return PrivateKey(_fingerprint(key.public_key()), key.sign)


def read_public_keys(paths: Sequence[str | Path]) -> tuple[PublicKey, ...]:
    """Read several public keys; see ``read_public_key``."""
    return tuple(map(read_public_key, paths))


def _load_private_key(path: str | Path, content: bytes) -> object:
    from cryptography.hazmat.primitives import serialization

    is_ssh = _is_openssh(content)
    load: Callable[[bytes, bytes | None], object] = (
        serialization.load_ssh_private_key if is_ssh else serialization.load_pem_private_key
    )
    try:
        return load(content, None)
    except TypeError:  # it has a passphrase
        passphrase = _find_passphrase(path)
    if is_ssh:
        DependencyMissing.check("bcrypt", "a key with a passphrase", "headkit[sign]")
    try:
        return load(content, passphrase)
    except ValueError as error:
        raise SignatureError(
            f"{path}: the passphrase is wrong, or the file is damaged ({first_line(error)})"
        ) from error


def _find_passphrase(path: str | Path) -> bytes:
    given = os.environ.get(PASSPHRASE)
    if given is None:
        if not sys.stdin.isatty():
            raise SignatureError(
                f"{path} has a passphrase, and there is no terminal to ask for it: set "
                f"${PASSPHRASE}"
            )
        given = getpass.getpass(f"Passphrase of {path}: ")
    return given.encode()


def _is_openssh(content: bytes) -> bool:
    return b"-----BEGIN OPENSSH" in content


def _check_dependency() -> None:
    DependencyMissing.check("cryptography", "signing and verifying heads", "headkit[sign]")


def _read(path: str | Path) -> bytes:
    try:
        with Path(path).expanduser().open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise SignatureError(f"cannot read the key {path}: {error.strerror or error}") from error
    if len(content) > MAX_BYTES:
        raise SignatureError(f"{path} is not a key: it has more than {MAX_BYTES:,} bytes")
    return content


def _fingerprint(key: Ed25519PublicKey) -> str:
    """Return the name that OpenSSH gives a key: the SHA-256 of its form on the wire."""
    raw = key.public_bytes_raw()
    wire = b"".join(len(part).to_bytes(4, "big") + part for part in (_SSH_NAME, raw))
    digest = base64.b64encode(hashlib.sha256(wire).digest()).decode().rstrip("=")
    return f"SHA256:{digest}"


def _name(key: object) -> str:
    """Return the kind of a key from its class: ``RSA`` for ``_RSAPrivateKey``."""
    name = type(key).__name__.lstrip("_").replace("OpenSSL", "")
    return name.replace("PrivateKey", "").replace("PublicKey", "")


def _wrong_kind(path: str | Path, kind: str) -> SignatureError:
    return SignatureError(
        f"{path} is a key of kind {kind}, expected Ed25519: make one with `ssh-keygen -t ed25519`"
    )


def _unreadable(path: str | Path, which: str, error: Exception) -> SignatureError:
    return SignatureError(
        f"{path} is not a {which} key in PEM or in the format of OpenSSH: {first_line(error)}"
    )
