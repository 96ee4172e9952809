"""Rewrites that move the choice or the average of tokens in front of what is done to each."""

from __future__ import annotations

import itertools
from contextlib import suppress
from dataclasses import dataclass, replace

import onnx

from .graph import Graph, Mismatch, attribute, check


@dataclass(frozen=True)
class _Rows:
    """The entries ``low`` to ``high`` of an axis."""

    axis: int
    low: int
    high: int


_ELEMENTWISE = {
    *("Abs", "Add", "Cast", "Div", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish"),
    *("Identity", "LeakyRelu", "Mish", "Mul", "Neg", "Pow", "Reciprocal", "Relu", "Sigmoid"),
    *("Softplus", "Sqrt", "Sub", "Tanh"),
}


def pick_early(graph: Graph) -> None:
    """Pick tokens in front of everything that treats tokens one by one.

    From the outputs to the inputs: a node whose outputs are read by nothing but what picks the same
    rows of them needs to compute only these rows, and picks rows of what it reads itself.
    """
    asked: dict[str, list[_Rows]] = {}
    picked: dict[str, _Rows] = {}
    needs: dict[int, dict[int, _Rows]] = {}
    for node in reversed(graph.nodes):
        with suppress(Mismatch):
            try:
                rows = _agreed(graph, node, asked)
                wanted = _needed(graph, node, rows)
                picked.update(dict.fromkeys(node.output, rows))
            except Mismatch:
                wanted = _picks(graph, node)
            needs[id(node)] = wanted
            for index, part in wanted.items():
                asked.setdefault(node.input[index], []).append(part)
    if not any(node.op_type == "MatMul" and node.output[0] in picked for node in graph.nodes):
        return
    nodes, graph.nodes = graph.nodes, []
    cuts: dict[tuple[str, _Rows], str] = {}
    for node in nodes:
        moved = node.output[0] in picked
        for index, part in needs.get(id(node), {}).items():
            name, length = node.input[index], part.high - part.low
            if not moved and name not in picked:
                continue  # where the picking began and nothing could be moved in front of it
            node.input[index] = _cut(graph, name, part, picked.get(name), cuts)
            if node.op_type == "Reshape":
                shape = graph.integers(node, 1)
                shape[part.axis] = length
                node.input[1] = graph.add_integers("picked_shape", shape)
            elif not moved and node.op_type == "Gather":
                node.input[1] = graph.add_integers("picked_index", 0)
            elif not moved:  # a Slice, of what it kept
                node.input[1] = graph.add_integers("picked_start", [0])
                node.input[2] = graph.add_integers("picked_end", [length])
        graph.nodes.append(node)
    for value in graph.proto.value_info:
        if value.name in picked:
            rows = picked[value.name]
            value.type.tensor_type.shape.dim[rows.axis].dim_value = rows.high - rows.low


def _cut(
    graph: Graph,
    name: str,
    part: _Rows,
    base: _Rows | None,
    cuts: dict[tuple[str, _Rows], str],
) -> str:
    """Name of a ``part`` of a value of which only ``base`` is there, by a new Slice if need be."""
    if part == base:
        return name
    array = graph.constant_or_none(name)
    if array is not None:
        rows = array.take(range(part.low, part.high), part.axis)
        return graph.add_constant(f"{name}_picked", rows)
    if (name, part) not in cuts:
        low = part.low - (base.low if base else 0)
        window = {"start": low, "end": low + part.high - part.low, "axis": part.axis}
        inputs = [graph.add_integers(f"picked_{k}", [v]) for k, v in window.items()]
        cuts[name, part] = graph.new_name(f"{name}_picked")
        graph.nodes.append(graph.make("Slice", [name, *inputs], cuts[name, part]))
    return cuts[name, part]


def _agreed(graph: Graph, node: onnx.NodeProto, asked: dict[str, list[_Rows]]) -> _Rows:
    """The rows of a node's outputs that all their readers ask for, if that is at most half."""
    found: list[_Rows] = []
    for name in filter(None, node.output):
        check(name not in graph.outputs and len(asked.get(name, ())) == graph.reads[name])
        found += asked.get(name, ())
    check(len({rows.axis for rows in found}) == 1)
    rows = _Rows(found[0].axis, min(r.low for r in found), max(r.high for r in found))
    size = graph.shape(node.output[0])[rows.axis]
    check(isinstance(size, int) and 2 * (rows.high - rows.low) <= size)
    return rows


def _picks(graph: Graph, node: onnx.NodeProto) -> dict[int, _Rows]:
    """What a node reads that keeps one entry or one range of entries of an axis."""
    check(node.domain == "")
    if node.op_type == "Slice":
        axis, kept = graph.window(node)
        check(kept.step == 1 and kept)
        return {0: _Rows(axis, kept.start, kept.stop)}
    check(node.op_type == "Gather")
    shape, index = graph.shape(node.input[0]), graph.constant(node.input[1])
    axis = attribute(node, "axis", 0) % len(shape)
    size = shape[axis]
    if not isinstance(size, int) or index.ndim:
        raise Mismatch
    return {0: _Rows(axis, int(index) % size, int(index) % size + 1)}


def _needed(graph: Graph, node: onnx.NodeProto, rows: _Rows) -> dict[int, _Rows]:
    """Rows of a node's inputs that make these rows of its outputs, by index of the input."""
    check(node.domain == "" and node.input)
    kind, axis, out = node.op_type, rows.axis, graph.shape(node.output[0])
    read = graph.shape(node.input[0])
    if kind in _ELEMENTWISE:
        found = {}
        for index, name in enumerate(node.input):
            shape = graph.shape(name)
            own = axis - len(out) + len(shape)
            if own >= 0 and shape[own] != 1:
                found[index] = replace(rows, axis=own)
        return found
    if kind == "MatMul":
        others = len(graph.shape(node.input[1]))
        check(len(read) == len(out) and others >= 2)
        check(axis == len(out) - 2 or (axis < len(out) - 2 and others == 2))
    elif kind == "LayerNormalization":
        check(axis < attribute(node, "axis", -1) % len(out))
    elif kind in ("Softmax", "Split"):
        check(axis != attribute(node, "axis", -1 if kind == "Softmax" else 0) % len(out))
    elif kind == "Slice":
        check(graph.window(node)[0] != axis)
    elif kind == "Reshape":
        check(read[: axis + 1] == out[: axis + 1] and graph.integers(node, 1)[axis] == out[axis])
    elif kind == "Transpose":
        perm = attribute(node, "perm")
        check(perm)
        return {0: replace(rows, axis=perm[axis])}
    elif kind == "Squeeze":
        gone = {a % len(read) for a in graph.integers(node, 1)}
        return {0: replace(rows, axis=[k for k in range(len(read)) if k not in gone][axis])}
    else:
        raise Mismatch
    return {0: rows}


def average_early(graph: Graph) -> None:
    """Average over tokens or pixels in front of sums and linear layers, which it commutes with."""
    for node in graph.nodes_of_type("ReduceMean"):
        with suppress(Mismatch):
            axes, name, window = graph.integers(node, 1), node.input[0], []
            rank = len(graph.shape(name))
            axes = [axis % rank for axis in axes]
            check(axes and 0 not in axes)
            with suppress(Mismatch):
                part = graph.only(name, "Slice")
                check(graph.window(part)[0] in axes)
                name, window = part.input[0], list(part.input[1:])
            nodes: list[onnx.NodeProto] = []
            averaged = _averaged(graph, name, axes, window, nodes)
            check(any(new.op_type == "MatMul" for new in nodes))
            last = onnx.NodeProto()
            last.CopyFrom(node)
            last.input[0] = averaged
            graph.replace(node, *nodes, last)


def _averaged(
    graph: Graph, name: str, axes: list[int], window: list[str], nodes: list[onnx.NodeProto]
) -> str:
    """Add the nodes that average a value, its axes kept with size 1, and return the new name."""
    shape = graph.shape(name)
    with suppress(Mismatch):
        node = graph.only(name, "Add", "MatMul", "Mul", "Transpose")
        inputs = list(node.input)
        attributes = {}
        if node.op_type == "Transpose":
            perm = attributes["perm"] = attribute(node, "perm")
            check(perm and not window)
            inputs[0] = _averaged(graph, inputs[0], [perm[a] for a in axes], window, nodes)
        elif node.op_type == "MatMul":
            check(len(graph.weights(inputs[1])) == 2 and len(shape) - 1 not in axes)
            inputs[0] = _averaged(graph, inputs[0], axes, window, nodes)
        else:
            for index, other in itertools.permutations((0, 1)):
                array = graph.constant_or_none(inputs[other])
                if array is not None and all(
                    a - len(shape) + array.ndim < 0 or array.shape[a - len(shape)] == 1
                    for a in axes
                ):
                    check(graph.shape(inputs[index]) == shape)
                    inputs[index] = _averaged(graph, inputs[index], axes, window, nodes)
                    break
            else:
                check(node.op_type == "Add")
                check(all(graph.shape(part) == shape for part in inputs))
                inputs = [_averaged(graph, part, axes, window, nodes) for part in inputs]
        output = graph.new_name(f"{name}_averaged")
        nodes.append(graph.make(node.op_type, inputs, output, **attributes))
        return output
    if window:
        name, whole = graph.new_name(f"{name}_window"), name
        nodes.append(graph.make("Slice", [whole, *window], name))
    output = graph.new_name(f"{name}_averaged")
    constant = graph.add_integers("averaged_axes", axes)
    nodes.append(graph.make("ReduceMean", [name, constant], output, keepdims=1))
    return output
