from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

import headkit
from headkit.export.runtimes.onnxruntime import open_session
from headkit.export.runtimes.table import providers
from tests.backbones import active_backbone


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("session") / "model.onnx"
    headkit.export(headkit.adapt(active_backbone(), 3), path)
    return path


@pytest.mark.parametrize("provider", [p for p in providers() if p != "cpu"])
def test_provider_that_is_not_installed_names_the_pip_line(provider: str, model: Path) -> None:
    if providers()[provider].execution in ort.get_available_providers():
        pytest.skip("it is installed here")
    with pytest.raises(
        headkit.DependencyMissing, match=f"pip install {providers()[provider].package}"
    ):
        headkit.Predictor(model, provider=provider)


def test_provider_that_cannot_start_is_an_error_and_not_the_cpu(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime itself would continue on the CPU with a line in its log."""
    installed = [providers()["cuda"].execution, "CPUExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: installed)
    with pytest.raises(headkit.ExportError, match=r"'cuda'.* cannot start|cannot read model"):
        open_session(model, provider="cuda")


def test_unknown_provider_and_threads(model: Path) -> None:
    with pytest.raises(headkit.ExportError, match="expected one of cpu, cuda, tensorrt, openvino"):
        headkit.Predictor(model, provider="gpu")
    session = open_session(model, threads=1)
    assert session.get_session_options().intra_op_num_threads == 1


def test_bound_inputs_and_outputs_give_the_same(model: Path) -> None:
    """A GPU runs with bound inputs and outputs; this test binds them on the CPU."""
    predictor = headkit.Predictor(model)
    x = np.random.default_rng(0).normal(size=(3, 3, 160, 160)).astype(np.float32)
    (bound,) = predictor._session.run_bound(["logits"], {"pixel_values": x})
    assert np.array_equal(bound, predictor.logits(x))


@pytest.mark.skipif(
    "CUDAExecutionProvider" not in ort.get_available_providers(), reason="needs a GPU"
)
def test_gpu_agrees_with_the_cpu(model: Path) -> None:
    x = np.random.default_rng(0).normal(size=(3, 3, 160, 160)).astype(np.float32)
    expected = headkit.Predictor(model).logits(x)
    found = headkit.Predictor(model, provider="cuda").logits(x)
    assert np.abs(found - expected).max() < 1e-3 * np.abs(expected).max()
