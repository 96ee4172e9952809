"""A backbone, heads for it, and a merged model that heads are grafted into."""

from pathlib import Path
from typing import Any

import pytest
from torch import nn

import headkit
from tests.backbones import random_backbone
from tests.heads import head_for


@pytest.fixture(scope="session")
def model() -> Any:
    return random_backbone()


@pytest.fixture(scope="session")
def heads(model: nn.Module) -> dict[str, headkit.Head]:
    return {
        "old": head_for(model, 5),
        "new": head_for(model, 7),
        "mlp": head_for(model, 4, kind="mlp"),
    }


@pytest.fixture(scope="session")
def merged(
    model: nn.Module, heads: dict[str, headkit.Head], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("graft") / "model.onnx"
    headkit.export(heads["old"], path, backbone=model, probabilities=True, preprocess=False)
    return path
