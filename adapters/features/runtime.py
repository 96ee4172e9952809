"""What the extraction of features needs of a runtime: the protocol that each runtime answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

import numpy as np

if TYPE_CHECKING:
    from torch import nn

Precision = Literal["fp32", "bf16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Branches = tuple[np.ndarray[Any, np.dtype[np.float32]], ...]

Run = Callable[[Pixels], Branches]
"""From uint8 ``[batch, channels, height, width]``, resized and cropped, to float32 features, a
tensor ``[batch, …]`` per branch. The batch has the size that the runtime was started with."""


class Runtime(Protocol):
    """A way to run a backbone. Cheap to make and to pickle; the work begins with ``start``.

    Attributes:
        name: name of the runtime, as ``--runtime`` takes it.
        precision: precision of its arithmetic; features come out as float32.
        threads: number of threads on the CPU; one per core without it.
        streams: number of batches that ``Run`` may be called with at once, from as many threads.
        versions: versions of what computes: features of other versions may differ in the last bits.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def precision(self) -> Precision: ...  # noqa: D102

    @property
    def threads(self) -> int | None: ...  # noqa: D102

    @property
    def streams(self) -> int: ...  # noqa: D102

    @property
    def versions(self) -> dict[str, str]: ...  # noqa: D102

    def start(self, model: nn.Module, folder: Path, batch_size: int, /) -> Run:
        """Make the runtime ready.

        Args:
            model: a frozen timm model; stays as it is.
            folder: where a converted backbone may be kept for the next time.
            batch_size: number of images per call.

        Raises:
            ExportError: the runtime cannot run this backbone.
        """
        ...
