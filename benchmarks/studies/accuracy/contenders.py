"""The contenders of the study, with the cells and draws in which each is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
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


def _network(
    cell: Cell, draw: int, results: Mapping[Key, Mapping[str, Any]]
) -> dict[str, Any] | None:
    """Fine-tune the network. The first draw chooses the learning rate of the cell."""
    rate = None
    if draw:
        first = results.get(key(cell, 0))
        if first is None:
            return None
        rate = first["rate"]
    training = draw_training(cell.set, cell.images_per_class, draw)
    return network.measure(load(cell.set), cell.backbone, training, draw, rate)


def _tuned(
    cell: Cell, draw: int, results: Mapping[Key, Mapping[str, Any]]
) -> dict[str, Any] | None:
    """Tune a backbone. The first draw chooses how, or that the head stays as it is."""
    chosen = None
    if draw:
        first = results.get(key(cell, 0))
        if first is None:
            return None
        chosen = first["chosen"]
    training = draw_training(cell.set, cell.images_per_class, draw)
    return tuning.measure(load(cell.set), cell.backbone, training, draw, chosen)


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
    "networks": Contender(_network, FEW_DRAWS, (*CLASSES, *FOREIGN)),
    "tuned": Contender(_tuned, FEW_DRAWS, (*CLASSES, *FOREIGN)),
}
"""Contenders by name."""
