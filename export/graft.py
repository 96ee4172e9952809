"""Put another head into an exported model: seconds of torch become milliseconds of NumPy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from ..adapters.errors import ExportError, first_line
from ..adapters.files import check_writable
from ..adapters.head import Head
from .forms import Heads, head_model, opset_of, put_heads, swappable_inputs, take_heads
from .metadata import ModelInfo
from .onnxfile import opened
from .swap import SUFFIX, swapped, write_adapter

CHECKED_BATCHES = (1, 3)


def graft(
    onnx_path: str | Path,
    head: Head | str | Path,
    out: str | Path,
    *,
    name: str | None = None,
    add: bool = False,
    force: bool = False,
) -> ModelInfo:
    """Put ``head`` into an exported model, without torch and without exporting again.

    The result has the same graph, bit for bit the same weights, and therefore the same logits as a
    model exported with this head. Its backbone keeps precision, preprocessing and optimizations.

    Args:
        onnx_path: a merged, swappable, multi or backbone model that headkit exported. A backbone
            becomes a merged model.
        head: a head, or the path of a head file.
        out: where to write the new model; may be ``onnx_path``. With the suffix ``.onnx_adapter``
            it is a file of the head alone for a swappable model, as ONNX Runtime takes it.
        name: of the head in a multi model; the stem of its file without it.
        add: to a multi model, instead of replacing the head of that name.
        force: graft onto another backbone of the same architecture too. Logits will differ.

    Returns:
        The description of the new model.

    Raises:
        BackboneMismatch: the head was trained on another backbone.
        ExportError: the model is damaged, or has no place for such a head.
        OutputError: ``out`` cannot be written.
        HeadFormatError: ``head`` cannot be read.
    """
    out = check_writable(out)
    path = None if isinstance(head, Head) else Path(head)
    head = head if isinstance(head, Head) else Head.load(head)
    source = opened(onnx_path)
    model, info = source.model, source.info
    info.check_backbone(head, force=force)
    if out.suffix == SUFFIX:
        if info.form != "swappable":
            raise ExportError(f"a {info.form} model takes no adapters; export it as 'swappable'")
        write_adapter(swapped(info, swappable_inputs(model), head), out)
        return info
    _run_alone(info, head, opset_of(model))
    if info.form == "backbone":
        info = replace(info, form="merged")
    known = {one.name: one for one in info.heads}
    heads = take_heads(model, info)
    name = (name or (path.stem if path else None)) if info.form == "multi" else ""
    new = _placed(info, heads, name, head, add=add)
    kept = {key: one for key, one in known.items() if key != name}
    info = put_heads(model, info, new, kept)
    source.write(out)
    return info


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
