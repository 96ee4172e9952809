"""What a head file says of the backbone that the head was trained on. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BackboneInfo:
    """Which backbone a head was trained on.

    Attributes:
        tag: pretrained tag of timm, such as ``a1_in1k``; empty if there is none.
        source: ``hub:ID``, ``file:NAME``, ``random`` or ``unknown``.
        parameters: number of parameters, classifier left out.
        fingerprint: SHA-256 of the backbone's tensors, 64 hexadecimal digits.
    """

    tag: str
    source: str
    parameters: int
    fingerprint: str
