"""Serve many heads on one backbone: batches, heads of a store that follow it, no HTTP."""

from __future__ import annotations

import asyncio
import io
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import onnxruntime as ort

from headkit.adapters.errors import (
    BackboneMismatch,
    ExportError,
    RegistryError,
    StoreError,
    first_line,
)
from headkit.adapters.heads.head import Head
from headkit.adapters.images import TooLarge, open_image
from headkit.export.graph.classifier_graph import is_linear, weight_and_bias
from headkit.export.graph.heads_in_graph import head_model
from headkit.export.graph.metadata import HeadInfo, ModelInfo
from headkit.export.predict.predictor import Prediction, scores, top
from headkit.export.preprocess.pillow import Preprocess
from headkit.export.runtimes.onnxruntime import open_session
from headkit.registry.store.layout import Entry, Version
from headkit.registry.store.reference import Reference
from headkit.registry.store.store import HeadStore

logger = logging.getLogger("headkit")

Array = np.ndarray[Any, Any]
OPSET = 20
"""Of the small models that heads of other kinds than linear become."""


class TooManyHeads(RegistryError):
    """A request asks for more heads than are allowed."""


class Overloaded(ExportError):
    """More requests wait than are allowed."""


@dataclass(frozen=True)
class Limits:
    """What one request may cost.

    Attributes:
        upload_bytes: of a request's body.
        pixels: of an image, as its file states them, before it is decoded.
        seconds: from the request to its answer.
        heads: of one request.
        waiting: requests that wait for the backbone.
        head_bytes: of the heads that are kept in memory; those used last stay.
    """

    upload_bytes: int = 20 * 2**20
    pixels: int = 50_000_000
    seconds: float = 30.0
    heads: int = 1000
    waiting: int = 1000
    head_bytes: int = 2**30


@dataclass(frozen=True)
class Answer:
    """What one head says of an image."""

    version: Version
    predictions: list[Prediction]


@dataclass(frozen=True)
class _Ready:
    """A head that features can be given to."""

    info: HeadInfo
    logits: Callable[[Sequence[Array]], Array]
    num_bytes: int


@dataclass
class Observed:
    """Called with what happened, for metrics; replaced by who wants to know."""

    batch: Callable[[int, float], None] = field(default=lambda _size, _seconds: None)
    store_error: Callable[[], None] = field(default=lambda: None)


