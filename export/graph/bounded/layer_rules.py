"""Shapes and cost of the operators that are layers: convolutions, products, pooling, resizing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from .decode import Node
from .elementwise_rules import broadcast
from .values import (
    Rule,
    Value,
    Values,
    attribute,
    axis_of,
    integer_attributes,
    integers,
    need,
    optional,
)


def _convolution(node: Node, inputs: Values) -> list[Value]:
    value, weight = need(inputs, 0), need(inputs, 1)
    kernel, groups = weight.shape[2:], attribute(node, "group", 1)
    rank = len(value.shape) - 2
    if len(weight.shape) != rank + 2 or rank < 1 or groups < 1:
        raise ValueError(f"its weight is {list(weight.shape)} for {list(value.shape)}")
    if value.shape[1] != weight.shape[1] * groups or weight.shape[0] % groups:
        raise ValueError(f"its weight is {list(weight.shape)} for {list(value.shape)}")
    return [Value(value.dtype, (value.shape[0], weight.shape[0], *_slide(node, value, kernel)))]


def _transposed_convolution(node: Node, inputs: Values) -> list[Value]:
    value, weight = need(inputs, 0), need(inputs, 1)
    rank, kernel = len(value.shape) - 2, weight.shape[2:]
    if len(weight.shape) != rank + 2 or rank < 1 or value.shape[1] != weight.shape[0]:
        raise ValueError(f"its weight is {list(weight.shape)} for {list(value.shape)}")
    if attribute(node, "auto_pad", b"NOTSET") != b"NOTSET" or "output_shape" in node.attributes:
        raise ValueError("its padding is not a number")
    strides, dilations, pads = _window(node, rank)
    added = _positive(integer_attributes(node, "output_padding", [0] * rank), rank, 0)
    sizes = [
        strides[at] * (value.shape[2 + at] - 1)
        + added[at]
        + (kernel[at] - 1) * dilations[at]
        + 1
        - pads[at]
        - pads[rank + at]
        for at in range(rank)
    ]
    if min(sizes) < 1:
        raise ValueError(f"its result has the sizes {sizes}")
    channels = weight.shape[1] * attribute(node, "group", 1)
    return [Value(value.dtype, (value.shape[0], channels, *sizes))]


def _pool(node: Node, inputs: Values) -> list[Value]:
    value = need(inputs, 0)
    kernel = _positive(integer_attributes(node, "kernel_shape", ()), len(value.shape) - 2, 1)
    return [Value(value.dtype, (*value.shape[:2], *_slide(node, value, kernel)))]


def _global_pool(_node: Node, inputs: Values) -> list[Value]:
    value = need(inputs, 0)
    return [Value(value.dtype, (*value.shape[:2], *(1 for _ in value.shape[2:])))]


def _window(node: Node, rank: int) -> tuple[list[int], list[int], list[int]]:
    """Return strides, dilations and padding (all starts, then all ends) of a window."""
    strides = _positive(integer_attributes(node, "strides", [1] * rank), rank, 1)
    dilations = _positive(integer_attributes(node, "dilations", [1] * rank), rank, 1)
    pads = _positive(integer_attributes(node, "pads", [0] * 2 * rank), 2 * rank, 0)
    return strides, dilations, pads


def _positive(numbers: Sequence[int], count: int, low: int) -> list[int]:
    if len(numbers) != count or any(not low <= one < 2**31 for one in numbers):
        raise ValueError(f"an attribute is {list(numbers)[:9]}, expected {count} positive numbers")
    return list(numbers)


def _slide(node: Node, value: Value, kernel: Sequence[int]) -> list[int]:
    """Return how many places a window has along each axis of an image."""
    rank = len(value.shape) - 2
    strides, dilations, pads = _window(node, rank)
    mode, ceil = attribute(node, "auto_pad", b"NOTSET"), attribute(node, "ceil_mode", 0)
    if mode not in (b"NOTSET", b"VALID", b"SAME_UPPER", b"SAME_LOWER"):
        raise ValueError(f"its padding is {mode!r:.40}")
    sizes = []
    for at, size in enumerate(value.shape[2:]):
        before, after = (pads[at], pads[rank + at]) if mode == b"NOTSET" else (0, 0)
        reach = dilations[at] * (kernel[at] - 1) + 1
        room = size + before + after - reach
        if mode in (b"SAME_UPPER", b"SAME_LOWER"):
            count = -(-size // strides[at])
        elif room < 0:
            raise ValueError(f"its window of {reach} is larger than the image of {size}")
        elif ceil:
            count = -(-room // strides[at]) + 1
            count -= (count - 1) * strides[at] >= size + before
        else:
            count = room // strides[at] + 1
        sizes.append(count)
    return sizes


def _matmul(node: Node, inputs: Values) -> list[Value]:
    a, b = need(inputs, 0), need(inputs, 1)
    if attribute(node, "transBatchA", 0) or attribute(node, "transBatchB", 0):
        raise ValueError("it transposes batches")
    left = _transposed(a.shape, attribute(node, "transA", 0))
    right = _transposed(b.shape, attribute(node, "transB", 0))
    if not left or not right:
        raise ValueError("it multiplies single numbers")
    rows, columns = left[-2:-1], right[-1:] if len(right) > 1 else ()
    inner = right[-2] if len(right) > 1 else right[0]
    if left[-1] != inner:
        raise ValueError(f"it multiplies {list(left)} by {list(right)}")
    return [Value(a.dtype, (*broadcast(left[:-2], right[:-2]), *rows, *columns))]


def _transposed(shape: tuple[int, ...], turn: int) -> tuple[int, ...]:
    if not turn or len(shape) < 2:
        return shape
    return (*shape[:-2], shape[-1], shape[-2])


def _gemm(node: Node, inputs: Values) -> list[Value]:
    (result,) = _matmul(node, inputs[:2])
    bias = optional(inputs, 2)
    if len(result.shape) != 2 or (
        bias is not None and broadcast(result.shape, bias.shape) != result.shape
    ):
        raise ValueError(f"its result is {list(result.shape)}")
    return [result]


def _lstm(node: Node, inputs: Values) -> list[Value]:
    """The results of all steps, and the last ones; one direction or both."""
    value, weight, recurrence = need(inputs, 0), need(inputs, 1), need(inputs, 2)
    hidden = attribute(node, "hidden_size", 0)
    directions = 2 if attribute(node, "direction", b"forward") == b"bidirectional" else 1
    if attribute(node, "layout", 0) or len(value.shape) != 3 or hidden < 1:
        raise ValueError(f"it takes {list(value.shape)} and has the size {hidden}")
    steps, batch, width = value.shape
    expected = (directions, 4 * hidden, width), (directions, 4 * hidden, hidden)
    if (weight.shape, recurrence.shape) != expected:
        raise ValueError(f"its weights are {list(weight.shape)} and {list(recurrence.shape)}")
    last = Value(value.dtype, (directions, batch, hidden))
    return [Value(value.dtype, (steps, directions, batch, hidden)), last, last]


def _pad(_node: Node, inputs: Values) -> list[Value]:
    value, pads = need(inputs, 0), integers(inputs, 1)
    rank = len(value.shape)
    axes = (
        [axis_of(one, rank) for one in integers(inputs, 3)] if optional(inputs, 3) else range(rank)
    )
    if len(pads) != 2 * len(axes):
        raise ValueError(f"it has {len(pads)} numbers for {len(axes)} axes")
    shape = list(value.shape)
    for number, axis in enumerate(axes):
        shape[axis] += pads[number] + pads[len(axes) + number]
    if min(shape, default=0) < 0:
        raise ValueError(f"its result is {shape}")
    return [Value(value.dtype, tuple(shape))]


def _resize(node: Node, inputs: Values) -> list[Value]:
    value = need(inputs, 0)
    rank = len(value.shape)
    if attribute(node, "keep_aspect_ratio_policy", b"stretch") != b"stretch":
        raise ValueError("it keeps the aspect ratio")
    axes = [axis_of(one, rank) for one in integer_attributes(node, "axes", range(rank))]
    scales, shape = optional(inputs, 2), list(value.shape)
    if optional(inputs, 3) is not None:
        sizes = integers(inputs, 3)
    elif scales is not None and scales.numbers is not None and scales.numbers.size == len(axes):
        factors = [float(one) for one in scales.numbers.ravel()]
        if not all(0 < one < 2**31 for one in factors):
            raise ValueError(f"its scales are {factors}")
        sizes = [math.floor(shape[axis] * one) for axis, one in zip(axes, factors, strict=True)]
    else:
        raise ValueError("its size depends on the image")
    if len(sizes) != len(axes) or min(sizes, default=1) < 0:
        raise ValueError(f"it makes {sizes} along {axes}")
    for axis, size in zip(axes, sizes, strict=True):
        shape[axis] = size
    return [Value(value.dtype, tuple(shape))]


def _attention(node: Node, inputs: Values) -> list[Value]:
    value, weight = need(inputs, 0), need(inputs, 1)
    heads = attribute(node, "num_heads", 0)
    batch, length, width = value.shape
    if len(weight.shape) != 2 or weight.shape[0] != width or weight.shape[1] % 3 or heads < 1:
        raise ValueError(f"its weight is {list(weight.shape)} for {list(value.shape)}")
    if "qkv_hidden_sizes" in node.attributes or any(optional(inputs, at) for at in (4, 6)):
        raise ValueError("it has a past or several widths")
    return [Value(value.dtype, (batch, length, weight.shape[1] // 3))]


def _rotary(_node: Node, inputs: Values) -> list[Value]:
    value = need(inputs, 0)
    return [Value(value.dtype, value.shape)]


def _columns_to_image(_node: Node, inputs: Values) -> list[Value]:
    value, sizes, block = need(inputs, 0), integers(inputs, 1), integers(inputs, 2)
    _positive([*sizes, *block], len(sizes) + len(block), 1)
    batch, columns, _ = value.shape
    if columns % math.prod(block):
        raise ValueError(f"it puts {list(value.shape)} together from blocks of {block}")
    return [Value(value.dtype, (batch, columns // math.prod(block), *sizes))]


def _sample(_node: Node, inputs: Values) -> list[Value]:
    value, places = need(inputs, 0), need(inputs, 1)
    if len(value.shape) != len(places.shape) or places.shape[0] != value.shape[0]:
        raise ValueError(f"it takes {list(places.shape)} of {list(value.shape)}")
    return [Value(value.dtype, (*value.shape[:2], *places.shape[1:-1]))]


def _letters(node: Node, inputs: Values) -> tuple[str, dict[str, int]]:
    """Return the letters of the result of Einsum, and the size of each letter."""
    terms, _, result = attribute(node, "equation", b"").decode().replace(" ", "").partition("->")
    sizes: dict[str, int] = {}
    names = terms.split(",")
    if len(names) != len(inputs) or not all(map(str.isalpha, [*names, result or "a"])):
        raise ValueError(f"its equation is {terms!r:.60}")
    for at, letters in enumerate(names):
        for letter, size in zip(letters, need(inputs, at).shape, strict=True):
            if sizes.setdefault(letter, size) != size:
                raise ValueError(f"its letter {letter} has two sizes")
    return result, sizes


def _einsum(node: Node, inputs: Values) -> list[Value]:
    result, sizes = _letters(node, inputs)
    return [Value(need(inputs, 0).dtype, tuple(sizes[letter] for letter in result))]


LAYER_RULES: Mapping[str, Rule] = {
    "Conv": _convolution,
    "ConvTranspose": _transposed_convolution,
    "MatMul": _matmul,
    "AveragePool": _pool,
    "MaxPool": _pool,
    "Gemm": _gemm,
    "LSTM": _lstm,
    "Pad": _pad,
    "Resize": _resize,
    "GlobalAveragePool": _global_pool,
    "GlobalMaxPool": _global_pool,
    "Col2Im": _columns_to_image,
    "GridSample": _sample,
    "Einsum": _einsum,
}
"""Rules of the default operator set, by operator."""
MICROSOFT_RULES: Mapping[str, Rule] = {
    "FusedMatMul": _matmul,
    "Attention": _attention,
    "RotaryEmbedding": _rotary,
}
"""Rules of ONNX Runtime's own operators, by operator."""

