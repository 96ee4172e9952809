"""timm's conditionally parameterized convolution in ONNX operators that work for any batch size."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from headkit.adapters.backbone.timm_exceptions import class_names


class BatchedCondConv2d(nn.Module):
    """``CondConv2d`` (Yang et al., 2019, arXiv:1904.04971) for a dynamic batch.

    timm computes the images of a batch as groups of one convolution, but ONNX fixes the number of
    groups. Here a 1 x 1 convolution is a matrix product with one matrix per image. Any other
    convolution runs once with the weights of all experts, and the routing weights sum its results:
    a convolution is linear in its weights.
    """

    def __init__(self, convolution: Any) -> None:
        super().__init__()
        self.convolution = convolution
        out, into, *kernel = convolution.weight_shape
        self._groups, self._out = convolution.groups, out
        self._is_matmul = (
            convolution.groups == 1
            and tuple(kernel) == (1, 1)
            and tuple(convolution.stride) == (1, 1)
            and not convolution.dynamic_padding
            and tuple(convolution.padding) == (0, 0)
        )
        # Order the weights by group, so that the experts of a group read the group's channels.
        shape = (convolution.num_experts, self._groups, out // self._groups, into, *kernel)
        self._weight = convolution.weight.view(shape).transpose(0, 1).reshape(-1, into, *kernel)

    def forward(self, x: Tensor, routing_weights: Tensor) -> Tensor:
        """Convolve ``[batch, in, height, width]`` with weights ``[batch, experts]``."""
        convolve = self._multiply if self._is_matmul else self._convolve_all
        result = convolve(x, routing_weights)
        if self.convolution.bias is None:
            return result
        return result + torch.matmul(routing_weights, self.convolution.bias)[:, :, None, None]

    def _multiply(self, x: Tensor, routing_weights: Tensor) -> Tensor:
        weight = torch.matmul(routing_weights, self.convolution.weight)
        weight = weight.view(-1, self._out, self.convolution.weight_shape[1])
        batch, _, height, width = x.shape
        return torch.matmul(weight, x.flatten(2)).view(batch, self._out, height, width)

    def _convolve_all(self, x: Tensor, routing_weights: Tensor) -> Tensor:
        own, padding = self.convolution, self.convolution.padding
        if own.dynamic_padding:
            from timm.layers import pad_same

            x, padding = pad_same(x, own.kernel_size, own.stride, own.dilation), 0
        per_expert = conv2d(x, self._weight, None, own.stride, padding, own.dilation, self._groups)
        batch, _, height, width = per_expert.shape
        per_expert = per_expert.view(batch, self._groups, own.num_experts, -1, height, width)
        weighted: Tensor = (per_expert * routing_weights[:, None, :, None, None, None]).sum(2)
        return weighted.flatten(1, 2)


def replace_condconv(model: nn.Module) -> nn.Module:
    """Replace each ``CondConv2d`` by ``BatchedCondConv2d``, in place; return the model."""
    for name, child in list(model.named_children()):
        if "CondConv2d" in class_names(child):
            setattr(model, name, BatchedCondConv2d(child))
        else:
            replace_condconv(child)
    return model
