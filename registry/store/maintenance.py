"""Maintenance of a store: check all its objects, and delete those that are no longer needed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress

from headkit.adapters.errors import RegistryError, StoreError

from .layout import BLOBS, blob_key
from .objects import Objects
from .storage import TEMPORARY


def verify(objects: Objects) -> Sequence[str]:
    """Check every object of a store. See ``HeadStore.verify``."""
    objects.check_root()
    problems = []
    blobs = objects.storage.objects(BLOBS)
    problems += [f"{one.key} is a symbolic link" for one in blobs if one.is_link]
    checked = set[str]()
    for name, listing in sorted(objects.list_names().items()):
        problems += [f"{key} is a symbolic link" for key in listing.links]
        numbers = set(range(1, max(listing.versions, default=0) + 1))
        problems += [f"{name}@{n} is missing" for n in sorted(numbers - set(listing.versions))]
        for number in sorted(listing.versions):
            try:
                version = objects.read_record(name, number)
                if version.digest not in checked:
                    checked.add(version.digest)
                    objects.read_blob(version)
            except (RegistryError, FileNotFoundError) as error:
                problems.append(str(error))
        for tag in sorted(listing.tags):
            try:
                number = objects.read_tag(name, tag)
                if number not in listing.versions:
                    problems.append(f"{name}@{tag} points to version {number}, which is missing")
            except RegistryError as error:
                problems.append(str(error))
    return problems


def gc(objects: Objects, *, grace_seconds: float, dry_run: bool) -> Sequence[str]:
    """Delete objects that are no longer needed. See ``HeadStore.gc``."""
    objects.check_root()
    before = time.time() - grace_seconds
    old = [one for one in objects.storage.objects(BLOBS) if one.modified <= before]
    used = _list_used_blobs(objects)
    unused = [one.key for one in old if one.key not in used]
    unused += [o.key for o in objects.storage.objects(f"{TEMPORARY}/") if o.modified <= before]
    if dry_run:
        return sorted(unused)
    deleted = {}
    for key in unused:
        with suppress(FileNotFoundError):
            # A publisher may have written the object again since it was listed.
            if objects.storage.stat(key).modified <= before:
                deleted[key] = objects.storage.read(key)
                objects.storage.delete(key)
    # A publisher may have named a head file between that check and its deletion: restore it.
    for key in _list_used_blobs(objects) & set(deleted):
        with suppress(FileExistsError):
            objects.storage.create(key, deleted[key])
        del deleted[key]
    return sorted(deleted)


def _list_used_blobs(objects: Objects) -> set[str]:
    """Return the keys of the head files that at least one version names."""
    keys = set()
    for name, listing in objects.list_names().items():
        if listing.links:
            raise StoreError(
                f"{objects.url}/{listing.links[0]} is a symbolic link; a store must not contain "
                "links: remove it"
            )
        numbers = listing.versions
        keys |= {blob_key(objects.read_record(name, number).digest) for number in numbers}
    return keys
