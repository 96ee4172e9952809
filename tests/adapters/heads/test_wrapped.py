"""Compiled, parallel and averaged models are taken as the timm model inside."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm.utils
import torch
from torch import nn

import headkit
from tests.backbones import active_backbone

WRAPPERS: dict[str, Callable[[nn.Module], Any]] = {
    "torch.compile": lambda m: torch.compile(m, backend="eager"),
    "compiled in place": lambda m: _compile_in_place(m),
    "DataParallel": nn.DataParallel,
    "compiled DataParallel": lambda m: torch.compile(nn.DataParallel(m), backend="eager"),
    "AveragedModel": torch.optim.swa_utils.AveragedModel,
    "ModelEmaV2": timm.utils.ModelEmaV2,
    "ModelEmaV3": timm.utils.ModelEmaV3,
}


def _compile_in_place(model: nn.Module) -> nn.Module:
    model.compile(backend="eager")
    return model


@pytest.fixture(params=WRAPPERS)
def wrap(request: pytest.FixtureRequest) -> Callable[[nn.Module], Any]:
    return WRAPPERS[request.param]


def test_head_of_a_wrapped_model_is_that_of_the_model(wrap: Callable[[nn.Module], Any]) -> None:
    model = headkit.adapt(active_backbone(), 3)
    expected = headkit.head_of(copy.deepcopy(model), "abc")
    found = headkit.head_of(wrap(model), "abc")
    assert found.with_changes(created=expected.created) == expected


def test_wrapped_model_takes_a_head_and_gives_features(
    wrap: Callable[[nn.Module], Any], tmp_path: Path
) -> None:
    model = headkit.adapt(active_backbone(), 3)
    head = headkit.save_head(model, tmp_path / "head.safetensors")
    x = torch.rand(2, 3, 160, 160)
    with torch.inference_mode():
        expected, pooled = model(x), _one(headkit.features(model, x))
    wrapped = wrap(active_backbone())
    assert headkit.attach(wrapped, head) is wrapped
    with torch.inference_mode():
        assert torch.equal(wrapped(x), expected)
        features = _one(headkit.features(wrapped, x))
        assert torch.equal(features, pooled)
        assert torch.equal(headkit.classify(wrapped, features), expected)


def test_wrapped_model_takes_a_head_over_levels(
    wrap: Callable[[nn.Module], Any], tmp_path: Path
) -> None:
    x = torch.rand(2, 3, 160, 160)
    model = headkit.adapt(active_backbone(), 3, levels="all")
    head = headkit.save_head(model, tmp_path / "head.safetensors")
    with torch.inference_mode():
        expected = model(x)
    wrapped = wrap(active_backbone())
    with torch.inference_mode():
        wrapped(x)  # a compiled model has code without the hooks
    headkit.attach(wrapped, head)
    found = headkit.head_of(wrapped)
    assert found.with_changes(created=head.created) == head
    with torch.inference_mode():
        assert (wrapped(x) - expected).abs().max() <= 1e-5 * expected.abs().max()
    headkit.adapt(wrapped, 2)
    with torch.inference_mode():
        assert list(wrapped(x).shape) == [2, 2]


def _one(features: Any) -> torch.Tensor:
    assert isinstance(features, torch.Tensor)
    return features


@pytest.mark.parametrize("name", ["torch.compile", "compiled in place", "DataParallel"])
def test_wrapped_model_is_adapted_fitted_and_exported(
    name: str, shapes: Path, tmp_path: Path
) -> None:
    wrapped = WRAPPERS[name](active_backbone())
    adapted = headkit.adapt(wrapped, 5)
    assert adapted is wrapped
    trained = {n for n, p in wrapped.named_parameters() if p.requires_grad}
    assert {n.removeprefix("_orig_mod.").removeprefix("module.") for n in trained} == {
        "fc.weight",
        "fc.bias",
    }
    wrapped.train()
    assert not any(part.training for part in wrapped.modules() if isinstance(part, nn.BatchNorm2d))
    head = headkit.fit(wrapped, shapes, workers=0)
    assert head.label_names == ("bright", "dark", "striped")
    x = torch.rand(2, 3, 160, 160)
    headkit.export(wrapped.eval(), tmp_path / "m.onnx", label_names=head.label_names)
    logits = headkit.Predictor(tmp_path / "m.onnx").logits(x.numpy())
    plain = headkit.attach(active_backbone(), head)
    with torch.inference_mode():
        np.testing.assert_allclose(logits, plain(x).numpy(), atol=1e-4)
    headkit.export(head, tmp_path / "h.onnx", backbone=WRAPPERS[name](active_backbone()))


def test_module_around_a_timm_model_is_refused_with_the_name_of_the_model(tmp_path: Path) -> None:
    class Lightning(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = active_backbone()
            self.criterion = nn.CrossEntropyLoss()

    with pytest.raises(headkit.ContractError, match="expected a timm model: pass its part net"):
        headkit.save_head(Lightning(), tmp_path / "head.safetensors")
