"""The work of an executor: run the backbone on decoded images, write shards of the cache."""

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
"""Number of batches per shard: what a killed process loses at most."""


@dataclass(frozen=True)
class Job:
    """How missing features are made and where they go.

    Attributes:
        cache: takes the features.
        transform: from an image to pixels.
        start: starts the runtime; called when the first batch is there, so that decoding begins
            while a backbone is still being converted.
        batch_size: number of images per forward pass.
        workers: number of processes that decode.
        streams: number of batches that the runtime runs at once.
    """

    cache: FeatureCache
    transform: Transform
    start: Callable[[], Run]
    batch_size: int
    workers: int
    streams: int = 1


Executor = Callable[[Job, Sequence[str], Callable[[int], None]], None]
"""Extracts the files at these paths, and calls back with the number of images done."""


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
    with ThreadPoolExecutor(job.streams, "runtime") as pool:
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
