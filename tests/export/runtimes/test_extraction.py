import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import headkit
from headkit.export.runtimes import onnx_backbone as onnx_backbone_module
from headkit.export.runtimes.choose import choose_runtime
from headkit.export.runtimes.onnx_backbone import onnx_backbone
from headkit.export.runtimes.onnxruntime import OnnxRuntime
from headkit.export.runtimes.openvino import openvino_core
from headkit.export.runtimes.torch import TorchRuntime
from tests.backbones import SHORT, active_backbone, random_backbone

BATCH = 4


def _pixels(model: Any) -> np.ndarray[Any, np.dtype[np.uint8]]:
    size = model.pretrained_cfg["input_size"]
    return np.random.default_rng(0).integers(0, 256, (BATCH, *size), dtype=np.uint8)


@pytest.mark.parametrize("architecture", ["test_resnet", "test_vit", "crossvit_tiny_240"])
def test_onnx_runtime_extracts_the_features_of_torch(architecture: str, tmp_path: Path) -> None:
    model = active_backbone(architecture, **SHORT.get(architecture, {}))
    pixels = _pixels(model)
    expected = TorchRuntime().start(model, tmp_path, BATCH)(pixels)
    found = OnnxRuntime().start(model, tmp_path, BATCH)(pixels)
    for branch, like in zip(found, expected, strict=True):
        assert branch.dtype == np.float32
        assert np.abs(branch - like).max() <= 1e-5 * np.abs(like).max()


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime", "openvino"])
@pytest.mark.parametrize("architecture", ["test_resnet", "test_vit"])
def test_vectors_of_levels_follow_the_features(
    architecture: str, runtime: str, tmp_path: Path
) -> None:
    pytest.importorskip(runtime)
    model = active_backbone(architecture)
    pixels = _pixels(model)
    mean, std = (np.reshape(model.pretrained_cfg[key], (-1, 1, 1)) for key in ("mean", "std"))
    images = torch.from_numpy(((pixels / 255 - mean) / std).astype(np.float32))
    with torch.no_grad():
        expected = headkit.features(model, images, levels="all")
    start = choose_runtime(runtime, "fp32", model).start
    found = start(model, tmp_path, BATCH, levels="all")(pixels)
    for vector, like in zip(found, expected.values(), strict=True):
        difference = np.abs(vector.reshape(BATCH, -1) - like.numpy()).max()
        assert difference <= 1e-5 * like.abs().max().item()
    *_, name = expected
    features, last = start(model, tmp_path, BATCH, levels=["last", name])(pixels)
    assert np.array_equal(features, found[0])
    assert np.abs(last - found[-1]).max() <= 1e-6 * np.abs(last).max()


def test_name_of_a_backbone_depends_on_its_levels(tmp_path: Path) -> None:
    model = random_backbone()
    plain = onnx_backbone(model, tmp_path)
    assert onnx_backbone(model, tmp_path, levels="last") == plain
    assert len({plain, *(onnx_backbone(model, tmp_path, levels=n) for n in ("all", "act1"))}) == 3


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 0.05)])
def test_openvino_extracts_the_features_of_torch(
    precision: str, tolerance: float, tmp_path: Path
) -> None:
    pytest.importorskip("openvino")
    capable = openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if precision == "bf16" and "BF16" not in capable:
        pytest.skip("this processor has no bfloat16")
    model = active_backbone("test_vit")
    pixels = _pixels(model)
    before = torch.get_num_threads()
    (expected,) = TorchRuntime(threads=before + 1).start(model, tmp_path, BATCH)(pixels)
    assert torch.get_num_threads() == before
    (found,) = choose_runtime("openvino", precision, model).start(model, tmp_path, BATCH)(pixels)
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


def test_a_signal_after_openvino_does_not_end_the_process(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    program = """
import gc, os, signal, sys
from pathlib import Path
import numpy as np
from headkit.export.runtimes.openvino import OpenVinoRuntime
from tests.backbones import active_backbone

def use():
    model = active_backbone("test_vit")
    runs = [OpenVinoRuntime().start(model, Path(sys.argv[1]), 1) for _ in range(2)]
    for run in runs:
        run(np.zeros((1, *model.pretrained_cfg["input_size"]), np.uint8))

got = []
signal.signal(signal.SIGUSR1, lambda *_: got.append(1))
use()
gc.collect()
os.kill(os.getpid(), signal.SIGUSR1)
assert got
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    root = Path(__file__).parents[3]
    ended = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def test_bfloat16_of_torch_is_close_to_float32(tmp_path: Path) -> None:
    model = active_backbone("test_vit")
    pixels = _pixels(model)
    (expected,) = TorchRuntime().start(model, tmp_path, BATCH)(pixels)
    (found,) = TorchRuntime("bf16").start(model, tmp_path, BATCH)(pixels)
    assert found.dtype == np.float32
    assert 0 < np.abs(found - expected).max() <= 0.05 * np.abs(expected).max()


def test_backbone_is_converted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = onnx_backbone(random_backbone(), tmp_path)
    monkeypatch.setattr(
        onnx_backbone_module, "export", lambda *_, **__: pytest.fail("converted again")
    )
    assert onnx_backbone(random_backbone(), tmp_path) == first


def test_damaged_backbone_in_the_cache_is_converted_again(tmp_path: Path) -> None:
    """A flipped bit in its weights would give other features, and so another head."""
    first = onnx_backbone(random_backbone(), tmp_path)
    content = first.read_bytes()
    damaged = bytearray(content)
    damaged[len(content) // 2] ^= 1
    for bad in (bytes(damaged), content[:1000], b""):
        first.write_bytes(bad)
        assert onnx_backbone(random_backbone(), tmp_path) == first
        assert first.read_bytes() == content


def test_fastest_runtime_is_chosen(small: Any) -> None:
    assert choose_runtime("auto", "fp32", small).name == "onnxruntime"
    assert choose_runtime("auto", "bf16", small).precision == "bf16"


def test_missing_runtime_says_what_to_install(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headkit.export.runtimes.choose.find_spec", lambda _: None)
    with pytest.raises(headkit.DependencyMissing, match="pip install openvino"):
        choose_runtime("openvino", "fp32", small)


def test_torch_runs_a_backbone_that_cannot_be_converted(
    shapes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise headkit.ExportError("no operator for this")

    monkeypatch.setattr("headkit.extraction.SMALL", 0)
    monkeypatch.setattr(onnx_backbone_module, "export", fail)
    with caplog.at_level(logging.WARNING, "headkit"):
        head = headkit.fit(random_backbone(), shapes, cache=tmp_path, workers=0)
    assert head.metrics["num_train"] > 0
    assert "extracting with torch instead of onnxruntime: no operator for this" in caplog.text
    with pytest.raises(headkit.ExportError, match="no operator"):
        headkit.fit(random_backbone(), shapes, cache=tmp_path, workers=0, runtime="onnxruntime")
