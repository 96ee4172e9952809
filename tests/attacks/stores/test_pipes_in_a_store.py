"""A named pipe in place of a head file of the store.

At 64f666f, reading the head waited for a writer without end. Now only a regular file is read.
"""

import os
from pathlib import Path

import pytest

from headkit import StoreError
from headkit.registry.store.layout import blob_key
from headkit.registry.store.store import HeadStore
from tests.heads import scored_head


@pytest.fixture
def store(tmp_path: Path) -> HeadStore:
    return HeadStore(tmp_path / "store")


def file(store: HeadStore, key: str) -> Path:
    return Path(store.url) / key


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_named_pipe_in_a_store_is_refused(store: HeadStore) -> None:
    version = store.publish(scored_head(1), "flowers")
    path = file(store, blob_key(version.digest))
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(StoreError, match="is not a regular file"):
        store.read("flowers")
