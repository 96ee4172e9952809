"""References to published heads: ``flowers``, ``flowers@3``, ``flowers@prod``, ``sha256:…``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from headkit.adapters.errors import RegistryError

LATEST = "latest"
"""As a tag: the newest version that is not yanked."""
DIGEST = "sha256:"
MIN_DIGITS = 8
"""Of a digest that is cut short."""
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9_-]|\.(?!\.)){0,62}(?<![.])")
_DIGITS = re.compile(rf"[0-9a-f]{{{MIN_DIGITS},64}}")
_VERSION = re.compile(r"[1-9][0-9]{0,8}")


@dataclass(frozen=True)
class Reference:
    """One head of a store, by name or by content.

    Attributes:
        name: under which the head was published; empty for a digest.
        version: its number, or none.
        tag: none where a version is named; ``latest`` where neither is.
        digest: the first hexadecimal digits of the SHA-256 of the head file; empty for a name.
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
            RegistryError: it is none; the message says what is wrong.
        """
        if text.startswith(DIGEST):
            digest = text.removeprefix(DIGEST)
            if not _DIGITS.fullmatch(digest):
                raise RegistryError(
                    f"{text!r} is no digest: expected {MIN_DIGITS} to 64 hexadecimal digits, in "
                    "lower case"
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
    """Return a name under which heads can be published.

    Raises:
        RegistryError: it is none.
    """
    return _checked(name, "name of a head")


def check_tag(tag: str) -> str:
    """Return a tag. Numbers are versions, never tags.

    Raises:
        RegistryError: it is none.
    """
    if tag.isdecimal():
        raise RegistryError(f"{tag!r} is no tag: numbers name versions")
    return _checked(tag, "tag")


def looks_like_reference(text: str) -> bool:
    """Tell whether a text can be a reference, by its form alone, and not a path."""
    if text.startswith(DIGEST) or "@" in text:
        return "/" not in text and "\\" not in text
    return bool(_NAME.fullmatch(text)) and not text.endswith((".safetensors", ".onnx"))


def _checked(text: str, what: str) -> str:
    if not _NAME.fullmatch(text):
        raise RegistryError(
            f"{text!r} is no {what}: expected 1 to 63 of a-z, 0-9, '-', '_' and single '.', "
            "a letter or digit first, no '.' last"
        )
    return text
