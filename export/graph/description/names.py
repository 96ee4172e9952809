"""Names of values and tensors in the graph of an exported model."""

from __future__ import annotations

from headkit.adapters.backbone.level import Level
from headkit.adapters.heads.schema import LEVEL_HEAD

PREFIX = "head/"
"""Start of all names that belong to heads, except the tensors of a model's only head."""
LEVEL_WEIGHT, LEVEL_BIAS = f"{LEVEL_HEAD}.weight", f"{LEVEL_HEAD}.bias"
"""Initializers of the only head of a model with levels."""
LEVEL_PREFIX = "level_"
"""Start of the names of the values with the vectors of levels."""
TEMPERATURE = "temperature"
"""Overridable initializer of a swappable model that has probabilities."""


def logits_name(head: str) -> str:
    """Return the name of the output with the logits of the head named ``head``."""
    return f"logits_{head}" if head else "logits"


def probabilities_name(head: str) -> str:
    """Return the name of the output with the probabilities of the head named ``head``."""
    return f"probabilities_{head}" if head else "probabilities"


def level_output(level: Level) -> str:
    """Return the name of the value with the vector of a level."""
    return f"{LEVEL_PREFIX}{level.name}"
