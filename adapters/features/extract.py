"""Extract the features of a data set: compute those that the cache lacks and store them in it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from headkit.adapters.backbone.fingerprint import backbone_info
from headkit.adapters.backbone.level import Level
from headkit.adapters.backbone.preprocessing import preprocessing, timm_cfg
from headkit.adapters.compat import model_arguments
from headkit.adapters.data.dataset import ImageDataset, count
from headkit.adapters.errors import DataError, first_line
from headkit.adapters.images.pixel_rule import CURRENT_RULE, VERSION_1_RULE, PixelRule
from headkit.adapters.images.pixels import UnreadableImage

from .cache import FeatureCache, FeatureRows, Locations
from .decode import Batch, Sample, collate, decode_stream
from .executors.job import Executor, ExtractionJob, write_shards
from .executors.local import extract_locally
from .file_hashes import DIGEST, INDEX_NAME, Digests, hash_files
from .runtime import Run, Runtime
from .transform import Transform, View

logger = logging.getLogger("headkit")

Progress = Callable[[str, int, int | None], None]
"""A function that is called with the data set's name, the number of images done, and the number of
all images, or None if it is unknown."""

_ATTEMPTS = 3
_LISTED = 3


@dataclass(frozen=True)
class ExtractedFeatures:
    """The features of a data set's readable images, ``N`` of them, in the data set's order.

    Attributes:
        cache: What has the features: a cache, or arrays of the user's own.
        locations: Where in the cache they are, ``[N]``.
        targets: ``[N]`` or ``[N, num_outputs]``, see ``ImageDataset``.
        numbers: Their places in the data set, int64 ``[N]``; -1 for images of an older head.
        names: Names of the images for messages.
        pixel_digests: Digests of what the backbone saw, ``[N]``.
        unreadable: Names of the images that cannot be read; the first ones have the reason.
        levels: The levels whose vectors follow the branches of the features.
    """

    cache: FeatureRows
    locations: Locations
    targets: np.ndarray[Any, Any]
    numbers: np.ndarray[Any, np.dtype[np.int64]]
    names: Sequence[str]
    pixel_digests: np.ndarray[Any, np.dtype[np.bytes_]]
    unreadable: tuple[str, ...]
    levels: tuple[Level, ...] = ()


def extract(
    model: nn.Module,
    dataset: ImageDataset,
    runtime: Runtime,
    root: Path,
    *,
    view: View | None = None,
    rule: PixelRule = CURRENT_RULE,
    batch_size: int = 16,
    workers: int = 2,
    max_unreadable: float = 0.05,
    progress: Progress | None = None,
    executor: Executor = extract_locally,
    levels: Sequence[Level] = (),
) -> ExtractedFeatures:
    """Extract the features of all readable images of ``dataset``, or find them in the cache.

    Features that an earlier process stored are not computed again, even if that process was
    killed. The batches are those of an uninterrupted run, so the features are equal bit for bit.

    Args:
        model: A frozen timm model.
        dataset: A data set, see ``open_data``.
        runtime: Runtime of the backbone.
        root: Folder of all caches.
        view: The crop of each image. If None, the eval crop.
        rule: Rule by which image files become pixels.
        batch_size: Number of images per forward pass.
        workers: Number of processes that decode images; 0 decodes in this process.
        max_unreadable: Largest share of images that may be skipped as unreadable, 0 to 1.
        progress: Called whenever images are done.
        executor: Executor for files that the cache lacks. Default: the processes of this machine.
        levels: Levels whose vectors are extracted in the same pass, without ``last``.

    Raises:
        DataError: More than ``max_unreadable`` of the images, or all of them, cannot be read; a
            file changes while it is read; or a feature is not finite.
        ExportError: The runtime cannot run this backbone.
    """
    view = view or View()
    report = progress or (lambda *_: None)
    transform = Transform(preprocessing(model), view, rule)
    cache = _open_cache(model, runtime, root, transform, levels)

    def start_runtime() -> Run:
        return runtime.start(
            model, root / "backbones", batch_size, levels=[level.name for level in levels]
        )

    job = ExtractionJob(cache, transform, start_runtime, batch_size, workers, runtime.streams)
    if dataset.paths is not None and dataset.targets is not None:
        names: Sequence[str] = dataset.paths
        digests = _extract_files(job, dataset, root, report, executor)
        targets = dataset.targets
    else:
        names, digests, targets = _extract_stream(job, dataset, report)
    locations = cache.find(digests)
    readable = ~locations.missing
    readable[readable] = cache.is_valid(locations[readable])
    unreadable = _check_unreadable(dataset, transform, names, readable, max_unreadable)
    kept = np.flatnonzero(readable)
    locations = locations[kept]
    return ExtractedFeatures(
        cache=cache,
        locations=locations,
        targets=targets[kept],
        numbers=kept,
        names=[names[i] for i in kept.tolist()],
        pixel_digests=cache.pixel_digests(locations),
        unreadable=unreadable,
        levels=tuple(levels),
    )


def _extract_files(
    job: ExtractionJob, dataset: ImageDataset, root: Path, report: Progress, executor: Executor
) -> Digests:
    paths = dataset.paths or ()
    index = root / INDEX_NAME
    digests = hash_files(paths, index)
    report(dataset.name, 0, len(paths))
    for attempt in range(_ATTEMPTS):
        missing = _find_missing(job, digests)
        if not len(missing):
            if not attempt:  # otherwise the executor has reported all images
                report(dataset.name, len(paths), len(paths))
            return digests
        _, first = np.unique(digests[missing], return_index=True)
        todo = missing[np.sort(first)]
        cached = len(paths) - len(todo)

        def progress(done: int, cached: int = cached) -> None:
            report(dataset.name, cached + done, len(paths))

        executor(job, [paths[i] for i in todo], progress)
        job.cache.refresh()
        # A file that changed during extraction was stored under the digest of its new content.
        remaining = _find_missing(job, digests)
        digests[remaining] = hash_files([paths[i] for i in remaining], index)
    raise DataError(
        f"{paths[missing[0]]} kept changing while it was read: try again when it is complete"
    )


def _find_missing(job: ExtractionJob, digests: Digests) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the indices of the readable images that the cache lacks."""
    return np.flatnonzero(job.cache.find(digests).missing & np.not_equal(digests, b""))


