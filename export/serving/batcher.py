"""Run a backbone on batches of the images that arrive at the same time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from headkit.adapters.errors import ExportError, first_line

Array = np.ndarray[Any, Any]


class Batcher:
    """A queue of images in front of a backbone. Images that arrive during a batch form the next.

    Args:
        run: Function from pixels ``[batch, channels, height, width]`` to the features of each
            branch, ``[batch, …]``. A thread of its own calls it.
        max_batch: Maximum number of images per call of ``run``.

    Attributes:
        on_batch: Called after each batch with the number of its images and the seconds that it
            took. The metrics replace it.
    """

    def __init__(self, run: Callable[[Array], list[Array]], max_batch: int) -> None:
        self.run, self.max_batch = run, max_batch
        self.on_batch: Callable[[int, float], None] = lambda _size, _seconds: None
        self._thread = ThreadPoolExecutor(1, "backbone")
        self._queue: asyncio.Queue[tuple[Array, asyncio.Future[list[Array]]]] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Number of images that wait for the backbone."""
        return self._queue.qsize()

    async def start(self) -> None:
        """Start to run batches."""
        self._task = asyncio.create_task(self._run_forever())

    async def stop(self) -> None:
        """Stop; images that still wait get no features."""
        if self._task is not None:
            self._task.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def features(self, pixels: Array) -> list[Array]:
        """Return the features of one image, ``[1, …]`` for each branch.

        Args:
            pixels: Pixels of the image, ``[channels, height, width]``.

        Raises:
            ExportError: The backbone failed on the batch.
        """
        future: asyncio.Future[list[Array]] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((pixels, future))
        return await future

    async def _run_forever(self) -> None:
        """Run everything that arrived during the last batch; a first image never waits for more."""
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self._queue.get()]
            while len(batch) < self.max_batch and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            batch = [item for item in batch if not item[1].done()]  # clients may have left
            if not batch:
                continue
            pixels = np.stack([image for image, _ in batch])
            start = time.perf_counter()
            try:
                features = await loop.run_in_executor(self._thread, self.run, pixels)
            except Exception as error:  # those who wait get the error, and the queue goes on
                for _, future in batch:
                    if not future.done():
                        future.set_exception(ExportError(first_line(error)))
                continue
            self.on_batch(len(batch), time.perf_counter() - start)
            for place, (_, future) in enumerate(batch):
                if not future.done():
                    future.set_result([array[place : place + 1] for array in features])
