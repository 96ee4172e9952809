"""Use the private names of torch, timm and ONNX Runtime, which these libraries may change.

No other module uses such a name. The docstring of each function says which public interface would
replace it, and a test checks it against the installed library. Each function imports the library
that it uses, so no caller loads a library that it does not need.
"""

from __future__ import annotations

import inspect
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .errors import ContractError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx
    from torch import Tensor, nn

QUANTIZATION_LOGGER = "onnxruntime.quantization"
"""Logger for the messages of ONNX Runtime's quantization, see ``give_quantization_a_logger``."""


def family_of(architecture: str) -> str:
    """Return the name of the timm module that defines an architecture, such as ``resnet``.

    timm does not promise that the module of an entry point is its family. A function of timm that
    returns the family would replace this one.

    Raises:
        RuntimeError: timm has no such architecture.
    """
    import timm

    return str(timm.model_entrypoint(architecture).__module__).rpartition(".")[2]


_ARGUMENTS = "_headkit_arguments"
_NOT_ARGUMENTS = (
    *("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"),
    *("device", "dtype", "drop_rate", "drop_path_rate", "drop_block_rate"),
)


def keep_arguments(model: nn.Module, arguments: Mapping[str, Any]) -> None:
    """Store on ``model`` the arguments with which ``timm.create_model`` created it.

    timm stores them itself since 1.0.31. Once headkit requires that version, this function and the
    second half of ``model_arguments`` are no longer needed.
    """
    import timm.models

    if not hasattr(timm.models, "get_model_args"):
        kept = {name: v for name, v in arguments.items() if name not in _NOT_ARGUMENTS}
        setattr(model, _ARGUMENTS, kept)


def model_arguments(model: nn.Module) -> dict[str, Any]:
    """Return the arguments that create another model like ``model`` in its current form.

    Raises:
        ContractError: timm is older than 1.0.31, and headkit did not create the model.
    """
    import timm.models

    if hasattr(timm.models, "get_model_args"):
        arguments: dict[str, Any] = timm.models.get_model_args(model)
        return arguments
    kept = getattr(model, _ARGUMENTS, None)
    if kept is None:
        raise ContractError(
            f"timm {timm.__version__} does not store the arguments of a {type(model).__name__}: "
            "create the model with headkit.load_backbone or headkit.adapt, or "
            "install timm>=1.0.31"
        )
    now = {"num_classes": getattr(model, "num_classes", None), "global_pool": _pooling(model)}
    return {**kept, **{name: value for name, value in now.items() if value is not None}}


def input_config(model: nn.Module) -> dict[str, Any]:
    """Return ``input_size`` ``[channels, height, width]`` and ``fixed_input_size`` of ``model``.

    timm has a function for this since 1.0.31. With older versions, the size comes from the patch
    embedding, the stored arguments or the weights.
    """
    import timm.models

    if hasattr(timm.models, "get_model_input_config"):
        config: dict[str, Any] = timm.models.get_model_input_config(model)
        return config
    cfg: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    kept = getattr(model, _ARGUMENTS, {})
    patches = getattr(model, "patch_embed", None)
    size = getattr(patches, "img_size", None) or kept.get("img_size") or cfg["input_size"][1:]
    height, width = (size, size) if isinstance(size, int) else size
    fixed = getattr(patches, "strict_img_size", cfg.get("fixed_input_size", False))
    return {
        "input_size": (kept.get("in_chans", cfg["input_size"][0]), height, width),
        "fixed_input_size": bool(fixed and not getattr(model, "dynamic_img_size", False)),
    }


def resolve_preprocessing(model: nn.Module) -> dict[str, Any]:
    """Return timm's eval preprocessing of ``model`` for its current input size.

    timm 1.0.31 renamed the function; ``resolve_data_config`` is its former name.
    """
    import timm.data

    size = {"input_size": tuple(input_config(model)["input_size"])}
    if hasattr(timm.data, "resolve_input_data_config"):
        resolved: dict[str, Any] = timm.data.resolve_input_data_config(model, args=size)
    else:
        resolved = timm.data.resolve_data_config(size, model=model)
        channels = size["input_size"][0]
        for name in ("mean", "std"):
            if len(resolved[name]) != channels:
                average = sum(resolved[name]) / len(resolved[name])
                resolved[name] = (average,) * channels
    return resolved


