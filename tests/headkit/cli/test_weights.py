"""Own fine-tuned backbones on the command line: fit a head on them, and export and measure it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.models import save_for_hf

import headkit
from tests.checkpoints import prefixed, save, trained

Run = Callable[..., tuple[int, str, str]]


def _fails(run: Run, *arguments: object) -> str:
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert err.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in err
    return err


@pytest.mark.parametrize(
    "form", ["full checkpoint", "without classifier", "Lightning", "other names"]
)
def test_head_is_fitted_on_an_own_backbone_and_exported_from_its_file(
    form: str, run: Run, shapes: Path, tmp_path: Path
) -> None:
    state = trained().state_dict()
    backbone = {n: t for n, t in state.items() if not n.startswith("fc.")}
    value = {
        "full checkpoint": state,
        "without classifier": backbone,
        "Lightning": {"state_dict": prefixed(state, "model.")},
        "other names": {f"layer{i}": t for i, t in enumerate(backbone.values())},
    }[form]
    weights = save(value, tmp_path / "ft.pth")
    remap = ("--remap",) if form == "other names" else ()
    head, model = tmp_path / "head.safetensors", tmp_path / "m.onnx"
    fit = ("fit", "--backbone", "test_resnet", "--data", shapes, "--out", head, "--workers", "0")
    if remap:
        assert "--remap" in _fails(run, *fit, "--weights", weights)
    status, _, err = run(*fit, "--weights", weights, *remap)
    assert status == 0, err
    assert "ft.pth" in _fails(run, "export", head, "--out", model)
    status, _, err = run("export", head, "--out", model, "--weights", weights, *remap)
    assert status == 0, err
    timm_model = trained()
    attached = headkit.attach(timm_model, head)
    x = torch.rand(2, 3, 160, 160)
    with torch.inference_mode():
        expected = attached(x).numpy()
    np.testing.assert_allclose(headkit.Predictor(model).logits(x.numpy()), expected, atol=1e-4)


def test_head_on_a_folder_of_timm_is_fitted_exported_and_evaluated_with_backbone(
    run: Run, shapes: Path, tmp_path: Path
) -> None:
    save_for_hf(trained("test_vit", img_size=96), tmp_path / "vit", safe_serialization=True)
    backbone = f"local-dir:{tmp_path / 'vit'}"
    head, model = tmp_path / "head.safetensors", tmp_path / "m.onnx"
    arguments = ("--data", shapes, "--workers", "0")
    status, _, err = run("fit", "--backbone", backbone, *arguments, "--out", head)
    assert status == 0, err
    assert "--backbone local-dir:FOLDER" in _fails(run, "export", head, "--out", model)
    assert run("export", head, "--out", model, "--backbone", backbone)[0] == 0
    assert "--backbone local-dir:FOLDER" in _fails(run, "evaluate", head, *arguments)
    assert run("evaluate", head, *arguments, "--backbone", backbone)[0] == 0


def test_wrong_weights_are_one_line_that_names_them(run: Run, shapes: Path, tmp_path: Path) -> None:
    weights = save(trained("test_vit").state_dict(), tmp_path / "vit.pth")
    head = tmp_path / "head.safetensors"
    fit = ("fit", "--backbone", "test_resnet", "--data", shapes, "--out", head)
    err = _fails(run, *fit, "--weights", weights)
    assert len(err.splitlines()) == 1
    assert "vit.pth do not fit test_resnet" in err
    assert not head.exists()
