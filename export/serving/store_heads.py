"""Keep the heads of a store in memory, and follow new versions and moved tags."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import Any

import numpy as np

from headkit.adapters.errors import BackboneMismatch, ExportError, HeadkitError, StoreError
from headkit.adapters.heads.head import Head
from headkit.export.graph.description.head_info import HeadInfo
from headkit.export.graph.description.names import LEVEL_BIAS, LEVEL_WEIGHT
from headkit.export.graph.heads_in_graph import head_model
from headkit.export.graph.level_row import last_row, lay_out, reads_row
from headkit.export.graph.linear import is_linear, weight_and_bias
from headkit.export.graph.metadata import ModelInfo
from headkit.export.runtimes.onnxruntime import open_session
from headkit.registry.store.layout import STORE, Entry
from headkit.registry.store.object_storage import ObjectStorage
from headkit.registry.store.records import Version
from headkit.registry.store.reference import LATEST, Reference
from headkit.registry.store.store import HeadStore

from .limits import HeadTooLarge, TooManyHeads
from .log import SeldomLog
from .lookups import Lookups, StoreHangs

Array = np.ndarray[Any, Any]
OPSET = 20
"""Operator set of the small models that compute heads which are not linear."""
DEADLINES = (5, 60)
"""Seconds in which an object store must answer: for a record or a tag, and for all else."""
READS_AT_ONCE = 16
"""Number of heads that a request for ``*`` reads at the same time."""
MAX_VERSIONS = MAX_MISMATCHES = 100_000
"""Number of references, and of heads of other backbones, that are remembered."""


@dataclass(frozen=True)
class LoadedHead:
    """A head in memory. Versions with the same content share it.

    Attributes:
        info: Description of the head.
        logits: Function from the features of each branch and the levels, ``[batch, …]``, to logits
            ``[batch, num_classes]``.
        num_bytes: Size of the head's tensors in bytes.
    """

    info: HeadInfo
    logits: Callable[[Sequence[Array]], Array]
    num_bytes: int


Heads = dict[str, tuple[Version, LoadedHead]]
"""Versions and their heads, by reference or by name."""


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
        on_head_error: Called when a request for ``*`` leaves a head out because it fails. The
            metrics replace it.
        lookups: Reads of the store, each with a deadline.
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
        self._num_bytes = 0
        self._mismatches: dict[str, str] = {}
        self._lock = Lock()
        self._entries: tuple[float, list[Entry]] = (0.0, [])
        self._latest: dict[str, int | None] = {}
        self._listing_seconds = 0.0
        self.on_head_error: Callable[[], None] = lambda: None
        self.lookups, self._log = Lookups(partial(store.storage.read, STORE)), SeldomLog()
        if isinstance(store.storage, ObjectStorage):
            store.storage.deadlines = DEADLINES

    @property
    def loaded(self) -> int:
        """Number of heads in memory."""
        return len(self._loaded)

    async def entries(self) -> list[Entry]:
        """Return the names of the store, as they were at most ``refresh_seconds`` ago.

        Where the store takes long to list them, they may be older, so that it is not listed more
        than a tenth of the time.

        Raises:
            RegistryError: The store was never read, and it cannot be read now.
        """
        read_at, entries = self._entries
        if read_at and time.monotonic() - read_at <= 10 * self._listing_seconds:
            return entries
        if self._is_fresh(read_at):
            return entries
        try:
            return await self.lookups.read("entries", self._read_entries, known=bool(read_at))
        except StoreError as error:
            if not read_at:
                raise
            self._report_stale("the list of names", error)
            if not isinstance(error, StoreHangs):
                self._entries = (time.monotonic(), entries)
            return entries

    def _read_entries(self) -> list[Entry]:
        start = time.monotonic()
        entries = self.store.list()
        end = time.monotonic()
        self._latest = {one.name: one.latest for one in entries}
        self._entries, self._listing_seconds = (end, entries), end - start
        return entries

    async def load(self, refs: Sequence[str]) -> Heads:
        """Return versions and their heads by reference, or by name for ``*``.

        Args:
            refs: References such as ``flowers@prod``. ``*`` stands for the newest version of each
                name whose head was trained on this backbone; a head that cannot be loaded is left
                out.

        Raises:
            RegistryError: A reference names no version.
            BackboneMismatch: A head was trained on another backbone.
            TooManyHeads: ``*`` stands for more than ``max_heads`` heads.
            HeadTooLarge: A head takes more than ``max_bytes``.
        """
        heads = {ref: await self._load_one(ref) for ref in dict.fromkeys(refs) if ref != "*"}
        if "*" not in refs:
            return heads
        newest = {
            entry.name: f"{entry.name}@{entry.latest}"
            for entry in await self.entries()
            if entry.latest is not None
        }
        missing = []
        for name, ref in newest.items():
            _, version = self._versions.get(ref, (0.0, None))
            head = self._from_memory(version) if version is not None else None
            if version is not None and head is not None:
                heads[name] = version, head
            elif version is None or version.digest not in self._mismatches:
                missing.append(name)
        for first in range(0, len(missing), READS_AT_ONCE):
            if len(heads) > self.max_heads:
                break
            some = missing[first : first + READS_AT_ONCE]
            found = await asyncio.gather(
                *(self._load_one(newest[name]) for name in some), return_exceptions=True
            )
            for name, one in zip(some, found, strict=True):
                if isinstance(one, BackboneMismatch):
                    continue
                if isinstance(one, HeadkitError):
                    self.on_head_error()
                    self._log.warn("skipped the head %s in a request for *: %s", name, one)
                elif isinstance(one, BaseException):
                    raise one
                else:
                    heads[name] = one
        if len(heads) > self.max_heads:
            raise TooManyHeads(
                f"* matches more heads than the {self.max_heads} allowed per request: list the "
                "heads by name"
            )
        return heads

    def _from_memory(self, version: Version) -> LoadedHead | None:
        with self._lock:
            head = self._loaded.get(version.digest)
            if head is not None:
                self._loaded.move_to_end(version.digest)  # the last one is the one used last
                self._forget_oldest()
        return head

    async def _load_one(self, ref: str) -> tuple[Version, LoadedHead]:
        version = await self.resolve(ref)
        if version.digest in self._mismatches:
            raise BackboneMismatch(self._mismatches[version.digest])
        if version.size > self.max_bytes:
            raise HeadTooLarge(
                f"the head {version} has {version.size:,} bytes; at most {self.max_bytes:,} fit "
                "into the memory for heads"
            )
        head = self._from_memory(version)
        if head is None:
            read = partial(self._read_head, version)
            head = await self.lookups.read(("head", version.digest), read, known=False)
        return version, head

    def _read_head(self, version: Version) -> LoadedHead:
        try:
            head = self._prepare(self.store.load(version))
        except BackboneMismatch as error:
            if len(self._mismatches) > MAX_MISMATCHES:
                self._mismatches.clear()
            self._mismatches[version.digest] = str(error)
            raise
        with self._lock:
            before = self._loaded.pop(version.digest, None)
            self._num_bytes += head.num_bytes - (before.num_bytes if before is not None else 0)
            self._loaded[version.digest] = head  # the last one is the one used last
            self._forget_oldest()
        return head

    def _forget_oldest(self) -> None:
        while self._num_bytes > self.max_bytes and len(self._loaded) > 1:
            _, oldest = self._loaded.popitem(last=False)
            self._num_bytes -= oldest.num_bytes

    async def resolve(self, ref: str) -> Version:
        """Return the version that a reference names, as it was at most ``refresh_seconds`` ago.

        What a number or a digest names never changes, so it is looked up only once.

        Raises:
            RegistryError: There is none, or the store cannot be read.
        """
        reference = Reference.parse(ref)
        ref = str(reference)
        looked_up_at, known = self._last_known(reference)
        never_changes = reference.version is not None or bool(reference.digest)
        if known is not None and (never_changes or self._is_fresh(looked_up_at)):
            return known
        try:
            read = partial(self._read_version, ref, reference)
            return await self.lookups.read(("version", ref), read, known=known is not None)
        except StoreError as error:
            if known is None:
                raise
            self._report_stale(ref, error)
            if not isinstance(error, StoreHangs):
                self._versions[ref] = (time.monotonic(), known)
            return known

    def _last_known(self, reference: Reference) -> tuple[float, Version | None]:
        """Return when a reference was looked up, and its version; None if it is unknown.

        A name that was only part of a request for ``*`` has the newest version of the last listing.
        """
        ref = str(reference)
        if ref not in self._versions and reference.tag == LATEST:
            latest = self._latest.get(reference.name)
            _, version = self._versions.get(f"{reference.name}@{latest}", (0.0, None))
            return 0.0, version
        return self._versions.get(ref, (0.0, None))

    def _read_version(self, ref: str, reference: Reference) -> Version:
        version = self.store.resolve(reference)
        if len(self._versions) > MAX_VERSIONS:
            self._versions.clear()
        self._versions[ref] = (time.monotonic(), version)
        return version

    def _is_fresh(self, read_at: float) -> bool:
        return bool(read_at) and time.monotonic() - read_at <= self.refresh_seconds

    def _report_stale(self, what: str, error: StoreError) -> None:
        self.on_store_error()
        self._log.warn("%s may be out of date, as the store cannot be read: %s", what, error)

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
        if reads_row(self.model, head):
            return self._prepare_over_levels(info, head)
        try:
            model = head_model(self.model, head, OPSET).SerializeToString()
            session = open_session(model, threads=1)
        except ExportError as error:
            raise BackboneMismatch(str(error)) from error
        names = list(self.model.features)

        def logits(features: Sequence[Array]) -> Array:
            feed = dict(zip(names, features[: len(names)], strict=True))
            return np.asarray(session.run(["logits"], feed)[0])

        return LoadedHead(info, logits, head.num_bytes)

    def _prepare_over_levels(self, info: HeadInfo, head: Head) -> LoadedHead:
        try:
            laid = lay_out(self.model, head)
        except ExportError as error:
            raise BackboneMismatch(str(error)) from error
        bias, transposed = laid[LEVEL_BIAS], np.ascontiguousarray(laid[LEVEL_WEIGHT].T)
        count = len(self.model.features)

        def logits(features: Sequence[Array]) -> Array:
            last = last_row(self.model, features[:count])
            return np.asarray(np.concatenate([last, *features[count:]], 1) @ transposed + bias)

        return LoadedHead(info, logits, transposed.nbytes + bias.nbytes)
