"""A machine whose clock is wrong runs ``gc``.

At 64f666f, ``gc`` compared the ages of files with the clock of its own machine: where that was 26
hours ahead, it deleted a file that was seconds old. Now it takes the time from the store.
"""

import time
from pathlib import Path

import pytest

from headkit.registry.store.layout import blob_key, record_key
from headkit.registry.store.store import HeadStore
from tests.heads import scored_head


@pytest.fixture
def store(tmp_path: Path) -> HeadStore:
    return HeadStore(tmp_path / "store")


def file(store: HeadStore, key: str) -> Path:
    return Path(store.url) / key


def test_gc_goes_by_the_clock_of_the_store(
    store: HeadStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = store.publish(scored_head(1), "flowers")
    file(store, record_key("flowers", 1)).unlink()
    monkeypatch.setattr(time, "time", lambda: 2**31)  # this machine's clock is years ahead
    assert store.gc() == []
    assert file(store, blob_key(version.digest)).exists()
