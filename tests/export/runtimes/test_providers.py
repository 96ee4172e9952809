"""Names of execution providers: headkit's, and those that users of ONNX Runtime write."""

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

import headkit
from headkit.export.runtimes.providers import choose_providers
from tests.fixtures import MODELS

MODEL = MODELS / "resnet_merged.onnx"
GPU = [("CUDAExecutionProvider", {"device_id": 1, "do_copy_in_default_stream": True})]


@pytest.mark.parametrize(
    "provider",
    [
        "cpu",
        "CPU",
        "CPUExecutionProvider",
        "cpuexecutionprovider",
        ["CPUExecutionProvider"],
        ("cpu",),
        [("CPUExecutionProvider", {})],
    ],
)
def test_a_predictor_takes_every_spelling_of_the_cpu(provider: Any) -> None:
    predictor = headkit.Predictor(MODEL, provider=provider)
    assert predictor.session.get_providers() == ["CPUExecutionProvider"]
    assert "provider=cpu" in repr(predictor)


def test_every_available_provider_of_onnx_runtime_has_its_own_name_here() -> None:
    for execution in ort.get_available_providers():
        assert choose_providers(execution).executions == (execution,)


@pytest.fixture
def _all_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", ort.get_all_providers)


@pytest.mark.usefixtures("_all_installed")
def test_names_and_options_reach_onnx_runtime_as_texts() -> None:
    chosen = choose_providers(GPU)
    assert chosen.executions == ("CUDAExecutionProvider",)
    assert chosen.options == ({"device_id": "1", "do_copy_in_default_stream": "True"},)
    assert (chosen.device, chosen.device_id) == ("cuda", 1)
    assert choose_providers("cuda", {"device_id": 1}).options == ({"device_id": "1"},)
    listed = choose_providers(["TensorrtExecutionProvider", "cuda"], [{"device_id": 2}, {}])
    assert listed.names == ("tensorrt", "cuda")
    assert listed.options == ({"device_id": "2"}, {})
    assert choose_providers("coreml").executions == ("CoreMLExecutionProvider",)


@pytest.mark.skipif(
    "CUDAExecutionProvider" in ort.get_available_providers(), reason="CUDA is installed here"
)
@pytest.mark.parametrize(
    ("provider", "message"),
    [
        ("CUDAExecutionProvider", "pip install onnxruntime-gpu$"),
        (["CUDAExecutionProvider", "CPUExecutionProvider"], "does not fall back .* leave 'cuda'"),
        (["cpu", "cuda"], "does not fall back"),
        ("CoreMLExecutionProvider", "build of ONNX Runtime with CoreMLExecutionProvider"),
    ],
)
def test_a_provider_that_is_not_installed_is_never_replaced(provider: Any, message: str) -> None:
    with pytest.raises(headkit.DependencyMissing, match=message):
        headkit.Predictor(MODEL, provider=provider)


@pytest.mark.parametrize(
    ("provider", "options", "message"),
    [
        ("gpu", None, "'gpu', expected one of cpu, cuda, .* 'CPUExecutionProvider'"),
        ("", None, "provider is ''"),
        ([], None, r"provider is \[\]"),
        (3, None, "provider is 3"),
        ([3], None, "provider is 3"),
        ({"cpu": 1}, None, "provider is"),
        ("cpu", {"arena": 1}, "'cpu' has no options, found arena"),
        ("cuda", 3, "provider_options is 3, expected a mapping"),
        ("cuda", [{}, {}], "2 entries for 1 providers"),
        ("cuda", "device_id", "9 entries|expected a mapping"),
        (GPU, {"device_id": 1}, "given twice"),
    ],
)
def test_wrong_providers_and_options_are_refused(provider: Any, options: Any, message: str) -> None:
    with pytest.raises(headkit.ExportError, match=message):
        headkit.Predictor(MODEL, provider=provider, provider_options=options)


def test_a_run_that_fails_is_not_repeated_on_another_provider() -> None:
    """ONNX Runtime would repeat it with the providers that it falls back to."""
    predictor = headkit.Predictor(MODEL)
    assert predictor.session._enable_fallback is False
    with pytest.raises(headkit.ExportError, match="cannot run the model"):
        predictor.logits(np.zeros((1, 3, 7), np.float32))


@pytest.mark.skipif(
    "CUDAExecutionProvider" not in ort.get_available_providers(), reason="needs a GPU"
)
def test_options_of_a_gpu_are_in_force() -> None:
    predictor = headkit.Predictor(MODEL, provider=GPU[0][0], provider_options={"device_id": 0})
    options = predictor.session.get_provider_options()["CUDAExecutionProvider"]
    assert options["device_id"] == "0"
    with pytest.raises(headkit.ExportError, match="cannot"):
        headkit.Predictor(MODEL, provider="cuda", provider_options={"nonsense": 1})


def test_the_command_line_takes_names_of_onnx_runtime(run: Any) -> None:
    image = MODELS.parent / "images" / "dark" / "0.png"
    status, out, err = run("predict", MODEL, image, "--provider", "CPUExecutionProvider")
    assert status == 0, err
    assert "dark" in out
    status, _, err = run("predict", MODEL, image, "--provider", "gpu")
    assert status == 2
    assert "expected one of cpu" in err
