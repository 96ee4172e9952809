"""Write head files as an attacker does: with safetensors and JSON alone."""

import copy
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

DESCRIPTION: dict[str, Any] = {
    "architecture": "test_resnet",
    "num_classes": 3,
    "num_features": 5,
    "global_pool": "avg",
    "kind": "linear",
    "label_names": ["cat", "dog", "fox"],
    "model_args": {},
    "pretrained_cfg": {
        "input_size": [3, 32, 32],
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "interpolation": "bicubic",
        "crop_pct": 0.95,
        "crop_mode": "center",
    },
    "task": "multiclass",
    "backbone": {
        "tag": "r160_in1k",
        "source": "hub:timm/test_resnet.r160_in1k",
        "parameters": 1000,
        "fingerprint": "0" * 64,
    },
    "temperature": 1.0,
    "metrics": {},
    "created": "",
    "versions": {},
    "notes": "",
}
"""Description of a head file that harms nobody."""


def write_head(path: Path, tensors: Mapping[str, Any] | None = None, **changes: Any) -> Path:
    """Write a head file with changes to its description."""
    if tensors is None:
        tensors = {"fc.weight": np.ones((3, 5), np.float32), "fc.bias": np.ones(3, np.float32)}
    description = {**copy.deepcopy(DESCRIPTION), **changes}
    metadata = {"format": "headkit", "version": "1", "head": json.dumps(description)}
    safetensors.numpy.save_file(dict(tensors), path, metadata)
    return path


def write_raw_head(path: Path, header: Mapping[str, Any], data: bytes, **changes: Any) -> Path:
    """Write a head file whose tensors safetensors for NumPy cannot write."""
    description = {**copy.deepcopy(DESCRIPTION), **changes}
    metadata = {"format": "headkit", "version": "1", "head": json.dumps(description)}
    text = json.dumps({**header, "__metadata__": metadata}).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def run_headkit(*arguments: object, seconds: float = 100) -> subprocess.CompletedProcess[str]:
    """Run the command ``headkit`` in a process of its own.

    Raises:
        subprocess.TimeoutExpired: It has not ended in time.
    """
    command = [sys.executable, "-m", "headkit", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=seconds)
