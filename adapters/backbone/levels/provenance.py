"""Find the modules whose outputs a method of a model returns, perhaps in another layout.

timm rearranges what ``forward_intermediates`` returns: it permutes channels, drops prefix tokens
and lays tokens out on a grid. All of this creates views and copies. A view lies in the storage of
the tensor that it shows, and a torch dispatch mode sees the copies. So the place of each element in
the output of a module is known without its value, and the search works on the meta device.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from headkit.adapters.compat import num_writes, watch_operators

_COPY = torch.ops.aten.clone.default
RELU = torch.ops.aten.relu.default


@dataclass(frozen=True)
class Output:
    """What a module returned in a forward pass.

    Attributes:
        path: Path of the module.
        item: Index into its output if that is a tuple or a list.
        tensor: The output.
        num_writes: How often the tensor had been written in place at that moment.
    """

    path: str
    item: int | None
    tensor: Tensor
    num_writes: int


@dataclass(frozen=True)
class _Copy:
    source: Tensor
    num_writes: int
    result: Tensor


@dataclass
class Trace:
    """The outputs of a model's modules, and the copies between tensors, in one call.

    Attributes:
        result: What the call returned.
        outputs: Outputs of the modules, in order.
        calls: How often each module was called.
    """

    result: Any = None
    outputs: list[Output] = field(default_factory=list)
    calls: dict[str, int] = field(default_factory=dict)
    _copies: dict[int, _Copy] = field(default_factory=dict)

    def candidates(self, tensor: Tensor) -> Iterator[tuple[Output, Tensor, Tensor]]:
        """Yield the outputs of which ``tensor`` may be another layout, from last to first.

        With each output come two integer tensors, of its shape and of the shape of ``tensor``. They
        hold the same number where they show the same element.
        """
        storage, writes = tensor.untyped_storage(), num_writes(tensor) or 0
        places = _elements(tensor, _number(tensor))
        while True:
            numbered = _number(tensor)
            for output in reversed(self.outputs):
                same = output.tensor.untyped_storage() is storage and output.num_writes == writes
                if same and output.tensor.dtype == tensor.dtype:
                    yield output, _elements(output.tensor, numbered), places
            copy = self._copies.get(id(storage))
            if copy is None:
                return
            sources = torch.full_like(numbered, -1)
            _elements(copy.result, sources).copy_(_elements(copy.source, _number(copy.source)))
            places = torch.where(places < 0, places, sources[places])
            tensor, writes = copy.source, copy.num_writes
            storage = tensor.untyped_storage()


def trace(model: nn.Module, call: Callable[[], Any], ignored: Collection[Any] = ()) -> Trace:
    """Call a method of ``model`` and record the outputs of its modules.

    Args:
        model: The model.
        call: Function that calls it.
        ignored: Elementwise operators of torch that count as copies.
    """
    found = Trace()
    copies = (_COPY, *ignored)

    def seen(operator: Any, args: tuple[Any, ...], result: Any) -> None:
        if operator in copies:
            copy = _Copy(args[0], num_writes(args[0]) or 0, result)
            found._copies[id(result.untyped_storage())] = copy

    with ExitStack() as stack:
        for path, module in model.named_modules():
            if path:
                hook = module.register_forward_hook(_recording_hook(path, found))
                stack.callback(hook.remove)
        stack.enter_context(torch.no_grad())
        stack.enter_context(watch_operators(seen))
        found.result = call()
    return found


def _recording_hook(path: str, found: Trace) -> Callable[..., None]:
    def record(_module: nn.Module, _args: Any, out: Any) -> None:
        found.calls[path] = found.calls.get(path, 0) + 1
        items = enumerate(out) if isinstance(out, tuple | list) else [(None, out)]
        found.outputs.extend(
            Output(path, item, tensor, num_writes(tensor) or 0)
            for item, tensor in items
            if isinstance(tensor, Tensor)
        )

    return record


def _number(tensor: Tensor) -> Tensor:
    """Return the numbers of the elements in the storage of ``tensor``."""
    return torch.arange(tensor.untyped_storage().nbytes() // tensor.element_size())


def _elements(tensor: Tensor, numbers: Tensor) -> Tensor:
    """Return the entries of ``numbers`` at the place of each element of ``tensor``."""
    return numbers.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
