"""Extract the features of a data set: what the cache lacks is decoded, computed and kept there."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from timm.models import get_model_args
from torch import nn

from headkit.adapters.backbone.fingerprint import backbone_info
from headkit.adapters.backbone.preprocessing import preprocessing, timm_cfg
from headkit.adapters.data.dataset import ImageDataset, count
from headkit.adapters.errors import DataError
from headkit.adapters.images import UnreadableImage, open_image

from .cache import FeatureCache, Found
from .decode import Batch, Sample, as_digests, collate, streamed
from .executors.job import Executor, Job, write_shards
from .executors.local import extract_locally
from .file_hashes import DIGEST, Digests, digests_of
from .runtime import Run, Runtime
from .transform import Transform, View

logger = logging.getLogger("headkit")

Progress = Callable[[str, int, int | None], None]
"""Called with what is being read, images done, and images in all if that is known."""

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
    runtime: Runtime,
    root: Path,
    *,
    view: View | None = None,
    batch_size: int = 16,
    workers: int = 2,
    max_unreadable: float = 0.05,
    progress: Progress | None = None,
    executor: Executor = extract_locally,
) -> Extracted:
    """Extract the features of all readable images of ``source``, or find them in the cache.

    What was extracted before, by a process that ended or was killed, is not extracted again. The
    batches are then the ones that would have been without: the numbers are the same, bit for bit.

    Args:
        model: a frozen timm model.
        source: see ``open_data``.
        runtime: what runs the backbone.
        root: folder of all caches.
        view: which crop of each image; the eval crop without it.
        batch_size: images per forward pass.
        workers: processes that decode images; 0 decodes in this one.
        max_unreadable: share of images that may be unreadable and left out, 0 to 1.
        progress: told about the images that are done.
        executor: what extracts missing files; this machine's own processes without it.

    Raises:
        DataError: a larger share than ``max_unreadable`` of the images cannot be read, or all.
        ExportError: the runtime cannot run this backbone.
    """
    view = view or View()
    report = progress or (lambda *_: None)
    transform = Transform(preprocessing(model), view)
    cache = _open_cache(model, runtime, root, view)

    def start() -> Run:
        return runtime.start(model, root / "backbones", batch_size)

    job = Job(cache, transform, start, batch_size, workers, runtime.streams)
    if source.paths is not None and source.targets is not None:
        names: Sequence[str] = source.paths
        digests = _extract_files(job, source, root, report, executor)
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


def _extract_files(
    job: Job, source: ImageDataset, root: Path, report: Progress, executor: Executor
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

        executor(job, [paths[i] for i in todo], progress)
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


def _open_cache(model: nn.Module, runtime: Runtime, root: Path, view: View) -> FeatureCache:
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
            "engine": {"name": runtime.name, "precision": runtime.precision, **runtime.versions},
            "decoding": {name: version(name) for name in ("pillow", "timm", "torchvision")},
        },
    )
