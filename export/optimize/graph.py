"""An ONNX graph as the rewrites of ``optimize`` see it."""

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

Array = NDArray[Any]
Shape = tuple[int | str, ...]

_RANDOM = {
    *("Bernoulli", "Dropout", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform"),
    "RandomUniformLike",
}


class Mismatch(Exception):
    """What is looked at is not the pattern that is looked for."""


def check(condition: object) -> None:
    """Raise ``Mismatch`` unless the condition holds."""
    if not condition:
        raise Mismatch


class Graph:
    """The nodes of a graph by what they read and write, its constants and its shapes.

    The methods that find something raise ``Mismatch`` where it is not there. Nodes are put in by
    changing ``nodes``; ``write`` stores the result and drops what nothing reads any more.

    Attributes:
        nodes: in an order in which they can run.
        outputs: names of the graph's outputs.
        shapes: per value, as far as the graph says them; dynamic sizes are names.
        floats: the values that have a shape and are float32; initializers are not among them.
        reads: how often each value is read by a node.
    """

    def __init__(self, proto: onnx.GraphProto) -> None:
        self.proto = proto
        self.nodes = list(proto.node)
        self.outputs = {value.name for value in proto.output}
        inputs = {value.name for value in proto.input}
        self._tensors = {t.name: t for t in proto.initializer if t.name not in inputs}
        self._producer = {name: node for node in self.nodes for name in node.output if name}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in filter(None, node.input):
                self._readers.setdefault(name, []).append(node)
        self.reads = Counter(name for node in self.nodes for name in read_by(node))
        self.shapes: dict[str, Shape] = {t.name: tuple(t.dims) for t in proto.initializer}
        self.floats: set[str] = set()
        for value in (*proto.input, *proto.value_info, *proto.output):
            if value.type.tensor_type.HasField("shape"):
                dims = value.type.tensor_type.shape.dim
                if all(d.dim_param or d.dim_value for d in dims):  # neither: size is unknown
                    self.shapes[value.name] = tuple(d.dim_param or d.dim_value for d in dims)
                    if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
                        self.floats.add(value.name)
        self._arrays: dict[str, Array | None] = {}
        self._added: dict[tuple[str, str, Shape, bytes], str] = {}
        self._taken = {*self.reads, *self._tensors, *self._producer, *inputs}
        # In the order of the nodes: from an output back to the inputs a deep graph has thousands.
        self._foldable: set[str] = set()
        for node in self.nodes:
            constant = all(
                name in self._tensors or name in self._foldable for name in node.input if name
            )
            computed = node.domain == "" and node.op_type not in _RANDOM and not _has_graph(node)
            if constant and computed:
                self._foldable.update(node.output)
        self._unread = {*inputs, *self.outputs, *self._tensors} - {*self.reads}

    def constant_or_none(self, name: str) -> Array | None:
        """Value of an initializer, or of what is computed from nothing but constants."""
        if name not in self._arrays:
            self._arrays[name] = None
            node = self._producer.get(name)
            if name in self._tensors:
                self._arrays[name] = onnx.numpy_helper.to_array(self._tensors[name])
            elif node is not None and name in self._foldable:
                values = {i: self.constant_or_none(i) for i in node.input if i}
                if all(value is not None for value in values.values()):
                    with suppress(Exception):  # operators that the reference does not know
                        found: Any = ReferenceEvaluator(node).run(None, values)
                        self._arrays.update(zip(node.output, found, strict=False))
        return self._arrays[name]

    def constant(self, name: str) -> Array:
        """The same where it must be constant."""
        array = self.constant_or_none(name)
        if array is None:
            raise Mismatch
        return array

    def weights(self, name: str) -> Shape:
        """Shape of an initializer of single precision; its numbers are not looked at."""
        tensor = self._tensors.get(name)
        check(tensor is not None and tensor.data_type == onnx.TensorProto.FLOAT)
        return self.shapes[name]

    def integers(self, node: onnx.NodeProto, index: int) -> list[int]:
        """A constant integer input of a node."""
        check(len(node.input) > index)
        return [int(value) for value in self.constant(node.input[index]).ravel()]

    def shape(self, name: str, rank: int | None = None) -> Shape:
        """Shape of a value."""
        check(name in self.shapes and rank in (None, len(self.shapes[name])))
        return self.shapes[name]

    def nodes_of_type(self, op_type: str) -> list[onnx.NodeProto]:
        """The nodes of an ONNX operator, as they are now."""
        return [n for n in self.nodes if n.domain == "" and n.op_type == op_type]

    def made_by(self, name: str, *op_types: str, **attributes: object) -> onnx.NodeProto:
        """The node that writes a value: one of these ONNX operators with these attributes."""
        return _matched(self._producer.get(name), op_types, attributes)

    def only(self, name: str, *op_types: str, **attributes: object) -> onnx.NodeProto:
        """The same, if moreover one node alone reads the value."""
        check(self.reads[name] == 1 and name not in self.outputs)
        return self.made_by(name, *op_types, **attributes)

    def reader(self, name: str, *op_types: str, **attributes: object) -> onnx.NodeProto:
        """The node that alone reads a value: one of these ONNX operators with these attributes."""
        nodes = self.readers(name)
        check(self.reads[name] == 1 and len(nodes) == 1 and name not in self.outputs)
        return _matched(nodes[0], op_types, attributes)

    def is_over_last_axis(self, softmax: onnx.NodeProto) -> bool:
        """Whether the probabilities along the last axis add up to 1."""
        rank = len(self.shape(softmax.output[0]))
        return attribute(softmax, "axis", -1) in (-1, rank - 1)

    def operands(self, node: onnx.NodeProto) -> tuple[str, str]:
        """Names of the value and the constant that a node of two operands reads, in any order."""
        for value, constant in itertools.permutations(node.input):
            if self.constant_or_none(constant) is not None and self.constant_or_none(value) is None:
                return value, constant
        raise Mismatch

    def window(self, node: onnx.NodeProto) -> tuple[int, range]:
        """Axis of a Slice along one axis, and which of its entries stay."""
        check(node.op_type == "Slice" and len(node.input) > 3)
        shape = self.shape(node.input[0])
        starts, ends, axes = (self.integers(node, index) for index in (1, 2, 3))
        steps = self.integers(node, 4) if len(node.input) > 4 and node.input[4] else [1]
        check(len(axes) == 1)
        size = shape[axes[0]]
        if not isinstance(size, int):
            raise Mismatch
        return axes[0] % len(shape), range(size)[slice(starts[0], ends[0], steps[0])]

    def readers(self, name: str) -> list[onnx.NodeProto]:
        """The nodes that read a value directly, once for each time that they do."""
        return self._readers.get(name, [])

    def new_name(self, stem: str) -> str:
        """A name that no value of the graph has."""
        names = itertools.chain([stem], (f"{stem}_{k}" for k in itertools.count(1)))
        name = next(name for name in names if name not in self._taken)
        self._taken.add(name)
        return name

    def add_constant(self, stem: str, array: Array) -> str:
        """Add an initializer, unless the same one was added before, and return its name."""
        key = (stem, array.dtype.str, array.shape, array.tobytes())
        if key not in self._added:
            name = self._added[key] = self.new_name(stem)
            self._tensors[name] = onnx.numpy_helper.from_array(array, name)
            self.proto.initializer.append(self._tensors[name])
            self.shapes[name] = array.shape
        return self._added[key]

    def add_integers(self, stem: str, numbers: list[int] | int) -> str:
        """The same for the shapes, axes and indices that operators read."""
        return self.add_constant(stem, np.array(numbers, np.int64))

    def make(
        self, op_type: str, inputs: list[str], output: str, **attributes: Any
    ) -> onnx.NodeProto:
        """A new node, named after the value that it writes."""
        return onnx.helper.make_node(op_type, inputs, [output], f"optimized_{output}", **attributes)

    def replace(self, old: onnx.NodeProto, *new: onnx.NodeProto) -> None:
        """Put nodes in the place of one; they write what is still read of what it wrote."""
        place = next(k for k, node in enumerate(self.nodes) if node is old)
        self.nodes[place : place + 1] = new

    def write(self) -> None:
        """Store the nodes that outputs depend on, and drop initializers that were read before."""
        wanted, kept = set(self.outputs), []
        for node in reversed(self.nodes):
            if wanted.intersection(node.output):
                kept.append(node)
                wanted.update(read_by(node))
        kept.reverse()
        del self.proto.node[:]
        self.proto.node.extend(kept)
        wanted |= self._unread | {name for node in kept for name in node.output}
        for values in (self.proto.initializer, self.proto.value_info):
            for k in reversed(range(len(values))):
                if values[k].name not in wanted:
                    del values[k]


def _matched(
    node: onnx.NodeProto | None, op_types: Sequence[str], attributes: Mapping[str, object]
) -> onnx.NodeProto:
    if node is None or node.domain != "" or node.op_type not in op_types:
        raise Mismatch
    check(all(attribute(node, key) == value for key, value in attributes.items()))
    return node


def is_integer(size: int | str) -> bool:
    """Whether a size is known, rather than a name."""
    return isinstance(size, int)


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """Value of a node's attribute."""
    found = (onnx.helper.get_attribute_value(a) for a in node.attribute if a.name == name)
    return next(found, default)


def read_by(node: onnx.NodeProto) -> Iterator[str]:
    """Names that a node reads, those read inside its branches and loop bodies included."""
    yield from filter(None, node.input)
    for part in node.attribute:
        for graph in (*part.graphs, *([part.g] if part.HasField("g") else [])):
            yield from (value.name for value in graph.output)
            for inner in graph.node:
                yield from read_by(inner)


def _has_graph(node: onnx.NodeProto) -> bool:
    return any(part.graphs or part.HasField("g") for part in node.attribute)
