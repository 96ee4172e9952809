"""Rewrite an ONNX model so that ONNX Runtime does less work for the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import onnx

from .fold import fold_norm, fold_scale
from .fuse import fuse_attention, fuse_rotary
from .graph import MICROSOFT, Graph
from .move import average_early, pick_early
from .product import fuse_transposes, multiply_to_resize, split_projection
from .scores import mask_wholly, merge_biases
from .tokens import drop_padding, gather_tokens

MIN_OPSET = 18
"""Older operators take their axes in other ways; models of older opsets are left alone."""


def optimize(model: onnx.ModelProto, *, quantizable: bool = False) -> onnx.ModelProto:
    """Return a copy of the model that computes the same in less time on ONNX Runtime.

    These are rewrites that ONNX Runtime does not make itself when it loads a file. Each looks for a
    pattern of operators, not for an architecture, and leaves alone what does not match exactly:

    - Rotary position embedding written as slices, products and concatenations becomes one
      ``com.microsoft.RotaryEmbedding``.
    - A token that is picked at the end, such as the class token, is picked as early as possible:
      in the last block nothing is computed for other tokens but their keys and values.
    - An average over tokens or pixels moves in front of the last linear layers.
    - Self-attention on a packed projection to queries, keys and values, with or without a constant
      bias, becomes one ``com.microsoft.Attention`` where that is faster.
    - Elsewhere queries, keys and values get a linear layer each, without needless biases.
    - The constants that are added to scores are added at once, and those that hide keys from
      queries do so wholly.
    - Transposed operands and results of matrix products become one ``com.microsoft.FusedMatMul``.
    - Small images are resized by a matrix product.
    - Tokens that are shifted and cut into windows are moved once.
    - A BatchNormalization in front of a convolution without padding becomes part of it, and
      factors of channels behind a linear layer become part of that.
    - Padding by nothing goes.

    Attention is recognized where it was traced as matrix products and a softmax
    (``fused_attn = False`` on timm's modules). Shapes are read from the graph's ``value_info``;
    values without one are left alone. Inputs, outputs and initializers that are still read keep
    their names. The fused operators are ONNX Runtime's own: no other runtime may know them.

    Args:
        model: with shapes in its ``value_info``; stays as it is.
        quantizable: keep the matrix products of attention and the sums around them as they are, so
            that they can be quantized, and make no new products.
    """
    optimized = onnx.ModelProto()
    optimized.CopyFrom(model)
    opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)
    if opset < MIN_OPSET:
        return optimized
    fusing: tuple[Callable[[Graph], None], ...] = (
        fuse_attention,
        split_projection,
        merge_biases,
        fuse_transposes,
        partial(multiply_to_resize, opset=opset),
    )
    for rewrite in (
        fuse_rotary,
        pick_early,
        average_early,
        mask_wholly,
        *(() if quantizable else fusing),
        drop_padding,
        gather_tokens,
        fold_norm,
        fold_scale,
    ):
        graph = Graph(optimized.graph)
        rewrite(graph)
        graph.write()
    domains = {opset.domain for opset in optimized.opset_import}
    if MICROSOFT not in domains and any(n.domain == MICROSOFT for n in optimized.graph.node):
        optimized.opset_import.append(onnx.helper.make_opsetid(MICROSOFT, 1))
    return optimized
