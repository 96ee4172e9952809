"""Run an exported model: images in, labels and scores out. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from PIL import Image

from ..adapters.errors import DataError, DependencyMissing, ExportError, first_line
from .metadata import ModelInfo
from .preprocess import Preprocess

try:
    import onnxruntime as ort
except ImportError as missing:
    raise DependencyMissing.of("running an exported model", "onnxruntime") from missing

ImageLike = str | Path | Image.Image | np.ndarray[Any, Any]


class Prediction(TypedDict):
    """One class of one image: its label name, and its probability (a value for regression)."""

    label: str
    score: float


def open_session(path: str | Path, threads: int | None = None) -> ort.InferenceSession:
    """Open an ONNX file in ONNX Runtime on the CPU.

    Raises:
        ExportError: there is no such file, or ONNX Runtime cannot read it.
    """
    path = Path(path)
    if not path.is_file():
        raise ExportError(f"cannot read model {path}: no such file")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own classes share no root below Exception
        raise ExportError(f"cannot read model {path}: {first_line(error)}") from error


class Predictor:
    """An exported model, ready to classify images.

    Args:
        onnx_path: a file that ``headkit export`` wrote.
        threads: of ONNX Runtime; without it one per core.

    Attributes:
        info: labels, preprocessing, backbone and versions of the model.
        preprocess: what is applied to each image.

    Raises:
        ExportError: the file is missing, damaged, or was not exported by headkit.

    Example:
        >>> predictor = Predictor("digits.onnx")  # doctest: +SKIP
        >>> predictor(["seven.png"], top_k=1)  # doctest: +SKIP
        [[{'label': '7', 'score': 0.99}]]
    """

    def __init__(self, onnx_path: str | Path, *, threads: int | None = None) -> None:
        self.session = open_session(onnx_path, threads)
        props = self.session.get_modelmeta().custom_metadata_map
        self.info = ModelInfo.from_props(props, str(onnx_path))
        self.preprocess = Preprocess.from_cfg(self.info.head["pretrained_cfg"])

    def __call__(
        self, images: ImageLike | Iterable[ImageLike], *, top_k: int = 5, batch_size: int = 16
    ) -> list[list[Prediction]]:
        """Classify images.

        Args:
            images: paths, Pillow images or uint8 arrays ``[height, width, 3]``; one or many.
            top_k: predictions per image, at most one per class.
            batch_size: images per run.

        Returns:
            For each image its ``top_k`` predictions, the best first.

        Raises:
            DataError: an image cannot be read.
        """
        if top_k < 1:
            raise ValueError(f"top_k is {top_k}, expected at least 1")
        if isinstance(images, str | Path | Image.Image | np.ndarray):
            images = [images]
        listed = list(images)
        results: list[list[Prediction]] = []
        for start in range(0, len(listed), batch_size):
            pixels = np.stack(
                [self.preprocess(_open(i)) for i in listed[start : start + batch_size]]
            )
            results += [self._top(row, top_k) for row in self.scores(self.logits(pixels))]
        return results

    def logits(self, pixel_values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Run the model. ``[batch, 3, height, width]`` float32 to ``[batch, num_classes]``."""
        (logits,) = self.session.run(["logits"], {"pixel_values": pixel_values})
        return np.asarray(logits)

    def scores(self, logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Turn logits ``[batch, num_classes]`` into probabilities, by the head's task."""
        task = self.info.head.get("task", "multiclass")
        if task == "regression":
            return logits
        scaled = logits.astype(np.float64) / self.info.head.get("temperature", 1.0)
        if task == "multilabel":
            return np.asarray(0.5 * (1 + np.tanh(scaled / 2)))  # the sigmoid, without overflow
        powers = np.exp(scaled - scaled.max(1, keepdims=True))
        return np.asarray(powers / powers.sum(1, keepdims=True))

    def _top(self, scores: Sequence[float], top_k: int) -> list[Prediction]:
        order = np.argsort(-np.asarray(scores), kind="stable")[:top_k]
        names = self.info.label_names
        return [Prediction(label=names[i], score=float(scores[i])) for i in order]


def _open(image: ImageLike) -> Image.Image:
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise DataError(
                f"an image array is {image.dtype} {list(image.shape)}, "
                "expected uint8 [height, width, 3]"
            )
        return Image.fromarray(image)
    try:
        with Image.open(image) as opened:
            return opened.convert("RGB")
    except Exception as error:  # whatever Pillow raises on damaged bytes
        reason = "no such file" if isinstance(error, FileNotFoundError) else str(error)
        raise DataError(f"cannot read image {image}: {reason}") from error
