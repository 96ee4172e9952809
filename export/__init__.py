"""Export heads and backbones to verified ONNX, and run exported models.

Running an exported model needs only onnxruntime, NumPy and Pillow.

The package is also the function ``headkit.export``. When any module in it is imported, Python binds
``headkit.export`` to the package, so a call of the package calls ``exporter.export``.
"""

from __future__ import annotations

import inspect
import sys
from types import ModuleType
from typing import Any

_DOC = __doc__


class _CallablePackage(ModuleType):
    """A package that can be called, with the signature and the documentation of the function.

    The function needs torch. If torch is not installed, the package shows its own documentation.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from .exporter import export

        return export(*args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        try:
            from .exporter import export
        except ImportError as error:
            raise AttributeError(str(error)) from error
        return inspect.signature(export)

    @property
    def __doc__(self) -> str | None:  # type: ignore[override]
        try:
            from .exporter import export
        except ImportError:
            return _DOC
        return f"headkit.export{inspect.signature(export)}\n\n{inspect.getdoc(export)}"


sys.modules[__name__].__class__ = _CallablePackage
