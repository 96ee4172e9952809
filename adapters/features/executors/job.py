"""The work of every executor: run the backbone on decoded images and write shards of the cache."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from headkit.adapters.errors import DataError
from headkit.adapters.features.cache import FeatureCache
from headkit.adapters.features.decode import Batch
from headkit.adapters.features.runtime import Branches, Run
from headkit.adapters.features.transform import Transform

SHARD_BATCHES = 32
"""Number of batches per shard, which is the most that a killed process loses."""


@dataclass(frozen=True)
class ExtractionJob:
    """How to compute the features that a cache lacks.

    Attributes:
        cache: Cache that receives the features.
        transform: Transform from an image to pixels.
        start_runtime: Starts the runtime. It is called when the first batch is ready, so decoding
            begins while the runtime still converts the backbone.
        batch_size: Number of images per forward pass.
        workers: Number of processes that decode images; 0 decodes in this process.
        streams: Number of batches that the runtime runs at once.
    """

    cache: FeatureCache
    transform: Transform
    start_runtime: Callable[[], Run]
    batch_size: int
    workers: int
    streams: int = 1


Executor = Callable[[ExtractionJob, Sequence[str], Callable[[int], None]], None]
"""A function that extracts the files at these paths and reports the number of finished images."""


def write_shards(
    job: ExtractionJob, batches: Iterable[Batch], progress: Callable[[int], None]
) -> None:
    """Run the backbone on batches, and write a shard for every ``SHARD_BATCHES`` of them.

    Raises:
        DataError: A feature is not finite.
    """
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

    for batch, branches in _run_batches(job, batches):
        computed.append((batch, branches))
        if len(computed) == SHARD_BATCHES:
            write()
        done += len(batch.digests)
        progress(done)
    if computed:
        write()


def _run_batches(job: ExtractionJob, batches: Iterable[Batch]) -> Iterator[tuple[Batch, Branches]]:
    """Run the backbone on batches, several at once, and yield the features in order."""
    run: Run | None = None
    running: deque[tuple[Batch, Future[Branches]]] = deque()
    with ThreadPoolExecutor(job.streams, "runtime") as pool:
        for batch in batches:
            run = run or job.start_runtime()
            running.append((batch, pool.submit(_run_padded, run, batch, job.batch_size)))
            if len(running) > job.streams:
                first, future = running.popleft()
                yield first, future.result()
        for first, future in running:
            yield first, future.result()


def _run_padded(run: Run, batch: Batch, size: int) -> Branches:
    """Run a batch that is padded to ``size``, so its features do not depend on how full it is."""
    missing = size - len(batch.pixels)
    pixels = np.pad(batch.pixels, ((0, missing), (0, 0), (0, 0), (0, 0)))
    branches = tuple(branch[: len(batch.pixels)] for branch in run(pixels))
    for branch in branches:
        if not np.isfinite(branch[batch.valid]).all():
            raise DataError(
                "the backbone computes NaN or infinite features for some images: check its "
                "weights, or use precision 'fp32'"
            )
    return branches
