"""timm's conditionally parameterized convolution in operators that ONNX has for any batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from headkit.adapters.backbone.timm_exceptions import class_names


class Experts(nn.Module):
    """``CondConv2d`` (Yang et al., 2019, arXiv:1904.04971) with the batch as a dimension.

    timm makes the images of a batch groups of one convolution, and ONNX fixes the number of groups.
    A convolution of 1 x 1 is a matrix product with a matrix per image. For others all experts are
    convolved and their results weighted: a convolution is linear in its weights.
    """

    def __init__(self, convolution: Any) -> None:
        super().__init__()
        self.of = convolution
        out, into, *kernel = convolution.weight_shape
        self._groups, self._out = convolution.groups, out
        self._is_product = (
            convolution.groups == 1
            and tuple(kernel) == (1, 1)
            and tuple(convolution.stride) == (1, 1)
            and not convolution.dynamic_padding
            and tuple(convolution.padding) == (0, 0)
        )
        # Group by group, so that the experts of a group see its channels.
        shape = (convolution.num_experts, self._groups, out // self._groups, into, *kernel)
        self._weight = convolution.weight.view(shape).transpose(0, 1).reshape(-1, into, *kernel)

    def forward(self, x: Tensor, routing_weights: Tensor) -> Tensor:
        """Convolve ``[batch, in, height, width]`` with weights ``[batch, experts]``."""
        found = (
            self._product(x, routing_weights)
            if self._is_product
            else self._convolved(x, routing_weights)
        )
        if self.of.bias is None:
            return found
        return found + torch.matmul(routing_weights, self.of.bias)[:, :, None, None]

    def _product(self, x: Tensor, routing_weights: Tensor) -> Tensor:
        weight = torch.matmul(routing_weights, self.of.weight)
        weight = weight.view(-1, self._out, self.of.weight_shape[1])
        batch, _, height, width = x.shape
        return torch.matmul(weight, x.flatten(2)).view(batch, self._out, height, width)

    def _convolved(self, x: Tensor, routing_weights: Tensor) -> Tensor:
        padding = self.of.padding
        if self.of.dynamic_padding:
            from timm.layers import pad_same

            x, padding = pad_same(x, self.of.kernel_size, self.of.stride, self.of.dilation), 0
        found = conv2d(
            x, self._weight, None, self.of.stride, padding, self.of.dilation, self._groups
        )
        batch, _, height, width = found.shape
        found = found.view(batch, self._groups, self.of.num_experts, -1, height, width)
        weighted: Tensor = (found * routing_weights[:, None, :, None, None, None]).sum(2)
        return weighted.flatten(1, 2)


def replace_experts(model: nn.Module) -> nn.Module:
    """Put ``Experts`` in the place of each ``CondConv2d``, in place."""
    for name, child in list(model.named_children()):
        if "CondConv2d" in class_names(child):
            setattr(model, name, Experts(child))
        else:
            replace_experts(child)
    return model