def _extract_stream(
    job: ExtractionJob, dataset: ImageDataset, report: Progress
) -> tuple[list[str], Digests, np.ndarray[Any, Any]]:
    digests, targets = list[bytes](), list[Any]()
    total = count(dataset)
    scheduled: set[bytes] = set()

    def batch_missing() -> Iterator[Batch]:
        waiting: list[Sample] = []
        samples = decode_stream(
            dataset, job.transform, job.batch_size, job.workers, cached=job.cache
        )
        for sample in samples:
            digests.append(sample.digest)
            targets.append(sample.target)
            report(dataset.name, len(digests), total)
            known = sample.digest in scheduled or sample.digest in job.cache
            if not sample.digest or known:
                continue
            scheduled.add(sample.digest)
            waiting.append(sample)
            if len(waiting) == job.batch_size:
                yield collate(waiting)
                waiting = []
        if waiting:
            yield collate(waiting)

    report(dataset.name, 0, total)
    write_shards(job, batch_missing(), lambda _: None)
    names = [f"image {number}" for number in range(len(digests))]
    known_targets = np.array(targets) if dataset.targets is None else dataset.targets
    return names, np.array(digests, DIGEST), known_targets


def _check_unreadable(
    dataset: ImageDataset,
    transform: Transform,
    names: Sequence[str],
    readable: np.ndarray[Any, np.dtype[np.bool_]],
    max_unreadable: float,
) -> tuple[str, ...]:
    """Return the names of unreadable images; raise ``DataError`` if there are too many of them."""
    if not len(readable):
        raise DataError(f"no images in {dataset.name}")
    numbers = np.flatnonzero(~readable)
    if not len(numbers):
        return ()
    unreadable = tuple(
        _add_reason(dataset, number, names[number], transform) if rank < _LISTED else names[number]
        for rank, number in enumerate(numbers.tolist())
    )
    examples = "; ".join(unreadable[:_LISTED]) + ("; …" if len(numbers) > _LISTED else "")
    if len(numbers) > max_unreadable * len(readable) or len(numbers) == len(readable):
        raise DataError(
            f"{len(numbers)} of {len(readable)} images of {dataset.name} cannot be read, "
            f"expected at most {max_unreadable:.0%} (max_unreadable): {examples}"
        )
    logger.warning(
        "skipped %d of %d images that cannot be read: %s", len(numbers), len(readable), examples
    )
    return unreadable


