"""How to fit and measure a head, and how to extract its features."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from headkit.adapters.backbone.level import LevelNames
from headkit.adapters.data.dataset import ImageDataset
from headkit.adapters.features.extract import Progress
from headkit.adapters.features.transform import View
from headkit.adapters.fitting.class_weights import ClassWeights
from headkit.adapters.heads.kinds import Kind
from headkit.extraction import Extraction, open_extraction


@dataclass(frozen=True)
class HeadOptions:
    """How to fit and measure a head; see ``fit`` for the values.

    Attributes:
        kind: Kind of head.
        levels: What a linear head reads.
        l2: Strengths of the penalty.
        class_weights: Weights of the classes.
        thresholds: How to choose the decision thresholds.
        holdout: Share of the images that measures the head.
        views: Number of crops of each training image.
        seed: Random seed.
        notes: Free text.
        report: Folder for a report.
    """

    kind: Kind | None
    levels: LevelNames
    l2: float | Sequence[float] | None
    class_weights: ClassWeights | None
    thresholds: str | float | None
    holdout: float | None
    views: int
    seed: int
    notes: str
    report: str | Path | None


@dataclass(frozen=True)
class ExtractionOptions:
    """How to extract features; see ``fit`` for the values.

    Attributes:
        runtime: Runtime of the backbone.
        precision: Precision of its arithmetic.
        executor: Where features are extracted.
        cache: Folder in which features are kept.
        batch_size: Number of images per forward pass.
        workers: Number of processes that decode images.
        max_unreadable: Largest share of unreadable images.
        progress: Called with how far the extraction is.
    """

    runtime: str
    precision: str
    executor: str
    cache: bool | str | Path
    batch_size: int
    workers: int | None
    max_unreadable: float
    progress: Progress | None

    def open(
        self,
        model: nn.Module,
        requests: Sequence[tuple[ImageDataset, View]],
        levels: Sequence[str],
    ) -> AbstractContextManager[Extraction]:
        """Open the extraction of features, see ``open_extraction``."""
        return open_extraction(
            model,
            requests,
            runtime=self.runtime,
            precision=self.precision,
            executor=self.executor,
            cache=self.cache,
            batch_size=self.batch_size,
            workers=self.workers,
            max_unreadable=self.max_unreadable,
            progress=self.progress,
            levels=levels,
        )
