import subprocess
import sys
from collections.abc import Callable
from functools import cache

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import PIL
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, compose, helper
from PIL import Image

from headkit.adapters.errors import ExportError
from headkit.export.preprocess.onnx_graph import preprocessing_model
from headkit.export.preprocess.pillow import Preprocess

Array = npt.NDArray[np.uint8]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZES = [(32, 32), (33, 33), (24, 40), (64, 48)]
like_pillow_13 = pytest.mark.skipif(
    int(PIL.__version__.split(".")[0]) < 13,
    reason="before version 13 Pillow scaled the width first whatever the sizes",
)


def preprocess_of(
    size: tuple[int, int] = (32, 32),
    interpolation: str = "bicubic",
    crop_pct: float = 0.875,
    crop_mode: str = "center",
) -> Preprocess:
    return Preprocess(*size, interpolation, crop_pct, crop_mode, MEAN, STD)


@cache
def session_of(preprocess: Preprocess, opset: int = 18) -> ort.InferenceSession:
    return open_model(preprocessing_model(preprocess, opset))


def open_model(model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def run(preprocess: Preprocess, images: Array, opset: int = 18) -> npt.NDArray[np.float32]:
    (pixels,) = session_of(preprocess, opset).run(None, {"image": images})
    return np.asarray(pixels)


def noise(height: int, width: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def photo(height: int, width: int, seed: int = 0) -> Array:
    """Return smooth shapes with a little noise, like a photo."""
    coarse = Image.fromarray(noise(max(height // 9, 2), max(width // 9, 2), seed))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    grain = np.random.default_rng(seed).integers(-5, 6, smooth.shape)
    return (smooth + grain).clip(0, 255).astype(np.uint8)


def grey_levels(found: npt.NDArray[np.float32], preprocess: Preprocess, image: Array) -> Array:
    """Return by how many of 255 grey levels each pixel differs from Pillow's."""
    expected = preprocess(Image.fromarray(image))
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    std = np.asarray(STD, dtype=np.float32)[:, None, None]
    return np.asarray(np.round(np.abs(found - expected) * std * 255), dtype=np.uint8)


@like_pillow_13
@settings(max_examples=100, deadline=None)
@given(
    width=st.integers(1, 300) | st.integers(1, 1000),
    height=st.integers(1, 300) | st.integers(1, 1000),
    size=st.sampled_from(SIZES),
    crop_pct=st.sampled_from([0.875, 0.95, 1.0, 1.15]),
    crop_mode=st.sampled_from(["center", "squash", "border"]),
    interpolation=st.sampled_from(["bicubic", "bilinear"]),
    picture=st.sampled_from([noise, photo]),
    seed=st.integers(0, 9),
)
@example(1, 1, (32, 32), 0.875, "border", "bicubic", noise, 0)
@example(1, 1000, (32, 32), 0.875, "center", "bicubic", noise, 0)
@example(1000, 1, (24, 40), 0.95, "center", "bilinear", noise, 0)
@example(1000, 2, (32, 32), 0.95, "border", "bilinear", noise, 0)
def test_scaled_images_differ_from_pillow_by_rounding_in_a_few_pixels(
    width: int,
    height: int,
    size: tuple[int, int],
    crop_pct: float,
    crop_mode: str,
    interpolation: str,
    picture: Callable[[int, int, int], Array],
    seed: int,
) -> None:
    preprocess = preprocess_of(size, interpolation, crop_pct, crop_mode)
    image = picture(height, width, seed)
    levels = grey_levels(run(preprocess, image[None])[0], preprocess, image)
    assert levels.max() <= 2
    assert (levels > 1).mean() < 0.005
    assert levels.mean() < 0.25


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 700),
    height=st.integers(1, 700),
    size=st.sampled_from(SIZES),
    crop_pct=st.sampled_from([0.875, 0.95, 1.0, 1.15]),
    crop_mode=st.sampled_from(["center", "squash", "border"]),
)
def test_sizes_offsets_padding_and_normalization_are_exact(
    width: int, height: int, size: tuple[int, int], crop_pct: float, crop_mode: str
) -> None:
    # `nearest` computes no new values, so that everything else must be equal bit for bit.
    preprocess = preprocess_of(size, "nearest", crop_pct, crop_mode)
    image = noise(height, width)
    assert np.array_equal(run(preprocess, image[None])[0], preprocess(Image.fromarray(image)))


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("height", "width"), [(375, 500), (90, 120), (224, 300)])
def test_photos_differ_by_less_than_a_twentieth_of_a_level_on_average(
    height: int, width: int, interpolation: str
) -> None:
    preprocess = preprocess_of((224, 224), interpolation)
    image = photo(height, width)
    levels = grey_levels(run(preprocess, image[None])[0], preprocess, image)
    assert levels.max() <= 2
    assert levels.mean() < 0.05


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_image_of_the_target_size_is_not_scaled(interpolation: str) -> None:
    preprocess = preprocess_of((32, 32), interpolation, crop_pct=1.0)
    image = noise(32, 32)
    assert np.array_equal(run(preprocess, image[None])[0], preprocess(Image.fromarray(image)))


@like_pillow_13
def test_height_is_scaled_first_where_it_loses_most() -> None:
    preprocess = preprocess_of((64, 64), crop_mode="squash")
    image = noise(400, 50)
    by_width = Image.fromarray(image).resize((73, 400), Image.Resampling.BICUBIC)
    other_order = preprocess.normalize(preprocess.crop(preprocess.resize(by_width)))
    levels = grey_levels(run(preprocess, image[None])[0], preprocess, image)
    assert levels.max() <= 1
    assert grey_levels(other_order, preprocess, image).max() > 4


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "nearest"])
@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
def test_batch_equals_images_one_by_one(crop_mode: str, interpolation: str) -> None:
    preprocess = preprocess_of((33, 40), interpolation, crop_mode=crop_mode)
    images = np.stack([photo(70, 90, seed) for seed in range(3)])
    one_by_one = np.concatenate([run(preprocess, image[None]) for image in images])
    assert np.array_equal(run(preprocess, images), one_by_one)


