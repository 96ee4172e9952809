import itertools
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import timm
import torch

from headkit.export.optimize import fuse_attention
from headkit.export.optimize.passes import optimize

SMALL: dict[str, dict[str, Any]] = {
    "test_vit": {},
    "test_vit2": {},
    "test_vit3": {},
    "test_vit4": {},
    "deit_tiny_distilled_patch16_224": {"depth": 2},
    "beit_base_patch16_224": {"embed_dim": 48, "num_heads": 3, "depth": 2},
    "eva02_tiny_patch14_224": {"depth": 2},
    "vit_small_patch16_dinov3": {"depth": 2, "img_size": 160},
    "swin_tiny_patch4_window7_224": {"embed_dim": 24, "depths": (1, 2), "num_heads": (1, 2)},
    "test_maxvit": {},
    "efficientformerv2_s0": {"depths": (1, 1, 1, 2), "embed_dims": (8, 16, 16, 32), "num_vit": 1},
    "test_convnext": {},
    "test_efficientnet": {},
    "test_resnet": {},
}
FUSED = {
    "test_vit": {"Attention": 5, "FusedMatMul": 1},  # the last block's is of one token
    "test_vit2": {"Attention": 8},
    "test_vit3": {"Attention": 9, "FusedMatMul": 1},
    "test_vit4": {"Attention": 9},
    "deit_tiny_distilled_patch16_224": {"Attention": 1, "FusedMatMul": 1},
    "beit_base_patch16_224": {"Attention": 2},
    "eva02_tiny_patch14_224": {"RotaryEmbedding": 4, "FusedMatMul": 2},
    "vit_small_patch16_dinov3": {"RotaryEmbedding": 4, "FusedMatMul": 2},
    "swin_tiny_patch4_window7_224": {"FusedMatMul": 3},
    "test_maxvit": {"FusedMatMul": 8},
    "efficientformerv2_s0": {"FusedMatMul": 6},  # scores and values of three layers
}
"""ONNX Runtime's own operators in each optimized graph; the other graphs have none."""


@cache
def traced(architecture: str) -> onnx.ModelProto:
    """Convert with random parameters everywhere, so that each branch of the model has an effect."""
    torch.manual_seed(0)
    model = timm.create_model(architecture, **SMALL[architecture]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim < 2 or parameter.abs().max() < 1e-3:
                parameter.add_(0.3 * torch.randn_like(parameter))
            elif parameter.ndim == 2:
                parameter.mul_(2)
    module: Any
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    size = SMALL[architecture].get("img_size", model.default_cfg["input_size"][-1])
    with torch.no_grad():
        program = torch.onnx.export(
            model,
            (torch.rand(2, 3, size, size),),
            dynamo=True,
            input_names=["pixel_values"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    assert program is not None
    return program.model_proto


def run(model: onnx.ModelProto, batch: int) -> np.ndarray[Any, Any]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options)
    size = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim[1:]]
    pixels = np.random.default_rng(batch).standard_normal((batch, *size), dtype=np.float32)
    found: np.ndarray[Any, Any] = session.run(["logits"], {"pixel_values": pixels})[0]
    return found


def nodes(graph: onnx.GraphProto, op_type: str) -> list[onnx.NodeProto]:
    return [node for node in graph.node if node.op_type == op_type]


def own_operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node if node.domain == "com.microsoft")


def assert_same_numbers(model: onnx.ModelProto, optimized: onnx.ModelProto) -> None:
    """Compare logits, relative to how much they differ between images: that may be little."""
    spread = 0.0
    for batch in (8, 3, 1):
        expected, found = run(model, batch), run(optimized, batch)
        spread = spread or float(np.abs(expected - expected.mean(0)).max())
        assert spread > 1e-3 * np.abs(expected).max()
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() < 1e-4 * spread


@pytest.mark.parametrize("architecture", SMALL)
def test_logits_are_the_same_at_any_batch(architecture: str) -> None:
    model = traced(architecture)
    optimized = optimize(model)
    onnx.checker.check_model(optimized, full_check=True)
    assert_same_numbers(model, optimized)


@pytest.mark.parametrize("architecture", SMALL)
def test_optimized_graph_has_the_fused_operators(architecture: str) -> None:
    found = own_operators(optimize(traced(architecture)))
    assert found == FUSED.get(architecture, {}), dict(found)
    assert own_operators(traced(architecture)) == {}


