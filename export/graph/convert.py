"""Convert the backbone of a torch model, and its classifier if needed, to ONNX graphs."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import onnx_ir
import onnxscript.optimizer
import torch
from onnx_ir.passes import common
from timm.utils import reparameterize_model
from torch import Tensor, nn

from headkit.adapters.backbone.classifier import (
    classifier_tensors,
    find_classifier,
    name_of,
    replace_classifier,
)
from headkit.adapters.backbone.forward import Backbone, ClassifierModule, features
from headkit.adapters.backbone.level import Level
from headkit.adapters.backbone.module_copy import copy_structure
from headkit.adapters.compat import has_fusion, split_attention
from headkit.adapters.errors import ExportError, first_line
from headkit.adapters.heads.head import Head
from headkit.adapters.heads.kinds import install_classifier
from headkit.export.optimize import passes

from .classifier_graph import CLASSES, can_build
from .condconv import replace_condconv
from .converted_backbones import conversion_key, convert_once
from .description.names import level_output

TRACED_BATCH = 2
OPSET = 20
"""The first opset with Gelu, of which an MLP head is made."""
_BATCH = torch.export.Dim("batch")
_CLASSES = torch.export.Dim(CLASSES)


@dataclass(frozen=True)
class Converted:
    """A model in ONNX, with the backbone and the classifier as separate graphs.

    Attributes:
        backbone: Graph from ``pixel_values`` ``[batch, channels, height, width]`` to ``features``,
            and ``features_1``, … if the classifier reads several; and to ``level_NAME``.
        classifier: Graph of the classifier (``classifier_graph``); None if headkit can build it
            without torch.
    """

    backbone: onnx.ModelProto
    classifier: onnx.ModelProto | None


@torch.no_grad()
def convert(
    model: nn.Module,
    head: Head,
    levels: Sequence[Level] = (),
    *,
    optimize: bool = True,
    quantizable: bool = False,
) -> Converted:
    """Convert the backbone of a model, and the classifier of its head.

    Args:
        model: A timm model with ``head`` attached, in eval mode. It is not changed. If the head
            reads levels, the model has its own classifier instead.
        head: The head, whose input size and kind of classifier are used.
        levels: Levels whose vectors the backbone outputs.
        optimize: Rewrite the backbone's graph for speed.
        quantizable: Use only rewrites after which the graph can be quantized.

    Raises:
        ExportError: torch cannot convert the model.
        ContractError: headkit does not know how this model uses its classifier.
    """
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()}
    if dtypes != {torch.float32}:
        raise ExportError(
            f"the model's parameters are {', '.join(sorted(map(str, dtypes)))}, expected float32: "
            "call model.float() first; precision='fp16' makes the file smaller"
        )
    size = tuple(head.pretrained_cfg["input_size"])
    device = next(model.parameters()).device
    x = torch.randn(TRACED_BATCH, *size, device=device)
    output = features(model, x)
    entering = (output,) if isinstance(output, Tensor) else output
    names = [f"features_{number}" if number else "features" for number in range(len(entering))]

    def convert_backbone() -> onnx.ModelProto:
        program = _export_program(
            Backbone(_prepare(model), levels),
            (x,),
            inputs=["pixel_values"],
            outputs=[*names, *map(level_output, levels)],
            dynamic_shapes=({0: _BATCH},),
            what=name_of(model),
        )
        _name_as_in_state_dict(program)
        return passes.optimize(program, quantizable=quantizable) if optimize else program

    key = conversion_key(model, size, levels, optimize, quantizable)
    backbone = convert_once(key, convert_backbone)
    if can_build(head, names):
        return Converted(backbone, None)
    return Converted(backbone, _convert_classifier(model, head, entering, names))


class _FunctionalClassifier(nn.Module):
    """A classifier whose tensors are inputs of ``forward``."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.classifier = ClassifierModule(model)
        self._names = [f"model.{name}" for name in names]

    def forward(self, entering: Sequence[Tensor], tensors: Sequence[Tensor]) -> Any:
        """Return logits ``[batch, num_classes]``."""
        state = dict(zip(self._names, tensors, strict=True))
        return torch.func.functional_call(self.classifier, state, tuple(entering))


