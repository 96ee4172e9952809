"""Shapes of the operators that compute each number from those at its place, and their numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .decode import MAX_NUMBERS, Node
from .values import BOOL, Rule, Value, Values, need


def broadcast(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape that several shapes have together."""
    rank = max(map(len, shapes))
    result = []
    for sizes in zip(*((1,) * (rank - len(shape)) + shape for shape in shapes), strict=True):
        larger = set(sizes) - {1}
        if len(larger) > 1:
            raise ValueError(f"its shapes are {[list(shape) for shape in shapes[:4]]}")
        result.append(larger.pop() if larger else 1)
    return tuple(result)


def elementwise(node: Node, inputs: Values) -> list[Value]:
    """Return the output of an operator that computes each number from those at its place."""
    values = [one for one in inputs if one is not None]
    shape = broadcast(*(one.shape for one in values))
    like = values[1] if node.operator == "Where" else values[0]
    dtype = BOOL if node.operator in _COMPARISONS else like.dtype
    compute = _NUMBERS.get(node.operator)
    known = [one.numbers for one in values if one.numbers is not None]
    if compute is not None and len(known) == len(values) and math.prod(shape) <= MAX_NUMBERS:
        with np.errstate(all="ignore"):
            numbers = np.asarray(compute(*known)).astype(dtype)
        return [Value(dtype, shape, numbers.reshape(shape))]
    return [Value(dtype, shape)]


def same(_node: Node, inputs: Values) -> list[Value]:
    """Return the output of an operator that keeps type and shape of its first input."""
    value = need(inputs, 0)
    return [Value(value.dtype, value.shape)]


def _divide(a: Any, b: Any) -> Any:
    if a.dtype.kind not in "iu":
        return a / b
    if not np.all(b):
        raise ValueError("it divides by 0")
    return np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b))


def _maximum(*values: Any) -> Any:
    result = values[0]
    for value in values[1:]:
        result = np.maximum(result, value)
    return result


def _minimum(*values: Any) -> Any:
    return -_maximum(*(-value for value in values))


_COMPARISONS = frozenset(
    {
        "Equal",
        "Greater",
        "GreaterOrEqual",
        "Less",
        "LessOrEqual",
        "And",
        "Or",
        "Xor",
        "Not",
        "IsNaN",
        "IsInf",
    }
)
_NUMBERS: Mapping[str, Callable[..., Any]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": _divide,
    "Max": _maximum,
    "Min": _minimum,
    "Equal": np.equal,
    "Greater": np.greater,
    "Less": np.less,
    "GreaterOrEqual": np.greater_equal,
    "LessOrEqual": np.less_equal,
    "And": np.logical_and,
    "Or": np.logical_or,
    "Not": np.logical_not,
    "Where": np.where,
    "Neg": np.negative,
    "Abs": np.abs,
    "Floor": np.floor,
    "Ceil": np.ceil,
    "Round": np.rint,
    "Sqrt": np.sqrt,
    "Identity": np.asarray,
}
_ELEMENTWISE = (
    *("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Sum", "Mean", "Where", *_COMPARISONS),
    *("Abs", "Neg", "Sqrt", "Exp", "Log", "Floor", "Ceil", "Round", "Sign", "Reciprocal", "PRelu"),
    *("Relu", "Sigmoid", "Tanh", "Erf", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Elu"),
    *(
        "Selu",
        "Celu",
        "Softplus",
        "Softsign",
        "Mish",
        "Sin",
        "Cos",
        "Tan",
        "Acos",
        "Acosh",
        "Asin",
        "Asinh",
        "Atan",
        "Atanh",
        "Cosh",
        "Shrink",
        "Sinh",
        "Identity",
    ),
    *("Swish", "ThresholdedRelu", "Mod", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitwiseNot"),
)
_SAME = (
    *("Clip", "Softmax", "LogSoftmax", "LayerNormalization", "InstanceNormalization", "CumSum"),
    *("BatchNormalization", "GroupNormalization", "RMSNormalization", "LpNormalization", "Trilu"),
    *("Dropout", "ScatterND", "ScatterElements", "Hardmax", "LRN", "MeanVarianceNormalization"),
)
ELEMENTWISE_RULES: Mapping[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE, elementwise),
    **dict.fromkeys(_SAME, same),
}
"""Rules of the default operator set, by operator."""