@pytest.mark.parametrize("architecture", SMALL)
def test_names_stay_and_the_original_is_not_changed(architecture: str) -> None:
    model = traced(architecture)
    before = model.SerializeToString(deterministic=True)
    optimized = optimize(model)
    assert model.SerializeToString(deterministic=True) == before
    assert optimized.graph.input == model.graph.input
    assert optimized.graph.output == model.graph.output
    weights = {t.name: t for t in model.graph.initializer}
    kept = {t.name: t for t in optimized.graph.initializer if t.name in weights}
    assert all(tensor == weights[name] for name, tensor in kept.items())
    read = {name for node in optimized.graph.node for name in node.input}
    assert {name for name in weights if name in read} == kept.keys()


@pytest.mark.parametrize("architecture", ["test_resnet", "test_efficientnet"])
def test_convolutional_networks_are_left_alone(architecture: str) -> None:
    assert optimize(traced(architecture)) == traced(architecture)


def test_optimizing_again_changes_nothing() -> None:
    for architecture in ("test_vit", "test_vit2", "eva02_tiny_patch14_224", "test_convnext"):
        once = optimize(traced(architecture))
        assert optimize(once) == once


def sizes(model: onnx.ModelProto, op_type: str) -> list[list[int]]:
    """Return the static sizes of the outputs of an operator's nodes, in the graph's order."""
    values = {v.name: v for v in (*model.graph.value_info, *model.graph.output)}
    written = [node.output[0] for node in model.graph.node if node.op_type == op_type]
    return [[d.dim_value for d in values[n].type.tensor_type.shape.dim[1:]] for n in written]


def test_last_block_computes_the_class_token_alone() -> None:
    model = traced("test_vit")
    assert sizes(model, "Gelu") == [[101, 192]] * 6
    assert sizes(optimize(model), "Gelu") == [[101, 192]] * 5 + [[1, 192]]


def test_both_tokens_of_a_distilled_model_are_selected_early() -> None:
    optimized = optimize(traced("deit_tiny_distilled_patch16_224"))
    assert sizes(optimized, "Gelu") == [[198, 768], [2, 768]]


def test_average_comes_before_the_last_linear_layer() -> None:
    optimized = optimize(traced("test_vit2"))
    averaged = {node.output[0] for node in nodes(optimized.graph, "ReduceMean")}
    last = nodes(optimized.graph, "MatMul")[-1]
    assert last.input[0] in averaged
    assert {node.op_type for node in nodes(traced("test_vit2").graph, "ReduceMean")}
    assert not any(n.input[0] in averaged for n in nodes(traced("test_vit2").graph, "MatMul"))


def test_windows_are_gathered_once_and_empty_padding_is_removed() -> None:
    before = Counter(node.op_type for node in traced("swin_tiny_patch4_window7_224").graph.node)
    optimized = optimize(traced("swin_tiny_patch4_window7_224"))
    after = Counter(node.op_type for node in optimized.graph.node)
    # One block has shifted windows: its tokens move there and back.
    assert (before["Concat"], after["Concat"], after["Gather"]) == (4, 0, 2)
    assert before["Pad"] > 0
    assert after["Pad"] == 0
    # Three blocks with queries, keys and values in one linear layer.
    assert before["Squeeze"] == 9
    assert after["Squeeze"] == after["Slice"] == 0
    assert after["MatMul"] + after["FusedMatMul"] == before["MatMul"] + 2 * 3
    # Biases of keys change nothing, biases of values move to the next layer; one block has a mask.
    assert after["Add"] == before["Add"] - 1
    assert mask_range(traced("swin_tiny_patch4_window7_224")) == 100
    assert mask_range(optimized) == pytest.approx(1000, abs=5)  # with the bias of positions


def mask_range(model: onnx.ModelProto) -> float:
    """Return the largest difference between two numbers that constants add to a row of scores."""
    arrays = map(onnx.numpy_helper.to_array, model.graph.initializer)
    added = [array for array in arrays if array.ndim > 2 and array.shape[-2:] == (49, 49)]
    return float(max(np.ptp(array, axis=-1).max() for array in added))


def test_small_images_are_resized_by_matmul_and_norms_fold_into_convolutions() -> None:
    for architecture, op_type in (("efficientformerv2_s0", "Resize"), ("test_maxvit", "Split")):
        assert nodes(traced(architecture).graph, op_type)
        assert not nodes(optimize(traced(architecture)).graph, op_type)
    before, after = traced("test_maxvit"), optimize(traced("test_maxvit"))
    norms = [len(nodes(model.graph, "BatchNormalization")) for model in (before, after)]
    assert norms[0] - norms[1] == 4  # the first norm of each of four blocks


