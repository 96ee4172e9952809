"""torch to ONNX: the backbone of a model as one graph, its classifier as a template."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import onnx_ir
import onnxscript.optimizer
import timm.models
import torch
from onnx_ir.passes import common
from torch import Tensor, nn

from headkit.adapters.backbone.classifier import (
    classifier_tensors,
    find_classifier,
    name_of,
    replace_classifier,
)
from headkit.adapters.backbone.forward import Backbone, ClassifierOf, features
from headkit.adapters.backbone.module_copy import copy_structure
from headkit.adapters.compat import has_fusion, split_attention
from headkit.adapters.errors import ExportError, first_line
from headkit.adapters.heads.head import Head
from headkit.adapters.heads.kinds import install
from headkit.export.optimize.passes import optimize as optimized

from .condconv import replace_experts
from .forms import features_of
from .head_graph import CLASSES, is_built

TRACED_BATCH = 2
_BATCH = torch.export.Dim("batch")
_CLASSES = torch.export.Dim(CLASSES)


@dataclass(frozen=True)
class Converted:
    """A model in ONNX, before any form.

    Attributes:
        backbone: from ``pixel_values`` ``[batch, channels, height, width]`` to ``features``, and
            ``features_1``, … where the classifier takes several.
        classifier: a template (``template.py``) of the classifier, where that is not linear.
    """

    backbone: onnx.ModelProto
    classifier: onnx.ModelProto | None


@torch.no_grad()
def convert(
    model: nn.Module, head: Head, *, optimize: bool = True, quantizable: bool = False
) -> Converted:
    """Convert the backbone of ``model``, and the classifier that ``head`` belongs to.

    Args:
        model: a timm model with ``head`` on it, in eval mode; stays as it is.
        head: tells the input size and the kind of classifier.
        optimize: see ``export``.
        quantizable: see ``optimize.optimize``.

    Raises:
        ExportError: torch cannot convert the model.
        ContractError: the adapter layer does not understand the model.
    """
    kinds = {p.dtype for p in model.parameters() if p.is_floating_point()}
    if kinds != {torch.float32}:
        raise ExportError(
            f"the model has parameters of {', '.join(sorted(map(str, kinds)))}, expected float32: "
            "call model.float(), and name precision='fp16' for a small file"
        )
    size = tuple(head.pretrained_cfg["input_size"])
    device = next(model.parameters()).device
    x = torch.randn(TRACED_BATCH, *size, device=device)
    entered = features(model, x)
    given = (entered,) if isinstance(entered, Tensor) else entered
    names = [f"features_{number}" if number else "features" for number in range(len(given))]
    program = _program(
        Backbone(_prepared(model)),
        (x,),
        inputs=["pixel_values"],
        outputs=names,
        dynamic_shapes=({0: _BATCH},),
        what=name_of(model),
    )
    _name_as_in_state_dict(program)
    backbone = optimized(program, quantizable=quantizable) if optimize else program
    shapes = features_of(backbone)
    return Converted(
        backbone, None if is_built(head, shapes) else _classifier(model, head, given, names)
    )


class _Stateless(nn.Module):
    """A classifier whose tensors are inputs."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.classifier = ClassifierOf(model)
        self._names = [f"model.{name}" for name in names]

    def forward(self, entered: Sequence[Tensor], tensors: Sequence[Tensor]) -> Any:
        """Logits ``[batch, num_classes]``."""
        state = dict(zip(self._names, tensors, strict=True))
        return torch.func.functional_call(self.classifier, state, tuple(entered))


def _classifier(
    model: nn.Module, head: Head, entered: Sequence[Tensor], names: Sequence[str]
) -> onnx.ModelProto:
    """The template. That it fits any number of classes is what a symbolic dimension proves."""
    tensors = classifier_tensors(model)
    other = copy_structure(model, share_tensors=False)
    install(other, head.kind, head.num_classes + 1, tensors)  # type: ignore[arg-type]
    counted = {
        name: {
            dim: _CLASSES
            for dim, (one, more) in enumerate(zip(tensors[name].shape, like.shape, strict=True))
            if one != more
        }
        for name, like in classifier_tensors(other).items()
    }
    # torch takes a dimension of 0 or 1 for a constant.
    examples = tuple(
        torch.zeros([11 if dim in counted[n] else size for dim, size in enumerate(t.shape)]).to(t)
        for n, t in tensors.items()
    )
    program = _program(
        _Stateless(copy_structure(model, share_tensors=True), list(tensors)),
        (tuple(entered), examples),
        inputs=[*names, *tensors],
        outputs=["logits"],
        dynamic_shapes=(tuple({0: _BATCH} for _ in entered), tuple(counted[n] for n in tensors)),
        what=f"the classifier of {name_of(model)}",
    )
    program.graph.name = head.kind
    return program


