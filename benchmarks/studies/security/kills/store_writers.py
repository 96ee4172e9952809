"""Processes that write a store of heads, and the check that the store has lost nothing.

Some of them have a clock that is a day off: their own time is, and so are the dates of the files
that they write, as from a client of a network file system that sets the dates itself.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from headkit.adapters.errors import RegistryError
from headkit.adapters.heads.head import Head
from headkit.benchmarks.studies.heads import make_head
from headkit.registry.store import objects
from headkit.registry.store import store as store_module
from headkit.registry.store.records import decode_record, decode_tag
from headkit.registry.store.reference import is_version
from headkit.registry.store.store import HeadStore

from ..proxy import DIRECT
from .actors import Say

DAY = 86_400
URL = "HEADKIT_STUDY_STORE"
"""Environment variable with the store's URL. Default: the folder ``store`` of the slice."""
NAMES = ("flowers", "birds")
TAGS = ("prod", "next", "old")
VERSIONS = 4
"""Number of versions that one publisher publishes, one after another; 2 on S3."""
SHARED = 6
"""Number of heads that all publishers publish again and again, while ``gc`` deletes them."""


def open_store(folder: Path) -> HeadStore:
    """Open the store of a slice."""
    return HeadStore(os.environ.get(URL) or folder / "store")


def load_client() -> None:
    """Load the client of S3 once, before processes fork.

    It pauses 20 ms between its attempts: its own pauses of seconds would make the study take hours.
    """
    import botocore.loaders
    import botocore.retryhandler
    import s3fs  # noqa: F401

    loader = botocore.loaders.create_loader()
    for name in ("service-2", "paginators-1", "waiters-2", "endpoint-rule-set-1"):
        loader.load_service_model("s3", name)
    for name in ("endpoints", "partitions", "sdk-default-configuration", "_retry"):
        loader.load_data(name)
    for module, name, value in (
        (botocore.loaders, "create_loader", lambda *_: loader),
        (botocore.retryhandler, "delay_exponential", lambda *_, **__: 0.02),
    ):
        setattr(module, name, value)


def open_directly(folder: Path) -> HeadStore:
    """Open the store of a slice without the proxy, to check it."""
    if DIRECT in os.environ:
        os.environ["AWS_ENDPOINT_URL"] = os.environ[DIRECT]
    return open_store(folder)


def prepare(folder: Path) -> None:
    """Create the store, with two versions of each name."""
    store = open_directly(folder)
    for name in NAMES:
        for number in (0, 1):
            store.publish(make_small_head(number), name, tags=TAGS[:1])


def make_small_head(number: int) -> Head:
    """Make a head; another number gives other bytes, the same number the same bytes."""
    return make_head(number, 64, created="2026-01-01T00:00:00+00:00")


def publish(folder: Path, generator: random.Random, say: Say) -> None:
    """Publish versions; acknowledge each after ``publish`` has returned."""
    set_clock(generator)
    store = open_store(folder)
    for _ in range(2 if URL in os.environ else VERSIONS):
        shared = generator.random() < 0.5
        head = make_small_head(
            generator.randrange(SHARED) if shared else generator.randrange(10**9)
        )
        if generator.random() < 0.2:
            head = replace(head, notes="n" * 2000)
        tags = TAGS[:1] if generator.random() < 0.3 else ()
        version = store.publish(head, generator.choice(NAMES), tags=tags)
        say("version", version.name, version.version, head.digest)


def gc(folder: Path, generator: random.Random, say: Say) -> None:
    """Delete unused head files with a forced grace of 0."""
    set_clock(generator)
    for _ in range(1 if URL in os.environ else 3):
        say("gc", len(open_store(folder).gc(grace_seconds=0, force=True)))


def tag(folder: Path, generator: random.Random, say: Say) -> None:
    """Point tags to versions."""
    set_clock(generator)
    store = open_store(folder)
    for _ in range(6):
        name = generator.choice(NAMES)
        with _lost_race("yanked"):
            version = store.tag(_choose(store, name, generator), generator.choice(TAGS))
            say("tag", str(version))


def untag(folder: Path, generator: random.Random, say: Say) -> None:
    """Remove tags and set them again."""
    store = open_store(folder)
    for _ in range(4):
        name, tag = generator.choice(NAMES), generator.choice(TAGS)
        with _lost_race("no tag", "yanked"):
            store.untag(name, tag)
            say("untag", name, tag)
            store.tag(_choose(store, name, generator), tag)


def yank(folder: Path, generator: random.Random, say: Say) -> None:
    """Yank versions, and undo that."""
    store = open_store(folder)
    for _ in range(4):
        ref = _choose(store, generator.choice(NAMES), generator)
        with _lost_race("not yanked"):
            store.yank(ref)
            say("yank", ref)
            store.yank(ref, undo=True)


def upgrade(folder: Path, generator: random.Random, say: Say) -> None:
    """Make the store one of version 1 by hand, and upgrade it again."""
    store = open_store(folder)
    if generator.random() < 0.5:
        text = b'{\n "format": "headkit-store",\n "version": "1"\n}\n'
        store.storage.replace("store.json", text)
    for _ in range(4):
        store.upgrade()
    say("upgrade")


