import io
import logging
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper, parser
from PIL import Image
from torch import nn

import headkit
from headkit.adapters.errors import DataError, ExportError, ParityError
from headkit.export.precision.reduce import Cost, check_cost, compare_logits, to_fp16, to_int8
from tests.backbones import random_backbone

Array = np.ndarray[Any, Any]
PRECISIONS = ("fp16", "int8")


def to_onnx(model: nn.Module, size: int) -> onnx.ModelProto:
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        program = torch.onnx.export(
            model,
            (torch.rand(2, 3, size, size),),
            dynamo=True,
            input_names=["pixel_values"],
            output_names=["features"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    assert program is not None
    return program.model_proto


def run(
    model: onnx.ModelProto, pixel_values: Array, batch: int = 16, *, fused: bool = True
) -> list[Array]:
    """Run a model in batches.

    If it is not fused, each operator runs as the graph says, int8 ones on rounded float32 numbers.
    Fused ones sum integers, which saturate on x86 processors without VNNI.
    """
    options = ort.SessionOptions()
    if not fused:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options)
    starts = range(0, len(pixel_values), batch)
    found = [session.run(None, {"pixel_values": pixel_values[s : s + batch]}) for s in starts]
    return [np.concatenate(parts) for parts in zip(*found, strict=True)]


def noise(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def photographs(count: int, seed: int) -> Array:
    """Return random crops of scikit-learn's two photographs, sized for tf_efficientnet_lite0."""
    from sklearn.datasets import load_sample_images

    generator = np.random.default_rng(seed)
    crops = []
    for pixels in load_sample_images().images * (count // 2):
        height, width = pixels.shape[:2]
        edge = int(generator.uniform(0.35, 1) * height)
        x, y = generator.integers(0, width - edge + 1), generator.integers(0, height - edge + 1)
        crop = Image.fromarray(pixels[y : y + edge, x : x + edge]).resize((224, 224))
        crops.append(np.asarray(crop, np.float32).transpose(2, 0, 1) / 127.5 - 1)
    return np.stack(crops)


@pytest.fixture(scope="module", params=["test_resnet", "test_vit"])
def small_onnx(request: pytest.FixtureRequest) -> tuple[nn.Module, onnx.ModelProto]:
    model: Any = random_backbone(request.param)
    model.reset_classifier(0)
    return model, to_onnx(model, 160)


def reduced(precision: str, backbone: onnx.ModelProto) -> onnx.ModelProto:
    if precision == "fp16":
        return to_fp16(backbone)
    return to_int8(backbone, [noise(8, 3, 160, 160, seed=1), noise(8, 3, 160, 160, seed=2)])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_interface_metadata_and_the_original_are_kept(
    small_onnx: tuple[nn.Module, onnx.ModelProto], precision: str
) -> None:
    backbone = onnx.ModelProto()
    backbone.CopyFrom(small_onnx[1])
    helper.set_model_props(backbone, {"format": "headkit"})
    before = backbone.SerializeToString(deterministic=True)
    smaller = reduced(precision, backbone)
    assert backbone.SerializeToString(deterministic=True) == before
    assert list(smaller.graph.input) == list(backbone.graph.input)
    assert list(smaller.graph.output) == list(backbone.graph.output)
    assert list(smaller.metadata_props) == list(backbone.metadata_props)
    assert [o.domain for o in smaller.opset_import] == [""]
    onnx.checker.check_model(smaller, full_check=True)


@pytest.mark.parametrize(
    ("precision", "size", "mean"), [("fp16", 0.62, 0.0005), ("int8", 0.45, 0.01)]
)
def test_is_smaller_and_near_torch_at_every_batch(
    small_onnx: tuple[nn.Module, onnx.ModelProto], precision: str, size: float, mean: float
) -> None:
    model, backbone = small_onnx
    smaller = reduced(precision, backbone)
    assert smaller.ByteSize() < size * backbone.ByteSize()
    for batch in (1, 5):
        pixels = noise(batch, 3, 160, 160, seed=3)
        with torch.inference_mode():
            expected = model(torch.from_numpy(pixels)).numpy()
        (found,) = run(smaller, pixels, fused=False)
        assert found.dtype == np.float32
        assert np.abs(found - expected).mean() < mean * np.abs(expected).max()


@pytest.fixture(scope="module")
def real(real_weights: Path) -> tuple[onnx.ModelProto, nn.Linear]:
    """Return backbone and classifier of tf_efficientnet_lite0 with ImageNet weights."""
    model: Any = headkit.load_backbone("tf_efficientnet_lite0", real_weights)
    classifier = model.get_classifier()
    model.reset_classifier(0)
    return to_onnx(model, 224), classifier


def logits(model: onnx.ModelProto, classifier: nn.Linear, pixels: Array) -> Array:
    weight, bias = (t.detach().numpy() for t in (classifier.weight, classifier.bias))
    return np.asarray(run(model, pixels, fused=False)[0] @ weight.T + bias)


@pytest.mark.parametrize(
    ("precision", "agreement", "mean"), [("fp16", 0.98, 0.001), ("int8", 0.88, 0.008)]
)
def test_real_weights_keep_their_classes(
    real: tuple[onnx.ModelProto, nn.Linear], precision: str, agreement: float, mean: float
) -> None:
    backbone, classifier = real
    held_out = photographs(96, seed=2)
    smaller = to_fp16(backbone) if precision == "fp16" else None
    smaller = smaller or to_int8(backbone, np.split(photographs(32, seed=1), 4))
    found = compare_logits(
        logits(backbone, classifier, held_out), logits(smaller, classifier, held_out)
    )
    assert found.agreement >= agreement
    assert found.mean_difference < mean


def two_convolutions(groups: int, bias: bool) -> onnx.ModelProto:
    """Return an identity convolution, which stays float32, and one with outliers in its weights."""
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((6, 3 // groups, 3, 3)).astype(np.float32)
    weight[:, 0, 0, 0] = 60
    third = ", b" if bias else ""
    outputs = "float[batch, 6] features, float[batch, 3, 8, 8] features_1"
    model = parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 18]>
        backbone (float[batch, 3, 8, 8] pixel_values) => ({outputs}) {{
            features_1 = Conv (pixel_values, identity)
            maps = Conv <group = {groups}> (features_1, w{third})
            pooled = GlobalAveragePool (maps)
            features = Flatten (pooled)
        }}"""
    )
    identity = np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1)
    constants = {"identity": identity, "w": weight} | ({"b": noise(6)} if bias else {})
    model.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in constants.items())
    return model


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("bias", [False, True])
def test_biases_compensate_for_the_rounding_of_weights(groups: int, bias: bool) -> None:
    backbone = two_convolutions(groups, bias)
    pixels = 1 + 0.1 * noise(64, 3, 8, 8)
    quantized = to_int8(backbone, [pixels])
    expected, pixels_again = run(backbone, pixels)
    found, rounded = run(quantized, pixels)
    step_in = pixels.max() / 255  # the range has zero in it
    assert np.abs(rounded - pixels_again).max() <= 0.51 * step_in
    (w,) = (numpy_helper.to_array(t) for t in backbone.graph.initializer if t.name == "w")
    step = 60 / 127
    rounding = (np.round(w / step) * step - w).reshape(6, -1).sum(1)  # what 1 everywhere adds
    assert np.abs(rounding).max() > 0.4
    step_out = np.ptp(run_maps(backbone, pixels)) / 255
    assert np.abs((found - expected).mean(0)).max() < 0.25 * np.abs(rounding).max() + step_out


def run_maps(backbone: onnx.ModelProto, pixels: Array) -> Array:
    probe = onnx.ModelProto()
    probe.CopyFrom(backbone)
    del probe.graph.output[:]
    probe.graph.output.append(helper.make_tensor_value_info("maps", TensorProto.FLOAT, None))
    return run(probe, pixels)[0]


@pytest.mark.parametrize("mask", [-1e9, -np.inf])
def test_fp16_masks_beyond_its_range_stay_masks(mask: float) -> None:
    model = parser.parse_model(
        """<ir_version: 8, opset_import: ["": 18]>
        backbone (float[batch, 4] pixel_values) => (float[batch, 4] features) {
            masked = Add (pixel_values, mask)
            features = Softmax <axis = -1> (masked)
        }"""
    )
    constant = np.array([0, mask, 0, mask], np.float32)
    model.graph.initializer.append(numpy_helper.from_array(constant, "mask"))
    (found,) = run(to_fp16(model), noise(3, 4))
    (expected,) = run(model, noise(3, 4))
    assert np.abs(found - expected).max() < 1e-3
    assert (found[:, [1, 3]] == 0).all()


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "found none"),
        ([np.zeros((0, 3, 8, 8), np.float32)], "found none"),
        (
            [np.zeros((2, 3, 9, 8), np.float32)],
            r"float32 \[2, 3, 9, 8\], expected .*\['n', 3, 8, 8",
        ),
        ([np.zeros((2, 3, 8, 8))], r"float64 \[2, 3, 8, 8\], expected float32"),
        ([np.zeros((3, 8, 8), np.float32)], r"float32 \[3, 8, 8\], expected"),
    ],
)
def test_calibration_images_that_do_not_fit_are_refused(batches: list[Array], message: str) -> None:
    with pytest.raises(DataError, match=message):
        to_int8(two_convolutions(1, True), batches)


def test_model_that_onnx_runtime_cannot_quantize_is_an_export_error() -> None:
    model = two_convolutions(1, True)
    model.graph.node[1].op_type = "NoSuchOperator"
    with pytest.raises(ExportError, match=r"cannot quantize the backbone: .*; use fp16 or fp32"):
        to_int8(model, [noise(2, 3, 8, 8)])


def test_nothing_is_printed_and_logging_stays_as_it_was(
    capfd: pytest.CaptureFixture[str],
) -> None:
    root = logging.getLogger()
    before = (list(root.handlers), root.level, root.manager.disable)
    to_int8(two_convolutions(3, False), [noise(2, 3, 8, 8)])
    to_fp16(two_convolutions(3, False))
    assert (list(root.handlers), root.level, root.manager.disable) == before
    assert capfd.readouterr() == ("", "")


def test_imports_neither_torch_nor_timm() -> None:
    code = (
        "import sys, headkit.export.precision.reduce\n"
        "print({'torch', 'timm', 'sympy'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_cost_counts_classes_and_measures_logits() -> None:
    before = np.array([[4, 0], [0, 2], [3, 1], [0, 1]], np.float32)
    after = np.array([[4, 1], [0, 2], [1, 3], [0, 1]], np.float32)
    found = compare_logits(before, after, np.array([0, 1, 0, 0]))
    assert found == Cost(4, 0.75, 5 / 8 / 4, 2 / 4, 0.75, 0.5)
    assert compare_logits(before, after).to_json() == {
        "images": 4,
        "agreement": 0.75,
        "mean_difference": 0.15625,
        "max_difference": 0.5,
        "accuracy_before": None,
        "accuracy_after": None,
    }


def test_logits_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\) before and \(2, 4\) after"):
        compare_logits(np.zeros((2, 3)), np.zeros((2, 4)))
    with pytest.raises(ValueError, match=r"targets are \(3,\), expected \(2,\)"):
        compare_logits(np.zeros((2, 3)), np.zeros((2, 3)), np.zeros(3))
    with pytest.raises(DataError, match="no held-out images"):
        compare_logits(np.zeros((0, 3)), np.zeros((0, 3)))


def test_check_uses_accuracy_if_it_is_known_and_agreement_otherwise() -> None:
    check_cost(Cost(100, 0.5, 0.1, 0.2, 0.90, 0.88), 0.02, "int8")
    check_cost(Cost(100, 0.98, 0.1, 0.2), 0.02, "int8")
    with pytest.raises(ParityError, match=r"from 90\.0% to 87\.0%; the limit is 2\.0%; calibrate"):
        check_cost(Cost(100, 1.0, 0.1, 0.2, 0.90, 0.87), 0.02, "int8")
    with pytest.raises(
        ParityError, match=r"class of 3\.0% of 100 images; the limit is 2\.0%; keep"
    ):
        check_cost(Cost(100, 0.97, 0.1, 0.2), 0.02, "fp16")


def test_logits_that_are_not_finite_are_never_accepted() -> None:
    before = np.array([[1, 2], [2, 1]], np.float32)
    found = compare_logits(
        before, np.array([[1, np.nan], [np.inf, 1]], np.float32), np.array([1, 0])
    )
    assert (found.agreement, found.accuracy_after) == (0, 0)
    assert found.to_json()["max_difference"] is None
    with pytest.raises(
        ParityError, match="fp16 gives NaN or infinite logits for some of the 2 images"
    ):
        check_cost(found, 1.0, "fp16")
