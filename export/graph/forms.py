"""Put heads behind an ONNX backbone, take them out again, and put others there. No torch.

Everything that belongs to heads carries the prefix ``head/``, except the tensors of the only head
of a model, which keep the names that the head file gives them. What remains is the backbone.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from headkit.adapters.errors import ExportError
from headkit.adapters.heads.head import Head
from headkit.adapters.heads.tasks import task_named

from .head_graph import dims_of, from_text, is_linear, matrix_of, template_of
from .metadata import PREFIX, TEMPERATURE, HeadInfo, ModelInfo, logits_name, probabilities_name

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

Heads = Mapping[str, Head]
"""By name; the only head of a merged or swappable model has an empty one."""


def put_heads(
    model: onnx.ModelProto,
    info: ModelInfo,
    heads: Heads,
    known: Mapping[str, HeadInfo] | None = None,
) -> ModelInfo:
    """Put ``heads`` behind a backbone, in place, and write its metadata.

    Args:
        model: a backbone, of which the outputs are the features.
        info: of the model as it will be; its heads are replaced by a description of these.
        heads: of the number and names that the form asks for.
        known: descriptions of those that came out of a model.

    Returns:
        The description with these heads.

    Raises:
        ExportError: the form takes other heads, or a head does not fit the backbone.
    """
    check_heads(info.form, heads, probabilities=info.probabilities)
    graph = model.graph
    if info.form != "backbone":
        del graph.output[:]
    if info.form == "multi":
        _put_many(model, info, heads)
    else:
        for head in heads.values():
            _put_one(model, info, head)
    known = known or {}
    described = (known.get(name) or HeadInfo.from_head(head, name) for name, head in heads.items())
    info = info.with_heads(*described)
    describe(model, info)
    return info


def describe(model: onnx.ModelProto, info: ModelInfo) -> None:
    """Write what a model says of itself, in place."""
    del model.metadata_props[:]
    helper.set_model_props(model, info.to_props())


def take_heads(model: onnx.ModelProto, info: ModelInfo) -> dict[str, Head]:
    """Take all heads out of an exported model, in place: the backbone stays.

    Raises:
        ExportError: the model is not what its metadata says.
    """
    graph = model.graph
    single = {name for head in info.heads for name in head.tensors} | {TEMPERATURE}
    gone = {
        tensor.name: index
        for index, tensor in enumerate(graph.initializer)
        if tensor.name.startswith(PREFIX) or (info.form != "multi" and tensor.name in single)
    }
    tensors = {name: numpy_helper.to_array(graph.initializer[at]) for name, at in gone.items()}
    try:
        heads = _read(info, tensors)
    except (KeyError, ValueError) as error:
        raise ExportError(f"the model lacks tensors of its heads: {error}") from error
    for index in sorted(gone.values(), reverse=True):
        del graph.initializer[index]
    kept_inputs = [value for value in graph.input if value.name not in gone]
    kept_nodes = [node for node in graph.node if not node.name.startswith(PREFIX)]
    del graph.input[:], graph.node[:], graph.output[:]
    graph.input.extend(kept_inputs)
    graph.node.extend(kept_nodes)
    graph.output.extend(_value(name, dims) for name, dims in info.features.items())
    return heads


def put_preprocessing(model: onnx.ModelProto, preprocessing: onnx.ModelProto) -> None:
    """Let a model take raw images, in place, through what ``pixels.preprocessing_model`` built."""
    graph, first = model.graph, preprocessing.graph
    nodes = [*first.node, *graph.node]
    inputs = [*first.input, *(value for value in graph.input if value.name != "pixel_values")]
    nodes, inputs = copy.deepcopy(nodes), copy.deepcopy(inputs)
    del graph.node[:], graph.input[:]
    graph.node.extend(nodes)
    graph.input.extend(inputs)
    graph.initializer.extend(first.initializer)


def head_model(info: ModelInfo, head: Head, opset: int) -> onnx.ModelProto:
    """Return a small model that is ``head`` alone: from features to logits."""
    graph = helper.make_graph(
        [], "head", [_value(name, dims) for name, dims in info.features.items()], []
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 10
    _add_logits(model, info, head, PREFIX, "logits", {name: name for name in head.tensors})
    model.graph.output.append(_value("logits", ["batch", head.num_classes]))
    for name, tensor in head.tensors.items():
        model.graph.initializer.append(_constant(name, tensor))
    return model


def swappable_inputs(model: onnx.ModelProto) -> dict[str, list[int | str]]:
    """Return names and shapes of the initializers that a call may override."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return {v.name: dims_of(v) for v in model.graph.input if v.name in constants}


