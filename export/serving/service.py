"""Classify images by the heads of a store, with one pass of a backbone per image."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from headkit.adapters.errors import ExportError, RegistryError, first_line
from headkit.adapters.images.open import ImageReader, read_size
from headkit.adapters.images.pixel_rule import CURRENT_RULE, PixelRule
from headkit.export.graph.checksums import check_file
from headkit.export.predict.scores import Prediction, check_logits, compute_scores, select_top
from headkit.export.preprocess.pillow import Preprocess
from headkit.export.runtimes.exported_model import open_exported
from headkit.export.runtimes.model_source import ModelSource
from headkit.registry.store.records import Version
from headkit.registry.store.store import HeadStore

from .admission import Admission
from .batcher import Array, Batcher
from .limits import Limits, ServiceBusy, TooManyHeads
from .log import SeldomLog
from .store_heads import Heads, StoreHeads

THREADS = 2
"""Minimum number of threads that decode, so that a large image never stops the small ones."""


@dataclass(frozen=True)
class Answer:
    """The predictions of one head for an image.

    Attributes:
        version: Version of the head.
        predictions: The best classes, the best first.
    """

    version: Version
    predictions: list[Prediction]


class Service:
    """One backbone and all heads of a store that were trained on it.

    Args:
        store: Store of the heads.
        onnx_path: Path of an exported model of the form ``backbone``.
        provider: Execution provider, see ``Predictor``.
        threads: Number of CPU threads. Default: one per core.
        max_batch: Maximum number of images per run of the backbone.
        refresh_seconds: Seconds after which a name or a tag is looked up again.
        limits: Limits of a request and of the memory for heads. Default: ``Limits()``.

    Attributes:
        info: Description of the model.
        heads: The heads of the store.
        batcher: The queue in front of the backbone.

    Raises:
        ExportError: The file cannot be read, was changed after its export, or is not an exported
            backbone.
    """

    def __init__(
        self,
        store: HeadStore,
        onnx_path: str | Path,
        *,
        provider: str = "cpu",
        threads: int | None = None,
        max_batch: int = 16,
        refresh_seconds: float = 1.0,
        limits: Limits | None = None,
    ) -> None:
        self.store, self.limits = store, limits or Limits()
        source = ModelSource.of(onnx_path)
        self._session, self.info = open_exported(source, threads, provider)
        if self.info.form != "backbone" or self.info.preprocess:
            preprocessing = " with preprocessing" if self.info.preprocess else ""
            raise ExportError(
                f"{onnx_path} has the form {self.info.form!r}{preprocessing}, expected 'backbone' "
                "without preprocessing: export one (headkit export … --form backbone)"
            )
        if self.info.checksum:
            check_file(Path(onnx_path), self.info.checksum, self.info.is_of_head, str(onnx_path))
        self.heads = StoreHeads(
            store,
            self.info,
            refresh_seconds=refresh_seconds,
            max_heads=self.limits.heads,
            max_bytes=self.limits.head_bytes,
        )
        self.batcher, self._log = Batcher(self._run, max_batch), SeldomLog()
        self._preprocess = Preprocess.from_cfg(self.info.backbone["pretrained_cfg"])
        self._threads = ThreadPoolExecutor(max(os.cpu_count() or 1, THREADS), "decode")
        self._admission = Admission(4 * max_batch, self.limits.pixels * 5 // 4)

    async def start(self) -> None:
        """Start to answer requests."""
        await self.batcher.start()
        with suppress(RegistryError):  # later requests say so, and try again
            await self.heads.entries()

    async def stop(self) -> None:
        """Stop; requests that still wait get no answer."""
        await self.batcher.stop()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def predict(
        self, content: bytes, refs: Sequence[str], *, top_k: int = 5
    ) -> dict[str, Answer]:
        """Classify one image by several heads, with one pass of the backbone.

        Args:
            content: Content of an image file.
            refs: References to heads, such as ``flowers@prod``. ``*`` stands for the newest version
                of each name whose head was trained on this backbone.
            top_k: Maximum number of predictions per head; a regression gives all its outputs.

        Returns:
            The answers by reference, or by name for ``*``.

        Raises:
            DataError: The image cannot be read. The subclass ``TooLarge``: it has too many pixels.
            RegistryError: A reference names no version.
            BackboneMismatch: A head was trained on another backbone.
            TooManyHeads: ``*`` stands for more heads than are allowed, or the heads have more
                predictions.
            ServiceBusy: Too many requests wait.
        """
        loop = asyncio.get_running_loop()
        # Heads come first, so that an unknown head is an error at once.
        heads = await self.heads.load(refs)
        self._check_predictions(heads, top_k)
        rules = {head.info.pixels for _, head in heads.values()} or {CURRENT_RULE}
        pixels = await loop.run_in_executor(self._threads, self._count_pixels, content)
        features = await self._compute_features(content, rules, pixels)
        return await loop.run_in_executor(
            self._threads, self._answer, heads, features, top_k, frozenset(refs)
        )

    def _check_predictions(self, heads: Heads, top_k: int) -> None:
        infos = [head.info for _, head in heads.values()]
        predictions = sum(
            min(one.num_classes, top_k) if one.task.has_classes else one.num_classes
            for one in infos
        )
        if predictions > self.limits.predictions:
            raise TooManyHeads(
                f"the request asks for {predictions:,} predictions; at most "
                f"{self.limits.predictions:,} are allowed: name fewer heads, or lower top_k"
            )

    async def _compute_features(
        self, content: bytes, rules: Set[PixelRule], num_pixels: int
    ) -> dict[PixelRule, list[Array]]:
        """Decode an image and run the backbone on it."""
        loop = asyncio.get_running_loop()
        await self._admission.enter(num_pixels)
        try:
            decoding = self._threads.submit(self._decode, content, rules)
            # A request that is cancelled gives its pixels back only once they are decoded.
            decoding.add_done_callback(
                lambda _: _call_in(loop, self._admission.decoded, num_pixels)
            )
            decoded = await asyncio.wrap_future(decoding)
            waiting = self.batcher.waiting
            if waiting >= self.limits.waiting:
                raise ServiceBusy(f"{waiting} images are already waiting: try again later")
            # Most images give the same pixels by every rule: these need one pass of the backbone.
            keys = dict.fromkeys(decoded, b"")
            if len(decoded) > 1:
                keys = {rule: pixels.tobytes() for rule, pixels in decoded.items()}
            distinct = {keys[rule]: pixels for rule, pixels in decoded.items()}
            computed = await asyncio.gather(*map(self.batcher.features, distinct.values()))
            by_pixels = dict(zip(distinct, computed, strict=True))
            return {rule: by_pixels[keys[rule]] for rule in decoded}
        finally:
            self._admission.leave()

    def _answer(
        self,
        heads: Heads,
        features: Mapping[PixelRule, Sequence[Array]],
        top_k: int,
        named: Set[str],
    ) -> dict[str, Answer]:
        answers = {}
        for name, (version, head) in heads.items():
            try:
                logits = check_logits(head.info, head.logits(features[head.info.pixels]))
            except Exception as error:  # ONNX Runtime's own classes share no root below Exception
                if name in named:
                    raise ExportError(f"the head {version} fails: {first_line(error)}") from error
                self.heads.on_head_error()
                self._log.warn("left out the head %s, which fails: %s", version, first_line(error))
                continue
            row = compute_scores(head.info.description, logits)[0]
            answers[name] = Answer(version, select_top(head.info, row, top_k))
        return answers

    def _count_pixels(self, content: bytes) -> int:
        """Return the number of pixels that the header of an image states."""
        width, height = read_size(content, self._reader(CURRENT_RULE).check_size)
        return width * height

    def _reader(self, rule: PixelRule) -> ImageReader:
        cfg = self.info.backbone["pretrained_cfg"]
        return ImageReader.for_model(cfg, rule, self.limits.pixels)

    def _decode(self, content: bytes, rules: Set[PixelRule]) -> dict[PixelRule, Array]:
        """Return ``pixel_values`` by the rule of each head; most images give the same for all."""
        return {rule: self._preprocess(self._reader(rule)(content)) for rule in rules}

    def _run(self, pixels: Array) -> list[Array]:
        names = list(self.info.values)
        return [np.asarray(a) for a in self._session.run(names, {"pixel_values": pixels})]


def _call_in(loop: asyncio.AbstractEventLoop, function: Callable[[int], None], value: int) -> None:
    with suppress(RuntimeError):  # the server has stopped
        loop.call_soon_threadsafe(function, value)
