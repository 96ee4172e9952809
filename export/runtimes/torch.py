"""Run models with torch, eager in channels-last memory or compiled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from headkit.adapters.backbone.classifier import find_classifier, replace_classifier
from headkit.adapters.backbone.forward import Backbone, features
from headkit.adapters.backbone.level_head import without_level_head
from headkit.adapters.backbone.levels import vector_levels
from headkit.adapters.backbone.module_copy import copy_structure
from headkit.adapters.backbone.preprocessing import Normalize, preprocessing
from headkit.adapters.compat import unwrap
from headkit.adapters.features.runtime import Branches, Pixels, Precision, Run

from .inference import Array, InferenceModel, LoadedModel, RunConfig
from .threads import restore_threads

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class TorchRuntime:
    """Extraction of features with eager torch in channels-last memory; bf16 uses autocast."""

    precision: Precision = "fp32"
    threads: int | None = None
    name: str = "torch"
    streams: int = 1

    @property
    def versions(self) -> dict[str, str]:
        """Version of torch."""
        return {"torch": torch.__version__}

    def start(
        self,
        model: nn.Module,
        _folder: Path,
        _batch_size: int,
        /,
        levels: str | Sequence[str] = (),
    ) -> Run:
        """See ``Runtime``."""
        device = next(model.parameters()).device
        normalize = Normalize(preprocessing(model), device)
        model = without_level_head(unwrap(model)).to(memory_format=torch.channels_last)
        chosen = vector_levels(model, levels)
        checked = False

        @torch.no_grad()
        def run(pixels: Pixels) -> Branches:
            nonlocal checked
            bf16 = torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16")
            with restore_threads():
                if self.threads is not None:
                    torch.set_num_threads(self.threads)
                images = normalize(torch.from_numpy(pixels))
                with bf16:
                    if not checked:
                        features(model, images)
                    branches = extract(images)
            checked = True
            return tuple(branch.float().cpu().numpy() for branch in branches)

        extract = Backbone(_with_classes(model), chosen)
        return run


def extraction_runtime(precision: Precision, threads: int | None) -> TorchRuntime:
    """See ``RuntimeModule``."""
    return TorchRuntime(precision, threads)


def load(model: InferenceModel, config: RunConfig, _batch_size: int) -> LoadedModel:
    """See ``RuntimeModule``."""
    torch.set_num_threads(config.threads)
    module = model.module().to(config.device, memory_format=torch.channels_last)
    dtype = _DTYPES[config.precision]
    if config.precision != "fp32":
        module = module.to(dtype)
    if config.runtime == "torch.compile":
        # Compiling for a fixed batch size gives the fastest code.
        torch.compiler.reset()
        module = torch.compile(module, dynamic=False)

    def to_device(x: Array) -> torch.Tensor:
        return torch.from_numpy(x).to(config.device, dtype, memory_format=torch.channels_last)

    @torch.inference_mode()
    def run(x: Array) -> Array:
        return np.asarray(module(to_device(x)).float().cpu().numpy())

    def bind(x: Array) -> Callable[[], object]:
        images = to_device(x)

        @torch.inference_mode()
        def call() -> Any:
            return module(images)

        return call

    return LoadedModel(run, bind)


def _with_classes(model: nn.Module) -> nn.Module:
    """Return the model with a classifier, which some models lack while they have no classes."""
    if find_classifier(model).num_classes:
        return model
    model = copy_structure(model, share_tensors=True)
    replace_classifier(model, 1)
    return model.eval()
