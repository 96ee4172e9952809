"""Pool early: move token selection and averaging in front of the layers that treat tokens alike."""

from __future__ import annotations

import itertools
from contextlib import suppress
from dataclasses import dataclass, replace

import onnx

from .graph import Graph, Mismatch, attribute, check


@dataclass(frozen=True)
class _Rows:
    """The indices ``low`` to ``high``, exclusive, of an axis."""

    axis: int
    low: int
    high: int


_ELEMENTWISE = {
    *("Abs", "Add", "Cast", "Div", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish"),
    *("Identity", "LeakyRelu", "Mish", "Mul", "Neg", "Pow", "Reciprocal", "Relu", "Sigmoid"),
    *("Softplus", "Sqrt", "Sub", "Tanh"),
}


def select_early(graph: Graph) -> None:
    """Select tokens before every operator that processes tokens independently.

    The rewrite goes from the outputs to the inputs. If all readers of a node select the same rows
    of its outputs, the node computes only these rows, from selected rows of its own inputs.
    """
    requests: dict[str, list[_Rows]] = {}
    selected: dict[str, _Rows] = {}
    input_rows: dict[int, dict[int, _Rows]] = {}
    for node in reversed(graph.nodes):
        with suppress(Mismatch):
            try:
                rows = _requested_rows(graph, node, requests)
                needed = _needed_rows(graph, node, rows)
                selected.update(dict.fromkeys(node.output, rows))
            except Mismatch:
                needed = _match_selection(graph, node)
            input_rows[id(node)] = needed
            for index, part in needed.items():
                requests.setdefault(node.input[index], []).append(part)
    if not any(node.op_type == "MatMul" and node.output[0] in selected for node in graph.nodes):
        return
    nodes, graph.nodes = graph.nodes, []
    slices: dict[tuple[str, _Rows], str] = {}
    for node in nodes:
        reduced = node.output[0] in selected
        for index, part in input_rows.get(id(node), {}).items():
            name, length = node.input[index], part.high - part.low
            if not reduced and name not in selected:
                continue  # a selection that could not move
            node.input[index] = _slice_rows(graph, name, part, selected.get(name), slices)
            if node.op_type == "Reshape":
                shape = graph.integers(node, 1)
                shape[part.axis] = length
                node.input[1] = graph.add_integers("picked_shape", shape)
            elif not reduced and node.op_type == "Gather":
                node.input[1] = graph.add_integers("picked_index", 0)
            elif not reduced:  # a Slice: it now keeps all rows of its smaller input
                node.input[1] = graph.add_integers("picked_start", [0])
                node.input[2] = graph.add_integers("picked_end", [length])
        graph.nodes.append(node)
    for value in graph.proto.value_info:
        if value.name in selected:
            rows = selected[value.name]
            value.type.tensor_type.shape.dim[rows.axis].dim_value = rows.high - rows.low


def _slice_rows(
    graph: Graph,
    name: str,
    part: _Rows,
    available: _Rows | None,
    slices: dict[tuple[str, _Rows], str],
) -> str:
    """Return the name of rows of a value, and add a Slice if needed.

    Args:
        graph: The graph.
        name: Name of the value.
        part: The rows to return.
        available: The rows that the value has left; None if it has all.
        slices: Names of the slices that were added before.
    """
    if part == available:
        return name
    array = graph.constant_or_none(name)
    if array is not None:
        rows = array.take(range(part.low, part.high), part.axis)
        return graph.add_constant(f"{name}_picked", rows)
    if (name, part) not in slices:
        low = part.low - (available.low if available else 0)
        window = {"start": low, "end": low + part.high - part.low, "axis": part.axis}
        inputs = [graph.add_integers(f"picked_{k}", [v]) for k, v in window.items()]
        slices[name, part] = graph.new_name(f"{name}_picked")
        graph.nodes.append(graph.make_node("Slice", [name, *inputs], slices[name, part]))
    return slices[name, part]


def _requested_rows(graph: Graph, node: onnx.NodeProto, requests: dict[str, list[_Rows]]) -> _Rows:
    """Return the rows that all readers of a node request, if those are at most half."""
    parts: list[_Rows] = []
    for name in filter(None, node.output):
        check(name not in graph.outputs)
        check(len(requests.get(name, ())) == graph.num_reads[name])
        parts += requests.get(name, ())
    check(len({rows.axis for rows in parts}) == 1)
    rows = _Rows(parts[0].axis, min(r.low for r in parts), max(r.high for r in parts))
    size = graph.shape(node.output[0])[rows.axis]
    check(isinstance(size, int) and 2 * (rows.high - rows.low) <= size)
    return rows


def _match_selection(graph: Graph, node: onnx.NodeProto) -> dict[int, _Rows]:
    """Match a Slice or Gather of one range or one index; return the rows by index of the input."""
    check(node.domain == "")
    if node.op_type == "Slice":
        axis, kept = graph.slice_range(node)
        check(kept.step == 1 and kept)
        return {0: _Rows(axis, kept.start, kept.stop)}
    check(node.op_type == "Gather")
    shape, index = graph.shape(node.input[0]), graph.constant(node.input[1])
    axis = attribute(node, "axis", 0) % len(shape)
    size = shape[axis]
    if not isinstance(size, int) or index.ndim:
        raise Mismatch
    return {0: _Rows(axis, int(index) % size, int(index) % size + 1)}


def _needed_rows(graph: Graph, node: onnx.NodeProto, rows: _Rows) -> dict[int, _Rows]:
    """Return the rows of a node's inputs that these rows of its outputs need, by input index."""
    check(node.domain == "" and node.input)
    op_type, axis, out = node.op_type, rows.axis, graph.shape(node.output[0])
    read = graph.shape(node.input[0])
    if op_type in _ELEMENTWISE:
        needed = {}
        for index, name in enumerate(node.input):
            shape = graph.shape(name)
            input_axis = axis - len(out) + len(shape)
            if input_axis >= 0 and shape[input_axis] != 1:
                needed[index] = replace(rows, axis=input_axis)
        return needed
    if op_type == "MatMul":
        rank = len(graph.shape(node.input[1]))
        check(len(read) == len(out) and rank >= 2)
        check(axis == len(out) - 2 or (axis < len(out) - 2 and rank == 2))
    elif op_type == "LayerNormalization":
        check(axis < attribute(node, "axis", -1) % len(out))
    elif op_type in ("Softmax", "Split"):
        check(axis != attribute(node, "axis", -1 if op_type == "Softmax" else 0) % len(out))
    elif op_type == "Slice":
        check(graph.slice_range(node)[0] != axis)
    elif op_type == "Reshape":
        check(read[: axis + 1] == out[: axis + 1] and graph.integers(node, 1)[axis] == out[axis])
    elif op_type == "Transpose":
        perm = attribute(node, "perm")
        check(perm)
        return {0: replace(rows, axis=perm[axis])}
    elif op_type == "Squeeze":
        squeezed = {a % len(read) for a in graph.integers(node, 1)}
        kept = [k for k in range(len(read)) if k not in squeezed]
        return {0: replace(rows, axis=kept[axis])}
    else:
        raise Mismatch
    return {0: rows}


def average_early(graph: Graph) -> None:
    """Average over tokens or pixels before sums and linear layers, which commute with a mean."""
    for node in graph.nodes_of_type("ReduceMean"):
        with suppress(Mismatch):
            axes, name, window = graph.integers(node, 1), node.input[0], []
            rank = len(graph.shape(name))
            axes = [axis % rank for axis in axes]
            check(axes and 0 not in axes)
            with suppress(Mismatch):
                part = graph.sole_use_producer(name, "Slice")
                check(graph.slice_range(part)[0] in axes)
                name, window = part.input[0], list(part.input[1:])
            nodes: list[onnx.NodeProto] = []
            averaged = _add_average(graph, name, axes, window, nodes)
            check(any(new.op_type == "MatMul" for new in nodes))
            last = onnx.NodeProto()
            last.CopyFrom(node)
            last.input[0] = averaged
            graph.replace(node, *nodes, last)


def _add_average(
    graph: Graph, name: str, axes: list[int], window: list[str], nodes: list[onnx.NodeProto]
) -> str:
    """Add nodes that average a value as early as possible.

    Args:
        graph: The graph.
        name: Name of the value.
        axes: Axes to average over; the average keeps them with size 1.
        window: Inputs of a Slice that selects what to average; empty to average everything.
        nodes: Receives the new nodes.

    Returns:
        The name of the average.
    """
    shape = graph.shape(name)
    with suppress(Mismatch):
        node = graph.sole_use_producer(name, "Add", "MatMul", "Mul", "Transpose")
        inputs = list(node.input)
        attributes = {}
        if node.op_type == "Transpose":
            perm = attributes["perm"] = attribute(node, "perm")
            check(perm and not window)
            inputs[0] = _add_average(graph, inputs[0], [perm[a] for a in axes], window, nodes)
        elif node.op_type == "MatMul":
            check(len(graph.weight_shape(inputs[1])) == 2 and len(shape) - 1 not in axes)
            inputs[0] = _add_average(graph, inputs[0], axes, window, nodes)
        else:
            for index, other in itertools.permutations((0, 1)):
                array = graph.constant_or_none(inputs[other])
                if array is not None and all(
                    a - len(shape) + array.ndim < 0 or array.shape[a - len(shape)] == 1
                    for a in axes
                ):
                    check(graph.shape(inputs[index]) == shape)
                    inputs[index] = _add_average(graph, inputs[index], axes, window, nodes)
                    break
            else:
                check(node.op_type == "Add")
                check(all(graph.shape(part) == shape for part in inputs))
                inputs = [_add_average(graph, part, axes, window, nodes) for part in inputs]
        output = graph.new_name(f"{name}_averaged")
        nodes.append(graph.make_node(node.op_type, inputs, output, **attributes))
        return output
    if window:
        name, whole = graph.new_name(f"{name}_window"), name
        nodes.append(graph.make_node("Slice", [whole, *window], name))
    output = graph.new_name(f"{name}_averaged")
    constant = graph.add_integers("averaged_axes", axes)
    nodes.append(graph.make_node("ReduceMean", [name, constant], output, keepdims=1))
    return output
