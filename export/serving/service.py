"""Classify images by the heads of a store, with one pass of a backbone per image."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from headkit.adapters.errors import ExportError, first_line
from headkit.adapters.images.open import ImageReader
from headkit.adapters.images.pixel_rule import CURRENT_RULE, PixelRule
from headkit.export.graph.metadata import ModelInfo
from headkit.export.predict.scores import Prediction, check_logits, compute_scores, select_top
from headkit.export.preprocess.pillow import Preprocess
from headkit.export.runtimes.onnxruntime import open_session
from headkit.registry.store.records import Version
from headkit.registry.store.store import HeadStore

from .batcher import Array, Batcher
from .limits import Limits, ServiceBusy
from .store_heads import Heads, StoreHeads

logger = logging.getLogger("headkit")


LOOKUPS = 32
"""Maximum number of requests that wait for the store at once."""


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
        ExportError: The file cannot be read or is not an exported backbone.
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
        self._session = open_session(onnx_path, threads, provider)
        props = self._session.get_modelmeta().custom_metadata_map
        self.info = ModelInfo.from_props(props, str(onnx_path))
        if self.info.form != "backbone" or self.info.preprocess:
            preprocessing = " with preprocessing" if self.info.preprocess else ""
            raise ExportError(
                f"{onnx_path} has the form {self.info.form!r}{preprocessing}, expected 'backbone' "
                "without preprocessing: export one (headkit export … --form backbone)"
            )
        self.heads = StoreHeads(
            store,
            self.info,
            refresh_seconds=refresh_seconds,
            max_heads=self.limits.heads,
            max_bytes=self.limits.head_bytes,
        )
        self.batcher = Batcher(self._run, max_batch)
        self._preprocess = Preprocess.from_cfg(self.info.backbone["pretrained_cfg"])
        self._threads = ThreadPoolExecutor(os.cpu_count() or 1, "decode")
        self._lookups = ThreadPoolExecutor(LOOKUPS, "lookup")  # they wait, and need no processor

    async def start(self) -> None:
        """Start to answer requests."""
        await self.batcher.start()

    async def stop(self) -> None:
        """Stop; requests that still wait get no answer."""
        await self.batcher.stop()
        for threads in (self._threads, self._lookups):
            threads.shutdown(wait=False, cancel_futures=True)

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
            TooManyHeads: ``*`` stands for more heads than are allowed.
            ServiceBusy: Too many requests wait.
        """
        loop = asyncio.get_running_loop()
        # Heads come first, so that an unknown head is an error at once.
        heads = self.heads.load_from_memory(refs)
        if heads is None:
            heads = await loop.run_in_executor(self._lookups, self.heads.load, refs)
        rules = {head.info.pixels for _, head in heads.values()} or {CURRENT_RULE}
        decoded = await loop.run_in_executor(self._threads, self._decode, content, rules)
        waiting = self.batcher.waiting
        if waiting >= self.limits.waiting:
            raise ServiceBusy(f"{waiting} images are already waiting: try again later")
        # Most images give the same pixels by every rule, and then need one pass of the backbone.
        keys = dict.fromkeys(decoded, b"")
        if len(decoded) > 1:
            keys = {rule: pixels.tobytes() for rule, pixels in decoded.items()}
        distinct = {keys[rule]: pixels for rule, pixels in decoded.items()}
        computed = await asyncio.gather(*map(self.batcher.features, distinct.values()))
        by_pixels = dict(zip(distinct, computed, strict=True))
        features = {rule: by_pixels[keys[rule]] for rule in decoded}
        return await loop.run_in_executor(
            self._threads, self._answer, heads, features, top_k, frozenset(refs)
        )

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
                logger.warning("left out the head %s, which fails: %s", version, first_line(error))
                continue
            row = compute_scores(head.info.description, logits)[0]
            answers[name] = Answer(version, select_top(head.info, row, top_k))
        return answers

    def _decode(self, content: bytes, rules: Set[PixelRule]) -> dict[PixelRule, Array]:
        """Return ``pixel_values`` by the rule of each head; most images give the same for all."""
        cfg = self.info.backbone["pretrained_cfg"]
        readers = [ImageReader.for_model(cfg, rule, self.limits.pixels) for rule in rules]
        return {read.rule: self._preprocess(read(content)) for read in readers}

    def _run(self, pixels: Array) -> list[Array]:
        names = list(self.info.features)
        return [np.asarray(a) for a in self._session.run(names, {"pixel_values": pixels})]
