"""Extract features with the processes of this machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch.utils.data import DataLoader

from headkit.adapters.features.decode import ImageFiles, collate, end_with_parent

from .job import ExtractionJob, write_shards


def extract_locally(
    job: ExtractionJob, paths: Sequence[str], progress: Callable[[int], None]
) -> None:
    """Extract files with the processes of this machine; an ``Executor``."""
    loader: DataLoader[Any] = DataLoader(
        ImageFiles(paths, job.transform),
        batch_size=job.batch_size,
        num_workers=min(job.workers, -(-len(paths) // job.batch_size)),
        collate_fn=collate,
        worker_init_fn=end_with_parent,
    )
    # The workers start here, before the runtime and its threads.
    write_shards(job, iter(loader), progress)
