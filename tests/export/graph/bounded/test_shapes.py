"""The shapes that headkit computes before a graph runs are those that ONNX Runtime computes."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from headkit.export.graph.bounded.check import compute_costs
from headkit.export.graph.bounded.decode import decode_graph
from tests.fixtures import MODELS

Array = np.ndarray[Any, Any]


def run_all(model: onnx.ModelProto, feed: dict[str, Array]) -> dict[str, tuple[int, ...]]:
    """The shape of every value of a graph, when it runs."""
    names = [name for node in model.graph.node for name in node.output if name]
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options)
    return dict(zip(names, (one.shape for one in session.run(names, feed)), strict=True))


def compute_all(model: onnx.ModelProto, at: int = 0) -> dict[str, tuple[int, ...]]:
    return list(compute_costs(decode_graph(model.SerializeToString())))[at][1]


@pytest.mark.parametrize("path", sorted(MODELS.glob("*.onnx")), ids=lambda path: path.stem)
def test_shapes_of_exported_models(path: Path) -> None:
    model = onnx.load(path)
    constants = {tensor.name for tensor in model.graph.initializer}
    (image,) = (value for value in model.graph.input if value.name not in constants)
    sizes = [dim.dim_value or 1 for dim in image.type.tensor_type.shape.dim]
    kind: type[np.generic] = np.float32
    if image.name == "image":
        sizes[1:3], kind = [480, 640], np.uint8
    computed = compute_all(model)
    actual = run_all(model, {image.name: np.ones(sizes, kind)})
    assert {name: computed[name] for name in actual} == actual


CONV = {"strides": [2, 1], "pads": [1, 0, 2, 3], "dilations": [1, 2]}
IMAGE, ROWS = (1, 4, 9, 10), (2, 5, 6)
ONE_NODE: dict[str, tuple[str, list[Any], dict[str, Any]]] = {
    "conv": ("Conv", [IMAGE, (6, 2, 3, 3)], {"group": 2, **CONV}),
    "conv same": ("Conv", [IMAGE, (6, 4, 3, 2)], {"auto_pad": "SAME_LOWER", "strides": [2, 3]}),
    "conv valid": ("Conv", [IMAGE, (6, 4, 3, 2)], {"auto_pad": "VALID"}),
    "transposed conv": (
        "ConvTranspose",
        [IMAGE, (4, 3, 2, 2)],
        {"strides": [2, 3], "pads": [0, 1, 1, 0], "output_padding": [1, 0], "group": 2},
    ),
    "max pool": ("MaxPool", [IMAGE], {"kernel_shape": [3, 2], "strides": [2, 2]}),
    "max pool up": (
        "MaxPool",
        [IMAGE],
        {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1, "pads": [1, 0, 0, 1]},
    ),
    "average pool up": (
        "AveragePool",
        [IMAGE],
        {"kernel_shape": [2, 2], "strides": [4, 4], "ceil_mode": 1, "pads": [0, 0, 1, 1]},
    ),
    "global pool": ("GlobalAveragePool", [IMAGE], {}),
    "matmul": ("MatMul", [(3, 1, 4, 5), (2, 5, 7)], {}),
    "matmul of a vector": ("MatMul", [(3, 4, 5), (5,)], {}),
    "gemm": ("Gemm", [(5, 4), (6, 5), (6,)], {"transA": 1, "transB": 1}),
    "pad": ("Pad", [IMAGE, np.array([0, 1, 2, -1, 0, 0, 3, 4])], {}),
    "pad some axes": ("Pad", [IMAGE, np.array([1, 2, 3, 4]), "", np.array([-1, 1])], {}),
    "resize by scales": (
        "Resize",
        [IMAGE, "", np.array([1, 1, 1.7, 0.4], np.float32)],
        {"mode": "nearest"},
    ),
    "resize to sizes": ("Resize", [IMAGE, "", "", np.array([3, 17])], {"axes": [2, 3]}),
    "slice": ("Slice", [ROWS, np.array([1, -5]), np.array([9, -1]), np.array([2, 1])], {}),
    "slice back": (
        "Slice",
        [ROWS, np.array([-1]), np.array([-999]), np.array([2]), np.array([-2])],
        {},
    ),
    "split": ("Split", [ROWS], {"axis": 2, "num_outputs": 4}),
    "split sizes": ("Split", [ROWS, np.array([1, 4])], {"axis": 1}),
    "gather": ("Gather", [ROWS, np.array([[0, 3], [1, 1]])], {"axis": -2}),
    "gather nd": ("GatherND", [ROWS, np.array([[[0, 1]], [[2, 3]]])], {"batch_dims": 1}),
    "gather elements": ("GatherElements", [ROWS, np.zeros((2, 1, 6), np.int64)], {"axis": 1}),
    "tile": ("Tile", [ROWS, np.array([1, 2, 3])], {}),
    "expand": ("Expand", [(5, 1), np.array([2, 1, 6])], {}),
    "range": ("Range", [np.array(2), np.array(-9), np.array(-4)], {}),
    "constant of shape": ("ConstantOfShape", [np.array([2, 0, 3])], {}),
    "top k": ("TopK", [ROWS, np.array([4])], {"axis": 1}),
    "reduce all": ("ReduceMean", [ROWS], {"keepdims": 0}),
    "reduce": ("ReduceSum", [ROWS, np.array([-1, 0])], {"keepdims": 0}),
    "reduce none": ("ReduceMax", [ROWS, np.zeros(0, np.int64)], {"noop_with_empty_axes": 1}),
    "pick": ("ArgMax", [ROWS], {"axis": 1, "keepdims": 0}),
    "depth to space": ("DepthToSpace", [IMAGE], {"blocksize": 2}),
    "squeeze": ("Squeeze", [(1, 3, 1)], {}),
    "unsqueeze": ("Unsqueeze", [ROWS, np.array([-1, 0])], {}),
    "flatten": ("Flatten", [ROWS], {"axis": -1}),
    "reshape": ("Reshape", [ROWS, np.array([0, -1, 3])], {}),
    "transpose": ("Transpose", [ROWS], {}),
    "where": ("Where", [np.array([[True], [False]]), (1, 3), (2, 2, 1)], {}),
    "concat": ("Concat", [(2, 3), (2, 1)], {"axis": -1}),
    "shape": ("Shape", [ROWS], {"start": -2}),
    "columns to image": ("Col2Im", [(1, 12, 20), np.array([5, 6]), np.array([2, 2])], {}),
    "sample": ("GridSample", [IMAGE, (1, 3, 5, 2)], {}),
    "einsum": ("Einsum", [(2, 3, 4), (4, 5)], {"equation": "abc,cd->bda"}),
    "lstm": (
        "LSTM",
        [(7, 2, 5), (2, 12, 5), (2, 12, 3)],
        {"hidden_size": 3, "direction": "bidirectional"},
    ),
    "mod": ("Mod", [np.array([7, 8]), np.array([3])], {}),
    "is nan": ("IsNaN", [ROWS], {}),
}


@pytest.mark.parametrize("name", ONE_NODE)
def test_shapes_of_one_node(name: str) -> None:
    operator, inputs, attributes = ONE_NODE[name]
    names, constants, feed, declared = [], [], {}, []
    for number, one in enumerate(inputs):
        label = f"input{number}"
        names.append("" if isinstance(one, str) else label)
        if isinstance(one, np.ndarray):
            constants.append(numpy_helper.from_array(one, label))
        elif isinstance(one, tuple):
            feed[label] = np.ones(one, np.float32)
            declared.append(helper.make_tensor_value_info(label, TensorProto.FLOAT, one))
    count = {"Split": attributes.get("num_outputs", 2), "TopK": 2}.get(operator, 1)
    outputs = [f"output{number}" for number in range(count)]
    graph = helper.make_graph(
        [helper.make_node(operator, names, outputs, **attributes)],
        "one",
        declared,
        [onnx.ValueInfoProto(name=outputs[0])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    # An output without a type is only for ONNX Runtime, which finds the type itself.
    own = onnx.ModelProto.FromString(model.SerializeToString())
    del own.graph.output[:]
    computed = compute_all(own)
    assert {one: computed[one] for one in outputs} == run_all(model, feed)
