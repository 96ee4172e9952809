"""Add heads to the ONNX graph of a backbone, and remove them again. No torch.

Names of everything that belongs to heads start with ``head/``, except the tensors of a model's only
head: these keep their names from the head file. The rest of the graph is the backbone.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from headkit.adapters.errors import ExportError
from headkit.adapters.heads.head import Head
from headkit.adapters.heads.tasks import get_task

from .checksums import checksum_of_head
from .classifier_graph import (
    classifier_model,
    declared_shape,
    decode_model,
)
from .description.head_info import HeadInfo
from .description.names import (
    LEVEL_BIAS,
    LEVEL_WEIGHT,
    PREFIX,
    TEMPERATURE,
    level_output,
    logits_name,
    probabilities_name,
)
from .level_row import lay_out, pooled_branches, reads_row, take_back
from .linear import is_linear, weight_and_bias
from .metadata import ModelInfo

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

Heads = Mapping[str, Head]
"""Heads by name; the only head of a merged or swappable model has an empty name."""


def add_heads(
    model: onnx.ModelProto,
    info: ModelInfo,
    heads: Heads,
    known: Mapping[str, HeadInfo] | None = None,
) -> ModelInfo:
    """Add heads to a backbone, in place, and write the metadata.

    Args:
        model: A backbone; its outputs are the features and levels.
        info: Description of the resulting model; ``heads`` replace the heads in it.
        heads: As many heads as the form allows.
        known: Descriptions of heads that ``remove_heads`` returned, by name; the
            descriptions of other heads are made from the heads.

    Returns:
        The description with these heads.

    Raises:
        ExportError: The form does not allow these heads, or a head does not fit the backbone.
    """
    check_heads(info.form, heads, probabilities=info.probabilities)
    graph = model.graph
    if info.form != "backbone":
        del graph.output[:]
    if info.form == "multi":
        _add_many_heads(model, info, heads)
    else:
        for head in heads.values():
            _add_one_head(model, info, head)
    known = known or {}
    infos = (known.get(name) or HeadInfo.from_head(head, name) for name, head in heads.items())
    info = info.with_heads(*map(_with_checksum, infos, heads.values()))
    write_metadata(model, info)
    return info


def _with_checksum(info: HeadInfo, head: Head) -> HeadInfo:
    """Add the checksum to a head of a model that was exported without checksums."""
    return (
        info
        if info.checksum
        else replace(info, checksum=checksum_of_head(info.description, head.tensors))
    )


def write_metadata(model: onnx.ModelProto, info: ModelInfo) -> None:
    """Write a model's description into its metadata, in place."""
    del model.metadata_props[:]
    helper.set_model_props(model, info.to_props())


def remove_heads(model: onnx.ModelProto, info: ModelInfo) -> dict[str, Head]:
    """Remove all heads from an exported model, in place, and return them; the backbone stays.

    Raises:
        ExportError: The model does not have the tensors that its metadata describes.
    """
    graph = model.graph
    indices = {
        tensor.name: index
        for index, tensor in enumerate(graph.initializer)
        if info.is_of_head(tensor.name)
    }
    tensors = {name: numpy_helper.to_array(graph.initializer[at]) for name, at in indices.items()}
    try:
        heads = _read_heads(info, tensors)
    except (KeyError, ValueError) as error:
        raise ExportError(
            f"the tensors of the model's heads are missing or damaged ({error}): export it again"
        ) from error
    for index in sorted(indices.values(), reverse=True):
        del graph.initializer[index]
    kept_inputs = [value for value in graph.input if value.name not in indices]
    kept_nodes = [node for node in graph.node if not node.name.startswith(PREFIX)]
    del graph.input[:], graph.node[:], graph.output[:]
    graph.input.extend(kept_inputs)
    graph.node.extend(kept_nodes)
    graph.output.extend(_declare(name, dims) for name, dims in info.values.items())
    return heads


