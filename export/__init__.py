"""Head and backbone to verified ONNX, and running it.

Running an exported model needs onnxruntime, NumPy and Pillow only.

The package is also the function ``headkit.export``: importing any module in it makes Python bind
``headkit.export`` to the package, so the package answers a call with ``exporter.export``.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _CallablePackage(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from .exporter import export

        return export(*args, **kwargs)


sys.modules[__name__].__class__ = _CallablePackage
