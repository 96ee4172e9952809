"""Let images in on their way to the backbone, so that they do not fill the memory.

An image takes a place until the backbone has run, and its pixels until it is decoded. Where images
wait, the smallest ones come first: an image of 25 megapixels takes a hundred times as long as that
of a phone's screen, so that a few of them would keep all others waiting.
"""

from __future__ import annotations

import asyncio
from heapq import heappop, heappush
from itertools import count


class Admission:
    """Places for images, and for the pixels that are decoded at the same time.

    Args:
        images: Maximum number of images.
        pixels: Maximum number of pixels of all images that are decoded at the same time. An image
            with more pixels is decoded alone.
    """

    def __init__(self, images: int, pixels: int) -> None:
        self.images, self.pixels = images, pixels
        self._images = self._pixels = 0
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._numbers = count()

    async def enter(self, pixels: int) -> None:
        """Wait for a place. The caller has to call ``decoded`` and ``leave`` later."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heappush(self._waiting, (min(pixels, self.pixels), next(self._numbers), future))
        self._let_in()
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():  # let in, and then cancelled
                self.decoded(pixels)
                self.leave()
            raise

    def decoded(self, pixels: int) -> None:
        """Give the place of the pixels back."""
        self._pixels -= min(pixels, self.pixels)
        self._let_in()

    def leave(self) -> None:
        """Give the place of the image back."""
        self._images -= 1
        self._let_in()

    def _let_in(self) -> None:
        while self._waiting and self._images < self.images:
            pixels, _, future = self._waiting[0]
            if future.done():  # its request was cancelled
                heappop(self._waiting)
                continue
            if self._pixels + pixels > self.pixels:
                return
            heappop(self._waiting)
            self._images += 1
            self._pixels += pixels
            future.set_result(None)
