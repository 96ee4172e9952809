"""Processes that write a cache of features, and the check that it gives the same heads."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import sqlite3
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open

import headkit
from headkit.adapters.errors import OutputError
from headkit.adapters.features import disk_space
from headkit.adapters.features.executors import job
from headkit.adapters.features.file_hashes import INDEX_NAME, hash_files
from headkit.adapters.heads.head import Head
from headkit.export.graph.checksums import is_intact

from .actors import Say

ARCHITECTURE = "test_resnet"
IMAGES = 10
BATCH = 4
"""Number of images per forward pass; also per shard, so that there are many shards."""


@cache
def backbone() -> Any:
    """Load a small backbone with random weights, the same in every process."""
    torch.manual_seed(0)
    return headkit.load_backbone(ARCHITECTURE, pretrained=False)


def write_images(folder: Path) -> Path:
    """Write images of three classes that are easy to separate."""
    generator = np.random.default_rng(0)
    for number, label in enumerate(("bright", "dark", "middle")):
        (folder / label).mkdir(parents=True)
        for index in range(IMAGES):
            low = (190, 10, 100)[number]
            pixels = generator.integers(low, low + 60, (40, 48, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{index}.png")
    return folder


def prepare(folder: Path) -> None:
    """Write images, and the head that a fresh cache gives."""
    write_images(folder / "images")
    (folder / "outputs").mkdir()
    _fit(folder, folder / "fresh").save(folder / "reference.safetensors")
    shutil.rmtree(folder / "fresh")


def fit(folder: Path, generator: random.Random, say: Say) -> None:
    """Fit a head with the cache, and write it."""
    head = _fit(folder, folder / "cache")
    for _ in range(generator.randrange(1, 6)):
        head.save(folder / "outputs" / "fitted.safetensors")
    say("fit", head.digest)


def extract(folder: Path, generator: random.Random, say: Say) -> None:
    """Extract features, of which the cache lacks some."""
    some = _choose(folder, generator, 2 * IMAGES)
    _forget_shards(folder, generator)
    _write_small_shards()
    headkit.extract(
        backbone(), some, cache=folder / "cache", workers=0, runtime="torch", batch_size=BATCH
    )
    say("extract")


def convert(folder: Path, generator: random.Random, say: Say) -> None:
    """Extract features with ONNX Runtime, for which the cache gets a converted backbone."""
    for path in (folder / "cache" / "backbones").glob("[!.]*"):
        path.unlink(missing_ok=True)
    some = _choose(folder, generator, 4)
    headkit.extract(backbone(), some, cache=folder / "cache", workers=0, runtime="onnxruntime")
    say("convert")


def index(folder: Path, generator: random.Random, say: Say) -> None:
    """Hash files, some of which have changed."""
    paths = [str(path) for path in sorted((folder / "images").glob("*/*"))]
    for path in generator.sample(paths, 3):
        content = Path(path).read_bytes()
        other = folder / f"{generator.random()}.png"
        other.write_bytes(content)
        other.replace(path)  # the same content at another inode
    for _ in range(10):
        hash_files(paths, folder / "cache" / INDEX_NAME)
    if generator.random() < 0.3:
        (folder / "cache" / INDEX_NAME).unlink(missing_ok=True)
    say("index")


def limit(folder: Path, generator: random.Random, say: Say) -> None:
    """Limit the cache, or clear it, while others may use it."""
    root = folder / "cache"
    for _ in range(5):
        if generator.random() < 0.3:
            disk_space.clear_cache(root)
        disk_space.limit_cache(generator.choice((0, 20_000, 10**9)), root)
    disk_space.limit_cache(None, root)
    say("limit")


WRITERS = {"fit": fit, "extract": extract, "convert": convert, "index": index, "limit": limit}


def check(folder: Path) -> dict[str, Any]:
    """Check every file of the cache, and the fitted head.

    Returns:
        Files that are not complete (``torn``), and the number of ``temporary`` files.
    """
    torn, root = list[str](), folder / "cache"
    for path in root.glob("features/*/shard-*"):
        try:
            with safe_open(path, framework="numpy") as shard:
                rows = [shard.get_slice(name).get_shape()[0] for name in shard.keys()]  # noqa: SIM118
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            if len(set(rows)) != 1 or not content.startswith(path.stem.rpartition("-")[2]):
                torn.append(str(path))
        except SafetensorError as error:
            torn.append(f"{path}: {error}")
    for path in [*root.glob("features/*/key.json"), *root.glob("limit.json")]:
        try:
            json.loads(path.read_text())
        except ValueError as error:
            torn.append(f"{path}: {error}")
    for path in root.glob("backbones/[!.]*.onnx"):
        if not is_intact(path):
            torn.append(f"{path} does not match its checksums")
    torn += _check_index(folder)
    fitted = folder / "outputs" / "fitted.safetensors"
    if fitted.exists() and not _same_tensors(folder, Head.load(fitted)):
        torn.append(f"{fitted} differs from the head of a fresh cache")
    return {"torn": torn, "temporary": _count_temporary(folder)}


def clean(folder: Path) -> int:
    """Fit once more, and return the number of temporary files that stay.

    Raises:
        RuntimeError: The head differs from that of a fresh cache.
    """
    head = _fit(folder, folder / "cache")
    if not _same_tensors(folder, head):
        raise RuntimeError("the cache gives another head than a fresh extraction")
    head.save(folder / "outputs" / "fitted.safetensors")
    return _count_temporary(folder)


def _choose(folder: Path, generator: random.Random, number: int) -> list[tuple[Path, str]]:
    paths = generator.sample(sorted((folder / "images").glob("*/*")), number)
    return [(path, path.parent.name) for path in paths]


def _fit(folder: Path, root: Path) -> Head:
    _write_small_shards()
    return headkit.fit(
        backbone(),
        folder / "images",
        cache=root,
        workers=0,
        runtime="torch",
        batch_size=BATCH,
        l2=1e-3,
    )


def _write_small_shards() -> None:
    vars(job)["SHARD_BATCHES"] = 1


def _forget_shards(folder: Path, generator: random.Random) -> None:
    """Remove shards as a limit does, so that there is something to compute."""
    root = folder / "cache"
    if generator.random() < 0.8:
        try:
            disk_space.limit_cache(generator.choice((0, 5_000, 20_000)), root)
            disk_space.limit_cache(None, root)
        except OutputError as error:  # the other process has just removed the limit
            if "limit" not in str(error):
                raise


def _check_index(folder: Path) -> list[str]:
    path = folder / "cache" / INDEX_NAME
    if not path.exists():
        return []
    with closing(sqlite3.connect(path, timeout=60)) as table:
        (state,) = table.execute("PRAGMA integrity_check").fetchone()
    images = sorted(str(image) for image in (folder / "images").glob("*/*"))
    expected = [hashlib.sha256(Path(image).read_bytes()).digest() for image in images]
    found = hash_files(images, path)
    problems = [] if state == "ok" else [f"{path}: {state}"]
    # NumPy cuts zeros at the end of a value.
    if [one.ljust(32, b"\0") for one in found.tolist()] != expected:
        problems.append(f"{path} has wrong hashes")
    return problems


def _same_tensors(folder: Path, head: Head) -> bool:
    reference = Head.load(folder / "reference.safetensors")
    return reference.tensors.keys() == head.tensors.keys() and all(
        np.array_equal(tensor, head.tensors[name]) for name, tensor in reference.tensors.items()
    )


def _count_temporary(folder: Path) -> int:
    return sum(1 for part in ("cache", "outputs") for _ in (folder / part).rglob(".*"))
