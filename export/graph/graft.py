"""Put another head into an exported model in milliseconds, without torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from headkit.adapters.errors import ExportError, OutputError, first_line
from headkit.adapters.file_kinds import ADAPTER, HEAD, MODEL, check_argument, check_output
from headkit.adapters.files import is_same_file
from headkit.adapters.heads.head import Head
from headkit.export.predict.adapter_files import write_adapter
from headkit.export.runtimes.exported_model import read_exported
from headkit.export.runtimes.model_source import ModelSource
from headkit.registry.resolve import head_name, load_head

from .checksums import check_file
from .description.names import PREFIX, TEMPERATURE
from .heads_in_graph import (
    Heads,
    add_heads,
    head_model,
    opset_of,
    remove_heads,
    swappable_inputs,
)
from .level_row import reads_row
from .metadata import ModelInfo
from .onnx_file import OpenModel, open_model

CHECKED_BATCHES = (1, 3)
_USAGE = "the model first and then the head: graft MODEL.onnx HEAD.safetensors"
_RESERVED = ("logits", "probabilities", TEMPERATURE)
"""Names of values that are added and removed with a head."""


def graft(
    onnx_path: str | Path,
    head: Head | str | Path,
    out: str | Path,
    *,
    name: str | None = None,
    add: bool = False,
    force: bool = False,
    overwrite: bool = False,
) -> ModelInfo:
    """Put a head into an exported model, without torch and without exporting again.

    The result has the same graph, the same weights bit for bit, and so the same logits as a model
    exported with this head. The backbone keeps its precision, preprocessing and optimizations. The
    cost of a reduced precision is not measured for the new head.

    Args:
        onnx_path: A merged, swappable, multi or backbone model that headkit exported. A backbone
            becomes a merged model.
        head: A head, the path of a head file, or a reference to a store.
        out: Path of the new model, with the suffix ``.onnx``. With the suffix ``.onnx_adapter``,
            ONNX Runtime's adapter file of the head alone is written, for a swappable model.
        name: Name of the head in a multi model. If None, the stem of the head's file or its
            published name.
        add: Add the head to a multi model instead of replacing the head of that name.
        force: Also graft onto another backbone of the same architecture, or onto one that another
            program changed after its export. Logits will differ. This also allows ``out`` to be
            ``onnx_path``, as ``overwrite`` does.
        overwrite: Allow ``out`` to be ``onnx_path``: the new model replaces the old one. The
            backbone is checked as usual.

    Returns:
        The description of the new model.

    Raises:
        BackboneMismatch: The head was trained on another backbone, or the model does not compute a
            level that it reads.
        ExportError: The model is damaged or was changed after its export, or the head does not fit
            it.
        OutputError: ``out`` cannot be written, has another suffix, is the head file, or is
            ``onnx_path`` without ``overwrite`` or ``force``.
        HeadFormatError: ``head`` cannot be read.
        RegistryError: The store has no such head.
    """
    path = None if isinstance(head, Head) else Path(head)
    check_argument("the model", onnx_path, MODEL, _USAGE)
    check_argument("the head", path, HEAD, _USAGE)
    out = check_output(out, MODEL, ADAPTER)
    if path is not None and is_same_file(path, out):
        raise OutputError(f"cannot write {out}: it is the head file; choose another path")
    if is_same_file(onnx_path, out) and not (overwrite or force):
        raise OutputError(
            f"cannot write {out}: it is the model itself; choose another path, or pass "
            "overwrite=True (--overwrite) to replace it, or force=True (--force), which also skips "
            "the check of the backbone's weights"
        )
    head = load_head(head)
    read_exported(ModelSource.of(onnx_path))
    with open_model(onnx_path) as source:
        source.info.check_backbone(head, force=force)
        if out.suffix == ADAPTER.suffix:
            return _write_adapter(source, head, out)
        checksum = check_file(
            Path(onnx_path),
            "" if force else source.info.checksum,
            source.info.is_of_head,
            str(onnx_path),
            ", or pass force=True (--force) if you changed it yourself",
        )
        # Metadata of version 1 has no checksums unless the model was exported with them.
        has_them = bool(source.info.checksum) or head.format_version != "1"
        info = replace(source.info, checksum=checksum if has_them else "")
        name = name or (head_name(path) if path else None)
        info = _replace(source, info, head, name, add=add)
        source.write(out)
        return info


def _write_adapter(source: OpenModel, head: Head, out: Path) -> ModelInfo:
    info = source.info
    if info.form != "swappable":
        raise ExportError(
            f"a {info.form} model takes no adapters; export the head with form='swappable'"
        )
    write_adapter(info, swappable_inputs(source.model), head, out)
    return info


def _replace(
    source: OpenModel, info: ModelInfo, head: Head, name: str | None, *, add: bool
) -> ModelInfo:
    """Replace a head of the model or add one, in place."""
    model = source.model
    _check_runs(info, head, opset_of(model))
    _check_same_tensors(info, head)
    name = name if info.form == "multi" else ""
    known = {other.name: other for other in info.heads if other.name != name}
    if info.form == "backbone":
        info = replace(info, form="merged")
    heads = remove_heads(model, info)
    names = source.value_names()
    missing = sorted(set(info.values) - names)
    if missing:
        raise ExportError(f"the model does not compute {missing[0]!r:.60}, which heads take")
    if not reads_row(info, head):
        _check_new_names(head, names)
    info = replace(info, cost={key: cost for key, cost in info.cost.items() if key != name})
    return add_heads(model, info, _with_head(info, heads, name, head, add=add), known)


def _check_same_tensors(info: ModelInfo, head: Head) -> None:
    """Raise if the head's tensors have other names than those of the head that it replaces."""
    if info.form not in ("merged", "swappable"):
        return
    own = info.heads[0]
    if reads_row(info, own) or reads_row(info, head):
        return
    differing = sorted(own.tensors.keys() ^ head.tensors.keys())
    same_kind = own.description.get("kind") == head.kind
    if same_kind and any(not f".{name}".endswith(".bias") for name in differing):
        raise ExportError(
            f"the head has the tensors {', '.join(head.tensors)}, but the model's own head of that "
            f"kind has {', '.join(own.tensors)}: export the head with its backbone instead"
        )


