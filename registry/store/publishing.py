"""Write a head to a store as the next version of a name."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from headkit.adapters.errors import RegistryError

from .layout import blob_key
from .objects import ATTEMPTS, Objects, default_publisher, now
from .records import Version


def write_version(
    objects: Objects,
    content: bytes,
    name: str,
    *,
    head: Mapping[str, Any],
    publisher: str | None,
    parent: str | None,
    notes: str,
) -> Version:
    """Write the head file, then the record of the next version of a name, and return the version.

    Killed before the record, it leaves a head file that no version names, which ``gc`` removes.
    Killed after the record, it leaves a version; if ``gc`` has taken its head file in between, the
    next reader or ``gc`` puts that back from the trash.

    Args:
        objects: Objects of the store, which is created if there is none.
        content: Bytes of the head file.
        name: Valid name.
        head: Metadata of the head.
        publisher: Who publishes it. Default: ``default_publisher()``.
        parent: Digest of the head that it was made from. Default: that of the newest version.
        notes: Free text.

    Raises:
        RegistryError: The store cannot be written, or others kept publishing the same name.
    """
    objects.check_root(create=True)
    digest = hashlib.sha256(content).hexdigest()
    objects.write_blob(digest, content)
    listing = objects.list_name(name)
    number = max(listing.versions, default=0) + 1
    parent_digest = parent or ""
    if parent is None and listing.latest is not None:
        parent_digest = objects.read_record(name, listing.latest).digest
    nonce = secrets.token_hex(16) if objects.chained else ""
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
            head=head,
            previous=objects.hash_record(name, number - 1),
            nonce=nonce,
        )
        try:
            objects.create_record(version)
            break
        except FileExistsError:
            # Another publisher was faster, or the store refused all simultaneous writes.
            with suppress(FileNotFoundError):
                other = objects.read_record(name, number)
                number += 1
                parent_digest = other.digest if parent is None else parent_digest
    else:
        raise RegistryError(
            f"{objects.url}: gave up after {ATTEMPTS} attempts, as others kept publishing {name} "
            "at the same time: try again later"
        )
    try:
        objects.storage.stat(blob_key(digest))
    except FileNotFoundError:  # gc deleted it before the record named it
        objects.write_blob(digest, content)
    return version