def _add_reason(dataset: ImageDataset, number: int, name: str, transform: Transform) -> str:
    if dataset.stream is not None:
        return name
    try:
        transform.read(name if dataset.paths is not None else dataset.reader[number][0])
    except UnreadableImage as error:
        return f"{name} ({error.reason})"
    except Exception as error:
        # A data set of the user's own may raise errors of any type.
        return f"{name} ({first_line(error)})"
    return name


@dataclass(frozen=True)
class Missing:
    """How much of some data the cache of a runtime has.

    Attributes:
        missing: Number of images that have to be computed; None if a stream does not know it.
        cached: Number of images that the cache has.
    """

    missing: int | None
    cached: int


def count_missing(
    model: nn.Module,
    requests: Sequence[tuple[ImageDataset, View]],
    runtimes: Sequence[Runtime],
    root: Path,
    rule: PixelRule = CURRENT_RULE,
    levels: Sequence[Level] = (),
) -> list[Missing]:
    """Count the images that the cache of each runtime lacks. No image is decoded.

    Only decoding gives the digests of the images of readers and streams. They count as cached if
    the cache has at least as many images.

    Args:
        model: A frozen timm model.
        requests: Data sets, each with a crop.
        runtimes: Runtimes of the backbone.
        root: Folder of all caches.
        rule: Rule by which image files become pixels.
        levels: See ``extract``.
    """
    images = [(data, view) for data, view in requests if data.features is None]
    hashed = {
        id(data): np.unique(hash_files(data.paths, root / INDEX_NAME))
        for data, _ in images
        if data.paths is not None
    }
    key = _model_key(model, levels)
    counted = []
    for runtime in runtimes:
        unknown, missing, cached = False, 0, 0
        for data, view in images:
            cache = FeatureCache(root, {**key, **_run_key(runtime, view, rule)}, create=False)
            number, lacking = count(data), 0
            if data.paths is not None:
                number = len(hashed[id(data)])
                lacking = int(cache.find(hashed[id(data)], check=False).missing.sum())
            elif number is None or cache.num_images < number:
                unknown, number, lacking = unknown or number is None, number or 0, number or 0
            missing += lacking
            cached += number - lacking
        counted.append(Missing(None if unknown else missing, cached))
    return counted


def _open_cache(
    model: nn.Module,
    runtime: Runtime,
    root: Path,
    transform: Transform,
    levels: Sequence[Level],
) -> FeatureCache:
    """Open the cache whose key is everything that the features of ``model`` depend on."""
    return FeatureCache(
        root,
        {**_model_key(model, levels), **_run_key(runtime, transform.view, transform.read.rule)},
    )


def _model_key(model: nn.Module, levels: Sequence[Level]) -> dict[str, Any]:
    args = {key: value for key, value in model_arguments(model).items() if key != "num_classes"}
    return {
        "architecture": timm_cfg(model)["architecture"],
        "fingerprint": backbone_info(model).fingerprint,
        "model_args": {key: str(value) for key, value in args.items()},
        "preprocessing": preprocessing(model),
        **({"levels": [level.to_json() for level in levels]} if levels else {}),
    }


def _run_key(runtime: Runtime, view: View, rule: PixelRule) -> dict[str, Any]:
    return {
        "view": view.to_json(),
        **({} if rule == VERSION_1_RULE else {"pixels": rule.to_json()}),
        "engine": {"name": runtime.name, "precision": runtime.precision, **runtime.versions},
        "decoding": {name: version(name) for name in ("pillow", "timm", "torchvision")},
    }
