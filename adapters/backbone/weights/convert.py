"""Let timm convert the tensors of a checkpoint, and observe which tensors it loads.

timm converts checkpoints of other codebases, position embeddings for another image size, and the
first convolution for another number of channels while it creates a model. It has no function that
returns the result. ``convert`` watches a model being created and keeps what timm copies into it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from headkit.adapters.backbone.module_copy import all_tensors
from headkit.adapters.compat import without_timm_warnings

Create = Callable[..., nn.Module]
"""Creates the architecture with additional arguments of ``timm.create_model``."""


@dataclass(frozen=True)
class Converted:
    """The result of timm's conversions.

    Attributes:
        tensors: What timm loads into the architecture, by the architecture's names. A tensor that
            does not come from the checkpoint is not there.
        unused: Names of the checkpoint's tensors that timm does not load.
    """

    tensors: Mapping[str, Tensor]
    unused: tuple[str, ...]


def convert(
    create: Create, tensors: Mapping[str, Tensor], num_classes: int | None, *, strict: bool
) -> Converted:
    """Convert the tensors of a checkpoint as timm does when it creates a model from them.

    Args:
        create: Creates the architecture.
        tensors: Tensors of a checkpoint.
        num_classes: Number of classes of the architecture; if None, its default.
        strict: Refuse tensors that are missing or left over, as timm does for its own weights. If
            False, accept both and leave out the classifier.

    Raises:
        Exception: timm's conversion cannot use the tensors; any kind of error.
    """
    overlay: dict[str, Any] = {
        "state_dict": dict(tensors),
        "source": "",
        "custom_load": False,
        "label_offset": 0,
    }
    arguments = {} if num_classes is None else {"num_classes": num_classes}
    if not strict:
        overlay["num_classes"] = -1  # differs from the model's, so timm drops the classifier
    elif num_classes is not None:
        overlay["num_classes"] = num_classes
    quiet = without_timm_warnings()
    with quiet, torch.random.fork_rng(devices=[]), _Observer(tensors) as observer:
        model = create(pretrained=True, pretrained_cfg_overlay=overlay, **arguments)
    saved = set(model.state_dict())
    loaded = {
        name: observer.loaded[id(tensor)]
        for name, tensor in all_tensors(model).items()
        if name in saved and id(tensor) in observer.loaded
    }
    used = frozenset[str]().union(*(observer.sources(tensor) for tensor in loaded.values()))
    return Converted(loaded, tuple(name for name in tensors if name not in used))


class _Observer(TorchFunctionMode):
    """Follow tensors through torch functions of this thread, and keep what is copied from them."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        # An id is unique only as long as its object lives, so the tensors are kept.
        self._derived = {id(t): (t, frozenset((name,))) for name, t in tensors.items()}
        self.loaded = dict[int, Tensor]()

    def sources(self, tensor: Tensor) -> frozenset[str]:
        """Return the names of the checkpoint's tensors from which ``tensor`` was made."""
        return self._derived[id(tensor)][1]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a torch function, and remember its results if its arguments come from the file."""
        name = getattr(func, "__name__", "")
        kwargs = kwargs or {}
        sources = self._sources((*args, *kwargs.values()))
        if name in _INITIALIZERS and not sources:
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        result = func(*args, **kwargs)
        if sources:
            if name == "copy_" and id(args[1]) in self._derived:
                self.loaded[id(args[0])] = args[1]
            target = args[:1] if name in ("copy_", "__setitem__") else ()
            for tensor in _tensors((result, *target)):
                self._derived[id(tensor)] = (tensor, sources)
        return result

    def _sources(self, values: Any) -> frozenset[str]:
        found = [self._derived[id(t)][1] for t in _tensors(values) if id(t) in self._derived]
        return frozenset[str]().union(*found)


_INITIALIZERS = frozenset(
    {
        *("normal_", "uniform_", "trunc_normal_", "kaiming_normal_", "kaiming_uniform_"),
        *("xavier_normal_", "xavier_uniform_", "orthogonal_", "erfinv_"),
    }
)
"""Functions that fill tensors with random numbers, which nobody reads here."""


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
