"""References to published heads: ``flowers``, ``flowers@3``, ``flowers@prod``, ``sha256:…``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from headkit.adapters.errors import RegistryError

LATEST = "latest"
"""The tag that always points to the newest version that is not yanked."""
DIGEST = "sha256:"
MIN_DIGITS = 8
"""Number of digits that a shortened digest has at least."""
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9_-]|\.(?!\.)){0,62}(?<![.])")
_DIGITS = re.compile(rf"[0-9a-f]{{{MIN_DIGITS},64}}")
_VERSION = re.compile(r"[1-9][0-9]{0,8}")
MAX_VERSION = 999_999_999
"""Highest number of a version."""


@dataclass(frozen=True)
class Reference:
    """One head of a store, by name or by content.

    Attributes:
        name: Name under which the head was published; empty for a digest.
        version: Number of the version; None if the reference has no number.
        tag: Name of the tag; None for a number or a digest, ``latest`` for a name alone.
        digest: First hexadecimal digits of the SHA-256 of the head file; empty for a name.
    """

    name: str = ""
    version: int | None = None
    tag: str | None = None
    digest: str = ""

    def __str__(self) -> str:
        if self.digest:
            return f"{DIGEST}{self.digest}"
        return f"{self.name}@{self.tag if self.version is None else self.version}"

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Read a reference.

        Raises:
            RegistryError: The text is not a reference; the message says what is wrong.
        """
        if text.startswith(DIGEST):
            digest = text.removeprefix(DIGEST)
            if not _DIGITS.fullmatch(digest):
                raise RegistryError(
                    f"{text!r} is not a digest: expected {DIGEST} and {MIN_DIGITS} to 64 "
                    "hexadecimal digits in lower case"
                )
            return cls(digest=digest)
        name, at, which = text.partition("@")
        check_name(name)
        if not at:
            return cls(name, tag=LATEST)
        if _VERSION.fullmatch(which):
            return cls(name, version=int(which))
        check_tag(which)
        return cls(name, tag=which)


def check_name(name: str) -> str:
    """Return the name of a head unchanged if it is valid.

    Raises:
        RegistryError: The name is not valid.
    """
    return _check(name, "head name")


def check_tag(tag: str) -> str:
    """Return a tag unchanged if it is valid. A number is always a version, never a tag.

    Raises:
        RegistryError: The tag is not valid.
    """
    if tag.isdecimal():
        raise RegistryError(f"{tag!r} is not a valid tag: a number always means a version")
    return _check(tag, "tag")


def is_name(text: str) -> bool:
    """Return True if a text is a valid name of a head or a tag."""
    return bool(_NAME.fullmatch(text))


def is_digest(text: str) -> bool:
    """Return True if a text is a complete SHA-256 in hexadecimal digits."""
    return bool(_DIGITS.fullmatch(text)) and len(text) == 64


def is_version(text: str) -> bool:
    """Return True if a text is the number of a version."""
    return bool(_VERSION.fullmatch(text))


def looks_like_reference(text: str) -> bool:
    """Return True if a text has the form of a reference rather than of a path."""
    if text.startswith(DIGEST) or "@" in text:
        return "/" not in text and "\\" not in text
    return bool(_NAME.fullmatch(text)) and not text.endswith((".safetensors", ".onnx"))


def _check(text: str, what: str) -> str:
    if not _NAME.fullmatch(text):
        raise RegistryError(
            f"{text!r} is not a valid {what}: expected 1 to 63 characters from a-z, 0-9, '-', '_' "
            "and '.', without '..', starting with a letter or digit and not ending with '.'"
        )
    return text
