"""What an exported model says of itself, in the ``metadata_props`` of the ONNX file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..adapters.errors import ExportError

FORMAT = "headkit"
VERSION = "1"


@dataclass(frozen=True)
class ModelInfo:
    """The description of an exported model.

    Attributes:
        form: ``merged``, ``swappable``, ``multi`` or ``backbone``.
        head: the ``head`` entry of the head file (docs/head-file.md).
        head_id: SHA-256 of the head file.
        versions: of the libraries that exported it.
    """

    form: str
    head: Mapping[str, Any]
    head_id: str
    versions: Mapping[str, str]

    @property
    def label_names(self) -> list[str]:
        """One name per class; the class numbers as text where the head has no names."""
        names = self.head.get("label_names")
        return names or [str(index) for index in range(self.head["num_classes"])]

    def to_props(self) -> dict[str, str]:
        """Return the entries of ``metadata_props``."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "form": self.form,
            "head": json.dumps(self.head, sort_keys=True, ensure_ascii=False),
            "head_id": self.head_id,
            "versions": json.dumps(self.versions, sort_keys=True),
        }

    @classmethod
    def from_props(cls, props: Mapping[str, str], name: str) -> ModelInfo:
        """Read the entries back. ``name`` is the file's, for the message.

        Raises:
            ExportError: the model was not exported by headkit, or by a newer version.
        """
        if props.get("format") != FORMAT:
            raise ExportError(f"{name} is an ONNX model, but not one that headkit exported")
        if props.get("version") != VERSION:
            raise ExportError(
                f"{name} has metadata version {props.get('version')!r}, "
                f"this headkit reads {VERSION!r}"
            )
        try:
            head, versions = json.loads(props["head"]), json.loads(props["versions"])
            info = cls(props["form"], head, props["head_id"], versions)
            known = isinstance(head["pretrained_cfg"], dict) and isinstance(
                head["num_classes"], int
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ExportError(f"{name} has damaged headkit metadata: {error!r}") from error
        if not known or len(info.label_names) != head["num_classes"]:
            raise ExportError(f"{name} has damaged headkit metadata: labels and classes disagree")
        return info
