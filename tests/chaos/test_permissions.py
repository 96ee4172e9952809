"""Files and folders that this user may not read or write: errors name them and the reason."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import headkit
from headkit import HeadkitError
from headkit.adapters.features.file_hashes import hash_files
from headkit.adapters.heads.from_checkpoint import read_label_names
from headkit.registry.store.store import HeadStore
from tests.backbones import SMALL, random_backbone
from tests.fixtures import IMAGES, MODELS
from tests.heads import scored_head

from .writers import HEAD, MODEL, WRITERS, prepare

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the permissions are POSIX's")
_NOBODY = 65534


@contextmanager
def _bound_by_permissions() -> Iterator[None]:
    """Be a user whom permissions bind: root is nobody for a while."""
    if os.geteuid():
        yield
        return
    os.seteuid(_NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every user can reach."""
    path = Path(tempfile.mkdtemp(prefix="headkit-test-"))
    path.chmod(0o777)
    yield path
    for one in [path, *path.rglob("*")]:
        if one.is_dir():
            one.chmod(0o755)
    shutil.rmtree(path)


READERS: dict[str, tuple[Path, Callable[[Path], object]]] = {
    "head": (HEAD, headkit.Head.load),
    "info": (HEAD, headkit.info),
    "publish": (HEAD, lambda path: HeadStore(path.parent.with_name("s")).publish(path, "a")),
    "model": (MODEL, lambda path: headkit.Predictor(path)),
    "graft": (MODEL, lambda path: headkit.graft(path, HEAD, path.parent.with_name("out.onnx"))),
    "grafted_head": (
        HEAD,
        lambda path: headkit.graft(MODEL, path, path.parent.with_name("out.onnx")),
    ),
    "adapter": (
        MODELS / "resnet_other.onnx_adapter",
        lambda path: headkit.Predictor(MODELS / "resnet_swappable.onnx", {"a": path}),
    ),
    "weights": (HEAD, lambda path: headkit.load_backbone(SMALL, path)),
    "labels": (HEAD, lambda path: read_label_names(str(path))),
    "image": (
        IMAGES / "bright" / "0.png",
        lambda path: headkit.Predictor(MODEL)(path),
    ),
    "table": (
        IMAGES.parent / "README.md",
        lambda path: headkit.fit(random_backbone(), path),
    ),
}


@pytest.mark.parametrize("place", ["file", "folder"])
@pytest.mark.parametrize("name", READERS)
def test_a_file_that_may_not_be_read_is_not_called_missing(
    name: str, place: str, folder: Path
) -> None:
    source, read = READERS[name]
    inner = folder / "inner"
    inner.mkdir()
    path = Path(shutil.copy(source, inner / source.name.replace(".md", ".csv")))
    (path if place == "file" else inner).chmod(0)
    with _bound_by_permissions(), pytest.raises(HeadkitError, match="Permission denied") as raised:
        read(path)
    assert str(path) in str(raised.value)
    assert "no such" not in str(raised.value).lower()


@pytest.mark.parametrize("name", [name for name in WRITERS if name != "fit"])
def test_a_folder_that_may_not_be_written(name: str, folder: Path, tmp_path: Path) -> None:
    prepare(tmp_path)
    WRITERS[name](tmp_path)  # this imports what nobody may read
    prepare(folder)
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    with _bound_by_permissions(), pytest.raises(HeadkitError, match="Permission denied") as raised:
        WRITERS[name](folder)
    assert str(folder) in str(raised.value)
    assert list(folder.rglob(".*")) == []
    assert HeadStore(folder / "store").read("flowers@prod") == scored_head(2).serialize()


def test_a_cache_that_may_only_be_read_is_used(folder: Path) -> None:
    options: dict[str, Any] = {"workers": 0, "runtime": "torch", "l2": 1e-3}
    options["cache"] = folder / "cache"
    expected = headkit.fit(random_backbone(), IMAGES, **options)
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    images = sorted(map(str, IMAGES.glob("*/*")))
    with _bound_by_permissions():
        head = headkit.fit(random_backbone(), IMAGES, **options)
        assert len(hash_files(images, folder / "cache" / "files.sqlite")) == len(images)
    assert all((head.tensors[key] == value).all() for key, value in expected.tensors.items())


def test_a_store_that_may_only_be_read_gives_a_head_from_the_trash(folder: Path) -> None:
    store = HeadStore(folder / "store")
    head = scored_head(1)
    version = store.publish(head, "flowers")
    (path,) = (folder / "store" / "blobs").glob("*/*")
    trash = folder / "store" / "trash" / path.parent.name
    trash.mkdir(parents=True)
    path.rename(trash / path.name)  # as a gc leaves it that is killed before it puts it back
    for one in [folder, *folder.rglob("*")]:
        one.chmod(0o555 if one.is_dir() else 0o444)
    with _bound_by_permissions():
        reader = HeadStore(folder / "store")
        assert reader.resolve(f"sha256:{head.digest[:12]}") == version
        assert reader.read("flowers@1") == head.serialize()