# Graphs that look similar but must not match


def changed(
    architecture: str, change: Callable[[onnx.GraphProto], object]
) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    model = onnx.ModelProto()
    model.CopyFrom(traced(architecture))
    change(model.graph)
    return model, optimize(model)


def softmax_over_queries(graph: onnx.GraphProto) -> None:
    for node in nodes(graph, "Softmax"):
        node.attribute[0].i = -2


def scales(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Return the products of queries with their scale; a Transpose of the keys follows each."""
    pairs = itertools.pairwise(graph.node)
    return [a for a, b in pairs if (a.op_type, b.op_type) == ("Mul", "Transpose")]


def another_scale_for_each_head(graph: onnx.GraphProto) -> None:
    scale = np.array([0.1, 0.3], np.float32).reshape(1, 2, 1, 1)
    graph.initializer.append(onnx.numpy_helper.from_array(scale, "scale"))
    for node in scales(graph):
        node.input[1] = "scale"


def scale_depends_on_the_image(graph: onnx.GraphProto) -> None:
    graph.node.insert(0, onnx.helper.make_node("ReduceMax", ["pixel_values"], ["s"], keepdims=0))
    for node in scales(graph):
        node.input[1] = "s"


def queries_and_keys_exchanged(graph: onnx.GraphProto) -> None:
    for product in scales(graph):
        key = graph.node[[n.name for n in graph.node].index(product.name) + 1]
        product.input[0], key.input[0] = key.input[0], product.input[0]


def probabilities_are_read_elsewhere(graph: onnx.GraphProto) -> None:
    for node in nodes(graph, "Softmax"):
        graph.output.append(onnx.helper.make_tensor_value_info(node.output[0], 1, None))


@pytest.mark.parametrize(
    "change",
    [
        softmax_over_queries,
        another_scale_for_each_head,
        scale_depends_on_the_image,
        queries_and_keys_exchanged,
        probabilities_are_read_elsewhere,
    ],
)
def test_other_attention_is_left_alone(change: Callable[[onnx.GraphProto], object]) -> None:
    model, optimized = changed("test_vit2", change)
    assert own_operators(optimized) == {"FusedMatMul": 8}
    assert_same_numbers(model, optimized)


def test_attention_over_few_tokens_is_not_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuse_attention, "MIN_FUSED_TOKENS", 101)
    assert own_operators(optimize(traced("test_vit2"))) == {"Attention": 8}
    monkeypatch.setattr(fuse_attention, "MIN_FUSED_TOKENS", 102)
    assert own_operators(optimize(traced("test_vit2"))) == {"FusedMatMul": 8}


def test_rotation_with_another_sign_is_left_alone() -> None:
    def positive(graph: onnx.GraphProto) -> None:
        for node in nodes(graph, "Neg"):
            node.op_type = "Identity"

    model, optimized = changed("eva02_tiny_patch14_224", positive)
    assert own_operators(optimized)["RotaryEmbedding"] == 0
    assert_same_numbers(model, optimized)


def test_angles_that_differ_within_a_pair_are_left_alone() -> None:
    def uneven(graph: onnx.GraphProto) -> None:
        (angles,) = (
            node.input[0] for node in nodes(graph, "Split") if node.input[0].endswith("embed")
        )
        tensor = next(t for t in graph.initializer if t.name == angles)
        array = onnx.numpy_helper.to_array(tensor).copy()
        array[:, ::2] += 0.1
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, angles))

    model, optimized = changed("eva02_tiny_patch14_224", uneven)
    assert own_operators(optimized)["RotaryEmbedding"] == 0
    assert_same_numbers(model, optimized)


def test_all_tokens_are_computed_if_an_output_reads_them() -> None:
    def read_all(graph: onnx.GraphProto) -> None:
        norm = nodes(graph, "LayerNormalization")[-1]
        graph.output.append(onnx.helper.make_tensor_value_info(norm.output[0], 1, None))

    model, optimized = changed("test_vit", read_all)
    assert sizes(optimized, "Gelu") == [[101, 192]] * 6
    assert own_operators(optimized) == {"Attention": 6}
    assert_same_numbers(model, optimized)


def test_older_opsets_are_left_alone() -> None:
    model = onnx.ModelProto()
    model.CopyFrom(traced("test_vit"))
    model.opset_import[0].version = 17
    assert optimize(model) == model


def test_optimizing_needs_no_torch() -> None:
    code = "import sys, headkit.export.optimize.passes; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
