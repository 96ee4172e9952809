"""The store of published heads: immutable versions, movable tags, head files named by their hash.

A publisher first writes the head file, then the record of the version, which is one object that is
created only if its number is free. So a publisher that dies leaves no incomplete version, and no
two publishers get the same number. ``layout`` describes the objects of a store.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path

from headkit.adapters.display import format_line, format_table
from headkit.adapters.errors import HeadFormatError, RegistryError
from headkit.adapters.file_kinds import HEAD, check_output, explain_wrong_kind
from headkit.adapters.files import cache_folder, write_atomically
from headkit.adapters.heads.head import Head

from . import maintenance
from .layout import (
    HEADS,
    SUFFIX,
    YANKED,
    Entry,
    blob_key,
    describe_head,
    encode_json,
    format_ranges,
    tag_key,
)
from .objects import ATTEMPTS, Objects, default_publisher, now
from .open_storage import open_storage
from .records import Version
from .reference import LATEST, Reference, check_name, check_tag
from .storage import Storage

GRACE_SECONDS = 24 * 3600
"""Age in seconds below which ``gc`` keeps an object: someone may be publishing it."""


class HeadStore:
    """Heads by name and version, under one root.

    Args:
        url: A local directory, or a URL for fsspec: ``s3://bucket/folder``, ``gs://…``, ``az://…``.
            Default: ``$HEADKIT_STORE``, or ``headkit/heads`` in the user's data folder.

    Raises:
        DependencyMissing, RegistryError: See ``open_storage``.
    """

    def __init__(self, url: str | Path | None = None) -> None:
        self.storage: Storage = open_storage(default_url() if url is None else url)
        self._objects = Objects(self.storage)

    def __repr__(self) -> str:
        return format_line("HeadStore", {"url": self.url})

    def _repr_html_(self) -> str:
        return format_table("HeadStore", {"url": self.url})

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
        """Publish a head as the next version of a name; create the store if there is none.

        Args:
            head: A head, or the path of a head file.
            name: Name with 1 to 63 characters from a-z, 0-9, '-', '_' and '.'.
            tags: Tags to set on the new version.
            publisher: Who publishes it. Default: ``$HEADKIT_PUBLISHER`` or the user's name.
            parent: Reference to the head that it was made from. Default: the newest version.
            notes: Free text.

        Raises:
            HeadFormatError: The file is not a head file.
            RegistryError: The name, a tag or the reference is not valid, or the store cannot be
                written.
        """
        check_name(name)
        for tag in tags:
            _check_settable(tag)
        content = head.serialize() if isinstance(head, Head) else _read_file(head)
        metadata = describe_head(head if isinstance(head, Head) else _parse_head(content, head))
        parent_digest = "" if parent is None else self.resolve(parent).digest
        self._objects.check_root(create=True)
        digest = hashlib.sha256(content).hexdigest()
        self._objects.write_blob(digest, content)
        listing = self._objects.list_name(name)
        number = max(listing.versions, default=0) + 1
        if parent is None and listing.latest is not None:
            parent_digest = self._objects.read_record(name, listing.latest).digest
        nonce = secrets.token_hex(16) if self._objects.chained else ""
        for _ in range(ATTEMPTS):
            version = Version(
                name=name,
                version=number,
                digest=digest,
                size=len(content),
                published=now(),
                publisher=publisher or default_publisher(),
                parent=parent_digest,
                notes=notes,
                head=metadata,
                previous=self._objects.hash_record(name, number - 1),
                nonce=nonce,
            )
            try:
                self._objects.create_record(version)
                break
            except FileExistsError:
                # Another publisher was faster, or the store refused all simultaneous writes.
                with suppress(FileNotFoundError):
                    other = self._objects.read_record(name, number)
                    number += 1
                    parent_digest = other.digest if parent is None else parent_digest
        else:
            raise RegistryError(
                f"{self.url}: gave up after {ATTEMPTS} attempts, as others kept publishing {name} "
                "at the same time: try again later"
            )
        try:
            self.storage.stat(blob_key(digest))
        except FileNotFoundError:  # gc deleted it before the record named it
            self._objects.write_blob(digest, content)
        for tag in tags:
            self._objects.set_tag(version, tag)
        return version

    def list(self, pattern: str = "*") -> list[Entry]:
        """List the names that match a glob, in alphabetical order.

        Raises:
            RegistryError: There is no store.
        """
        self._objects.check_root()
        names = self._objects.list_names()
        if not names:
            self._objects.check_still_exists()
        return [
            Entry(
                name,
                listing.latest,
                tuple(sorted(listing.versions)),
                tuple(sorted(listing.tags)),
                tuple(sorted(listing.yanked)),
            )
            for name, listing in sorted(names.items())
            if listing.versions and fnmatchcase(name, pattern)
        ]

    def versions(self, name: str) -> Sequence[Version]:
        """Return all versions of a name, the oldest first.

        Raises:
            RegistryError: The store does not have the name.
        """
        self._objects.check_root()
        numbers = sorted(self._objects.list_name(check_name(name)).versions)
        if not numbers:
            raise self._objects.missing_name_error(name)
        return [self._objects.read_record(name, number) for number in numbers]

    def tags(self, name: str) -> dict[str, int]:
        """Return the number of the version that each tag of a name points to."""
        self._objects.check_root()
        listing = self._objects.list_name(check_name(name))
        return {tag: self._objects.read_tag(name, tag) for tag in sorted(listing.tags)}

    def resolve(self, ref: str | Reference) -> Version:
        """Return the version that a reference names.

        Raises:
            RegistryError: The reference names no version, or more than one.
        """
        reference = ref if isinstance(ref, Reference) else Reference.parse(ref)
        self._objects.check_root()
        if reference.digest:
            return self._objects.find_digest(reference.digest)
        name = reference.name
        if reference.version is not None:
            number = reference.version
        elif reference.tag == LATEST:
            listing = self._objects.list_name(name)
            if not listing.versions:
                raise self._objects.missing_name_error(name)
            if listing.latest is None:
                raise RegistryError(
                    f"all versions of {name} are yanked: request one by its number, such as "
                    f"{name}@{max(listing.versions)}"
                )
            number = listing.latest
        else:
            number = self._objects.read_tag(name, reference.tag or LATEST)
        try:
            return self._objects.read_record(name, number)
        except FileNotFoundError as error:
            numbers = sorted(self._objects.list_name(name).versions)
            if not numbers:
                raise self._objects.missing_name_error(name) from error
            raise RegistryError(
                f"{name} has no version {number}; it has {format_ranges(numbers)}"
            ) from error

    def read(self, ref: str | Reference | Version) -> bytes:
        """Return the bytes of the head file that a reference names, checked against its hash.

        Raises:
            RegistryError: The reference names no version, or the bytes are not the published ones.
        """
        return self._objects.read_blob(self._version(ref))

    def pull(self, ref: str | Reference | Version, out: str | Path | None = None) -> Path:
        """Write the head file that a reference names to a local path, and return the path.

        Args:
            ref: A reference or a version.
            out: Path to write. Default: a path in the cache (``$HEADKIT_CACHE`` or the user's) that
                is named after the file's hash.

        Raises:
            RegistryError: See ``read``.
            OutputError: ``out`` cannot be written, or does not end in ``.safetensors``.
        """
        if out is not None:
            check_output(out, HEAD)
        version = self._version(ref)
        content = self._objects.read_blob(version)
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
        return _parse_head(self._objects.read_blob(version), str(version))

    def tag(self, ref: str, tag: str) -> Version:
        """Point a tag to a version, whatever it pointed to before.

        Raises:
            RegistryError: The reference names no version, the version is yanked, or the tag is not
                valid.
        """
        _check_settable(tag)
        version = self.resolve(ref)
        if version.version in self._objects.list_name(version.name).yanked:
            raise RegistryError(
                f"{version} is yanked: tag another version, or undo the yank of this one first"
            )
        self._objects.set_tag(version, tag)
        return version

    def untag(self, name: str, tag: str) -> None:
        """Remove a tag; the version that it pointed to stays.

        Raises:
            RegistryError: The name does not have the tag.
        """
        self._objects.check_root()
        check_name(name)
        _check_settable(tag)
        try:
            self.storage.delete(tag_key(name, tag))
        except FileNotFoundError as error:
            raise self._objects.missing_tag_error(name, tag) from error

    def yank(self, ref: str, *, undo: bool = False) -> Version:
        """Yank a version: ``latest`` skips it, while its number and its tags still work.

        Args:
            ref: Reference to the version.
            undo: Undo an earlier yank instead.

        Raises:
            RegistryError: The reference names no version, or ``undo`` is True and the version is
                not yanked.
        """
        version = self.resolve(ref)
        key = f"{HEADS}{version.name}/{version.version}{YANKED}"
        if undo:
            try:
                self.storage.delete(key)
            except FileNotFoundError as error:
                raise RegistryError(f"{version} is not yanked") from error
        else:
            self.storage.replace(key, encode_json({"at": now(), "by": default_publisher()}))
        return version

    def verify(self) -> Sequence[str]:
        """Check every object of the store; return the problems, one line each.

        Raises:
            RegistryError: There is no store.
        """
        return maintenance.verify(self._objects)

    def unchained(self) -> Sequence[str]:
        """Return the versions that were published to a store of version 1, without checksums.

        ``verify`` cannot find out whether their records were changed.
        """
        return maintenance.list_unchained(self._objects)

    def upgrade(self) -> None:
        """Make a store of version 1 one of version 2, whose new records and tags have checksums.

        Versions of headkit before 0.2 can then no longer use the store.

        Raises:
            RegistryError: There is no store, or it cannot be written.
        """
        self._objects.upgrade()

    def gc(
        self,
        *,
        grace_seconds: float = GRACE_SECONDS,
        dry_run: bool = False,
        force: bool = False,
    ) -> Sequence[str]:
        """Delete head files that no version names, and files that interrupted publishers left.

        A head file first moves to the store's trash. A later ``gc`` deletes it there when it has
        been in the trash for longer than the grace.

        Args:
            grace_seconds: Age in seconds below which an object is kept, by the store's own clock.
            dry_run: Delete nothing; return what would be deleted.
            force: Accept a grace of less than an hour.

        Returns:
            Keys of the objects that were deleted or moved to the trash.

        Raises:
            RegistryError: There is no store, the grace is too short, or a version cannot be read;
                then nothing is deleted.
        """
        return maintenance.gc(
            self._objects, grace_seconds=grace_seconds, dry_run=dry_run, force=force
        )

    def _version(self, ref: str | Reference | Version) -> Version:
        return ref if isinstance(ref, Version) else self.resolve(ref)


def default_url() -> str:
    """Return ``$HEADKIT_STORE``, or ``headkit/heads`` in the user's data folder."""
    data = os.environ.get("XDG_DATA_HOME") or str(Path("~/.local/share").expanduser())
    return os.environ.get("HEADKIT_STORE") or str(Path(data) / "headkit" / "heads")


def _check_settable(tag: str) -> None:
    if check_tag(tag) == LATEST:
        raise RegistryError(
            f"{LATEST!r} always means the newest version: it cannot be set or removed"
        )


def _read_file(path: str | Path) -> bytes:
    mistake = explain_wrong_kind(path, HEAD)
    if mistake is not None:
        raise HeadFormatError(f"cannot read head {path}: {mistake}")
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise HeadFormatError(f"cannot read head {path}: {error.strerror or error}") from error


def _parse_head(content: bytes, what: str | Path) -> Head:
    """Return the head in the bytes of a head file; errors call the file ``what``."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "head.safetensors"
        path.write_bytes(content)
        try:
            return Head.load(path)
        except HeadFormatError as error:
            raise HeadFormatError(str(error).replace(str(path), str(what))) from error
