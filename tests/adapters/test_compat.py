"""Each name that a library does not promise to keep, against the installed library."""

import ast
import logging
import subprocess
import sys
from functools import partial
from typing import Any

import numpy as np
import onnx
import pytest
import timm
import torch
from onnx import TensorProto, helper
from torch import nn

from headkit.adapters import compat
from headkit.adapters.backbone.module_copy import copy_structure
from tests.shipped import shipped_modules

LIBRARIES = ("torch", "timm", "onnxruntime", "onnxscript", "onnx_ir")
UNDOCUMENTED = {
    "fused_attn",
    "fuse",
    "reparameterize",
    "switch_to_deploy",
    "ONNXModel",
    "convert_float_to_float16",
}
"""Names without an underscore that the libraries do not document, as attributes or strings."""


def test_no_other_module_uses_private_names() -> None:
    registries = set(vars(nn.Module()))
    found = {}
    for path, tree in shipped_modules().items():
        names = _foreign_private(tree, {*UNDOCUMENTED, *(n for n in registries if n[0] == "_")})
        if names:
            found[path] = names
    assert found.keys() == {"adapters/compat.py"}


def test_private_names_are_recognized() -> None:
    for code in (
        "from timm.models._registry import x",
        "import torch._dynamo",
        "from torch import _C",
        "nn.modules.batchnorm._BatchNorm",
        "tensor._version",
        "vars(module)['_buffers']",
        "part.fused_attn = False",
    ):
        assert _foreign_private(ast.parse(code), {*UNDOCUMENTED, "_buffers"}), code
    assert not _foreign_private(ast.parse("self._x\nother._x\ndef _x(): ..."), UNDOCUMENTED)


def _foreign_private(tree: ast.Module, listed: set[str]) -> set[str]:
    """Private names that the module does not define itself, and names that are listed."""
    own = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("self", "cls")
    } | {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef)
    }
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            private = node.attr.startswith("_") and not node.attr.startswith("__")
            if (private and node.attr not in own) or node.attr in listed:
                found.add(node.attr)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None) or ""
            for alias in node.names:
                dotted = f"{module}.{alias.name}".strip(".").split(".")
                if dotted[0] in LIBRARIES and any(
                    part.startswith("_") or part in listed for part in dotted
                ):
                    found.add(".".join(dotted))
        elif isinstance(node, ast.Constant) and node.value in listed:
            found.add(str(node.value))
    return found


def test_importing_compat_imports_no_library() -> None:
    probe = "import sys, headkit.adapters.compat; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", probe], check=True, capture_output=True, text=True)
    assert not {*LIBRARIES, "onnx"} & set(done.stdout.split())


def test_family_is_the_one_that_timm_lists_an_architecture_under() -> None:
    for family in ("resnet", "vision_transformer", "byobnet", "naflexvit"):
        for architecture in timm.list_models(module=family):
            assert compat.family_of(architecture) == family


def test_writes_into_a_tensor_are_counted() -> None:
    tensor = torch.zeros(3)
    before = compat.num_writes(tensor)
    tensor[0].add_(1)
    assert compat.num_writes(tensor) != before
    with torch.inference_mode():
        assert compat.num_writes(torch.zeros(3)) is None


def test_operators_are_seen_on_the_meta_device() -> None:
    seen = []
    x = torch.empty(2, 3, device="meta").t()
    with torch.no_grad(), compat.watch_operators(lambda *call: seen.append(call)):
        copied = x.contiguous()
    ((operator, (source,), result),) = seen
    assert operator is torch.ops.aten.clone.default
    assert source is x
    assert result is copied


def test_a_registered_hook_is_found() -> None:
    def hook(_rate: float, _module: nn.Module, args: Any) -> Any:
        return args

    module = nn.Linear(2, 2)
    module.register_forward_pre_hook(lambda _module, args: args)
    assert not compat.has_forward_pre_hook(module, hook)
    module.register_forward_pre_hook(partial(hook, 0.5))
    assert compat.has_forward_pre_hook(module, hook)


