"""The store: immutable versions, movable tags, and head files that are named by their hash."""

from __future__ import annotations

import os
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from headkit.adapters.display import format_line, format_table
from headkit.adapters.errors import RegistryError, SignatureError
from headkit.adapters.file_kinds import HEAD, check_output
from headkit.adapters.files import cache_folder, is_file, make_folder, write_atomically
from headkit.adapters.heads.head import Head

from . import maintenance
from .head_files import parse_head, read_head_file
from .layout import (
    HEADS,
    SUFFIX,
    YANKED,
    Entry,
    describe_head,
    encode_json,
    format_ranges,
    tag_key,
)
from .objects import Objects, default_publisher, now
from .open_storage import open_storage
from .publishing import write_version
from .records import Version
from .reference import LATEST, Reference, check_name, check_tag
from .signing.keys import read_private_key
from .signing.versions import open_trust, sign_version
from .storage import Storage

GRACE_SECONDS = 24 * 3600
"""Age in seconds below which ``gc`` keeps an object: someone may be publishing it."""


class HeadStore:
    """Heads by name and version, under one root.

    Args:
        url: A local directory, or a URL for fsspec: ``s3://bucket/folder``, ``gs://…``, ``az://…``.
            Default: ``$HEADKIT_STORE``, or ``headkit/heads`` in the user's data folder.
        verify_with: Paths of public keys. ``resolve``, ``read``, ``pull``, ``load`` and ``tag``
            then take only versions that were signed with one of them. Default: the paths in
            ``$HEADKIT_VERIFY_WITH``, separated as in ``$PATH``; without any, all versions.
        name: Name of the store in signatures, the same for all who publish and read. Default:
            ``$HEADKIT_STORE_NAME``, or the URL, for a directory its absolute path.

    Attributes:
        name: Name of the store in signatures.

    Raises:
        DependencyMissing, RegistryError: See ``open_storage``.
        SignatureError: A public key cannot be used.
    """

    def __init__(
        self,
        url: str | Path | None = None,
        *,
        verify_with: Sequence[str | Path] | str | Path | None = None,
        name: str | None = None,
    ) -> None:
        self.storage: Storage = open_storage(default_url() if url is None else url)
        self._objects = Objects(self.storage)
        self.name = name or os.environ.get("HEADKIT_STORE_NAME") or self.storage.place
        self._trust = open_trust(verify_with, self.name)

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
        sign: str | Path | None = None,
    ) -> Version:
        """Publish a head as the next version of a name; create the store if there is none.

        Args:
            head: A head, or the path of a head file.
            name: Name with 1 to 63 characters from a-z, 0-9, '-', '_' and '.'.
            tags: Tags to set on the new version.
            publisher: Who publishes it. Default: ``$HEADKIT_PUBLISHER`` or the user's name.
            parent: Reference to the head that it was made from. Default: the newest version.
            notes: Free text.
            sign: Path of an Ed25519 key in PEM or in the format of OpenSSH, with which the version
                is signed. Its passphrase comes from ``$HEADKIT_SIGN_PASSPHRASE`` or the terminal.

        Raises:
            HeadFormatError: The file is not a head file.
            RegistryError: The name, a tag or the reference is not valid, or the store cannot be
                written.
            SignatureError: The key cannot be used; then nothing is published.
            DependencyMissing: ``sign`` needs ``cryptography``.
        """
        check_name(name)
        for tag in tags:
            _check_settable(tag)
        content = head.serialize() if isinstance(head, Head) else read_head_file(head)
        metadata = describe_head(head if isinstance(head, Head) else parse_head(content, head))
        parent_digest = None if parent is None else self._find(parent).digest
        key = None if sign is None else read_private_key(sign)
        version = write_version(
            self._objects,
            content,
            name,
            head=metadata,
            publisher=publisher,
            parent=parent_digest,
            notes=notes,
        )
        if key is not None:
            sign_version(self._objects, version, key, self.name)
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
            SignatureError: The version was not signed with one of the keys of ``verify_with``.
        """
        reference = ref if isinstance(ref, Reference) else Reference.parse(ref)
        if not reference.digest:
            return self._trust.check(self._objects, self._find(reference))
        # Several versions may have the same head file. One that is signed is enough.
        self._objects.check_root()
        problem: SignatureError | None = None
        for version in self._objects.find_digest(reference.digest):
            try:
                return self._trust.check(self._objects, version)
            except SignatureError as error:
                problem = problem or error
        assert problem is not None  # noqa: S101 - there is at least one version
        raise problem

    def _find(self, ref: str | Reference) -> Version:
        """Return the version that a reference names, whoever signed it."""
        reference = ref if isinstance(ref, Reference) else Reference.parse(ref)
        self._objects.check_root()
        if reference.digest:
            return next(self._objects.find_digest(reference.digest))
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
            SignatureError: See ``resolve``.
        """
        return self._objects.read_blob(self._version(ref))

    def pull(self, ref: str | Reference | Version, out: str | Path | None = None) -> Path:
        """Write the head file that a reference names to a local path, and return the path.

        Args:
            ref: A reference or a version.
            out: Path to write. Default: a path in the cache (``$HEADKIT_CACHE`` or the user's) that
                is named after the file's hash.

        Raises:
            RegistryError, SignatureError: See ``read``.
            OutputError: ``out`` cannot be written, or does not end in ``.safetensors``.
        """
        if out is not None:
            check_output(out, HEAD)
        version = self._version(ref)
        content = self._objects.read_blob(version)
        if out is not None:
            return write_atomically(out, content)
        folder = make_folder(cache_folder() / "heads")
        path = folder / f"{version.digest}{SUFFIX}"
        if not is_file(path) or path.read_bytes() != content:
            write_atomically(path, content)
        return path

    def load(self, ref: str | Reference | Version) -> Head:
        """Return the head that a reference names; see ``read``."""
        version = self._version(ref)
        return parse_head(self._objects.read_blob(version), str(version))

    def tag(self, ref: str, tag: str) -> Version:
        """Point a tag to a version, whatever it pointed to before. Tags are not signed.

        Raises:
            RegistryError: The reference names no version, the version is yanked, or the tag is not
                valid.
            SignatureError: See ``resolve``.
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
        version = self._find(ref)
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

        With keys in ``verify_with``, a version without a signature by one of them is a problem.

        Raises:
            RegistryError: There is no store.
        """
        return maintenance.verify(self._objects, self._trust)

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
        """Return a version that ``verify_with`` accepts. Every read of a head file asks this."""
        return (
            self._trust.check(self._objects, ref) if isinstance(ref, Version) else self.resolve(ref)
        )


def default_url() -> str:
    """Return ``$HEADKIT_STORE``, or ``headkit/heads`` in the user's data folder."""
    data = os.environ.get("XDG_DATA_HOME") or str(Path("~/.local/share").expanduser())
    return os.environ.get("HEADKIT_STORE") or str(Path(data) / "headkit" / "heads")


def _check_settable(tag: str) -> None:
    if check_tag(tag) == LATEST:
        raise RegistryError(
            f"{LATEST!r} always means the newest version: it cannot be set or removed"
        )
