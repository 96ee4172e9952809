"""Open a model that headkit exported, after a check of everything in its file."""

from __future__ import annotations

import mmap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from headkit.adapters.errors import ExportError
from headkit.export.graph.bounded.check import Shapes, check_graph, check_locations
from headkit.export.graph.bounded.decode import Graph, decode_graph
from headkit.export.graph.metadata import ModelInfo

from .model_source import ModelSource
from .onnxruntime import open_session
from .providers import Providers

if TYPE_CHECKING:
    import onnxruntime as ort


def open_exported(
    source: ModelSource,
    threads: int | None,
    provider: str | Providers,
    outputs: Mapping[str, Sequence[int | str]] | None = None,
) -> tuple[ort.InferenceSession, ModelInfo]:
    """Open an exported model; return ONNX Runtime's session and the model's description.

    Args:
        source: The model.
        threads: See ``open_session``.
        provider: See ``open_session``.
        outputs: See ``open_session``.

    Raises:
        ExportError: See ``read_exported`` and ``open_session``.
    """
    info = read_exported(source)
    return open_session(source, threads, provider, outputs=outputs), info


def read_exported(source: ModelSource) -> ModelInfo:
    """Check an exported model, and return its description.

    Raises:
        ExportError: The file is missing or damaged, headkit did not export it, its graph or its
            description is not one that headkit writes, or it needs more memory or work than its
            weights justify.
    """
    try:
        graph = _decode(source)
    except (OSError, ValueError) as error:
        reason = source.explain(str(getattr(error, "strerror", None) or error))
        raise ExportError(f"cannot read {source.noun}: {reason}") from error
    info = ModelInfo.from_props(graph.metadata, source.name)
    try:
        _check_values(info, check_graph(graph))
        _check_input(graph, info)
        if source.path is not None:
            check_locations(graph, source.path.parent)
    except ValueError as error:
        raise ExportError(f"cannot read {source.noun}: {error}: export it again") from error
    return info


def _decode(source: ModelSource) -> Graph:
    """Decode the graph.

    Raises:
        OSError, ValueError: The file cannot be read, or is damaged.
    """
    if source.path is None:
        return decode_graph(source.content)
    if not source.path.stat().st_size:
        raise ValueError("the file is empty")
    with (
        source.path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        return decode_graph(data)


def _check_values(info: ModelInfo, shapes: Shapes) -> None:
    """Check that a graph computes the features and logits that the description promises.

    Raises:
        ValueError: It does not.
    """
    # Only ``graft`` and ``Predictor.features`` need the features and levels of a model with heads.
    expected = {
        name: [1, *dims[1:]]
        for name, dims in info.values.items()
        if info.form == "backbone" or name in shapes
    }
    expected |= {head.output: [1, head.num_classes] for head in info.heads}
    for name, dims in expected.items():
        found = shapes.get(name)
        if found is None or list(found) != dims:
            shown = "nothing" if found is None else f"the shape {list(found)}"
            raise ValueError(f"its value {name!r:.60} has {shown}, expected {dims} for one image")


def _check_input(graph: Graph, info: ModelInfo) -> None:
    """Check that a graph takes the images that the description promises.

    Raises:
        ValueError: It does not.
    """
    constants = {tensor.name for tensor in graph.tensors}
    inputs = {value.name: value for value in graph.inputs if value.name not in constants}
    channels, *size = info.backbone["pretrained_cfg"]["input_size"]
    name, expected = "pixel_values", ["batch", channels, *size]
    if info.preprocess:
        name, expected = "image", ["batch", "height", "width", channels]
    found = inputs.get(name)
    fits = found is not None and len(found.dims) == 4 and len(inputs) == 1
    if found is None or not fits or not all(map(_agree, found.dims, expected)):
        shown = {one.name: list(one.dims) for one in inputs.values()}
        raise ValueError(f"its inputs are {shown!r:.300}, expected {name} {expected}")


def _agree(size: int | str, expected: int | str) -> bool:
    return isinstance(size, str) or isinstance(expected, str) or size == expected