def test_registries_of_a_module_are_known() -> None:
    module = nn.Sequential(nn.BatchNorm2d(2))
    module.register_buffer("kept", torch.zeros(1), persistent=False)
    module.register_forward_hook(lambda *_: None)
    copied = copy_structure(module, share_tensors=True)
    registries = {name for name in vars(module) if compat.is_member_registry(name)}
    assert len(registries) == 3
    assert copied.get_parameter("0.weight") is module.get_parameter("0.weight")
    assert copied.get_buffer("kept") is module.get_buffer("kept")
    assert copied.get_submodule("0") is not module.get_submodule("0")
    copied.register_buffer("new", torch.zeros(1), persistent=False)
    del copied.kept
    assert "kept" not in module.state_dict()
    hooks = [vars(copied)[name] for name in vars(copied) if compat.is_hook_registry(name)]
    assert len(hooks) > 4
    assert not any(hooks)


def test_bfloat16_is_asked_for() -> None:
    assert isinstance(compat.multiplies_bfloat16(), bool)


def test_attention_is_split_and_gives_the_same() -> None:
    model = timm.create_model("test_vit").eval()
    calls = []
    fused = nn.functional.scaled_dot_product_attention
    x = torch.randn(1, 3, 160, 160)

    def count(*args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(args)
        return fused(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(nn.functional, "scaled_dot_product_attention", count)
        expected = model(x)
        assert calls
        calls.clear()
        compat.split_attention(model)
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    assert not calls


@pytest.mark.parametrize("name", ["repvit_m0_9", "levit_128s", "mobileone_s0", "repghostnet_050"])
def test_what_timm_fuses_is_known(name: str) -> None:
    model = timm.create_model(name, device="meta").eval()
    assert any(compat.has_fusion(part) for part in model.modules())


def test_what_timm_does_not_fuse_is_known() -> None:
    assert not any(compat.has_fusion(p) for p in timm.create_model("test_resnet").modules())


def _small_model() -> onnx.ModelProto:
    weight = helper.make_tensor("w", TensorProto.FLOAT, [4, 2], np.arange(8.0).tolist())
    unused = helper.make_tensor("unused", TensorProto.FLOAT, [1], [1.0])
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2])],
        [weight, unused],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])


def test_float16_keeps_the_inputs_and_sorts_the_nodes() -> None:
    half = compat.to_float16(_small_model())
    assert half.graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT
    (weight,) = (t for t in half.graph.initializer if t.name == "w")
    assert weight.data_type == TensorProto.FLOAT16
    assert [node.op_type for node in half.graph.node] == ["Cast", "MatMul", "Cast"]


def test_unused_initializers_are_dropped() -> None:
    model = _small_model()
    compat.drop_unused_initializers(model)
    assert [tensor.name for tensor in model.graph.initializer] == ["w"]


def test_quantization_reports_to_a_logger_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    from onnxruntime.quantization import onnx_quantizer, qdq_quantizer, quant_utils

    compat.give_quantization_a_logger()
    compat.give_quantization_a_logger()
    with caplog.at_level(logging.INFO):
        for module in (onnx_quantizer, qdq_quantizer, quant_utils):
            module.logging.info("from %s", module.__name__)
            assert module.logging.getLogger("x") is logging.getLogger("x")
            assert module.logging.INFO == logging.INFO
    assert {record.name for record in caplog.records} == {compat.QUANTIZATION_LOGGER}
    assert len(caplog.records) == 3


def test_protocol_of_uvicorn_has_what_the_limits_of_a_server_use() -> None:
    protocol = compat.http_protocol()
    for method in ("connection_made", "data_received", "connection_lost"):
        assert callable(getattr(protocol, method))
    assert {
        "client",
        "connections",
        "cycle",
        "loop",
        "transport",
    } <= protocol.__annotations__.keys() | set(protocol.__init__.__code__.co_names)
