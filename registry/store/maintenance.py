"""Maintenance of a store: check all its objects, and delete those that are no longer needed."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from contextlib import suppress

from headkit.adapters.errors import RegistryError, StoreError

from .layout import BLOBS, SUFFIX, TRASH, blob_key, format_ranges, record_key, trash_key
from .objects import ATTEMPTS, Objects
from .records import is_chained
from .reference import is_digest
from .signing.versions import Trust
from .storage import TEMPORARY

MIN_GRACE_SECONDS = 3600
"""Least grace that ``gc`` accepts without force: a slow publisher may need minutes."""


def verify(objects: Objects, trust: Trust) -> Sequence[str]:
    """Check every object of a store. See ``HeadStore.verify``."""
    objects.check_root()
    problems = []
    for one in objects.storage.objects(BLOBS):
        if one.is_link:
            problems.append(f"{one.key} is a symbolic link")
        elif one.key != blob_key(_digest_of(one.key)):
            problems.append(f"{one.key} is not an object of a store")
    unknown: list[str] = []
    listings = objects.list_names(unknown)
    checked = set[str]()
    for name, listing in sorted(listings.items()):
        unknown += listing.unknown
        problems += [f"{key} is a symbolic link" for key in listing.links]
        problems += _check_versions(objects, trust, name, sorted(listing.versions), checked)
        for what, numbers in (("yanked", listing.yanked), ("signed", listing.signed)):
            problems += [
                f"{name}@{number} is {what}, but missing"
                for number in sorted(set(numbers) - set(listing.versions))
            ]
        for tag in sorted(listing.tags):
            try:
                number = objects.read_tag(name, tag)
                if number not in listing.versions:
                    problems.append(f"{name}@{tag} points to version {number}, which is missing")
            except RegistryError as error:
                problems.append(str(error))
    return [*problems, *(f"{key} is not an object of a store" for key in sorted(unknown))]


def _check_versions(
    objects: Objects, trust: Trust, name: str, numbers: Sequence[int], checked: set[str]
) -> list[str]:
    """Check the records of a name, their chain and signatures, and head files not yet checked."""
    problems, before, previous = [], 0, ""
    for number in numbers:
        if number != before + 1:
            missing = range(before + 1, number)
            text = f"{missing[0]}" if len(missing) == 1 else f"{missing[0]}-{missing[-1]}"
            problems.append(f"{name}@{text} is missing")
            previous = ""
        before = number
        try:
            version = objects.read_record(name, number)
            if previous and version.previous and version.previous != previous:
                problems.append(
                    f"{name}@{number - 1} was changed after {name}@{number} was published: the "
                    "SHA-256 of its record is not the one that the next record names"
                )
            problem = trust.explain_problem(objects, version)
            problems += [problem] if problem else []
            if version.digest not in checked:
                checked.add(version.digest)
                objects.read_blob(version)
        except (RegistryError, FileNotFoundError) as error:
            problems.append(str(error))
        previous = ""
        with suppress(RegistryError, FileNotFoundError):
            previous = hashlib.sha256(objects.storage.read(record_key(name, number))).hexdigest()
    return problems


def list_unchained(objects: Objects) -> list[str]:
    """Return the versions whose records have no checksum. See ``HeadStore.unchained``."""
    objects.check_root()
    unchained = []
    for name, listing in sorted(objects.list_names().items()):
        numbers = []
        for number in sorted(listing.versions):
            with suppress(RegistryError, FileNotFoundError):  # ``verify`` reports it
                if not is_chained(objects.storage.read(record_key(name, number))):
                    numbers.append(number)
        if numbers:
            unchained.append(f"{name}@{format_ranges(numbers)}")
    return unchained


def gc(objects: Objects, *, grace_seconds: float, dry_run: bool, force: bool) -> Sequence[str]:
    """Delete objects that are no longer needed. See ``HeadStore.gc``.

    Nothing that a version names is lost, whatever the grace and wherever this process is killed:

    - A head file leaves ``blobs`` only after ``trash`` has a copy. ``read_blob`` takes it back.
    - A copy leaves ``trash`` only after an hour there, whatever the grace, and only if ``blobs``
      does not have the head file and no version named it in a listing that began after that was
      seen. A publisher checks that the head file is there after it has written the record. So the
      listing has the record, or the publisher writes the head file again.

    Two that run at once leave one gap: one is about to delete an old copy from ``trash`` while the
    other replaces it with a new one and a publisher writes a record that names it. Without a forced
    grace this takes a publisher that needs longer than the grace.
    """
    if grace_seconds < MIN_GRACE_SECONDS and not force and not dry_run:
        raise RegistryError(
            f"grace is {grace_seconds:g} s, expected at least {MIN_GRACE_SECONDS} s: somebody may "
            "be publishing the files; pass force=True (--force) if nobody is"
        )
    objects.check_root()
    storage = objects.storage
    now = _store_time(objects)
    before = now - grace_seconds
    before_in_trash = now - max(grace_seconds, MIN_GRACE_SECONDS)
    old = [
        one.key
        for one in storage.objects(BLOBS)
        if one.modified <= before and one.key == blob_key(_digest_of(one.key))
    ]
    expired = [one.key for one in storage.objects(TRASH) if one.modified <= before_in_trash]
    expired = [key for key in expired if not _exists(objects, blob_key(_digest_of(key)))]
    used = _list_used_digests(objects)
    unused = [key for key in old if _digest_of(key) not in used]
    abandoned = [one.key for one in storage.objects(f"{TEMPORARY}/") if one.modified <= before]
    if dry_run:
        return sorted(
            [*unused, *abandoned, *(key for key in expired if _digest_of(key) not in used)]
        )
    deleted = []
    for key in expired:
        if _digest_of(key) in used:
            _put_back(objects, _digest_of(key))
        else:
            deleted += _delete_expired(objects, key, before_in_trash)
    for key in abandoned:
        deleted += _delete(objects, key)
    moved = [key for key in unused if _move_to_trash(objects, key, before)]
    # A publisher may have named a head file since the listing: put it back.
    used = _list_used_digests(objects) if moved else set()
    for key in moved:
        if _digest_of(key) in used:
            _put_back(objects, _digest_of(key))
        else:
            deleted.append(key)
    return sorted(deleted)


def _move_to_trash(objects: Objects, key: str, before: float) -> bool:
    """Copy a head file to ``trash``, then delete it; return False if it is too new for that."""
    storage, copy = objects.storage, trash_key(_digest_of(key))
    with suppress(FileNotFoundError):
        # A publisher may have written the object again since it was listed.
        if storage.stat(key).modified > before:
            return False
        # The copy gets a new age, even if an earlier run left one.
        storage.replace(copy, storage.read(key))
        storage.delete(key)
        return True
    return False


def _put_back(objects: Objects, digest: str) -> None:
    """Copy a head file from ``trash`` to ``blobs``, unless another ``gc`` is doing so."""
    with suppress(FileNotFoundError):
        objects.restore(digest, objects.storage.read(trash_key(digest)))


def _delete_expired(objects: Objects, key: str, before: float) -> list[str]:
    """Delete a copy in ``trash``, unless another ``gc`` has written it again since the listing."""
    with suppress(FileNotFoundError):
        if objects.storage.stat(key).modified <= before:
            return _delete(objects, key)
    return []


def _delete(objects: Objects, key: str) -> list[str]:
    with suppress(FileNotFoundError):
        objects.storage.delete(key)
        return [key]
    return []


def _exists(objects: Objects, key: str) -> bool:
    try:
        objects.storage.stat(key)
    except FileNotFoundError:
        return False
    return True


def _store_time(objects: Objects) -> float:
    """Return the time by the clock that dates the objects, which may not be this machine's."""
    for _ in range(ATTEMPTS):
        key = f"{TEMPORARY}/clock-{secrets.token_hex(8)}"
        with suppress(FileNotFoundError):  # another gc has just removed it
            objects.storage.replace(key, b"")
            try:
                return objects.storage.stat(key).modified
            finally:
                _delete(objects, key)
    raise StoreError(
        f"{objects.url}: others removed each of {ATTEMPTS} files that would have told the time: "
        "run gc again when no other gc runs"
    )


def _digest_of(key: str) -> str:
    """Return the digest in the key of a head file; empty if the key is not one."""
    stem = key.rpartition("/")[2].removesuffix(SUFFIX)
    return stem if is_digest(stem) else ""


def _list_used_digests(objects: Objects) -> set[str]:
    """Return the digests of the head files that at least one version names."""
    digests = set()
    for name, listing in objects.list_names().items():
        if listing.links:
            raise StoreError(
                f"{objects.url}/{listing.links[0]} is a symbolic link; a store must not contain "
                "links: remove it"
            )
        digests |= {objects.read_record(name, number).digest for number in listing.versions}
    return digests
