"""Head and backbone to one ONNX file, run and compared with torch before it gets its name."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from ..adapters.adapt import attach, head_of
from ..adapters.backbone import load_backbone_of
from ..adapters.errors import ExportError, ParityError, first_line
from ..adapters.files import atomic_path, check_writable
from ..adapters.head import Head
from .metadata import ModelInfo
from .predictor import open_session

TRACED_BATCH = 2
VERIFIED_BATCHES = (1, 3, 8)
TOLERANCE = 1e-4
"""Largest difference between ONNX Runtime and torch, relative to the largest logit."""


@dataclass(frozen=True)
class Exported:
    """What an export gave.

    Attributes:
        path: of the ONNX file.
        num_bytes: size of the file.
        opset: of the default ONNX domain.
        difference: per verified batch size, the largest difference from torch relative to the
            largest logit.
    """

    path: Path
    num_bytes: int
    opset: int
    difference: dict[int, float]


def export(
    model_or_head: nn.Module | Head | str | Path,
    path: str | Path,
    form: str = "merged",
    *,
    weights: str | Path | None = None,
    remap: bool = False,
    label_names: Sequence[str] | None = None,
    tolerance: float = TOLERANCE,
) -> Exported:
    """Export a backbone with its head to ONNX and verify it.

    Input ``pixel_values`` float32 ``[batch, channels, height, width]``, output ``logits``
    ``[batch, num_classes]``; the batch is dynamic. The file is run in ONNX Runtime at batch sizes
    other than the traced one and compared with torch; only a file that agrees is put at ``path``.

    Args:
        model_or_head: a timm model with a head on it, a head, or the path of a head file.
        path: where to write.
        form: ``merged``, the head as constants.
        weights: of the backbone, see ``load_backbone_of``. Not for a model.
        remap: see ``load_backbone``.
        label_names: one name per class, if a model is given.
        tolerance: largest difference between ONNX Runtime and torch that is accepted, relative to
            the largest logit.

    Raises:
        OutputError: ``path`` cannot be written.
        ExportError: torch cannot convert the model.
        ParityError: the converted model does not agree with torch.
        BackboneMismatch, WeightsError, HeadFormatError: the head or its backbone cannot be loaded.
    """
    if form != "merged":
        raise ExportError(f"form is {form!r}, this version exports 'merged'")
    path = check_writable(path)
    if isinstance(model_or_head, nn.Module):
        model = model_or_head
        head = head_of(model, label_names)
    else:
        head = model_or_head if isinstance(model_or_head, Head) else Head.load(model_or_head)
        folder = None if isinstance(model_or_head, Head) else Path(model_or_head).parent
        model = attach(load_backbone_of(head, weights, remap=remap, folder=folder), head)
    info = ModelInfo("merged", head.to_json(), head.digest, _versions())
    input_size = tuple(head.pretrained_cfg["input_size"])
    was_training = model.training
    try:
        model.eval()
        with atomic_path(path) as beside:
            converted = _convert(model, input_size)
            onnx.helper.set_model_props(converted, info.to_props())
            _save(converted, beside)
            difference = verify(beside, model, input_size, tolerance=tolerance)
    finally:
        model.train(was_training)
    opset = next(o.version for o in converted.opset_import if o.domain in ("", "ai.onnx"))
    return Exported(path, path.stat().st_size, opset, difference)


@torch.inference_mode()
def verify(
    path: Path,
    model: nn.Module,
    input_size: tuple[int, int, int],
    *,
    tolerance: float = TOLERANCE,
    seed: int = 0,
) -> dict[int, float]:
    """Compare ONNX Runtime with torch on random images at each of ``VERIFIED_BATCHES``.

    Returns:
        Per batch size, the largest difference relative to torch's largest logit.

    Raises:
        ParityError: one of them is above ``tolerance`` or not a number.
        ExportError: ONNX Runtime cannot read or run the file.
    """
    session = open_session(path)
    generator = torch.Generator().manual_seed(seed)
    device = next(model.parameters()).device
    differences = {}
    for batch in VERIFIED_BATCHES:
        pixels = torch.randn(batch, *input_size, generator=generator)
        expected = model(pixels.to(device)).cpu().numpy()
        try:
            (found,) = session.run(["logits"], {"pixel_values": pixels.numpy()})
        except Exception as error:  # onnxruntime's own classes share no root below Exception
            raise ExportError(
                f"ONNX Runtime fails at batch {batch}: {first_line(error)}"
            ) from error
        if found.shape != expected.shape:
            raise ParityError(
                f"at batch {batch} ONNX Runtime gives {found.shape}, torch {expected.shape}"
            )
        difference = float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-12))
        if not difference <= tolerance:
            raise ParityError(
                f"at batch {batch} ONNX Runtime and torch differ by {difference:.1e} "
                f"of the largest logit, allowed is {tolerance:.0e}; no file was written"
            )
        differences[batch] = difference
    return differences


def _convert(model: nn.Module, input_size: tuple[int, int, int]) -> onnx.ModelProto:
    example = torch.rand(TRACED_BATCH, *input_size, device=next(model.parameters()).device)
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                model,
                (example,),
                dynamo=True,
                input_names=["pixel_values"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
    except Exception as error:
        raise ExportError(
            f"torch cannot convert {type(model).__name__} to ONNX: {first_line(error)}"
        ) from error
    if program is None:
        raise ExportError(f"torch gave no ONNX program for {type(model).__name__}")
    converted: onnx.ModelProto = program.model_proto
    _drop_traces(converted)
    return converted


def _drop_traces(converted: onnx.ModelProto) -> None:
    """Remove what torch notes on each node: paths and source lines of the exporting machine."""
    graph = converted.graph
    for part in (
        graph,
        *graph.node,
        *graph.input,
        *graph.output,
        *graph.value_info,
        *graph.initializer,
        *converted.functions,
    ):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


def _save(converted: onnx.ModelProto, path: Path) -> None:
    if converted.ByteSize() >= onnx.checker.MAXIMUM_PROTOBUF:
        raise ExportError(
            f"the model takes {converted.ByteSize():,} bytes, one ONNX file holds less than 2 GiB"
        )
    onnx.checker.check_model(converted)
    path.write_bytes(converted.SerializeToString(deterministic=True))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the converter's chatter off the terminal; errors come as exceptions all the same."""
    loggers = [logging.getLogger(name) for name in ("torch", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with (
            warnings.catch_warnings(),
            redirect_stdout(io.StringIO()),
            redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _versions() -> dict[str, Any]:
    found = {name: version(name) for name in ("headkit", "onnx", "onnxscript", "timm")}
    return {**found, "torch": torch.__version__}  # with the build, such as +cpu