def put_preprocessing(model: onnx.ModelProto, preprocessing: onnx.ModelProto) -> None:
    """Put a preprocessing model in front of a model, in place, so that it takes raw images.

    Args:
        model: A model that takes ``pixel_values``.
        preprocessing: The result of ``preprocessing_model`` for the model's opset.
    """
    graph, first = model.graph, preprocessing.graph
    nodes = [*first.node, *graph.node]
    inputs = [*first.input, *(value for value in graph.input if value.name != "pixel_values")]
    nodes, inputs = copy.deepcopy(nodes), copy.deepcopy(inputs)
    del graph.node[:], graph.input[:]
    graph.node.extend(nodes)
    graph.input.extend(inputs)
    graph.initializer.extend(first.initializer)


def head_model(info: ModelInfo, head: Head, opset: int) -> onnx.ModelProto:
    """Return a small model of the head alone, from features and levels to logits."""
    graph = helper.make_graph(
        [], "head", [_declare(name, dims) for name, dims in info.values.items()], []
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 10
    model.graph.output.append(_declare("logits", ["batch", head.num_classes]))
    if reads_row(info, head):
        model.graph.node.extend(_row_nodes(info, LEVEL_WEIGHT, LEVEL_BIAS, "logits"))
        tensors = lay_out(info, head)
    else:
        _add_logits(model, info, head, PREFIX, "logits", {name: name for name in head.tensors})
        tensors = dict(head.tensors)
    model.graph.initializer.extend(_constant(name, tensor) for name, tensor in tensors.items())
    return model


def swappable_inputs(model: onnx.ModelProto) -> dict[str, list[int | str]]:
    """Return the shapes of the initializers that a call may override, by name."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return {v.name: declared_shape(v) for v in model.graph.input if v.name in constants}


def opset_of(model: onnx.ModelProto) -> int:
    """Return the version of a model's default operator set."""
    return max(int(o.version) for o in model.opset_import if o.domain in ("", "ai.onnx"))


def check_heads(form: str, heads: Heads, *, probabilities: bool) -> None:
    """Raise unless a form allows these heads.

    Raises:
        ExportError: The form takes another number of heads, a name cannot be part of an output's
            name, or probabilities are requested of a head for regression.
    """
    if form == "backbone" and heads:
        raise ExportError(f"the form 'backbone' takes no head, found {len(heads)}")
    if form in ("merged", "swappable") and list(heads) != [""]:
        raise ExportError(f"the form {form!r} takes one head, found {len(heads)}")
    if form == "multi" and not heads:
        raise ExportError("the form 'multi' takes at least one head, found none")
    for name in heads if form == "multi" else ():
        if not _NAME.fullmatch(name):
            raise ExportError(
                f"the name of a head is {name!r}, expected only letters, digits, '.', '_' and '-'"
            )
    for head in heads.values():
        if probabilities and not get_task(head.task).has_classes:
            raise ExportError(f"a head for {head.task} has no probabilities")


def _add_one_head(model: onnx.ModelProto, info: ModelInfo, head: Head) -> None:
    """Add the only head; its tensors keep their names, as constants or overridable initializers."""
    graph, swappable = model.graph, info.form == "swappable"
    classes = "num_classes" if swappable else head.num_classes
    tensors: Mapping[str, Any] = head.tensors
    if reads_row(info, head):
        graph.node.extend(_row_nodes(info, LEVEL_WEIGHT, LEVEL_BIAS, "logits"))
        tensors = lay_out(info, head)
        inputs = [_declare(name, [classes, *tensor.shape[1:]]) for name, tensor in tensors.items()]
    else:
        names = {name: name for name in head.tensors}
        inputs = _add_logits(model, info, head, PREFIX, "logits", names)
    graph.output.append(_declare("logits", ["batch", classes]))
    for name, tensor in tensors.items():
        array = np.asarray(tensor)
        graph.initializer.append(_constant(name, np.atleast_1d(array) if swappable else array))
    if swappable:
        used = {name for node in graph.node if node.name.startswith(PREFIX) for name in node.input}
        graph.input.extend(_at_least_1d(value) for value in inputs if value.name in used)
    if info.probabilities:
        _add_probabilities(model, head, PREFIX, "logits", "probabilities", swappable=swappable)
        graph.output.append(_declare("probabilities", ["batch", classes]))


def _add_many_heads(model: onnx.ModelProto, info: ModelInfo, heads: Heads) -> None:
    """Add linear heads as rows of one matrix, and the others one by one.

    Heads over levels are the rows of a second matrix.
    """
    graph = model.graph
    over_levels = {name: head for name, head in heads.items() if head.levels}
    if over_levels:
        _add_heads_over_levels(graph, info, over_levels)
    linear = {name: head for name, head in heads.items() if is_linear(head, info.features)}
    if linear:
        _add_linear_heads(graph, info, {logits_name(name): h for name, h in linear.items()})
    for name, head in heads.items():
        prefix, logits = f"{PREFIX}{name}/", logits_name(name)
        if name not in linear and name not in over_levels:
            names = {tensor: f"{prefix}{tensor}" for tensor in head.tensors}
            _add_logits(model, info, head, prefix, logits, names)
            graph.initializer.extend(_constant(names[n], t) for n, t in head.tensors.items())
        graph.output.append(_declare(logits, ["batch", head.num_classes]))
        if info.probabilities:
            output = probabilities_name(name)
            _add_probabilities(model, head, prefix, logits, output, swappable=False)
            graph.output.append(_declare(output, ["batch", head.num_classes]))


def _add_linear_heads(graph: onnx.GraphProto, info: ModelInfo, heads: Heads) -> None:
    ((feature, dims),) = info.features.items()
    matrices = [weight_and_bias(head) for head in heads.values()]
    graph.initializer.append(_constant(_WEIGHT, np.concatenate([weight for weight, _ in matrices])))
    graph.initializer.append(_constant(_BIAS, np.concatenate([bias for _, bias in matrices])))
    row = feature
    if len(dims) != 2:
        row = f"{PREFIX}row"
        graph.node.append(helper.make_node("Flatten", [feature], [row], name=row, axis=1))
    stack = f"{PREFIX}stack"
    graph.node.append(
        helper.make_node("Gemm", [row, _WEIGHT, _BIAS], [stack], name=stack, transB=1)
    )
    _split(graph, stack, f"{PREFIX}sizes", f"{PREFIX}split", heads)


def _add_heads_over_levels(graph: onnx.GraphProto, info: ModelInfo, heads: Heads) -> None:
    laid = [lay_out(info, head) for head in heads.values()]
    for stacked, name in ((_ROW_WEIGHT, LEVEL_WEIGHT), (_ROW_BIAS, LEVEL_BIAS)):
        array = np.concatenate([tensors[name] for tensors in laid])
        graph.initializer.append(_constant(stacked, array))
    stack = f"{PREFIX}level_stack"
    graph.node.extend(_row_nodes(info, _ROW_WEIGHT, _ROW_BIAS, stack))
    outputs = {logits_name(name): head for name, head in heads.items()}
    _split(graph, stack, f"{PREFIX}level_sizes", f"{PREFIX}level_split", outputs)


def _row_nodes(info: ModelInfo, weight: str, bias: str, output: str) -> list[onnx.NodeProto]:
    """Return the nodes that compute the row of ``level_row`` and its product with a matrix."""
    nodes, parts = [], []
    row, product = f"{PREFIX}level_row", f"{PREFIX}level_product"
    for name in pooled_branches(info):
        part = name
        if len(info.features[name]) != 2:
            part = f"{row}_{name}"
            nodes.append(helper.make_node("Flatten", [name], [part], name=part, axis=1))
        parts.append(part)
    parts += map(level_output, info.levels)
    nodes.append(helper.make_node("Concat", parts, [row], name=row, axis=1))
    inputs = [row, weight, bias]
    return [*nodes, helper.make_node("Gemm", inputs, [output], name=product, transB=1)]


def _split(graph: onnx.GraphProto, stack: str, sizes: str, name: str, heads: Heads) -> None:
    """Split stacked logits into the outputs of heads."""
    numbers = np.array([head.num_classes for head in heads.values()], np.int64)
    graph.initializer.append(_constant(sizes, numbers))
    graph.node.append(helper.make_node("Split", [stack, sizes], list(heads), name=name, axis=1))


_WEIGHT, _BIAS = f"{PREFIX}weight", f"{PREFIX}bias"
_ROW_WEIGHT, _ROW_BIAS = f"{PREFIX}level_weight", f"{PREFIX}level_bias"


def _read_heads(info: ModelInfo, tensors: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, Head]:
    """Read heads from the initializers that ``_add_one_head`` or ``_add_many_heads`` added."""
    heads: dict[str, Head] = {}
    at = at_levels = 0
    for head in info.heads:
        shapes = head.tensors
        if info.form == "multi" and head.levels:
            rows = slice(at_levels, at_levels + head.num_classes)
            at_levels += head.num_classes
            own = take_back(info, head, tensors[_ROW_WEIGHT][rows], tensors[_ROW_BIAS][rows])
        elif reads_row(info, head):
            own = take_back(info, head, tensors[LEVEL_WEIGHT], tensors[LEVEL_BIAS])
        elif info.form != "multi":
            own = {name: tensors[name].reshape(shape) for name, shape in shapes.items()}
        elif f"{PREFIX}{head.name}/{next(iter(shapes))}" in tensors:
            own = {name: tensors[f"{PREFIX}{head.name}/{name}"] for name in shapes}
        else:
            rows = slice(at, at + head.num_classes)
            at += head.num_classes
            own = {
                name: tensors[_WEIGHT if name.endswith("weight") else _BIAS][rows].reshape(shape)
                for name, shape in shapes.items()
            }
        if head.checksum and head.checksum != checksum_of_head(head.description, own):
            raise ExportError(
                f"the head {head.name!r} in the model was changed after the export: get the file "
                "again, or export it again"
            )
        heads[head.name] = Head.from_json(own, dict(head.description))
    return heads


def _add_logits(
    model: onnx.ModelProto,
    info: ModelInfo,
    head: Head,
    prefix: str,
    output: str,
    tensors: Mapping[str, str],
) -> list[onnx.ValueInfoProto]:
    """Add the nodes of a head's classifier model; return that model's inputs for tensors."""
    classifier = classifier_model(head, info.features, decode_model(info.classifier))
    names = {**{name: name for name in info.features}, **tensors, "logits": output}

    def rename(values: Iterable[str]) -> list[str]:
        return [names.get(value, f"{prefix}{value}") if value else "" for value in values]

    for number, node in enumerate(classifier.graph.node):
        added = model.graph.node.add()
        added.CopyFrom(node)
        added.name = f"{prefix}{number}_{node.op_type}"
        added.input[:], added.output[:] = rename(node.input), rename(node.output)
    for constant in classifier.graph.initializer:
        added_constant = model.graph.initializer.add()
        added_constant.CopyFrom(constant)
        added_constant.name = f"{prefix}{constant.name}"
    return [value for value in classifier.graph.input if value.name not in info.features]


def _add_probabilities(
    model: onnx.ModelProto, head: Head, prefix: str, logits: str, output: str, *, swappable: bool
) -> None:
    scaled, temperature = logits, TEMPERATURE if swappable else f"{prefix}{TEMPERATURE}"
    if swappable or head.temperature != 1.0:
        scaled = f"{prefix}scaled"
        # ONNX Runtime's adapter files cannot hold scalars.
        value = np.array([head.temperature] if swappable else head.temperature, np.float32)
        model.graph.initializer.append(numpy_helper.from_array(value, temperature))
        model.graph.node.append(
            helper.make_node("Div", [logits, temperature], [scaled], name=scaled)
        )
    if swappable:
        model.graph.input.append(_declare(temperature, [1]))
    name, task = f"{prefix}probabilities", get_task(head.task)
    model.graph.node.append(
        helper.make_node(task.onnx_operator, [scaled], [output], name=name, **task.onnx_attributes)
    )


def _at_least_1d(value: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    kind = value.type.tensor_type.elem_type
    return helper.make_tensor_value_info(value.name, kind, declared_shape(value) or [1])


def _constant(name: str, tensor: np.ndarray[Any, Any]) -> TensorProto:
    array = np.asarray(tensor)
    if array.dtype.kind != "i":
        array = array.astype(np.float32)  # also heads in half precision
    return numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)


def _declare(name: str, dims: Sequence[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(dims))


def feature_shapes(backbone: onnx.ModelProto) -> dict[str, list[int | str]]:
    """Return the shapes of a backbone's outputs, by name."""
    return {value.name: declared_shape(value) for value in backbone.graph.output}