def _program(
    module: nn.Module,
    args: tuple[Any, ...],
    *,
    inputs: Sequence[str],
    outputs: Sequence[str],
    dynamic_shapes: tuple[Any, ...],
    what: str,
) -> onnx.ModelProto:
    for optimize in (True, False):
        try:
            program = torch.onnx.export(
                module.eval(),
                args,
                dynamo=True,
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_shapes=dynamic_shapes,
                optimize=optimize,
                verbose=False,
            )
        except Exception as error:
            raise ExportError(f"torch cannot convert {what} to ONNX: {_cause(error)}") from error
        if program is None:
            raise ExportError(f"torch gave no ONNX program for {what}")
        if not optimize:
            _fold(program.model)
        converted: onnx.ModelProto = program.model_proto
        if not _dangling(converted):
            break
        # onnxscript's rewriter lost a constant (seen where clamps follow each other): without it.
    else:
        raise ExportError(f"torch's program for {what} reads {', '.join(_dangling(converted))}")
    _drop_traces(converted)
    return converted


def _fold(model: onnx_ir.Model) -> None:
    """Do what the exporter does to a program, in place, but for onnxscript's rewrite rules."""
    onnxscript.optimizer.inline(model)
    for _ in range(2):
        onnxscript.optimizer.fold_constants(model)
        onnxscript.optimizer.remove_unused_nodes(model)
    onnx_ir.passes.Sequential(
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    )(model)


def _dangling(model: onnx.ModelProto) -> list[str]:
    """Return what nodes read and nothing gives."""
    graph = model.graph
    given = {name for node in graph.node for name in node.output}
    given |= {named.name for named in (*graph.input, *graph.initializer)}
    return sorted({name for node in graph.node for name in node.input if name} - given)


def _prepared(model: nn.Module) -> nn.Module:
    """A copy for conversion: with classes, branches fused where timm has a fusion."""
    paths = find_classifier(model).paths
    fusing = any(
        has_fusion(part)
        for path, part in model.named_modules()
        if path and not _around(path, paths)
    )
    # Fusions write into tensors; without one the copy shares the model's own.
    copied = copy.deepcopy(model) if fusing else copy_structure(model, share_tensors=True)
    if not find_classifier(copied).num_classes:
        replace_classifier(copied, 1)  # some models leave the classifier out without classes
    if fusing:
        _fuse(copied, "", paths)
    # What torch traces of the fused operator is slower, fails in some architectures, and is not
    # what `optimize` recognizes.
    split_attention(copied)
    return replace_experts(copied).eval()


def _fuse(module: nn.Module, path: str, classifier: Sequence[str]) -> None:
    """Let timm fuse everything but the classifier, whose tensors are the head's."""
    for name, child in list(module.named_children()):
        below = f"{path}.{name}" if path else name
        if below in classifier:
            continue
        if _around(below, classifier):
            _fuse(child, below, classifier)
        else:
            holder = nn.ModuleDict({name: child})
            setattr(module, name, timm.models.reparameterize_model(holder, inplace=True)[name])


def _name_as_in_state_dict(program: onnx.ModelProto) -> None:
    """Weights carry the name of the attribute that holds the model in ``Backbone``: take it off."""
    graph, wrapped = program.graph, "model."
    names = {t.name: t.name.removeprefix(wrapped) for t in graph.initializer}
    names = {name: short for name, short in names.items() if name != short}
    for named in (*graph.initializer, *graph.value_info):
        named.name = names.get(named.name, named.name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]


def _around(path: str, classifier: Sequence[str]) -> bool:
    """Tell whether ``path`` is a classifier, holds one or lies in one."""
    return any(
        own == path or own.startswith(f"{path}.") or path.startswith(f"{own}.")
        for own in classifier
    )


def _cause(error: BaseException) -> str:
    """Return what went wrong at the root: torch wraps it in advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {first_line(error)}"


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
