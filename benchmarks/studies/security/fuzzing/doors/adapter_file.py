"""ONNX Runtime's adapter files: give one to ``Predictor`` for a swappable model."""

from __future__ import annotations

from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnxruntime as ort

from headkit.export.predict.predictor import Predictor

from ..mutations.byte_edits import edit_bytes
from ..seeds import SeedFiles
from .door import Door
from .model import IMAGE

_NUMBERS = (0, 1, 2, 3, 9, 10, 71, 79, 80, 81, 2**31 - 1, -1, -(2**31))
_DTYPES = ("float32", "float64", "float16", "int64", "int8", "uint8", "bool")
_EDGES = (0, 1, 2, 3, 4, 8, 16, 1000, 100_000)


def open_door(seeds: SeedFiles, folder: Path) -> Door:
    """See ``doors.open_door``."""
    path, model = folder / "head.onnx_adapter", seeds.folder / "resnet-swappable.onnx"

    def enter(content: bytes) -> None:
        path.write_bytes(content)
        predictor = Predictor(model, {"head": path}, threads=1)
        predictor([IMAGE], head="head")

    return Door([seeds.read("resnet.onnx_adapter")], _change, enter)


def _change(content: bytes, random: Random) -> bytes:
    """Change bytes, or write other arrays and numbers with ONNX Runtime."""
    if random.random() < 0.5:
        return edit_bytes(content, random)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "head.onnx_adapter"
        path.write_bytes(content)
        adapter = ort.AdapterFormat.read_adapter(str(path))
        arrays = {name: one.numpy() for name, one in adapter.get_parameters().items()}
        for _ in range(random.choice((1, 1, 2))):
            _edit_arrays(arrays, random)
        if random.random() < 0.3:
            adapter.set_adapter_version(random.choice(_NUMBERS))
        if random.random() < 0.1:
            adapter.set_model_version(random.choice(_NUMBERS))
        values = {name: ort.OrtValue.ortvalue_from_numpy(one) for name, one in arrays.items()}
        adapter.set_parameters(values)
        adapter.export_adapter(str(path))
        written = path.read_bytes()
    return edit_bytes(written, random) if random.random() < 0.2 else written


def _edit_arrays(arrays: dict[str, np.ndarray[Any, Any]], random: Random) -> None:
    name = random.choice([*arrays, "new"])
    action = random.randrange(5)
    array = arrays.get(name, np.zeros((2, 2), np.float32))
    if action == 0 and name in arrays and len(arrays) > 1:
        del arrays[name]
    elif action == 1:
        arrays[name] = array.astype(random.choice(_DTYPES))
    elif action == 2:
        shape = [random.choice(_EDGES) for _ in range(array.ndim)]
        shape[1:] = [min(size, 16) for size in shape[1:]]
        arrays[name] = np.zeros(shape, np.float32)
    elif action == 3:
        number = random.choice((float("nan"), float("inf"), 3e38))
        arrays[name] = np.full(array.shape, number, np.float32)
    else:
        arrays[random.choice((name.upper(), "x" * 5000, "temperature", "pixel_values"))] = array
