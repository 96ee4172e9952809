"""Extract all data of one head with one runtime, which is chosen by what the cache has."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from headkit.adapters.backbone.level import Level
from headkit.adapters.backbone.level_head import without_level_head
from headkit.adapters.backbone.levels import find_levels, vector_levels
from headkit.adapters.backbone.load import load_backbone
from headkit.adapters.compat import unwrap
from headkit.adapters.data.dataset import ImageDataset
from headkit.adapters.errors import ContractError, DataError, ExportError, OutputError
from headkit.adapters.features.cache import FeatureCache
from headkit.adapters.features.disk_space import enforce_limit
from headkit.adapters.features.executors.choose import choose_executor
from headkit.adapters.features.extract import ExtractedFeatures, Progress, count_missing, extract
from headkit.adapters.features.given import take_features
from headkit.adapters.features.runtime import Runtime
from headkit.adapters.features.transform import View
from headkit.adapters.files import cache_folder, scratch_folder
from headkit.adapters.images.pixel_rule import CURRENT_RULE, PixelRule
from headkit.export.runtimes.choose import choose_runtime

logger = logging.getLogger("headkit")

SMALL = 256
"""Number of images that a converting runtime computes in the time that the conversion takes."""
TORCH_TIME = 2
"""Time that torch takes for an image, relative to the runtimes that convert the backbone."""


@dataclass
class Extraction:
    """Extraction with one runtime for all data of a head, so that their features are comparable.

    Attributes:
        model: The frozen backbone.
        runtime: Runtime of the backbone.
        root: Folder of all caches.
        fall_back: Continue with torch if the runtime cannot run this backbone.
        options: More keyword arguments of ``features.extract``.
        given: Features of the user's own, by data set.
        caches: The caches that are in use.
    """

    model: nn.Module
    runtime: Runtime
    root: Path
    fall_back: bool
    options: Mapping[str, Any]
    given: Mapping[ImageDataset, ExtractedFeatures]
    caches: list[FeatureCache] = field(default_factory=list)

    def __call__(self, source: ImageDataset, view: View | None = None) -> ExtractedFeatures:
        """Extract the features of a data set, see ``features.extract``.

        Features of the user's own are returned as they are.

        Raises:
            DataError: See ``features.extract``.
        """
        if source in self.given:
            return self.given[source]
        try:
            found = extract(self.model, source, self.runtime, self.root, view=view, **self.options)
        except ExportError as error:
            if not self.fall_back:
                raise
            logger.warning("extracting with torch instead of %s: %s", self.runtime.name, error)
            threads = self.runtime.threads
            self.runtime = choose_runtime("torch", "fp32", self.model, threads)
            self.fall_back = False
            return self(source, view)
        if isinstance(found.cache, FeatureCache):
            self.caches.append(found.cache)
        return found


def get_backbone(
    backbone: Any, weights: str | Path | None, remap: bool, options: Mapping[str, Any]
) -> nn.Module:
    """Load a backbone by its name, or return a model as it is.

    Args:
        backbone: A timm entry point, or a timm model, compiled or not.
        weights: See ``load_backbone``.
        remap: See ``load_backbone``.
        options: More keyword arguments of ``load_backbone``; those that are None have no effect.

    Raises:
        UnknownArchitecture, WeightsError: See ``load_backbone``.
        ContractError: ``backbone`` is neither.
        ValueError: A model is given together with arguments that would load one.
    """
    if isinstance(backbone, str):
        return unwrap(load_backbone(backbone, weights, remap=remap, **options))
    if not isinstance(backbone, nn.Module):
        raise ContractError(
            f"backbone is of type {type(backbone).__name__}, expected the name of a timm "
            "architecture or a timm model; features need it, too: it becomes part of the head"
        )
    loading = {"weights": weights, "remap": remap or None, **options}
    given = [name for name, value in loading.items() if value is not None]
    if given:
        raise ValueError(
            f"{', '.join(given)} cannot be used for a backbone that is already a model: pass the "
            "name of the architecture, or load_backbone(ARCHITECTURE, …) with these arguments"
        )
    return unwrap(backbone)


def check_sizes(batch_size: int, workers: int | None) -> None:
    """Raise ``ValueError`` unless the batch size and the number of workers are in their range."""
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, expected at least 1")
    if workers is not None and workers < 0:
        raise ValueError(f"workers is {workers}, expected 0 or more")


@contextmanager
def open_extraction(
    model: nn.Module,
    requests: Sequence[tuple[ImageDataset, View]],
    *,
    runtime: str = "auto",
    precision: str = "fp32",
    executor: str = "local",
    cache: bool | str | Path = True,
    batch_size: int = 16,
    workers: int | None = None,
    max_unreadable: float = 0.05,
    rule: PixelRule = CURRENT_RULE,
    progress: Progress | None = None,
    levels: Sequence[str] = (),
) -> Iterator[Extraction]:
    """Choose the runtime for all data that will be extracted, and open the cache.

    If any level is needed, all levels of the images are extracted, so a later call that needs other
    levels finds them in the same cache. Features of the user's own must have the levels that are
    needed. They are checked first, because the extraction takes minutes.

    Args:
        model: The frozen backbone.
        requests: All data sets that will be extracted, each with its crop.
        runtime: Name of the runtime, see ``fit``.
        precision: See ``fit``.
        executor: See ``fit``.
        cache: See ``fit``. Without a cache, the features are kept until the context ends.
        batch_size: See ``fit``.
        workers: See ``fit``.
        max_unreadable: See ``fit``.
        rule: Rule by which images become pixels.
        progress: See ``fit``.
        levels: Names of the levels that are needed beside the last features.

    Raises:
        ContractError: The model has no such level.
        DataError: See ``take_features``; or a random crop of features is requested.
        DependencyMissing, HeadkitError: See ``choose_runtime`` and ``choose_executor``.
        OutputError: The cache cannot be written.
    """
    run_on = choose_executor(executor)
    needed = vector_levels(model, levels)
    every = find_levels(model) if needed else ()
    given = _take_given(model, requests, needed)
    model = without_level_head(model)  # the features do not depend on the head that it carries
    with _open_cache(cache) as root:
        extraction = Extraction(
            model,
            _choose_runtime(runtime, precision, model, requests, executor, root, rule, every),
            root,
            fall_back=runtime == "auto",
            options={
                "executor": run_on,
                "batch_size": batch_size,
                "workers": os.cpu_count() or 1 if workers is None else workers,
                "max_unreadable": max_unreadable,
                "rule": rule,
                "progress": progress,
                "levels": every,
            },
            given=given,
        )
        try:
            yield extraction
        finally:
            for one in extraction.caches:
                one.release()
        try:
            enforce_limit(root)
        except OutputError as error:  # the features are there, and so is what was made of them
            logger.warning("%s", error)


def _take_given(
    model: nn.Module, requests: Sequence[tuple[ImageDataset, View]], levels: Sequence[Level]
) -> dict[ImageDataset, ExtractedFeatures]:
    given: dict[ImageDataset, ExtractedFeatures] = {}
    for source, view in requests:
        if source.features is None:
            continue
        if view.number:
            raise DataError(f"views need images, but {source.name} has features: pass images")
        given[source] = take_features(model, source, levels)
    return given


def _choose_runtime(
    name: str,
    precision: str,
    model: nn.Module,
    requests: Sequence[tuple[ImageDataset, View]],
    executor: str,
    root: Path,
    rule: PixelRule,
    levels: Sequence[Level],
) -> Runtime:
    """Choose the runtime that finishes first, given what the caches of both candidates have."""
    if executor == "ray":  # it runs one process per core
        return choose_runtime(name, precision, model, threads=1)
    fastest = choose_runtime(name, precision, model)
    if name != "auto" or precision != "fp32" or fastest.name == "torch":
        return fastest
    torch = choose_runtime("torch", precision, model)
    with_fastest, with_torch = count_missing(model, requests, (fastest, torch), root, rule, levels)
    if with_fastest.missing is None or with_torch.missing is None:
        return fastest
    fast_time, torch_time = with_fastest.missing, TORCH_TIME * with_torch.missing
    if not fast_time and not torch_time:  # choose as the first run did, when nothing was cached
        fast_time, torch_time = with_fastest.cached, TORCH_TIME * with_torch.cached
        return torch if torch_time < fast_time + SMALL else fastest
    # Features in the cache of the converting runtime mean that it has converted the backbone.
    conversion = SMALL if fast_time and not with_fastest.cached else 0
    return torch if torch_time < fast_time + conversion else fastest


@contextmanager
def _open_cache(cache: bool | str | Path) -> Iterator[Path]:
    if cache is not False:
        yield cache_folder(cache)
        return
    with scratch_folder() as folder:
        yield folder