def _convert_classifier(
    model: nn.Module, head: Head, entering: Sequence[Tensor], names: Sequence[str]
) -> onnx.ModelProto:
    """Convert the classifier; a symbolic dimension proves that it fits any number of classes."""
    tensors = classifier_tensors(model)
    other = copy_structure(model, share_tensors=False)
    install_classifier(other, head.kind, head.num_classes + 1, tensors)  # type: ignore[arg-type]
    class_dims = {
        name: {
            dim: _CLASSES
            for dim, (size, larger) in enumerate(zip(tensors[name].shape, t.shape, strict=True))
            if size != larger
        }
        for name, t in classifier_tensors(other).items()
    }
    # torch treats a dimension of size 0 or 1 as constant.
    examples = tuple(
        torch.zeros([11 if dim in class_dims[n] else size for dim, size in enumerate(t.shape)]).to(
            t
        )
        for n, t in tensors.items()
    )
    program = _export_program(
        _FunctionalClassifier(copy_structure(model, share_tensors=True), list(tensors)),
        (tuple(entering), examples),
        inputs=[*names, *tensors],
        outputs=["logits"],
        dynamic_shapes=(
            tuple({0: _BATCH} for _ in entering),
            tuple(class_dims[n] for n in tensors),
        ),
        what=f"the classifier of {name_of(model)}",
    )
    program.graph.name = head.kind
    return program


def _export_program(
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
                opset_version=OPSET,
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_shapes=dynamic_shapes,
                optimize=optimize,
                verbose=False,
            )
        except Exception as error:
            raise ExportError(
                f"torch cannot convert {what} to ONNX: {_root_cause(error)}"
            ) from error
        if program is None:
            raise ExportError(f"torch.onnx.export returned None for {what}, expected a program")
        if not optimize:
            _fold_constants(program.model)
        converted: onnx.ModelProto = program.model_proto
        if not _undefined_names(converted):
            break
        # onnxscript's rewriter lost a constant, as with successive clamps: convert without it.
    else:
        names = ", ".join(_undefined_names(converted))
        raise ExportError(f"torch's program for {what} reads undefined values: {names}")
    _remove_source_locations(converted)
    return converted


def _fold_constants(model: onnx_ir.Model) -> None:
    """Optimize a program in place as the exporter does, but without onnxscript's rewrite rules."""
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


def _undefined_names(model: onnx.ModelProto) -> list[str]:
    """Return the names of values that nodes read but nothing defines."""
    graph = model.graph
    defined = {name for node in graph.node for name in node.output}
    defined |= {value.name for value in (*graph.input, *graph.initializer)}
    return sorted({name for node in graph.node for name in node.input if name} - defined)


def _prepare(model: nn.Module) -> nn.Module:
    """Return a copy for conversion: it has classes, and timm's own fusions are applied."""
    paths = find_classifier(model).paths
    fusing = any(
        has_fusion(part)
        for path, part in model.named_modules()
        if path and not _overlaps(path, paths)
    )
    # Fusions write into tensors; if there are none, the copy shares the model's tensors.
    copied = copy.deepcopy(model) if fusing else copy_structure(model, share_tensors=True)
    if not find_classifier(copied).num_classes:
        replace_classifier(copied, 1)  # without classes, some models have no classifier
    if fusing:
        _fuse(copied, "", paths)
    # The fused attention operator converts to a slower graph, fails in some architectures, and
    # `optimize` does not recognize it.
    split_attention(copied)
    return replace_condconv(copied).eval()


def _fuse(module: nn.Module, path: str, classifier: Sequence[str]) -> None:
    """Apply timm's fusions to everything but the classifier, whose tensors belong to the head."""
    for name, child in list(module.named_children()):
        child_path = f"{path}.{name}" if path else name
        if child_path in classifier:
            continue
        if _overlaps(child_path, classifier):
            _fuse(child, child_path, classifier)
        else:
            holder = nn.ModuleDict({name: child})
            setattr(module, name, reparameterize_model(holder, inplace=True)[name])


def _name_as_in_state_dict(program: onnx.ModelProto) -> None:
    """Remove the name of ``Backbone``'s attribute from the names of weights, in place."""
    graph, attribute = program.graph, "model."
    names = {t.name: t.name.removeprefix(attribute) for t in graph.initializer}
    names = {name: short for name, short in names.items() if name != short}
    for value in (*graph.initializer, *graph.value_info):
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]


def _overlaps(path: str, classifier: Sequence[str]) -> bool:
    """Return True if ``path`` is a classifier, contains one or is inside one."""
    return any(
        own == path or own.startswith(f"{path}.") or path.startswith(f"{own}.")
        for own in classifier
    )


def _root_cause(error: BaseException) -> str:
    """Return the message of the root cause, without the advice that torch adds."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {first_line(error)}"


def _remove_source_locations(converted: onnx.ModelProto) -> None:
    """Remove the paths and source lines of the exporting machine that torch adds to each node."""
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
