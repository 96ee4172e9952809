"""Reading the bytes of an ONNX file, compared with the package onnx."""

from pathlib import Path

import onnx
import pytest

from headkit.export.graph.wire_format import (
    external_locations,
    header,
    missing_locations,
    with_outputs,
)
from tests.fixtures import MODELS

MODEL = MODELS / "resnet_merged.onnx"


def test_added_outputs_are_those_that_onnx_itself_would_add() -> None:
    outputs: dict[str, list[int | str]] = {"features": ["batch", 8], "größe": [1000, "n", 0]}
    expected = onnx.load(MODEL)
    for name, shape in outputs.items():
        value = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        expected.graph.output.append(value)
    assert onnx.load_from_string(with_outputs(MODEL.read_bytes(), outputs)) == expected


@pytest.mark.parametrize("length", [0, 1, 127, 128, 300, 2**31])
def test_header_is_tag_and_length(length: int) -> None:
    content = header(7, length)
    assert content[0] == 7 << 3 | 2
    assert sum((byte & 127) << 7 * n for n, byte in enumerate(content[1:])) == length


def test_locations_are_those_in_the_tensors(tmp_path: Path) -> None:
    assert external_locations(MODEL) == external_locations(MODEL.read_bytes()) == frozenset()
    path = tmp_path / "model.onnx"
    onnx.save_model(
        onnx.load(MODEL), path, save_as_external_data=True, location="w.data", size_threshold=0
    )
    assert external_locations(path) == external_locations(path.read_bytes()) == {"w.data"}
    assert missing_locations(path) == []
    (tmp_path / "w.data").unlink()
    assert missing_locations(path) == ["w.data"]


def test_damaged_files_have_no_locations(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    for content in (b"", b"\xff" * 40, MODEL.read_bytes()[:1000]):
        path.write_bytes(content)
        with pytest.raises(ValueError):
            external_locations(path)
        assert missing_locations(path) == []