def pull(folder: Path, generator: random.Random, say: Say) -> None:
    """Pull versions to a file and into the cache."""
    os.environ["HEADKIT_CACHE"] = str(folder / "cache")
    store = open_store(folder)
    for _ in range(6):
        ref = _choose(store, generator.choice(NAMES), generator)
        store.pull(ref, folder / "outputs" / "pulled.safetensors")
        store.pull(ref)
        say("pull", ref)


WRITERS = {
    "publish": publish,
    "gc": gc,
    "tag": tag,
    "untag": untag,
    "yank": yank,
    "upgrade": upgrade,
    "pull": pull,
}


def read_versions(folder: Path, said: Sequence[Sequence[Any]]) -> list[str]:
    """Return the acknowledged versions that the store does not have as they were published."""
    store, lost = open_directly(folder), []
    for _, name, number, digest in said:
        try:
            version = store.resolve(f"{name}@{number}")
            head = Head.load(store.pull(version, folder / "checked.safetensors"))
            if not version.digest == digest == head.digest:
                lost.append(f"{version} is {version.digest}, published as {digest}")
        except RegistryError as error:
            lost.append(f"{name}@{number}: {error}")
    return lost


def check(folder: Path) -> dict[str, Any]:
    """Check every object of the store.

    Returns:
        The missing numbers of versions (``gaps``); records, tags and pulled heads that are not
        complete (``torn``); what ``verify`` reports (``problems``); the number of ``temporary``
        files.
    """
    store, torn, gaps = open_directly(folder), list[str](), list[str]()
    for one in store.storage.objects("heads/"):
        name, _, file = one.key.removeprefix("heads/").partition("/")
        stem, _, suffix = file.rpartition(".")
        try:
            content = store.storage.read(one.key)
            if suffix == "json":
                decode_record(content, name, int(stem))
            elif suffix == "tag":
                decode_tag(content, name, stem)
            elif suffix != "yanked" or not is_version(stem) or not content.endswith(b"}\n"):
                torn.append(one.key)
        except ValueError as error:
            torn.append(f"{one.key}: {error}")
    for entry in store.list():
        gaps += [
            f"{entry.name}@{number}"
            for number in range(1, max(entry.versions) + 1)
            if number not in entry.versions
        ]
    torn += _check_pulled(folder, store)
    return {
        "gaps": gaps,
        "torn": torn,
        "problems": list(store.verify()),
        "temporary": sum(1 for _ in store.storage.objects("tmp/")),
    }


def _check_pulled(folder: Path, store: HeadStore) -> list[str]:
    known = {one.digest for name in NAMES for one in store.versions(name)}
    pulled = folder / "outputs" / "pulled.safetensors"
    paths = [pulled] if pulled.exists() else []
    paths += (folder / "cache" / "heads").glob("[!.]*.safetensors")
    return [str(path) for path in paths if Head.load(path).digest not in known]


def age(folder: Path) -> None:
    """Let two hours pass for what is in the trash of a local store."""
    then = time.time() - 7200
    for path in (folder / "store" / "trash").glob("*/*"):
        os.utime(path, (then, then))


def clean(folder: Path) -> int:
    """Collect garbage with a forced grace of 0; return the number of temporary files that stay.

    Two days pass before that, as some files have dates of the next day.
    """
    then = time.time() - 2 * DAY
    for path in (folder / "store" / "tmp").glob("*"):
        os.utime(path, (then, then))
    time.sleep(1.1)  # the clock of an object store has whole seconds
    store = open_directly(folder)
    store.gc(grace_seconds=0, force=True)
    return sum(1 for _ in store.storage.objects("tmp/"))


def set_clock(generator: random.Random) -> None:
    """Put the clock of this process a day back or ahead, in two cases of five."""
    offset = generator.choice((-DAY, DAY, 0, 0, 0))
    if not offset:
        return
    real_time, real_fsync, real_utime = time.time, os.fsync, os.utime
    shift = timedelta(seconds=offset)

    def fsync(descriptor: Any) -> None:
        real_fsync(descriptor)
        with suppress(OSError):
            real_utime(descriptor, (real_time() + offset,) * 2)

    def utime(path: Any, *arguments: Any, **options: Any) -> None:
        real_utime(path, *(arguments or ((real_time() + offset,) * 2,)), **options)

    def now() -> str:
        return (datetime.now(UTC) + shift).isoformat(timespec="seconds")

    for module, name, function in (
        (time, "time", lambda: real_time() + offset),
        (os, "fsync", fsync),
        (os, "utime", utime),
        (objects, "now", now),
        (store_module, "now", now),
    ):
        setattr(module, name, function)


def _choose(store: HeadStore, name: str, generator: random.Random) -> str:
    (entry,) = store.list(name)
    return f"{name}@{generator.choice(entry.versions)}"


class _lost_race(suppress):  # noqa: N801 - used as a function
    """Ignore an error that another process causes that works on the same tag or version."""

    def __init__(self, *messages: str) -> None:
        super().__init__(RegistryError)
        self._messages = messages

    def __exit__(self, kind: Any, error: Any, trace: Any) -> bool:
        known = any(message in str(error) for message in self._messages)
        return bool(known and super().__exit__(kind, error, trace))
