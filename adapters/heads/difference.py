"""Say how two heads differ: labels, metrics, backbone, levels and weights. No torch is needed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from headkit.adapters.errors import HeadFormatError

from .classes import tensors_per_class

if TYPE_CHECKING:
    from .head import Head

_COMPARED = (
    *("architecture", "kind", "task", "num_features", "global_pool", "model_args"),
    *("pretrained_cfg", "pixels", "temperature", "thresholds", "notes"),
)


@dataclass(frozen=True)
class HeadDifference:
    """How a head B differs from a head A. Equal heads give empty values.

    Attributes:
        added: Labels that only B has.
        removed: Labels that only A has.
        reordered: True if the labels that both have are in another order.
        values: Other values that differ, by their name in the head file, each with its value in A
            and in B.
        backbone: Values of the backbone that differ, in the same form.
        levels: Levels that only one of them reads: ``removed`` and ``added``.
        metrics: Scalar metrics that differ, in the same form; None for a metric that is missing.
        weights: Largest absolute difference of each tensor, over the classes that both have. None
            if the tensor has another shape, or only one of them has it.
        agreement: What the heads say about images, see ``diff_heads``; empty without images.
    """

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    reordered: bool = False
    values: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    backbone: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    levels: dict[str, list[str]] = field(default_factory=dict)
    metrics: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    weights: dict[str, float | None] = field(default_factory=dict)
    agreement: dict[str, Any] = field(default_factory=dict)

    @property
    def max_weight(self) -> float | None:
        """Largest absolute difference of all weights; None if there is one that has none."""
        if any(value is None for value in self.weights.values()):
            return None
        return max((value for value in self.weights.values() if value is not None), default=0.0)

    def to_json(self) -> dict[str, Any]:
        """Return the difference as JSON values."""
        return {
            "labels": {
                "added": list(self.added),
                "removed": list(self.removed),
                "reordered": self.reordered,
            },
            "values": {name: list(pair) for name, pair in self.values.items()},
            "backbone": {name: list(pair) for name, pair in self.backbone.items()},
            "levels": self.levels,
            "metrics": {name: list(pair) for name, pair in self.metrics.items()},
            "weights": self.weights,
            "max_weight": self.max_weight,
            "agreement": self.agreement,
        }


def find_differences(a: Head, b: Head) -> HeadDifference:
    """Compare two heads.

    Classes are matched by their names; heads without names are matched by the order of the classes.
    """
    labels_a, labels_b = labels_of(a), labels_of(b)
    shared = [label for label in labels_a if label in set(labels_b)]
    levels_a, levels_b = ([level.name for level in head.levels] for head in (a, b))
    levels = {
        "removed": [name for name in levels_a if name not in levels_b],
        "added": [name for name in levels_b if name not in levels_a],
    }
    one, two = a.to_json(), b.to_json()
    return HeadDifference(
        added=tuple(label for label in labels_b if label not in set(labels_a)),
        removed=tuple(label for label in labels_a if label not in set(labels_b)),
        reordered=shared != [label for label in labels_b if label in set(labels_a)],
        values=_pairs({k: one.get(k) for k in _COMPARED}, {k: two.get(k) for k in _COMPARED}),
        backbone=_pairs(one["backbone"], two["backbone"]),
        levels=levels if levels["removed"] or levels["added"] else {},
        metrics=_pairs(_scalars(a), _scalars(b)),
        weights=_compare_weights(a, b, shared),
    )


def labels_of(head: Head) -> tuple[str, ...]:
    """Return the label names of a head, or the numbers of its classes."""
    return head.label_names or tuple(map(str, range(head.num_classes)))


def _pairs(one: dict[str, Any], two: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    names = [*one, *(name for name in two if name not in one)]
    return {
        name: (one.get(name), two.get(name)) for name in names if one.get(name) != two.get(name)
    }


def _scalars(head: Head) -> dict[str, Any]:
    return {name: value for name, value in head.metrics.items() if isinstance(value, int | float)}


def _compare_weights(a: Head, b: Head, shared: list[str]) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    rows = [_rows_of(head, shared) for head in (a, b)]
    for name in sorted({*a.tensors, *b.tensors}):
        one, two = (tensors.get(name) for tensors in rows)
        if one is None or two is None or one.shape != two.shape:
            found[name] = None
        elif not np.array_equal(one, two):
            found[name] = float(np.abs(one - two).max())
    return found


def _rows_of(head: Head, shared: list[str]) -> dict[str, Any]:
    """Return the tensors in float64; those with a row per class have one per shared label."""
    tensors = {name: np.asarray(value, np.float64) for name, value in head.tensors.items()}
    try:
        per_class = tensors_per_class(head)
    except HeadFormatError:  # a classifier with hidden layers is compared as it is
        return tensors
    row = {label: number for number, label in enumerate(labels_of(head))}
    chosen = [row[label] for label in shared]
    return {name: value[chosen] if name in per_class else value for name, value in tensors.items()}
