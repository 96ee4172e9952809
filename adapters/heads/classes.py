"""Select, remove and rename the classes of a trained head. Nothing is trained again.

A linear layer computes each logit from its own row, so a head without some classes gives the
others the logits that it gave them before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from headkit.adapters.bounds import describe
from headkit.adapters.display import cut_name, format_names
from headkit.adapters.errors import HeadFormatError

from .tasks import get_task

if TYPE_CHECKING:
    from .head import Head

Tensors = Mapping[str, np.ndarray[Any, Any]]

_LAST_LAYER = {
    "linear": ("weight", "bias"),
    "cosine": ("weight",),
    "mlp": ("fc2.weight", "fc2.bias"),
}
"""Tensors that have a row per class, for the kinds that headkit defines."""


def select(head: Head, labels: Sequence[str]) -> Head:
    """Return a head with only these classes, in this order; see ``Head.select``."""
    chosen = [labels] if isinstance(labels, str) else list(labels)
    rows = _find(head, chosen)
    if not rows:
        raise ValueError("labels is empty, expected at least one label of the head")
    repeated = [label for label, count in Counter(chosen).items() if count > 1]
    if repeated:
        raise ValueError(f"the label {describe(repeated[0])} is selected twice, expected once")
    if get_task(head.task).exclusive and len(rows) == 1 < head.num_classes:
        raise ValueError(
            f"only {describe(chosen[0])} is left, expected at least two classes: a multiclass head "
            "with one class gives it to every image"
        )
    thresholds = head.thresholds
    return head.with_changes(
        tensors=_take(head, rows),
        num_classes=len(rows),
        label_names=tuple(chosen),
        metrics=_keep_metrics(head, rows),
        thresholds=None if thresholds is None else tuple(thresholds[row] for row in rows),
    )


def drop(head: Head, labels: Sequence[str]) -> Head:
    """Return a head without these classes; see ``Head.drop``."""
    dropped = set(_find(head, [labels] if isinstance(labels, str) else labels))
    kept = [name for row, name in enumerate(_names(head)) if row not in dropped]
    if not kept:
        raise ValueError(f"all {head.num_classes} classes are dropped, expected that some are left")
    return select(head, kept)


def rename(head: Head, names: Mapping[str, str]) -> Head:
    """Return a head whose classes have other names; see ``Head.rename``."""
    if not isinstance(names, Mapping):
        raise ValueError(f"names is {describe(names)}, expected a mapping from old to new names")
    _find(head, list(names))
    unusable = next(
        (old for old, new in names.items() if not isinstance(new, str) or not new.strip()), None
    )
    if unusable is not None:
        raise ValueError(
            f"the new name of {describe(unusable)} is {describe(names[unusable])}, expected text "
            "that is not empty"
        )
    renamed = tuple(names.get(name, name) for name in _names(head))
    counts = Counter(renamed)
    new = next((name for name in names.values() if counts[name] > 1), None)
    if new is not None:
        raise ValueError(
            f"two classes would be called {describe(new)}, expected distinct names: renaming does "
            "not merge classes"
        )
    return head.with_changes(label_names=renamed)


def _keep_metrics(head: Head, rows: Sequence[int]) -> dict[str, Any]:
    """Return the metrics that are true of a head with these classes.

    All are if only the order of the classes changes. If classes are missing, no metric of several
    classes is; the recall of a label of a multilabel head is, because no other label affects it.
    """
    recall, fewest = head.metrics.get("recall"), head.metrics.get("fewest_images")
    has_recall = isinstance(recall, list | tuple) and len(recall) == head.num_classes
    kept_recall = {"recall": [recall[row] for row in rows]} if has_recall else {}  # type: ignore[index]
    if len(rows) < head.num_classes:
        return kept_recall if get_task(head.task).independent else {}
    kept = {**head.metrics, **kept_recall}
    if isinstance(fewest, list):
        place = {row: number for number, row in enumerate(rows)}
        kept["fewest_images"] = [
            [place.get(index, index), count] for index, count in filter(_is_pair, fewest)
        ]
    return kept


def _is_pair(value: object) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and isinstance(value[0], int)


def _names(head: Head) -> tuple[str, ...]:
    if head.label_names is None:
        raise ValueError(
            f"the head has no label names, but {head.num_classes} classes: name them first with "
            "head.with_changes(label_names=[…])"
        )
    return head.label_names


def _find(head: Head, labels: Iterable[str]) -> list[int]:
    """Return the indices of labels in the head.

    Raises:
        ValueError: The head has no names, no such label, or several classes of that name.
    """
    names = _names(head)
    counts = Counter(names)
    wanted = list(labels)
    unknown = [label for label in wanted if label not in counts]
    if unknown:
        raise ValueError(
            f"the head has no label {', '.join(map(describe, unknown[:5]))}, expected some of its "
            f"{len(names)} labels: {format_names(names)}"
        )
    ambiguous = next((label for label in wanted if counts[label] > 1), None)
    if ambiguous is not None:
        raise ValueError(
            f"{counts[ambiguous]} classes of the head are called {cut_name(ambiguous)!r}, expected "
            "one: give them distinct names with head.with_changes(label_names=[…])"
        )
    index = {name: row for row, name in enumerate(names)}
    return [index[label] for label in wanted]


def _take(head: Head, rows: Sequence[int]) -> dict[str, np.ndarray[Any, Any]]:
    """Return the tensors of a head with only these rows of its last layer."""
    per_class = tensors_per_class(head)
    return {
        name: np.ascontiguousarray(np.asarray(tensor)[rows]) if name in per_class else tensor
        for name, tensor in head.tensors.items()
    }


def tensors_per_class(head: Head) -> set[str]:
    """Return the names of the tensors that have a row per class.

    Raises:
        HeadFormatError: The head is of the kind ``own``, and its tensors do not show which they
            are.
    """
    if head.kind in _LAST_LAYER:
        ends = _LAST_LAYER[head.kind]
        return {name for name in head.tensors if name.endswith(ends)}
    # An architecture's own classifier: one linear layer per branch, with norms in front of it.
    shapes = {name: np.shape(tensor) for name, tensor in head.tensors.items()}
    matrices = {name: shape for name, shape in shapes.items() if len(shape) > 1}
    layers = {name.removesuffix("weight") for name in matrices}
    widths = {shape[1] for shape in matrices.values()}
    norms = {
        shape
        for name, shape in shapes.items()
        if shape and len(shape) == 1 and _module(name) not in layers
    }
    is_plain = all(
        name.endswith("weight") and shape[0] == head.num_classes and set(shape[2:]) <= {1}
        for name, shape in matrices.items()
    )
    # A layer as wide as the number of classes could be a hidden layer, or a norm after the layer.
    is_clear = (len(matrices) == 1 and not norms) or head.num_classes not in widths
    if not (is_plain and is_clear and norms <= {(width,) for width in widths}):
        raise HeadFormatError(
            f"the tensors of {head.architecture}'s own classifier have the shapes "
            f"{describe({name: list(shape) for name, shape in shapes.items()})}, expected one "
            "linear layer: fit a head of the kind 'linear', whose classes can be selected"
        )
    return {name for name in shapes if _module(name) in layers}


def _module(name: str) -> str:
    """Return the part of a tensor's name before the last word, with the dot."""
    return name[: name.rfind(".") + 1]
