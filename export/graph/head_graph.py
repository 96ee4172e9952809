"""What a head computes, as a small ONNX graph that fits any number of classes. No torch.

A template is a model whose inputs are the features and the head's tensors, under the names that
the head file gives them, and whose output is ``logits``. The forms put its nodes behind a backbone,
with the tensors as constants, as overridable initializers, or once per head.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from headkit.adapters.errors import ExportError
from headkit.adapters.heads.head import Head

CLASSES = "num_classes"
"""Name of the dynamic dimension that counts classes."""
Shape = Sequence[int | str]


def template_of(
    head: Head, features: Mapping[str, Shape], stored: onnx.ModelProto | None
) -> onnx.ModelProto:
    """Return what ``head`` computes on ``features``.

    Args:
        head: of any kind.
        features: names and shapes of what the backbone gives.
        stored: the classifier that torch converted, where it is not linear.

    Raises:
        ExportError: the head is of a kind that needs ``stored``, and there is none that fits it.
    """
    built = _built(head, features)
    if built is not None:
        return built
    if stored is None or stored.graph.name != head.kind:
        holds = "linear, mlp and cosine" if len(features) == 1 else "no other"
        holds = holds if stored is None else f"{stored.graph.name!r} and {holds}"
        raise ExportError(
            f"the head is of the kind {head.kind!r}, the model takes {holds}: "
            "export the head with its backbone instead"
        )
    expected = {i.name: dims_of(i) for i in stored.graph.input if i.name not in features}
    found = {name: list(tensor.shape) for name, tensor in head.tensors.items()}
    fitting = {
        name: [head.num_classes if isinstance(dim, str) else dim for dim in dims]
        for name, dims in expected.items()
    }
    if fitting != found:
        raise ExportError(
            f"the head's tensors are {found}, the model's classifier takes {fitting}: "
            "export the head with its backbone instead"
        )
    return stored


def is_linear(head: Head, features: Mapping[str, Shape]) -> bool:
    """Tell whether logits are ``features @ weight.T + bias``, whatever the head's kind is called.

    So it is for ``linear`` heads and for an ``nn.Linear`` or a convolution of one pixel that the
    architecture has on its own; a head of kind ``own`` that does more has further tensors.
    """
    ranks = [np.ndim(tensor) for name, tensor in head.tensors.items() if name.endswith("weight")]
    names = {name.rpartition(".")[2] for name in head.tensors}
    plain = ranks in ([2], [4]) and len(names) == len(head.tensors) and names <= {"weight", "bias"}
    return head.kind in ("own", "linear") and len(features) == 1 and plain


def is_built(head: Head, features: Mapping[str, Shape]) -> bool:
    """Tell whether the head's template is built here; the others torch has to convert."""
    return is_linear(head, features) or (len(features) == 1 and head.kind in ("mlp", "cosine"))


def matrix_of(head: Head) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return weight ``[num_classes, num_features]`` and bias ``[num_classes]`` of a linear head."""
    named = {name.rpartition(".")[2]: np.asarray(t) for name, t in head.tensors.items()}
    weight = named["weight"].reshape(head.num_classes, -1).astype(np.float32)
    bias = named.get("bias", np.zeros(head.num_classes)).astype(np.float32)
    return weight, bias


def dims_of(value: onnx.ValueInfoProto) -> list[int | str]:
    """Return the shape that a graph declares: numbers, and names of dynamic dimensions."""
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


def to_text(template: onnx.ModelProto | None) -> str:
    """Return a template as ASCII text for ``metadata_props``; empty if there is none."""
    return "" if template is None else base64.b64encode(template.SerializeToString()).decode()


def from_text(text: str) -> onnx.ModelProto | None:
    """Read ``to_text`` back.

    Raises:
        ValueError: the text is damaged.
    """
    if not text:
        return None
    try:
        return onnx.load_from_string(base64.b64decode(text, validate=True))
    except Exception as error:  # protobuf's DecodeError is no ValueError
        raise ValueError(f"damaged classifier: {error}") from error


def _built(head: Head, features: Mapping[str, Shape]) -> onnx.ModelProto | None:
    """Build the kinds that act on one row of features; others come from torch."""
    kind = "linear" if is_linear(head, features) else head.kind
    if not is_built(head, features):
        return None
    ((name, shape),) = features.items()
    path = next(iter(head.tensors)).rpartition(".")[0]
    hidden: tuple[str, ...] = ()
    if kind == "mlp":
        path = path.rpartition(".")[0]
        hidden = (f"{path}.fc1.weight", f"{path}.fc1.bias")
    made = [] if len(shape) == 2 else [helper.make_node("Flatten", [name], ["row"], axis=1)]
    made += _KINDS[kind](head, path, name if len(shape) == 2 else "row")
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)]
    for tensor_name, tensor in head.tensors.items():
        dims: list[int | str] = list(np.shape(tensor))
        if dims and tensor_name not in hidden:
            dims[0] = CLASSES
        inputs.append(helper.make_tensor_value_info(tensor_name, TensorProto.FLOAT, dims))
    constants = [numpy_helper.from_array(np.array([1], np.int64), "axis")]
    constants.append(numpy_helper.from_array(np.array(1e-12, np.float32), "tiny"))
    used = {name for node in made for name in node.input}
    graph = helper.make_graph(
        made,
        "classifier",
        inputs,
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
        [constant for constant in constants if constant.name in used],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


def _linear(head: Head, path: str, row: str) -> list[onnx.NodeProto]:
    weight, bias = f"{path}.weight", f"{path}.bias"
    flat = np.ndim(head.tensors[weight]) == 2
    made = [] if flat else [helper.make_node("Flatten", [weight], ["matrix"], axis=1)]
    inputs = [row, weight if flat else "matrix", *([bias] if bias in head.tensors else [])]
    return [*made, helper.make_node("Gemm", inputs, ["logits"], transB=1)]


def _mlp(_head: Head, path: str, row: str) -> list[onnx.NodeProto]:
    first, second = ([f"{path}.{layer}.{n}" for n in ("weight", "bias")] for layer in _LAYERS)
    return [
        helper.make_node("Gemm", [row, *first], ["hidden"], transB=1),
        helper.make_node("Gelu", ["hidden"], ["active"]),
        helper.make_node("Gemm", ["active", *second], ["logits"], transB=1),
    ]


def _cosine(_head: Head, path: str, row: str) -> list[onnx.NodeProto]:
    made = []
    for name, value in (("row_unit", row), ("weight_unit", f"{path}.weight")):
        made += [
            helper.make_node("ReduceL2", [value, "axis"], [f"{name}_norm"], keepdims=1),
            helper.make_node("Max", [f"{name}_norm", "tiny"], [f"{name}_length"]),
            helper.make_node("Div", [value, f"{name}_length"], [name]),
        ]
    return [
        *made,
        helper.make_node("Gemm", ["row_unit", "weight_unit"], ["cosine"], transB=1),
        helper.make_node("Mul", ["cosine", f"{path}.scale"], ["logits"]),
    ]


_LAYERS = ("fc1", "fc2")
_KINDS: dict[str, Callable[[Head, str, str], list[onnx.NodeProto]]] = {
    "linear": _linear,
    "mlp": _mlp,
    "cosine": _cosine,
}