def _check_new_names(head: Head, used: set[str]) -> None:
    clashing = [
        name
        for name in head.tensors
        if name in used or name in _RESERVED or name.startswith(PREFIX)
    ]
    if clashing:
        raise ExportError(
            f"the head's tensors {', '.join(clashing)} have names that the model uses for "
            "something else: export the head with its backbone instead"
        )


def _with_head(
    info: ModelInfo, heads: Heads, name: str | None, head: Head, *, add: bool
) -> dict[str, Head]:
    if info.form != "multi":
        if add:
            raise ExportError(f"a {info.form} model takes one head; only a multi model takes more")
        return {"": head}
    names = ", ".join(heads)
    if not name:
        raise ExportError(
            f"this model has the heads {names}: pass name=NAME (--name NAME) to say which one to "
            "replace, or what to call the new one"
        )
    if add and name in heads:
        raise ExportError(f"the model already has a head {name!r}; omit --add to replace it")
    if not add and name not in heads:
        raise ExportError(
            f"the model has no head {name!r} to replace; it has {names}. Pass --add to add a head"
        )
    return {**heads, name: head}


def _check_runs(info: ModelInfo, head: Head, opset: int) -> None:
    """Run the head alone on random features; raise if it does not compute logits."""
    import onnxruntime as ort

    model = head_model(info, head, opset)
    generator = np.random.default_rng(0)
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    try:
        session = ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        for batch in CHECKED_BATCHES:
            features = {
                key: generator.normal(size=(batch, *map(int, dims[1:]))).astype(np.float32)
                for key, dims in info.values.items()
            }
            (logits,) = session.run(["logits"], features)
            if logits.shape != (batch, head.num_classes) or not np.isfinite(logits).all():
                raise ExportError(
                    f"at batch size {batch}, the head computes logits of shape "
                    f"{list(logits.shape)}, expected {[batch, head.num_classes]} without NaN or "
                    "infinite values"
                )
    except ExportError:
        raise
    except Exception as error:  # onnxruntime's own classes share no root below Exception
        raise ExportError(f"the head does not fit the model: {first_line(error)}") from error
