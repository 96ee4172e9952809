"""Shapes of the operators that move data, and numbers of those that compute shapes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .decode import DTYPES, MAX_NUMBERS, Node, Tensor
from .elementwise_rules import broadcast
from .values import (
    FLOAT,
    INT,
    Rule,
    Value,
    Values,
    attribute,
    axes_of,
    axis_of,
    constant_of,
    integer_attributes,
    integers,
    need,
    optional,
)


def _cast(node: Node, inputs: Values) -> list[Value]:
    value, code = need(inputs, 0), attribute(node, "to", 0)
    if code not in DTYPES:
        raise ValueError(f"the type is {code}")
    dtype = DTYPES[code]
    numbers = None
    if value.numbers is not None:
        with np.errstate(all="ignore"):
            numbers = value.numbers.astype(dtype)
    return [Value(dtype, value.shape, numbers)]


def _constant(node: Node, _inputs: Values) -> list[Value]:
    tensor = attribute(node, "value")
    if isinstance(tensor, Tensor):
        return [constant_of(tensor)]
    for name, dtype in (("value_float", FLOAT), ("value_int", INT)):
        for key in (name, f"{name}s"):
            if key in node.attributes:
                return [Value.of(np.array(node.attributes[key], dtype))]
    raise ValueError("it has no number")


def _quantize(_node: Node, inputs: Values) -> list[Value]:
    zero = optional(inputs, 2)
    dtype = np.dtype("uint8") if zero is None else zero.dtype
    return [Value(dtype, need(inputs, 0).shape)]


def _dequantize(_node: Node, inputs: Values) -> list[Value]:
    return [Value(need(inputs, 1).dtype, need(inputs, 0).shape)]


def _shape(node: Node, inputs: Values) -> list[Value]:
    shape = need(inputs, 0).shape
    start, end = attribute(node, "start", 0), attribute(node, "end", len(shape))
    return [Value.of(np.array(shape[slice(start, end)], INT))]


def _size(_node: Node, inputs: Values) -> list[Value]:
    return [Value.of(np.array(need(inputs, 0).size, INT))]


def _reshape(node: Node, inputs: Values) -> list[Value]:
    value, wanted = need(inputs, 0), integers(inputs, 1)
    if not attribute(node, "allowzero", 0):
        if any(size == 0 and at >= len(value.shape) for at, size in enumerate(wanted)):
            raise ValueError(f"it copies a size that {list(value.shape)} does not have")
        wanted = [value.shape[at] if size == 0 else size for at, size in enumerate(wanted)]
    if wanted.count(-1) == 1:
        rest = math.prod(size for size in wanted if size != -1)
        if rest <= 0 or value.size % rest:
            raise ValueError(f"it makes {wanted} of {list(value.shape)}")
        wanted[wanted.index(-1)] = value.size // rest
    return [_reshaped(value, wanted)]


def _reshaped(value: Value, shape: list[int]) -> Value:
    if any(size < 0 for size in shape) or math.prod(shape) != value.size:
        raise ValueError(f"it makes {shape} of {list(value.shape)}")
    numbers = None if value.numbers is None else value.numbers.reshape(shape)
    return Value(value.dtype, tuple(shape), numbers)


def _flatten(node: Node, inputs: Values) -> list[Value]:
    value = need(inputs, 0)
    axis = attribute(node, "axis", 1)
    if not -len(value.shape) <= axis <= len(value.shape):
        raise ValueError(f"the axis is {axis}")
    axis = axis + len(value.shape) if axis < 0 else axis
    return [_reshaped(value, [math.prod(value.shape[:axis]), math.prod(value.shape[axis:])])]


def _squeeze(node: Node, inputs: Values) -> list[Value]:
    value = need(inputs, 0)
    axes = axes_of(node, inputs, 1, len(value.shape))
    if axes is None:
        axes = [at for at, size in enumerate(value.shape) if size == 1]
    if any(value.shape[axis] != 1 for axis in axes):
        raise ValueError(f"it removes axes {axes} of {list(value.shape)}")
    return [_reshaped(value, [n for at, n in enumerate(value.shape) if at not in axes])]


def _unsqueeze(node: Node, inputs: Values) -> list[Value]:
    value = need(inputs, 0)
    given = integers(inputs, 1) if optional(inputs, 1) else integer_attributes(node, "axes", ())
    axes = {axis_of(axis, len(value.shape) + len(given)) for axis in given}
    sizes = iter(value.shape)
    rank = len(value.shape) + len(axes)
    return [_reshaped(value, [1 if at in axes else next(sizes) for at in range(rank)])]


def _transpose(node: Node, inputs: Values) -> list[Value]:
    value = need(inputs, 0)
    order = integer_attributes(node, "perm", range(len(value.shape))[::-1])
    if sorted(order) != list(range(len(value.shape))):
        raise ValueError(f"the order of its axes is {order}")
    numbers = None if value.numbers is None else value.numbers.transpose(order)
    return [Value(value.dtype, tuple(value.shape[axis] for axis in order), numbers)]


def _concat(node: Node, inputs: Values) -> list[Value]:
    values = [need(inputs, at) for at in range(len(inputs))]
    first = need(inputs, 0)
    axis = axis_of(attribute(node, "axis", 0), len(first.shape))
    rest = {(one.shape[:axis], one.shape[axis + 1 :], len(one.shape)) for one in values}
    if len(rest) > 1:
        raise ValueError(f"its shapes are {[list(one.shape) for one in values[:4]]}")
    length = sum(one.shape[axis] for one in values)
    shape = (*first.shape[:axis], length, *first.shape[axis + 1 :])
    known = [one.numbers for one in values if one.numbers is not None]
    if len(known) == len(values) and math.prod(shape) <= MAX_NUMBERS:
        return [Value.of(np.concatenate(known, axis))]
    return [Value(first.dtype, shape)]


def _split(node: Node, inputs: Values) -> list[Value]:
    value = need(inputs, 0)
    axis = axis_of(attribute(node, "axis", 0), len(value.shape))
    size, count = value.shape[axis], len(node.outputs)
    if optional(inputs, 1) is not None:
        sizes = integers(inputs, 1)
    else:
        each = -(-size // count)
        sizes = [max(min(each, size - each * at), 0) for at in range(count)]
    if sum(sizes) != size or len(sizes) != count or min(sizes) < 0:
        raise ValueError(f"it splits {size} into {sizes[:9]}")
    outputs, at = [], 0
    for one in sizes:
        shape = (*value.shape[:axis], one, *value.shape[axis + 1 :])
        place = (slice(None),) * axis + (slice(at, at + one),)
        numbers = None if value.numbers is None else value.numbers[place]
        outputs.append(Value(value.dtype, shape, numbers))
        at += one
    return outputs


def _slice(_node: Node, inputs: Values) -> list[Value]:
    value = need(inputs, 0)
    starts, ends = integers(inputs, 1), integers(inputs, 2)
    rank = len(value.shape)
    axes = integers(inputs, 3) if optional(inputs, 3) else list(range(len(starts)))
    steps = integers(inputs, 4) if optional(inputs, 4) else [1] * len(starts)
    if not len(starts) == len(ends) == len(axes) == len(steps) or 0 in steps:
        raise ValueError("its starts, ends, axes and steps do not fit")
    places = [slice(None)] * rank
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        # With a negative step, an end below the first position stands for the position before it.
        at = axis_of(axis, rank)
        before = step < 0 and end < -value.shape[at]
        places[at] = slice(start, None if before else end, step)
    shape = tuple(len(range(*p.indices(n))) for p, n in zip(places, value.shape, strict=True))
    numbers = None if value.numbers is None else value.numbers[tuple(places)]
    return [Value(value.dtype, shape, numbers)]


def _gather(node: Node, inputs: Values) -> list[Value]:
    value, at = need(inputs, 0), need(inputs, 1)
    axis = axis_of(attribute(node, "axis", 0), len(value.shape))
    shape = (*value.shape[:axis], *at.shape, *value.shape[axis + 1 :])
    if value.numbers is not None and at.numbers is not None and math.prod(shape) <= MAX_NUMBERS:
        return [Value.of(np.take(value.numbers, at.numbers.astype(np.int64), axis))]
    return [Value(value.dtype, shape)]


def _gather_nd(node: Node, inputs: Values) -> list[Value]:
    value, at = need(inputs, 0), need(inputs, 1)
    batch = attribute(node, "batch_dims", 0)
    depth = at.shape[-1] if at.shape else 0
    if batch < 0 or not 1 <= depth <= len(value.shape) - batch:
        raise ValueError(f"it takes {list(at.shape)} of {list(value.shape)}")
    return [Value(value.dtype, (*at.shape[:-1], *value.shape[batch + depth :]))]


def _gather_elements(_node: Node, inputs: Values) -> list[Value]:
    return [Value(need(inputs, 0).dtype, need(inputs, 1).shape)]


def _expand(_node: Node, inputs: Values) -> list[Value]:
    value, wanted = need(inputs, 0), integers(inputs, 1)
    if any(size < 0 for size in wanted):
        raise ValueError(f"it makes {wanted}")
    shape = broadcast(value.shape, tuple(wanted))
    if value.numbers is not None and math.prod(shape) <= MAX_NUMBERS:
        return [Value.of(np.broadcast_to(value.numbers, shape))]
    return [Value(value.dtype, shape)]


def _tile(_node: Node, inputs: Values) -> list[Value]:
    value, times = need(inputs, 0), integers(inputs, 1)
    if len(times) != len(value.shape) or any(one < 0 for one in times):
        raise ValueError(f"it repeats {list(value.shape)} {times[:9]} times")
    shape = tuple(size * one for size, one in zip(value.shape, times, strict=True))
    if value.numbers is not None and math.prod(shape) <= MAX_NUMBERS:
        return [Value.of(np.tile(value.numbers, times))]
    return [Value(value.dtype, shape)]


def _range(_node: Node, inputs: Values) -> list[Value]:
    ends = [need(inputs, at) for at in range(3)]
    numbers = [one.numbers for one in ends]
    if any(one is None or one.size != 1 for one in numbers):
        raise ValueError("its ends depend on the image")
    start, limit, delta = (one.reshape(())[()] for one in numbers if one is not None)
    if not delta or not np.isfinite([start, limit, delta]).all():
        raise ValueError("its step is 0")
    count = max(math.ceil((float(limit) - float(start)) / float(delta)), 0)
    if count <= MAX_NUMBERS:
        return [Value.of((start + np.arange(count) * delta).astype(ends[0].dtype))]
    return [Value(ends[0].dtype, (count,))]


def _constant_of_shape(node: Node, inputs: Values) -> list[Value]:
    wanted = integers(inputs, 0)
    if any(size < 0 for size in wanted):
        raise ValueError(f"it makes {wanted}")
    fill = attribute(node, "value")
    if fill is None:
        number = np.zeros(1, FLOAT)
    elif isinstance(fill, Tensor) and fill.numbers is not None and fill.numbers.size == 1:
        number = fill.numbers.reshape(1)
    else:
        raise ValueError("its value is not one number")
    if math.prod(wanted) <= MAX_NUMBERS:
        return [Value.of(np.broadcast_to(number, wanted))]
    return [Value(number.dtype, tuple(wanted))]


def _top_k(node: Node, inputs: Values) -> list[Value]:
    value, (count,) = need(inputs, 0), integers(inputs, 1)
    axis = axis_of(attribute(node, "axis", -1), len(value.shape))
    if not 0 <= count <= value.shape[axis]:
        raise ValueError(f"it takes {count} of {value.shape[axis]}")
    shape = (*value.shape[:axis], count, *value.shape[axis + 1 :])
    return [Value(value.dtype, shape), Value(INT, shape)]


def _depth_to_space(node: Node, inputs: Values) -> list[Value]:
    value, side = need(inputs, 0), attribute(node, "blocksize", 0)
    batch, depth, height, width = value.shape
    if node.operator == "DepthToSpace":
        shape = [batch, depth // side**2, height * side, width * side]
    else:
        shape = [batch, depth * side**2, height // side, width // side]
    return [Value(value.dtype, _reshaped(value, shape).shape)]


def _pick(node: Node, inputs: Values) -> list[Value]:
    """ArgMax and ArgMin."""
    value = need(inputs, 0)
    axis = axis_of(attribute(node, "axis", 0), len(value.shape))
    kept = (1,) if attribute(node, "keepdims", 1) else ()
    return [Value(INT, (*value.shape[:axis], *kept, *value.shape[axis + 1 :]))]


def _reduce(node: Node, inputs: Values) -> list[Value]:
    value = need(inputs, 0)
    axes = axes_of(node, inputs, 1, len(value.shape))
    if not axes:
        if attribute(node, "noop_with_empty_axes", 0):
            return [Value(value.dtype, value.shape, value.numbers)]
        axes = list(range(len(value.shape)))
    keep = bool(attribute(node, "keepdims", 1))
    shape = tuple(
        1 if at in axes else size for at, size in enumerate(value.shape) if keep or at not in axes
    )
    compute = _REDUCTIONS.get(node.operator)
    if value.numbers is not None and compute is not None and value.size:
        numbers = compute(value.numbers, axis=tuple(axes), keepdims=keep)
        return [Value.of(np.asarray(numbers).astype(value.dtype))]
    return [Value(value.dtype, shape)]


_REDUCTIONS: Mapping[str, Callable[..., Any]] = {
    "ReduceMax": np.max,
    "ReduceMin": np.min,
    "ReduceSum": np.sum,
    "ReduceProd": np.prod,
}
DATA_RULES: Mapping[str, Rule] = {
    **dict.fromkeys(
        (
            "ReduceMean",
            "ReduceL1",
            "ReduceL2",
            "ReduceSumSquare",
            "ReduceLogSum",
            "ReduceLogSumExp",
            *_REDUCTIONS,
        ),
        _reduce,
    ),
    **dict.fromkeys(("ArgMax", "ArgMin"), _pick),
    **dict.fromkeys(("DepthToSpace", "SpaceToDepth"), _depth_to_space),
    "Cast": _cast,
    "Constant": _constant,
    "Shape": _shape,
    "Size": _size,
    "Concat": _concat,
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "GatherND": _gather_nd,
    "Tile": _tile,
    "GatherElements": _gather_elements,
    "Expand": _expand,
    "Range": _range,
    "TopK": _top_k,
    "ConstantOfShape": _constant_of_shape,
}
"""Rules of the default operator set, by operator."""
