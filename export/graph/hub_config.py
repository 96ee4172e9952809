"""The file ``config.json`` beside a model, for programs that load it from a folder."""

from __future__ import annotations

from typing import Any

from .metadata import ModelInfo


def hub_config(info: ModelInfo) -> dict[str, Any]:
    """Return the content of ``config.json`` for a model with one head.

    It has the keys of timm's models on the Hugging Face Hub and of Transformers' ``TimmWrapper``,
    so that Optimum's ``ORTModelForImageClassification.from_pretrained(FOLDER)`` and Transformers'
    ``AutoImageProcessor`` can load the folder.

    Raises:
        ExportError: The model has no head or several.
    """
    head = info.head()
    names = head.label_names
    # If a label occurs twice, as some of ImageNet's do, it gets the id of the first.
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
