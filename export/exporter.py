"""Head and backbone to one ONNX file, run and compared with torch before it gets its name."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

from headkit.adapters.backbone.classifier import find_classifier, replace_classifier
from headkit.adapters.backbone.module_copy import copy_structure
from headkit.adapters.errors import DataError, ExportError
from headkit.adapters.file_kinds import MODEL, check_output
from headkit.adapters.files import write_atomically
from headkit.adapters.heads.attach import attach, head_of
from headkit.adapters.heads.backbone_of_head import load_backbone_of
from headkit.adapters.heads.head import Head
from headkit.adapters.images import ImageLike
from headkit.export.graph.convert import convert
from headkit.export.graph.forms import (
    check_heads,
    describe,
    features_of,
    opset_of,
    put_heads,
    put_preprocessing,
)
from headkit.export.graph.head_graph import to_text
from headkit.export.graph.metadata import FORMS, ModelInfo, backbone_of, hub_config
from headkit.export.graph.onnx_file import num_bytes, scratch, write
from headkit.export.precision.calibrate import (
    MAX_COST,
    PRECISIONS,
    Images,
    check_measurable,
    measure_cost,
    reduce_precision,
)
from headkit.export.preprocess.onnx_graph import preprocessing_model
from headkit.export.preprocess.pillow import Preprocess
from headkit.registry.resolve import head_name, load_head

from .verify import TOLERANCE, verify, verify_preprocessing, verify_runs

HeadLike = Head | str | Path


@dataclass(frozen=True)
class Exported:
    """What an export gave.

    Attributes:
        path: of the ONNX file.
        num_bytes: size of the file, external data included.
        opset: of the default ONNX domain.
        difference: per verified batch size, the largest difference from torch relative to the
            largest value of that output.
        info: what the file says of itself.
        pixel_difference: mean difference of preprocessed pixels from Pillow's, in shares of their
            range; none without ``preprocess``.
    """

    path: Path
    num_bytes: int
    opset: int
    difference: dict[int, float]
    info: ModelInfo = field(repr=False)
    pixel_difference: float | None = None


def export(
    model_or_head: nn.Module | HeadLike | Sequence[HeadLike] | Mapping[str, HeadLike],
    path: str | Path,
    form: str = "merged",
    *,
    backbone: nn.Module | None = None,
    weights: str | Path | None = None,
    remap: bool = False,
    label_names: Sequence[str] | None = None,
    preprocess: bool = False,
    probabilities: bool = False,
    precision: str = "fp32",
    images: ImageLike | Iterable[ImageLike] | None = None,
    max_cost: float = MAX_COST,
    optimize: bool = True,
    config: bool = False,
    tolerance: float = TOLERANCE,
) -> Exported:
    """Export a backbone with its heads to ONNX and verify it.

    Input ``pixel_values`` float32 ``[batch, channels, height, width]``, output ``logits``
    ``[batch, num_classes]``; the batch is dynamic. The file is run in ONNX Runtime at batch sizes
    other than the traced one and compared with torch; only a file that agrees is put at ``path``.
    Above 2 GiB the weights lie beside it, in ``PATH.8HEXDIGITS.data``.

    Args:
        model_or_head: a timm model with a head on it, a head, the path of a head file, or a
            reference to a store; for the form ``multi`` several heads, by name or named after their
            files.
        path: where to write, with the suffix ``.onnx``; its folder is made where it is missing.
        form: ``merged``, the head as constants; ``swappable``, the head as overridable
            initializers, so that each call can bring another; ``multi``, many heads, each with an
            output ``logits_NAME``; ``backbone``, the output ``features`` and no head.
        backbone: the frozen model that the heads belong to, which stays as it is; it is loaded
            without it.
        weights: of the backbone, see ``load_backbone_of``. Not for a model.
        remap: see ``load_backbone``.
        label_names: one name per class, if a model is given.
        preprocess: take raw images instead, ``image`` uint8 ``[batch, height, width, 3]`` of any
            size: resize, crop and normalization are in the graph.
        probabilities: add the output ``probabilities``: softmax or sigmoid of the logits divided
            by the head's temperature.
        precision: of the backbone: ``fp32``, ``fp16`` (half the size, for GPUs) or ``int8`` (static
            quantization, a quarter of the size, for CPUs). Heads stay float32.
        images: for a reduced precision, a folder or list of images like those that the model will
            see. One half calibrates, on the other is measured what the precision costs.
        max_cost: share of those images whose class may change, or of accuracy that may be lost
            where they lie in folders named after the classes; 0.02 is 2 %.
        optimize: rewrite the graph for speed with ONNX Runtime's own operators, which other
            runtimes may not know.
        config: write ``config.json`` beside the model, as Optimum's
            ``ORTModelForImageClassification`` takes it; one that is there is replaced.
        tolerance: largest difference between ONNX Runtime and torch that is accepted in float32,
            relative to the largest value of an output.

    Raises:
        OutputError: ``path`` cannot be written.
        ExportError: torch cannot convert the model, or the form does not take these heads.
        ParityError: the converted model does not agree with torch, or ``precision`` costs more
            than ``max_cost``.
        DataError: there are no ``images``, or one cannot be read.
        BackboneMismatch: heads of one model were trained on other backbones, or on one that was
            run with another pooling or preprocessing.
        WeightsError, HeadFormatError, RegistryError: a head or its backbone cannot be loaded.
    """
    _check_options(
        form,
        precision,
        images,
        preprocess=preprocess,
        probabilities=probabilities,
        config=config,
    )
    path = check_output(path, MODEL)
    model, heads, first = _resolve(
        model_or_head, form, backbone=backbone, weights=weights, remap=remap, names=label_names
    )
    check_heads(form, heads, probabilities=probabilities)
    described = ModelInfo(
        form=form,
        backbone=backbone_of(first),
        features={},
        heads=(),
        classifier="",
        versions=_versions(),
        probabilities=probabilities,
    )
    for head in heads.values():
        described.check_backbone(
            head, force=None
        )  # one preprocessing and one pooling for all of them
    raw = Preprocess.from_cfg(first.pretrained_cfg) if preprocess else None
    samples = None
    if precision != "fp32" and images is not None:
        check_measurable(heads)
        samples = Images.load(images, Preprocess.from_cfg(first.pretrained_cfg))

    # Fused attention keeps its projections in float32.
    converted = convert(model, first, optimize=optimize, quantizable=precision == "int8")
    graph = converted.backbone
    described = replace(
        described, features=features_of(graph), classifier=to_text(converted.classifier)
    )
    small = None if samples is None else reduce_precision(graph, precision, samples)
    info = put_heads(graph, described, heads)
    with scratch(graph, path) as plain:
        difference = verify(plain, model, info, heads, tolerance=tolerance)
        if samples is not None and small is not None:
            graph, info = small, put_heads(small, replace(described, precision=precision), heads)
            with scratch(graph, path) as reduced:
                verify_runs(reduced, info, heads)
                info = measure_cost(plain, reduced, info, heads, samples, max_cost)
    pixel_difference = None
    if raw is not None:
        info = replace(info, preprocess=True)
        pixel_difference = _take_raw_images(graph, raw, path, tolerance)
    describe(graph, info)
    write(graph, path)
    if config:
        content = json.dumps(hub_config(info), ensure_ascii=False, indent=2)
        write_atomically(path.with_name("config.json"), content.encode())
    return Exported(path, num_bytes(path), opset_of(graph), difference, info, pixel_difference)


def _check_options(
    form: str,
    precision: str,
    images: object,
    *,
    preprocess: bool,
    probabilities: bool,
    config: bool,
) -> None:
    if form not in FORMS:
        raise ExportError(f"form is {form!r}, expected one of {', '.join(FORMS)}")
    if form == "backbone" and probabilities:
        raise ExportError("the form 'backbone' gives features: it has no probabilities")
    if config and (preprocess or form not in ("merged", "swappable")):
        raise ExportError(
            "config.json describes a model with one head that takes pixel_values: "
            "export without preprocessing, in the form merged or swappable"
        )
    if precision not in PRECISIONS:
        raise ExportError(f"precision is {precision!r}, expected one of {', '.join(PRECISIONS)}")
    if precision != "fp32" and images is None:
        raise DataError(
            f"precision {precision!r} is measured on images: name a folder with images=FOLDER "
            "(--images FOLDER)"
        )


def _resolve(
    given: Any,
    form: str,
    *,
    backbone: nn.Module | None,
    weights: str | Path | None,
    remap: bool,
    names: Sequence[str] | None,
) -> tuple[nn.Module, dict[str, Head], Head]:
    """Return a copy of the model that export may change, the heads of the form, and the first."""
    if isinstance(given, nn.Module):
        if form == "multi":
            raise ExportError("the form 'multi' takes heads by name: {name: head, ...}")
        model = copy_structure(given, share_tensors=True)
        if form == "backbone" and not find_classifier(model).num_classes:
            replace_classifier(model, 1)
        heads = {"": head_of(model, names if find_classifier(given).num_classes else None)}
    else:
        heads = _heads(given, form)
        if not heads:
            raise ExportError(f"the form {form!r} takes at least one head, found none")
        first = next(iter(heads.values()))
        folder = _folder(given)
        loaded = backbone or load_backbone_of(first, weights, remap=remap, folder=folder)
        model = copy_structure(loaded, share_tensors=True)
        for head in reversed(heads.values()):  # the first stays on
            attach(model, head)
    first = next(iter(heads.values()))
    return model.eval(), {} if form == "backbone" else heads, first


def _take_raw_images(
    graph: onnx.ModelProto, preprocess: Preprocess, path: Path, tolerance: float
) -> float:
    """Put preprocessing in front of a model, in place; return how far its pixels are off."""
    raw = preprocessing_model(preprocess, opset_of(graph))
    with scratch(graph, path) as model, scratch(raw, path) as alone:
        put_preprocessing(graph, raw)
        with scratch(graph, path) as whole:
            return verify_preprocessing(whole, alone, model, preprocess, tolerance=tolerance)


def _folder(given: Any) -> Path | None:
    """Where the first head file lies: its backbone's weights may lie beside it."""
    if not isinstance(given, str | Path | Head):
        given = next(iter(given.values() if isinstance(given, Mapping) else given))
    return None if isinstance(given, Head) else Path(given).parent


def _heads(given: Any, form: str) -> dict[str, Head]:
    """Heads by name; the only one of a form that takes one has an empty name."""
    if form != "multi":
        if not isinstance(given, Head | str | Path) and len(given) == 1:
            (given,) = given.values() if isinstance(given, Mapping) else given
        if not isinstance(given, Head | str | Path):
            raise ExportError(f"the form {form!r} takes one head, found {len(given)}")
        return {"": load_head(given)}
    if isinstance(given, Mapping):
        return {name: load_head(head) for name, head in given.items()}
    listed = [given] if isinstance(given, str | Path) else given
    if isinstance(listed, Head) or any(isinstance(head, Head) for head in listed):
        raise ExportError("the form 'multi' takes heads by name: {name: head, ...}")
    heads = {head_name(head): load_head(head) for head in listed}
    if len(heads) < len(listed):
        raise ExportError(
            "two head files have the same name: rename one, or pass {name: head, ...}"
        )
    return heads


def _versions() -> dict[str, Any]:
    found = {name: version(name) for name in ("headkit", "onnx", "onnxscript", "timm")}
    return {**found, "torch": torch.__version__}  # with the build, such as +cpu
