"""Say how two heads differ: labels, metrics, backbone, levels and weights. No torch is needed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from headkit.adapters.backbone.level import LAST
from headkit.adapters.errors import HeadFormatError

from .classes import tensors_per_class
from .schema import join_delta

if TYPE_CHECKING:
    from .head import Head

_COMPARED = (
    *("architecture", "kind", "task", "num_features", "global_pool", "model_args"),
    *("pretrained_cfg", "pixels", "temperature", "thresholds", "notes", "delta"),
)


@dataclass(frozen=True)
class HeadDifference:
    """How a head B differs from a head A. Equal heads give empty values.

    Attributes:
        added: Labels of classes that only B has.
        removed: Labels of classes that only A has.
        renamed: Labels of classes whose weights are equal but whose names differ: B's by A's.
        reordered: True if the classes that both have are in another order.
        values: Other values that differ, by their name in the head file, each with its value in A
            and in B.
        backbone: Values of the backbone that differ, in the same form.
        levels: Levels that only one of them reads: ``removed`` and ``added``. A head without
            levels reads ``last``.
        metrics: Scalar metrics that differ, in the same form; None for a metric that is missing.
        tensors: Tensors that only one of them has: ``removed`` and ``added``.
        weights: Largest absolute difference of each tensor that both have, over the classes that
            both have. None if the tensor has another shape.
        agreement: What the heads say about images, see ``diff_heads``; empty without images.
    """

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    renamed: dict[str, str] = field(default_factory=dict)
    reordered: bool = False
    values: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    backbone: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    levels: dict[str, list[str]] = field(default_factory=dict)
    metrics: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    tensors: dict[str, list[str]] = field(default_factory=dict)
    weights: dict[str, float | None] = field(default_factory=dict)
    agreement: dict[str, Any] = field(default_factory=dict)

    @property
    def max_weight(self) -> float | None:
        """Largest absolute difference of all weights; None if a tensor cannot be compared."""
        if self.tensors or any(value is None for value in self.weights.values()):
            return None
        return max((value for value in self.weights.values() if value is not None), default=0.0)

    def to_json(self) -> dict[str, Any]:
        """Return the difference as JSON values."""
        return {
            "labels": {
                "added": list(self.added),
                "removed": list(self.removed),
                "renamed": self.renamed,
                "reordered": self.reordered,
            },
            "values": {name: list(pair) for name, pair in self.values.items()},
            "backbone": {name: list(pair) for name, pair in self.backbone.items()},
            "levels": self.levels,
            "metrics": {name: list(pair) for name, pair in self.metrics.items()},
            "tensors": self.tensors,
            "weights": self.weights,
            "max_weight": self.max_weight,
            "agreement": self.agreement,
        }


def find_differences(a: Head, b: Head) -> HeadDifference:
    """Compare two heads. Classes are matched as ``match_classes`` does."""
    labels_a, labels_b = labels_of(a), labels_of(b)
    pairs = match_classes(a, b)
    rows_a, rows_b = ([pair[side] for pair in pairs] for side in (0, 1))
    one, two = a.to_json(), b.to_json()
    return HeadDifference(
        added=tuple(label for row, label in enumerate(labels_b) if row not in set(rows_b)),
        removed=tuple(label for row, label in enumerate(labels_a) if row not in set(rows_a)),
        renamed={labels_a[i]: labels_b[j] for i, j in pairs if labels_a[i] != labels_b[j]},
        reordered=rows_b != sorted(rows_b),
        values=_pairs({k: one.get(k) for k in _COMPARED}, {k: two.get(k) for k in _COMPARED}),
        backbone=_pairs(one["backbone"], two["backbone"]),
        levels=_changes(_levels_of(a), _levels_of(b)),
        metrics=_pairs(_scalars(a), _scalars(b)),
        tensors=_changes(sorted(a.all_tensors), sorted(b.all_tensors)),
        weights=_compare_weights(a, b, rows_a, rows_b),
    )


def match_classes(a: Head, b: Head) -> list[tuple[int, int]]:
    """Return pairs of the same class in two heads, as its row in each, in the order of ``a``.

    Classes with equal names and equal weights come first, then those with equal weights, which were
    renamed, and then those with equal names. Heads without names have the numbers of their classes
    as names.
    """
    labels = labels_of(a), labels_of(b)
    weights = _weights_of_classes(a, b)
    keys: list[tuple[Sequence[Hashable], Sequence[Hashable]]] = [labels]
    if weights is not None:
        both = [list(zip(*values, strict=True)) for values in zip(labels, weights, strict=True)]
        keys = [(both[0], both[1]), weights, labels]
    matched: dict[int, int] = {}
    for of_a, of_b in keys:
        free: dict[Hashable, list[int]] = defaultdict(list)
        taken = set(matched.values())
        for row, key in reversed(list(enumerate(of_b))):
            if row not in taken:
                free[key].append(row)
        for row, key in enumerate(of_a):
            if row not in matched and free[key]:
                matched[row] = free[key].pop()
    return sorted(matched.items())


def labels_of(head: Head) -> tuple[str, ...]:
    """Return the label names of a head, or the numbers of its classes."""
    return head.label_names or tuple(map(str, range(head.num_classes)))


def _pairs(one: dict[str, Any], two: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    names = [*one, *(name for name in two if name not in one)]
    return {
        name: (one.get(name), two.get(name)) for name in names if one.get(name) != two.get(name)
    }


def _changes(one: Sequence[str], two: Sequence[str]) -> dict[str, list[str]]:
    removed = [name for name in one if name not in two]
    added = [name for name in two if name not in one]
    return {"removed": removed, "added": added} if removed or added else {}


def _levels_of(head: Head) -> list[str]:
    return [level.name for level in head.levels] or [LAST]


def _scalars(head: Head) -> dict[str, Any]:
    return {name: value for name, value in head.metrics.items() if isinstance(value, int | float)}


def _compare_weights(
    a: Head, b: Head, rows_a: list[int], rows_b: list[int]
) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    tensors_a, tensors_b = ({**_tensors(one), **join_delta(one.delta)} for one in (a, b))
    per_class = _per_class(a) & _per_class(b)
    for name in sorted(tensors_a.keys() & tensors_b.keys()):
        one, two = tensors_a[name], tensors_b[name]
        if name in per_class:
            one, two = one[rows_a], two[rows_b]
        if one.shape != two.shape:
            found[name] = None
        elif not np.array_equal(one, two):
            found[name] = float(np.abs(one - two).max())
    return found


def _weights_of_classes(a: Head, b: Head) -> tuple[list[bytes], list[bytes]] | None:
    """Return the weights of each class of two heads; None if they cannot be told apart."""
    if a.tensors.keys() != b.tensors.keys():
        return None
    tensors_a, tensors_b = _tensors(a), _tensors(b)
    names = sorted(_per_class(a) & _per_class(b))
    if names:
        rows_a, rows_b = (
            [b"".join(t[name][row].tobytes() for name in names) for row in range(head.num_classes)]
            for head, t in ((a, tensors_a), (b, tensors_b))
        )
        return rows_a, rows_b
    if all(np.array_equal(tensors_a[name], tensors_b[name]) for name in tensors_a):
        rows = [str(row).encode() for row in range(a.num_classes)]
        return rows, rows
    return None


def _tensors(head: Head) -> dict[str, np.ndarray[Any, Any]]:
    return {name: np.asarray(value, np.float64) for name, value in head.tensors.items()}


def _per_class(head: Head) -> set[str]:
    """Return the names of tensors with a row per class; none of a classifier with hidden layers."""
    try:
        return tensors_per_class(head)
    except HeadFormatError:
        return set()