class Service:
    """One backbone, all heads of a store.

    While the store cannot be read, names and tags stay what they were found to be last.

    Args:
        store: whose heads are served, those that were trained on this backbone.
        onnx_path: an exported model of the form ``backbone``.
        provider: see ``Predictor``.
        threads: of ONNX Runtime; one per core without it.
        max_batch: images per run of the backbone.
        refresh_seconds: after which a name or a tag is looked up again.
        limits: of a request.

    Attributes:
        info: what the model says of itself.
        observed: where to tell what happens.

    Raises:
        ExportError: the file is no exported backbone.
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
        self.store, self.limits, self.max_batch = store, limits or Limits(), max_batch
        self.refresh_seconds, self.observed = refresh_seconds, Observed()
        self.session = open_session(onnx_path, threads, provider)
        props = self.session.get_modelmeta().custom_metadata_map
        self.info = ModelInfo.from_props(props, str(onnx_path))
        if self.info.form != "backbone" or self.info.preprocess:
            raise ExportError(
                f"{onnx_path} is of the form {self.info.form!r}: serving takes a backbone "
                "(headkit export … --form backbone)"
            )
        self.preprocess = Preprocess.from_cfg(self.info.backbone["pretrained_cfg"])
        self._found: dict[str, tuple[float, Version]] = {}
        self._ready: OrderedDict[str, _Ready] = OrderedDict()
        self._mismatched: dict[str, str] = {}
        self._lock = Lock()
        self._listed: tuple[float, list[Entry]] = (0.0, [])
        self._decoding = ThreadPoolExecutor(os.cpu_count() or 1, "decode")
        self._running = ThreadPoolExecutor(1, "backbone")
        self._waiting: asyncio.Queue[tuple[Array, asyncio.Future[list[Array]]]] = asyncio.Queue()
        self._batching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to run what waits."""
        self._batching = asyncio.create_task(self._batch_forever())

    async def stop(self) -> None:
        """End; what waits is cancelled."""
        if self._batching is not None:
            self._batching.cancel()
        self._decoding.shutdown(wait=False, cancel_futures=True)
        self._running.shutdown(wait=False, cancel_futures=True)

    @property
    def waiting(self) -> int:
        """Images that wait for the backbone."""
        return self._waiting.qsize()

    @property
    def loaded(self) -> int:
        """Heads in memory."""
        return len(self._ready)

    def entries(self) -> list[Entry]:
        """Return the names of the store, as they were at most ``refresh_seconds`` ago."""
        at, entries = self._listed
        if time.monotonic() - at > self.refresh_seconds:
            try:
                entries = self.store.list()
            except StoreError as error:
                if not at:
                    raise
                self._keep("the list of names", error)
            self._listed = (time.monotonic(), entries)
        return entries

    def _keep(self, what: str, error: StoreError) -> None:
        """Tell that something is served as it was found last."""
        self.observed.store_error()
        logger.warning("%s stays as it was: %s", what, error)

    async def predict(
        self, content: bytes, refs: Sequence[str], *, top_k: int = 5
    ) -> dict[str, Answer]:
        """Classify one image by several heads, for one pass of the backbone.

        Args:
            content: an image file.
            refs: references to heads, such as ``flowers@prod``; ``*`` stands for the newest version
                of all names whose heads were trained on this backbone.
            top_k: predictions per head.

        Returns:
            The answers by reference, or by name for ``*``.

        Raises:
            DataError: the image cannot be read; ``TooLarge``: it has too many pixels.
            RegistryError: a reference names nothing.
            BackboneMismatch: a head was trained on another backbone.
            TooManyHeads: ``*`` stands for more heads than are allowed.
            Overloaded: too many requests wait.
        """
        loop = asyncio.get_running_loop()
        # Heads before pixels: what is not there is told at once.
        heads = await loop.run_in_executor(self._decoding, self._heads, refs)
        pixels = await loop.run_in_executor(self._decoding, self._pixels, content)
        if self._waiting.qsize() >= self.limits.waiting:
            raise Overloaded(f"{self._waiting.qsize()} images wait already")
        future: asyncio.Future[list[Array]] = loop.create_future()
        self._waiting.put_nowait((pixels, future))
        features = await future
        return await loop.run_in_executor(self._decoding, _answers, heads, features, top_k)

    def _heads(self, refs: Sequence[str]) -> dict[str, tuple[Version, _Ready]]:
        if "*" not in refs:
            return {ref: self._head(ref) for ref in dict.fromkeys(refs)}
        found = {}
        for entry in self.entries():
            if entry.latest is None:
                continue
            try:
                found[entry.name] = self._head(f"{entry.name}@{entry.latest}")
            except BackboneMismatch:
                continue
            except RegistryError as error:
                logger.warning("left out of all heads: %s", error)
            if len(found) > self.limits.heads:
                raise TooManyHeads(f"there are more heads than the {self.limits.heads} allowed")
        return found

    def _version(self, ref: str) -> Version:
        """Look a reference up; versions by their number are looked up once, they never change."""
        reference = Reference.parse(ref)
        at, known = self._found.get(ref, (0.0, None))
        if known is not None and (
            reference.version is not None or time.monotonic() - at <= self.refresh_seconds
        ):
            return known
        try:
            version = self.store.resolve(reference)
        except StoreError as error:
            if known is None:
                raise
            self._keep(ref, error)
            version = known
        if len(self._found) > 10 * self.limits.heads:
            self._found.clear()
        self._found[ref] = (time.monotonic(), version)
        return version

    def _head(self, ref: str) -> tuple[Version, _Ready]:
        version = self._version(ref)
        if version.digest in self._mismatched:
            raise BackboneMismatch(self._mismatched[version.digest])
        with self._lock:
            ready = self._ready.pop(version.digest, None)
        try:
            ready = ready or self._made_ready(self.store.load(version))
        except BackboneMismatch as error:
            if len(self._mismatched) > 10 * self.limits.heads:
                self._mismatched.clear()
            self._mismatched[version.digest] = str(error)
            raise
        with self._lock:
            self._ready[version.digest] = ready  # the last of them is the one used last
            held = sum(one.num_bytes for one in self._ready.values())
            while held > self.limits.head_bytes and len(self._ready) > 1:
                _, oldest = self._ready.popitem(last=False)
                held -= oldest.num_bytes
        return version, ready

    def _made_ready(self, head: Head) -> _Ready:
        self.info.check_backbone(head, force=None)
        described = HeadInfo.from_head(head)
        if is_linear(head, self.info.features):
            weight, bias = weight_and_bias(head)
            turned = np.ascontiguousarray(weight.T)
            return _Ready(
                described,
                lambda rows: rows[0].reshape(len(rows[0]), -1) @ turned + bias,
                head.num_bytes,
            )
        try:
            model = head_model(self.info, head, OPSET).SerializeToString()
        except ExportError as error:
            raise BackboneMismatch(str(error)) from error
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        session = ort.InferenceSession(model, options)
        names = list(self.info.features)

        def logits(rows: Sequence[Array]) -> Array:
            return np.asarray(session.run(["logits"], dict(zip(names, rows, strict=True)))[0])

        return _Ready(described, logits, head.num_bytes)

    def _pixels(self, content: bytes) -> Array:
        return self.preprocess(open_image(io.BytesIO(content), self._check_size))

    def _check_size(self, width: int, height: int) -> None:
        """Refuse an image that is large, or narrow and large once its short edge is resized."""
        target = max(self.preprocess.height, self.preprocess.width) / self.preprocess.crop_pct
        resized = target**2 * max(width, height) / max(min(width, height), 1)
        if max(width * height, resized) > self.limits.pixels:
            raise TooLarge(
                f"the image has {width} x {height} pixels, which makes "
                f"{max(width * height, int(resized)):,}; {self.limits.pixels:,} are allowed"
            )

    async def _batch_forever(self) -> None:
        """Run all that came while the last batch ran; the first of them never waits for more."""
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self._waiting.get()]
            while len(batch) < self.max_batch and not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
            batch = [one for one in batch if not one[1].done()]  # a client may be gone meanwhile
            if not batch:
                continue
            pixels = np.stack([one for one, _ in batch])
            start = time.perf_counter()
            try:
                features = await loop.run_in_executor(self._running, self._run, pixels)
            except Exception as error:  # tell it to those who wait, and go on
                for _, future in batch:
                    if not future.done():
                        future.set_exception(ExportError(first_line(error)))
                continue
            self.observed.batch(len(batch), time.perf_counter() - start)
            for place, (_, future) in enumerate(batch):
                if not future.done():
                    future.set_result([array[place : place + 1] for array in features])

    def _run(self, pixels: Array) -> list[Array]:
        names = list(self.info.features)
        return [np.asarray(a) for a in self.session.run(names, {"pixel_values": pixels})]


def _answers(
    heads: Mapping[str, tuple[Version, _Ready]], features: Sequence[Array], top_k: int
) -> dict[str, Answer]:
    answers = {}
    for name, (version, ready) in heads.items():
        row = scores(ready.info.description, ready.logits(features))[0]
        answers[name] = Answer(version, top(ready.info, row, top_k))
    return answers
