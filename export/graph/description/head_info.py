"""The description of one head of an exported model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from headkit.adapters.backbone.level import Level
from headkit.adapters.heads.schema import LEVELS, check_levels, check_pixels
from headkit.adapters.heads.tasks import DEFAULT, Task, get_task
from headkit.adapters.images.pixel_rule import VERSION_1_RULE, PixelRule
from headkit.export.graph.checksums import checksum_of_head

from .names import logits_name

if TYPE_CHECKING:  # running a model needs no safetensors
    from headkit.adapters.heads.head import Head


@dataclass(frozen=True)
class HeadInfo:
    """One head of an exported model.

    Attributes:
        name: Name of the head in a multi model; empty in a model with one head.
        head_id: SHA-256 of the head file.
        description: The ``head`` entry of the head file (docs/head-file.md).
        tensors: Shapes of its tensors, by name.
        checksum: ``checksum_of_head`` of it; empty if the model has no checksums.
    """

    name: str
    head_id: str
    description: Mapping[str, Any]
    tensors: Mapping[str, list[int]]
    checksum: str = ""

    @property
    def output(self) -> str:
        """Name of the output with the head's logits."""
        return logits_name(self.name)

    @property
    def task(self) -> Task:
        """Task of the head, which says what its logits mean."""
        return get_task(self.description.get("task", DEFAULT))

    @property
    def num_classes(self) -> int:
        """Number of logits."""
        return int(self.description["num_classes"])

    @cached_property
    def pixels(self) -> PixelRule:
        """The rule by which images become the pixels that the head was trained on."""
        rule = self.description.get("pixels")
        return VERSION_1_RULE if rule is None else check_pixels(rule)

    @property
    def levels(self) -> tuple[Level, ...]:
        """The levels that the head reads; empty for a head that reads the last features alone."""
        return check_levels(self.description.get(LEVELS, ()))

    @property
    def label_names(self) -> list[str]:
        """One name per class; if the head has no names, the class numbers as text."""
        return self.description.get("label_names") or [str(n) for n in range(self.num_classes)]

    def label(self, number: int) -> str:
        """Return the name of one class."""
        names = self.description.get("label_names")
        return names[number] if names else str(number)

    @classmethod
    def from_head(cls, head: Head, name: str = "") -> HeadInfo:
        """Return the description of a head. A delta is in the weights of the model."""
        shapes = {key: list(tensor.shape) for key, tensor in head.tensors.items()}
        description = head.merged().to_json()
        checksum = checksum_of_head(description, head.tensors)
        return cls(name, head.digest, description, shapes, checksum)
