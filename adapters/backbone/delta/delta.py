"""A delta: small trained changes to a backbone's own weights. This module has no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from headkit.adapters.bounds import Bound, check_object, describe, json_value, object_of, text

VALUE, SCALE, UP, DOWN = OPERATIONS = ("value", "scale", "up", "down")
"""What a tensor of a delta does to a parameter, see ``Delta``."""
MAX_TENSORS = 20_000
MAX_NAME = 300

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Delta:
    """Trained changes to parameters of a backbone, and what they belong to.

    A parameter has one of three changes; docs/head-file.md says how each is computed:

    - ``value``, with the shape of the parameter, takes the place of the parameter.
    - ``scale`` ``[rows]`` multiplies each row, along the first dimension, by a number.
    - ``up`` ``[rows, rank]`` and ``down`` ``[rank, …]`` have a product that is added.

    Attributes:
        method: How the changes were trained, such as ``affine``.
        base: Fingerprint of the backbone before the changes, 64 hexadecimal digits.
        tensors: Arrays by ``PARAMETER.OPERATION``.
        recipe: How they were trained, as JSON values.
    """

    method: str
    base: str
    tensors: Mapping[str, Array]
    recipe: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: A value is out of bounds, or the tensors do not fit each other.
        """
        check_delta(self.to_json())
        check_tensors({name: np.shape(tensor) for name, tensor in self.tensors.items()})

    def __deepcopy__(self, _memo: object) -> Delta:
        """Return the delta itself: it never changes, and a copied model may share it."""
        return self

    @property
    def num_values(self) -> int:
        """Number of trained values."""
        return sum(int(tensor.size) for tensor in self.tensors.values())

    def to_json(self) -> dict[str, Any]:
        """Return everything but the tensors, as it stands in a head file."""
        return {"method": self.method, "base": self.base, "recipe": dict(self.recipe)}


def check_delta(value: object, where: str = "delta") -> dict[str, Any]:
    """Return the known keys of the entry ``delta`` of a head file. Unknown keys are left out.

    Raises:
        ValueError: A key is missing, or a value is out of bounds.
    """
    return check_object(value, _DELTA, ("method", "base"), where)


def check_tensors(shapes: Mapping[str, Sequence[int]], where: str = "the delta") -> None:
    """Check the names of a delta's tensors, and that those of one parameter fit each other.

    Raises:
        ValueError: They do not, or there are none, or too many.
    """
    if not 1 <= len(shapes) <= MAX_TENSORS:
        raise ValueError(f"{where} has {len(shapes):,} tensors, expected 1 to {MAX_TENSORS:,}")
    for parameter, found in changes(shapes, where).items():
        operations = set(found)
        if operations not in ({VALUE}, {SCALE}, {UP, DOWN}):
            raise ValueError(
                f"{where} has {', '.join(sorted(operations))} for {describe(parameter)}, expected "
                f"{VALUE}, or {SCALE}, or {UP} and {DOWN}"
            )
        if SCALE in found and len(found[SCALE]) != 1:
            raise ValueError(
                f"{where} has the scale of {describe(parameter)} with the shape "
                f"{list(found[SCALE])[:8]}, expected one dimension"
            )
        if UP in found:
            up, down = list(found[UP]), list(found[DOWN])
            if len(up) != 2 or len(down) < 2 or up[1] != down[0] or not up[1]:
                raise ValueError(
                    f"{where} has up {up[:8]} and down {down[:8]} for {describe(parameter)}, "
                    "expected [rows, rank] and [rank, …]"
                )


def changes(tensors: Mapping[str, Any], where: str = "the delta") -> dict[str, dict[str, Any]]:
    """Return the tensors of each parameter by operation.

    Raises:
        ValueError: A name is not that of a parameter with an operation.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        parameter, _, operation = name.rpartition(".")
        if operation not in OPERATIONS or not _PARAMETER.accepts(parameter):
            raise ValueError(
                f"{where} has the tensor {describe(name)}, expected the name of a parameter and "
                f"one of {', '.join(OPERATIONS)}"
            )
        found.setdefault(parameter, {})[operation] = tensor
    return found


_PARAMETER = text(MAX_NAME, r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*", "the name of a parameter")
_DELTA: Mapping[str, Bound] = {
    "method": text(32, r"[a-z][a-z0-9_]*", "a word of lower-case letters"),
    "base": text(64, r"[0-9a-f]{64}", "64 hexadecimal digits"),
    "recipe": object_of(json_value(2), 50, 64),
}
