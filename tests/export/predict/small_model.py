"""A model of the fixtures that takes images of 32 x 32 pixels and so is fast."""

from pathlib import Path

import onnx

from tests.fixtures import MODELS


def write_small_model(path: Path, name: str = "resnet_merged") -> Path:
    """Write a fully convolutional model of the fixtures with a smaller input."""
    model = onnx.load(MODELS / f"{name}.onnx")
    for dim in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.dim_value = 32
    del model.graph.value_info[:]
    for prop in model.metadata_props:
        prop.value = prop.value.replace("[3,160,160]", "[3,32,32]")
    onnx.save(model, path)
    return path
