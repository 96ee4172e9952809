"""Extract the features of a data set: what the cache lacks is decoded, computed and kept there."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from timm.models import get_model_args
from torch import nn
from torch.utils.data import DataLoader

from headkit.adapters.backbone.fingerprint import backbone_info
from headkit.adapters.backbone.preprocessing import preprocessing, timm_cfg
from headkit.adapters.data.dataset import ImageDataset, count
from headkit.adapters.errors import DataError
from headkit.adapters.images import UnreadableImage, open_image

from .cache import FeatureCache, Found
from .decode import Batch, Files, Sample, as_digests, collate, end_with_parent, streamed
from .engine import Branches, Engine, Run
from .file_hashes import DIGEST, Digests, digests_of
from .transform import Transform, View

logger = logging.getLogger("headkit")

Progress = Callable[[str, int, int | None], None]
"""Called with what is being read, images done, and images in all if that is known."""

SHARD_BATCHES = 32
"""Batches per shard: what a killed process loses at most."""
_ATTEMPTS = 3
_NAMED = 3


@dataclass(frozen=True)
class Extracted:
    """The images of a source that could be read, in its order, and where their features lie.

    Attributes:
        cache: holds the features.
        found: where in it, one per image.
        targets: ``[N]`` or ``[N, num_outputs]``, see ``ImageDataset``.
        names: of the images, for messages.
        pixels: ``[N]``, digests of what the backbone saw.
        unreadable: the other images, the first of them with the reason.
    """

    cache: FeatureCache
    found: Found
    targets: np.ndarray[Any, Any]
    names: Sequence[str]
    pixels: np.ndarray[Any, np.dtype[np.bytes_]]
    unreadable: tuple[str, ...]


def extract(
    model: nn.Module,
    source: ImageDataset,
    engine: Engine,
    root: Path,
    *,
    view: View | None = None,
    batch_size: int = 16,
    workers: int = 2,
    max_unreadable: float = 0.05,
    progress: Progress | None = None,
    fill: Fill | None = None,
) -> Extracted:
    """Extract the features of all readable images of ``source``, or find them in the cache.

    What was extracted before, by a process that ended or was killed, is not extracted again. The
    batches are then the ones that would have been without: the numbers are the same, bit for bit.

    Args:
        model: a frozen timm model.
        source: see ``open_data``.
        engine: what runs the backbone.
        root: folder of all caches.
        view: which crop of each image; the eval crop without it.
        batch_size: images per forward pass.
        workers: processes that decode images; 0 decodes in this one.
        max_unreadable: share of images that may be unreadable and left out, 0 to 1.
        progress: told about the images that are done.
        fill: what extracts missing files; this machine's own processes without it.

    Raises:
        DataError: a larger share than ``max_unreadable`` of the images cannot be read, or all.
        ExportError: the engine cannot run this backbone.
    """
    view = view or View()
    report = progress or (lambda *_: None)
    transform = Transform(preprocessing(model), view)
    cache = _open_cache(model, engine, root, view)

    def start() -> Run:
        return engine.start(model, root / "backbones", batch_size)

    job = Job(cache, transform, start, batch_size, workers, engine.streams)
    if source.paths is not None and source.targets is not None:
        names: Sequence[str] = source.paths
        digests = _extract_files(job, source, root, report, fill or fill_locally)
        targets = source.targets
    else:
        names, digests, targets = _extract_stream(job, source, report)
    found = cache.find(digests)
    readable = ~found.missing
    readable[readable] = cache.valid(found[readable])
    unreadable = _unreadable(source, names, readable, max_unreadable)
    kept = np.flatnonzero(readable)
    found = found[kept]
    return Extracted(
        cache=cache,
        found=found,
        targets=targets[kept],
        names=[names[i] for i in kept.tolist()],
        pixels=cache.pixels(found),
        unreadable=unreadable,
    )


@dataclass(frozen=True)
class Job:
    """How missing features are made and where they go.

    Attributes:
        cache: takes the features.
        transform: from an image to pixels.
        start: starts the engine; called when the first batch is there, so that decoding begins
            while a backbone is still being converted.
        batch_size: images per forward pass.
        workers: processes that decode.
        streams: batches that the engine runs at once.
    """

    cache: FeatureCache
    transform: Transform
    start: Callable[[], Run]
    batch_size: int
    workers: int
    streams: int = 1


Fill = Callable[[Job, Sequence[str], Callable[[int], None]], None]
"""Extracts the files that it is given, and calls back with the number of images done."""


def fill_locally(job: Job, paths: Sequence[str], progress: Callable[[int], None]) -> None:
    """Extract files with this machine's processes."""
    loader: DataLoader[Any] = DataLoader(
        Files(paths, job.transform),
        batch_size=job.batch_size,
        num_workers=min(job.workers, -(-len(paths) // job.batch_size)),
        collate_fn=collate,
        worker_init_fn=end_with_parent,
    )
    # The workers start here, before the engine and its threads.
    write_shards(job, iter(loader), progress)


def write_shards(job: Job, batches: Iterable[Batch], progress: Callable[[int], None]) -> None:
    """Run the backbone on batches and write a shard for every ``SHARD_BATCHES`` of them."""
    computed: list[tuple[Batch, Branches]] = []
    done = 0

    def write() -> None:
        parts = zip(*(branches for _, branches in computed), strict=True)
        job.cache.add(
            np.concatenate([batch.digests for batch, _ in computed]),
            np.concatenate([batch.pixel_digests for batch, _ in computed]),
            np.concatenate([batch.valid for batch, _ in computed]),
            [np.concatenate(part) for part in parts],
        )
        computed.clear()

    for batch, branches in _computed(job, batches):
        computed.append((batch, branches))
        if len(computed) == SHARD_BATCHES:
            write()
        done += len(batch.digests)
        progress(done)
    if computed:
        write()


def _computed(job: Job, batches: Iterable[Batch]) -> Iterator[tuple[Batch, Branches]]:
    """Run the backbone on batches, several at once; what it gives comes in their order."""
    run: Run | None = None
    running: deque[tuple[Batch, Future[Branches]]] = deque()
    with ThreadPoolExecutor(job.streams, "engine") as pool:
        for batch in batches:
            run = run or job.start()
            running.append((batch, pool.submit(_run_whole, run, batch, job.batch_size)))
            if len(running) > job.streams:
                first, future = running.popleft()
                yield first, future.result()
        for first, future in running:
            yield first, future.result()


def _run_whole(run: Run, batch: Batch, size: int) -> Branches:
    """Fill the last batch up: all have one size, and no image's numbers depend on how many came."""
    missing = size - len(batch.pixels)
    pixels = np.pad(batch.pixels, ((0, missing), (0, 0), (0, 0), (0, 0)))
    branches = tuple(branch[: len(batch.pixels)] for branch in run(pixels))
    for branch in branches:
        if not np.isfinite(branch[batch.valid]).all():
            raise DataError(
                "the backbone gives features that are not finite: its weights or its precision "
                "do not fit these images"
            )
    return branches


def _extract_files(
    job: Job, source: ImageDataset, root: Path, report: Progress, fill: Fill
) -> Digests:
    paths = source.paths or ()
    index = root / "files.sqlite"
    digests = digests_of(paths, index)
    report(source.name, 0, len(paths))
    for attempt in range(_ATTEMPTS):
        missing = _missing(job, digests)
        if not len(missing):
            if not attempt:  # else the last image that was done has been reported
                report(source.name, len(paths), len(paths))
            return digests
        _, first = np.unique(digests[missing], return_index=True)
        todo = missing[np.sort(first)]
        cached = len(paths) - len(todo)

        def progress(done: int, cached: int = cached) -> None:
            report(source.name, cached + done, len(paths))

        fill(job, [paths[i] for i in todo], progress)
        job.cache.refresh()
        # A file that changed meanwhile was stored under what it holds now.
        left = _missing(job, digests)
        digests[left] = digests_of([paths[i] for i in left], index)
    raise DataError(f"{paths[missing[0]]} changes while it is read: extract when it is complete")


def _missing(job: Job, digests: Digests) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the numbers of the images that could be read and that the cache lacks."""
    return np.flatnonzero(job.cache.find(digests).missing & np.not_equal(digests, b""))


def _extract_stream(
    job: Job, source: ImageDataset, report: Progress
) -> tuple[list[str], Digests, np.ndarray[Any, Any]]:
    digests, targets = list[bytes](), list[Any]()
    total = count(source)
    scheduled: set[bytes] = set()

    def missing() -> Iterator[Batch]:
        waiting: list[Sample] = []
        for sample in streamed(source, job.transform, job.batch_size, job.workers):
            digests.append(sample.digest)
            targets.append(sample.target)
            report(source.name, len(digests), total)
            known = sample.digest in scheduled or not job.cache.find(as_digests([sample])).missing
            if not sample.digest or known:
                continue
            scheduled.add(sample.digest)
            waiting.append(sample)
            if len(waiting) == job.batch_size:
                yield collate(waiting)
                waiting = []
        if waiting:
            yield collate(waiting)

    report(source.name, 0, total)
    write_shards(job, missing(), lambda _: None)
    names = [f"image {number}" for number in range(len(digests))]
    return names, np.array(digests, DIGEST), np.array(targets)


def _unreadable(
    source: ImageDataset,
    names: Sequence[str],
    readable: np.ndarray[Any, np.dtype[np.bool_]],
    max_unreadable: float,
) -> tuple[str, ...]:
    if not len(readable):
        raise DataError(f"no images in {source.name}")
    numbers = np.flatnonzero(~readable)
    if not len(numbers):
        return ()
    unreadable = tuple(
        _reason(names[number]) if source.paths and rank < _NAMED else names[number]
        for rank, number in enumerate(numbers.tolist())
    )
    named = "; ".join(unreadable[:_NAMED]) + ("; …" if len(numbers) > _NAMED else "")
    if len(numbers) > max_unreadable * len(readable) or len(numbers) == len(readable):
        raise DataError(
            f"{len(numbers)} of {len(readable)} images of {source.name} cannot be read, "
            f"allowed are {max_unreadable:.0%} (max_unreadable): {named}"
        )
    logger.warning(
        "skipped %d of %d images that cannot be read: %s", len(numbers), len(readable), named
    )
    return unreadable


def _reason(path: str) -> str:
    try:
        open_image(path)
    except UnreadableImage as error:
        return f"{path} ({error.reason})"
    except DataError as error:
        return f"{path} ({error})"
    return path


def _open_cache(model: nn.Module, engine: Engine, root: Path, view: View) -> FeatureCache:
    """Open the cache of what ``model`` gives, under all that its features depend on."""
    args = {key: value for key, value in get_model_args(model).items() if key != "num_classes"}
    return FeatureCache(
        root,
        {
            "architecture": timm_cfg(model)["architecture"],
            "fingerprint": backbone_info(model).fingerprint,
            "model_args": {key: str(value) for key, value in args.items()},
            "preprocessing": preprocessing(model),
            "view": view.to_json(),
            "engine": {"name": engine.name, "precision": engine.precision, **engine.versions},
            "decoding": {name: version(name) for name in ("pillow", "timm", "torchvision")},
        },
    )
