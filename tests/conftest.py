"""Fixtures for all tests: a small backbone, weights, a folder of images, the command line."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# pytest-xdist starts one worker per core, so each worker and what it starts compute on one thread.
# The libraries read these variables when they are imported.
for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_variable] = "1"

import onnxruntime as ort

from headkit.__main__ import main
from headkit.benchmarks.samples import write_weights
from tests.backbones import random_backbone
from tests.images import write_shapes


class _OneThread(ort.SessionOptions):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.intra_op_num_threads = 1


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """ONNX Runtime reads no variable: its sessions get one thread unless a test sets another."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ort, "SessionOptions", _OneThread)
        yield


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One worker for each processor that this process may use, hyper-threads included."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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
