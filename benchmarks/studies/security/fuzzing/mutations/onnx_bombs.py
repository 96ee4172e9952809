"""Add nodes to an ONNX model that compute for ever or need very much memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPERATORS = (
    *(
        "Loop",
        "If",
        "Scan",
        "SequenceMap",
        "RandomNormal",
        "RandomUniform",
        "Multinomial",
        "Einsum",
    ),
    *(
        "Expand",
        "Tile",
        "Range",
        "ConstantOfShape",
        "Resize",
        "Pad",
        "NonZero",
        "OneHot",
        "EyeLike",
    ),
    *("TopK", "Gather", "ScatterND", "ConvTranspose", "Compress", "Unique", "StringNormalizer"),
    *("Optional", "SequenceEmpty", "ConcatFromSequence", "Cast", "Bernoulli", "DFT", "STFT"),
    *("Hardmax", "Det", "LSTM", "MatMul", "Concat", "Reshape", "Identity", "DepthToSpace", "Slice"),
)
_COUNTS = (2**20, 2**27, 2**28, 2**29, 2**31, 2**33, 2**40, 2**62)
Bomb = Callable[["_Builder", str, Random], str]
"""Takes the name of a value of the graph; returns the name of a value that it added."""


class _Builder:
    """The nodes that a bomb adds."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model, self.nodes = model, list[onnx.NodeProto]()

    def __call__(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        name = f"bomb_{len(self.model.graph.node)}_{len(self.nodes)}"
        names = [name, *(f"{name}_{number}" for number in range(1, outputs))]
        self.nodes.append(helper.make_node(op, inputs, names, name=name, **attributes))
        return name

    def constant(self, values: Any, dtype: type[np.generic] = np.int64) -> str:
        name = f"bomb_constant_{len(self.model.graph.initializer)}"
        tensor = numpy_helper.from_array(np.asarray(values, dtype), name)
        self.model.graph.initializer.append(tensor)
        return name


def add_bomb(model: onnx.ModelProto, random: Random) -> None:
    """Put a bomb between two nodes of a model, in place, so that the logits depend on it."""
    graph = model.graph
    places = [
        (node, at, name)
        for node in graph.node
        for at, name in enumerate(node.input)
        if name and name not in {one.name for one in graph.initializer}
    ]
    if not places:
        return
    node, at, name = random.choice(places)
    build = _Builder(model)
    result = random.choice(BOMBS)(build, name, random)
    small = build("ReduceMax", build("Cast", result, to=TensorProto.FLOAT), keepdims=0)
    zero = build("Mul", small, build.constant(0, np.float32))
    if random.random() < 0.8:
        node.input[at] = build("Add", name, zero)
    place = list(graph.node).index(node)
    nodes = [onnx.NodeProto.FromString(one.SerializeToString()) for one in graph.node]
    nodes[place:place] = build.nodes
    del graph.node[:]
    graph.node.extend(nodes)


def _fill(build: _Builder, _name: str, random: Random) -> str:
    return build("ConstantOfShape", build.constant([random.choice(_COUNTS)]))


def _expand(build: _Builder, name: str, random: Random) -> str:
    shape = build.constant([random.choice(_COUNTS), 1, 1, 1, 1])
    return build(random.choice(("Expand", "Tile")), name, shape)


def _expand_one(build: _Builder, _name: str, random: Random) -> str:
    value = build.constant([1.0], np.float32)
    return build(random.choice(("Expand", "Tile")), value, build.constant([random.choice(_COUNTS)]))


def _range(build: _Builder, _name: str, random: Random) -> str:
    return build("Range", *map(build.constant, (0, random.choice(_COUNTS), 1)))


def _data_dependent(build: _Builder, name: str, random: Random) -> str:
    """The size follows from numbers in the image."""
    largest = build(
        "ReduceMax", build("Abs", build("Cast", name, to=TensorProto.FLOAT)), keepdims=0
    )
    scaled = build("Mul", largest, build.constant(random.choice(_COUNTS), np.float32))
    size = build("Reshape", build("Cast", scaled, to=TensorProto.INT64), build.constant([1]))
    return build("ConstantOfShape", size)


def _double(build: _Builder, name: str, random: Random) -> str:
    for _ in range(random.choice((8, 16, 24, 40))):
        name = build("Concat", name, name, axis=0)
    return name


def _outer(build: _Builder, _name: str, random: Random) -> str:
    """Each product squares the size."""
    side = random.choice((2000, 20_000, 60_000))
    column = build("ConstantOfShape", build.constant([side, 1]))
    row = build("ConstantOfShape", build.constant([1, side]))
    return build(random.choice(("MatMul", "Add", "Mul")), column, row)


def _resize(build: _Builder, name: str, random: Random) -> str:
    scale = random.choice((100.0, 1e4, 1e9))
    scales = build.constant([1, 1, scale, scale], np.float32)
    return build("Resize", name, "", scales, mode="nearest")


def _pad(build: _Builder, name: str, random: Random) -> str:
    size = random.choice((1000, 20_000, 2**40))
    return build("Pad", name, build.constant([0, 0, size, size, 0, 0, size, size]))


def _convolution(build: _Builder, name: str, random: Random) -> str:
    size = random.choice((1000, 20_000, 2**31 - 1))
    weight = build.constant(np.zeros((8, 3, 1, 1)), np.float32)
    pads = random.choice(([size] * 4, [size, 0, 0, size]))
    return build("Conv", name, weight, pads=pads)


def _transposed(build: _Builder, name: str, random: Random) -> str:
    weight = build.constant(np.zeros((3, 3, 1, 1)), np.float32)
    return build("ConvTranspose", name, weight, strides=[random.choice((100, 5000))] * 2)


def _one_hot(build: _Builder, _name: str, random: Random) -> str:
    values = build.constant([0.0, 1.0], np.float32)
    return build("OneHot", build.constant([1, 2]), build.constant(random.choice(_COUNTS)), values)


def _gather(build: _Builder, name: str, random: Random) -> str:
    indices = build("ConstantOfShape", build.constant([random.choice(_COUNTS)]), value=_ZERO)
    return build("Gather", name, indices)


def _random_numbers(build: _Builder, _name: str, random: Random) -> str:
    return build("RandomNormal", shape=[random.choice(_COUNTS)])


def _loop(build: _Builder, _name: str, random: Random) -> str:
    body = _graph(
        [
            helper.make_node("Identity", ["go"], ["again"]),
            helper.make_node("Identity", ["x"], ["y"]),
        ],
        ["number", "go", "x"],
        ["again", "y"],
    )
    trips = build.constant(random.choice((2**62, 2**40, 10**8)))
    go = build.constant(True, np.bool_)
    return build("Loop", trips, go, build.constant([1.0], np.float32), body=body)


def _condition(build: _Builder, _name: str, random: Random) -> str:
    fill = helper.make_node("ConstantOfShape", ["bomb_shape"], ["y"])
    build.model.graph.initializer.append(
        numpy_helper.from_array(np.array([random.choice(_COUNTS)]), "bomb_shape")
    )
    branch = _graph([fill], [], ["y"])
    return build("If", build.constant(True, np.bool_), then_branch=branch, else_branch=branch)


def _function(build: _Builder, name: str, random: Random) -> str:
    """A function that calls itself, or another of the model."""
    node = helper.make_node("Grow", ["x"], ["y"], domain="local")
    grow = helper.make_node("Concat", ["x", "x"], ["y"], axis=0)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("local", 1)]
    chosen = random.choice((node, grow))
    function = helper.make_function("local", "Grow", ["x"], ["y"], [chosen], opsets)
    build.model.functions.append(function)
    build.model.opset_import.append(helper.make_opsetid("local", 1))
    return build("Grow", name, domain="local")


def _graph(
    nodes: Sequence[onnx.NodeProto], inputs: Sequence[str], outputs: Sequence[str]
) -> onnx.GraphProto:
    types = {"number": TensorProto.INT64, "go": TensorProto.BOOL, "again": TensorProto.BOOL}

    def declare(names: Sequence[str]) -> list[onnx.ValueInfoProto]:
        return [
            helper.make_tensor_value_info(one, types.get(one, TensorProto.FLOAT), None)
            for one in names
        ]

    return helper.make_graph(list(nodes), "body", declare(inputs), declare(outputs))


_ZERO = helper.make_tensor("zero", TensorProto.INT64, [1], [0])
BOMBS: tuple[Bomb, ...] = (
    *(_fill, _expand, _expand_one, _range, _data_dependent, _double, _outer, _resize, _pad),
    *(_convolution, _transposed, _one_hot, _gather, _random_numbers, _loop, _condition, _function),
)
