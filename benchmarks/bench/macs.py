"""Count the multiply-adds of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def count_gmacs(model: Any, input_size: Sequence[int]) -> float:
    """Return the multiply-adds for one image in billions, without computing anything.

    The count of ``torch.utils.flop_counter`` includes convolutions, matrix products and attention.
    The model is on the meta device because on a CPU attention is one fused operator, which that
    counter does not know.

    Args:
        model: A module on the meta device, in eval mode.
        input_size: Channels, height and width.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode  # imports triton where that is installed

    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(torch.empty(1, *input_size, device="meta"))
    return round(counter.get_total_flops() / 2e9, 4)
