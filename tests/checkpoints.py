"""Checkpoints as people have them: a trained model in the wrappers of many training loops."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from headkit.benchmarks.coverage.random_weights import randomize_constants

State = dict[str, Tensor]


def trained(architecture: str = "test_resnet", num_classes: int = 3, **kwargs: Any) -> nn.Module:
    """A model of plain timm that differs everywhere from a new one, in eval mode."""
    torch.manual_seed(7)
    model = timm.create_model(architecture, num_classes=num_classes, **kwargs)
    randomize_constants(model)
    generator = torch.Generator().manual_seed(8)
    for name, tensor in model.state_dict().items():
        if name.endswith(("running_mean", "running_var")):
            tensor.uniform_(0.5, 1.5, generator=generator)
        elif tensor.is_floating_point():
            tensor += 0.01 * torch.randn(tensor.shape, generator=generator)
    return model.eval()  # type: ignore[no-any-return]


def prefixed(state: Mapping[str, Tensor], prefix: str) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def other(state: Mapping[str, Tensor]) -> State:
    """Tensors of the same names and shapes with other values."""
    return {n: t + 1 if t.is_floating_point() else t for n, t in state.items()}


def _optimizer(state: Mapping[str, Tensor]) -> dict[str, Any]:
    moments = {
        number: {"step": torch.tensor(3.0), "exp_avg": tensor * 0.1, "exp_avg_sq": tensor * 0.2}
        for number, tensor in enumerate(state.values())
    }
    return {"state": moments, "param_groups": [{"lr": 0.1, "params": list(range(len(state)))}]}


WRAPPERS: dict[str, Callable[[State], Any]] = {
    "plain": dict,
    "state_dict beside optimizer": lambda s: {
        "epoch": 3,
        "arch": "test_resnet",
        "state_dict": s,
        "optimizer": _optimizer(s),
    },
    "Lightning": lambda s: {
        "epoch": 3,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": {**prefixed(s, "model."), "criterion.weight": torch.ones(3)},
        "optimizer_states": [_optimizer(s)],
        "lr_schedulers": [],
    },
    "DataParallel": lambda s: prefixed(s, "module."),
    "compiled": lambda s: prefixed(s, "_orig_mod."),
    "compiled DDP": lambda s: {"model": prefixed(s, "module._orig_mod.")},
    "Lightning with a compiled net": lambda s: {"state_dict": prefixed(s, "net._orig_mod.")},
    "compiled layer": lambda s: {
        name.replace("layer1.", "layer1._orig_mod.").replace("blocks.0.", "blocks.0._orig_mod."): t
        for name, t in s.items()
    },
    "encoder of a larger module": lambda s: {
        **prefixed({n: t for n, t in s.items() if not n.startswith(("fc.", "head."))}, "encoder."),
        "projection.0.weight": torch.ones(8, 96),
        "projection.0.bias": torch.ones(8),
    },
    "model_state_dict": lambda s: {"model_state_dict": s, "loss": 0.5},
    "nested two levels deeper": lambda s: {"checkpoint": {"model": {"state_dict": s}}, "step": 1},
    "EMA of timm": lambda s: {"state_dict": other(s), "state_dict_ema": s, "optimizer": {}},
    "EMA of a training loop": lambda s: {
        "model": other(s),
        "ema": {"module": s, "decay": 0.9},
        "scaler": {"scale": 1.0},
    },
    "net": lambda s: {"net": prefixed(s, "module."), "acc": 0.9},
    "averaged model": lambda s: {"n_averaged": torch.tensor(5), **prefixed(s, "module.")},
    "by module": lambda s: _by_module(s),
    "beside the epoch": lambda s: {**s, "epoch": 3, "optimizer": _optimizer(s)},
    "the same twice": lambda s: {"model": s, "best_model": dict(s)},
}
"""Wrappers of a state dict by name: what a training loop saves around it."""


def _by_module(state: State) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, tensor in state.items():
        *path, last = name.split(".")
        place = nested
        for part in path:
            place = place.setdefault(part, {})
        place[last] = tensor
    return nested


def assert_backbone_comes_from(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Compare each tensor of a model outside its classifier with the file's, bit for bit."""
    own = model.state_dict()
    timm_model: Any = model
    classifier = {id(p) for p in timm_model.get_classifier().parameters()}
    named = dict(model.named_parameters())
    compared = 0
    for name, tensor in own.items():
        if name in named and id(named[name]) in classifier:
            continue
        assert torch.equal(tensor, state[name]), name
        compared += 1
    assert compared > 10


def save(value: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        safetensors.torch.save_file({n: t.contiguous() for n, t in value.items()}, path)
    else:
        torch.save(value, path)
    return path
