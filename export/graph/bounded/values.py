"""What is known of a value of a graph before it runs: type, shape, and numbers if they are few."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .decode import MAX_NUMBERS, Array, Node, Tensor

FLOAT = np.dtype("float32")
INT = np.dtype("int64")
BOOL = np.dtype("bool")
MAX_RANK = 16


@dataclass(frozen=True)
class Value:
    """A value of a graph.

    Attributes:
        dtype: Its type.
        shape: Its shape.
        numbers: Its numbers if they are known, else None.
        constant: True if it is the same in every run.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    numbers: Array | None = None
    constant: bool = False

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """How many bytes it has."""
        return self.size * self.dtype.itemsize

    @classmethod
    def of(cls, numbers: Array) -> Value:
        """Return the value of known numbers."""
        return cls(numbers.dtype, numbers.shape, numbers if numbers.size <= MAX_NUMBERS else None)


Values = Sequence[Value | None]
Rule = Callable[[Node, Values], list[Value]]
"""Takes a node and its inputs; returns its outputs."""


def need(inputs: Values, at: int) -> Value:
    """Return an input that the node must have."""
    value = inputs[at] if at < len(inputs) else None
    if value is None:
        raise ValueError(f"input {at} is missing")
    return value


def optional(inputs: Values, at: int) -> Value | None:
    """Return an input that the node may lack."""
    return inputs[at] if at < len(inputs) else None


def integers(inputs: Values, at: int) -> list[int]:
    """Return the integers of an input that must be known."""
    value = need(inputs, at)
    if value.numbers is None or value.dtype.kind not in "iu" or len(value.shape) > 1:
        raise ValueError(f"input {at} depends on the image, expected integers that do not")
    return [int(number) for number in np.atleast_1d(value.numbers)]


def attribute(node: Node, name: str, default: Any = None) -> Any:
    """Return an attribute; it has the type of the default, unless that is None."""
    value = node.attributes.get(name, default)
    if default is not None and type(value) is not type(default):
        raise ValueError(f"the attribute {name} is {value!r:.60}")
    return value


def integer_attributes(node: Node, name: str, default: Sequence[int]) -> list[int]:
    """Return an attribute that is a list of integers."""
    values = node.attributes.get(name, list(default))
    if not isinstance(values, list) or not all(isinstance(one, int) for one in values):
        raise ValueError(f"the attribute {name} is {values!r:.60}, expected integers")
    return values


def axis_of(axis: int, rank: int) -> int:
    """Return an axis that may count from the end, counted from the start."""
    if not -rank <= axis < rank:
        raise ValueError(f"the axis is {axis}, but there are {rank} dimensions")
    return axis % rank


def axes_of(node: Node, inputs: Values, at: int, rank: int) -> list[int] | None:
    """Return axes from an input, or from the attribute of older operators; None if not given."""
    given: list[int] | None = None
    if optional(inputs, at) is not None:
        given = integers(inputs, at)
    elif "axes" in node.attributes:
        given = integer_attributes(node, "axes", ())
    if given is None:
        return None
    axes = [axis_of(axis, rank) for axis in given]
    if len(set(axes)) < len(axes):
        raise ValueError(f"the axes {given} name one twice")
    return axes


def constant_of(tensor: Tensor) -> Value:
    """Return the value of a tensor of the file."""
    return Value(tensor.dtype, tensor.dims, tensor.numbers, constant=True)
