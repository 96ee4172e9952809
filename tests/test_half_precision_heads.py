"""A head in half precision goes all the way: save, info, publish, attach, export, graft, serve."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from fastapi.testclient import TestClient
from PIL import Image

import headkit
from headkit.export.serving.http import application
from headkit.export.serving.service import Service
from headkit.registry.store.store import HeadStore
from tests.backbones import random_backbone
from tests.heads import head_for
from tests.images import X

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}
CASES = ["BF16", *(pytest.param(name, marks=pytest.mark.slow) for name in ("F16", "F64"))]


@pytest.mark.parametrize("dtype", CASES)
def test_head_goes_all_the_way(
    dtype: str, tmp_path: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    model = random_backbone()
    kind = DTYPES[dtype]
    own = head_for(model, 3, label_names=["x", "y", "z"])
    tensors = {
        name: torch.from_numpy(np.array(value)).to(kind) for name, value in own.tensors.items()
    }
    with safetensors.safe_open(own.save(tmp_path / "own.safetensors"), "pt") as file:
        metadata = {key: text for key, text in file.metadata().items() if key != "checksum"}
    safetensors.torch.save_file(tensors, tmp_path / "other.safetensors", metadata)
    head = headkit.Head.load(tmp_path / "other.safetensors")
    path = head.save(tmp_path / "head.safetensors")
    for name, tensor in safetensors.torch.load_file(path).items():
        assert tensor.dtype == kind
        assert torch.equal(tensor, tensors[name])

    status, out, err = run("info", path, "--json")
    assert (status, err, json.loads(out)["label_names"]) == (0, "", ["x", "y", "z"])
    store = HeadStore(tmp_path / "store")
    assert run("heads", "publish", path, "--name", "flowers", "--store", store.url)[0] == 0
    assert store.load("flowers") == head
    assert run("heads", "verify", "--store", store.url)[0] == 0

    attached = headkit.attach(random_backbone(), store.load("flowers")).eval()
    with torch.inference_mode():
        expected = attached(X).numpy()
    assert torch.equal(attached.state_dict()["fc.weight"], tensors["fc.weight"].float())

    for form in ("merged", "swappable"):
        headkit.export(head, tmp_path / f"{form}.onnx", form, backbone=model)
        logits = headkit.Predictor(tmp_path / f"{form}.onnx").logits(X.numpy())
        assert np.allclose(logits, expected, atol=1e-4)
    headkit.export(own, tmp_path / "float.onnx", backbone=model)
    headkit.graft(tmp_path / "float.onnx", path, tmp_path / "grafted.onnx")
    logits = headkit.Predictor(tmp_path / "grafted.onnx").logits(X.numpy())
    assert np.allclose(logits, expected, atol=1e-4)
    headkit.export(own, tmp_path / "swap.onnx", "swappable", backbone=model)
    headkit.graft(tmp_path / "swap.onnx", path, tmp_path / "head.onnx_adapter")
    for given in (head, path, tmp_path / "head.onnx_adapter"):
        predictor = headkit.Predictor(tmp_path / "swap.onnx", {"half": given})
        assert np.allclose(predictor.logits(X.numpy(), "half"), expected, atol=1e-4)
    headkit.export({"a": own, "b": head}, tmp_path / "multi.onnx", "multi", backbone=model)
    headkit.graft(tmp_path / "multi.onnx", own, tmp_path / "again.onnx", name="a")
    logits = headkit.Predictor(tmp_path / "again.onnx").logits(X.numpy(), "b")
    assert np.allclose(logits, expected, atol=1e-4)

    headkit.export(model, tmp_path / "backbone.onnx", "backbone")
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), "green").save(buffer, "PNG")
    with TestClient(application(Service(store, tmp_path / "backbone.onnx"))) as client:
        answer = client.post(
            "/predict", files={"image": buffer.getvalue()}, data={"head": ["flowers"]}
        )
    assert answer.status_code == 200, answer.text
    served = {one["label"]: one["score"] for one in answer.json()["flowers"]["predictions"]}
    (here,) = headkit.Predictor(tmp_path / "merged.onnx")(buffer.getvalue())
    assert served == pytest.approx({one["label"]: one["score"] for one in here}, abs=1e-4)
