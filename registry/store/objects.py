"""Read and write the objects of a store one by one; check their content on every read."""

from __future__ import annotations

import difflib
import getpass
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from headkit.adapters.errors import RegistryError, StoreError, first_line

from .layout import (
    BLOBS,
    FORMAT,
    HEADS,
    STORE,
    SUFFIX,
    TRASH,
    VERSIONS,
    NameListing,
    blob_key,
    encode_json,
    record_key,
    tag_key,
    trash_key,
)
from .local_storage import LocalStorage
from .records import Tag, Version, decode_record, decode_tag, encode_record, encode_tag
from .reference import DIGEST, is_name
from .storage import TEMPORARY, Storage

ATTEMPTS = 1000
"""Number of attempts at a write that other publishers may get ahead of."""
MAX_COMPARED = 2000
"""Number of names that the error for an unknown name compares with it."""


class Objects:
    """The objects of a store in one storage.

    The methods raise ``StoreError`` if the storage cannot be used or an object is damaged.
    """

    def __init__(self, storage: Storage) -> None:
        self.storage, self._version = storage, ""

    @property
    def url(self) -> str:
        """Root of the store."""
        return self.storage.url

    @property
    def chained(self) -> bool:
        """True if new records and tags carry checksums, and records form a chain."""
        self.check_root()
        return self._version != "1"

    def check_root(self, *, create: bool = False) -> None:
        """Raise ``RegistryError`` if the root is not a store; check this once.

        Args:
            create: Make the root a store if it is not one yet.
        """
        if self._version:
            return
        expected = {"format": FORMAT, "version": VERSIONS[-1]}
        try:
            actual = json.loads(self.storage.read(STORE))
        except FileNotFoundError as error:
            if not create:
                raise RegistryError(
                    f"there is no store at {self.url}: publish a head to create one"
                ) from error
            actual = self._create_store(expected)
        except (ValueError, RecursionError) as error:
            raise RegistryError(f"{self.url}/{STORE} is not JSON: {first_line(error)}") from error
        if actual not in [{**expected, "version": version} for version in VERSIONS]:
            raise RegistryError(
                f"{self.url}/{STORE} contains {str(actual)[:200]}, expected {expected}: use "
                "another store, or another version of headkit"
            )
        self._version = actual["version"]

    def upgrade(self) -> None:
        """Make a store of version 1 one of the newest version; its objects stay as they are."""
        self.check_root()
        values = {"format": FORMAT, "version": VERSIONS[-1]}
        self.storage.replace(STORE, encode_json(values))
        self._version = VERSIONS[-1]

    def _create_store(self, expected: Mapping[str, str]) -> object:
        """Make the root a store, unless another publisher does; return what ``STORE`` then says."""
        has_files = isinstance(self.storage, LocalStorage) and _has_files(self.storage.root)
        try:
            if not has_files:
                self.storage.create(STORE, encode_json(expected))
                return expected
            return json.loads(self.storage.read(STORE))  # another publisher was faster
        except FileExistsError:
            return json.loads(self.storage.read(STORE))
        except FileNotFoundError as error:
            raise RegistryError(
                f"{self.url} contains other files but no {STORE}: choose an empty folder"
            ) from error

    def check_still_exists(self) -> None:
        """Raise ``StoreError`` if the store has disappeared, for example with an unmounted disk."""
        try:
            self.storage.read(STORE)
        except FileNotFoundError as error:
            raise StoreError(
                f"{self.url}/{STORE} no longer exists: check that the store is mounted"
            ) from error

    def write_blob(self, digest: str, content: bytes) -> None:
        """Write a head file if it is missing or damaged; otherwise reset its age."""
        key = blob_key(digest)
        for _ in range(ATTEMPTS):
            with suppress(FileNotFoundError):  # gc has just deleted it, as no version names it yet
                try:
                    self.storage.create(key, content)
                except FileExistsError:
                    if hashlib.sha256(self.storage.read(key)).hexdigest() == digest:
                        self.storage.refresh(key)
                    else:  # damaged on the disk: ``content`` has the right bytes
                        self.storage.replace(key, content)
                return
        raise StoreError(
            f"{self.url}: {key} was deleted after each of {ATTEMPTS} attempts to write it: publish "
            "again, and run gc only with a grace period longer than a publish takes"
        )

    def read_blob(self, version: Version) -> bytes:
        """Return the bytes of a head file; raise ``StoreError`` if they do not match its hash.

        A head file that ``gc`` took out although a version names it is put back: the process that
        ran ``gc`` died before it did that itself.
        """
        key = blob_key(version.digest)
        try:
            content = self.storage.read(key)
        except FileNotFoundError as error:
            try:
                content = self.storage.read(trash_key(version.digest))
            except FileNotFoundError:
                raise StoreError(
                    f"{version}: its head file {key} is missing. Publish the original file again "
                    "to restore it"
                ) from error
            with suppress(StoreError):  # whoever may only read reads it from the trash
                self.restore(version.digest, content)
        digest = hashlib.sha256(content).hexdigest()
        if digest != version.digest:
            raise StoreError(
                f"{version}: the SHA-256 of the head file {key} is {digest}, expected "
                f"{version.digest}. Publish the original file again to repair it"
            )
        return content

    def restore(self, digest: str, content: bytes) -> None:
        """Put a head file back that ``gc`` took out, unless somebody did or its bytes are wrong."""
        if hashlib.sha256(content).hexdigest() == digest:
            with suppress(FileExistsError):
                self.storage.create(blob_key(digest), content)

    def create_record(self, version: Version) -> None:
        """Write a record; raise ``FileExistsError`` if there is a version with that number.

        In a chained store, no two records are equal, as each has a nonce. So a record that is there
        and equals this one is this one.
        """
        content = self.encode_record(version)
        key = record_key(version.name, version.version)
        try:
            self.storage.create(key, content)
        except (FileExistsError, StoreError):
            # The client of an object store sends a request again if its answer is lost. The store
            # may have written the record at the first request, and refuse the second one.
            if not (self.chained and self._holds(key, content)):
                raise

    def _holds(self, key: str, content: bytes) -> bool:
        """Return True if an object exists and has this content."""
        with suppress(FileNotFoundError, StoreError):
            return self.storage.read(key) == content
        return False

    def encode_record(self, version: Version) -> bytes:
        """Return the content of a new record; raise ``RegistryError`` if nobody could read it."""
        content = encode_record(version, chained=self.chained)
        try:
            decode_record(content, version.name, version.version)
        except ValueError as error:
            raise RegistryError(f"cannot publish {version.name}: {error}") from error
        return content

    def hash_record(self, name: str, number: int) -> str:
        """Return what the record of the next version names as the one before it."""
        if number < 1 or not self.chained:
            return ""
        with suppress(FileNotFoundError):
            return hashlib.sha256(self.storage.read(record_key(name, number))).hexdigest()
        return ""

    def read_record(self, name: str, number: int) -> Version:
        """Return a version; raise ``FileNotFoundError`` if no version has that number."""
        return self.read_record_bytes(name, number)[1]

    def read_record_bytes(self, name: str, number: int) -> tuple[bytes, Version]:
        """Return the content of a record, and the version; see ``read_record``."""
        key = record_key(name, number)
        content = self.storage.read(key)
        try:
            return content, decode_record(content, name, number)
        except ValueError as error:
            raise StoreError(f"{self.url}/{key} is not a record of a version: {error}") from error

    def list_names(self, unknown: list[str] | None = None) -> dict[str, NameListing]:
        """Return the objects under each name; add the keys under no valid name to ``unknown``."""
        listings: dict[str, NameListing] = {}
        for one in self.storage.objects(HEADS):
            name = one.key.removeprefix(HEADS).partition("/")[0]
            if name not in listings:
                if not is_name(name):
                    if unknown is not None:
                        unknown.append(one.key)
                    continue
                listings[name] = NameListing()
            listings[name].add(one.key, is_link=one.is_link)
        return listings

    def list_name(self, name: str) -> NameListing:
        """Return the objects under one name."""
        listing = NameListing()
        for one in self.storage.objects(f"{HEADS}{name}/"):
            listing.add(one.key, is_link=one.is_link)
        return listing

    def read_tag(self, name: str, tag: str) -> int:
        """Return the number of the version that a tag points to."""
        try:
            content = self.storage.read(tag_key(name, tag))
        except FileNotFoundError as error:
            raise self.missing_tag_error(name, tag) from error
        try:
            return decode_tag(content, name, tag).version
        except ValueError as error:
            raise StoreError(
                f"{self.url}/{tag_key(name, tag)} does not name a version of {name}: {error}"
            ) from error

    def set_tag(self, version: Version, tag: str) -> None:
        """Point a tag to a version."""
        values = Tag(version.name, tag, version.version, now(), default_publisher())
        content = encode_tag(values, chained=self.chained)
        try:
            decode_tag(content, version.name, tag)
        except ValueError as error:
            raise RegistryError(f"cannot set {version.name}@{tag}: {error}") from error
        self.storage.replace(tag_key(version.name, tag), content)

    def find_digest(self, digits: str) -> Iterator[Version]:
        """Yield the versions whose digest starts with these digits, of which there is one or more.

        Raises:
            RegistryError: There is none, or the digits match several head files.
        """
        # gc may have died before it put a head file back, see ``read_blob``.
        digests = sorted(
            {
                one.key.rpartition("/")[2].removesuffix(SUFFIX)
                for folder in (BLOBS, TRASH)
                for one in self.storage.objects(f"{folder}{digits[:2]}/")
                if one.key.rpartition("/")[2].startswith(digits)
            }
        )
        if len(digests) > 1:
            raise RegistryError(
                f"{DIGEST}{digits} matches {len(digests)} head files: give more digits"
            )
        found = False
        for name, listing in sorted(self.list_names().items()) if digests else ():
            for number in sorted(listing.versions):
                version = self.read_record(name, number)
                if version.digest == digests[0]:
                    found = True
                    yield version
        if not found:
            raise RegistryError(f"{self.url} has no head {DIGEST}{digits}")

    def missing_name_error(self, name: str) -> RegistryError:
        """Return the error for a name that the store does not have."""
        names = self.storage.folders(HEADS)
        if not names:
            self.check_still_exists()
        # The comparison takes a second for 30,000 names, and a server must not wait for it.
        near = difflib.get_close_matches(name, names[:MAX_COMPARED], n=3, cutoff=0.5)
        hint = f"nearest: {', '.join(near)}" if near else "`headkit heads list` lists all names"
        return RegistryError(f"{self.url} has no head {name!r}; {hint}")

    def missing_tag_error(self, name: str, tag: str) -> RegistryError:
        """Return the error for a tag that a name does not have."""
        listing = self.list_name(name)
        if not listing.versions:
            return self.missing_name_error(name)
        names = ", ".join(sorted(listing.tags))
        tags = f"its tags are {names}" if names else "it has no tags"
        return RegistryError(f"{name} has no tag {tag!r}; {tags}")


def default_publisher() -> str:
    """Return ``$HEADKIT_PUBLISHER``, or the user's name."""
    try:
        return os.environ.get("HEADKIT_PUBLISHER") or getpass.getuser()
    except (ImportError, KeyError, OSError):  # no name for the user's id, or Windows without names
        return "unknown"


def now() -> str:
    """Return the current UTC time, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _has_files(folder: Path) -> bool:
    """Return True if the folder holds more than a publisher's temporary files."""
    try:
        return any(one.name != TEMPORARY for one in folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return False
