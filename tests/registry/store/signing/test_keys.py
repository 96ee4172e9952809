"""Key files as ssh-keygen and openssl write them, and files that are none."""

import getpass
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, rsa, x25519

from headkit import DependencyMissing, SignatureError
from headkit.registry.store.signing.keys import PASSPHRASE, read_private_key, read_public_key
from tests.signing_keys import write_keys


def _run(*arguments: object) -> str:
    done = subprocess.run(
        list(map(str, arguments)), check=True, capture_output=True, text=True, timeout=60
    )
    return done.stdout


def write_with_ssh_keygen(folder: Path, passphrase: str) -> tuple[Path, Path]:
    private = folder / "ssh"
    _run("ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-C", "ada@x", "-f", private)
    return private, private.with_suffix(".pub")


def write_with_openssl(folder: Path, passphrase: str) -> tuple[Path, Path]:
    private, public = folder / "key.pem", folder / "key.pub"
    protect = ("-aes256", "-pass", f"pass:{passphrase}") if passphrase else ()
    _run("openssl", "genpkey", "-algorithm", "ed25519", *protect, "-out", private)
    unlock = ("-passin", f"pass:{passphrase}") if passphrase else ()
    _run("openssl", "pkey", "-in", private, *unlock, "-pubout", "-out", public)
    return private, public


TOOLS = [
    pytest.param(
        write,
        id=tool,
        marks=pytest.mark.skipif(shutil.which(tool) is None, reason=f"{tool} is not installed"),
    )
    for tool, write in (("ssh-keygen", write_with_ssh_keygen), ("openssl", write_with_openssl))
]
Write = Callable[[Path, str], tuple[Path, Path]]


@pytest.mark.parametrize("write", TOOLS)
def test_keys_of_both_tools_sign_and_verify(write: Write, tmp_path: Path) -> None:
    private, public = write(tmp_path, "")
    signature = read_private_key(private).sign(b"message")
    key = read_public_key(public)
    assert key.fingerprint == read_private_key(private).fingerprint
    assert key.accepts(signature, b"message")
    assert not key.accepts(signature, b"massage")
    assert not read_public_key(write_keys(tmp_path, "other").public).accepts(signature, b"message")
    assert not key.accepts(signature[:-1], b"message")


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="ssh-keygen is not installed")
def test_fingerprint_is_that_of_ssh_keygen(tmp_path: Path) -> None:
    _, public = write_with_ssh_keygen(tmp_path, "")
    assert read_public_key(public).fingerprint == _run("ssh-keygen", "-lf", public).split()[1]


@pytest.mark.parametrize("write", TOOLS)
def test_passphrase_comes_from_the_environment_or_the_terminal(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("bcrypt")
    private, public = write(tmp_path, "open sesame")
    monkeypatch.delenv(PASSPHRASE, raising=False)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    with pytest.raises(SignatureError, match=rf"no terminal to ask for it: set \${PASSPHRASE}"):
        read_private_key(private)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    asked: list[str] = []

    def ask(text: str) -> str:
        asked.append(text)
        return "open sesame"

    monkeypatch.setattr(getpass, "getpass", ask)
    fingerprint = read_private_key(private).fingerprint
    assert fingerprint == read_public_key(public).fingerprint
    assert asked == [f"Passphrase of {private}: "]
    monkeypatch.setenv(PASSPHRASE, "open barley")
    with pytest.raises(SignatureError, match="the passphrase is wrong"):
        read_private_key(private)
    monkeypatch.setenv(PASSPHRASE, "open sesame")
    assert read_private_key(private).fingerprint == fingerprint
    assert len(asked) == 1


def test_passphrase_in_the_environment_does_not_hinder_a_key_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PASSPHRASE, "anything")
    assert read_private_key(write_keys(tmp_path, "key").private).sign(b"x")


OTHER_KEYS: dict[str, Callable[[], Any]] = {
    "RSA": lambda: rsa.generate_private_key(65537, 2048),
    "EC": lambda: ec.generate_private_key(ec.SECP256R1()),
    "Ed448": ed448.Ed448PrivateKey.generate,
    "X25519": x25519.X25519PrivateKey.generate,
}


@pytest.mark.parametrize("kind", OTHER_KEYS)
def test_keys_of_other_kinds_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    key = OTHER_KEYS[kind]()
    private, public = tmp_path / "private", tmp_path / "public"
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    public.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    for read, path in ((read_private_key, private), (read_public_key, public)):
        with pytest.raises(SignatureError, match=rf"a key of kind {kind}\w*, expected Ed25519"):
            read(path)


@pytest.mark.parametrize(
    "kind",
    ["ssh-rsa", "sk-ssh-ed25519@openssh.com", "ssh-ed25519-cert-v01@openssh.com"],
)
def test_other_keys_of_openssh_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "key.pub"
    path.write_text(f"{kind} AAAAC3NzaC1lZDI1NTE5AAAAIA== ada@x\n")
    with pytest.raises(SignatureError, match=rf"a key of kind {kind}, expected Ed25519"):
        read_public_key(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has 0 lines"),
        (b"ssh-ed25519 AAAA\nssh-ed25519 AAAA\n", "has 2 lines"),
        (b"ssh-ed25519 AAAA\n", "is not a public key"),
        (b"\xff\xfe" * 100, "is not a public key"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "is not a public key"),
        (b"-----BEGIN OPENSSH PRIVATE KEY-----\n", "is a private key, expected a public.*ssh-key"),
        (b"-----BEGIN PRIVATE KEY-----\n", "is a private key, expected a public one: `openssl"),
        (b"x" * 2**17, "more than 65,536 bytes"),
    ],
)
def test_files_that_are_no_public_key_are_refused(
    content: bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    with pytest.raises(SignatureError, match=message):
        read_public_key(path)
    with pytest.raises(SignatureError, match=r"is not a (private )?key"):
        read_private_key(path)


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    for read in (read_public_key, read_private_key):
        for path in (tmp_path / "missing", tmp_path):
            with pytest.raises(SignatureError, match=f"cannot read the key {path}"):
                read(path)


def test_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = write_keys(tmp_path, "key")
    monkeypatch.setitem(sys.modules, "cryptography", None)
    for read, path in ((read_public_key, keys.public), (read_private_key, keys.private)):
        with pytest.raises(DependencyMissing, match=r'pip install "headkit\[sign\]"'):
            read(path)
