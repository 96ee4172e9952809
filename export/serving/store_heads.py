"""Keep the heads of a store in memory, and follow new versions and moved tags."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
import onnxruntime as ort

from headkit.adapters.errors import BackboneMismatch, ExportError, RegistryError, StoreError
from headkit.adapters.heads.head import Head
from headkit.export.graph.classifier_graph import is_linear, weight_and_bias
from headkit.export.graph.heads_in_graph import head_model
from headkit.export.graph.metadata import HeadInfo, ModelInfo
from headkit.registry.store.layout import Entry
from headkit.registry.store.records import Version
from headkit.registry.store.reference import Reference
from headkit.registry.store.store import HeadStore

from .limits import TooManyHeads

logger = logging.getLogger("headkit")

Array = np.ndarray[Any, Any]
OPSET = 20
"""Operator set of the small models that compute heads which are not linear."""


@dataclass(frozen=True)
class LoadedHead:
    """A head in memory. Versions with the same content share it.

    Attributes:
        info: Description of the head.
        logits: Function from the features of each branch, ``[batch, …]``, to logits
            ``[batch, num_classes]``.
        num_bytes: Size of the head's tensors in bytes.
    """

    info: HeadInfo
    logits: Callable[[Sequence[Array]], Array]
    num_bytes: int


class StoreHeads:
    """The heads of a store that were trained on one backbone.

    While the store is unreadable, names and tags keep their last known versions.

    Args:
        store: Store of the heads.
        model: Description of the exported backbone.
        refresh_seconds: Seconds after which a name or a tag is looked up again.
        max_heads: Maximum number of heads that ``*`` may stand for.
        max_bytes: Maximum size of the heads in memory. The heads that were used least recently
            leave first.

    Attributes:
        on_store_error: Called when the last known version replaces one that the store does not
            deliver. The metrics replace it.
    """

    def __init__(
        self,
        store: HeadStore,
        model: ModelInfo,
        *,
        refresh_seconds: float,
        max_heads: int,
        max_bytes: int,
    ) -> None:
        self.store, self.model, self.refresh_seconds = store, model, refresh_seconds
        self.max_heads, self.max_bytes = max_heads, max_bytes
        self.on_store_error: Callable[[], None] = lambda: None
        self._versions: dict[str, tuple[float, Version]] = {}
        self._loaded: OrderedDict[str, LoadedHead] = OrderedDict()
        self._mismatches: dict[str, str] = {}
        self._lock = Lock()
        self._entries: tuple[float, list[Entry]] = (0.0, [])

    @property
    def loaded(self) -> int:
        """Number of heads in memory."""
        return len(self._loaded)

    def entries(self) -> list[Entry]:
        """Return the names of the store, as they were at most ``refresh_seconds`` ago.

        Raises:
            RegistryError: The store was never read, and it cannot be read now.
        """
        read_at, entries = self._entries
        if time.monotonic() - read_at > self.refresh_seconds:
            try:
                entries = self.store.list()
            except StoreError as error:
                if not read_at:
                    raise
                self._report_stale("the list of names", error)
            self._entries = (time.monotonic(), entries)
        return entries

    def load(self, refs: Sequence[str]) -> dict[str, tuple[Version, LoadedHead]]:
        """Return versions and their heads by reference, or by name for ``*``.

        Args:
            refs: References such as ``flowers@prod``. ``*`` stands for the newest version of each
                name whose head was trained on this backbone.

        Raises:
            RegistryError: A reference names no version.
            BackboneMismatch: A head was trained on another backbone.
            TooManyHeads: ``*`` stands for more than ``max_heads`` heads.
        """
        if "*" not in refs:
            return {ref: self._load_one(ref) for ref in dict.fromkeys(refs)}
        heads = {}
        for entry in self.entries():
            if entry.latest is None:
                continue
            try:
                heads[entry.name] = self._load_one(f"{entry.name}@{entry.latest}")
            except BackboneMismatch:
                continue
            except RegistryError as error:
                logger.warning("skipped the head %s in a request for *: %s", entry.name, error)
            if len(heads) > self.max_heads:
                raise TooManyHeads(
                    f"* matches more heads than the {self.max_heads} allowed per request: list the "
                    "heads by name"
                )
        return heads

    def _load_one(self, ref: str) -> tuple[Version, LoadedHead]:
        version = self._resolve(ref)
        if version.digest in self._mismatches:
            raise BackboneMismatch(self._mismatches[version.digest])
        with self._lock:
            head = self._loaded.pop(version.digest, None)
        try:
            head = head or self._prepare(self.store.load(version))
        except BackboneMismatch as error:
            if len(self._mismatches) > 10 * self.max_heads:
                self._mismatches.clear()
            self._mismatches[version.digest] = str(error)
            raise
        with self._lock:
            self._loaded[version.digest] = head  # the last one is the one used last
            num_bytes = sum(one.num_bytes for one in self._loaded.values())
            while num_bytes > self.max_bytes and len(self._loaded) > 1:
                _, oldest = self._loaded.popitem(last=False)
                num_bytes -= oldest.num_bytes
        return version, head

    def _resolve(self, ref: str) -> Version:
        """Look a reference up. Versions never change, so a number is looked up only once."""
        reference = Reference.parse(ref)
        looked_up_at, known = self._versions.get(ref, (0.0, None))
        if known is not None and (
            reference.version is not None or time.monotonic() - looked_up_at <= self.refresh_seconds
        ):
            return known
        try:
            version = self.store.resolve(reference)
        except StoreError as error:
            if known is None:
                raise
            self._report_stale(ref, error)
            version = known
        if len(self._versions) > 10 * self.max_heads:
            self._versions.clear()
        self._versions[ref] = (time.monotonic(), version)
        return version

    def _report_stale(self, what: str, error: StoreError) -> None:
        self.on_store_error()
        logger.warning("%s may be out of date, as the store cannot be read: %s", what, error)

    def _prepare(self, head: Head) -> LoadedHead:
        """Return the function that computes a head's logits, with its description."""
        self.model.check_backbone(head, force=None)
        info = HeadInfo.from_head(head)
        if is_linear(head, self.model.features):
            weight, bias = weight_and_bias(head)
            transposed = np.ascontiguousarray(weight.T)
            return LoadedHead(
                info,
                lambda features: features[0].reshape(len(features[0]), -1) @ transposed + bias,
                head.num_bytes,
            )
        try:
            model = head_model(self.model, head, OPSET).SerializeToString()
        except ExportError as error:
            raise BackboneMismatch(str(error)) from error
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        session = ort.InferenceSession(model, options)
        names = list(self.model.features)

        def logits(features: Sequence[Array]) -> Array:
            feed = dict(zip(names, features, strict=True))
            return np.asarray(session.run(["logits"], feed)[0])

        return LoadedHead(info, logits, head.num_bytes)
