"""A process that runs ``gc`` and is killed at the worst moment.

At 64f666f, ``gc`` with a grace of 0 deleted a head file that a publisher named at the same time,
and put it back; killed in between, it lost an acknowledged version. Now ``gc`` moves files to the
trash first, from which every reader takes back what a version names.
"""

from pathlib import Path
from typing import Any

import pytest

from headkit.registry.store.records import Version
from headkit.registry.store.store import HeadStore
from tests.heads import scored_head


@pytest.fixture
def store(tmp_path: Path) -> HeadStore:
    return HeadStore(tmp_path / "store")


def file(store: HeadStore, key: str) -> Path:
    return Path(store.url) / key


@pytest.mark.parametrize("step", ["replace", "delete", "read"])
def test_gc_killed_at_any_step_loses_nothing(
    store: HeadStore, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A publisher names a file while gc with a forced grace of 0 takes it out and is killed."""
    store.publish(scored_head(0), "flowers")
    publisher = HeadStore(store.url)
    unnamed = scored_head(1).serialize()
    publisher._objects.write_blob(scored_head(1).digest, unnamed)
    original = getattr(store.storage, step)
    calls: list[str] = []

    def publish_then_die(key: str, *arguments: Any) -> Any:
        if calls or scored_head(1).digest not in key:
            return original(key, *arguments)
        calls.append(key)
        acknowledged.append(publisher.publish(scored_head(1), "flowers"))
        if step != "read":
            original(key, *arguments)
        raise KeyboardInterrupt

    acknowledged: list[Version] = []
    monkeypatch.setattr(store.storage, step, publish_then_die)
    with pytest.raises(KeyboardInterrupt):
        store.gc(grace_seconds=0, force=True)
    after = HeadStore(store.url)
    for _ in range(2):
        after.gc(grace_seconds=0, force=True)
    assert after.read(acknowledged[0]) == unnamed
    assert after.verify() == []
