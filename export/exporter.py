"""Export a backbone with its heads to an ONNX file, and compare it with torch first."""

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

from headkit.adapters.backbone.classifier import (
    classifier_tensors,
    find_classifier,
    replace_classifier,
)
from headkit.adapters.backbone.fingerprint import forget_untrained
from headkit.adapters.backbone.level import LAST, Level, LevelNames, level_names
from headkit.adapters.backbone.level_head import without_level_head
from headkit.adapters.backbone.levels import vector_levels
from headkit.adapters.backbone.module_copy import copy_structure
from headkit.adapters.compat import unwrap
from headkit.adapters.errors import DataError, ExportError
from headkit.adapters.file_kinds import MODEL, check_output
from headkit.adapters.files import write_atomically
from headkit.adapters.heads.attach import attach, attach_in_turn, head_of
from headkit.adapters.heads.backbone_of_head import load_backbone_of
from headkit.adapters.heads.head import Head
from headkit.adapters.images.open import ImageLike
from headkit.export.graph.checksums import checksum_of_backbone
from headkit.export.graph.classifier_graph import encode_model
from headkit.export.graph.convert import convert
from headkit.export.graph.description.names import level_output
from headkit.export.graph.heads_in_graph import (
    add_heads,
    check_heads,
    feature_shapes,
    opset_of,
    put_preprocessing,
    write_metadata,
)
from headkit.export.graph.hub_config import hub_config
from headkit.export.graph.metadata import FORMS, ModelInfo, shared_description
from headkit.export.graph.onnx_file import num_bytes, temporary_model, write
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
from headkit.export.runtimes.exported_model import read_exported
from headkit.export.runtimes.model_source import ModelSource
from headkit.registry.resolve import head_name, load_head

from .verify import TOLERANCE, verify, verify_preprocessing, verify_runs

HeadLike = Head | str | Path


