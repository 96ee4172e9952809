"""Put another head into an exported model: seconds of torch become milliseconds of NumPy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from headkit.adapters.errors import ExportError, OutputError, first_line
from headkit.adapters.file_kinds import ADAPTER, HEAD, MODEL, check_argument, check_output
from headkit.adapters.heads.head import Head
from headkit.export.predict.adapter_files import write_adapter
from headkit.registry.resolve import head_name, load_head

from .forms import Heads, head_model, opset_of, put_heads, swappable_inputs, take_heads
from .metadata import PREFIX, TEMPERATURE, ModelInfo
from .onnx_file import Opened, opened

CHECKED_BATCHES = (1, 3)
_USAGE = "the model first and then the head: graft MODEL.onnx HEAD.safetensors"
_RESERVED = ("logits", "probabilities", TEMPERATURE)
"""Values that come and go with a head."""


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
    """Put ``head`` into an exported model, without torch and without exporting again.

    The result has the same graph, bit for bit the same weights, and therefore the same logits as a
    model exported with this head. Its backbone keeps precision, preprocessing and optimizations;
    what a reduced precision costs is not known for the new head.

    Args:
        onnx_path: a merged, swappable, multi or backbone model that headkit exported. A backbone
            becomes a merged model.
        head: a head, the path of a head file, or a reference to a store.
        out: where to write the new model, with the suffix ``.onnx``. With the suffix
            ``.onnx_adapter`` it is a file of the head alone for a swappable model, as ONNX Runtime
            takes it.
        name: of the head in a multi model; the stem of its file, or its published name, without it.
        add: to a multi model, instead of replacing the head of that name.
        force: graft onto another backbone of the same architecture too. Logits will differ.
        overwrite: let ``out`` be ``onnx_path``: the new model replaces the old one.

    Returns:
        The description of the new model.

    Raises:
        BackboneMismatch: the head was trained on another backbone.
        ExportError: the model is damaged, or has no place for such a head.
        OutputError: ``out`` cannot be written, has another suffix, is the head file, or is
            ``onnx_path`` without ``overwrite``.
        HeadFormatError: ``head`` cannot be read.
        RegistryError: the store has no such head.
    """
    path = None if isinstance(head, Head) else Path(head)
    check_argument("the model", onnx_path, MODEL, _USAGE)
    check_argument("the head", path, HEAD, _USAGE)
    out = check_output(out, MODEL, ADAPTER)
    if path is not None and _same_file(path, out):
        raise OutputError(f"cannot write {out}: it is the head file; name another file")
    if _same_file(Path(onnx_path), out) and not overwrite:
        raise OutputError(
            f"cannot write {out}: it is the model that the head goes into; name another file, or "
            "pass overwrite=True (--overwrite) to replace it"
        )
    head = load_head(head)
    with opened(onnx_path) as source:
        source.info.check_backbone(head, force=force)
        if out.suffix == ADAPTER.suffix:
            return _write_alone(source, head, out)
        info = _replace(source, head, name or (head_name(path) if path else None), add=add)
        source.write(out)
        return info


def _same_file(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and one.samefile(other)


def _write_alone(source: Opened, head: Head, out: Path) -> ModelInfo:
    info = source.info
    if info.form != "swappable":
        raise ExportError(f"a {info.form} model takes no adapters; export it as 'swappable'")
    write_adapter(info, swappable_inputs(source.model), head, out)
    return info


def _replace(source: Opened, head: Head, name: str | None, *, add: bool) -> ModelInfo:
    """Put ``head`` into the model, in place."""
    model, info = source.model, source.info
    _run_alone(info, head, opset_of(model))
    _check_same_tensors(info, head)
    name = name if info.form == "multi" else ""
    known = {one.name: one for one in info.heads if one.name != name}
    if info.form == "backbone":
        info = replace(info, form="merged")
    heads = take_heads(model, info)
    _check_new_names(head, source.value_names())
    info = replace(info, cost={key: cost for key, cost in info.cost.items() if key != name})
    return put_heads(model, info, _placed(info, heads, name, head, add=add), known)


def _check_same_tensors(info: ModelInfo, head: Head) -> None:
    """Refuse a head whose tensors have other names than those of the head that it replaces."""
    if info.form not in ("merged", "swappable"):
        return
    own = info.heads[0]
    differing = sorted(own.tensors.keys() ^ head.tensors.keys())
    same_kind = own.described.get("kind") == head.kind
    if same_kind and any(not f".{name}".endswith(".bias") for name in differing):
        raise ExportError(
            f"the head's tensors are {', '.join(head.tensors)}, the model's head of the same kind "
            f"has {', '.join(own.tensors)}: export the head with its backbone instead"
        )


def _check_new_names(head: Head, taken: set[str]) -> None:
    clashing = [
        name
        for name in head.tensors
        if name in taken or name in _RESERVED or name.startswith(PREFIX)
    ]
    if clashing:
        raise ExportError(
            f"the head's tensors {', '.join(clashing)} have names that the model uses for "
            "something else: export the head with its backbone instead"
        )


def _placed(
    info: ModelInfo, heads: Heads, name: str | None, head: Head, *, add: bool
) -> dict[str, Head]:
    if info.form != "multi":
        if add:
            raise ExportError(f"a {info.form} model takes one head; only a multi model takes more")
        return {"": head}
    if not name:
        raise ExportError("name the head (--name): this model has several")
    names = ", ".join(heads)
    if add and name in heads:
        raise ExportError(f"the model has a head {name!r} already; leave --add out to replace it")
    if not add and name not in heads:
        raise ExportError(f"the model has no head {name!r} to replace, but {names}; or pass --add")
    return {**heads, name: head}


def _run_alone(info: ModelInfo, head: Head, opset: int) -> None:
    """Run the head on random features: what does not give logits must not get into a model."""
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
            entered = {
                key: generator.normal(size=(batch, *map(int, dims[1:]))).astype(np.float32)
                for key, dims in info.features.items()
            }
            (logits,) = session.run(["logits"], entered)
            if logits.shape != (batch, head.num_classes) or not np.isfinite(logits).all():
                raise ExportError(
                    f"the head gives {list(logits.shape)} at batch {batch}, expected finite "
                    f"{[batch, head.num_classes]}"
                )
    except ExportError:
        raise
    except Exception as error:  # onnxruntime's own classes share no root below Exception
        raise ExportError(f"the head does not fit the model: {first_line(error)}") from error
