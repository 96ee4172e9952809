"""Every ONNX graph rewrite, in the order in which ``optimize`` applies them.

To add a rewrite, write a function that changes a ``Graph`` in place, in a module of this folder,
and add it to ``PASSES``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx

from .absorb_transposes import absorb_transposes
from .fold_into_weights import fold_batch_norm, fold_layer_scale
from .fuse_attention import fuse_attention
from .fuse_rotary_embedding import fuse_rotary_embedding
from .gather_tokens import gather_tokens, remove_zero_padding
from .graph import MICROSOFT, Graph
from .pool_early import average_early, select_early
from .resize_by_matmul import resize_by_matmul
from .simplify_attention_bias import merge_attention_biases, saturate_attention_masks
from .split_qkv import split_qkv

MIN_OPSET = 18
"""Operators of older opsets take their axes in other ways, so older models stay as they are."""


@dataclass(frozen=True)
class Pass:
    """One rewrite.

    Attributes:
        rewrite: Changes a graph in place wherever its pattern matches.
        quantizable: Whether matrix products and sums can still be quantized after this rewrite.
    """

    rewrite: Callable[[Graph], None]
    quantizable: bool = True


PASSES = (
    # Rotary position embedding as slices, products and concatenations -> RotaryEmbedding.
    Pass(fuse_rotary_embedding),
    # Select the class token as early as possible: the last block skips the other tokens.
    Pass(select_early),
    # Average over tokens or pixels before the last linear layers instead of after them.
    Pass(average_early),
    # Masks of about -100 -> masks of about -1000, so that masked probabilities are exactly zero.
    Pass(saturate_attention_masks),
    # Self-attention on a packed projection, with or without a constant bias -> Attention.
    Pass(fuse_attention, quantizable=False),
    # Packed projection of attention that was not fused -> one linear layer each for q, k and v.
    Pass(split_qkv, quantizable=False),
    # Two constants that are added to attention scores -> their sum, added once.
    Pass(merge_attention_biases, quantizable=False),
    # MatMul with transposed operands or a transposed result -> FusedMatMul.
    Pass(absorb_transposes, quantizable=False),
    # Resize of a small image -> MatMul with a constant matrix.
    Pass(resize_by_matmul, quantizable=False),
    # Pad that adds no elements -> nothing.
    Pass(remove_zero_padding),
    # Shift and window partition of tokens in several copies -> one Gather.
    Pass(gather_tokens),
    # BatchNormalization before a convolution without padding -> part of the convolution's weights.
    Pass(fold_batch_norm),
    # Constant factor per channel after a linear layer -> part of the layer's weights.
    Pass(fold_layer_scale),
)
"""The order matters: each rewrite matches what the earlier ones left."""


def optimize(model: onnx.ModelProto, *, quantizable: bool = False) -> onnx.ModelProto:
    """Return a copy of the model that computes the same numbers in less time on ONNX Runtime.

    ONNX Runtime does not do these rewrites itself when it loads a file. Each one looks for a
    pattern of operators, not for an architecture, and changes only exact matches.

    Attention is recognized where it was traced as matrix products and a softmax
    (``fused_attn = False`` on timm's modules). Shapes come from the graph's ``value_info``; values
    without a shape there stay as they are. Inputs, outputs and the initializers that are still read
    keep their names. The fused operators (``com.microsoft``) belong to ONNX Runtime; other runtimes
    may not support them.

    Args:
        model: A model with shapes in its ``value_info``. It is not changed.
        quantizable: Keep the matrix products of attention and the sums around them as they are, so
            that they can be quantized, and add no new matrix products.
    """
    optimized = onnx.ModelProto()
    optimized.CopyFrom(model)
    opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)
    if opset < MIN_OPSET:
        return optimized
    for step in PASSES:
        if quantizable and not step.quantizable:
            continue
        graph = Graph(optimized.graph, opset)
        step.rewrite(graph)
        graph.write()
    domains = {opset.domain for opset in optimized.opset_import}
    if MICROSOFT not in domains and any(n.domain == MICROSOFT for n in optimized.graph.node):
        optimized.opset_import.append(onnx.helper.make_opsetid(MICROSOFT, 1))
    return optimized
