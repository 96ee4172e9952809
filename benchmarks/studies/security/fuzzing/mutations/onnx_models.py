"""Change ONNX models: metadata, nodes, attributes, tensors, inputs, outputs, operator sets."""

from __future__ import annotations

import base64
from collections.abc import Callable
from random import Random
from typing import Any

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper

from headkit.adapters.errors import HeadkitError
from headkit.export.graph.checksums import CHECKSUMS, checksum_of_file
from headkit.export.graph.metadata import ModelInfo

from .byte_edits import edit_bytes
from .json_values import STRANGE_TEXTS, edit_json
from .onnx_bombs import OPERATORS, add_bomb

_JSON = ("backbone", "features", "heads", "cost", "versions", "requires")
_NAMES = (
    *("requires", "pixels", "pretrained_cfg", "cache_dir", "label_names", "temperature", "task"),
    *("num_classes", "tensors", "id", "name", "head", "kind", "features", "checksum"),
)
_SIZES = (0, 1, -1, 2, 3, 7, 64, 1000, 65_536, 2**31 - 1, 2**31, 2**40, 2**62, 2**63 - 1, -(2**63))
_LOCATIONS = (
    *("weights.data", "missing.data", "../outside.data", "/etc/passwd", "/dev/zero", "", "."),
    *("a/../weights.data", "link.data", "weights.data\0x", "pipe", "\u202e.data", "x" * 5000),
)
_TYPES = (*range(27), 99, 2**31 - 1)
Edit = Callable[[onnx.ModelProto, Random], None]


def edit_model(content: bytes, random: Random) -> bytes:
    """Return an ONNX file with one to three changes."""
    if random.random() < 0.06:
        return edit_bytes(content, random)
    try:
        model = onnx.load_from_string(content)
    except DecodeError:  # a classifier in the metadata that was changed before
        return edit_bytes(content, random)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        random.choice(_EDITS)(model, random)
    content = model.SerializeToString()
    if random.random() < 0.7:
        content = _with_checksums(model, content)
    if random.random() < 0.03:
        # Protobuf merges two occurrences of a message.
        other = onnx.ModelProto()
        other.graph.CopyFrom(model.graph)
        _edit_node(other, random)
        del other.graph.initializer[:]
        content += other.SerializeToString()
    return content


def _with_checksums(model: onnx.ModelProto, content: bytes) -> bytes:
    """Return the model with the checksum of its changed backbone, if it had one."""
    props = {prop.key: prop.value for prop in model.metadata_props}
    try:
        info = ModelInfo.from_props(props, "the model")
        checksum = checksum_of_file(content, info.is_of_head)
    except (HeadkitError, ValueError):
        return content
    if not info.checksum:
        return content
    for prop in model.metadata_props:
        if prop.key == CHECKSUMS:
            prop.value = prop.value.replace(info.checksum, checksum)
    changed: bytes = model.SerializeToString()
    return changed


def _edit_metadata(model: onnx.ModelProto, random: Random) -> None:
    if not model.metadata_props:
        return
    prop = random.choice(model.metadata_props)
    action = random.randrange(10)
    if action == 0:
        model.metadata_props.remove(prop)
    elif action == 1:
        prop.key = random.choice((*_JSON, "format", "version", "form", prop.key.upper()))
    elif action == 2:
        added = model.metadata_props.add()
        added.key, added.value = random.choice((*_NAMES, prop.key)), prop.value
    elif prop.key == "classifier" and prop.value:
        inner = edit_model(base64.b64decode(f"{prop.value}==="), random)
        prop.value = base64.b64encode(inner).decode()
    elif prop.key in _JSON:
        try:
            text = edit_json(prop.value, random, _NAMES)
        except (ValueError, RecursionError):  # it was changed before
            return
        prop.value = text.encode("utf-8", "replace").decode()
    else:
        choices = ("1", "2", "0", "merged", "swappable", "multi", "backbone", "fp16", "int8")
        text = random.choice((*choices, *STRANGE_TEXTS))
        prop.value = text.encode("utf-8", "replace").decode()


def _edit_node(model: onnx.ModelProto, random: Random) -> None:
    graph = model.graph
    if not graph.node:
        return
    node = random.choice(graph.node)
    action = random.randrange(9)
    if action == 0:
        node.op_type = random.choice((*OPERATORS, random.choice(graph.node).op_type, "", "Nothing"))
    elif action == 1:
        node.domain = random.choice(
            ("", "ai.onnx", "com.microsoft", "ai.onnx.ml", "local", "x" * 99)
        )
    elif action == 2:
        graph.node.remove(node)
    elif action == 3:
        graph.node.add().CopyFrom(node)
    elif action == 4:
        nodes = [onnx.NodeProto.FromString(one.SerializeToString()) for one in graph.node]
        random.shuffle(nodes)
        del graph.node[:]
        graph.node.extend(nodes)
    else:
        names = [name for one in graph.node for name in (*one.input, *one.output)]
        name = random.choice((*names, *names, "", "logits", "pixel_values", "nothing"))
        edges = random.choice((node.input, node.input, node.output))
        if edges and action < 8:
            edges[random.randrange(len(edges))] = name
        else:
            edges.append(name)


