"""The protocol of a runtime: what extraction needs to run a backbone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
"""A function that runs the backbone. It takes pixels, uint8 ``[batch, channels, height, width]``,
resized and cropped, and returns float32 features, one array ``[batch, …]`` per branch, followed by
one array ``[batch, width]`` per level. The batch always has the size that the runtime was started
with."""


class Runtime(Protocol):
    """A way to run a backbone. It is cheap to create and to pickle; ``start`` does the work.

    Attributes:
        name: Name of the runtime, as ``--runtime`` takes it.
        precision: Precision of the arithmetic. Features are float32 in any case.
        threads: Number of threads on the CPU. If None, one per core.
        streams: Number of threads that may call ``Run`` at once, each with a batch of its own.
        versions: Versions of the software that computes features. Features of another version may
            differ in the last bits.
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

    def start(
        self, model: nn.Module, folder: Path, batch_size: int, /, levels: str | Sequence[str] = ()
    ) -> Run:
        """Prepare the backbone and return the function that runs it.

        Args:
            model: A frozen timm model. It is not changed.
            folder: Folder in which the runtime may keep a converted backbone for the next time.
            batch_size: Number of images per call.
            levels: Names of levels whose vectors follow the branches, in the model's order, or
                ``all`` for all levels. ``last`` adds nothing: the branches are the last features.

        Raises:
            ExportError: The runtime cannot run this backbone.
            ContractError: The backbone has no such level.
        """
        ...
