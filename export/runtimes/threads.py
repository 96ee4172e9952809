"""Leave the number of torch's threads as it was: it belongs to the whole process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def restore_threads() -> Iterator[None]:
    """Set the number of torch's threads back at the end."""
    import torch

    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)
