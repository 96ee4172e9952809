"""The contenders of the study, with the cells and draws in which each is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from . import heads, network, tuning
from .cells import CLASSES, FOREIGN, OTHER_TASKS, Cell, cells, draw_training
from .results import Key, key
from .sets import load

DRAWS, FEW_DRAWS = 20, 3
"""Number of draws of heads that take seconds, and of contenders that take minutes."""

Measure = Callable[[Cell, int, Mapping[Key, Mapping[str, Any]]], dict[str, Any] | None]


@dataclass(frozen=True)
class Contender:
    """A way to get from training images to a classifier.

    Attributes:
        measure: Function that returns the result of a cell and a draw, or None if it needs a result
            that is not there yet. Its third argument are the results so far.
        draws: Number of draws in each cell.
        sets: Names of the image sets.
    """

    measure: Measure
    draws: int
    sets: tuple[str, ...] = CLASSES

    def jobs(self) -> Iterator[tuple[Cell, int]]:
        """Yield cells and draws in the order in which they are measured."""
        for draw in range(self.draws):
            for cell in cells(self.sets):
                yield cell, draw


def _with_choice(contender: ModuleType, entry: str) -> Measure:
    """Return the measurement of a module whose first draw in a cell chooses for all draws.

    Args:
        contender: A module whose function ``measure`` takes the choice last, or None to choose.
        entry: The entry of a result that has the choice.
    """

    def measure(
        cell: Cell, draw: int, results: Mapping[Key, Mapping[str, Any]]
    ) -> dict[str, Any] | None:
        choice = None
        if draw:
            first = results.get(key(cell, 0))
            if first is None:
                return None
            choice = first[entry]
        training = draw_training(cell.set, cell.images_per_class, draw)
        found: dict[str, Any] = contender.measure(
            load(cell.set), cell.backbone, training, draw, choice
        )
        return found

    return measure


def _head(method: heads.Method) -> Measure:
    """Return the measurement of a head."""

    def measure(cell: Cell, draw: int, _results: Mapping[Key, Any]) -> dict[str, Any]:
        training = draw_training(cell.set, cell.images_per_class, draw)
        return heads.measure(method, load(cell.set), cell.backbone, training, draw)

    return measure


CONTENDERS = {
    "last": Contender(_head(heads.last_features), DRAWS, (*CLASSES, *OTHER_TASKS, *FOREIGN)),
    "levels": Contender(_head(heads.over_levels), DRAWS, (*CLASSES, *OTHER_TASKS, *FOREIGN)),
    "projection": Contender(_head(heads.projection), FEW_DRAWS, (*CLASSES, *OTHER_TASKS)),
    "neighbors": Contender(_head(heads.neighbors), DRAWS),
    "mlp": Contender(_head(heads.mlp), FEW_DRAWS),
    "scikit_learn": Contender(_head(heads.logistic_regression), FEW_DRAWS),
    "networks": Contender(_with_choice(network, "rate"), FEW_DRAWS, (*CLASSES, *FOREIGN)),
    "tuned": Contender(_with_choice(tuning, "chosen"), FEW_DRAWS, (*CLASSES, *FOREIGN)),
}
"""Contenders by name."""
