"""The objects of a store, read and written one by one; what they say is checked on every read."""

from __future__ import annotations

import difflib
import getpass
import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from headkit.adapters.errors import RegistryError, StoreError, first_line

from .layout import (
    BLOBS,
    FORMAT,
    HEADS,
    STORE,
    SUFFIX,
    VERSION,
    Listed,
    Version,
    blob_key,
    encoded,
    record_key,
    sort_into,
    tag_key,
)
from .reference import DIGEST
from .storage import TEMPORARY, LocalStorage, Storage

ATTEMPTS = 1000
"""At what another publisher was faster with."""


class Objects:
    """What lies in one storage.

    The methods raise ``StoreError`` where it cannot be used, or an object is damaged.
    """

    def __init__(self, storage: Storage) -> None:
        self.storage, self._checked = storage, False

    @property
    def url(self) -> str:
        """Root of the store."""
        return self.storage.url

    def open(self, *, make: bool = False) -> None:
        """Check once that the root is a store."""
        if self._checked:
            return
        expected = {"format": FORMAT, "version": VERSION}
        try:
            found = json.loads(self.storage.read(STORE))
        except FileNotFoundError as error:
            if not make:
                raise RegistryError(
                    f"there is no store at {self.url}: publishing a head makes one"
                ) from error
            found = self._made(expected)
        except ValueError as error:
            raise RegistryError(f"{self.url}/{STORE} is no JSON: {first_line(error)}") from error
        if found != expected:
            raise RegistryError(f"{self.url}/{STORE} says {found}, expected {expected}")
        self._checked = True

    def _made(self, expected: Mapping[str, str]) -> object:
        """Make the root a store, unless another publisher does; return what it then says."""
        other = isinstance(self.storage, LocalStorage) and _has_files(self.storage.root)
        try:
            if not other:
                self.storage.create(STORE, encoded(expected))
                return expected
            return json.loads(self.storage.read(STORE))  # of someone who was faster
        except FileExistsError:
            return json.loads(self.storage.read(STORE))
        except FileNotFoundError as error:
            raise RegistryError(
                f"{self.url} holds other files and no {STORE}: name an empty folder"
            ) from error

    def still_there(self) -> None:
        """Raise ``StoreError`` where the store was found once and is gone, as an unmounted disk."""
        try:
            self.storage.read(STORE)
        except FileNotFoundError as error:
            raise StoreError(f"{self.url}/{STORE} is gone") from error

    def put_blob(self, digest: str, content: bytes) -> None:
        """Write a head file, or again where it is damaged; its age begins anew."""
        key = blob_key(digest)
        for _ in range(ATTEMPTS):
            with suppress(FileNotFoundError):  # deleted meanwhile as the blob of no version
                try:
                    self.storage.create(key, content)
                except FileExistsError:
                    if hashlib.sha256(self.storage.read(key)).hexdigest() == digest:
                        self.storage.refresh(key)
                    else:  # damaged on the disk: these are the bytes that it should have
                        self.storage.replace(key, content)
                return
        raise StoreError(f"{self.url}: {key} is deleted as often as it is written")

    def blob(self, version: Version) -> bytes:
        """Return a head file, checked against its hash."""
        key = blob_key(version.digest)
        try:
            content = self.storage.read(key)
        except FileNotFoundError as error:
            raise StoreError(f"{version}: its head file {key} is gone") from error
        found = hashlib.sha256(content).hexdigest()
        if found != version.digest:
            raise StoreError(
                f"{version}: the head file {key} was changed: its SHA-256 is {found}. Publish the "
                "original again, which repairs it"
            )
        return content

    def record(self, name: str, number: int) -> Version:
        """Return a version; ``FileNotFoundError`` if there is none of that number."""
        key = record_key(name, number)
        values = self._json(key)
        try:
            version = Version(**values)
        except TypeError as error:
            raise StoreError(f"{self.url}/{key} is no version of a head: {error}") from error
        digits = set(version.digest) <= set("0123456789abcdef") and len(version.digest) == 64
        if (version.name, version.version) != (name, number) or not digits:
            raise StoreError(f"{self.url}/{key} is the record of another version")
        return version

    def _json(self, key: str) -> dict[str, Any]:
        try:
            found = json.loads(self.storage.read(key))
        except ValueError as error:
            raise StoreError(f"{self.url}/{key} is no JSON: {first_line(error)}") from error
        if not isinstance(found, dict):
            raise StoreError(f"{self.url}/{key} is no JSON object")
        return found

    def names(self) -> dict[str, Listed]:
        """Return what lies under each name."""
        found: dict[str, Listed] = {}
        for one in self.storage.objects(HEADS):
            name, _, last = one.key.removeprefix(HEADS).partition("/")
            sort_into(found.setdefault(name, Listed()), one.key, last, one.is_link)
        return found

    def listed(self, name: str) -> Listed:
        """Return what lies under one name."""
        found = Listed()
        prefix = f"{HEADS}{name}/"
        for one in self.storage.objects(prefix):
            sort_into(found, one.key, one.key.removeprefix(prefix), one.is_link)
        return found

    def tagged(self, name: str, tag: str) -> int:
        """Return the version that a tag points to."""
        try:
            found = self._json(tag_key(name, tag))
        except FileNotFoundError as error:
            raise self.no_tag(name, tag) from error
        number = found.get("version")
        own = (found.get("name"), found.get("tag")) == (name, tag)
        if not own or not isinstance(number, int) or number < 1:
            raise StoreError(f"{self.url}/{tag_key(name, tag)} names no version")
        return number

    def set_tag(self, version: Version, tag: str) -> None:
        """Have a tag point to a version."""
        moved = {
            "name": version.name,
            "tag": tag,
            "version": version.version,
            "at": now(),
            "by": default_publisher(),
        }
        self.storage.replace(tag_key(version.name, tag), encoded(moved))

    def by_digest(self, digits: str) -> Version:
        """Return a version by the first digits of its digest."""
        found = [
            one.key.rpartition("/")[2].removesuffix(SUFFIX)
            for one in self.storage.objects(f"{BLOBS}{digits[:2]}/")
            if one.key.rpartition("/")[2].startswith(digits)
        ]
        if len(found) > 1:
            raise RegistryError(f"{DIGEST}{digits} names {len(found)} head files: give more digits")
        for name, listed in sorted(self.names().items()) if found else ():
            for number in sorted(listed.versions):
                version = self.record(name, number)
                if version.digest == found[0]:
                    return version
        raise RegistryError(f"{self.url} has no head {DIGEST}{digits}")

    def no_name(self, name: str) -> RegistryError:
        """Return the error for a name that is not there."""
        names = self.storage.folders(HEADS)
        if not names:
            self.still_there()
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        hint = f"nearest: {', '.join(near)}" if near else "`headkit heads list` lists all names"
        return RegistryError(f"{self.url} has no head {name!r}; {hint}")

    def no_tag(self, name: str, tag: str) -> RegistryError:
        """Return the error for a tag that is not there."""
        listed = self.listed(name)
        if not listed.versions:
            return self.no_name(name)
        has = f"it has {', '.join(sorted(listed.tags))}" if listed.tags else "it has none"
        return RegistryError(f"{name} has no tag {tag!r}; {has}")


def default_publisher() -> str:
    """Return ``$HEADKIT_PUBLISHER``, or the user's name."""
    try:
        return os.environ.get("HEADKIT_PUBLISHER") or getpass.getuser()
    except (KeyError, OSError):  # a container may have no user of this number
        return "unknown"


def now() -> str:
    """Return the UTC time, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _has_files(folder: Path) -> bool:
    """Whether there is more than what another publisher writes first."""
    try:
        return any(one.name != TEMPORARY for one in folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return False
