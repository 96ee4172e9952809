"""The store of published heads: immutable versions, tags that move, content found by its hash.

A version is one object that is created only if there is none of its number, after the head file it
names: a publisher that dies leaves no half version, and no two get the same number. What lies where
is in ``layout``.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path

from headkit.adapters.errors import HeadFormatError, RegistryError
from headkit.adapters.files import cache_folder, write_atomically
from headkit.adapters.heads.head import Head

from . import maintenance as upkeep
from .layout import (
    HEADS,
    SUFFIX,
    YANKED,
    Entry,
    Version,
    blob_key,
    described_of,
    encoded,
    ranges,
    record_key,
    tag_key,
)
from .objects import ATTEMPTS, Objects, default_publisher, now
from .reference import LATEST, Reference, check_name, check_tag
from .storage import Storage, open_storage

GRACE_SECONDS = 24 * 3600
"""Age below which ``gc`` leaves objects alone: someone may be publishing them."""


class HeadStore:
    """Heads by name and version, under one root.

    Args:
        url: a local directory, or what fsspec opens: ``s3://bucket/folder``, ``gs://…``, ``az://…``.
            Without it ``$HEADKIT_STORE``, or ``heads`` in the user's data folder.

    Raises:
        DependencyMissing, RegistryError: see ``open_storage``; or the root holds something else.
    """

    def __init__(self, url: str | Path | None = None) -> None:
        self.storage: Storage = open_storage(default_url() if url is None else url)
        self._objects = Objects(self.storage)

    @property
    def url(self) -> str:
        """Root of the store."""
        return self.storage.url

    def publish(
        self,
        head: Head | str | Path,
        name: str,
        *,
        tags: Sequence[str] = (),
        publisher: str | None = None,
        parent: str | None = None,
        notes: str = "",
    ) -> Version:
        """Publish a head as the next version of a name; the first one makes the store.

        Args:
            head: head file, or a head.
            name: 1 to 63 of a-z, 0-9, '-', '_' and '.'.
            tags: to set on the new version.
            publisher: who publishes it; ``$HEADKIT_PUBLISHER`` or the user's name without it.
            parent: reference to the head that it came from; the newest version without it.
            notes: free text.

        Raises:
            HeadFormatError: the file is no head.
            RegistryError: a name, tag or reference is none, or the store cannot be written.
        """
        check_name(name)
        for tag in tags:
            _check_settable(tag)
        content = head.serialize() if isinstance(head, Head) else _read_file(head)
        described = described_of(head if isinstance(head, Head) else _parsed(content, head))
        came_from = "" if parent is None else self.resolve(parent).digest
        self._objects.open(make=True)
        digest = hashlib.sha256(content).hexdigest()
        self._objects.put_blob(digest, content)
        listed = self._objects.listed(name)
        number = max(listed.versions, default=0) + 1
        if parent is None and listed.latest is not None:
            came_from = self._objects.record(name, listed.latest).digest
        for _ in range(ATTEMPTS):
            version = Version(
                name=name,
                version=number,
                digest=digest,
                size=len(content),
                published=now(),
                publisher=publisher or default_publisher(),
                parent=came_from,
                notes=notes,
                head=described,
            )
            try:
                self.storage.create(record_key(name, number), encoded(asdict(version)))
                break
            except FileExistsError:
                # Of a publisher who was faster; or a store refused all of several at once.
                with suppress(FileNotFoundError):
                    other = self._objects.record(name, number)
                    number += 1
                    came_from = other.digest if parent is None else came_from
        else:
            raise RegistryError(f"{self.url}: no number for {name} in {ATTEMPTS} attempts")
        try:
            self.storage.one(blob_key(digest))
        except FileNotFoundError:  # swept away meanwhile as the blob of no version
            self._objects.put_blob(digest, content)
        for tag in tags:
            self._objects.set_tag(version, tag)
        return version

    def list(self, pattern: str = "*") -> list[Entry]:
        """List the names that match a glob, in alphabetical order.

        Raises:
            RegistryError: there is no store.
        """
        self._objects.open()
        names = self._objects.names()
        if not names:
            self._objects.still_there()
        return [
            Entry(
                name,
                listed.latest,
                tuple(sorted(listed.versions)),
                tuple(sorted(listed.tags)),
                tuple(sorted(listed.yanked)),
            )
            for name, listed in sorted(names.items())
            if listed.versions and fnmatchcase(name, pattern)
        ]

    def versions(self, name: str) -> Sequence[Version]:
        """Return all versions of a name, the oldest first.

        Raises:
            RegistryError: there is none.
        """
        self._objects.open()
        numbers = sorted(self._objects.listed(check_name(name)).versions)
        if not numbers:
            raise self._objects.no_name(name)
        return [self._objects.record(name, number) for number in numbers]

    def tags(self, name: str) -> dict[str, int]:
        """Return which version each tag of a name points to."""
        self._objects.open()
        listed = self._objects.listed(check_name(name))
        return {tag: self._objects.tagged(name, tag) for tag in sorted(listed.tags)}

    def resolve(self, ref: str | Reference) -> Version:
        """Return the version that a reference names.

        Raises:
            RegistryError: it names none, or more than one.
        """
        reference = ref if isinstance(ref, Reference) else Reference.parse(ref)
        self._objects.open()
        if reference.digest:
            return self._objects.by_digest(reference.digest)
        name = reference.name
        if reference.version is not None:
            number = reference.version
        elif reference.tag == LATEST:
            listed = self._objects.listed(name)
            if not listed.versions:
                raise self._objects.no_name(name)
            if listed.latest is None:
                raise RegistryError(
                    f"all versions of {name} are yanked: name one, such as "
                    f"{name}@{max(listed.versions)}"
                )
            number = listed.latest
        else:
            number = self._objects.tagged(name, reference.tag or LATEST)
        try:
            return self._objects.record(name, number)
        except FileNotFoundError as error:
            numbers = sorted(self._objects.listed(name).versions)
            if not numbers:
                raise self._objects.no_name(name) from error
            raise RegistryError(
                f"{name} has no version {number}, it has {ranges(numbers)}"
            ) from error

    def read(self, ref: str | Reference | Version) -> bytes:
        """Return the head file that a reference names, checked against its hash.

        Raises:
            RegistryError: there is none, or its bytes are not those that were published.
        """
        return self._objects.blob(self._version(ref))

    def pull(self, ref: str | Reference | Version, out: str | Path | None = None) -> Path:
        """Return the path of a local head file with the bytes that were published.

        Args:
            ref: reference or version.
            out: where to write it; without it the file lies in the cache
                (``$HEADKIT_CACHE`` or the user's), named after its content.

        Raises:
            RegistryError: see ``read``.
            OutputError: ``out`` cannot be written.
        """
        version = self._version(ref)
        content = self._objects.blob(version)
        if out is not None:
            return write_atomically(out, content)
        folder = cache_folder() / "heads"
        folder.mkdir(exist_ok=True)
        path = folder / f"{version.digest}{SUFFIX}"
        if not path.is_file() or path.read_bytes() != content:
            write_atomically(path, content)
        return path

    def load(self, ref: str | Reference | Version) -> Head:
        """Return the head that a reference names; see ``read``."""
        version = self._version(ref)
        return _parsed(self._objects.blob(version), str(version))

    def tag(self, ref: str, tag: str) -> Version:
        """Have a tag point to a version, whatever it pointed to before.

        Raises:
            RegistryError: the reference names none, the version is yanked, or the tag is none.
        """
        _check_settable(tag)
        version = self.resolve(ref)
        if version.version in self._objects.listed(version.name).yanked:
            raise RegistryError(f"{version} is yanked: nothing new should use it")
        self._objects.set_tag(version, tag)
        return version

    def untag(self, name: str, tag: str) -> None:
        """Remove a tag; the version that it pointed to stays.

        Raises:
            RegistryError: there is no such tag.
        """
        self._objects.open()
        check_name(name)
        _check_settable(tag)
        try:
            self.storage.delete(tag_key(name, tag))
        except FileNotFoundError as error:
            raise self._objects.no_tag(name, tag) from error

    def yank(self, ref: str, *, undo: bool = False) -> Version:
        """Have a version no longer be the newest; by its number or a tag it is still found.

        Args:
            ref: to one version.
            undo: have it be found again.

        Raises:
            RegistryError: the reference names none.
        """
        version = self.resolve(ref)
        key = f"{HEADS}{version.name}/{version.version}{YANKED}"
        if undo:
            try:
                self.storage.delete(key)
            except FileNotFoundError as error:
                raise RegistryError(f"{version} is not yanked") from error
        else:
            self.storage.replace(key, encoded({"at": now(), "by": default_publisher()}))
        return version

    def verify(self) -> Sequence[str]:
        """Check every object of the store. Returns what is wrong, one line each.

        Raises:
            RegistryError: there is no store.
        """
        return upkeep.verify(self._objects)

    def gc(self, *, grace_seconds: float = GRACE_SECONDS, dry_run: bool = False) -> Sequence[str]:
        """Delete head files that no version names, and what interrupted publishers left.

        Args:
            grace_seconds: younger objects stay.
            dry_run: delete nothing.

        Returns:
            Keys of what was deleted.

        Raises:
            RegistryError: there is no store, or a version cannot be read: nothing is deleted then.
        """
        return upkeep.gc(self._objects, grace_seconds=grace_seconds, dry_run=dry_run)

    def _version(self, ref: str | Reference | Version) -> Version:
        return ref if isinstance(ref, Version) else self.resolve(ref)


def default_url() -> str:
    """Return ``$HEADKIT_STORE``, or ``headkit/heads`` in the user's data folder."""
    data = os.environ.get("XDG_DATA_HOME") or str(Path("~/.local/share").expanduser())
    return os.environ.get("HEADKIT_STORE") or str(Path(data) / "headkit" / "heads")


def _check_settable(tag: str) -> None:
    if check_tag(tag) == LATEST:
        raise RegistryError(f"{LATEST!r} is always the newest version: it cannot be set or removed")


def _read_file(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise HeadFormatError(f"cannot read head {path}: {error.strerror or error}") from error


def _parsed(content: bytes, what: str | Path) -> Head:
    """Read a head from the bytes of its file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "head.safetensors"
        path.write_bytes(content)
        try:
            return Head.load(path)
        except HeadFormatError as error:
            raise HeadFormatError(str(error).replace(str(path), str(what))) from error
