"""The row that heads over levels read in an exported model, and their weights for it.

Neither torch nor the package ``onnx`` is needed. The row holds the last features, followed by all
levels of the model in its order. A head that reads less has zeros for the rest, so all heads of a
model have the same width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from headkit.adapters.backbone.level import LAST
from headkit.adapters.errors import ExportError

from .description.head_info import HeadInfo
from .description.names import LEVEL_BIAS, LEVEL_WEIGHT
from .linear import is_linear, weight_and_bias
from .metadata import ModelInfo

if TYPE_CHECKING:  # running a model needs no safetensors
    from headkit.adapters.heads.head import Head

Array = np.ndarray[Any, Any]


def row_width(info: ModelInfo) -> int:
    """Return the width of the row of a model."""
    return sum(width for _, width in _parts(info))


def last_row(info: ModelInfo, branches: Sequence[Array]) -> Array:
    """Return the last features ``[batch, width]`` of what the backbone computes.

    Args:
        info: Description of the model.
        branches: The features of each branch, ``[batch, …]``.
    """
    of_name = dict(zip(info.features, branches, strict=True))
    return np.concatenate(
        [of_name[n].reshape(len(of_name[n]), -1) for n in pooled_branches(info)], 1
    )


def reads_row(info: ModelInfo, head: Head | HeadInfo) -> bool:
    """Return True if a head reads the row in a model of this form.

    In a swappable model with levels, all heads do, because they are passed as the same two arrays.
    """
    return bool(head.levels) or (info.form == "swappable" and bool(info.levels))


def lay_out(info: ModelInfo, head: Head) -> dict[str, Array]:
    """Return the weight ``[num_classes, width]`` and the bias ``[num_classes]`` for the row.

    Raises:
        ExportError: The head is not linear, or does not fit the model.
    """
    places = dict(_places(info))
    if head.levels:
        own = {name: np.asarray(tensor) for name, tensor in head.tensors.items()}
        weight, bias = own[LEVEL_WEIGHT].astype(np.float32), own[LEVEL_BIAS].astype(np.float32)
    elif is_linear(head, info.features):
        weight, bias = weight_and_bias(head)
    else:
        raise ExportError(
            f"a swappable model with levels takes linear heads, but this head has the kind "
            f"{head.kind!r} and the tensors {', '.join(head.tensors)}: export the head with its "
            "backbone instead"
        )
    laid = np.zeros((head.num_classes, row_width(info)), np.float32)
    for name, columns in _columns(head, weight.shape[1]):
        place = places[name]
        if place.stop - place.start != columns.stop - columns.start:
            raise ExportError(
                f"the head reads {columns.stop - columns.start} values of {name}, but the model "
                f"computes {place.stop - place.start}: export the head with its backbone instead"
            )
        laid[:, place] = weight[:, columns]
    return {LEVEL_WEIGHT: laid, LEVEL_BIAS: np.ascontiguousarray(bias)}


def take_back(info: ModelInfo, head: HeadInfo, weight: Array, bias: Array) -> dict[str, Array]:
    """Return the tensors of a head, by name, from what ``lay_out`` returned for it.

    Raises:
        ValueError: The arrays have other shapes.
    """
    if weight.shape != (head.num_classes, row_width(info)) or bias.shape != weight.shape[:1]:
        raise ValueError(
            f"{head.name or 'the head'} has arrays of the shapes {weight.shape} and {bias.shape}"
        )
    places = dict(_places(info))
    width = sum(level.width for level in head.levels) or places[LAST].stop
    parts = [weight[:, places[name]] for name, _ in _columns(head, width)]
    own = {"weight": np.concatenate(parts, 1), "bias": bias}
    return {
        name: own[name.rpartition(".")[2]].reshape(shape) for name, shape in head.tensors.items()
    }


def _columns(head: Head | HeadInfo, width: int) -> Iterator[tuple[str, slice]]:
    """Yield each level that a head reads, and where it is in the head's own weight."""
    at = 0
    for level in head.levels:
        yield level.name, slice(at, at + level.width)
        at += level.width
    if not head.levels:
        yield LAST, slice(0, width)


def _places(info: ModelInfo) -> Iterator[tuple[str, slice]]:
    """Yield the name of each part of the row and where it is."""
    at = 0
    for name, width in _parts(info):
        yield name, slice(at, at + width)
        at += width


def _parts(info: ModelInfo) -> Iterator[tuple[str, int]]:
    features = info.features
    yield LAST, sum(math.prod(map(int, features[name][1:])) for name in pooled_branches(info))
    for level in info.levels:
        yield level.name, level.width


def pooled_branches(info: ModelInfo) -> Sequence[str]:
    """Return the branches that the last features consist of, see ``last_row``."""
    features: Mapping[str, Sequence[int | str]] = info.features
    return [
        name
        for name, dims in features.items()
        if len(dims) == 2 or (len(dims) == 4 and list(dims[2:]) == [1, 1])
    ]
