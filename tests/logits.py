"""Logits of an ONNX model, the logits that torch gives, and how close the two must be."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from torch import nn

import headkit

Array = np.ndarray[Any, Any]


def session(path: Path) -> ort.InferenceSession:
    """ONNX Runtime on the CPU, without its warnings."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(path, options)


def torch_logits(model: nn.Module, head: headkit.Head, x: torch.Tensor) -> Array:
    """The reference: the logits of ``model`` with ``head`` attached."""
    with torch.inference_mode():
        logits = headkit.attach(model, head)(x)
    return np.asarray(logits.numpy())


def assert_close(found: Array, expected: Array) -> None:
    """Assert a difference of less than 1e-4 of the largest expected number."""
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
