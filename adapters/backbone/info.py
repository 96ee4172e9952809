"""What a head file says about its backbone. This module does not import torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BackboneInfo:
    """The backbone that a head was trained on.

    Attributes:
        tag: timm's pretrained tag, such as ``a1_in1k``; empty if there is none.
        source: Source of the weights: ``hub:ID``, ``file:NAME``, ``folder:NAME``, ``random`` or
            ``unknown``.
        parameters: Number of parameters without the classifier.
        fingerprint: SHA-256 of the backbone's tensors, 64 hexadecimal digits.
    """

    tag: str
    source: str
    parameters: int
    fingerprint: str
