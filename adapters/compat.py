"""Names that torch, timm, ONNX Runtime and onnxscript do not promise to keep.

No other module uses such a name. Libraries are imported where they are used: whoever needs one of
them does not load the others.
"""

from __future__ import annotations


def family_of(architecture: str) -> str:
    """Return the name of the timm module that defines an architecture, such as ``resnet``.

    ``timm.model_entrypoint`` is public. That a family is the module of an entry point is not
    promised; a function of timm that names the family would replace this.
    """
    import timm

    entrypoint = timm.model_entrypoint(architecture)
    return str(entrypoint.__module__).rpartition(".")[2]
