"""Extract features on a Ray cluster into the same cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .job import SHARD_BATCHES, ExtractionJob
from .local import extract_locally


class _ShardActor:
    """A Ray Data actor: it starts the runtime once, then extracts one shard after another."""

    def __init__(self, job: ExtractionJob) -> None:
        run = job.start_runtime()
        self._job = replace(job, start_runtime=lambda: run, workers=0)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        paths = list(row["paths"])
        extract_locally(self._job, paths, lambda _: None)
        return {"done": len(paths)}


def extract_with_ray(
    job: ExtractionJob, paths: Sequence[str], progress: Callable[[int], None]
) -> None:
    """Extract files with Ray Data (Ray 2), one shard at a time on every core of the cluster.

    Join the cluster that ``RAY_ADDRESS`` names, or start one on this machine. Every machine of the
    cluster must see the images and the cache under the same paths. A shard has the same images as
    without Ray, so a run continues where another stopped, with or without Ray.
    """
    import ray
    import ray.data

    job.start_runtime()  # converts the backbone once for all actors, or fails here
    if not ray.is_initialized():
        ray.init(log_to_driver=False, include_dashboard=False)
    size = job.batch_size * SHARD_BATCHES
    absolute = [str(Path(path).absolute()) for path in paths]
    shards = [{"paths": absolute[start : start + size]} for start in range(0, len(paths), size)]
    cores = max(int(ray.cluster_resources().get("CPU", 1)), 1)
    ray.data.DataContext.get_current().enable_progress_bars = False
    extracted = ray.data.from_items(shards, override_num_blocks=len(shards)).map(
        _ShardActor,
        fn_constructor_args=(job,),
        compute=ray.data.ActorPoolStrategy(size=min(cores, len(shards))),
        num_cpus=1,
    )
    done = 0
    for row in extracted.iter_rows():
        done += row["done"]
        progress(done)
