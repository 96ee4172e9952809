"""A model with changes that are being trained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import conv1d, conv2d, conv3d, linear

from headkit.adapters.backbone.classifier import find_classifier
from headkit.adapters.backbone.delta.delta import DOWN, SCALE, UP, VALUE

from .change import Change
from .layers import along, channel_axis


class Trainable:
    """A model whose forward pass has changes that are not merged yet.

    Values are trained where they are. A scale or a product of low rank acts on the output of its
    layer, so no gradient of the layer's weight is computed.

    Attributes:
        model: The model. It must not share tensors with another one.
        tensors: The trained tensors by ``PARAMETER.OPERATION``.
        head: The trained tensors of the classifier, by name.
    """

    def __init__(self, model: nn.Module, changes: Iterable[Change], seed: int = 0) -> None:
        self.model, self.tensors = model, dict[str, Tensor]()
        self._start: dict[str, Tensor] = {}
        generator = torch.Generator().manual_seed(seed)
        model.requires_grad_(False).eval()
        classifier = find_classifier(model).tensors
        named = dict(model.named_parameters())
        self.head: dict[str, Tensor] = {n: p for n, p in named.items() if n in classifier}
        for change in changes:
            parameter = named[change.parameter]
            for operation, start in change.start(parameter, generator).items():
                name = f"{change.parameter}.{operation}"
                self._start[name] = start
                trained = parameter if operation == VALUE else nn.Parameter(start.clone())
                self.tensors[name] = trained.requires_grad_(True)
            if change.operation != VALUE:
                self._add_hook(change)
        for tensor in self.head.values():
            tensor.requires_grad_(True)

    def _add_hook(self, change: Change) -> None:
        module = self.model.get_submodule(change.parameter.rpartition(".")[0])
        if change.operation == SCALE:
            hook = partial(_scale, self.tensors[f"{change.parameter}.{SCALE}"])
        else:
            up, down = (self.tensors[f"{change.parameter}.{one}"] for one in (UP, DOWN))
            hook = partial(_add_product, up, down)
        module.register_forward_hook(hook)

    def state(self) -> dict[str, Tensor]:
        """Return copies of all trained tensors by name."""
        trained = {**self.tensors, **self.head}
        return {name: tensor.detach().clone() for name, tensor in trained.items()}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Give all trained tensors the values that ``state`` returned."""
        for name, tensor in {**self.tensors, **self.head}.items():
            tensor.copy_(state[name])

    def trained(self) -> dict[str, Tensor]:
        """Return copies of the tensors of a delta that differ from those before the training."""
        found = {}
        for name, tensor in self.tensors.items():
            partner = f"{name.rpartition('.')[0]}.{UP}"  # down alone changes nothing
            decisive = partner if name.endswith(f".{DOWN}") else name
            if not torch.equal(self.tensors[decisive].detach(), self._start[decisive]):
                copied = tensor.detach().to("cpu", torch.float32, copy=True)
                found[name] = copied.contiguous()
        return found


def _scale(scale: Tensor, module: nn.Module, _args: Any, output: Tensor) -> Tensor:
    axis = channel_axis(module)
    factors = along(scale.to(output.dtype), axis, output.ndim)
    bias = cast("Tensor | None", module.bias)
    if bias is None:
        return output * factors
    own = along(bias.to(output.dtype), axis, output.ndim)
    return torch.addcmul(own - own * factors, output, factors)


def _add_product(up: Tensor, down: Tensor, module: nn.Module, args: Any, output: Tensor) -> Tensor:
    x = args[0]
    up, down = up.to(x.dtype), down.to(x.dtype)
    if isinstance(module, nn.Linear):
        return output + linear(linear(x, down), up)
    return output + _convolve(module, x, up, down)


class _Unhooked(nn.Module):
    """A module without its hooks."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Any:
        return self.inner.forward(x)


def _convolve(module: nn.Module, x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """Convolve with a product of low rank; the module's own forward pass pads and strides."""
    swapped = {"inner.weight": down}
    if module.bias is not None:
        swapped["inner.bias"] = down.new_zeros(len(down))
    inner = functional_call(_Unhooked(module), swapped, (x,))
    functions = {3: conv1d, 4: conv2d, 5: conv3d}
    return functions[inner.ndim](inner, up.view(*up.shape, *(1 for _ in inner.shape[2:])))
