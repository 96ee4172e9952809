"""What an exported model says of itself, in the ``metadata_props`` of the ONNX file."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from headkit.adapters.errors import BackboneMismatch, ExportError, HeadFormatError
from headkit.adapters.heads.schema import check_described
from headkit.adapters.heads.tasks import DEFAULT, Task, task_named

if TYPE_CHECKING:  # running a model needs no safetensors
    from headkit.adapters.heads.head import Head

FORMAT = "headkit"
VERSION = "1"
PREFIX = "head/"
"""Of all names that belong to heads, but the tensors of an only head."""
TEMPERATURE = "temperature"
"""Overridable initializer of a swappable model that has probabilities."""
FORMS = ("merged", "swappable", "multi", "backbone")
_RUN_BY = ("global_pool", "pretrained_cfg")
_SHARED = ("architecture", "num_features", "global_pool", "pretrained_cfg", "model_args")


def logits_name(head: str) -> str:
    """Return the name of the output with the logits of the head called ``head``."""
    return f"logits_{head}" if head else "logits"


def probabilities_name(head: str) -> str:
    """Return the name of the output with its probabilities, in a model that has them."""
    return f"probabilities_{head}" if head else "probabilities"


@dataclass(frozen=True)
class HeadInfo:
    """One head of an exported model.

    Attributes:
        name: of the head in a multi model; empty where there is one head.
        head_id: SHA-256 of the head file.
        described: the ``head`` entry of the head file (docs/head-file.md).
        tensors: shapes of its tensors, by name.
    """

    name: str
    head_id: str
    described: Mapping[str, Any]
    tensors: Mapping[str, list[int]]

    @property
    def output(self) -> str:
        """Name of the output with its logits."""
        return logits_name(self.name)

    @property
    def task(self) -> Task:
        """What its logits mean."""
        return task_named(self.described.get("task", DEFAULT))

    @property
    def num_classes(self) -> int:
        """Length of its logits."""
        return int(self.described["num_classes"])

    @property
    def label_names(self) -> list[str]:
        """One name per class; the class numbers as text where the head has no names."""
        return self.described.get("label_names") or [str(n) for n in range(self.num_classes)]

    @classmethod
    def from_head(cls, head: Head, name: str = "") -> HeadInfo:
        """Describe ``head``."""
        shapes = {key: list(tensor.shape) for key, tensor in head.tensors.items()}
        return cls(name, head.digest, head.to_json(), shapes)


@dataclass(frozen=True)
class ModelInfo:
    """The description of an exported model.

    Attributes:
        form: ``merged``, ``swappable``, ``multi`` or ``backbone``.
        backbone: what all its heads share: ``architecture``, ``num_features``, ``global_pool``,
            ``pretrained_cfg``, ``model_args`` and the head file's ``backbone`` entry.
        features: shapes of what the backbone gives, by name.
        heads: its heads, in the order of its outputs.
        classifier: ``template.to_text`` of its own classifier, where that is not linear.
        versions: of the libraries that exported it.
        precision: ``fp32``, ``fp16`` or ``int8``, of the backbone.
        cost: what that precision costs on held-out images (``precision.Cost``).
        probabilities: the model gives them beside logits.
        preprocess: the model takes raw images.
    """

    form: str
    backbone: Mapping[str, Any]
    features: Mapping[str, list[int | str]]
    heads: tuple[HeadInfo, ...]
    classifier: str
    versions: Mapping[str, str]
    precision: str = "fp32"
    cost: Mapping[str, Any] = field(default_factory=dict)
    probabilities: bool = False
    preprocess: bool = False

    def head(self, name: str | None = None) -> HeadInfo:
        """Return the head called ``name``, or the only one.

        Raises:
            ExportError: there is no such head, or there are several.
        """
        names = [head.name for head in self.heads]
        if name is None and len(names) == 1:
            return self.heads[0]
        if name is None or name not in names:
            asked = "name one head" if name is None else f"there is no head {name!r}"
            raise ExportError(f"{asked}; this {self.form} model has {', '.join(names) or 'none'}")
        return self.heads[names.index(name)]

    def check_backbone(self, head: Head, *, force: bool | None = False) -> None:
        """Refuse a head of another backbone, or of one that was run otherwise.

        Args:
            head: the head.
            force: take a head of another backbone of the same architecture too; None where the
                caller has no such argument that the message could name.

        Raises:
            BackboneMismatch: the architecture differs; or, unless ``force``, the weights, the
                pooling or the preprocessing do.
        """
        if head.architecture != self.backbone["architecture"]:
            raise BackboneMismatch(
                f"this head was trained on {head.architecture}, "
                f"the model is {self.backbone['architecture']}"
            )
        or_force = "" if force is None else ", or pass force=True (--force)"
        expected, found = head.backbone.fingerprint, self.backbone["backbone"]["fingerprint"]
        if found != expected and not force:
            raise BackboneMismatch(
                f"this head was trained on a {head.architecture} with fingerprint "
                f"{expected[:12]}, the model's is {found[:12]}: export the head with its own "
                f"backbone{or_force}"
            )
        described = json.loads(_json(head.to_json()))
        for key in _RUN_BY:
            given = json.loads(_json(self.backbone[key]))
            if described[key] != given and not force:
                raise BackboneMismatch(
                    f"this head was trained with {key} {described[key]}, the model has {given}: "
                    f"export the head by itself{or_force}"
                )

    def with_heads(self, *heads: HeadInfo) -> ModelInfo:
        """Return a copy with other heads."""
        return replace(self, heads=heads)

    def to_props(self) -> dict[str, str]:
        """Return the entries of ``metadata_props``."""
        heads = [
            {
                "name": head.name,
                "id": head.head_id,
                # What it shares with the backbone is not repeated a thousand times.
                "head": {
                    key: value
                    for key, value in head.described.items()
                    if key not in self.backbone or self.backbone[key] != value
                },
                "tensors": head.tensors,
            }
            for head in self.heads
        ]
        return {
            "format": FORMAT,
            "version": VERSION,
            "form": self.form,
            "backbone": _json(self.backbone),
            "features": _json(self.features),
            "heads": _json(heads),
            "classifier": self.classifier,
            "precision": self.precision,
            "cost": _json(self.cost),
            "probabilities": str(int(self.probabilities)),
            "preprocess": str(int(self.preprocess)),
            "versions": _json(self.versions),
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
            backbone = json.loads(props["backbone"])
            shared = {key: backbone[key] for key in (*_SHARED, "backbone")}
            check_described({**shared, "num_classes": 1})
            from_text = base64.b64decode(props["classifier"], validate=True)
            json_objects = [json.loads(props[key]) for key in ("features", "cost", "versions")]
            info = cls(
                form=props["form"],
                backbone=shared,
                features=json.loads(props["features"]),
                heads=tuple(
                    HeadInfo(h["name"], h["id"], {**shared, **h["head"]}, h["tensors"])
                    for h in json.loads(props["heads"])
                ),
                classifier=props["classifier"],
                versions=json.loads(props["versions"]),
                precision=props["precision"],
                cost=json.loads(props["cost"]),
                probabilities=props["probabilities"] == "1",
                preprocess=props["preprocess"] == "1",
            )
            for head in info.heads:
                check_described(head.described)
            sound = (
                info.form in FORMS
                and all(isinstance(value, dict) for value in json_objects)
                and all(len(head.label_names) == head.num_classes for head in info.heads)
                and _count_fits(info)
                and from_text is not None
            )
        except (HeadFormatError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise ExportError(f"{name} has damaged headkit metadata: {error!r}") from error
        if not sound:
            raise ExportError(f"{name} has damaged headkit metadata: its parts disagree")
        return info


def _count_fits(info: ModelInfo) -> bool:
    count = len(info.heads)
    return {"backbone": count == 0, "multi": count > 0}.get(info.form, count == 1)


def backbone_of(head: Head) -> dict[str, Any]:
    """Return the part of a head's description that all heads of a backbone share."""
    described = head.to_json()
    return {key: described[key] for key in (*_SHARED, "backbone")}


def hub_config(info: ModelInfo) -> dict[str, Any]:
    """Return a ``config.json`` for a model with one head.

    Its keys are those of timm's on the Hugging Face Hub, and of Transformers' ``TimmWrapper``, so
    that Optimum's ``ORTModelForImageClassification.from_pretrained(FOLDER)`` and Transformers'
    ``AutoImageProcessor`` take the folder.

    Raises:
        ExportError: the model has no head or several.
    """
    head = info.head()
    names = head.label_names
    # Of labels that occur twice the id of the first; ImageNet's own names have such.
    label2id = {name: number for number, name in reversed(list(enumerate(names)))}
    return {
        "architecture": info.backbone["architecture"],
        "global_pool": info.backbone["global_pool"],
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": label2id,
        "label_names": names,
        "model_args": info.backbone["model_args"],
        "model_type": "timm_wrapper",
        "num_classes": head.num_classes,
        "num_features": info.backbone["num_features"],
        "pretrained_cfg": info.backbone["pretrained_cfg"],
        "problem_type": head.task.problem_type,
    }


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