def opset_of(model: onnx.ModelProto) -> int:
    """Return the version of the default operator set."""
    return max(int(o.version) for o in model.opset_import if o.domain in ("", "ai.onnx"))


def check_heads(form: str, heads: Heads, *, probabilities: bool) -> None:
    """Tell at once whether a form takes these heads.

    Raises:
        ExportError: it takes another number, a name cannot be part of an output's, or a head for
            regression would need probabilities.
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
                f"a head is called {name!r}, expected letters, digits, '.', '_' and '-'"
            )
    for head in heads.values():
        if probabilities and not task_named(head.task).has_classes:
            raise ExportError(f"a head for {head.task} has no probabilities")


def _put_one(model: onnx.ModelProto, info: ModelInfo, head: Head) -> None:
    """The only head: its tensors keep their names, as constants or as overridable initializers."""
    graph, swappable = model.graph, info.form == "swappable"
    inputs = _add_logits(model, info, head, PREFIX, "logits", {name: name for name in head.tensors})
    classes = "num_classes" if swappable else head.num_classes
    graph.output.append(_value("logits", ["batch", classes]))
    for name, tensor in head.tensors.items():
        array = np.asarray(tensor)
        graph.initializer.append(_constant(name, np.atleast_1d(array) if swappable else array))
    if swappable:
        used = {name for node in graph.node if node.name.startswith(PREFIX) for name in node.input}
        graph.input.extend(_at_least_1d(value) for value in inputs if value.name in used)
    if info.probabilities:
        _add_probabilities(model, head, PREFIX, "logits", "probabilities", swappable=swappable)
        graph.output.append(_value("probabilities", ["batch", classes]))


def _put_many(model: onnx.ModelProto, info: ModelInfo, heads: Heads) -> None:
    """Linear heads as rows of one matrix, the others one by one."""
    graph = model.graph
    stacked = {name: head for name, head in heads.items() if is_linear(head, info.features)}
    if stacked:
        _stack(graph, info, {logits_name(name): head for name, head in stacked.items()})
    for name, head in heads.items():
        prefix, logits, made = f"{PREFIX}{name}/", logits_name(name), probabilities_name(name)
        if name not in stacked:
            names = {tensor: f"{prefix}{tensor}" for tensor in head.tensors}
            _add_logits(model, info, head, prefix, logits, names)
            graph.initializer.extend(_constant(names[n], t) for n, t in head.tensors.items())
        graph.output.append(_value(logits, ["batch", head.num_classes]))
        if info.probabilities:
            _add_probabilities(model, head, prefix, logits, made, swappable=False)
            graph.output.append(_value(made, ["batch", head.num_classes]))


def _stack(graph: onnx.GraphProto, info: ModelInfo, heads: Heads) -> None:
    ((feature, dims),) = info.features.items()
    matrices = [matrix_of(head) for head in heads.values()]
    sizes = np.array([head.num_classes for head in heads.values()], np.int64)
    graph.initializer.append(_constant(_WEIGHT, np.concatenate([weight for weight, _ in matrices])))
    graph.initializer.append(_constant(_BIAS, np.concatenate([bias for _, bias in matrices])))
    graph.initializer.append(_constant(f"{PREFIX}sizes", sizes))
    row = feature
    if len(dims) != 2:
        row = f"{PREFIX}row"
        graph.node.append(helper.make_node("Flatten", [feature], [row], name=row, axis=1))
    stack = f"{PREFIX}stack"
    graph.node.append(
        helper.make_node("Gemm", [row, _WEIGHT, _BIAS], [stack], name=stack, transB=1)
    )
    split = f"{PREFIX}split"
    graph.node.append(
        helper.make_node("Split", [stack, f"{PREFIX}sizes"], list(heads), name=split, axis=1)
    )


_WEIGHT, _BIAS = f"{PREFIX}weight", f"{PREFIX}bias"


def _read(info: ModelInfo, tensors: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, Head]:
    """Heads from initializers, as ``_put_one`` and ``_put_many`` left them there."""
    heads: dict[str, Head] = {}
    at = 0
    for one in info.heads:
        names = one.tensors
        if info.form != "multi":
            held = {name: tensors[name].reshape(shape) for name, shape in names.items()}
        elif f"{PREFIX}{one.name}/{next(iter(names))}" in tensors:
            held = {name: tensors[f"{PREFIX}{one.name}/{name}"] for name in names}
        else:
            rows = slice(at, at + one.num_classes)
            at += one.num_classes
            held = {
                name: tensors[_WEIGHT if name.endswith("weight") else _BIAS][rows].reshape(shape)
                for name, shape in names.items()
            }
        heads[one.name] = Head.from_json(held, dict(one.described))
    return heads


def _add_logits(
    model: onnx.ModelProto,
    info: ModelInfo,
    head: Head,
    prefix: str,
    output: str,
    tensors: Mapping[str, str],
) -> list[onnx.ValueInfoProto]:
    """Add the nodes of a head's template; return the template's inputs for tensors."""
    template = template_of(head, info.features, from_text(info.classifier))
    names = {**{name: name for name in info.features}, **tensors, "logits": output}

    def renamed(values: Iterable[str]) -> list[str]:
        return [names.get(value, f"{prefix}{value}") if value else "" for value in values]

    for number, node in enumerate(template.graph.node):
        added = model.graph.node.add()
        added.CopyFrom(node)
        added.name = f"{prefix}{number}_{node.op_type}"
        added.input[:], added.output[:] = renamed(node.input), renamed(node.output)
    for constant in template.graph.initializer:
        added_constant = model.graph.initializer.add()
        added_constant.CopyFrom(constant)
        added_constant.name = f"{prefix}{constant.name}"
    return [value for value in template.graph.input if value.name not in info.features]


def _add_probabilities(
    model: onnx.ModelProto, head: Head, prefix: str, logits: str, output: str, *, swappable: bool
) -> None:
    scaled, temperature = logits, TEMPERATURE if swappable else f"{prefix}{TEMPERATURE}"
    if swappable or head.temperature != 1.0:
        scaled = f"{prefix}scaled"
        # ONNX Runtime's adapter files hold no scalars.
        value = np.array([head.temperature] if swappable else head.temperature, np.float32)
        model.graph.initializer.append(numpy_helper.from_array(value, temperature))
        model.graph.node.append(
            helper.make_node("Div", [logits, temperature], [scaled], name=scaled)
        )
    if swappable:
        model.graph.input.append(_value(temperature, [1]))
    name, task = f"{prefix}probabilities", task_named(head.task)
    model.graph.node.append(
        helper.make_node(task.onnx_operator, [scaled], [output], name=name, **task.onnx_attributes)
    )


def _at_least_1d(value: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    kind = value.type.tensor_type.elem_type
    return helper.make_tensor_value_info(value.name, kind, dims_of(value) or [1])


def _constant(name: str, tensor: np.ndarray[Any, Any]) -> TensorProto:
    array = np.asarray(tensor)
    if array.dtype.kind != "i":
        array = array.astype(np.float32)  # heads in half precision too
    return numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)


def _value(name: str, dims: Sequence[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(dims))


def features_of(backbone: onnx.ModelProto) -> dict[str, list[int | str]]:
    """Return names and shapes of what a backbone gives."""
    return {value.name: dims_of(value) for value in backbone.graph.output}
