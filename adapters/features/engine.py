"""What runs the frozen backbone while features are extracted, and the engine that torch is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
from torch import nn

from headkit.adapters.backbone.classifier import find_classifier, replace_classifier
from headkit.adapters.backbone.forward import Backbone, features
from headkit.adapters.backbone.module_copy import copy_structure
from headkit.adapters.backbone.preprocessing import preprocessing
from headkit.adapters.errors import DependencyMissing, HeadkitError

Precision = Literal["fp32", "bf16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Branches = tuple[np.ndarray[Any, np.dtype[np.float32]], ...]

Run = Callable[[Pixels], Branches]
"""From uint8 ``[batch, channels, height, width]``, resized and cropped, to float32 features, a
tensor ``[batch, …]`` per branch. The batch has the size that the engine was started with."""


class Engine(Protocol):
    """A way to run a backbone. Cheap to make and to pickle; the work begins with ``start``.

    Attributes:
        name: of the engine, as ``--engine`` takes it.
        precision: of its arithmetic; features come out as float32.
        threads: of the CPU; one per core without it.
        streams: batches that ``Run`` may be called with at once, from as many threads.
        versions: of what computes: features of other versions may differ in the last bits.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def precision(self) -> Precision: ...  # noqa: D102

    @property
    def threads(self) -> int | None: ...  # noqa: D102

    @property
    def streams(self) -> int: ...  # noqa: D102

    @property
    def versions(self) -> dict[str, str]: ...  # noqa: D102

    def start(self, model: nn.Module, folder: Path, batch_size: int, /) -> Run:
        """Make the engine ready.

        Args:
            model: a frozen timm model; stays as it is.
            folder: where a converted backbone may be kept for the next time.
            batch_size: images per call.

        Raises:
            ExportError: the engine cannot run this backbone.
        """
        ...


@dataclass(frozen=True)
class EngineKind:
    """One row of the table of engines.

    Attributes:
        make: from a precision and a number of threads to the engine.
        module: what has to be importable.
        package: what installs that.
        precisions: that the engine has.
        devices: types of the devices on which a backbone may lie; any without them.
    """

    make: Callable[[Precision, int | None], Engine]
    module: str
    package: str
    precisions: tuple[Precision, ...]
    devices: tuple[str, ...] = ()


FASTEST: dict[Precision, tuple[str, ...]] = {
    "fp32": ("onnxruntime", "torch"),
    "bf16": ("openvino", "torch"),
}
"""What ``auto`` tries in turn, for a backbone on a CPU. On any other device torch runs it."""


def choose(name: str, precision: str, model: nn.Module, threads: int | None = None) -> Engine:
    """Return the engine of that name; with ``auto`` the fastest that is installed.

    Raises:
        DependencyMissing: the engine is not installed.
        HeadkitError: there is no such engine, or it lacks the precision or the device.
    """
    device = next(model.parameters()).device.type
    if precision not in PRECISIONS:
        raise HeadkitError(f"precision is {precision!r}, expected one of {', '.join(PRECISIONS)}")
    if name == "auto":
        candidates = FASTEST[precision] if device == "cpu" else ("torch",)
        name = next(n for n in candidates if n in ENGINES and find_spec(ENGINES[n].module))
    if name not in ENGINES:
        raise HeadkitError(f"engine is {name!r}, expected one of auto, {', '.join(ENGINES)}")
    kind = ENGINES[name]
    if precision not in kind.precisions or (kind.devices and device not in kind.devices):
        raise HeadkitError(
            f"the engine {name!r} runs {' or '.join(kind.precisions)} on "
            f"{' or '.join(kind.devices or ('any device',))}, asked for was {precision} on {device}"
        )
    if find_spec(kind.module) is None:
        raise DependencyMissing.for_feature(f"the engine {name!r}", kind.package)
    return kind.make(precision, threads)


@dataclass(frozen=True)
class TorchEngine:
    """Eager torch, channels last; bfloat16 by autocast."""

    precision: Precision = "fp32"
    threads: int | None = None
    name: str = "torch"
    streams: int = 1

    @property
    def versions(self) -> dict[str, str]:
        """Of torch."""
        return {"torch": torch.__version__}

    def start(self, model: nn.Module, _folder: Path, _batch_size: int, /) -> Run:
        """See ``Engine``."""
        device = next(model.parameters()).device
        cfg = preprocessing(model)
        mean, std = (
            torch.tensor(cfg[key], device=device).view(-1, 1, 1) for key in ("mean", "std")
        )
        model = model.to(memory_format=torch.channels_last)
        checked = False

        @torch.no_grad()
        def run(pixels: Pixels) -> Branches:
            nonlocal checked
            if self.threads is not None:
                torch.set_num_threads(self.threads)
            images = torch.from_numpy(pixels).to(device, memory_format=torch.channels_last)
            # The arithmetic of torchvision's ToTensor and Normalize, in their order.
            images = images.float().div(255).sub(mean).div(std)
            with torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                entered = split(images) if checked else features(model, images)
            checked = True
            branches = (entered,) if isinstance(entered, torch.Tensor) else entered
            return tuple(branch.float().cpu().numpy() for branch in branches)

        split = Backbone(_with_classes(model))
        return run


def _with_classes(model: nn.Module) -> nn.Module:
    """Some models leave the classifier out while they have no classes."""
    if find_classifier(model).num_classes:
        return model
    model = copy_structure(model, share_tensors=True)
    replace_classifier(model, 1)
    return model.eval()


ENGINES: dict[str, EngineKind] = {
    "torch": EngineKind(TorchEngine, "torch", "torch", PRECISIONS),
}
"""Engines by name. ``export.engines`` adds its own: this package knows nothing of ONNX."""