@dataclass(frozen=True)
class Exported:
    """The result of an export.

    Attributes:
        path: Path of the ONNX file.
        num_bytes: Size of the model in bytes, external data included.
        opset: Version of the default operator set.
        difference: Per verified batch size, the largest difference from torch relative to the
            largest value of that output.
        info: Description of the model.
        pixel_difference: Mean difference of preprocessed pixels from Pillow's, as a share of their
            range; None without ``preprocess``.
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
    backbone: nn.Module | str | None = None,
    weights: str | Path | None = None,
    remap: bool = False,
    label_names: Sequence[str] | None = None,
    preprocess: bool = False,
    probabilities: bool = False,
    levels: LevelNames | None = None,
    precision: str = "fp32",
    images: ImageLike | Iterable[ImageLike] | None = None,
    max_cost: float = MAX_COST,
    optimize: bool = True,
    config: bool = False,
    tolerance: float = TOLERANCE,
) -> Exported:
    """Export a backbone with its heads to ONNX and verify it.

    The input is ``pixel_values`` float32 ``[batch, channels, height, width]``, the output
    ``logits`` ``[batch, num_classes]``; the batch is dynamic. ONNX Runtime runs the model at batch
    sizes other than the traced one, and the results are compared with torch. Only a model that
    agrees is written to ``path``. Above 2 GiB the weights are in ``PATH.8HEXDIGITS.data``.

    Args:
        model_or_head: A timm model with a head, a head, the path of a head file, or a reference to
            a store. For the form ``multi``, several heads: by name, or as files or references,
            whose names they get.
        path: Path of the model, with the suffix ``.onnx``. A missing folder is made.
        form: ``merged``: the head as constants. ``swappable``: the head as overridable
            initializers, so that each call can pass another. ``multi``: many heads, each with an
            output ``logits_NAME``. ``backbone``: the output ``features`` and no head.
        backbone: The frozen model that the heads belong to; it is not changed. Or the name of an
            architecture to load, such as ``local-dir:FOLDER``, see ``load_backbone_of``. If None,
            the backbone that the head names is loaded.
        weights: Weights of the backbone, see ``load_backbone_of``. Not for a model.
        remap: See ``load_backbone``.
        label_names: One name per class, for a model.
        preprocess: Take raw images instead: ``image`` uint8 ``[batch, height, width, 3]`` of any
            size. The graph resizes, crops and normalizes them.
        probabilities: Add the output ``probabilities``: softmax or sigmoid of the logits divided
            by the head's temperature.
        levels: Levels that the backbone computes, so that heads over them can be grafted or
            passed later: names, in a sequence or separated by commas, or ``all``. Default: those
            that the given heads read. In the form ``backbone``, each one is an output
            ``level_NAME``.
        precision: Precision of the backbone: ``fp32``, ``fp16`` (half the size, for GPUs) or
            ``int8`` (static quantization, a quarter of the size, for CPUs). Heads stay float32.
        images: For a reduced precision, a folder or list of images like those that the model will
            see. One half calibrates; the other half measures the cost of the precision.
        max_cost: Share of those images whose class may change; if the images are in folders named
            after the classes, the accuracy that may be lost. 0.02 is 2 %.
        optimize: Rewrite the graph for speed with ONNX Runtime's own operators, which other
            runtimes may not support.
        config: Write ``config.json`` next to the model for Optimum's
            ``ORTModelForImageClassification``; an existing one is replaced.
        tolerance: Largest accepted difference between ONNX Runtime and torch in float32, relative
            to the largest value of an output.

    Raises:
        OutputError: ``path`` cannot be written.
        ExportError: torch cannot convert the model, or the form does not allow these heads.
        ParityError: The converted model does not agree with torch, or ``precision`` costs more
            than ``max_cost``.
        DataError: There are no ``images``, or one cannot be read.
        BackboneMismatch: Heads of one model were trained on different backbones, or with different
            pooling or preprocessing.
        WeightsError, HeadFormatError, RegistryError: A head or its backbone cannot be loaded.
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
    model, heads, first = _load_model_and_heads(
        model_or_head, form, backbone=backbone, weights=weights, remap=remap, names=label_names
    )
    check_heads(form, heads, probabilities=probabilities)
    chosen = _choose_levels(model, list(heads.values()) or [first], levels)
    info = ModelInfo(
        form=form,
        backbone=shared_description(first),
        features={},
        heads=(),
        classifier="",
        versions=_versions(),
        probabilities=probabilities,
        levels=chosen,
    )
    for head in heads.values():
        # All heads need the same preprocessing and pooling.
        info.check_backbone(head, force=None)
    raw = Preprocess.from_cfg(first.pretrained_cfg) if preprocess else None
    samples = None
    if precision != "fp32" and images is not None:
        check_measurable(heads)
        samples = Images.load(images, first.pretrained_cfg, first.pixels)

    # int8 does not quantize the projections inside fused attention.
    converted = convert(
        model,
        next((head for head in heads.values() if not head.levels), first),
        chosen,
        optimize=optimize,
        quantizable=precision == "int8",
    )
    graph = converted.backbone
    shapes = feature_shapes(graph)
    for name in map(level_output, chosen):
        del shapes[name]
    info = replace(info, features=shapes, classifier=encode_model(converted.classifier))
    small = None if samples is None else reduce_precision(graph, precision, samples)
    info = add_heads(graph, info, heads)
    with temporary_model(graph, path) as plain:
        read_exported(ModelSource.of(plain))
        difference = verify(plain, model, info, heads, tolerance=tolerance)
        if samples is not None and small is not None:
            graph, info = small, add_heads(small, replace(info, precision=precision), heads)
            with temporary_model(graph, path) as reduced:
                read_exported(ModelSource.of(reduced))
                verify_runs(reduced, info, heads)
                info = measure_cost(plain, reduced, info, heads, samples, max_cost)
    pixel_difference = None
    if raw is not None:
        info = replace(info, preprocess=True)
        pixel_difference = _add_preprocessing(graph, raw, path, tolerance)
    write_metadata(graph, info)
    info = replace(info, checksum=checksum_of_backbone(graph, info.is_of_head))
    write_metadata(graph, info)
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
        raise ExportError("the form 'backbone' outputs features and has no probabilities")
    if config and (preprocess or form not in ("merged", "swappable")):
        raise ExportError(
            "config.json describes a model with one head that takes pixel_values: "
            "export without preprocessing, in the form 'merged' or 'swappable'"
        )
    if precision not in PRECISIONS:
        raise ExportError(f"precision is {precision!r}, expected one of {', '.join(PRECISIONS)}")
    if precision != "fp32" and images is None:
        raise DataError(
            f"the cost of precision {precision!r} is measured on images: pass a folder with "
            "images=FOLDER (--images FOLDER)"
        )


