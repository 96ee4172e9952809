"""An exported model whose graph has a loop without end, or an intermediate result of 4 GB.

At 64f666f, ``headkit predict`` ran the loop until the process was ended, and took the memory for
the result. Now the graph is checked before ONNX Runtime opens it.
"""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import headkit
from tests.attacks.hostile_files import run_headkit


def loop() -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Return nodes that compute ``zero`` after 2**60 iterations."""
    state = helper.make_tensor_value_info("state", TensorProto.FLOAT, [])
    next_state = helper.make_tensor_value_info("next", TensorProto.FLOAT, [])
    go = helper.make_tensor_value_info("go", TensorProto.BOOL, [])
    goes = helper.make_tensor_value_info("goes", TensorProto.BOOL, [])
    number = helper.make_tensor_value_info("number", TensorProto.INT64, [])
    nodes = [
        helper.make_node("Identity", ["go"], ["goes"]),
        helper.make_node("Sin", ["state"], ["next"]),
    ]
    body = helper.make_graph(nodes, "body", [number, go, state], [goes, next_state])
    constants = {"trips": np.int64(2**60), "always": np.bool_(True), "start": np.float32(0)}
    inputs = list(constants)
    return (
        [helper.make_node("Loop", inputs, ["zero"], body=body)],
        [numpy_helper.from_array(np.array(value), name) for name, value in constants.items()],
    )


def large() -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Return nodes that compute ``zero`` by way of a billion zeros."""
    shape = numpy_helper.from_array(np.array([2**30], np.int64), "shape")
    return (
        [
            helper.make_node("ConstantOfShape", ["shape"], ["many"]),
            helper.make_node("ReduceSum", ["many"], ["zero"], keepdims=0),
        ],
        [shape],
    )


@pytest.mark.parametrize("attack", [loop, large])
def test_graph_is_refused_before_it_runs(tmp_path: Path, attack: object) -> None:
    assert callable(attack)
    path = tmp_path / "model.onnx"
    headkit.export(headkit.adapt("test_resnet", 3, pretrained=False), path)
    model = onnx.load(path)
    for node in model.graph.node:
        node.output[:] = ["honest" if name == "logits" else name for name in node.output]
    nodes, tensors = attack()
    model.graph.node.extend([*nodes, helper.make_node("Add", ["honest", "zero"], ["logits"])])
    model.graph.initializer.extend(tensors)
    onnx.save(model, path)
    Image.fromarray(np.zeros((60, 60, 3), np.uint8)).save(tmp_path / "x.png")
    done = run_headkit("predict", path, tmp_path / "x.png", seconds=60)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
