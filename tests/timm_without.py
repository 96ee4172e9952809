"""Run the structural check on a timm that lacks some classes, as a later release may.

``python -m tests.timm_without CLASSES ARCHITECTURES`` (both joined by commas) prints a JSON object:
by architecture the error, as class and message, or null.
"""

import gc
import json
import sys
from importlib import import_module
from typing import Any


def delete(name: str) -> None:
    """Delete a class of timm wherever it can be looked up.

    Modules that only use it keep a class of that name that cannot be made: a timm without the
    class would not name it in the code of architectures that have none.
    """
    (found,) = {
        vars(module)[name]
        for key, module in list(sys.modules.items())
        if key.partition(".")[0] == "timm" and isinstance(vars(module).get(name), type)
    }
    for key, module in list(sys.modules.items()):
        if key.partition(".")[0] == "timm" and vars(module).get(name) is found:
            if key in (found.__module__, "timm.models", "timm.layers", "timm.models.layers"):
                delattr(module, name)
            else:
                setattr(module, name, type(name, (), {"__init__": _refuse}))


def _refuse(self: Any, *_args: Any, **_kwargs: Any) -> None:
    raise NameError(f"name {type(self).__name__!r} is not defined")


def main(classes: str, architectures: str) -> None:
    """Delete the classes before anything of headkit is imported; then check."""
    assert not [module for module in sys.modules if module.startswith("headkit")]
    import_module("timm")
    for name in classes.split(","):
        delete(name)
    from headkit.benchmarks.coverage.contract import structure

    gc.collect()
    gc.freeze()  # otherwise each collection looks through all that torch and timm made
    outcome: dict[str, list[str] | None] = {}
    for architecture in architectures.split(","):
        try:
            structure(architecture)
            outcome[architecture] = None
        except Exception as error:
            outcome[architecture] = [type(error).__name__, str(error)]
    print(json.dumps(outcome))


if __name__ == "__main__":
    main(*sys.argv[1:])