def _load_model_and_heads(
    source: Any,
    form: str,
    *,
    backbone: nn.Module | str | None,
    weights: str | Path | None,
    remap: bool,
    names: Sequence[str] | None,
) -> tuple[nn.Module, dict[str, Head], Head]:
    """Return a copy of the model that export may change, the heads, and the first head."""
    if isinstance(source, nn.Module):
        if form == "multi":
            raise ExportError("the form 'multi' needs named heads: pass {name: head, ...}")
        model = copy_structure(unwrap(source), share_tensors=True)
        if form == "backbone":
            forget_untrained(model)  # the head is not exported
            if not find_classifier(model).num_classes:
                replace_classifier(model, 1)
                names = None
        head = head_of(model, names)
        if list(classifier_tensors(model)) != list(head.tensors):
            model = attach(model, head)  # a classifier made by hand has other names
        heads = {"": head}
    else:
        heads = _load_heads(source, form)
        if not heads:
            raise ExportError(f"the form {form!r} takes at least one head, found none")
        first = next(iter(heads.values()))
        folder = _first_folder(source)
        if not isinstance(backbone, nn.Module):
            backbone = load_backbone_of(
                first, weights, backbone=backbone, remap=remap, folder=folder
            )
        model = copy_structure(unwrap(backbone), share_tensors=True)
        # The first head stays attached, or the first one that reads the last features alone.
        over_levels = [head for head in heads.values() if head.levels]
        others = [head for head in heads.values() if not head.levels]
        attach_in_turn(model, [*over_levels, *reversed(others)])
    first = next(iter(heads.values()))
    return without_level_head(model).eval(), {} if form == "backbone" else heads, first


def _choose_levels(
    model: nn.Module, heads: Sequence[Head], levels: LevelNames | None
) -> tuple[Level, ...]:
    """Return the requested levels, or else those that some head reads.

    Raises:
        ContractError: The model has no such level.
        ValueError: ``levels`` is empty.
    """
    if levels is None:
        read = [level.name for head in heads for level in head.levels if level.name != LAST]
        return vector_levels(model, read)
    return vector_levels(model, level_names(levels))


def _add_preprocessing(
    graph: onnx.ModelProto, preprocess: Preprocess, path: Path, tolerance: float
) -> float:
    """Put preprocessing in front of a model, in place; return the mean difference of its pixels."""
    raw = preprocessing_model(preprocess, opset_of(graph))
    with temporary_model(graph, path) as model, temporary_model(raw, path) as alone:
        put_preprocessing(graph, raw)
        with temporary_model(graph, path) as whole:
            return verify_preprocessing(whole, alone, model, preprocess, tolerance=tolerance)


def _first_folder(source: Any) -> Path | None:
    """Return the folder of the first head file: its backbone's weights may be there."""
    if not isinstance(source, str | Path | Head):
        source = next(iter(source.values() if isinstance(source, Mapping) else source))
    return None if isinstance(source, Head) else Path(source).parent


def _load_heads(source: Any, form: str) -> dict[str, Head]:
    """Return heads by name; the only head of a form with one head has an empty name."""
    if form != "multi":
        if not isinstance(source, Head | str | Path) and len(source) == 1:
            (source,) = source.values() if isinstance(source, Mapping) else source
        if not isinstance(source, Head | str | Path):
            raise ExportError(
                f"the form {form!r} takes one head, found {len(source)}: pass one head, or use "
                "form='multi' (--form multi)"
            )
        return {"": load_head(source)}
    if isinstance(source, Mapping):
        return {name: load_head(head) for name, head in source.items()}
    listed = [source] if isinstance(source, str | Path) else source
    if isinstance(listed, Head) or any(isinstance(head, Head) for head in listed):
        raise ExportError("the form 'multi' needs named heads: pass {name: head, ...}")
    heads = {head_name(head): load_head(head) for head in listed}
    if len(heads) < len(listed):
        raise ExportError(
            f"two of the heads {', '.join(map(str, listed))} have the same file name: rename one "
            "file, or pass {name: head, ...}"
        )
    return heads


def _versions() -> dict[str, Any]:
    versions = {name: version(name) for name in ("headkit", "onnx", "onnxscript", "timm")}
    return {**versions, "torch": torch.__version__}  # with the build, such as +cpu
