"""The store of published heads: immutable versions, tags that move, content found by its hash.

A version is one object that is created only if there is none of its number, after the head file it
names: a publisher that dies leaves no half version, and no two get the same number. What lies where
is in ``layout``.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ..adapters.errors import HeadFormatError, RegistryError, StoreError, first_line
from ..adapters.files import cache_folder, write_atomically
from ..adapters.head import Head
from .layout import (
    BLOBS,
    FORMAT,
    HEADS,
    STORE,
    SUFFIX,
    VERSION,
    YANKED,
    Entry,
    Listed,
    Version,
    blob_key,
    described_of,
    encoded,
    ranges,
    record_key,
    sort_into,
    tag_key,
)
from .reference import (
    DIGEST,
    LATEST,
    Reference,
    check_name,
    check_tag,
    looks_like_reference,
)
from .storage import TEMPORARY, LocalStorage, Storage, open_storage

GRACE_SECONDS = 24 * 3600
"""Age below which ``gc`` leaves objects alone: someone may be publishing them."""
ATTEMPTS = 1000
"""To get a number; each time that another publisher was faster costs one."""


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
        self._checked = False

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
        self._open(make=True)
        digest = hashlib.sha256(content).hexdigest()
        self._put_blob(digest, content)
        for _ in range(ATTEMPTS):
            listed = self._listed(name)
            number = max(listed.versions, default=0) + 1
            if parent is None and listed.latest is not None:
                came_from = self._record(name, listed.latest).digest
            version = Version(
                name=name,
                version=number,
                digest=digest,
                size=len(content),
                published=_now(),
                publisher=publisher or default_publisher(),
                parent=came_from,
                notes=notes,
                head=described,
            )
            try:
                self.storage.create(record_key(name, number), encoded(asdict(version)))
                break
            except FileExistsError:
                continue
        else:
            raise RegistryError(f"{self.url}: no number for {name} in {ATTEMPTS} attempts")
        try:
            self.storage.one(blob_key(digest))
        except FileNotFoundError:  # swept away meanwhile as the blob of no version
            self._put_blob(digest, content)
        for tag in tags:
            self._set_tag(version, tag)
        return version

    def list(self, pattern: str = "*") -> list[Entry]:
        """List the names that match a glob, in alphabetical order.

        Raises:
            RegistryError: there is no store.
        """
        self._open()
        return [
            Entry(
                name,
                listed.latest,
                tuple(sorted(listed.versions)),
                tuple(sorted(listed.tags)),
                tuple(sorted(listed.yanked)),
            )
            for name, listed in sorted(self._all().items())
            if listed.versions and fnmatchcase(name, pattern)
        ]

    def versions(self, name: str) -> Sequence[Version]:
        """Return all versions of a name, the oldest first.

        Raises:
            RegistryError: there is none.
        """
        self._open()
        numbers = sorted(self._listed(check_name(name)).versions)
        if not numbers:
            raise self._no_name(name)
        return [self._record(name, number) for number in numbers]

    def tags(self, name: str) -> dict[str, int]:
        """Return which version each tag of a name points to."""
        self._open()
        listed = self._listed(check_name(name))
        return {tag: self._tagged(name, tag) for tag in sorted(listed.tags)}

    def resolve(self, ref: str | Reference) -> Version:
        """Return the version that a reference names.

        Raises:
            RegistryError: it names none, or more than one.
        """
        reference = ref if isinstance(ref, Reference) else Reference.parse(ref)
        self._open()
        if reference.digest:
            return self._by_digest(reference.digest)
        name = reference.name
        if reference.version is not None:
            number = reference.version
        elif reference.tag == LATEST:
            listed = self._listed(name)
            if not listed.versions:
                raise self._no_name(name)
            if listed.latest is None:
                raise RegistryError(
                    f"all versions of {name} are yanked: name one, such as "
                    f"{name}@{max(listed.versions)}"
                )
            number = listed.latest
        else:
            number = self._tagged(name, reference.tag or LATEST)
        try:
            return self._record(name, number)
        except FileNotFoundError as error:
            numbers = sorted(self._listed(name).versions)
            if not numbers:
                raise self._no_name(name) from error
            raise RegistryError(
                f"{name} has no version {number}, it has {ranges(numbers)}"
            ) from error

    def read(self, ref: str | Reference | Version) -> bytes:
        """Return the head file that a reference names, checked against its hash.

        Raises:
            RegistryError: there is none, or its bytes are not those that were published.
        """
        version = ref if isinstance(ref, Version) else self.resolve(ref)
        return self._blob(version)

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
        version = ref if isinstance(ref, Version) else self.resolve(ref)
        content = self._blob(version)
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
        version = ref if isinstance(ref, Version) else self.resolve(ref)
        return _parsed(self._blob(version), str(version))

    def tag(self, ref: str, tag: str) -> Version:
        """Have a tag point to a version, whatever it pointed to before.

        Raises:
            RegistryError: the reference names none, the version is yanked, or the tag is none.
        """
        _check_settable(tag)
        version = self.resolve(ref)
        if version.version in self._listed(version.name).yanked:
            raise RegistryError(f"{version} is yanked: nothing new should use it")
        self._set_tag(version, tag)
        return version

    def untag(self, name: str, tag: str) -> None:
        """Remove a tag; the version that it pointed to stays.

        Raises:
            RegistryError: there is no such tag.
        """
        self._open()
        check_name(name)
        _check_settable(tag)
        try:
            self.storage.delete(tag_key(name, tag))
        except FileNotFoundError as error:
            raise self._no_tag(name, tag) from error

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
            self.storage.replace(key, encoded({"at": _now(), "by": default_publisher()}))
        return version

    def verify(self) -> Sequence[str]:
        """Check every object of the store. Returns what is wrong, one line each.

        Raises:
            RegistryError: there is no store.
        """
        self._open()
        problems = []
        blobs = {one.key: one for one in self.storage.objects(BLOBS)}
        problems += [f"{one.key} is a symbolic link" for one in blobs.values() if one.is_link]
        checked: dict[str, str] = {}
        for name, listed in sorted(self._all().items()):
            problems += [f"{key} is a symbolic link" for key in listed.links]
            numbers = set(range(1, max(listed.versions, default=0) + 1))
            problems += [f"{name}@{n} is gone" for n in sorted(numbers - set(listed.versions))]
            for number in sorted(listed.versions):
                try:
                    version = self._record(name, number)
                    if version.digest not in checked:
                        checked[version.digest] = ""
                        self._blob(version)
                except (RegistryError, FileNotFoundError) as error:
                    problems.append(str(error))
            for tag in sorted(listed.tags):
                try:
                    number = self._tagged(name, tag)
                    if number not in listed.versions:
                        problems.append(f"{name}@{tag} points to version {number}, which is gone")
                except RegistryError as error:
                    problems.append(str(error))
        return problems

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
        self._open()
        before = time.time() - grace_seconds
        old = [one for one in self.storage.objects(BLOBS) if one.modified <= before]
        named = self._named()
        unused = [one.key for one in old if one.key not in named]
        unused += [o.key for o in self.storage.objects(f"{TEMPORARY}/") if o.modified <= before]
        if dry_run:
            return sorted(unused)
        deleted = {}
        for key in unused:
            with suppress(FileNotFoundError):
                if self.storage.one(key).modified <= before:  # not published again meanwhile
                    deleted[key] = self.storage.read(key)
                    self.storage.delete(key)
        for key in self._named() & set(deleted):  # or since then
            with suppress(FileExistsError):
                self.storage.create(key, deleted[key])
            del deleted[key]
        return sorted(deleted)

    def _named(self) -> set[str]:
        """Keys of the head files that a version names."""
        found = set()
        for name, listed in self._all().items():
            if listed.links:
                raise StoreError(f"{self.url}/{listed.links[0]} is a symbolic link")
            found |= {blob_key(self._record(name, number).digest) for number in listed.versions}
        return found

    def _open(self, *, make: bool = False) -> None:
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

    def _put_blob(self, digest: str, content: bytes) -> None:
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

    def _blob(self, version: Version) -> bytes:
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

    def _record(self, name: str, number: int) -> Version:
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

    def _all(self) -> dict[str, Listed]:
        found: dict[str, Listed] = {}
        for one in self.storage.objects(HEADS):
            name, _, last = one.key.removeprefix(HEADS).partition("/")
            sort_into(found.setdefault(name, Listed()), one.key, last, one.is_link)
        return found

    def _listed(self, name: str) -> Listed:
        found = Listed()
        prefix = f"{HEADS}{name}/"
        for one in self.storage.objects(prefix):
            sort_into(found, one.key, one.key.removeprefix(prefix), one.is_link)
        return found

    def _tagged(self, name: str, tag: str) -> int:
        try:
            found = self._json(tag_key(name, tag))
        except FileNotFoundError as error:
            raise self._no_tag(name, tag) from error
        number = found.get("version")
        own = (found.get("name"), found.get("tag")) == (name, tag)
        if not own or not isinstance(number, int) or number < 1:
            raise StoreError(f"{self.url}/{tag_key(name, tag)} names no version")
        return number

    def _set_tag(self, version: Version, tag: str) -> None:
        moved = {
            "name": version.name,
            "tag": tag,
            "version": version.version,
            "at": _now(),
            "by": default_publisher(),
        }
        self.storage.replace(tag_key(version.name, tag), encoded(moved))

    def _by_digest(self, digits: str) -> Version:
        found = [
            one.key.rpartition("/")[2].removesuffix(SUFFIX)
            for one in self.storage.objects(f"{BLOBS}{digits[:2]}/")
            if one.key.rpartition("/")[2].startswith(digits)
        ]
        if len(found) > 1:
            raise RegistryError(f"{DIGEST}{digits} names {len(found)} head files: give more digits")
        for name, listed in sorted(self._all().items()) if found else ():
            for number in sorted(listed.versions):
                version = self._record(name, number)
                if version.digest == found[0]:
                    return version
        raise RegistryError(f"{self.url} has no head {DIGEST}{digits}")

    def _no_name(self, name: str) -> RegistryError:
        import difflib

        near = difflib.get_close_matches(name, list(self._all()), n=3, cutoff=0.5)
        hint = f"nearest: {', '.join(near)}" if near else "`headkit heads list` lists all names"
        return RegistryError(f"{self.url} has no head {name!r}; {hint}")

    def _no_tag(self, name: str, tag: str) -> RegistryError:
        listed = self._listed(name)
        if not listed.versions:
            return self._no_name(name)
        has = f"it has {', '.join(sorted(listed.tags))}" if listed.tags else "it has none"
        return RegistryError(f"{name} has no tag {tag!r}; {has}")


def located(text: str) -> Path | None:
    """Return the local file of what a reference names in the user's store.

    Returns:
        None if the text is no reference by its form.

    Raises:
        RegistryError: the reference names nothing.
    """
    if not looks_like_reference(text):
        return None
    try:
        return HeadStore().pull(text)
    except RegistryError as error:
        raise RegistryError(f"there is no file {text}, and as a reference: {error}") from error


def default_url() -> str:
    """Return ``$HEADKIT_STORE``, or ``headkit/heads`` in the user's data folder."""
    data = os.environ.get("XDG_DATA_HOME") or str(Path("~/.local/share").expanduser())
    return os.environ.get("HEADKIT_STORE") or str(Path(data) / "headkit" / "heads")


def default_publisher() -> str:
    """Return ``$HEADKIT_PUBLISHER``, or the user's name."""
    try:
        return os.environ.get("HEADKIT_PUBLISHER") or getpass.getuser()
    except (KeyError, OSError):  # a container may have no user of this number
        return "unknown"


def _check_settable(tag: str) -> None:
    if check_tag(tag) == LATEST:
        raise RegistryError(f"{LATEST!r} is always the newest version: it cannot be set or removed")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _has_files(folder: Path) -> bool:
    """Whether there is more than what another publisher writes first."""
    try:
        return any(one.name != TEMPORARY for one in folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return False


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
