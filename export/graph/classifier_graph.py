"""The ONNX graph of one classifier, for any number of classes. No torch.

A classifier model has the features and the head's tensors as inputs, under their names in the head
file, and the output ``logits``. ``heads_in_graph`` adds its nodes to a backbone.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from headkit.adapters.errors import ExportError
from headkit.adapters.heads.head import Head

from .linear import is_linear

CLASSES = "num_classes"
"""Name of the dynamic dimension whose size is the number of classes."""
Shape = Sequence[int | str]


def classifier_model(
    head: Head, features: Mapping[str, Shape], converted: onnx.ModelProto | None
) -> onnx.ModelProto:
    """Return the classifier model of a head.

    Args:
        head: A head of any kind.
        features: Shapes of the backbone's outputs by name.
        converted: The classifier that torch converted; None if it is linear.

    Raises:
        ExportError: The head needs a converted classifier, and ``converted`` does not fit it.
    """
    built = _build(head, features)
    if built is not None:
        return built
    if converted is None or converted.graph.name != head.kind:
        accepted = ["linear", "mlp", "cosine"] if len(features) == 1 else []
        accepted += [] if converted is None else [converted.graph.name]
        kinds = ", ".join(accepted) or "none"
        raise ExportError(
            f"this model cannot take a head of kind {head.kind!r} (it takes {kinds}): "
            "export the head with its backbone instead"
        )
    expected = {i.name: declared_shape(i) for i in converted.graph.input if i.name not in features}
    shapes = {name: list(tensor.shape) for name, tensor in head.tensors.items()}
    fitting = {
        name: [head.num_classes if isinstance(dim, str) else dim for dim in dims]
        for name, dims in expected.items()
    }
    if fitting != shapes:
        raise ExportError(
            f"the head's tensors have the shapes {shapes}, but the model takes {fitting}: "
            "export the head with its backbone instead"
        )
    return converted


def can_build(head: Head, features: Collection[str]) -> bool:
    """Return True if this package can build the graph; otherwise torch converts the classifier."""
    if head.levels:
        return True
    return is_linear(head, features) or (len(features) == 1 and head.kind in ("mlp", "cosine"))


def declared_shape(value: onnx.ValueInfoProto) -> list[int | str]:
    """Return the shape that a graph declares; dynamic dimensions are names."""
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


def encode_model(model: onnx.ModelProto | None) -> str:
    """Return a classifier model as ASCII text for ``metadata_props``; empty for None."""
    return "" if model is None else base64.b64encode(model.SerializeToString()).decode()


def decode_model(text: str) -> onnx.ModelProto | None:
    """Return the model that ``encode_model`` encoded.

    Raises:
        ValueError: The text is damaged.
    """
    if not text:
        return None
    try:
        return onnx.load_from_string(base64.b64decode(text, validate=True))
    except Exception as error:  # protobuf's DecodeError is no ValueError
        raise ValueError(f"damaged classifier: {error}") from error


def _build(head: Head, features: Mapping[str, Shape]) -> onnx.ModelProto | None:
    """Build the kinds of classifier that read one row of features; return None for others."""
    kind = "linear" if is_linear(head, features) else head.kind
    if not can_build(head, features):
        return None
    ((name, shape),) = features.items()
    path = next(iter(head.tensors)).rpartition(".")[0]
    hidden: tuple[str, ...] = ()
    if kind == "mlp":
        path = path.rpartition(".")[0]
        hidden = (f"{path}.fc1.weight", f"{path}.fc1.bias")
    nodes = [] if len(shape) == 2 else [helper.make_node("Flatten", [name], ["row"], axis=1)]
    nodes += _KINDS[kind](head, path, name if len(shape) == 2 else "row")
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)]
    for tensor_name, tensor in head.tensors.items():
        dims: list[int | str] = list(np.shape(tensor))
        if dims and tensor_name not in hidden:
            dims[0] = CLASSES
        inputs.append(helper.make_tensor_value_info(tensor_name, TensorProto.FLOAT, dims))
    constants = [numpy_helper.from_array(np.array([1], np.int64), "axis")]
    constants.append(numpy_helper.from_array(np.array(1e-12, np.float32), "tiny"))
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "classifier",
        inputs,
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
        [constant for constant in constants if constant.name in used],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


def _linear(head: Head, path: str, row: str) -> list[onnx.NodeProto]:
    weight, bias = f"{path}.weight", f"{path}.bias"
    flat = np.ndim(head.tensors[weight]) == 2
    nodes = [] if flat else [helper.make_node("Flatten", [weight], ["matrix"], axis=1)]
    inputs = [row, weight if flat else "matrix", *([bias] if bias in head.tensors else [])]
    return [*nodes, helper.make_node("Gemm", inputs, ["logits"], transB=1)]


def _mlp(_head: Head, path: str, row: str) -> list[onnx.NodeProto]:
    first, second = ([f"{path}.{layer}.{n}" for n in ("weight", "bias")] for layer in _LAYERS)
    return [
        helper.make_node("Gemm", [row, *first], ["hidden"], transB=1),
        helper.make_node("Gelu", ["hidden"], ["active"]),
        helper.make_node("Gemm", ["active", *second], ["logits"], transB=1),
    ]


def _cosine(_head: Head, path: str, row: str) -> list[onnx.NodeProto]:
    nodes = []
    for name, value in (("row_unit", row), ("weight_unit", f"{path}.weight")):
        nodes += [
            helper.make_node("ReduceL2", [value, "axis"], [f"{name}_norm"], keepdims=1),
            helper.make_node("Max", [f"{name}_norm", "tiny"], [f"{name}_length"]),
            helper.make_node("Div", [value, f"{name}_length"], [name]),
        ]
    return [
        *nodes,
        helper.make_node("Gemm", ["row_unit", "weight_unit"], ["cosine"], transB=1),
        helper.make_node("Mul", ["cosine", f"{path}.scale"], ["logits"]),
    ]


_LAYERS = ("fc1", "fc2")
_KINDS: dict[str, Callable[[Head, str, str], list[onnx.NodeProto]]] = {
    "linear": _linear,
    "mlp": _mlp,
    "cosine": _cosine,
}
