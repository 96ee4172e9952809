"""What several tests share: small random backbones, real weights, small image folders."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import headkit
from headkit.__main__ import main
from headkit.benchmarks.coverage.random_weights import enliven
from headkit.benchmarks.samples import write_weights

SMALL = "test_resnet"
"""A timm architecture of 0.5 M parameters with BatchNorm, input 160 x 160."""


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Features of tests stay out of the user's cache."""
    os.environ["HEADKIT_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def real_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ImageNet weights of tf_efficientnet_lite0 under timm's names."""
    return write_weights(tmp_path_factory.mktemp("weights") / "tf_efficientnet_lite0.safetensors")


@pytest.fixture
def small() -> Any:
    """A frozen backbone with random weights and its own classifier of 1000 classes."""
    return random_backbone()


def random_backbone(architecture: str = SMALL, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return headkit.load_backbone(architecture, pretrained=False)


def lively_backbone(architecture: str = SMALL, seed: int = 0) -> Any:
    """No branch without effect: timm starts the last scale of many branches at zero."""
    model = random_backbone(architecture, seed)
    enliven(model)
    return model


@pytest.fixture(scope="session")
def small_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of ``random_backbone()`` in a file."""
    from safetensors.torch import save_file

    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_file(random_backbone().state_dict(), path)
    return path


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of 8 images: bright, dark and striped."""
    return write_shapes(tmp_path_factory.mktemp("shapes"))


def write_shapes(root: Path, images: int = 8) -> Path:
    generator = np.random.default_rng(0)
    for label in ("bright", "dark", "striped"):
        (root / label).mkdir(parents=True)
        for index in range(images):
            pixels = generator.integers(0, 60, (40, 48, 3), dtype=np.uint8)
            if label == "bright":
                pixels += 190
            elif label == "striped":
                pixels[::4] += 190
            Image.fromarray(pixels).save(root / label / f"{index}.png")
    return root


@pytest.fixture
def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """Run the command line in this process: ``run("info", path)`` gives status, stdout, stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["headkit", *map(str, arguments)])
        status = 0
        try:
            main()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return call
