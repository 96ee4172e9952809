"""An ONNX graph with indexes for pattern matching: producers, readers, constants and shapes."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

MICROSOFT = "com.microsoft"
"""Domain of ONNX Runtime's own operators.

https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md documents them.
"""

Array = NDArray[Any]
Shape = tuple[int | str, ...]

_RANDOM = {
    *("Bernoulli", "Dropout", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform"),
    "RandomUniformLike",
}


class Mismatch(Exception):
    """The nodes at hand do not match the pattern of a rewrite."""


def check(condition: object) -> None:
    """Raise ``Mismatch`` unless the condition holds."""
    if not condition:
        raise Mismatch


class Graph:
    """A graph that a rewrite searches and changes.

    The methods that look something up raise ``Mismatch`` if it does not exist. A rewrite changes
    ``nodes``; ``write`` stores the result and drops everything that nothing reads any more.

    Attributes:
        nodes: The nodes, in an order in which they can run.
        opset: Version of the default operator set.
        outputs: Names of the graph's outputs.
        shapes: Known shapes by name of the value; dynamic sizes are names.
        float_values: Names of the float32 values with a known shape, without initializers.
        num_reads: How often nodes read each value.
    """

    def __init__(self, proto: onnx.GraphProto, opset: int) -> None:
        self.proto = proto
        self.nodes = list(proto.node)
        self.opset = opset
        self.outputs = {value.name for value in proto.output}
        inputs = {value.name for value in proto.input}
        self._tensors = {t.name: t for t in proto.initializer if t.name not in inputs}
        self._producer = {name: node for node in self.nodes for name in node.output if name}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in filter(None, node.input):
                self._readers.setdefault(name, []).append(node)
        self.num_reads = Counter(name for node in self.nodes for name in read_names(node))
        self.shapes: dict[str, Shape] = {t.name: tuple(t.dims) for t in proto.initializer}
        self.float_values: set[str] = set()
        for value in (*proto.input, *proto.value_info, *proto.output):
            if value.type.tensor_type.HasField("shape"):
                dims = value.type.tensor_type.shape.dim
                if all(d.dim_param or d.dim_value for d in dims):  # neither: size is unknown
                    self.shapes[value.name] = tuple(d.dim_param or d.dim_value for d in dims)
                    if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
                        self.float_values.add(value.name)
        self._arrays: dict[str, Array | None] = {}
        self._added: dict[tuple[str, str, Shape, bytes], str] = {}
        self._used_names = {*self.num_reads, *self._tensors, *self._producer, *inputs}
        # Go forward through the nodes: recursion from an output could be thousands of calls deep.
        self._foldable: set[str] = set()
        for node in self.nodes:
            constant = all(
                name in self._tensors or name in self._foldable for name in node.input if name
            )
            computed = node.domain == "" and node.op_type not in _RANDOM and not _has_graph(node)
            if constant and computed:
                self._foldable.update(node.output)
        self._unread = {*inputs, *self.outputs, *self._tensors} - {*self.num_reads}

    def constant_or_none(self, name: str) -> Array | None:
        """Return the value of an initializer or of a computation on constants, else None."""
        if name not in self._arrays:
            self._arrays[name] = None
            node = self._producer.get(name)
            if name in self._tensors:
                self._arrays[name] = onnx.numpy_helper.to_array(self._tensors[name])
            elif node is not None and name in self._foldable:
                values = {i: self.constant_or_none(i) for i in node.input if i}
                if all(value is not None for value in values.values()):
                    with suppress(Exception):  # the reference evaluator lacks some operators
                        results: Any = ReferenceEvaluator(node).run(None, values)
                        self._arrays.update(zip(node.output, results, strict=False))
        return self._arrays[name]

    def constant(self, name: str) -> Array:
        """Return the array of a constant value."""
        array = self.constant_or_none(name)
        if array is None:
            raise Mismatch
        return array

    def weight_shape(self, name: str) -> Shape:
        """Return the shape of a float32 initializer without decoding its numbers."""
        tensor = self._tensors.get(name)
        check(tensor is not None and tensor.data_type == onnx.TensorProto.FLOAT)
        return self.shapes[name]

    def integers(self, node: onnx.NodeProto, index: int) -> list[int]:
        """Return a node's constant integer input."""
        check(len(node.input) > index)
        return [int(value) for value in self.constant(node.input[index]).ravel()]

    def shape(self, name: str, rank: int | None = None) -> Shape:
        """Return the shape of a value."""
        check(name in self.shapes and rank in (None, len(self.shapes[name])))
        return self.shapes[name]

    def nodes_of_type(self, op_type: str) -> list[onnx.NodeProto]:
        """Return the current nodes of an ONNX operator."""
        return [n for n in self.nodes if n.domain == "" and n.op_type == op_type]

    def producer(self, name: str, *op_types: str, **attributes: object) -> onnx.NodeProto:
        """Return the node that writes a value, with one of these operators and these attributes."""
        return _match(self._producer.get(name), op_types, attributes)

    def sole_use_producer(self, name: str, *op_types: str, **attributes: object) -> onnx.NodeProto:
        """Return the same node, but only if exactly one node reads the value."""
        check(self.num_reads[name] == 1 and name not in self.outputs)
        return self.producer(name, *op_types, **attributes)

    def sole_reader(self, name: str, *op_types: str, **attributes: object) -> onnx.NodeProto:
        """Return the only node that reads a value, with one of these operators and attributes."""
        nodes = self.readers(name)
        check(self.num_reads[name] == 1 and len(nodes) == 1 and name not in self.outputs)
        return _match(nodes[0], op_types, attributes)

    def readers(self, name: str) -> list[onnx.NodeProto]:
        """Return the nodes that read a value directly, once per input that reads it."""
        return self._readers.get(name, [])

    def value_and_constant(self, node: onnx.NodeProto) -> tuple[str, str]:
        """Return the names of the value and the constant that a binary operator reads."""
        for value, constant in itertools.permutations(node.input):
            if self.constant_or_none(constant) is not None and self.constant_or_none(value) is None:
                return value, constant
        raise Mismatch

    def slice_range(self, node: onnx.NodeProto) -> tuple[int, range]:
        """Return the axis of a Slice along one axis, and the indices that it keeps."""
        check(node.op_type == "Slice" and len(node.input) > 3)
        shape = self.shape(node.input[0])
        starts, ends, axes = (self.integers(node, index) for index in (1, 2, 3))
        steps = self.integers(node, 4) if len(node.input) > 4 and node.input[4] else [1]
        check(len(axes) == 1)
        size = shape[axes[0]]
        if not isinstance(size, int):
            raise Mismatch
        return axes[0] % len(shape), range(size)[slice(starts[0], ends[0], steps[0])]

    def new_name(self, stem: str) -> str:
        """Return a name that no value of the graph has yet."""
        names = itertools.chain([stem], (f"{stem}_{k}" for k in itertools.count(1)))
        name = next(name for name in names if name not in self._used_names)
        self._used_names.add(name)
        return name

    def add_constant(self, stem: str, array: Array) -> str:
        """Add an initializer unless an equal one was added before; return its name."""
        key = (stem, array.dtype.str, array.shape, array.tobytes())
        if key not in self._added:
            name = self._added[key] = self.new_name(stem)
            self._tensors[name] = onnx.numpy_helper.from_array(array, name)
            self.proto.initializer.append(self._tensors[name])
            self.shapes[name] = array.shape
        return self._added[key]

    def add_integers(self, stem: str, numbers: list[int] | int) -> str:
        """Add an int64 initializer: shapes, axes or indices that an operator reads."""
        return self.add_constant(stem, np.array(numbers, np.int64))

    def make_node(
        self, op_type: str, inputs: list[str], output: str, **attributes: Any
    ) -> onnx.NodeProto:
        """Return a new node, named after the value that it writes."""
        return onnx.helper.make_node(op_type, inputs, [output], f"optimized_{output}", **attributes)

    def replace(self, old: onnx.NodeProto, *new: onnx.NodeProto) -> None:
        """Put nodes in the place of one; they write each of its outputs that is still read."""
        place = next(k for k, node in enumerate(self.nodes) if node is old)
        self.nodes[place : place + 1] = new

    def write(self) -> None:
        """Store the nodes that the outputs need; drop initializers that lost their last reader."""
        needed, kept = set(self.outputs), []
        for node in reversed(self.nodes):
            if needed.intersection(node.output):
                kept.append(node)
                needed.update(read_names(node))
        kept.reverse()
        del self.proto.node[:]
        self.proto.node.extend(kept)
        needed |= self._unread | {name for node in kept for name in node.output}
        for values in (self.proto.initializer, self.proto.value_info):
            for k in reversed(range(len(values))):
                if values[k].name not in needed:
                    del values[k]


def _match(
    node: onnx.NodeProto | None, op_types: Sequence[str], attributes: Mapping[str, object]
) -> onnx.NodeProto:
    if node is None or node.domain != "" or node.op_type not in op_types:
        raise Mismatch
    check(all(attribute(node, key) == value for key, value in attributes.items()))
    return node


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """Return the value of a node's attribute."""
    values = (onnx.helper.get_attribute_value(a) for a in node.attribute if a.name == name)
    return next(values, default)


def is_static(size: int | str) -> bool:
    """Return True if a size is a number, not the name of a dynamic dimension."""
    return isinstance(size, int)


def read_names(node: onnx.NodeProto) -> Iterator[str]:
    """Yield the names that a node reads, also inside its branches and loop bodies."""
    yield from filter(None, node.input)
    for part in node.attribute:
        for graph in (*part.graphs, *([part.g] if part.HasField("g") else [])):
            yield from (value.name for value in graph.output)
            for inner in graph.node:
                yield from read_names(inner)


def _has_graph(node: onnx.NodeProto) -> bool:
    return any(part.graphs or part.HasField("g") for part in node.attribute)
