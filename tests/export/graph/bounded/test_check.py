"""A model that loops, grows or reads elsewhere is refused before ONNX Runtime opens it."""

import base64
import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from headkit import ExportError, Predictor, graft
from headkit.adapters.errors import HeadkitError
from headkit.benchmarks.studies.security.fuzzing.mutations import onnx_bombs
from headkit.export.graph.bounded.check import check_graph
from headkit.export.graph.bounded.decode import decode_graph
from headkit.info import info
from tests.fixtures import HEADS, MODELS

MERGED = MODELS / "resnet_merged.onnx"


@pytest.fixture(autouse=True)
def sessions(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The models that ONNX Runtime opens."""
    opened: list[object] = []
    module = import_module("headkit.export.runtimes.exported_model")
    original = module.open_session

    def open_session(*arguments: Any, **options: Any) -> Any:
        opened.append(arguments)
        return original(*arguments, **options)

    monkeypatch.setattr(module, "open_session", open_session)
    return opened


def load() -> onnx.ModelProto:
    return onnx.load(MERGED)


@pytest.mark.parametrize("bomb", onnx_bombs.BOMBS, ids=lambda bomb: bomb.__name__)
def test_bombs_are_refused_before_a_session_opens(
    bomb: onnx_bombs.Bomb,
    tmp_path: Path,
    sessions: list[object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(onnx_bombs, "BOMBS", (bomb,))
    refused = 0
    for seed in range(12):
        model = load()
        onnx_bombs.add_bomb(model, Random(seed))  # noqa: S311
        onnx.save(model, tmp_path / "bomb.onnx")
        try:
            Predictor(tmp_path / "bomb.onnx")
        except ExportError:
            refused += 1
    assert refused >= 8  # some are small, such as 2**20 numbers
    assert len(sessions) == 12 - refused


def add_node(model: onnx.ModelProto, operator: str, *inputs: str, **attributes: Any) -> None:
    model.graph.node.append(helper.make_node(operator, inputs, ["added"], **attributes))


def call_itself(model: onnx.ModelProto) -> None:
    opset = helper.make_opsetid("local", 1)
    again = helper.make_node("Again", ["x"], ["y"], domain="local")
    model.functions.append(helper.make_function("local", "Again", ["x"], ["y"], [again], [opset]))


def run_in_circles(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = model.graph.node[-1].output[0]


def compute_twice(model: onnx.ModelProto) -> None:
    model.graph.node.append(model.graph.node[-1])


def other_input(model: onnx.ModelProto) -> None:
    for dim in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.dim_value = 16_384


def two_inputs(model: onnx.ModelProto) -> None:
    model.graph.input.add().CopyFrom(model.graph.input[0])
    model.graph.input[-1].name = "more"


def no_logits(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        node.output[:] = ["renamed" if name == "logits" else name for name in node.output]


def other_classes(model: onnx.ModelProto) -> None:
    for prop in model.metadata_props:
        prop.value = prop.value.replace('"num_classes":3', '"num_classes":4').replace(
            '"tensors":{"fc.bias":[3],"fc.weight":[3,', '"tensors":{"fc.bias":[4],"fc.weight":[4,'
        )


REFUSED: dict[str, tuple[Callable[[onnx.ModelProto], object], str]] = {
    "function": (call_itself, "functions"),
    "custom operator": (lambda m: add_node(m, "Run", "logits", domain="evil"), "evil.Run"),
    "random numbers": (lambda m: add_node(m, "RandomNormal", shape=[9]), "RandomNormal"),
    "circle": (run_in_circles, "nothing before it computes"),
    "the same value twice": (compute_twice, "two nodes compute"),
    "larger input than described": (other_input, "expected|per image"),
    "a second input": (two_inputs, "its inputs are"),
    "no logits": (no_logits, "logits"),
    "other number of classes": (other_classes, "label names|expected"),
    "old operators": (lambda m: m.opset_import[0].ClearField("version"), "operator set"),
}


@pytest.mark.parametrize("change", REFUSED)
def test_changed_graphs_are_refused(change: str, tmp_path: Path, sessions: list[object]) -> None:
    model = load()
    apply, message = REFUSED[change]
    apply(model)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    for use in (Predictor, info, lambda path: Predictor(path.read_bytes())):
        with pytest.raises(ExportError, match=message):
            use(path)
    assert not sessions


@pytest.mark.parametrize(
    "location", ["../outside", "/etc/hostname", "a/../../b", "..\\x", "C:\\x", "", "pipe", "a\0b"]
)
def test_external_data_elsewhere_are_refused(
    location: str, tmp_path: Path, sessions: list[object]
) -> None:
    model = load()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    onnx.save(model, tmp_path / "model.onnx")
    if location == "pipe":
        if not hasattr(os, "mkfifo"):
            pytest.skip("this system has no named pipes")
        os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ExportError, match="external data"):
        Predictor(tmp_path / "model.onnx")
    assert not sessions


def test_a_damaged_classifier_in_the_metadata_is_refused(tmp_path: Path) -> None:
    model = onnx.load(MODELS / "crossvit_merged.onnx")
    (prop,) = (prop for prop in model.metadata_props if prop.key == "classifier")
    inner = onnx.load_from_string(base64.b64decode(prop.value))
    shape = numpy_helper.from_array(np.array([2**40]), "shape")
    inner.graph.initializer.append(shape)
    inner.graph.node.append(helper.make_node("ConstantOfShape", ["shape"], ["huge"]))
    prop.value = base64.b64encode(inner.SerializeToString()).decode()
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(HeadkitError, match="bytes per image"):
        graft(tmp_path / "model.onnx", HEADS / "crossvit_own.safetensors", tmp_path / "out.onnx")


def test_numbers_must_be_as_many_as_the_shape_says() -> None:
    model = load()
    model.graph.initializer[0].dims[0] *= 2
    with pytest.raises(ValueError, match="other numbers than its shape says"):
        check_graph(decode_graph(model.SerializeToString()))