def pooling_to_keep(model: nn.Module) -> dict[str, str]:
    """Return the argument with which ``reset_classifier`` keeps the pooling that ``model`` has.

    Before timm 1.0.31 some models go back to average pooling without it. Newer ones keep theirs
    and need no argument.
    """
    parameters = inspect.signature(model.reset_classifier).parameters  # type: ignore[arg-type]
    default = parameters["global_pool"].default if "global_pool" in parameters else None
    pooling = _pooling(model)
    return {"global_pool": pooling} if isinstance(default, str) and pooling is not None else {}


def _pooling(model: nn.Module) -> str | None:
    head = getattr(model, "head", None)
    for owner, name in ((head, "global_pool"), (head, "pool_type"), (model, "global_pool")):
        pooling = getattr(owner, name, None)
        pooling = getattr(pooling, "pool_type", pooling)
        if isinstance(pooling, str):
            return pooling
    return None


def num_writes(tensor: Tensor) -> int | None:
    """Return how often ``tensor`` was written in place, or None for an inference tensor.

    It shows whether a tensor has changed, without a copy of the tensor. A public counter of writes
    to a tensor would replace this function.
    """
    return None if tensor.is_inference() else tensor._version


def watch_operators(
    seen: Callable[[Any, tuple[Any, ...], Any], None],
) -> AbstractContextManager[Any]:
    """Return a context in which ``seen`` gets each operator that torch runs.

    Args:
        seen: Function of the operator, such as ``torch.ops.aten.clone.default``, its positional
            arguments and its result.

    torch documents the dispatch mode but keeps it in a private module. A public module with it
    would replace this function.
    """
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(  # type: ignore[no-untyped-def]
            self, func, types, args=(), kwargs=None
        ):
            result = func(*args, **(kwargs or {}))
            seen(func, args, result)
            return result

    return Watch()  # type: ignore[no-untyped-call]


def has_forward_pre_hook(module: nn.Module, function: Any) -> bool:
    """Return True if a ``functools.partial`` of ``function`` is a forward pre-hook of ``module``.

    It prevents a hook from being registered twice. A public list of a module's hooks would replace
    this function.
    """
    hooks = module._forward_pre_hooks.values()
    return any(getattr(hook, "func", None) is function for hook in hooks)


def is_member_registry(name: str) -> bool:
    """Return True if modules keep parameters, buffers or children in the attribute ``name``.

    It allows a copy of a module to share the tensors. A public way to copy a module without its
    tensors would replace this function and ``is_hook_registry``.
    """
    return name in ("_parameters", "_buffers", "_modules")


def is_hook_registry(name: str) -> bool:
    """Return True if modules keep hooks in the attribute ``name``, a dict."""
    return "_hooks" in name


def multiplies_bfloat16() -> bool:
    """Return True if torch has bfloat16 kernels for this processor.

    Without them, torch's own loops take a hundred times as long. A public query of oneDNN's data
    types would replace this function.
    """
    import torch

    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@contextmanager
def without_timm_warnings() -> Iterator[None]:
    """Drop what timm warns about in this thread while it tries to load weights.

    timm lists every name that it does not know, even if the caller expects some. An argument that
    returns the names would replace this function.
    """
    logger, thread = logging.getLogger("timm.models._builder"), threading.get_ident()

    def is_elsewhere(record: logging.LogRecord) -> bool:
        return record.thread != thread

    logger.addFilter(is_elsewhere)
    try:
        yield
    finally:
        logger.removeFilter(is_elsewhere)