Cost = Callable[[Node, Values, Sequence[Value]], int]
"""Takes a node, its inputs and its outputs; returns a number of multiply-adds, or of bytes."""


def _work_of_convolution(node: Node, inputs: Values, outputs: Sequence[Value]) -> int:
    per_output = math.prod(need(inputs, 1).shape[1:])
    many = need(inputs, 0) if node.operator == "ConvTranspose" else outputs[0]
    return many.size * per_output


def _work_of_matmul(node: Node, inputs: Values, outputs: Sequence[Value]) -> int:
    left = _transposed(need(inputs, 0).shape, attribute(node, "transA", 0))
    return outputs[0].size * left[-1]


def _work_of_lstm(_node: Node, inputs: Values, _outputs: Sequence[Value]) -> int:
    steps, batch, _ = need(inputs, 0).shape
    return steps * batch * (need(inputs, 1).size + need(inputs, 2).size)


def _work_of_pool(node: Node, _inputs: Values, outputs: Sequence[Value]) -> int:
    return outputs[0].size * math.prod(integer_attributes(node, "kernel_shape", ()))


def _work_of_einsum(node: Node, inputs: Values, _outputs: Sequence[Value]) -> int:
    return math.prod(_letters(node, inputs)[1].values())


def _work_of_attention(_node: Node, inputs: Values, outputs: Sequence[Value]) -> int:
    batch, length, width = outputs[0].shape
    own = need(inputs, 0).shape[2]
    return batch * length * 3 * width * own + 2 * batch * length * length * width


def _scores_of_attention(node: Node, _inputs: Values, outputs: Sequence[Value]) -> int:
    batch, length, width = outputs[0].shape
    numbers = batch * length * (attribute(node, "num_heads", 0) * length + 3 * width)
    return int(numbers * outputs[0].dtype.itemsize)


WORK: Mapping[str, Cost] = {
    **dict.fromkeys(("Conv", "ConvTranspose"), _work_of_convolution),
    **dict.fromkeys(("MatMul", "FusedMatMul", "Gemm"), _work_of_matmul),
    **dict.fromkeys(("AveragePool", "MaxPool"), _work_of_pool),
    "Attention": _work_of_attention,
    "Einsum": _work_of_einsum,
    "LSTM": _work_of_lstm,
}
"""Multiply-adds of the operators that need more than some per number."""
SCRATCH: Mapping[str, Cost] = {"Attention": _scores_of_attention}
"""Bytes that an operator needs beside its inputs and outputs."""