def _edit_attribute(model: onnx.ModelProto, random: Random) -> None:
    nodes = [node for node in model.graph.node if node.attribute]
    if not nodes:
        return
    node = random.choice(nodes)
    attribute = random.choice(node.attribute)
    action = random.randrange(6)
    if action == 0:
        node.attribute.remove(attribute)
    elif action == 1:
        attribute.name = random.choice(("axis", "axes", "pads", "group", "perm", "to", "x", ""))
    elif action == 2:
        value: Any = random.choice((random.choice(_SIZES), 1.5, "text", [1, 2], [0.5], ["a"]))
        added = helper.make_attribute(random.choice(_ATTRIBUTES), value)
        node.attribute.append(added)
    elif attribute.ints and action == 3:
        attribute.ints.append(random.choice(_SIZES))
    elif attribute.ints:
        at = random.randrange(len(attribute.ints))
        attribute.ints[at] = random.choice((*_SIZES, 5000, 20_000))
    elif attribute.type == onnx.AttributeProto.FLOAT:
        attribute.f = random.choice((float("nan"), float("inf"), 0.0, -1.0, 1e30))
    elif attribute.type == onnx.AttributeProto.TENSOR:
        _change_tensor(attribute.t, random)
    elif attribute.type == onnx.AttributeProto.STRING:
        attribute.s = random.choice((b"", b"\xff\xfe", b"SAME_UPPER", b"VALID", b"x" * 9999))
    else:
        attribute.i = random.choice(_SIZES)


def _edit_tensor(model: onnx.ModelProto, random: Random) -> None:
    tensors = model.graph.initializer
    if not tensors:
        return
    small = [one for one in tensors if one.data_type == TensorProto.INT64]
    _change_tensor(random.choice(random.choice((tensors, small or tensors))), random)
    if random.random() < 0.1:
        tensors.add().CopyFrom(random.choice(tensors))
    if random.random() < 0.1:
        tensors.remove(random.choice(tensors))


def _change_tensor(tensor: onnx.TensorProto, random: Random) -> None:
    action = random.randrange(8)
    if action == 0 and tensor.dims:
        tensor.dims[random.randrange(len(tensor.dims))] = random.choice(_SIZES)
    elif action == 1:
        tensor.data_type = random.choice(_TYPES)
    elif action == 2:
        tensor.raw_data = edit_bytes(tensor.raw_data, random)
    elif action == 3:
        tensor.name = random.choice((*STRANGE_TEXTS[:3], "logits", "pixel_values", "head/x"))
    elif action == 4:
        tensor.dims.append(random.choice(_SIZES))
    elif action == 5:
        tensor.data_location = TensorProto.EXTERNAL
        if random.random() < 0.8:
            tensor.ClearField("raw_data")
        for key, values in (
            ("location", _LOCATIONS),
            ("offset", ("0", "4", "-1", "99999999999", "x", str(2**64))),
            ("length", ("0", "16", "-1", str(len(tensor.raw_data)), "99999999999999999999")),
        ):
            if random.random() < 0.8:
                tensor.external_data.add(key=key, value=random.choice(values))
    elif tensor.data_type == TensorProto.INT64 and len(tensor.raw_data) >= 8:
        at = random.randrange(len(tensor.raw_data) // 8) * 8
        number = random.choice((*_SIZES, 20_000, 1_000_000)).to_bytes(8, "little", signed=True)
        tensor.raw_data = tensor.raw_data[:at] + number + tensor.raw_data[at + 8 :]
    else:
        numbers = (float("nan"), float("inf"), 1e38)
        tensor.ClearField("raw_data")
        tensor.float_data.extend(random.choice(numbers) for _ in range(random.choice((1, 9))))


def _edit_values(model: onnx.ModelProto, random: Random) -> None:
    graph = model.graph
    values = random.choice((graph.input, graph.input, graph.output, graph.value_info))
    if not values:
        values.add(name=random.choice(("logits", "pixel_values", "x")))
        return
    value = random.choice(values)
    dims = value.type.tensor_type.shape.dim
    action = random.randrange(8)
    if action == 0:
        values.remove(value)
    elif action == 1:
        value.name = random.choice(("logits", "pixel_values", "features", "", "x", "image"))
    elif action == 2:
        value.type.tensor_type.elem_type = random.choice(_TYPES)
    elif action == 3:
        values.add().CopyFrom(value)
    elif action == 4:
        value.type.sequence_type.elem_type.tensor_type.elem_type = 1
    elif dims and action == 5:
        dims[random.randrange(len(dims))].dim_param = random.choice(("batch", "n", "\0", "x" * 999))
    elif dims:
        dims[random.randrange(len(dims))].dim_value = random.choice((*_SIZES, 16_384))
    else:
        dims.add(dim_value=random.choice(_SIZES))


def _edit_versions(model: onnx.ModelProto, random: Random) -> None:
    action = random.randrange(5)
    if action == 0:
        model.ir_version = random.choice((0, 1, 3, 7, 8, 10, 11, 14, 99, 2**40, -1))
    elif action == 1:
        domain = random.choice(("", "ai.onnx", "com.microsoft", "local", "ai.onnx.ml"))
        version = random.choice((0, 1, 7, 13, 17, 18, 20, 21, 99, 2**40, -1))
        model.opset_import.append(helper.make_opsetid(domain, version))
    elif action == 2 and model.opset_import:
        random.choice(model.opset_import).version = random.choice((0, 1, 9, 13, 21, 99, 2**62, -1))
    elif action == 3:
        del model.opset_import[:]
    else:
        model.producer_name = random.choice(STRANGE_TEXTS[:3])


_ATTRIBUTES = (
    "axis",
    "axes",
    "pads",
    "group",
    "mode",
    "keepdims",
    "to",
    "strides",
    "dilations",
    "x",
)
_EDITS: tuple[Edit, ...] = (
    *(_edit_metadata,) * 6,
    *(_edit_node,) * 3,
    *(_edit_attribute,) * 3,
    *(_edit_tensor,) * 3,
    *(_edit_values,) * 2,
    _edit_versions,
    *(add_bomb,) * 3,
)
