"""Upkeep of a store: what is wrong with it, and what nothing needs any more."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress

from headkit.adapters.errors import RegistryError, StoreError

from .layout import BLOBS, blob_key
from .objects import Objects
from .storage import TEMPORARY


def verify(objects: Objects) -> Sequence[str]:
    """Check every object of a store. Returns what is wrong, one line each.

    Raises:
        RegistryError: there is no store.
    """
    objects.open()
    problems = []
    blobs = objects.storage.objects(BLOBS)
    problems += [f"{one.key} is a symbolic link" for one in blobs if one.is_link]
    checked = set[str]()
    for name, listed in sorted(objects.names().items()):
        problems += [f"{key} is a symbolic link" for key in listed.links]
        numbers = set(range(1, max(listed.versions, default=0) + 1))
        problems += [f"{name}@{n} is gone" for n in sorted(numbers - set(listed.versions))]
        for number in sorted(listed.versions):
            try:
                version = objects.record(name, number)
                if version.digest not in checked:
                    checked.add(version.digest)
                    objects.blob(version)
            except (RegistryError, FileNotFoundError) as error:
                problems.append(str(error))
        for tag in sorted(listed.tags):
            try:
                number = objects.tagged(name, tag)
                if number not in listed.versions:
                    problems.append(f"{name}@{tag} points to version {number}, which is gone")
            except RegistryError as error:
                problems.append(str(error))
    return problems


def gc(objects: Objects, *, grace_seconds: float, dry_run: bool) -> Sequence[str]:
    """Delete what nothing needs. See ``HeadStore.gc``."""
    objects.open()
    before = time.time() - grace_seconds
    old = [one for one in objects.storage.objects(BLOBS) if one.modified <= before]
    named = _named(objects)
    unused = [one.key for one in old if one.key not in named]
    unused += [o.key for o in objects.storage.objects(f"{TEMPORARY}/") if o.modified <= before]
    if dry_run:
        return sorted(unused)
    deleted = {}
    for key in unused:
        with suppress(FileNotFoundError):
            if objects.storage.one(key).modified <= before:  # not published again meanwhile
                deleted[key] = objects.storage.read(key)
                objects.storage.delete(key)
    for key in _named(objects) & set(deleted):  # or since then
        with suppress(FileExistsError):
            objects.storage.create(key, deleted[key])
        del deleted[key]
    return sorted(deleted)


def _named(objects: Objects) -> set[str]:
    """Keys of the head files that a version names."""
    found = set()
    for name, listed in objects.names().items():
        if listed.links:
            raise StoreError(f"{objects.url}/{listed.links[0]} is a symbolic link")
        found |= {blob_key(objects.record(name, number).digest) for number in listed.versions}
    return found
