"""Where the model of a Predictor comes from: a path, bytes, or an open file."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import headkit
from tests.fixtures import HEADS, MODELS

MODEL = MODELS / "resnet_merged.onnx"
X = np.random.default_rng(0).normal(size=(2, 3, 160, 160)).astype(np.float32)


class _Stream:
    """A file that can only be read, such as an HTTP response or an object of a store."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def read(self) -> bytes:
        return self._content


@pytest.mark.parametrize(
    "model",
    [
        str,
        Path.read_bytes,
        lambda path: bytearray(path.read_bytes()),
        lambda path: memoryview(path.read_bytes()),
        lambda path: path.open("rb"),
        lambda path: io.BytesIO(path.read_bytes()),
        lambda path: _Stream(path.read_bytes()),
    ],
)
def test_a_model_gives_the_same_logits_wherever_it_comes_from(
    model: Callable[[Path], Any],
) -> None:
    expected = headkit.Predictor(MODEL).logits(X)
    given = model(MODEL)
    assert np.array_equal(headkit.Predictor(given).logits(X), expected)
    if isinstance(given, io.IOBase):
        assert not given.closed
        given.close()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (None, "the model is NoneType, expected a path, bytes or a binary file"),
        (7, "the model is int"),
        ([MODEL], "the model is list"),
        (b"", "the model in memory: it is empty"),
        (b"no model", "cannot read the model in memory: "),
        (io.BytesIO(b"no model"), "cannot read the model in the open file: "),
        (io.StringIO("no model"), "returns text, expected bytes: .* mode 'rb'"),
        (MODEL.read_bytes()[:1000], "cannot read the model in memory: "),
        ((HEADS / "resnet_own.safetensors").read_bytes(), "it is a head file, expected an ONNX"),
        (MODELS, "it is a folder, expected a file"),
    ],
)
def test_what_is_no_model_is_refused(model: Any, message: str) -> None:
    with pytest.raises(headkit.ExportError, match=message) as raised:
        headkit.Predictor(model)
    assert "no model" not in str(raised.value)


def test_a_closed_file_is_refused() -> None:
    file = MODEL.open("rb")
    file.close()
    with pytest.raises(headkit.ExportError, match="closed file"):
        headkit.Predictor(file)


def test_external_data_needs_the_path_of_the_model(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save_model(
        onnx.load(MODEL), path, save_as_external_data=True, location="weights", size_threshold=256
    )
    predictor = headkit.Predictor(path)
    assert np.array_equal(predictor.logits(X), headkit.Predictor(MODEL).logits(X))
    for model in (path.read_bytes(), path.open("rb")):
        with pytest.raises(headkit.ExportError, match=r"file weights, .* pass the path"):
            headkit.Predictor(model)
    (tmp_path / "weights").unlink()
    with pytest.raises(headkit.ExportError, match="its external data weights is missing"):
        headkit.Predictor(path)