def split_attention(model: nn.Module) -> None:
    """Make timm's attention modules compute separate matrix products and a softmax, in place.

    They fuse the three if their attribute ``fused_attn`` is True. ``timm.layers.set_fused_attn`` is
    public, but it only affects models that are created later. A public switch for one model would
    replace this function.
    """
    for part in model.modules():
        if hasattr(part, "fused_attn"):
            vars(part)["fused_attn"] = False


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside ``torch.compile``, ``DataParallel``, an average of weights and so on.

    The wrapper of ``torch.compile`` keeps the model in the attribute ``_orig_mod``; the others keep
    it in ``module``. A public way to get the model of a compiled one would replace this function.

    Raises:
        ContractError: ``model`` is no module.
    """
    from torch import nn

    if not isinstance(model, nn.Module):
        raise ContractError(
            f"the model is of type {type(model).__name__}, expected a timm model, such as "
            "load_backbone returns"
        )
    while True:
        children = dict(model.named_children())
        inner = children.get("_orig_mod", children.get("module"))
        if inner is None or len(children) != 1 or "pretrained_cfg" in vars(model):
            return model
        model = inner


def uncompiled(model: nn.Module) -> Any:
    """Return a function that calls ``model`` with its hooks, also after ``model.compile()``.

    A compiled call does not run hooks that were added later. A public way to call a module without
    its compiled code would replace this function and ``is_compiled_code``.
    """
    return model if getattr(model, "_compiled_call_impl", None) is None else model._call_impl


def is_compiled_code(name: str) -> bool:
    """Return True if modules keep what ``module.compile()`` made in the attribute ``name``."""
    return name == "_compiled_call_impl"


def has_fusion(module: nn.Module) -> bool:
    """Return True if ``timm.models.reparameterize_model`` would fuse ``module``.

    ``reparameterize_model`` looks for the same methods. A public query would replace this function.
    """
    return any(hasattr(module, name) for name in ("fuse", "reparameterize", "switch_to_deploy"))


def create_stream_of_unknown_length(name: str, **options: Any) -> Any:
    """Open a streaming data set of timm whose number of images is unknown.

    timm's reader requires the number, which only training in epochs needs, and stores it in the
    attribute ``num_samples``. A reader that does not require it would replace this function.
    """
    from timm.data import create_dataset

    stream = create_dataset(name, num_samples=1, **options)
    stream.reader.num_samples = 0
    return stream


def to_float16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of ``model`` in float16 whose inputs and outputs stay float32.

    The converter is one of ONNX Runtime's scripts for transformers. A converter in
    ``onnxruntime.quantization`` or in ``onnx`` would replace this function.
    """
    from onnxruntime.quantization.onnx_model import ONNXModel
    from onnxruntime.transformers.float16 import convert_float_to_float16

    half = convert_float_to_float16(model, keep_io_types=True)
    ONNXModel(half).topological_sort()  # the converter appended the casts
    converted: onnx.ModelProto = half
    return converted


def drop_unused_initializers(model: onnx.ModelProto) -> None:
    """Remove the initializers that no node of ``model`` reads, in place.

    A function of ``onnx`` that removes them in place would replace this one.
    """
    from onnxruntime.quantization.onnx_model import ONNXModel

    ONNXModel(model).clean_initializers()


def give_quantization_a_logger() -> None:
    """Make ONNX Runtime's quantization log to its own logger.

    Quantization calls ``logging.info`` and ``logging.warning``, which configure the root logger of
    the process if it has no handlers. This function replaces the name ``logging`` in the modules of
    quantization, once for all threads; no other logging changes. It is no longer needed once these
    modules have their own logger, as ONNX Runtime's other scripts do.
    """
    import onnxruntime.quantization  # noqa: F401

    for name, module in list(sys.modules.items()):
        ours = name.startswith("onnxruntime.quantization.")
        if ours and vars(module).get("logging") is logging:
            vars(module)["logging"] = _NAMED


class _NamedLogging(ModuleType):
    """The module ``logging``, except that its functions do not log to the root logger."""

    def __getattr__(self, name: str) -> Any:
        reports = ("debug", "info", "warning", "error", "exception", "critical", "log")
        owner = logging.getLogger(QUANTIZATION_LOGGER) if name in reports else logging
        return getattr(owner, name)


_NAMED = _NamedLogging("logging")


def http_protocol() -> type[Any]:
    """Return uvicorn's class for HTTP connections, to which ``serve`` adds limits.

    uvicorn takes a class as ``http``, but documents only its own names. Used here: the methods of
    ``asyncio.Protocol``, the attributes ``client``, ``connections``, ``cycle``, ``headers``,
    ``loop`` and ``transport``, and of the cycle ``more_body`` and ``response_complete``.
    """
    from uvicorn.protocols.http.h11_impl import H11Protocol

    return H11Protocol