@pytest.mark.parametrize("opset", range(18, 24))
@pytest.mark.parametrize("interpolation", ["bicubic", "nearest"])
def test_every_opset_gives_the_same(interpolation: str, opset: int) -> None:
    preprocess = preprocess_of(interpolation=interpolation, crop_mode="border")
    images = photo(70, 90)[None]
    onnx.checker.check_model(preprocessing_model(preprocess, opset), full_check=True)
    assert np.array_equal(run(preprocess, images, opset), run(preprocess, images))


def test_input_and_output_are_as_documented_and_other_names_are_prefixed() -> None:
    graph = preprocessing_model(preprocess_of((24, 40), crop_mode="border"), 20).graph
    (image,), (pixel_values,) = graph.input, graph.output
    assert (image.name, pixel_values.name) == ("image", "pixel_values")
    assert image.type.tensor_type.elem_type == TensorProto.UINT8
    assert pixel_values.type.tensor_type.elem_type == TensorProto.FLOAT
    assert shape_of(image) == ["batch", "height", "width", 3]
    assert shape_of(pixel_values) == ["batch", 3, 24, 40]
    inner = {output for node in graph.node for output in node.output} - {"pixel_values"}
    names = inner | {node.name for node in graph.node} | {i.name for i in graph.initializer}
    assert all(name.startswith("preprocess/") for name in names)
    assert {node.domain for node in graph.node} == {""}


def shape_of(value: onnx.ValueInfoProto) -> list[str | int]:
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


def test_merged_with_a_model_it_equals_both_in_turn() -> None:
    preprocess, opset = preprocess_of(), 20
    kernel = np.random.default_rng(0).standard_normal((4, 3, 3, 3), dtype=np.float32)
    shape: list[str | int] = ["batch", 3, 32, 32]
    backbone = helper.make_model(
        helper.make_graph(
            [helper.make_node("Conv", ["pixel_values", "kernel"], ["features"])],
            "backbone",
            [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", 4, 30, 30])],
            [onnx.numpy_helper.from_array(kernel, "kernel")],
        ),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=10,
    )
    merged = compose.merge_models(
        preprocessing_model(preprocess, opset), backbone, [("pixel_values", "pixel_values")]
    )
    images = np.stack([photo(70, 90, seed) for seed in range(2)])
    (found,) = open_model(merged).run(None, {"image": images})
    (expected,) = open_model(backbone).run(None, {"pixel_values": run(preprocess, images)})
    assert np.allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("interpolation", ["lanczos", "box", "hamming"])
def test_interpolation_that_onnx_lacks_is_refused(interpolation: str) -> None:
    with pytest.raises(ExportError, match=f"{interpolation}.*bicubic, bilinear, nearest"):
        preprocessing_model(preprocess_of(interpolation=interpolation), 18)


def test_opset_without_antialias_is_refused() -> None:
    with pytest.raises(ExportError, match="opset 18 or later, found 17"):
        preprocessing_model(preprocess_of(), 17)


def test_building_the_graph_imports_neither_torch_nor_timm() -> None:
    code = (
        "import sys, headkit.export.preprocess.onnx_graph\n"
        "print({'torch', 'timm'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
