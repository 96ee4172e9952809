"""Features with their targets as arrays: what ``extract`` returns, and what ``fit`` also takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headkit.adapters.heads.tasks import DEFAULT, TaskName

from .dataset import Targets


@dataclass(frozen=True, eq=False)
class Features:
    """The features of ``N`` images, in the order of the data set.

    Attributes:
        x: Features of all branches side by side, float32 ``[N, num_features]``.
        y: Targets. multiclass: int64 ``[N]``, indices into ``label_names``. multilabel: float32
            ``[N, outputs]`` of 0 and 1. regression: float32 ``[N, outputs]``.
        names: Paths of the images, or ``image 0``, ``image 1``, …; text ``[N]``.
        label_names: One name per output; empty if the data have no names.
        task: The kind of targets.
        name: Name of the data set, for messages.
        unreadable: Names of the images that are left out because they cannot be read.
        val: Features of the validation images, if the data have some of their own.
        levels: Vectors of the levels that were asked for beside the last features, by name, float32
            ``[N, width]`` each, in the order of the model. Heads over these levels read them.
    """

    x: NDArray[np.float32]
    y: Targets
    names: NDArray[Any]
    label_names: tuple[str, ...]
    task: TaskName = DEFAULT
    name: str = "the features"
    unreadable: tuple[str, ...] = ()
    val: Features | None = None
    levels: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.x)
